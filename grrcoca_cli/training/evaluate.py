"""Losses of a model on a data set: kept by sample, summed over all of it before any division."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from grrcoca_cli.config import TrainingConfig
from grrcoca_cli.data.batches import Batch
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.model.coca import CoCa, CoCaOutput
from grrcoca_cli.training.ranks import ALONE, Ranks
from grrcoca_cli.training.step import forward

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


@dataclass(frozen=True)
class _Part:
    """What `measure` keeps of one batch; see `Measurements`."""

    keys: list[str]
    parts: Floats
    images: Tensor
    texts: Tensor
    confidence: Tensor
    correct: Tensor
    truncated: int


@torch.inference_mode()
def measure(
    model: CoCa,
    batches: Iterable[Batch],
    tokenizer: CaptionTokenizer,
    precision: str,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[int, Batch, Tensor], None] | None = None,
    ranks: Ranks = ALONE,
) -> Measurements | None:
    """Run ``model`` over ``batches`` of any size; None when ``should_stop`` said so on the way.

    Args:
        model: Left in the mode it was in.
        batches: Pictures with their captions; empty ones count as skipped. Several processes give equally many each,
            as `evaluation_batches` shares them out, and all get the measurements of all, as one process would.
        tokenizer: The model's.
        precision: Of autocast, as in `TrainingConfig`.
        device: Where ``model`` is.
        should_stop: Asked before each batch; with several processes, any one's yes stops all.
        on_batch: Gets each batch's number among those of all processes, the batch and its image tokens (B, Q, Dm), to
            decode captions without encoding again.
        ranks: The processes.
    """
    training = model.training
    model.eval()
    own: list[_Part | None] = []
    skipped: Counter[str] = Counter()
    try:
        for turn, batch in enumerate(batches):
            if ranks.any(should_stop()):
                return None
            skipped.update(batch.skipped)
            if not batch.keys and ranks.size == 1:
                continue
            output = forward(model, batch, tokenizer, precision, device, "tokens")
            own.append(_part(batch, output, tokenizer, model.config.context_length) if batch.keys else None)
            if on_batch is not None and batch.keys:
                on_batch(turn * ranks.size + ranks.rank, batch, output.memory)
    finally:
        model.train(training)
    # Processes took the batches in turn.
    turns = zip(*ranks.gather(own), strict=True)
    found = [part for turn in turns for part in turn if part is not None]
    nothing = [torch.empty(0)]
    return Measurements(
        [key for part in found for key in part.keys],
        np.concatenate([part.parts for part in found]) if found else np.empty((0, 4)),
        torch.cat([part.images for part in found] or nothing),
        torch.cat([part.texts for part in found] or nothing),
        model.logit_scale.detach().cpu(),
        torch.cat([part.confidence for part in found] or nothing).double().numpy(),
        torch.cat([part.correct for part in found] or nothing).bool().numpy(),
        sum(part.truncated for part in found),
        sum(ranks.gather(skipped), Counter[str]()),
    )


def _part(batch: Batch, output: CoCaOutput, tokenizer: CaptionTokenizer, context_length: int) -> _Part:
    assert output.tokens is not None
    nll, confidence, correct = (values.cpu() for values in output.tokens)
    counts = (batch.tokens[:, 1:] != tokenizer.pad_id).sum(dim=1)
    parts = np.zeros((len(batch.keys), 4))
    parts[:, 0] = [part.sum().item() for part in nll.double().split(counts.tolist())]
    parts[:, 1] = counts.numpy()
    truncated = 0
    for row, (caption, tokens) in enumerate(zip(batch.captions, batch.tokens.tolist(), strict=True)):
        cut = tokenizer.count(caption) > context_length
        text = tokenizer.decode(tokens) if cut else caption
        truncated += cut
        parts[row, 2:] = len(text.split()), len(text.encode())
    images, texts = output.image_features.cpu(), output.text_features.cpu()
    return _Part(batch.keys, parts, images, texts, confidence, correct, truncated)
