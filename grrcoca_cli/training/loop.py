"""The one training loop, for pretraining and fine-tuning alike."""

import hashlib
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grrcoca_cli.config import Recipe
from grrcoca_cli.console import Progress, say
from grrcoca_cli.data.base import Augmentation, CaptionDataset, ImageReader, SubsetDataset
from grrcoca_cli.data.batches import (
    Batch,
    BatchReader,
    ReadingStopped,
    evaluation_batches,
    steps_per_epoch,
    training_batches,
)
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.errors import (
    CheckpointRefused,
    ExitCode,
    GrrcocaError,
    LostProcess,
    NonFiniteLoss,
    OutOfResources,
    RunDiffers,
    StoppedAndSaved,
    TooManyBadSamples,
    UsageError,
)
from grrcoca_cli.files import lock_folder, remove_folder
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.signals import StopRequest
from grrcoca_cli.training.checkpoint import (
    BEST,
    TRAINING,
    CheckpointConfig,
    checkpoints_of,
    load_training_state,
    save_checkpoint,
    sound_checkpoints,
)
from grrcoca_cli.training.device import explain_out_of_memory
from grrcoca_cli.training.ema import Ema
from grrcoca_cli.training.evaluate import LossReport, measure
from grrcoca_cli.training.loggers import open_loggers
from grrcoca_cli.training.memory import check_memory
from grrcoca_cli.training.optimizer import learning_rate, make_optimizers
from grrcoca_cli.training.ranks import ALONE, Ranks
from grrcoca_cli.training.runfolder import (
    RECIPE,
    MetricsLog,
    draw_losses,
    read_status,
    recipe_differences,
    write_recipe,
    write_status,
)
from grrcoca_cli.training.step import GradientStep, spread

BAD_SAMPLES_JUDGED_AFTER = 1000
_OTHERS_MAY_SPEAK = 2.0  # seconds that a process with nothing to tell leaves to the one that failed


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
        ranks: The processes that share the run, this one among them.
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
    ranks: Ranks = ALONE


@dataclass
class _Live:
    """What changes while a run goes on."""

    stepper: GradientStep
    optimizers: Sequence[torch.optim.Optimizer]
    ema: Ema | None
    fingerprint: str
    bad: Counter[str]


def train(run: Run, resume: str = "auto") -> Path:
    """Train to the recipe's last step and return the last checkpoint's folder.

    The order of samples, their augmentation and dropout are functions of (seed, step) alone, so that on a CPU a run
    that is stopped and continued equals one that was not, bit for bit.

    Args:
        run: The run; its folder is created where it is not there.
        resume: ``auto`` continues what the folder holds, or starts; ``never`` refuses a folder that holds a run;
            ``force`` continues it even where recipe or data differ, which makes it a run that no other repeats.

    Raises:
        RunDiffers: The folder holds a run of another recipe or other data.
        RunFolderInUse: Another process trains in the folder.
        StoppedAndSaved: SIGINT or SIGTERM came; the state is saved.
        NonFiniteLoss: Loss or gradient is not finite; the weights before the step are in the last checkpoint.
        TooManyBadSamples: Too large a share of samples cannot be read.
        OutOfResources: Memory or disk ran out.
        LostProcess: Another process of the run died or hangs.
    """
    ranks = run.ranks
    with ExitStack() as stack, StopRequest() as should_stop:
        ranks.agree(lambda: stack.enter_context(lock_folder(run.out)))
        ranks.agree(lambda: _check_folder(run, resume))
        log = None
        try:
            with explain_out_of_memory(_size_of(run)):
                live = _prepare(run)
                step = _restore(run, live, force=resume == "force")
                log = ranks.agree(lambda: MetricsLog(run.out, step))
                log = log if ranks.is_first else log.without_file()
                _try_a_batch(run, live)
                step = _train(run, live, log, step, should_stop)
        except BaseException as error:
            _note_end(run, log.last_step if log else 0, error)
            raise
        if ranks.is_first:
            write_status(run.out, "finished", step, 0)
        return checkpoints_of(run.out)[0]


def seconds_a_step(run: Run, steps: int = 3) -> float:
    """Median seconds of a few real training steps on real data, the first one left out; the model is used up.

    Raises:
        OutOfResources: Memory does not suffice.
        TooManyBadSamples: No sample of a batch can be read.
    """
    config, times = run.recipe.training, []
    with explain_out_of_memory(_size_of(run)):
        live = _prepare(run)
        _try_a_batch(run, live)
        batches = _training_batches(run, 0, lambda: False)
        for step in range(min(steps + 1, config.steps)):
            began = time.monotonic()
            micros = [next(batches) for _ in range(config.accumulation)]
            _count_bad(run, live.bad, micros, seen=(step + 1) * config.batch_size)
            _take_step(run, live, micros, step)
            times.append(time.monotonic() - began)
    return statistics.median(times[1:] or times)


def _check_folder(run: Run, resume: str) -> None:
    if not (run.out / RECIPE).exists():
        write_recipe(run.out, run.recipe)
        return
    if resume == "never":
        raise UsageError(f"{run.out} already holds a run: choose another --out, or --resume auto to continue it")
    differences = recipe_differences(run.out, run.recipe)
    if not differences:
        return
    if resume != "force":
        raise RunDiffers(f"{run.out} holds a run of another recipe", differences)
    say("\n  ".join(["warning: continuing with another recipe:", *differences]))
    write_recipe(run.out, run.recipe)


def _note_end(run: Run, step: int, error: BaseException) -> None:
    """Keep in ``status.json`` how a run ended; of several processes, the one that knows why."""
    code, reason = 1, type(error).__name__  # a bug of ours
    if isinstance(error, KeyboardInterrupt):
        code = int(ExitCode.INTERRUPTED)
    if isinstance(error, GrrcocaError):
        code, reason = int(error.exit_code), str(error)
    if isinstance(error, LostProcess):
        time.sleep(_OTHERS_MAY_SPEAK)
        if read_status(run.out).get("state") == "failed":
            return
    elif not run.ranks.is_first and isinstance(error, GrrcocaError) and not isinstance(error, OutOfResources):
        return  # every process has this error, and the first one writes it down
    state = "stopped" if isinstance(error, StoppedAndSaved) else "failed"
    with suppress(GrrcocaError):  # a disk that is still full must not hide what it was full for
        write_status(run.out, state, step, code, reason)


def _size_of(run: Run) -> str:
    config = run.recipe.training
    share = math.ceil(config.batch_size / config.accumulation / run.ranks.size)
    where = f" in each of {run.ranks.size} processes" if run.ranks.size > 1 else ""
    return (
        f"{share} pictures of {run.recipe.model.image_size} px at once{where} "
        f"(batch {config.batch_size}, accumulation {config.accumulation})"
    )


def _prepare(run: Run) -> _Live:
    """What a run needs beside its model, after a batch that is too large for the data or for memory is refused."""
    config = run.recipe.training
    if config.batch_size // config.accumulation < run.ranks.size:
        raise UsageError(
            f"a micro-batch of {config.batch_size // config.accumulation} cannot be shared by {run.ranks.size} "
            "processes: raise training.batch_size or lower training.accumulation"
        )
    steps_per_epoch(len(run.train), config.batch_size)
    check_memory(run.recipe, run.ranks, run.device, _size_of(run))
    model = run.model.train()
    stepper = GradientStep(
        model, spread(model, run.recipe, run.ranks, run.device), run.recipe, run.tokenizer, run.ranks, run.device
    )
    ema = Ema(model, config.ema) if config.ema else None
    return _Live(stepper, make_optimizers(model, config), ema, _fingerprint(run.train), Counter())


def _try_a_batch(run: Run, live: _Live) -> None:
    """Run the largest micro-batch there can be, with room for the optimiser, so that memory runs out now or never."""
    config, model = run.recipe.training, run.recipe.model
    count = math.ceil(config.batch_size / config.accumulation / run.ranks.size)
    tokens = torch.full((count, model.context_length), run.tokenizer.eos_id)
    images = torch.zeros(count, 3, model.image_size, model.image_size)
    live.stepper.backward([Batch(images, tokens, ["trial"] * count, [""] * count, Counter())], 0)
    parameters = [p for optimizer in live.optimizers for group in optimizer.param_groups for p in group["params"]]
    room = [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
    del room
    run.model.zero_grad(set_to_none=True)


def _train(run: Run, live: _Live, log: MetricsLog, start: int, should_stop: StopRequest) -> int:
    """The loop itself: each turn first looks back (evaluate, save, stop), then takes a step."""
    config, ranks = run.recipe.training, run.ranks
    progress = Progress("training", config.steps, "steps", of_each=(config.batch_size, "images"))
    validation = _validation_reader(run)
    batches = _training_batches(run, start, should_stop)
    loggers = open_loggers(config.loggers if ranks.is_first else (), run.out, run.recipe)
    if ranks.is_first:
        write_status(run.out, "running", start)
    saved = start if start else -1
    stalled = _has_stalled(run, log)

    with loggers, progress:
        for step in range(start, config.steps + 1):
            last = step == config.steps or stalled
            measured = True
            if (last or _due(step, config.eval_every) or step == 0) and not log.has_evaluation(step):
                report = _evaluate(run, live, validation, should_stop)
                measured = report is not None or len(validation.dataset) == 0
                if report is not None and not report.samples:
                    progress.close()
                    say(f"step {step}: {_nothing_readable(report)}")
                elif report is not None:
                    row = {"step": step, **_as_row(report)}
                    log.add(row)
                    loggers.log(row, step)
                    _show_evaluation(step, report)
                    if config.keep_best and log.evaluations_since_best(config.monitor) == 0:
                        _save(run, live, step, run.out / BEST)
                    stalled = _has_stalled(run, log)
                    last = last or stalled

            stop = ranks.any(should_stop())
            if (last or _due(step, config.save_every) or stop) and step != saved:
                _keep(run, live, log, step)
                saved = step
            if last and measured:
                if step < config.steps:
                    say(f"stopped early: {config.patience} evaluations in a row without a better {config.monitor}")
                return step

            began = time.monotonic()
            micros: list[Batch] = []
            with suppress(ReadingStopped):
                if not stop:
                    micros = [next(batches) for _ in range(config.accumulation)]
            if ranks.any(not micros):
                if step != saved:
                    _keep(run, live, log, step)
                raise StoppedAndSaved(
                    f"stopped after step {step} and saved in {run.out}: run the same command to go on"
                )
            samples = _count_bad(run, live.bad, micros, seen=(step + 1) * config.batch_size)
            row = _take_step(run, live, micros, step)
            speed = samples / (time.monotonic() - began)
            log.add(row | {"images_per_second": round(speed, 2)})
            loggers.log(row, step + 1)
            losses = {"loss": "loss", "caption": "caption_loss", "contrastive": "contrastive_loss"}
            progress.show(step + 1, *(f"{name} {row[loss]:.3f}" for name, loss in losses.items()))
    raise AssertionError("the last step returns")


def _take_step(run: Run, live: _Live, micros: Sequence[Batch], step: int) -> dict[str, Any]:
    """One optimiser step, the one after ``step`` others, on one global batch; gives its row of the log."""
    config = run.recipe.training
    rate = learning_rate(step, config)
    for group in (group for optimizer in live.optimizers for group in optimizer.param_groups):
        group["lr"] = rate
    seed = (config.seed * 1_000_003 + step) * config.accumulation  # patch dropout: a function of (seed, step)
    losses = live.stepper.backward(micros, seed)
    norm = live.stepper.clip()
    if not math.isfinite(losses["loss"]) or not math.isfinite(norm):
        raise NonFiniteLoss(_explain_non_finite(run, live, micros, seed, step, losses["loss"], norm))
    for optimizer in live.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.model.clamp_temperature()
    if live.ema:
        live.ema.update(run.model)
    temperature = run.model.temperature.item()
    return {"step": step + 1, **losses, "lr": rate, "gradient_norm": norm, "temperature": temperature}


def _explain_non_finite(
    run: Run, live: _Live, micros: Sequence[Batch], seed: int, step: int, loss: float, norm: float
) -> str:
    hashes = live.stepper.offenders(micros, seed)
    shown = ", ".join(hashes[:5]) + (" …" if len(hashes) > 5 else "")
    of_whom = f" Not finite at {len(hashes)} samples (SHA-256 of their keys): {shown}." if hashes else ""
    return (
        f"loss {loss} and gradient norm {norm} at step {step}: nothing was updated.{of_whom} "
        f"Lower training.learning_rate or raise training.warmup_steps; checkpoints before it are in {run.out}"
    )


def _keep(run: Run, live: _Live, log: MetricsLog, step: int) -> None:
    """Write the checkpoint that a run goes on from, and what a run folder shows of it."""
    _save(run, live, step, run.out / "checkpoints" / f"step-{step}")
    if run.ranks.is_first:
        _keep_newest(run, run.recipe.training.keep)
        draw_losses(run.out, log)
        write_status(run.out, "running", step)


def _save(run: Run, live: _Live, step: int, target: Path) -> None:
    """Write a checkpoint: one to go on from in ``checkpoints``, the weights alone elsewhere."""
    config = run.config.model_copy(update={"step": step})
    resumable = target.parent.name == "checkpoints"
    state = {"step": step, "data": live.fingerprint, "bad_samples": dict(live.bad)}
    save_checkpoint(
        target,
        run.model,
        run.tokenizer,
        config,
        live.optimizers if resumable else (),
        state,
        ema=live.ema,
        ranks=run.ranks,
    )


def _has_stalled(run: Run, log: MetricsLog) -> bool:
    config = run.recipe.training
    return config.patience > 0 and log.evaluations_since_best(config.monitor) >= config.patience


def _training_batches(run: Run, start: int, should_stop: Callable[[], bool]) -> Iterator[Batch]:
    config = run.recipe.training
    return training_batches(
        _batch_reader(run, run.train, run.augmentation),
        config.batch_size,
        start,
        config.steps,
        run.recipe.data.workers,
        config.accumulation,
        run.ranks.share,
        should_stop,
    )


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


def _restore(run: Run, live: _Live, *, force: bool) -> int:
    """Continue from the newest sound checkpoint of the run folder; gives the step it stands at, 0 for a new run."""
    folder = run.ranks.agree(lambda: _newest_checkpoint(run.out))
    if folder is None:
        return 0
    state = load_training_state(folder, run.model, live.optimizers, live.ema)
    if state["data"] != live.fingerprint:
        differ = f"the data differ from those {run.out} was trained on"
        if not force:
            raise RunDiffers(differ, [])
        say(f"warning: {differ}")
    say(f"continuing from {folder}")
    if run.ranks.is_first:
        for later in checkpoints_of(run.out):
            if int(later.name[5:]) > int(state["step"]):  # damaged, and would count among those kept
                remove_folder(later)
    live.bad.update(state["bad_samples"])
    return int(state["step"])


def _newest_checkpoint(out: Path) -> Path | None:
    folder = next((path for path in sound_checkpoints(out) if (path / TRAINING).is_dir()), None)
    if folder is None and checkpoints_of(out):
        raise CheckpointRefused(f"every checkpoint in {out} is damaged: move the folder away to start again")
    return folder


def _evaluate(run: Run, live: _Live, reader: BatchReader, should_stop: StopRequest) -> LossReport | None:
    """Losses on validation samples; None where there are none, or where a stop was asked for."""
    if len(reader.dataset) == 0:
        return None
    training = run.recipe.training
    batches = evaluation_batches(reader, training.batch_size // run.ranks.size, share=run.ranks.share)
    with live.ema.swapped(run.model) if live.ema else nullcontext():
        found = measure(run.model, batches, run.tokenizer, training.precision, run.device, should_stop, ranks=run.ranks)
    return found.report(training, run.recipe.eval.batch_size) if found is not None else None


def _validation_reader(run: Run) -> BatchReader:
    """Of the first samples of the validation set, up to the limit of an evaluation inside the loop."""
    limit = run.recipe.eval.limit or len(run.validation)
    return _batch_reader(run, SubsetDataset(run.validation, np.arange(min(limit, len(run.validation)))))


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _as_row(report: LossReport) -> dict[str, float | int]:
    return {f"val_{name}": getattr(report, name) for name in (*report.METRICS, "contrastive_batch", "samples")}


def _show_evaluation(step: int, report: LossReport) -> None:
    say(
        f"step {step}: validation caption loss {report.caption_loss:.3f} (perplexity {report.ppl_token:.2f}), "
        f"contrastive loss {report.contrastive_loss:.3f} among {report.contrastive_batch}, {report.samples} samples"
    )


def _nothing_readable(report: LossReport) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.skipped.most_common())
    return f"warning: no validation sample can be read ({kinds}), so there is no validation loss: check the data"


def _count_bad(run: Run, bad: Counter[str], micros: Sequence[Batch], seen: int) -> int:
    """Count unreadable samples by kind, name each kind once, stop where there are too many; gives the readable ones."""
    skipped = sum((batch.skipped for batch in micros), Counter[str]())
    samples, missing = run.ranks.sum([sum(len(batch.keys) for batch in micros), skipped.total()])
    if missing:
        skipped = sum(run.ranks.gather(skipped), Counter[str]())
        for kind in skipped.keys() - bad.keys():
            say(f"warning: unreadable sample ({kind}); others of the kind are counted in silence")
        bad.update(skipped)
    share = bad.total() / seen
    if samples == 0 or (seen >= BAD_SAMPLES_JUDGED_AFTER and share > run.recipe.data.max_bad_fraction):
        kinds = ", ".join(f"{count} {kind}" for kind, count in bad.most_common())
        raise TooManyBadSamples(
            f"{bad.total()} of {seen} samples cannot be read ({kinds}): check the data, or raise data.max_bad_fraction"
        )
    return int(samples)


def _keep_newest(run: Run, keep: int) -> None:
    for folder in checkpoints_of(run.out)[keep:]:
        remove_folder(folder)


def _fingerprint(dataset: CaptionDataset) -> str:
    """Tells one data set from another by its length and up to a thousand keys spread over it."""
    step = max(1, len(dataset) // 1000)
    keys = [dataset.key(index) for index in range(0, len(dataset), step)]
    return hashlib.sha256(json.dumps([len(dataset), keys]).encode()).hexdigest()[:16]
