"""How a study's numbers look in Markdown."""

import math
from collections.abc import Sequence

from grrcoca_cli.evaluation.statistics import Interval


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns that hold numbers stand to the right."""
    holds_numbers = [any(row[place][:1] in tuple("+-<[0123456789") for row in rows) for place in range(len(head))]
    lines = [head, ["---:" if numbers else "---" for numbers in holds_numbers], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float) -> str:
    """Four digits behind the point; a dash where it is not defined."""
    return f"{value:.4f}" if math.isfinite(value) else "-"


def span(interval: Interval | None, *, signed: bool = False, unit: str = "") -> str:
    """Both ends in brackets, or nothing."""
    if interval is None:
        return ""
    digits = "2f" if unit else "4f"
    low, high = (f"{end:{'+' if signed else ''}.{digits}}" for end in (interval.low, interval.high))
    return f"[{low}, {high}]{unit}"


def p_value(p: float | None) -> str:
    """Three digits, or that it is smaller."""
    return "" if p is None or not math.isfinite(p) else "< .001" if p < 0.001 else f"{p:.3f}"
