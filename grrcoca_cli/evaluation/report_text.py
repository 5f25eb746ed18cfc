"""What the report says in words: which differences are real, what stands out, why a number is missing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from grrcoca_cli.evaluation.judge import Evaluation, Result
from grrcoca_cli.evaluation.report_plots import IntervalPlot

OURS, THEIRS, APART, UNCLEAR, EQUAL = "ours better", "theirs better", "not told apart", "unclear", "the same"
"""What a paired comparison says of a metric."""

BETTER, WORSE = "better", "worse"
"""What an interval says beside the score of random captions."""

_SURE = 0.05

DIVERSITY = {
    "mean_length": "tokens in a caption, on average",
    "length_ratio": "caption length over reference length",
    "empty": "empty captions, share",
    "distinct_captions": "distinct captions, share",
    "most_frequent": "most frequent caption, share",
    "distinct1": "distinct words over all words",
    "distinct2": "distinct word pairs over all pairs",
    "repeated4": "captions that repeat four words, share",
    "copied": "word for word in the training set, share",
}


@dataclass(frozen=True)
class Row:
    """A metric as the report shows it.

    Attributes:
        name: As in `Evaluation.results`.
        label: For people.
        result: Its numbers.
        headline: Whether it stands at the top.
        proxy: Whether it is a rate of clinical conflicts.
        detail: Why there is no value, or what a rate is a share of; empty where there is nothing to say.
        plot: Value, interval, floor.
        change: The difference to the captions compared with.
        verdict: What that difference says; empty without a comparison.
    """

    name: str
    label: str
    result: Result
    headline: bool
    proxy: bool
    detail: str
    plot: IntervalPlot | None
    change: IntervalPlot | None
    verdict: str

    @property
    def higher_is_better(self) -> bool:
        """Which way its arrow points."""
        return self.result.higher_is_better


def verdict(result: Result) -> str:
    """What the paired comparison says: interval and sign-flip test must both see a difference."""
    change = result.difference
    if change is None:
        return ""
    if change.value == 0 and change.p == 1:
        return EQUAL
    small_p = change.p < _SURE
    off_zero = small_p if change.interval is None else change.interval.low > 0 or change.interval.high < 0
    if off_zero != small_p:
        return UNCLEAR
    if not off_zero:
        return APART
    return OURS if (change.value > 0) == result.higher_is_better else THEIRS


def detail(name: str, result: Result, evaluation: Evaluation) -> str:
    """What must stand beside a value, or in its place."""
    proxy = evaluation.clinical.kinds.get(name.removesuffix("_conflict"))
    if proxy is not None and not proxy.comparable:
        return "no caption speaks of it where a reference does"
    if proxy is not None:
        return f"{proxy.conflicts} of {proxy.comparable} comparable images"
    if result.value is not None:
        return ""
    start = f"{name} is not defined: "
    reasons = [note.removeprefix(start) for note in evaluation.notes if note.startswith(start)]
    return "not defined: " + (reasons[0] if reasons else "see the notes")


def in_short(rows: Sequence[Row], evaluation: Evaluation) -> list[str]:
    """The few sentences for a reader who reads no table."""
    return [*_against_chance(rows), *_in_all(rows), *_conflicts(evaluation), *_variety(evaluation.diversity)]


def _in_all(rows: Sequence[Row]) -> list[str]:
    """The comparison in a sentence."""
    count = Counter(row.verdict for row in rows if row.verdict)
    if not count:
        return []
    words = {THEIRS: "worse in", APART: "not told apart in", UNCLEAR: "unclear in", EQUAL: "exactly the same in"}
    rest = [f"{text} {count[key]}" for key, text in words.items() if count[key]]
    best = f"better in {count[OURS]} of {count.total()} metrics and proxies"
    return [f"Beside the captions compared with: {_listed([best, *rest])}."]


def compared(rows: Sequence[Row]) -> list[str]:
    """Which metrics tell the two systems apart, a sentence each kind; nothing without a comparison."""
    of = {key: [row.label for row in rows if row.verdict == key] for key in (OURS, THEIRS, APART, UNCLEAR, EQUAL)}
    found = []
    if of[OURS]:
        found.append(f"Ours is better: {_listed(of[OURS])}.")
    if of[THEIRS]:
        found.append(f"Theirs is better: {_listed(of[THEIRS])}.")
    if of[APART]:
        found.append(f"Not told apart on these images, which does not mean equal: {_listed(of[APART])}.")
    if of[UNCLEAR]:
        found.append(f"Unclear, as interval and test disagree: {_listed(of[UNCLEAR])}.")
    if of[EQUAL]:
        found.append(f"Exactly the same: {_listed(of[EQUAL])}.")
    return found


def _against_chance(rows: Sequence[Row]) -> list[str]:
    held = [row for row in rows if not row.proxy and None not in (row.result.interval, row.result.floor)]
    if not held:
        return []
    of = {key: [row.label for row in held if against_floor(row.result) == key] for key in (BETTER, WORSE, "")}
    if len(of[BETTER]) == len(held):
        return [f"Better than random captions of the same references in {_metrics(len(held))}."]
    found = []
    if of[WORSE]:
        found.append(f"Worse than a random caption of the same references: {_listed(of[WORSE])}.")
    if of[""]:
        found.append(f"Not clearly better than random captions of the same references: {_listed(of[''])}.")
    return found


def against_floor(result: Result) -> str:
    """Whether the whole interval is `BETTER` or `WORSE` than what random captions score; empty where it is neither."""
    if result.interval is None or result.floor is None:
        return ""
    above, below = result.interval.low > result.floor, result.interval.high < result.floor
    if not result.higher_is_better:
        above, below = below, above
    return BETTER if above else WORSE if below else ""


def _conflicts(evaluation: Evaluation) -> list[str]:
    counted = [
        f"{kind} {proxy.conflicts} of {proxy.comparable}"
        for kind, proxy in evaluation.clinical.kinds.items()
        if proxy.conflicts
    ]
    return [f"Captions that contradict their references (a proxy): {_listed(counted)}."] if counted else []


def _variety(diversity: dict[str, float]) -> list[str]:
    if not diversity:
        return []
    distinct, frequent, empty = (diversity[name] for name in ("distinct_captions", "most_frequent", "empty"))
    if distinct == 1:
        return ["No caption is said twice."]
    said = f"Distinct captions: {100 * distinct:.0f} %; the most frequent one makes up {100 * frequent:.1f} %"
    return [f"{said}; {100 * empty:.1f} % are empty." if empty else f"{said}."]


def _metrics(count: int) -> str:
    return "the one metric" if count == 1 else f"all {count} metrics"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
