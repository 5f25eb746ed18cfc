"""What a run will take, before it starts: parameters, arithmetic, memory, disk, time."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from grrcoca_cli.config import Recipe
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.roles import role_of
from grrcoca_cli.training.costs import FLOAT32, activation_bytes, meta_model, step_flops
from grrcoca_cli.training.device import is_bf16
from grrcoca_cli.training.optimizer import freeze, parameter_groups

_PART_NAMES = {"image": "image encoder", "poolers": "poolers", "text": "text decoder", "head": "vocabulary head"}


@dataclass(frozen=True)
class Estimate:
    """Figures of a run; counts and bytes are whole numbers.

    Attributes:
        steps: Optimiser steps.
        epochs: Times that each training sample is seen.
        images_seen: Pictures over the whole run.
        mean_tokens: Of a caption, begin and end included.
        context_length: Most tokens of a caption.
        parameters: By part of the model; they add up to all.
        trained_parameters: Those that are not frozen.
        flops_per_step: Of a step over all devices, forward and backward, were every caption of mean length; the first
            pass of ``training.contrastive_batch = "global"`` under accumulation, a third of it more, is not counted.
        flops_per_step_padded: The same, were every caption as long as the context.
        micro_batch: Pairs in memory at once, on each device.
        memory: Bytes on each device, by what they hold, with captions padded to the context length; a floor, since
            kernels need work space beside it.
        checkpoint_bytes: Size of one checkpoint.
        checkpoints: Most of them on the disk at a time, the one being written among them.
    """

    steps: int
    epochs: float
    images_seen: int
    mean_tokens: float
    context_length: int
    parameters: dict[str, int]
    trained_parameters: int
    flops_per_step: int
    flops_per_step_padded: int
    micro_batch: int
    memory: dict[str, int]
    checkpoint_bytes: int
    checkpoints: int

    def lines(self) -> list[str]:
        """For people."""
        total = sum(self.parameters.values())
        parts = ", ".join(f"{name} {amount(count)}" for name, count in self.parameters.items())
        frozen = total - self.trained_parameters
        needs = ", ".join(f"{name} {amount(size, 'B')}" for name, size in self.memory.items() if size)
        return [
            f"parameters: {total:,}: {parts}" + (f"; {amount(frozen)} frozen" if frozen else ""),
            f"training: {self.steps:,} steps of {self.images_seen // self.steps:,}: {self.epochs:.1f} epochs, "
            f"{self.images_seen:,} pictures seen",
            f"arithmetic: {amount(self.flops_per_step, 'FLOP')} a step with captions of {self.mean_tokens:.0f} tokens, "
            f"their mean; {amount(self.flops_per_step_padded, 'FLOP')} with {self.context_length}",
            f"memory of a device: at least {amount(sum(self.memory.values()), 'B')} for {self.micro_batch} pairs at "
            f"once: {needs}",
            f"disk: {amount(self.checkpoints * self.checkpoint_bytes, 'B')} for up to {self.checkpoints} checkpoints "
            f"of {amount(self.checkpoint_bytes, 'B')}",
        ]

    def as_json(self) -> dict[str, Any]:
        """The same for programs: plain numbers; bytes and operations unrounded."""
        return asdict(self)


def estimate(recipe: Recipe, train_length: int, mean_tokens: float, world_size: int, device: torch.device) -> Estimate:
    """What the recipe's run takes.

    Args:
        recipe: With the tokenizer's real ``vocab_size``.
        train_length: Training samples.
        mean_tokens: Of a training caption, begin and end included.
        world_size: Devices that share a batch.
        device: Of what kind they are.
    """
    model = meta_model(recipe.model)
    freeze(model, recipe.finetune.freeze)
    config, training = recipe.model, recipe.training
    numbers = _numbers(model, recipe)
    seen = training.steps * training.batch_size
    competing = training.batch_size // training.accumulation

    def flops(tokens: float) -> int:
        return round(step_flops(model, training.batch_size, tokens, contrastive=competing))

    return Estimate(
        steps=training.steps,
        epochs=seen / max(train_length, 1),
        images_seen=seen,
        mean_tokens=mean_tokens,
        context_length=config.context_length,
        parameters=_by_part(model),
        trained_parameters=numbers["gradients"],
        flops_per_step=flops(min(mean_tokens, config.context_length)),
        flops_per_step_padded=flops(config.context_length),
        micro_batch=max(1, competing // world_size),
        memory=step_memory(model, recipe, world_size, device),
        checkpoint_bytes=(sum(numbers.values()) - numbers["gradients"]) * FLOAT32,
        checkpoints=training.keep + 1 + training.keep_best,
    )


def step_memory(model: CoCa, recipe: Recipe, world_size: int, device: torch.device) -> dict[str, int]:
    """Bytes on each device that a step takes at least, by what they hold; on a CPU with the batch's images.

    Args:
        model: The recipe's, on any device, ``meta`` included; what is frozen in it, counts as such.
        recipe: Of the run.
        world_size: Devices that share a batch.
        device: Of what kind they are.
    """
    config, training = recipe.model, recipe.training
    half, frozen = is_bf16(device, training.precision), recipe.finetune.freeze == "image"
    competing = training.batch_size // training.accumulation
    micro = max(1, competing // world_size)
    pair = activation_bytes(config, config.context_length, half=half, frozen_image=frozen)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
    share = world_size if recipe.distributed.strategy == "fsdp2" else 1
    memory = {name: count * FLOAT32 // share for name, count in _numbers(model, recipe).items()}
    memory |= {"16-bit weights": 2 * matrices if half else 0, "activations": round(micro * pair)}
    if training.contrastive_weight:  # both directions: the products and their softmax
        rivals = training.batch_size if training.contrastive_batch == "global" else competing
        memory["similarities"] = 4 * (rivals // world_size) * rivals * FLOAT32
    if device.type == "cpu":
        memory["images"] = training.batch_size // world_size * 3 * config.image_size**2 * FLOAT32
    return memory


def _numbers(model: CoCa, recipe: Recipe) -> dict[str, int]:
    """Count of the numbers that training keeps of a model, by what they are."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    hidden, *others = (sum(p.numel() for p in group) for group in parameter_groups(model, recipe.training))
    return {
        "weights": weights,
        "gradients": hidden + sum(others),
        "optimiser": hidden + 2 * sum(others),  # Muon keeps a momentum; AdamW that and the squares
        "average": weights if recipe.training.ema > 0 else 0,
    }


def amount(count: float, unit: str = "") -> str:
    """Three figures with a decimal prefix: ``2.13 GB``, ``57.2 M``."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if count < 999.5 or prefix == "P":
            break
        count /= 1000
    return f"{count:.3g} {prefix}{unit}".rstrip()


def _by_part(model: CoCa) -> dict[str, int]:
    counts = dict.fromkeys(_PART_NAMES.values(), 0)
    for name, parameter in model.named_parameters():
        counts[_PART_NAMES[role_of(name).part]] += parameter.numel()
    return counts
