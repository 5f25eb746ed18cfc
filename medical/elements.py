"""Element values that may be absent, empty, of a wrong type or malformed: none of it stops an image from being read."""

import math
import re
import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import Dataset

MALFORMED = (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, ArithmeticError, struct.error)
"""What pydicom raises while it converts the raw bytes of one bad element."""


def value(dataset: "Dataset", keyword: str) -> Any:
    """The element's value, or None where it is absent, empty or cannot be converted."""
    try:
        found = dataset.get(keyword)
    except MALFORMED:
        return None
    return None if found in ("", b"") else found


def numbers(dataset: "Dataset", keyword: str) -> tuple[float, ...]:
    """Every value of a numeric element, all finite; empty where one of them is no number."""
    found = value(dataset, keyword)
    if found is None:
        return ()
    try:
        values = tuple(float(v) for v in (found if isinstance(found, Iterable) else [found]))
    except MALFORMED:
        return ()
    return values if all(math.isfinite(v) for v in values) else ()


def number(dataset: "Dataset", keyword: str) -> float | None:
    """The first value of a numeric element, or None."""
    values = numbers(dataset, keyword)
    return values[0] if values else None


def integer(dataset: "Dataset", keyword: str) -> int | None:
    """The first value of a numeric element as an integer, or None."""
    first = number(dataset, keyword)
    return None if first is None else int(first)


def code(dataset: "Dataset", keyword: str) -> str:
    """The first value of a code string, upper case, without blanks around it; empty where there is none."""
    found = value(dataset, keyword)
    first = found if isinstance(found, str) else next(iter(found), "") if isinstance(found, Iterable) else ""
    return re.sub(r"\s+", " ", str(first)).strip(" \0").upper()


def texts(dataset: "Dataset", keyword: str) -> list[str]:
    """Every value of a text element in the form `plain` gives it, for comparing and never for showing."""
    found = value(dataset, keyword)
    return [plain(str(text)) for text in ([found] if isinstance(found, str) else found or ())]


def plain(text: str) -> str:
    """Text without regard of case and of blanks around and between its words."""
    return " ".join(text.strip(" \0").casefold().split())


def items(dataset: "Dataset", keyword: str) -> list["Dataset"]:
    """The items of a sequence; empty where it is absent or no sequence."""
    from pydicom import Sequence

    found = value(dataset, keyword)
    return list(found) if isinstance(found, Sequence) else []


def scopes(dataset: "Dataset", frame: int, sequence: str) -> Iterator["Dataset"]:
    """Where an attribute of one frame may stand, nearest first (PS3.3 C.7.6.16).

    Args:
        dataset: The file's data set.
        frame: Index of the frame, from 0.
        sequence: Keyword of the functional group that holds the attribute in an enhanced object.

    Yields:
        The frame's own group, the group all frames share, the data set itself.
    """
    per_frame = items(dataset, "PerFrameFunctionalGroupsSequence")[frame : frame + 1]
    for group in per_frame + items(dataset, "SharedFunctionalGroupsSequence")[:1]:
        yield from items(group, sequence)[:1]
    yield dataset
