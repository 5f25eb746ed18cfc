"""The plain interfaces between data sets, image readers, transforms and the loop."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

T = TypeVar("T")

Pixels = NDArray[np.float32]
"""One picture, (C, H, W), C 1 or 3, values in [0, 1]."""

ImageSource = Path | bytes
"""Where a picture's bytes are: a file, or the bytes themselves (a member of a shard)."""

AnySource = str | os.PathLike[str] | bytes
"""What the Python API takes for an image: a file by name or path, or the bytes of one."""

AnyImage: TypeAlias = "AnySource | Image | NDArray[Any] | Tensor"
"""What `Captioner` takes for an image: a file, or an image that is decoded already."""

ImageReader = Callable[[ImageSource], Pixels]
"""Reads one picture; raises `errors.UnreadableImage` and nothing else for bad input."""

Augmentation = Callable[["Tensor", int], "Tensor"]
"""Takes a picture (3, S, S) in [0, 1] and a seed of its own, gives the same shape and range."""


def as_source(source: AnySource) -> ImageSource:
    """A file as a path, the bytes of a file as they are.

    Raises:
        UsageError: It is something else.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | os.PathLike):
        return Path(source)
    raise UsageError(f"an image is given as a path or as the bytes of a file, not as {type(source).__name__}")


def several(items: Iterable[T], what: str) -> Iterable[T]:
    """An argument that takes several items, as it is.

    Args:
        items: What a caller gave.
        what: What the items are, for the message.

    Raises:
        UsageError: It is a single string, path or bytes object, or cannot be iterated over.
    """
    if isinstance(items, str | bytes | os.PathLike) or not isinstance(items, Iterable):
        raise UsageError(f"give a list of {what}, not a single {type(items).__name__}: put it in [ ]")
    return items


@dataclass(frozen=True)
class Sample:
    """One picture with its captions, nothing decoded yet.

    Attributes:
        key: Names the sample within its set, the same on every machine and in every run.
        image: A path, or the encoded bytes.
        captions: One or more; the first is the training caption unless a set draws.
        fields: Further columns (patient, study, keywords), for grouping.
    """

    key: str
    image: ImageSource
    captions: tuple[str, ...]
    fields: dict[str, str] = field(default_factory=dict)


class Share(NamedTuple):
    """Which part of the work is a process's: the ``rank``-th of ``size``."""

    rank: int = 0
    size: int = 1

    def of(self, indices: list[int]) -> list[int]:
        """This process's slice; slices differ by one at most."""
        first, last = (len(indices) * (self.rank + extra) // self.size for extra in (0, 1))
        return indices[first:last]


EVERYTHING = Share()


class CaptionDataset(Protocol):
    """Samples by position. Picklable, so that worker processes can hold a copy; ``[i]`` may read from disk.

    Attributes:
        skipped: Rows that were left out when the set was opened, counted by a short kind
            (``"no picture"``, ``"empty caption"``).
    """

    @property
    def skipped(self) -> Counter[str]:
        """What was left out."""
        ...

    def __len__(self) -> int:
        """Count of usable samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """The sample at ``index``, 0 to ``len - 1``."""
        ...

    def key(self, index: int) -> str:
        """The key of the sample at ``index``, without reading its picture or captions."""
        ...

    def peek(self, index: int) -> Sample:
        """The sample at ``index`` with key, captions and fields; ``image`` is empty where it would have to be read."""
        ...


@runtime_checkable
class OrderedDataset(Protocol):
    """A set that has a say in the order of an epoch, because some orders cost more than others."""

    def order(self, generator: np.random.RandomState) -> NDArray[np.int64] | None:
        """A permutation of all positions, (length,), by ``generator`` alone; None where any order will do."""
        ...


@dataclass(frozen=True)
class ListDataset:
    """A caption data set held in a list: pictures stay on disk as paths."""

    samples: list[Sample]
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def key(self, index: int) -> str:
        """The key of the sample at ``index``."""
        return self.samples[index].key

    def peek(self, index: int) -> Sample:
        """The sample at ``index``."""
        return self.samples[index]


@dataclass(frozen=True)
class SubsetDataset:
    """A view of some samples of another set.

    Attributes:
        dataset: The set that is looked at.
        indices: Positions in it, (length,), in the order of the view.
        skipped: Empty: what was left out belongs to ``dataset`` and is counted there once.
    """

    dataset: CaptionDataset
    indices: NDArray[np.int64]
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[int(self.indices[index])]

    def order(self, generator: np.random.RandomState) -> NDArray[np.int64] | None:
        """The order of the set that is looked at, without what is not in the view."""
        whole = self.dataset.order(generator) if isinstance(self.dataset, OrderedDataset) else None
        if whole is None:
            return None
        places = np.full(len(self.dataset), -1)
        places[self.indices] = np.arange(len(self.indices))
        ordered = places[whole]
        return ordered[ordered >= 0]

    def key(self, index: int) -> str:
        """The key of the sample at ``index`` of the view."""
        return self.dataset.key(int(self.indices[index]))

    def peek(self, index: int) -> Sample:
        """The sample at ``index`` of the view, its picture perhaps not read."""
        return self.dataset.peek(int(self.indices[index]))
