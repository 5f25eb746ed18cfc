"""A float64 model computes in float64 from images to losses."""

import pytest
import torch

from grrcoca_cli.config import GenerationConfig, ModelConfig
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.generate import SpecialTokens, generate
from grrcoca_cli.model.losses import Pairs


@pytest.mark.parametrize(
    "settings",
    [{}, {"variant": "coca"}, {"rope": "axial", "qk_norm": True, "contrastive_loss": "sigmoid"}],
    ids=str,
)
def test_float64_stays_float64(settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    small = {"size": "tiny", "image_size": 32, "vocab_size": 300, "context_length": 12, **settings}
    model = CoCa(ModelConfig.model_validate(small))
    images = torch.randn(3, 3, 32, 32)
    tokens = torch.randint(3, 300, (3, 8))
    single = output_of(model, images, tokens, want="loss")
    double_model = model.double()
    double = output_of(double_model, images.double(), tokens, want="loss")
    for a, b in zip(single, double, strict=True):
        assert b.dtype == torch.float64
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5)
    assert output_of(double_model, images.double(), tokens, want="tokens")[0].dtype == torch.float64
    # A central difference is right to ten digits only if every step of the way is float64.
    weight = double_model.text_decoder.unimodal[0].attention.qkv.weight
    (gradient,) = torch.autograd.grad(sum(double), weight)
    direction = torch.randn_like(weight)
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * 1e-4)
            losses.append(sum(output_of(double_model, images.double(), tokens, want="loss")).item())
            weight.sub_(direction, alpha=sign * 1e-4)
    assert (losses[0] - losses[1]) / 2e-4 == pytest.approx((gradient * direction).sum().item(), rel=1e-5)
    memory, _ = double_model.encode_image(images.double())
    for rows in (GenerationConfig(), GenerationConfig(beams=3)):
        cached, plain = (
            generate(double_model, memory, SpecialTokens(0, 1, 2), rows, use_cache=c) for c in (True, False)
        )
        assert [c.tokens for image in cached for c in image] == [c.tokens for image in plain for c in image]


def output_of(model: CoCa, images: torch.Tensor, tokens: torch.Tensor, want: str) -> tuple[torch.Tensor, torch.Tensor]:
    output = model(images, tokens, 0, want)
    return output.nll, model.pair_loss(Pairs.alone(output.image_features, output.text_features))
