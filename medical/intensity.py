"""From stored values to [0, 1]: modality transform, window or VOI LUT (PS3.3 C.11.1, C.11.2), and what is padding.

The order is the standard's: stored values, modality LUT or rescale, VOI LUT or window, presentation. The result is
normalised by the window and not by the picture's own extremes, so that a Hounsfield unit keeps its grey level from
one slice to the next.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.errors import UsageError
from medical.elements import code, items, number, numbers, scopes, value

if TYPE_CHECKING:
    from pydicom import Dataset

Stored = NDArray[Any]
Floats = NDArray[np.float32] | NDArray[np.float64]
Mask = NDArray[np.bool_]

CT_PRESETS = {
    "abdomen": (40.0, 400.0),
    "angio": (300.0, 600.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "liver": (60.0, 160.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "spine": (50.0, 250.0),
    "stroke": (35.0, 40.0),
    "subdural": (75.0, 215.0),
}
"""Centre and width in Hounsfield units, as radiologists set them by hand."""

PERCENTILES = (0.5, 99.5)
"""What a picture without a usable window is stretched between."""


@dataclass(frozen=True)
class WindowUsed:
    """How grey levels were mapped to [0, 1].

    Attributes:
        source: Where the mapping came from and why, one of a fixed set of phrases.
        center: Centre in modality units (HU for CT), or None where no window was used.
        width: Width in the same units, or None.
    """

    source: str
    center: float | None = None
    width: float | None = None

    def __str__(self) -> str:
        if self.center is None or self.width is None:
            return self.source
        return f"{self.source} (centre {self.center:g}, width {self.width:g})"


@dataclass(frozen=True)
class WindowChoice:
    """A ``window=`` argument, understood.

    Attributes:
        index: Position among the file's own windows.
        percentiles: Whether the file's windows are to be passed over.
        preset: Name of a CT preset.
        center: Centre in modality units, from a preset or as given.
        width: Width in modality units.
    """

    index: int | None = None
    percentiles: bool = False
    preset: str = ""
    center: float = 0.0
    width: float = 0.0

    @classmethod
    def parse(cls, text: str | None) -> "WindowChoice":
        """Understand ``None``, ``"1"``, ``"40/400"``, ``"lung"`` or ``"percentile"``.

        Raises:
            UsageError: Anything else.
        """
        if text is None:
            return cls()
        wanted = text.strip().lower()
        if wanted == "percentile":
            return cls(percentiles=True)
        if wanted in CT_PRESETS:
            return cls(None, False, wanted, *CT_PRESETS[wanted])
        if re.fullmatch(r"[0-9]{1,4}", wanted):
            return cls(index=int(wanted))
        if pair := re.fullmatch(r"([+-]?\d{1,9}(?:\.\d{1,9})?)/(\d{1,9}(?:\.\d{1,9})?)", wanted):
            center, width = (float(part) for part in pair.groups())
            if width > 0:
                return cls(center=center, width=width)
        near = get_close_matches(wanted, CT_PRESETS, n=1)
        raise UsageError(
            f"window {text!r} is not understood{f', did you mean {near[0]!r}' if near else ''}; give the index of a "
            f"window of the file (0), centre/width (40/400), 'percentile', or a CT preset: {', '.join(CT_PRESETS)}"
        )


def padding_mask(stored: Stored, dataset: "Dataset", pixel_bits: int, signed: bool) -> Mask:
    """Pixels that hold no picture: PixelPaddingValue, and up to PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2).

    Args:
        stored: Stored values (H, W), before any transform; non-finite ones count as padding.
        dataset: The file's data set.
        pixel_bits: Bits stored, to read a padding value that was written with the wrong sign.
        signed: Whether stored values are signed.

    Returns:
        True where there is padding, (H, W); nowhere, if that would leave no picture.
    """
    mask = ~np.isfinite(stored) if stored.dtype.kind == "f" else np.zeros(stored.shape, bool)
    first = number(dataset, "PixelPaddingValue")
    if first is not None:
        limit = number(dataset, "PixelPaddingRangeLimit")
        ends = [first, first if limit is None else limit]
        if signed:
            ends = [end - 2**pixel_bits if end >= 2 ** (pixel_bits - 1) else end for end in ends]
        mask |= (stored >= min(ends)) & (stored <= max(ends))
    return mask if not mask.all() else np.zeros(stored.shape, bool)


def apply_modality(stored: Stored, dataset: "Dataset", frame: int) -> Floats:
    """Stored values (H, W) to modality values (HU for CT): the modality LUT, else slope and intercept (PS3.3 C.11.1).

    An empty LUT is passed over; a missing, zero or malformed slope counts as 1, such an intercept as 0.
    """
    # float32 holds every 16-bit integer, and rescaled ones to 1 part in 16 million; wider samples need more
    values: Floats = stored.astype(np.float64) if stored.dtype.itemsize > 2 else stored.astype(np.float32)
    for item in items(dataset, "ModalityLUTSequence"):
        if (lut := _lookup_table(item, dataset)) is not None:
            return _look_up(values, *lut[:2])
    for scope in scopes(dataset, frame, "PixelValueTransformationSequence"):
        slope, intercept = number(scope, "RescaleSlope"), number(scope, "RescaleIntercept")
        if slope is not None or intercept is not None:
            return values * (slope or 1.0) + (intercept or 0.0)
    return values


def apply_window(values: Floats, center: float, width: float, function: str = "LINEAR") -> Floats:
    """Map a window to [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: Modality values (H, W).
        center: Window centre, in the units of `values`.
        width: Window width, above 0; below 1 LINEAR is not defined and LINEAR_EXACT is used.
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``; anything else is LINEAR.
    """
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -60, 60))))
    if function != "LINEAR_EXACT" and width >= 1:
        center, width = center - 0.5, width - 1
    if width == 0:  # LINEAR with a width of 1 is a threshold
        return (values > center).astype(np.float32)
    return np.clip((values - center) / width + 0.5, 0, 1)


def to_unit_range(
    values: Floats, padding: Mask, dataset: "Dataset", frame: int, choice: WindowChoice, *, is_ct: bool
) -> tuple[Floats, WindowUsed, list[str]]:
    """Choose the VOI transform and apply it: modality values (H, W) to [0, 1].

    A window that was asked for and cannot be used gives way to the file's own, with a warning, so that one recipe
    can read a mixed set.

    Returns:
        The grey levels, the window used, warnings.
    """
    warnings: list[str] = []
    if choice.width and (is_ct or not choice.preset):
        used = WindowUsed(f"CT preset {choice.preset}" if choice.preset else "as asked", choice.center, choice.width)
        return apply_window(values, choice.center, choice.width), used, warnings
    if choice.preset:
        warnings.append("the CT preset was not used: not a CT")
    if not choice.percentiles:
        windows, function = _windows(dataset, frame)
        if choice.index is None:
            for item in items(dataset, "VOILUTSequence"):
                if (lut := _lookup_table(item, dataset)) is not None:
                    levels = _look_up(values, lut[0], lut[1]) / lut[2]
                    return np.clip(levels, 0, 1), WindowUsed("VOI LUT of the file"), warnings
        index = choice.index or 0
        if windows and index >= len(windows):
            warnings.append("the file has no window with the index asked for")
            index = 0
        if windows:
            window = windows[index]
            levels = apply_window(values, *window, function)
            shown = levels[~padding]
            if shown.min() < shown.max() or values[~padding].min() == values[~padding].max():
                name = "window of the file by index" if index else "first window of the file"
                return levels, WindowUsed(name, *window), warnings
            warnings.append("the window of the file shows one grey level: not used")
    reason = "asked for" if choice.percentiles else "no usable window in the file"
    levels, low, high = _stretch(values, padding)
    if low == high:
        warnings.append("all pixels are equal")
    # A LINEAR_EXACT window in effect, so its numbers can be given like any other's
    return levels, WindowUsed(f"percentiles: {reason}", (low + high) / 2, high - low), warnings


def _windows(dataset: "Dataset", frame: int) -> tuple[list[tuple[float, float]], str]:
    """Centre and width of every window a frame has, those without a usable width left out, and the VOI LUT function."""
    for scope in scopes(dataset, frame, "FrameVOILUTSequence"):
        pairs = zip(numbers(scope, "WindowCenter"), numbers(scope, "WindowWidth"), strict=False)
        if windows := [(center, width) for center, width in pairs if width > 0]:
            return windows, code(scope, "VOILUTFunction")
    return [], ""


def _stretch(values: Floats, padding: Mask) -> tuple[Floats, float, float]:
    """Grey levels between two percentiles of what is not padding, and the two values; equal ends give black."""
    shown = values[~padding]
    low, high = (float(v) for v in np.percentile(shown, PERCENTILES))
    if low == high:  # a few bright pixels on black: the extremes are all there is
        low, high = float(shown.min()), float(shown.max())
    if low == high:
        return np.zeros_like(values), low, high
    return np.clip((values - low) / (high - low), 0, 1), low, high


def _lookup_table(item: "Dataset", dataset: "Dataset") -> tuple[Floats, float, float] | None:
    """A LUT item as (entries, first value mapped, greatest entry its bits allow); None where it cannot be used."""
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
    return entries, first, max(2.0 ** int(descriptor[2]) - 1, float(entries.max()))


def table_entries(data: bytes, count: int, dataset: "Dataset") -> NDArray[np.unsignedinteger]:
    """Entries of a LUT that is stored as words: 8-bit entries two to a word, else one (PS3.3 C.7.6.3.1.6)."""
    words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if dataset.original_encoding[1] else ">u2").astype("<u2")
    return words[:count] if len(words) >= count else words.view(np.uint8)[:count]


def _look_up(values: Floats, entries: Floats, first: float) -> Floats:
    """Entries for values; below the first and above the last mapped value the nearest entry holds."""
    index = np.clip(np.nan_to_num(np.rint(values - first)), 0, len(entries) - 1).astype(np.intp)
    found: Floats = entries[index]
    return found
