"""The processes of one run under torchrun, and what they tell each other.

Imports torch where it is needed: a command that runs alone must not wait for it here.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from grrcoca_cli.data.base import Share
from grrcoca_cli.errors import GrrcocaError, LostProcess

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run; every method is called by all of them, in the same order.

    Attributes:
        rank: Its number, from 0.
        size: Count of processes; 1 without torchrun, where nothing is sent.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """What of every batch this process reads."""
        return Share(self.rank, self.size)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all processes."""
        if self.size == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        total = torch.tensor(values, dtype=torch.float64)
        with explain_lost_process():
            dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` holds in any process."""
        return self.sum([flag])[0] > 0

    def gather(self, value: T) -> list[T]:
        """``value`` of every process, in their order."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with explain_lost_process():
            dist.all_gather_object(values, value)
        return values

    def agree(self, work: Callable[[], T]) -> T:
        """What ``work`` gives the first process, in all of them; an error that a user can cause as well."""
        result: tuple[T | None, GrrcocaError | None] = (None, None)
        if self.is_first:
            try:
                result = work(), None
            except GrrcocaError as error:  # raised again below, in every process
                result = None, error
        if self.size > 1:
            import torch.distributed as dist

            box = [result]
            with explain_lost_process():
                dist.broadcast_object_list(box)
            result = box[0]
        value, failure = result
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The first process runs the block, then the others do, and find what it made."""
        if not self.is_first:
            self.sum([0])
        yield
        if self.is_first:
            self.sum([0])


ALONE = Ranks()


def local_rank() -> int | None:
    """This process's number on its machine where torchrun started it, else None."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ else None


@contextmanager
def join_ranks(timeout: float) -> Iterator[Ranks]:
    """Meet the other processes that torchrun started; alone, nothing happens.

    Args:
        timeout: Seconds to wait for another process, then and later.

    Raises:
        LostProcess: Not all of them came in time.
    """
    if local_rank() is None or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    # Small messages go over gloo from the CPU, gradients over NCCL where there are GPUs.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with explain_lost_process():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turn what a backend says when a process died or hangs into one line.

    Raises:
        LostProcess: Another process did not answer.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        from torch.distributed import DistError

        known = ("Timed out", "timed out", "Connection closed", "Connection reset", "Broken pipe", "gloo", "NCCL")
        if isinstance(error, DistError) or any(word in text for word in known):
            raise LostProcess(
                "another process of this run died or did not answer within distributed.timeout: "
                "its own message, if it had time for one, is above; run the same command to go on"
            ) from error
        raise
