"""Training and validation from a set without splits, and what two splits have in common."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.data.base import CaptionDataset, ImageSource, Sample, SubsetDataset
from grrcoca_cli.errors import UsageError

_END = 4096  # bytes at either end of a file that tell one picture from another


def split_by_hash(
    dataset: CaptionDataset, fraction: float, group_column: str | None = None
) -> tuple[SubsetDataset, SubsetDataset]:
    """Training and validation views, the same on every machine; a sample's side does not depend on other samples.

    Args:
        dataset: What is split.
        fraction: Share for validation, 0 to below 1, met on average. Above 0, at least one sample (or group) is
            taken, as long as another remains.
        group_column: Field whose equal values stay on one side; a sample without a value is its own group.

    Raises:
        UsageError: No sample has ``group_column``.
    """
    known = getattr(dataset, "hash_draws", None)  # an index of shards keeps them: no key has to be read
    draws = known() if known is not None and group_column is None else None
    if draws is None:
        draws = hash_draws(_names(dataset, group_column))
    chosen = draws < fraction
    if fraction > 0 and len(draws) and not chosen.any() and draws.min() < draws.max():
        chosen = draws == draws.min()
    return SubsetDataset(dataset, np.flatnonzero(~chosen)), SubsetDataset(dataset, np.flatnonzero(chosen))


def _names(dataset: CaptionDataset, group_column: str | None) -> Iterator[bytes]:
    """What each sample's side depends on: its key, or the name of its group."""
    keys = (dataset.key(index) for index in range(len(dataset)))
    names = keys if group_column is None else iter(_with_groups(dataset, list(keys), group_column))
    return (name.encode(errors="surrogateescape") for name in names)


def _with_groups(dataset: CaptionDataset, keys: list[str], column: str) -> list[str]:
    fields = [dataset.peek(index).fields for index in range(len(dataset))]
    if not any(sample.get(column) for sample in fields):
        known = ", ".join(sorted(set().union(*fields))) or "none at all"
        raise UsageError(f"data.group_column {column!r} is in no sample; the columns are: {known}")
    # The name of a group and a key never clash: no key holds a NUL.
    return [f"\0{sample[column]}" if sample.get(column) else key for sample, key in zip(fields, keys, strict=True)]


def hash_draws(names: Iterable[bytes]) -> NDArray[np.float64]:
    """A number in [0, 1) for each of ``names`` that depends on it alone, (length,)."""
    digests = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
    return np.fromiter((int.from_bytes(digest, "big") >> 11 for digest in digests), dtype=np.float64) / 2**53


def count_overlaps(train: CaptionDataset, validation: CaptionDataset, group_column: str | None = None) -> Counter[str]:
    """How many validation samples share a ``"key"``, ``"group"``, ``"picture"`` or ``"caption"`` with training.

    Two pictures are the same where size and both ends of their files are. Reads every sample of both sets.
    """
    wanted = {trait for sample in _each(validation) for trait in _traits(sample, group_column)}
    shared = {trait for sample in _each(train) for trait in _traits(sample, group_column) if trait in wanted}
    overlaps: Counter[str] = Counter()
    for sample in _each(validation):
        overlaps.update({kind for kind, value in _traits(sample, group_column) if (kind, value) in shared})
    return overlaps


def _each(dataset: CaptionDataset) -> Iterator[Sample]:
    return (dataset[index] for index in range(len(dataset)))


def _traits(sample: Sample, group_column: str | None) -> Iterator[tuple[str, str | bytes]]:
    yield "key", sample.key
    if group_column is not None and sample.fields.get(group_column):
        yield "group", sample.fields[group_column]
    for caption in sample.captions:
        yield "caption", caption
    if picture := _fingerprint(sample.image):
        yield "picture", picture


def _fingerprint(image: ImageSource) -> bytes:
    """Size and both ends of an encoded picture, hashed; empty where it cannot be read."""
    if isinstance(image, bytes):
        size, ends = len(image), image[:_END] + image[-_END:]
    else:
        try:
            with image.open("rb") as file:
                size, ends = image.stat().st_size, file.read(_END)
                file.seek(max(0, size - _END))
                ends += file.read(_END)
        except OSError:
            return b""
    return hashlib.blake2b(ends, digest_size=16, salt=size.to_bytes(16, "big")).digest() if size else b""
