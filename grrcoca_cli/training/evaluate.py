"""Losses of a model on a data set: kept by sample, summed over all of it before any division."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from grrcoca_cli.config import TrainingConfig
from grrcoca_cli.data.batches import Batch
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.model.coca import CoCa, CoCaOutput
from grrcoca_cli.training.device import autocast

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LossReport:
    """Model-side numbers of one split.

    Attributes:
        contrastive_loss: Mean over full evaluation batches, in nats; chance is the logarithm of the batch.
        caption_loss: Nats a target token, the end token included: summed NLL over summed tokens.
        coca_loss: Their sum by the training weights.
        ppl_token: exp(caption_loss).
        ppl_word: exp(summed NLL over white-space words).
        bits_per_byte: Summed NLL over ln 2 and the UTF-8 bytes of the scored text.
        contrastive_batch: Pairs that compete.
        left_out: Pairs of a last short batch, which no contrastive mean counts.
        samples: Pairs measured.
        truncated: Captions cut to the context length; only what was kept is scored.
        skipped: Unreadable samples by kind.
    """

    contrastive_loss: float
    caption_loss: float
    coca_loss: float
    ppl_token: float
    ppl_word: float
    bits_per_byte: float
    contrastive_batch: int
    left_out: int
    samples: int
    truncated: int
    skipped: Counter[str]

    METRICS = ("contrastive_loss", "caption_loss", "coca_loss", "ppl_token", "ppl_word", "bits_per_byte")


@dataclass
class Measurements:
    """What a model makes of each pair of a split, N pairs in the order they were read.

    Attributes:
        keys: The samples' keys.
        parts: (N, 4): summed NLL in nats, target tokens (end token included), white-space words, UTF-8 bytes.
        image_features, text_features: Unit vectors (N, E), on the CPU.
        logit_scale: The model's, a scalar.
        confidence: Probability of the likeliest token at each target position (T,).
        correct: Whether that token was the target (T,).
        truncated: Captions cut to the context length.
        skipped: Unreadable samples by kind.
    """

    keys: list[str]
    parts: Floats
    image_features: Tensor
    text_features: Tensor
    logit_scale: Tensor
    confidence: Floats
    correct: NDArray[np.bool_]
    truncated: int
    skipped: Counter[str]

    def report(self, config: TrainingConfig, contrastive_batch: int) -> LossReport:
        """Totals; pairs compete in consecutive groups, or in one where there are fewer than ``contrastive_batch``."""
        samples = len(self.keys)
        if samples == 0:
            nan = math.nan
            return LossReport(nan, nan, nan, nan, nan, nan, contrastive_batch, 0, 0, 0, self.skipped)
        group = min(contrastive_batch, samples)
        nll, tokens, words, size = self.parts.sum(axis=0)
        contrastive, caption_loss = float(self.pair_losses(group).mean()), nll / tokens
        return LossReport(
            contrastive_loss=contrastive,
            caption_loss=caption_loss,
            coca_loss=config.contrastive_weight * contrastive + config.caption_weight * caption_loss,
            ppl_token=math.exp(caption_loss),
            ppl_word=math.exp(min(nll / max(words, 1), 700)),
            bits_per_byte=nll / math.log(2) / max(size, 1),
            contrastive_batch=group,
            left_out=samples % group,
            samples=samples,
            truncated=self.truncated,
            skipped=self.skipped,
        )

    def pair_losses(self, group: int) -> Floats:
        """Contrastive loss of each pair among its group, both directions' mean; the last short group is left out."""
        losses = []
        for images, texts in zip(self.image_features.split(group), self.text_features.split(group), strict=True):
            if len(images) == group:
                logits = self.logit_scale.exp() * images @ texts.T
                labels = torch.arange(group)
                both = [F.cross_entropy(side, labels, reduction="none") for side in (logits, logits.T)]
                losses.append((both[0] + both[1]) / 2)
        return torch.cat(losses).double().numpy()


@dataclass
class _Collected:
    keys: list[str] = field(default_factory=list)
    parts: list[Floats] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    texts: list[Tensor] = field(default_factory=list)
    confidence: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    truncated: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


@torch.inference_mode()
def measure(
    model: CoCa,
    batches: Iterable[Batch],
    tokenizer: CaptionTokenizer,
    precision: str,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[Batch, Tensor], None] | None = None,
) -> Measurements | None:
    """Run ``model`` over ``batches`` of any size; None when ``should_stop`` said so on the way.

    Args:
        model: Left in the mode it was in.
        batches: Pictures with their captions; empty ones count as skipped.
        tokenizer: The model's.
        precision: Of autocast, as in `TrainingConfig`.
        device: Where ``model`` is.
        should_stop: Asked before each batch.
        on_batch: Gets each batch and its image tokens (B, Q, Dm), to decode captions without encoding again.
    """
    training = model.training
    model.eval()
    found = _Collected()
    try:
        for batch in batches:
            if should_stop():
                return None
            found.skipped.update(batch.skipped)
            if not batch.keys:
                continue
            with autocast(device, precision):
                output = model(batch.images.to(device), batch.tokens.to(device), tokenizer.pad_id)
            _collect(found, batch, output, tokenizer, model.config.context_length)
            if on_batch is not None:
                on_batch(batch, output.memory)
    finally:
        model.train(training)
    nothing = [torch.empty(0)]
    return Measurements(
        found.keys,
        np.concatenate(found.parts) if found.parts else np.empty((0, 4)),
        torch.cat(found.images or nothing),
        torch.cat(found.texts or nothing),
        model.logit_scale.detach().cpu(),
        torch.cat(found.confidence or nothing).double().numpy(),
        torch.cat(found.correct or nothing).bool().numpy(),
        found.truncated,
        found.skipped,
    )


def _collect(
    found: _Collected, batch: Batch, output: CoCaOutput, tokenizer: CaptionTokenizer, context_length: int
) -> None:
    logits = output.logits.float()  # (T, V)
    nll = F.cross_entropy(logits, output.targets, reduction="none").cpu().double()
    best, guess = logits.max(dim=-1)
    found.confidence.append((best - logits.logsumexp(dim=-1)).exp().cpu())
    found.correct.append((guess == output.targets).cpu())
    counts = (batch.tokens[:, 1:] != tokenizer.pad_id).sum(dim=1)
    parts = np.zeros((len(batch.keys), 4))
    parts[:, 0] = [part.sum().item() for part in nll.split(counts.tolist())]
    parts[:, 1] = counts.numpy()
    for row, (caption, tokens) in enumerate(zip(batch.captions, batch.tokens.tolist(), strict=True)):
        cut = tokenizer.count(caption) > context_length
        text = tokenizer.decode(tokens) if cut else caption
        found.truncated += cut
        parts[row, 2:] = len(text.split()), len(text.encode())
    found.keys += batch.keys
    found.parts.append(parts)
    found.images.append(output.image_features.cpu())
    found.texts.append(output.text_features.cpu())
