"""From stored values to [0, 1]: modality transform, window or VOI LUT (PS3.3 C.11.1, C.11.2), and what is padding.

The order is the standard's: stored values, modality LUT or rescale, VOI LUT or window, presentation. The result is
normalised by the window and not by the picture's own extremes, so that a Hounsfield unit keeps its grey level from
one slice to the next.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medical.elements import code, items, number, numbers, scopes, texts
from medical.lut import Floats, LookupTable, lookup_table
from medical.windows import WindowChoice, WindowUsed

if TYPE_CHECKING:
    from pydicom import Dataset

Stored = NDArray[Any]
Mask = NDArray[np.bool_]

PERCENTILE_PIXELS = 2**18
"""About as many pixels are looked at for the percentiles, in rows and columns evenly apart."""

PERCENTILES = (0.5, 99.5)
"""What a picture without a usable window is stretched between."""


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
    kind = {"f4": "Float", "f8": "DoubleFloat"}.get(stored.dtype.str[1:], "")
    first = number(dataset, f"{kind}PixelPaddingValue")
    if first is not None:
        limit = number(dataset, f"{kind}PixelPaddingRangeLimit")
        ends = [first, first if limit is None else limit]
        if signed:
            ends = [end - 2**pixel_bits if end >= 2 ** (pixel_bits - 1) else end for end in ends]
        elif not kind:
            ends = [end + 2**pixel_bits if end < 0 else end for end in ends]
        mask |= (stored >= min(ends)) & (stored <= max(ends))
    return mask if not mask.all() else np.zeros(stored.shape, bool)


def apply_modality(stored: Stored, dataset: "Dataset", frame: int) -> Floats:
    """Stored values (H, W) to modality values (HU for CT): the modality LUT, else slope and intercept (PS3.3 C.11.1).

    An empty LUT is passed over; a missing, zero or malformed slope counts as 1, such an intercept as 0.
    """
    # float32 holds every 16-bit integer, and rescaled ones to 1 part in 16 million; wider samples need more
    values: Floats = stored.astype(np.float64) if stored.dtype.itemsize > 2 else stored.astype(np.float32)
    for item in items(dataset, "ModalityLUTSequence"):
        if (lut := lookup_table(item, dataset)) is not None:
            return lut.map(values)
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
    if not choice.percentiles and (found := _by_the_file(values, dataset, frame, choice, warnings)):
        levels, used = found
        shown = levels[~padding]
        if shown.min() < shown.max() or values[~padding].min() == values[~padding].max():
            return levels, used, warnings
        warnings.append("the window of the file shows one grey level: not used")
    reason = "asked for" if choice.percentiles else "no usable window in the file"
    levels, low, high = _stretch(values, padding)
    if low == high:
        warnings.append("all pixels are equal")
    # A LINEAR_EXACT window in effect, so its numbers can be given like any other's
    return levels, WindowUsed(f"percentiles: {reason}", (low + high) / 2, high - low), warnings


def _by_the_file(
    values: Floats, dataset: "Dataset", frame: int, choice: WindowChoice, warnings: list[str]
) -> tuple[Floats, WindowUsed] | None:
    """Grey levels by the VOI LUT or window of the file that was chosen, else its first; None without any."""
    windows, luts = _windows(dataset, frame), _voi_luts(dataset, frame)
    index = choice.index or 0
    if luts and (not windows or (choice.index is None and not choice.name)):
        index = index if index < len(luts) else 0
        return np.clip(luts[index].map(values) / luts[index].largest, 0, 1), WindowUsed("VOI LUT of the file")
    if choice.name:
        chosen = next((window for window in windows if window.name == choice.name), None)
    else:
        chosen = next((window for window in windows if window.place == index), None)
    first = min(windows, default=None)
    if chosen is None and first is not None and (choice.name or index):
        warnings.append(f"the file has no window with the {'name' if choice.name else 'index'} asked for")
    if (window := chosen or first) is None:
        return None
    source = "first window of the file"
    if window is chosen and (choice.name or index):
        source = "window of the file by name" if choice.name else "window of the file by index"
    levels = apply_window(values, window.center, window.width, window.function)
    return levels, WindowUsed(source, window.center, window.width)


class _Window(NamedTuple):
    """A window of the file; `name` is compared with what was asked for and never shown."""

    place: int
    center: float
    width: float
    function: str
    name: str


def _windows(dataset: "Dataset", frame: int) -> list[_Window]:
    """Every window a frame has, those without a usable width left out."""
    for scope in scopes(dataset, frame, "FrameVOILUTSequence"):
        function, names = code(scope, "VOILUTFunction"), texts(scope, "WindowCenterWidthExplanation")
        pairs = zip(numbers(scope, "WindowCenter"), numbers(scope, "WindowWidth"), strict=False)
        windows = [
            _Window(place, *pair, function, names[place] if place < len(names) else "")
            for place, pair in enumerate(pairs)
            if pair[1] > 0
        ]
        if windows:
            return windows
    return []


def _voi_luts(dataset: "Dataset", frame: int) -> list[LookupTable]:
    """Every usable VOI LUT a frame has."""
    for scope in scopes(dataset, frame, "FrameVOILUTSequence"):
        luts = (lookup_table(item, dataset) for item in items(scope, "VOILUTSequence"))
        if usable := [lut for lut in luts if lut is not None]:
            return usable
    return []


def _stretch(values: Floats, padding: Mask) -> tuple[Floats, float, float]:
    """Grey levels between two percentiles of what is not padding, and the two values; equal ends give black."""
    shown = values[~padding]
    # Of a large picture some 260,000 pixels tell as much, and sorting all of them takes longer than the rest
    thin = max(1, round((shown.size / PERCENTILE_PIXELS) ** 0.5))
    sample = values[::thin, ::thin][~padding[::thin, ::thin]] if thin > 1 else shown
    low, high = (float(v) for v in np.percentile(sample if sample.size else shown, PERCENTILES))
    if low == high:  # a few bright pixels on black: the extremes are all there is
        low, high = float(shown.min()), float(shown.max())
    if low == high:
        return np.zeros_like(values), low, high
    return np.clip((values - low) / (high - low), 0, 1), low, high
