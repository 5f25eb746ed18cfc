"""Memory that is free on this machine, and whether a training step fits into it."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from grrcoca_cli.config import Recipe
from grrcoca_cli.errors import OutOfResources
from grrcoca_cli.training.costs import meta_model
from grrcoca_cli.training.estimates import amount, step_memory
from grrcoca_cli.training.optimizer import freeze
from grrcoca_cli.training.ranks import Ranks

WORK_SPACE = 1.2
"""Peak of a training step on a CPU over what it keeps, as measured at 64 and 512 pairs of the demo's model."""

_MEMINFO = Path("/proc/meminfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine and of its cgroups; None where neither says it."""
    found = [*_free_of_machine(), *_free_of_groups()]
    return max(0, min(found)) if found else None


def check_memory(recipe: Recipe, ranks: Ranks, device: torch.device, what: str) -> None:
    """Refuse a batch that is too large for the free memory, on a CPU: there the kernel would kill the process.

    Args:
        recipe: Of the run, whose model is in memory already.
        ranks: The processes of the run; those of this machine share its memory.
        device: Where it computes.
        what: The sizes, for the message.

    Raises:
        OutOfResources: A step needs more than is free.
    """
    free = free_memory() if device.type == "cpu" else None
    free = free // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if free is not None and ranks.size > 1 else free
    model = meta_model(recipe.model)
    freeze(model, recipe.finetune.freeze)

    def need(batch_size: int) -> int:
        training = recipe.training.model_copy(update={"batch_size": batch_size})
        memory = step_memory(model, recipe.model_copy(update={"training": training}), ranks.size, device)
        return round(WORK_SPACE * (sum(memory.values()) - memory["weights"]))

    batch_size, parts = recipe.training.batch_size, recipe.training.accumulation
    if not ranks.any(free is not None and need(batch_size) > free):
        return
    fits, free = 0, free or 0
    too_many = batch_size // parts  # pairs of a micro-batch
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if need(middle * parts) <= free else (fits, middle)
    smaller = f"set training.batch_size to at most {fits * parts}, " if fits >= max(2, ranks.size) else ""
    raise OutOfResources(
        f"out of memory with {what}: a step needs about {amount(need(batch_size), 'B')} beside the model, and "
        f"{amount(free, 'B')} are free: {smaller}raise training.accumulation, set model.gradient_checkpointing=true, "
        "or choose a smaller model.size"
    )


def _free_of_machine() -> Iterator[int]:
    for name, value in _fields(_MEMINFO):
        if name == "MemAvailable:":
            yield 1024 * value


def _free_of_groups() -> Iterator[int]:
    """Of each cgroup that this process is in and that has a limit; pages of files that can be dropped count as free."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers == "memory":
            root, names = _GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif not controllers:
            root, names = _GROUPS, ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        group = root / own.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield from _free_of_group(folder, *names)


def _free_of_group(folder: Path, limit: str, usage: str, cache: str) -> Iterator[int]:
    try:
        most, used = (int((folder / name).read_text()) for name in (limit, usage))
    except (OSError, ValueError):  # no such group here, or "max": no limit
        return
    yield most - used + dict(_fields(folder / "memory.stat")).get(cache, 0)


def _fields(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of each line of a file as the kernel writes them."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for words in map(str.split, lines):
        if len(words) >= 2 and words[1].isdigit():
            yield words[0], int(words[1])
