"""Weights packed for decoding: the same captions, hardly other numbers, nothing changed in the model."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grrcoca_cli.config import GenerationConfig, ModelConfig
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.generate import SpecialTokens, generate
from grrcoca_cli.model.packed import PackedLinear, can_pack, pack_for_decoding

pytestmark = pytest.mark.skipif("fbgemm" not in torch.backends.quantized.supported_engines, reason="x86 alone")
SPECIAL = SpecialTokens(pad=0, bos=1, eos=2)


def model(variant: str = "grr-coca") -> CoCa:
    torch.manual_seed(0)
    settings = {"variant": variant, "size": "tiny", "image_size": 32, "vocab_size": 260, "context_length": 20}
    built = CoCa(ModelConfig.model_validate(settings)).eval()
    with torch.no_grad():
        built.text_decoder.head.weight.mul_(15)
    return built


@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_multiplies_with_the_weight_in_float16(bias: bool) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 40, bias=bias), torch.randn(2, 3, 24)
    expected = F.linear(x, linear.weight.half().float(), linear.bias)
    torch.testing.assert_close(PackedLinear(linear)(x), expected.detach())


@pytest.mark.parametrize("settings", [{}, {"beams": 3}, {"temperature": 1.0, "captions": 3}], ids=str)
@pytest.mark.parametrize("variant", ["grr-coca", "coca"])
def test_packed_decoding_writes_the_same_captions(variant: str, settings: dict[str, object]) -> None:
    m = model(variant)
    memory, _ = m.encode_image(torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    text = pack_for_decoding(m.text_decoder)
    config = GenerationConfig.model_validate(settings)
    plain, packed = (
        generate(m, memory, SPECIAL, config, torch.Generator().manual_seed(7), text=decoder) for decoder in (None, text)
    )
    same = 0
    for ours, theirs in zip(packed, plain, strict=True):
        same += ours[0].tokens == theirs[0].tokens
        if ours[0].tokens == theirs[0].tokens:
            assert ours[0].logprobs == pytest.approx(theirs[0].logprobs, abs=0.02)
    assert same >= 11


def test_packing_leaves_the_model_as_it_was_and_shares_what_it_does_not_pack() -> None:
    m = model()
    before = {name: value.clone() for name, value in m.state_dict().items()}
    text = pack_for_decoding(m.text_decoder)
    torch.testing.assert_close(m.state_dict(), before, rtol=0, atol=0)
    assert not [module for module in m.modules() if isinstance(module, PackedLinear)]
    assert text.token_embedding.weight is m.text_decoder.token_embedding.weight
    assert isinstance(text.head, PackedLinear)


def test_weights_beyond_float16_are_not_packed() -> None:
    m = model()
    assert can_pack(m.text_decoder)
    with torch.no_grad():
        m.text_decoder.head.weight[0, 0] = 1e5
    assert not can_pack(m.text_decoder)
