"""A frozen image encoder: no gradient, no decay, no movement; the rest learns."""

from typing import Literal

import pytest
import torch

from grrcoca_cli.config import ModelConfig, TrainingConfig
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.losses import Pairs
from grrcoca_cli.training.optimizer import freeze, make_optimizers

TINY = {"size": "tiny", "image_size": 16, "image_layers": 1, "unimodal_layers": 1, "multimodal_layers": 1}


def train(model: CoCa, optimizer: Literal["adamw", "muon"]) -> None:
    optimizers = make_optimizers(model.train(), TrainingConfig(optimizer=optimizer, learning_rate=1e-2))
    for step in range(3):
        torch.manual_seed(step)
        output = model(torch.randn(4, 3, 16, 16), torch.randint(3, 300, (4, 6)), pad_id=0)
        (output.nll + model.pair_loss(Pairs.alone(output.image_features, output.text_features))).backward()
        for one in optimizers:
            one.step()
            one.zero_grad()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_frozen_encoder_does_not_move(optimizer: Literal["adamw", "muon"]) -> None:
    torch.manual_seed(0)
    model = CoCa(ModelConfig.model_validate({**TINY, "variant": "baseline-coca", "vocab_size": 300}))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    freeze(model, "image")
    train(model, optimizer)
    for name, parameter in model.named_parameters():
        frozen = name.startswith("image_encoder.")
        assert torch.equal(parameter, before[name]) == frozen, name
        assert parameter.requires_grad != frozen, name


def test_nothing_is_frozen_by_default_and_poolers_never() -> None:
    model = CoCa(ModelConfig.model_validate({**TINY, "vocab_size": 300}))
    freeze(model, "none")
    assert all(parameter.requires_grad for parameter in model.parameters())
    freeze(model, "image")
    assert model.contrastive_pooler.queries.requires_grad


def test_a_group_may_be_empty() -> None:
    model = CoCa(ModelConfig.model_validate({**TINY, "vocab_size": 300}))
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.dim() < 2)  # nothing that decays, no hidden matrix
    (adamw,) = make_optimizers(model, TrainingConfig(optimizer="muon"))
    assert [len(group["params"]) > 0 for group in adamw.param_groups] == [False, True, True]
    train(model, "adamw")
