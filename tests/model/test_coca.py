"""Properties of the model core that hold in every variant."""

import ctypes
import math
import resource
from pathlib import Path

import pytest
import torch

from grrcoca_cli.config import ModelConfig
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.losses import Pairs, contrastive_loss
from grrcoca_cli.model.recompute import trim_heap

PAD, BOS, EOS = 0, 1, 2

ARMS = [
    {"variant": "grr-coca"},
    {"variant": "baseline-coca"},
    {"variant": "coca"},
    {"variant": "grr-coca", "image_norm": "layernorm"},
    {"variant": "grr-coca", "image_mlp": "gelu", "geglu": "wide"},
    {"variant": "grr-coca", "image_positions": "learned", "text_positions": "learned"},
    {"variant": "grr-coca", "rope": "axial", "qk_norm": True, "image_positions": "both"},
    {"variant": "grr-coca", "generative_pooler": "parallel", "tied_embeddings": True},
    {"variant": "grr-coca", "generative_pooler": "none", "attention_bias": False},
    {"variant": "coca", "text_mlp": "geglu", "text_norm": "rmsnorm", "gradient_checkpointing": True},
]


def tiny(**settings: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {"size": "tiny", "image_size": 32, "vocab_size": 300, "context_length": 12, "pooler_queries": 6, **settings}
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    tokens = torch.randint(3, 300, (3, 10), generator=generator)
    tokens[:, 0] = BOS
    for row, length in enumerate((10, 6, 3)):
        tokens[row, length - 1] = EOS
        tokens[row, length:] = PAD
    return images, tokens


def build(settings: dict[str, object]) -> CoCa:
    torch.manual_seed(0)
    return CoCa(tiny(**settings)).eval()


@pytest.fixture(params=ARMS, ids=lambda arm: ",".join(str(value) for value in arm.values()))
def model(request: pytest.FixtureRequest) -> CoCa:
    return build(request.param)


def logits(model: CoCa, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Next-token logits (T, V) at the target positions."""
    hidden, _ = model.encode_text(tokens, PAD)
    states, _ = model.predict(hidden, tokens, model.encode_image(images)[0], PAD)
    return model.text_decoder.head(states)


def test_every_parameter_is_initialised(model: CoCa, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poisoned(*size: int, **options: object) -> torch.Tensor:
        return empty(*size, **options).fill_(math.nan)

    monkeypatch.setattr(torch, "empty", poisoned)
    fresh = CoCa(model.config)
    assert all(parameter.isfinite().all() for parameter in fresh.parameters())


def test_every_parameter_gets_a_gradient(model: CoCa) -> None:
    output = model.train()(*batch(), PAD)
    (output.nll + model.pair_loss(Pairs.alone(output.image_features, output.text_features))).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


def test_a_token_sees_nothing_after_it(model: CoCa) -> None:
    images, tokens = batch()
    changed = tokens.clone()
    changed[0, 7] = 9
    memory, _ = model.encode_image(images)
    lengths = (tokens != PAD).sum(dim=1)
    before = model.text_decoder.decode(model.text_decoder.encode(tokens, lengths)[0], memory)
    after = model.text_decoder.decode(model.text_decoder.encode(changed, lengths)[0], memory)
    torch.testing.assert_close(before[0, :7], after[0, :7])
    assert not torch.allclose(before[0, 7:], after[0, 7:])


def test_padding_changes_nothing(model: CoCa) -> None:
    images, tokens = batch()
    together = model(images, tokens, PAD)
    for row, length in enumerate((10, 6, 3)):
        alone = model(images[row : row + 1], tokens[row : row + 1, :length], PAD)
        torch.testing.assert_close(alone.text_features[0], together.text_features[row], atol=1e-5, rtol=1e-5)
        start = (0, 9, 14)[row]
        torch.testing.assert_close(
            logits(model, images[row : row + 1], tokens[row : row + 1, :length]),
            logits(model, images, tokens)[start : start + length - 1],
            atol=2e-5,
            rtol=1e-4,
        )


def test_wanted_positions_alone_are_as_among_all(model: CoCa) -> None:
    images, tokens = batch()
    memory, _ = model.encode_image(images)
    hidden, _ = model.encode_text(tokens, PAD)
    real = tokens != PAD
    found = []
    for states in (model.text_decoder.decode(hidden, memory)[real], model.text_decoder.decode(hidden, memory, real)):
        gradients = torch.autograd.grad(states.square().sum(), hidden, retain_graph=True)
        found.append((states, gradients[0][real]))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_the_class_token_sees_the_whole_caption(model: CoCa) -> None:
    _, tokens = batch()
    _, features = model.encode_text(tokens, PAD)
    for row, place in ((0, 1), (0, 8), (2, 1)):
        changed = tokens.clone()
        changed[row, place] = 17
        _, moved = model.encode_text(changed, PAD)
        assert not torch.allclose(features[row], moved[row], atol=1e-6)


def test_captions_depend_on_the_picture(model: CoCa) -> None:
    images, tokens = batch()
    assert not torch.allclose(logits(model, images, tokens), logits(model, images.flip(0), tokens), atol=1e-6)


def test_one_batch_overfits(model: CoCa) -> None:
    images, tokens = batch()
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    for _ in range(60):
        output = model(images, tokens, PAD)
        nll = output.nll / (tokens[:, 1:] != PAD).sum()
        contrastive = model.pair_loss(Pairs.alone(output.image_features, output.text_features))
        optimiser.zero_grad()
        (2 * nll + contrastive).backward()
        optimiser.step()
    assert nll < 0.2
    assert contrastive < 0.1


def test_targets_are_the_tokens_after_the_first() -> None:
    images, tokens = batch()
    model = build({})
    hidden, _ = model.encode_text(tokens, PAD)
    _, targets = model.predict(hidden, tokens, model.encode_image(images)[0], PAD)
    assert targets.tolist() == [t for row in tokens.tolist() for t in row[1:] if t != PAD]


def test_positions_matter_to_the_image_encoder() -> None:
    images, _ = batch()
    shifted = images.roll(8, dims=-1)  # the same patches in another order
    for settings in ({}, {"rope": "axial"}, {"image_positions": "learned"}, {"image_positions": "both"}):
        model = build(settings)
        mean = [model.image_encoder(x).mean(dim=1) for x in (images, shifted)]
        assert not torch.allclose(*mean, atol=1e-4), settings


def test_both_kinds_of_positions_act_at_once() -> None:
    images, _ = batch()
    rope, both = build({}).image_encoder, build({"image_positions": "both"}).image_encoder
    rope.load_state_dict({name: value for name, value in both.state_dict().items() if name != "positions"})
    assert not torch.allclose(both(images), rope(images), atol=1e-4)
    both.positions.data.zero_()
    torch.testing.assert_close(both(images), rope(images))


def test_patch_dropout_keeps_the_angles_of_kept_patches() -> None:
    images, _ = batch()
    model = build({"patch_dropout": 0.5}).train()
    assert model.image_encoder(images).shape[1] == 8
    whole = build({"patch_dropout": 0.01}).train()  # rounds to all patches: nothing may change
    torch.testing.assert_close(whole.image_encoder(images), whole.eval().image_encoder(images), atol=1e-5, rtol=1e-5)


def test_temperature_stays_above_its_floor() -> None:
    model = build({})
    assert model.temperature.item() == pytest.approx(0.07)
    model.logit_scale.data.fill_(10.0)
    model.clamp_temperature()
    assert model.temperature.item() == pytest.approx(0.01)


def test_contrastive_loss_by_hand() -> None:
    features = torch.eye(2)
    expected = math.log(1 + math.exp(-1 / 0.5))
    assert contrastive_loss(Pairs.alone(features, features), torch.tensor(math.log(2.0))).item() == pytest.approx(
        expected
    )


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for switch in (False, True):
        model = build({"gradient_checkpointing": switch}).train()
        output = model(*batch(), PAD)
        (output.nll + output.image_features.sum()).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library has no malloc_trim")
def test_what_tensors_let_go_of_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    blocks = [torch.ones(2**14) for _ in range(4000)]  # of 64 KB: small enough to stand in the heap
    kept = blocks[::10]
    del blocks
    gaps = resident()
    trim_heap()
    assert gaps - resident() > 150e6
    assert all(block.eq(1).all() for block in kept)
