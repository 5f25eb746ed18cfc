"""From one global batch to gradients: micro-batches, cached features, and what several processes share."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from grrcoca_cli.config import Recipe
from grrcoca_cli.data.batches import Batch
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.model.coca import CoCa, CoCaOutput
from grrcoca_cli.model.losses import Pairs
from grrcoca_cli.training.device import autocast, is_bf16
from grrcoca_cli.training.ranks import Ranks, explain_lost_process


def spread(model: CoCa, recipe: Recipe, ranks: Ranks, device: torch.device) -> nn.Module:
    """``model`` as the processes train it: alone as it is, replicated (DDP), or sharded in place (FSDP2)."""
    if recipe.training.compile:
        for block in model.blocks:
            block.compile(dynamic=True)
    if ranks.size == 1:
        return model
    with explain_lost_process():
        if recipe.distributed.strategy == "ddp":
            devices = [device] if device.type == "cuda" else None
            # The only buffers are rotary tables, which are the same everywhere and never change.
            return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
        half = torch.bfloat16 if is_bf16(device, recipe.training.precision) else None
        # Inputs keep their type: rotary angles in bf16 would turn far positions wrongly.
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
        mesh = init_device_mesh(device.type, (ranks.size,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=set(_scalars(model)))
    return model


@dataclass(frozen=True)
class GradientStep:
    """What turns micro-batches into gradients.

    The gradients are those of the losses of all pairs and all tokens of the global batch, however many processes and
    micro-batches share it; only random choices inside the model (patch dropout) depend on how it is shared out.

    Attributes:
        model: Holds the parameters.
        spread: The same model as `spread` gives it.
        recipe: Of the run.
        tokenizer: Of the model.
        ranks: The processes.
        device: Where ``model`` is.
    """

    model: CoCa
    spread: nn.Module
    recipe: Recipe
    tokenizer: CaptionTokenizer
    ranks: Ranks
    device: torch.device

    def backward(self, micros: Sequence[Batch], seed: int) -> dict[str, float]:
        """Add the gradients of one global batch and give its losses, the same in every process.

        Args:
            micros: This process's share of each micro-batch; some may be empty, not all of all processes.
            seed: Of patch dropout.
        """
        config, ranks = self.recipe.training, self.ranks
        counts = [len(batch.keys) for batch in micros]
        targets = [int((batch.tokens[:, 1:] != self.tokenizer.pad_id).sum()) for batch in micros]
        all_targets, samples = ranks.sum([sum(targets), sum(counts)])
        cached = None
        if config.contrastive_batch == "global" and len(micros) > 1 and config.contrastive_weight:
            cached = self._cached_pairs(micros, counts, seed)
        caption_loss, pair_loss = 0.0, cached.loss if cached else 0.0
        for number, batch in enumerate(micros):
            last = number + 1 == len(micros)
            with self._without_exchange(unless=last):
                output = self._forward(batch, seed + number)
                caption = cast(Tensor, output.nll) / max(all_targets, 1)
                if cached:
                    pairs = cached.gradient_term(output, number, with_scalars=last)
                else:
                    competing = self._pairs(output.image_features, output.text_features)
                    pairs = self.model.pair_loss(competing) * (len(competing.all_images) / samples)
                    pair_loss += pairs.item()
                caption_loss += caption.item()
                loss = config.caption_weight * caption + config.contrastive_weight * pairs
                # Gradients are averaged over the processes, where a sum is wanted.
                with explain_lost_process():
                    (loss * ranks.size).backward()
        if ranks.size > 1 and isinstance(self.spread, FSDPModule):
            for scalar in _scalars(self.model):  # not sharded, hence not exchanged
                if scalar.grad is not None:
                    scalar.grad.fill_(ranks.sum([scalar.grad.item()])[0] / ranks.size)
        caption_loss, pair_loss = ranks.sum([caption_loss, pair_loss])
        loss_value = config.caption_weight * caption_loss + config.contrastive_weight * pair_loss
        return {"loss": loss_value, "contrastive_loss": pair_loss, "caption_loss": caption_loss}

    def clip(self) -> float:
        """Scale the gradients down to the recipe's norm; gives their norm before."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        shards = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
        norm = torch.nn.utils.get_total_norm(whole).item()
        if shards:
            norm = math.sqrt(norm**2 + self.ranks.sum([torch.nn.utils.get_total_norm(shards).item() ** 2])[0])
        most = self.recipe.training.clip
        if most and norm > most:
            torch._foreach_mul_([*whole, *shards], most / (norm + 1e-6))
        return norm

    @torch.no_grad()
    def offenders(self, micros: Sequence[Batch], seed: int) -> list[str]:
        """Hashed keys of the samples, of every process, whose features or loss are not finite; see `hashed_key`."""
        found = []
        for number, batch in enumerate(micros):
            output = self._forward(batch, seed + number, "tokens")
            assert output.tokens is not None
            counts = (batch.tokens[:, 1:] != self.tokenizer.pad_id).sum(dim=1).tolist()
            for row, nll in enumerate(output.tokens.nll[: sum(counts)].split(counts)):
                parts = (nll, output.image_features[row], output.text_features[row])
                if not all(part.isfinite().all() for part in parts):
                    found.append(hashed_key(batch.keys[row]))
        return [name for names in self.ranks.gather(found) for name in names]

    def _forward(self, batch: Batch, seed: int, want: Literal["features", "loss", "tokens"] = "loss") -> CoCaOutput:
        torch.manual_seed(seed * self.ranks.size + self.ranks.rank)
        return forward(self.spread, batch, self.tokenizer, self.recipe.training.precision, self.device, want)

    def _pairs(self, images: Tensor, texts: Tensor) -> Pairs:
        if self.ranks.size == 1:
            return Pairs.alone(images, texts)
        counts, rank = self.ranks.gather(len(images)), self.ranks.rank
        with explain_lost_process():
            both = [cast(Tensor, _Concatenate.apply(rows, counts, rank)) for rows in (images, texts)]
        return Pairs(images, texts, both[0], both[1], sum(counts[:rank]))

    def _cached_pairs(self, micros: Sequence[Batch], counts: Sequence[int], seed: int) -> "_CachedPairs":
        """The contrastive loss of all micro-batches together and its gradients at their features (Gao et al., 2021)."""
        with torch.no_grad():
            outputs = [self._forward(batch, seed + number, "features") for number, batch in enumerate(micros)]
        images = torch.cat([output.image_features for output in outputs]).requires_grad_()
        texts = torch.cat([output.text_features for output in outputs]).requires_grad_()
        scalars = [scalar for scalar in _scalars(self.model) if scalar.requires_grad]
        loss = self.model.pair_loss(self._pairs(images, texts))
        with explain_lost_process():
            at_images, at_texts, *at_scalars = torch.autograd.grad(loss, [images, texts, *scalars])
        by_micro = list(zip(at_images.split(list(counts)), at_texts.split(list(counts)), strict=True))
        return _CachedPairs(loss.item(), by_micro, list(zip(scalars, at_scalars, strict=True)))

    def _without_exchange(self, *, unless: bool) -> AbstractContextManager[None]:
        """Keep gradients to this process until the last micro-batch."""
        if isinstance(self.spread, FSDPModule):
            self.spread.set_requires_gradient_sync(unless)
        elif isinstance(self.spread, DistributedDataParallel) and not unless:
            return self.spread.no_sync()
        return nullcontext()


class _Concatenate(torch.autograd.Function):
    """Rows of every process, possibly unevenly many; backward sums all processes' gradients for this one's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.split(ctx.counts)[ctx.rank], None, None


@dataclass(frozen=True)
class _CachedPairs:
    """A contrastive loss, and its gradients at the features it was computed from.

    Attributes:
        loss: This process's share.
        features: Gradients at image and text features, by micro-batch.
        scalars: Temperature (and bias) with their gradients.
    """

    loss: float
    features: list[tuple[Tensor, Tensor]]
    scalars: list[tuple[nn.Parameter, Tensor]]

    def gradient_term(self, output: CoCaOutput, number: int, *, with_scalars: bool) -> Tensor:
        """A term whose gradient is the loss's own, by the chain rule from ``output``'s features on."""
        at_images, at_texts = self.features[number]
        term = (output.image_features * at_images).sum() + (output.text_features * at_texts).sum()
        # Every micro-batch names the scalars, so that each process's graph holds all parameters.
        scale = 1.0 if with_scalars else 0.0
        return term + scale * sum((scalar * at for scalar, at in self.scalars), term.new_zeros(()))


def forward(
    model: nn.Module,
    batch: Batch,
    tokenizer: CaptionTokenizer,
    precision: str,
    device: torch.device,
    want: Literal["features", "loss", "tokens"],
) -> CoCaOutput:
    """``model`` on ``batch``; for an empty one runs a stand-in without effect, since other processes may wait."""
    images, tokens = batch.images, batch.tokens
    if not batch.keys:
        images = images.new_zeros(1, *images.shape[1:])
        tokens = torch.tensor([[tokenizer.bos_id, tokenizer.eos_id]])
    with autocast(device, precision):
        output = cast(CoCaOutput, model(images.to(device), tokens.to(device), tokenizer.pad_id, want))
    if batch.keys:
        return output
    nothing = None if output.nll is None else output.nll * 0
    return output._replace(
        image_features=output.image_features[:0], text_features=output.text_features[:0], nll=nothing
    )


def hashed_key(key: str) -> str:
    """A sample's name for messages: the first twelve digits of its key's SHA-256, since a key may name a patient."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:12]


def _scalars(model: CoCa) -> Iterable[nn.Parameter]:
    """Temperature and, for the sigmoid loss, bias: FSDP2 shards no parameter without dimensions."""
    return [parameter for parameter in (model.logit_scale, model.logit_bias) if parameter is not None]
