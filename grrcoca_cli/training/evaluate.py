"""Losses of a model on a data set, summed over all of it before any division."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from grrcoca_cli.config import TrainingConfig
from grrcoca_cli.data.batches import Batch
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.losses import caption_nll, contrastive_loss
from grrcoca_cli.training.device import autocast


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


@torch.inference_mode()
def evaluate_losses(
    model: CoCa,
    batches: Iterable[Batch],
    tokenizer: CaptionTokenizer,
    config: TrainingConfig,
    contrastive_batch: int,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
) -> LossReport | None:
    """Measure ``model`` on ``batches`` of any size; None when ``should_stop`` said so on the way.

    Pairs compete in consecutive groups of ``contrastive_batch``; where there are fewer pairs, all are one group.
    """
    training = model.training
    model.eval()
    nll = tokens = words = size = truncated = 0.0
    images: list[Tensor] = []
    texts: list[Tensor] = []
    skipped: Counter[str] = Counter()
    for batch in batches:
        if should_stop():
            model.train(training)
            return None
        skipped.update(batch.skipped)
        if not batch.keys:
            continue
        with autocast(device, config.precision):
            output = model(batch.images.to(device), batch.tokens.to(device), tokenizer.pad_id)
        nll += caption_nll(output.logits, output.targets).item()
        tokens += output.targets.numel()
        for caption, row in zip(batch.captions, batch.tokens.tolist(), strict=True):
            cut = tokenizer.count(caption) > model.config.context_length
            text = tokenizer.decode(row) if cut else caption
            truncated += cut
            words += len(text.split())
            size += len(text.encode())
        images.append(output.image_features.cpu())
        texts.append(output.text_features.cpu())
    model.train(training)
    samples = sum(len(features) for features in images)
    if samples == 0:
        nan = math.nan
        return LossReport(nan, nan, nan, nan, nan, nan, contrastive_batch, 0, 0, 0, skipped)
    group = min(contrastive_batch, samples)
    contrastive = _grouped_contrastive(torch.cat(images), torch.cat(texts), model.logit_scale.cpu(), group)
    caption_loss = nll / tokens
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
        truncated=int(truncated),
        skipped=skipped,
    )


def _grouped_contrastive(images: Tensor, texts: Tensor, logit_scale: Tensor, group: int) -> float:
    """Mean contrastive loss of the full groups of consecutive pairs."""
    pairs = list(zip(images.split(group), texts.split(group), strict=True))
    losses = [contrastive_loss(i, t, logit_scale).item() for i, t in pairs if len(i) == group]
    return sum(losses) / len(losses)
