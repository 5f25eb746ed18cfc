"""The one training loop, for pretraining and fine-tuning alike."""

import hashlib
import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from grrcoca_cli.config import Recipe
from grrcoca_cli.console import ProgressLine, duration, say
from grrcoca_cli.data.base import Augmentation, CaptionDataset, ImageReader, SubsetDataset
from grrcoca_cli.data.batches import Batch, BatchReader, evaluation_batches, training_batches
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.errors import (
    CheckpointRefused,
    GrrcocaError,
    NonFiniteLoss,
    StoppedAndSaved,
    TooManyBadSamples,
    UsageError,
)
from grrcoca_cli.files import lock_folder
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.losses import caption_nll, contrastive_loss
from grrcoca_cli.signals import StopRequest
from grrcoca_cli.training.checkpoint import (
    TRAINING,
    CheckpointConfig,
    checkpoints_of,
    load_training_state,
    save_checkpoint,
    sound_checkpoints,
)
from grrcoca_cli.training.device import autocast, explain_out_of_memory
from grrcoca_cli.training.evaluate import LossReport, measure
from grrcoca_cli.training.optimizer import learning_rate, make_optimizers
from grrcoca_cli.training.runfolder import (
    RECIPE,
    MetricsLog,
    draw_losses,
    recipe_differences,
    write_recipe,
    write_status,
)

BAD_SAMPLES_JUDGED_AFTER = 1000


@dataclass(frozen=True)
class Run:
    """Everything a training run needs, opened and checked.

    Attributes:
        recipe: Resolved; its model is the one in ``model``.
        out: The run folder.
        model: On ``device``, at the weights to start from.
        tokenizer: Of the model.
        train: Training samples.
        validation: Validation samples, possibly none.
        reader: Turns a sample's picture into pixels.
        augmentation: Of training pictures, or None.
        config: What a checkpoint says of itself; its step is filled in when one is saved.
        device: Where to compute.
    """

    recipe: Recipe
    out: Path
    model: CoCa
    tokenizer: CaptionTokenizer
    train: CaptionDataset
    validation: CaptionDataset
    reader: ImageReader
    augmentation: Augmentation | None
    config: CheckpointConfig
    device: torch.device


def train(run: Run, resume: str = "auto") -> Path:
    """Train to the recipe's last step and return the last checkpoint's folder.

    The order of samples, their augmentation and dropout are functions of (seed, step) alone, so that on a CPU a run
    that is stopped and continued equals one that was not, bit for bit.

    Args:
        run: The run; its folder is created where it is not there.
        resume: ``auto`` continues what the folder holds, or starts; ``never`` refuses a folder that holds a run.

    Raises:
        UsageError: The folder holds a run of another recipe or other data.
        StoppedAndSaved: SIGINT or SIGTERM came; the state is saved.
        NonFiniteLoss: Loss or gradient is not finite; the weights before the step are in the last checkpoint.
        TooManyBadSamples: Too large a share of samples cannot be read.
        OutOfResources: Memory or disk ran out.
    """
    with lock_folder(run.out), StopRequest() as should_stop:
        _check_folder(run, resume)
        step = 0
        try:
            with explain_out_of_memory(_size_of(run.recipe)):
                step = _train(run, should_stop)
        except GrrcocaError as error:
            state = "stopped" if isinstance(error, StoppedAndSaved) else "failed"
            write_status(run.out, state, step, int(error.exit_code), str(error))
            raise
        write_status(run.out, "finished", step, 0)
        return checkpoints_of(run.out)[0]


def _check_folder(run: Run, resume: str) -> None:
    if not (run.out / RECIPE).exists():
        write_recipe(run.out, run.recipe)
        return
    if resume == "never":
        raise UsageError(f"{run.out} already holds a run: choose another --out, or --resume auto to continue it")
    differences = recipe_differences(run.out, run.recipe)
    if differences:
        raise UsageError(
            f"{run.out} holds a run of another recipe; choose another --out, or repeat its settings:\n  "
            + "\n  ".join(differences)
        )


def _size_of(recipe: Recipe) -> str:
    micro = recipe.training.batch_size // recipe.training.accumulation
    return f"{micro} pictures of {recipe.model.image_size} px at once"


def _train(run: Run, should_stop: StopRequest) -> int:
    """The loop itself: each turn first looks back (evaluate, save, stop), then takes a step."""
    config = run.recipe.training
    model = run.model.train()
    optimizers = make_optimizers(model, config)
    data_fingerprint = _fingerprint(run.train)
    start, bad = _restore(run, optimizers, data_fingerprint)
    seen = start * config.batch_size
    log = MetricsLog(run.out, start)
    write_status(run.out, "running", start)
    progress = ProgressLine()
    validation = _validation_reader(run)
    reader = _batch_reader(run, run.train, run.augmentation)
    batches = training_batches(reader, config.batch_size, start, config.steps, run.recipe.data.workers)
    since, saved = time.monotonic(), start if start else -1

    for step in range(start, config.steps + 1):
        last = step == config.steps
        if (last or _due(step, config.eval_every) or step == 0) and not log.has_evaluation(step):
            report = _evaluate(run, validation, should_stop)
            if report is not None:
                log.add({"step": step, **_as_row(report)})
                _show_evaluation(progress, step, report)
        if (last or _due(step, config.save_every) or should_stop()) and step != saved:
            progress.close()
            state = {"step": step, "data": data_fingerprint, "bad_samples": dict(bad)}
            target = run.out / "checkpoints" / f"step-{step}"
            saved_config = run.config.model_copy(update={"step": step})
            save_checkpoint(target, model, run.tokenizer, saved_config, optimizers, state)
            _keep_newest(run, config.keep)
            draw_losses(run.out, log.rows)
            write_status(run.out, "running", step)
            saved = step
        if should_stop() and not last:
            raise StoppedAndSaved(f"stopped after step {step} and saved in {run.out}: run the same command to go on")
        if last:
            break

        began = time.monotonic()
        batch = next(batches)
        seen += config.batch_size
        _count_bad(bad, batch, seen, run.recipe.data.max_bad_fraction)
        rate = learning_rate(step, config)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        torch.manual_seed(config.seed * 1_000_003 + step)  # patch dropout: a function of (seed, step)
        losses = _backward(run, batch)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf).item()
        if not math.isfinite(losses["loss"]) or not math.isfinite(norm):
            raise NonFiniteLoss(
                f"loss {losses['loss']} and gradient norm {norm} at step {step}: nothing was updated. "
                f"Lower training.learning_rate or raise training.warmup_steps; checkpoints before it are in {run.out}"
            )
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        model.clamp_temperature()

        speed = len(batch.keys) / (time.monotonic() - began)
        row = {"step": step + 1, **losses, "lr": rate, "gradient_norm": norm, "temperature": model.temperature.item()}
        log.add(row | {"images_per_second": round(speed, 2)})
        left = (time.monotonic() - since) / (step + 1 - start) * (config.steps - step - 1)
        progress.show(
            f"step {step + 1}/{config.steps}  loss {losses['loss']:.3f}  caption {losses['caption_loss']:.3f}  "
            f"contrastive {losses['contrastive_loss']:.3f}  {speed:.0f} images/s  {duration(left)} left"
        )
    return config.steps


def _backward(run: Run, batch: Batch) -> dict[str, float]:
    """Gradients of one global batch, micro-batch by micro-batch; gives its losses."""
    config = run.recipe.training
    total = {"loss": 0.0, "contrastive_loss": 0.0, "caption_loss": 0.0}
    targets = int((batch.tokens[:, 1:] != run.tokenizer.pad_id).sum())
    micro = config.batch_size // config.accumulation
    for images, tokens in zip(batch.images.split(micro), batch.tokens.split(micro), strict=True):
        tokens = tokens[:, : int((tokens != run.tokenizer.pad_id).sum(dim=1).max())]
        with autocast(run.device, config.precision):
            output = run.model(images.to(run.device), tokens.to(run.device), run.tokenizer.pad_id)
        # The mean over the tokens of the global batch, and over its micro-batches.
        caption = caption_nll(output.logits, output.targets) / max(targets, 1)
        pairs = contrastive_loss(output.image_features, output.text_features, run.model.logit_scale)
        contrastive = pairs * (len(images) / len(batch.images))
        loss = config.caption_weight * caption + config.contrastive_weight * contrastive
        loss.backward()
        for name, value in (("loss", loss), ("contrastive_loss", contrastive), ("caption_loss", caption)):
            total[name] += value.item()
    return total


def _batch_reader(run: Run, dataset: CaptionDataset, augmentation: Augmentation | None = None) -> BatchReader:
    data, model = run.recipe.data, run.recipe.model
    return BatchReader(
        dataset=dataset,
        read_image=run.reader,
        tokenizer=run.tokenizer,
        image_size=model.image_size,
        context_length=model.context_length,
        fit=data.fit,
        mean=data.mean,
        std=data.std,
        augment=augmentation,
        seed=run.recipe.training.seed,
        in_memory=data.in_memory,
    )


def _restore(run: Run, optimizers: Sequence[torch.optim.Optimizer], data_fingerprint: str) -> tuple[int, Counter[str]]:
    """Continue from the newest sound checkpoint of the run folder: the step it stands at, and its bad samples."""
    folder = next((path for path in sound_checkpoints(run.out) if (path / TRAINING).is_dir()), None)
    if folder is None:
        if checkpoints_of(run.out):
            raise CheckpointRefused(f"every checkpoint in {run.out} is damaged: move the folder away to start again")
        return 0, Counter()
    state = load_training_state(folder, run.model, optimizers)
    if state["data"] != data_fingerprint:
        raise UsageError(f"the data differ from those {run.out} was trained on: choose another --out")
    say(f"continuing from {folder}")
    return int(state["step"]), Counter(state["bad_samples"])


def _evaluate(run: Run, reader: BatchReader, should_stop: Callable[[], bool]) -> LossReport | None:
    """Losses on validation samples; None where there are none, or where a stop was asked for."""
    if len(reader.dataset) == 0:
        return None
    batches = evaluation_batches(reader, run.recipe.training.batch_size)
    training = run.recipe.training
    found = measure(run.model, batches, run.tokenizer, training.precision, run.device, should_stop)
    return found.report(training, run.recipe.eval.batch_size) if found is not None else None


def _validation_reader(run: Run) -> BatchReader:
    """Of the first samples of the validation set, up to the limit of an evaluation inside the loop."""
    limit = run.recipe.eval.limit or len(run.validation)
    return _batch_reader(run, SubsetDataset(run.validation, np.arange(min(limit, len(run.validation)))))


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _as_row(report: LossReport) -> dict[str, float | int]:
    return {f"val_{name}": getattr(report, name) for name in (*report.METRICS, "contrastive_batch", "samples")}


def _show_evaluation(progress: ProgressLine, step: int, report: LossReport) -> None:
    progress.close()
    say(
        f"step {step}: validation caption loss {report.caption_loss:.3f} (perplexity {report.ppl_token:.2f}), "
        f"contrastive loss {report.contrastive_loss:.3f} among {report.contrastive_batch}, {report.samples} samples"
    )


def _count_bad(bad: Counter[str], batch: Batch, seen: int, most: float) -> None:
    """Count unreadable samples by kind, name each kind once, and stop where there are too many."""
    for kind in batch.skipped.keys() - bad.keys():
        say(f"warning: unreadable sample ({kind}); others of the kind are counted in silence")
    bad.update(batch.skipped)
    share = bad.total() / seen
    if not batch.keys or (seen >= BAD_SAMPLES_JUDGED_AFTER and share > most):
        kinds = ", ".join(f"{count} {kind}" for kind, count in bad.most_common())
        raise TooManyBadSamples(
            f"{bad.total()} of {seen} samples cannot be read ({kinds}): check the data, or raise data.max_bad_fraction"
        )


def _keep_newest(run: Run, keep: int) -> None:
    for folder in checkpoints_of(run.out)[keep:]:
        shutil.rmtree(folder, ignore_errors=True)


def _fingerprint(dataset: CaptionDataset) -> str:
    """Tells one data set from another by its length and up to a thousand keys spread over it."""
    step = max(1, len(dataset) // 1000)
    keys = [dataset.key(index) for index in range(0, len(dataset), step)]
    return hashlib.sha256(json.dumps([len(dataset), keys]).encode()).hexdigest()[:16]
