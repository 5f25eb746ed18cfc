"""Lookup tables of a data set: modality and VOI LUTs, palettes, whole or in segments (PS3.3 C.11.1, C.11.2, C.7.9)."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.errors import UnreadableImage
from medical.elements import number, numbers, value

if TYPE_CHECKING:
    from pydicom import Dataset

Floats = NDArray[np.float32] | NDArray[np.float64]
Words = NDArray[np.unsignedinteger]

DISCRETE, LINEAR, INDIRECT = 0, 1, 2
"""Opcodes of the segments of a palette (PS3.3 C.7.9.2)."""


class LookupTable(NamedTuple):
    """Entries (length,), the value that the first of them stands for, and the greatest entry its bits allow."""

    entries: Floats
    first: float
    largest: float

    def map(self, values: Floats) -> Floats:
        """Entries for values; below the first and above the last mapped value the nearest entry holds."""
        index = np.clip(np.nan_to_num(np.rint(values - self.first)), 0, len(self.entries) - 1).astype(np.intp)
        found: Floats = self.entries[index]
        return found


def lookup_table(item: "Dataset", dataset: "Dataset") -> LookupTable | None:
    """The table of an item of ModalityLUTSequence or VOILUTSequence; None where it cannot be used."""
    descriptor, data = numbers(item, "LUTDescriptor"), value(item, "LUTData")
    if len(descriptor) != 3 or data is None or not 1 <= descriptor[2] <= 16:
        return None
    if isinstance(data, bytes):
        entries = table_entries(data, int(descriptor[0]) or 2**16, dataset).astype(np.float32)
    else:
        entries = np.asarray(numbers(item, "LUTData"), np.float32)
    if not entries.size:
        return None
    first = descriptor[1]
    if first >= 2**15 and number(dataset, "RescaleIntercept"):  # a negative start, read as unsigned
        first -= 2**16
    return LookupTable(entries, first, max(2.0 ** int(descriptor[2]) - 1, float(entries.max())))


def table_entries(data: bytes, count: int, dataset: "Dataset") -> Words:
    """Entries of a table that is stored as words: 8-bit entries two to a word, else one (PS3.3 C.7.6.3.1.6)."""
    words = _words(data, dataset)
    return words[:count] if len(words) >= count else words.view(np.uint8)[:count]


def segmented_entries(data: bytes, count: int, bits: int, dataset: "Dataset") -> Words:
    """Entries of a palette that is stored in segments, at most `count` of them (PS3.3 C.7.9.2).

    Raises:
        UnreadableImage: ``"damaged"``: an unknown or empty segment, or a reference to a reference.
    """
    words = _words(data, dataset)
    codes = words if bits > 8 else words.view(np.uint8)
    entries: list[int] = []
    _expand(codes.tolist(), 0, len(codes), entries, count, words_to_offset=2 if bits > 8 else 4)
    return np.asarray(entries[:count], codes.dtype)


def _expand(
    codes: list[int], at: int, segments: int, entries: list[int], count: int, *, words_to_offset: int = 0
) -> None:
    """Append what `segments` segments from position `at` stand for; a copy (no offsets) may not refer to another."""
    while segments and at + 2 < len(codes) and len(entries) < count:
        opcode, length, *operands = codes[at : at + 6]
        at, segments = at + 2, segments - 1
        if opcode == DISCRETE and length:
            entries += codes[at : at + length]
            at += length
        elif opcode == LINEAR and length and entries:
            start, step = entries[-1], (operands[0] - entries[-1]) / length
            entries += [round(start + step * (i + 1)) for i in range(length)]
            at += 1
        elif opcode == INDIRECT and length and len(operands) >= words_to_offset > 0:
            width = 4 // words_to_offset  # bytes of one code
            offset = sum(code << 8 * width * i for i, code in enumerate(operands[:words_to_offset]))
            _expand(codes, offset // width, length, entries, count)
            at += words_to_offset
        else:
            raise UnreadableImage("damaged", "a segmented palette that cannot be expanded")


def _words(data: bytes, dataset: "Dataset") -> NDArray[Any]:
    order = "<u2" if dataset.original_encoding[1] else ">u2"
    return np.frombuffer(data[: len(data) // 2 * 2], order).astype("<u2")
