"""Parameter counts of every size and the paper arithmetic they follow."""

import pytest
import torch

from grrcoca_cli.config import ModelConfig
from grrcoca_cli.model.coca import CoCa


def count(module: torch.nn.Module, part: str = "") -> int:
    return sum(p.numel() for name, p in module.named_parameters() if name.startswith(part))


def build(**settings: object) -> CoCa:
    with torch.device("meta"):
        return CoCa(ModelConfig.model_validate(settings))


PARAMETERS = {"tiny": 7_224_193, "small": 64_182_529, "base": 239_622_145, "base-12": 338_790_913, "large": 730_847_233}


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters_of_each_size(size: str) -> None:
    assert count(build(size=size)) == PARAMETERS[size]


@pytest.mark.parametrize(("size", "image", "decoder"), [("base-12", 86e6, 297e6), ("large", 303e6, 484e6)])
def test_the_original_has_the_published_counts(size: str, image: float, decoder: float) -> None:
    model = build(variant="coca", size=size, image_size=288, patch_size=18, vocab_size=64_000)
    assert count(model, "image_encoder") == pytest.approx(image, rel=0.01)
    assert count(model, "text_decoder") == pytest.approx(decoder, rel=0.01)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_matched_arms_are_equal_to_one_percent(size: str) -> None:
    counts = [count(build(size=size, variant=variant)) for variant in ("grr-coca", "baseline-coca")]
    assert counts[0] == pytest.approx(counts[1], rel=0.01)


def test_a_wide_geglu_has_half_more_than_a_matched_one() -> None:
    layer = "image_encoder.blocks.0.mlp"
    matched, wide = (count(build(size="base", geglu=kind), layer) for kind in ("matched", "wide"))
    assert wide / matched == pytest.approx(1.5, rel=0.01)
