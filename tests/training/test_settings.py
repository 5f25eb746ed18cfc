"""Settings for long runs, each by the effect it has; and the losses that are not InfoNCE."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from grrcoca_cli.cli import app
from grrcoca_cli.config import ModelConfig
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.losses import Pairs, contrastive_loss, sigmoid_loss
from tests.training.test_loop import log_of, pretrain, weights_of


def evaluations(out: Path) -> list[dict[str, float]]:
    """Rows of the log that are evaluations."""
    return [row for row in log_of(out) if "val_coca_loss" in row]


def test_averaged_weights_are_the_checkpoint_and_its_evaluation(phantom_shards: Path, tmp_path: Path) -> None:
    assert pretrain(phantom_shards, tmp_path / "plain")[0] == 0
    assert pretrain(phantom_shards, tmp_path / "averaged", "training.ema=0.99")[0] == 0
    kept = tmp_path / "averaged" / "checkpoints" / "step-9"
    own = load_file(kept / "training" / "weights.safetensors")
    published, plain = weights_of(tmp_path / "averaged"), weights_of(tmp_path / "plain")
    assert all(torch.equal(own[name], plain[name]) for name in plain)  # training itself is the same
    assert not torch.equal(published["text_decoder.head.weight"], own["text_decoder.head.weight"])
    averaged, last = (evaluations(tmp_path / name)[-1]["val_caption_loss"] for name in ("averaged", "plain"))
    assert averaged != last


def test_the_best_checkpoint_is_that_of_the_lowest_loss(phantom_shards: Path, tmp_path: Path) -> None:
    settings = ("training.keep_best=true", "training.learning_rate=0.05", "training.eval_every=1")
    assert pretrain(phantom_shards, tmp_path / "run", *settings)[0] == 0
    best = min(evaluations(tmp_path / "run"), key=lambda row: row["val_coca_loss"])
    config = json.loads((tmp_path / "run" / "best" / "config.json").read_text())
    assert config["step"] == best["step"]
    assert not (tmp_path / "run" / "best" / "training").exists()


def test_a_run_that_gets_no_better_ends_early_and_stays_ended(phantom_shards: Path, tmp_path: Path) -> None:
    settings = ("training.patience=2", "training.learning_rate=0.5", "training.eval_every=1", "training.steps=60")
    code, err = pretrain(phantom_shards, tmp_path / "run", *settings)
    assert code == 0
    assert "stopped early" in err
    rows = evaluations(tmp_path / "run")
    values = [row["val_coca_loss"] for row in rows]
    assert len(values) - 1 - values.index(min(values)) == 2
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
    before = log_of(tmp_path / "run")
    assert pretrain(phantom_shards, tmp_path / "run", *settings)[0] == 0
    assert log_of(tmp_path / "run") == before


def test_patience_without_evaluations_is_refused(phantom_shards: Path, tmp_path: Path) -> None:
    code, err = pretrain(phantom_shards, tmp_path / "run", "training.patience=2", "training.eval_every=0")
    assert code == 2
    assert "eval_every" in err


def test_fine_tuning_can_leave_the_image_encoder_alone(tiny_run: Path, phantom_shards: Path, tmp_path: Path) -> None:
    words = ["finetune", "--dataset", "shards", "--data", str(phantom_shards), "--checkpoint", str(tiny_run)]
    flags = ["training.steps=3", "training.batch_size=8", "training.eval_every=0", "finetune.freeze=image"]
    words += ["--recipe", "demo_finetune", "--out", str(tmp_path / "run"), "--device", "cpu"]
    result = CliRunner().invoke(app, words + [part for flag in flags for part in ("--set", flag)])
    assert result.exit_code == 0, result.stderr
    before = load_file(next(iter(sorted(tiny_run.glob("checkpoints/step-*")))) / "model.safetensors")
    after = weights_of(tmp_path / "run", 3)
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("image_encoder."), name


def test_an_image_encoder_from_elsewhere_is_named_by_its_content(phantom_shards: Path, tmp_path: Path) -> None:
    from torchvision.models.vision_transformer import VisionTransformer

    path = tmp_path / "vit.safetensors"
    settings = ("model.variant=baseline-coca", f"finetune.image_weights={path}", "training.steps=1")
    assert "there is no such file" in pretrain(phantom_shards, tmp_path / "run", *settings)[1]
    for seed in (0, 1):
        torch.manual_seed(seed)
        theirs = VisionTransformer(32, 8, 1, 4, 32, 128, num_classes=3)
        save_file(theirs.state_dict(), path)
        code, err = pretrain(phantom_shards, tmp_path / "run", *settings)
        if seed == 0:
            assert code == 0, err
            assert all(name in err for name in ("not used: ", "class_token", "heads.head.weight", "heads.head.bias"))
            found = weights_of(tmp_path / "run", 1)["image_encoder.blocks.0.mlp.up.weight"]
            wanted = theirs.state_dict()["encoder.layers.encoder_layer_0.mlp.0.weight"]
            assert (found - wanted).abs().max() < 0.01  # one step away
        else:
            assert code == 2
            assert "finetune.image_hash" in err


def test_memory_that_does_not_suffice_is_found_before_the_first_step(
    phantom_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = CoCa.forward, []

    def hungry(model: CoCa, images: torch.Tensor, tokens: torch.Tensor, *rest: object) -> object:
        sizes.append((len(images), tokens.shape[1]))
        if tokens.shape[1] == model.config.context_length:
            raise torch.OutOfMemoryError("tried to allocate")
        return real(model, images, tokens, *rest)

    monkeypatch.setattr(CoCa, "forward", hungry)
    code, err = pretrain(phantom_shards, tmp_path / "run")
    assert code == 5
    assert sizes == [(4, 40)]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""
    for word in ("4 pictures of 32 px", "batch 8", "batch size", "accumulation", "gradient_checkpointing"):
        assert word in err


def test_the_log_in_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    from grrcoca_cli.training.runfolder import MetricsLog

    log = MetricsLog(tmp_path, 0)
    for step in range(1, 3 * log.CURVE_POINTS):
        log.add({"step": step, "contrastive_loss": float(step), "caption_loss": 0.0})
    assert log.CURVE_POINTS // 2 <= len(log.curve) <= log.CURVE_POINTS
    gaps = {later[0] - earlier[0] for earlier, later in zip(log.curve, log.curve[1:], strict=False)}
    assert gaps == {4}
    again = MetricsLog(tmp_path, 2 * log.CURVE_POINTS)
    assert again.last_step == 2 * log.CURVE_POINTS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # of the compiler's own making
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++)")
def test_compiled_layers_train_alike(phantom_shards: Path, tmp_path: Path) -> None:
    assert pretrain(phantom_shards, tmp_path / "eager", "training.steps=2")[0] == 0
    assert pretrain(phantom_shards, tmp_path / "compiled", "training.steps=2", "training.compile=true")[0] == 0
    eager, compiled = (weights_of(tmp_path / name, 2) for name in ("eager", "compiled"))
    assert not all(torch.equal(eager[name], compiled[name]) for name in eager)  # other kernels, then
    for name in eager:
        torch.testing.assert_close(compiled[name], eager[name], atol=1e-4, rtol=1e-3)


def unit(rows: int, seed: int) -> torch.Tensor:
    """Unit vectors."""
    return torch.nn.functional.normalize(torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_sigmoid_loss_by_hand_and_in_blocks() -> None:
    images, texts = unit(6, 0), unit(6, 1)
    scale, bias = torch.tensor(math.log(7.0)), torch.tensor(-3.0)
    logits = 7 * images @ texts.T - 3
    signs = 2 * torch.eye(6) - 1
    expected = -(signs * logits).sigmoid().log().sum() / 6
    assert sigmoid_loss(Pairs.alone(images, texts), scale, bias).item() == pytest.approx(expected.item(), rel=1e-5)
    shares = [
        sigmoid_loss(Pairs(images[a:b], texts[a:b], images, texts, a), scale, bias).item()
        for a, b in ((0, 2), (2, 3), (3, 6))
    ]
    assert sum(shares) == pytest.approx(expected.item(), rel=1e-5)


def test_shares_of_the_contrastive_loss_sum_to_it() -> None:
    images, texts, scale = unit(6, 0), unit(6, 1), torch.tensor(2.0)
    whole = contrastive_loss(Pairs.alone(images, texts), scale).item()
    shares = [
        contrastive_loss(Pairs(images[a:b], texts[a:b], images, texts, a), scale).item() for a, b in ((0, 1), (1, 6))
    ]
    assert sum(shares) == pytest.approx(whole, rel=1e-5)


def test_the_sigmoid_loss_learns_pairs() -> None:
    torch.manual_seed(0)
    settings = {"size": "tiny", "image_size": 32, "vocab_size": 300, "contrastive_loss": "sigmoid"}
    model = CoCa(ModelConfig.model_validate(settings)).train()
    assert (model.temperature.item(), model.logit_bias.item()) == pytest.approx((0.1, -10.0))
    images, tokens = torch.randn(6, 3, 32, 32), torch.randint(3, 300, (6, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        output = model(images, tokens, 0, "features")
        loss = model.pair_loss(Pairs.alone(output.image_features, output.text_features))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    similar = output.image_features @ output.text_features.T
    assert similar.argmax(dim=1).tolist() == list(range(6))
