"""Where the marks of the report's drawings stand, in percent of a drawing's width or height."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grrcoca_cli.evaluation.judge import Result

_BINS = 24
_ROUND = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
_NARROW = 0.1  # marks nearer to each other than this share of their size are drawn on an axis without zero


@dataclass(frozen=True)
class IntervalPlot:
    """A value with its whisker on an axis from ``start`` to ``end``; None where there is no such mark."""

    start: float
    end: float
    value: float
    low: float | None = None
    high: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class Bar:
    """A bin of a histogram: its place and size in percent, its count, and the values that fall into it."""

    left: float
    width: float
    height: float
    count: int
    low: float
    high: float


@dataclass(frozen=True)
class Histogram:
    """Bars between ``low`` and ``high``, and where the median stands between them."""

    label: str
    low: float
    high: float
    bars: tuple[Bar, ...]
    mean: float
    median: float
    median_at: float


def interval_plot(result: Result) -> IntervalPlot | None:
    """Value, interval and random-caption floor on a round axis; None where only the value is there.

    Resamples that all score the same (no image has a conflict, say) show nothing of how sure a value is.
    """
    interval = result.interval
    low, high = (interval.low, interval.high) if interval and interval.low < interval.high else (None, None)
    marks = [mark for mark in (result.value, low, high, result.floor) if mark is not None]
    if result.value is None or len(marks) < 2:
        return None
    start, end = _axis(marks)

    def place(mark: float | None) -> float | None:
        return None if mark is None else 100 * (mark - start) / (end - start)

    return IntervalPlot(start, end, place(result.value) or 0.0, place(low), place(high), place(result.floor))


def difference_plot(result: Result) -> IntervalPlot | None:
    """The difference between two systems around zero, which stands at 50; to the right ours is better."""
    change = result.difference
    if change is None or change.interval is None:
        return None
    sign = 1 if result.higher_is_better else -1
    ends = sorted((sign * change.interval.low, sign * change.interval.high))
    reach = max(abs(sign * change.value), *map(abs, ends)) or 1.0
    at, low, high = (50 + 48 * mark / reach for mark in (sign * change.value, *ends))
    return IntervalPlot(-reach, reach, at, low, high)


def histogram(label: str, values: Sequence[float], *, whole: bool = False) -> Histogram:
    """How ``values``, at least one, are distributed.

    Args:
        label: What they are.
        values: Scores from zero on, on a round axis; or counts.
        whole: They are counts: every bin then holds equally many whole numbers.
    """
    if whole:
        step = float(math.ceil((max(values) - min(values) + 1) / _BINS))
        low = min(values)
        bins = math.ceil((max(values) - low + 1) / step)
    else:
        low, high = _axis([0.0, *values])
        bins, step = _BINS, (high - low) / _BINS
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / step), bins - 1)] += 1
    bars = tuple(
        Bar(
            left=100 * place / bins,
            width=100 / bins,
            height=100 * count / max(counts),
            count=count,
            low=low + place * step,
            high=low + (place + 1) * step - whole,
        )
        for place, count in enumerate(counts)
    )
    median = statistics.median(values)
    middle = median + whole / 2  # of the number's own bar
    return Histogram(
        label, low, bars[-1].high, bars, statistics.fmean(values), median, 100 * (middle - low) / (bins * step)
    )


def _axis(marks: Iterable[float]) -> tuple[float, float]:
    """Round ends around the marks; zero is one of them unless the marks are close together and far from it."""
    low, high = min(marks), max(marks)
    size = max(abs(low), abs(high))
    if high - low < _NARROW * size and low * high > 0:
        step = _round_up((high - low) / 2 or size / 10)
        return step * math.floor(low / step), step * math.ceil(high / step + 1e-9)
    return -_round_up(-low) if low < 0 else 0.0, _round_up(high) if high > 0 else 0.0 if low < 0 else 1.0


def _round_up(value: float) -> float:
    """The next number with one or two digits that people count in."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * next(digit for digit in _ROUND if digit >= value / power - 1e-9)
