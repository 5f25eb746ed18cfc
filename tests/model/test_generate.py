"""Decoding: the cache changes nothing, a beam of one is greedy, and every constraint holds."""

from itertools import chain

import pytest
import torch

from grrcoca_cli.config import GenerationConfig, ModelConfig
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.generate import GeneratedCaption, SpecialTokens, generate

SPECIAL = SpecialTokens(pad=0, bos=1, eos=2)
SETTINGS = [
    {},
    {"temperature": 1.0, "captions": 3},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
    {"beams": 3, "captions": 2},
    {"beams": 4, "length_penalty": 0.5, "no_repeat_ngram": 2, "min_tokens": 4},
]


def model(variant: str = "grr-coca", seed: int = 0, **settings: object) -> CoCa:
    torch.manual_seed(seed)
    config = ModelConfig.model_validate(
        {
            **{"variant": variant, "size": "tiny", "image_size": 32, "vocab_size": 260, "context_length": 20},
            **settings,
        }
    )
    built = CoCa(config).eval()
    with torch.no_grad():  # far from uniform, and ready to end: otherwise every caption runs to its limit
        built.text_decoder.head.weight.mul_(15)
        built.text_decoder.head.weight[SPECIAL.eos] *= 1.6
    return built


def run(m: CoCa, settings: dict[str, object], images: int = 5, **options: bool) -> list[list[GeneratedCaption]]:
    memory, _ = m.encode_image(torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    generator = torch.Generator().manual_seed(7)
    return generate(m, memory, SPECIAL, GenerationConfig.model_validate(settings), generator, **options)


def tokens(captions: list[list[GeneratedCaption]]) -> list[list[list[int]]]:
    return [[caption.tokens for caption in image] for image in captions]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("variant", ["grr-coca", "coca"])
def test_cached_equals_uncached(variant: str, settings: dict[str, object]) -> None:
    m = model(variant)
    fast, slow = run(m, settings), run(m, settings, use_cache=False)
    assert tokens(fast) == tokens(slow)
    for a, b in zip(chain(*fast), chain(*slow), strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_without_a_generative_pooler_the_cache_holds_too() -> None:
    m = model(generative_pooler="none")
    assert tokens(run(m, {"beams": 3})) == tokens(run(m, {"beams": 3}, use_cache=False))


def test_captions_end_at_different_lengths() -> None:
    lengths = {len(caption.tokens) for image in run(model(), {}, images=16) for caption in image}
    assert len(lengths) > 2  # otherwise the tests above never drop a row


@pytest.mark.parametrize("settings", SETTINGS[:1] + SETTINGS[3:], ids=str)
def test_a_batch_equals_its_images_alone(settings: dict[str, object]) -> None:
    m = model()
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    config = GenerationConfig.model_validate(settings)
    memory, _ = m.encode_image(images)
    together = generate(m, memory, SPECIAL, config)
    alone = [generate(m, memory[i : i + 1], SPECIAL, config)[0] for i in range(5)]
    assert tokens(together) == tokens(alone)


def test_a_beam_of_one_equals_greedy() -> None:
    from grrcoca_cli.model.generate import _beam_search, _CachedDecoder, _Rows

    m = model()
    memory, _ = m.encode_image(torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    config = GenerationConfig()
    rows = _Rows(len(memory), 1, SPECIAL.bos, memory.device)
    with torch.inference_mode():
        beam = _beam_search(_CachedDecoder(m.text_decoder, memory), rows, 19, SPECIAL, config)
    assert tokens(beam) == tokens(generate(m, memory, SPECIAL, config))


def test_a_wide_beam_finds_likelier_captions_than_greedy() -> None:
    m = model(seed=2)
    greedy = run(m, {"length_penalty": 0.0, "max_tokens": 3, "min_tokens": 3}, images=12)
    beam = run(m, {"length_penalty": 0.0, "max_tokens": 3, "min_tokens": 3, "beams": 16}, images=12)
    differences = [b[0].score - g[0].score for b, g in zip(beam, greedy, strict=True)]
    assert min(differences) > -1e-4
    assert max(differences) > 1e-3


def test_logprobs_are_the_models_own() -> None:
    m = model()
    memory, _ = m.encode_image(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    sampled = generate(m, memory, SPECIAL, GenerationConfig(temperature=1.5, top_k=5), torch.Generator().manual_seed(0))
    for row, (caption,) in enumerate(sampled):
        prefix = torch.tensor([[SPECIAL.bos, *caption.tokens[:-1]]])
        hidden, _ = m.text_decoder.encode(prefix, torch.tensor([prefix.shape[1]]))
        logits = m.text_decoder.head(m.text_decoder.decode(hidden, memory[row : row + 1]))
        expected = logits.log_softmax(-1)[0].gather(1, torch.tensor(caption.tokens).unsqueeze(1)).flatten()
        assert caption.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        assert caption.score == pytest.approx(sum(caption.logprobs) / len(caption.tokens))


@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"beams": 3, "captions": 3}], ids=str)
def test_lengths_and_repeats_are_bounded(settings: dict[str, object]) -> None:
    found = run(model(), {**settings, "min_tokens": 6, "max_tokens": 9, "no_repeat_ngram": 1}, images=8)
    for caption in chain(*found):
        assert 6 <= len(caption.tokens) <= 9
        assert len(set(caption.tokens)) == len(caption.tokens)
        assert not {SPECIAL.pad, SPECIAL.bos} & set(caption.tokens)
        assert SPECIAL.eos not in caption.tokens[:-1]


def test_length_stops_at_the_context() -> None:
    found = run(model(), {"max_tokens": 500, "min_tokens": 500})
    assert {len(image[0].tokens) for image in found} == {19}


def test_sampling_repeats_with_its_seed_and_varies_without() -> None:
    m = model()
    settings = {"temperature": 1.0, "captions": 4}
    assert tokens(run(m, settings)) == tokens(run(m, settings))
    assert len({tuple(caption.tokens) for caption in run(m, settings)[0]}) > 1


def test_beams_give_distinct_captions_best_first() -> None:
    for image in run(model(), {"beams": 4, "captions": 4}):
        assert len({tuple(caption.tokens) for caption in image}) == 4
        assert [c.score for c in image] == sorted((c.score for c in image), reverse=True)
