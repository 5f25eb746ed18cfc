"""Every parameter has a role, and one without is an error wherever roles are read."""

import re

import pytest
import torch
from torch import nn

from grrcoca_cli.config import ModelConfig, TrainingConfig
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.initialise import init_weights
from grrcoca_cli.model.roles import role_of
from grrcoca_cli.training.optimizer import freeze, parameter_groups

TINY = {"size": "tiny", "vocab_size": 300}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("logit_scale", ("temperature", False, False, "poolers")),
        ("contrastive_pooler.queries", ("normal", False, False, "poolers")),
        ("generative_pooler.attention.out.weight", ("matrix", True, True, "poolers")),
        ("image_encoder.positions", ("positions", False, False, "image")),
        ("image_encoder.patch_embedding.weight", ("matrix", True, False, "image")),
        ("image_encoder.blocks.3.attention.qkv.bias", ("zero", False, False, "image")),
        ("image_encoder.blocks.3.attention.query_norm.weight", ("one", False, False, "image")),
        ("image_encoder.blocks.3.mlp.down.weight", ("branch_end", True, True, "image")),
        ("image_projection.weight", ("matrix", True, False, "poolers")),
        ("text_decoder.cls", ("embedding", False, False, "text")),
        ("text_decoder.token_embedding.weight", ("embedding", False, False, "text")),
        ("text_decoder.head.weight", ("embedding", True, False, "head")),
        ("text_decoder.multimodal.0.cross_attention.key_value.weight", ("matrix", True, True, "text")),
        ("text_decoder.multimodal.0.cross_attention.out.weight", ("branch_end", True, True, "text")),
    ],
)
def test_roles(name: str, role: tuple[str, bool, bool, str]) -> None:
    got = role_of(name)
    assert (got.initial, got.decays, got.muon, got.part) == role


@pytest.mark.parametrize("where", ["", "text_decoder", "image_encoder.blocks.0.mlp"])
def test_a_new_parameter_of_unknown_name_raises(where: str) -> None:
    model = CoCa(ModelConfig.model_validate(TINY))
    model.get_submodule(where).register_parameter("gain", nn.Parameter(torch.ones(3)))
    name = f"{where}.gain".removeprefix(".")
    for use in (
        lambda: init_weights(model, model.config),
        lambda: parameter_groups(model, TrainingConfig()),
        lambda: freeze(model, "image"),
    ):
        with pytest.raises(LookupError, match=rf"parameter {re.escape(name)} has no role"):
            use()


def test_only_what_has_two_dimensions_decays_or_goes_to_muon() -> None:
    for settings in ({}, {"variant": "coca"}, {"qk_norm": True, "contrastive_loss": "sigmoid"}):
        for name, parameter in CoCa(ModelConfig.model_validate({**TINY, **settings})).named_parameters():
            role = role_of(name)
            assert role.decays <= (parameter.dim() == 2), name
            assert role.muon <= role.decays, name
