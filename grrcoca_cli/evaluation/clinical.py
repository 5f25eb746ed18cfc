"""Clinical proxies: where a caption contradicts its references in side, negation, modality, plane or numbers.

Scores over n-grams hardly see a left that should be a right. These counts do, by a short lexicon and with their
denominators. They are a proxy: they read words and no pictures, know few of them, and are no clinical judgement.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from grrcoca_cli.evaluation import lexicon
from grrcoca_cli.evaluation.measures import Measure, ratio

KINDS = ("side", "negation", "modality", "plane", "numbers")

Mention = tuple[str, ...]
"""A family and a value: two values of one family can contradict each other."""

_OPPOSITE = {"left": "right", "right": "left"}
_SIDES = {"left": ["left"], "right": ["right"], "lt": ["left"], "rt": ["right"], "bilateral": ["left", "right"]}
_SIDES |= {"bilaterally": ["left", "right"], "leftward": ["left"], "rightward": ["right"], "bilat": ["left", "right"]}
_WORD = re.compile(r"\d+[.,]\d+|[^\W_]+|[.,;:()\[\]?!]")
_CLAUSE_END = frozenset(".;?!")
_MILLIMETRES = {"mm": 1.0, "millimeter": 1.0, "millimetre": 1.0, "cm": 10.0, "centimeter": 10.0, "centimetre": 10.0}
_SIZE = re.compile(
    r"(?<![\w.])(\d+(?:[.,]\d+)?(?:\s?(?:mm|cm)?\s?(?:x|×|by|\*)\s?\d+(?:[.,]\d+)?){0,3})\s?-?"
    r"(mm|cm|millimet(?:er|re)|centimet(?:er|re))s?\b"
)
_LEVEL = re.compile(r"\b([ctls])\s?(\d{1,2})(?:\s?[-–/]\s?([ctls])?(\d{1,2}))?\b")
_LEVELS = {"c": 7, "t": 12, "l": 5, "s": 5}


@dataclass(frozen=True)
class Mentions:
    """What one text says, by kind.

    Attributes:
        values: Mentions of each kind, for precision and recall.
        bound: Sides with the word they stand beside: ``(word, "left")``.
    """

    values: dict[str, frozenset[Mention]]
    bound: frozenset[Mention]


@dataclass(frozen=True)
class Proxy:
    """Counts of one kind over a set of captions.

    Attributes:
        images: Captions looked at.
        comparable: Images where the caption and a reference speak of the same (a side, one finding, a size): the
            denominator of the rate.
        conflicts: Of those, images where the caption contradicts every reference.
        rate: Conflicts over comparable; None without any.
        precision: Share of the caption's mentions that a reference makes, too.
        recall: Share of the references' mentions that the caption makes.
        supported, said, wanted: Counts of mentions: of both, of the captions, of the references; a finding counts with
            whether it is denied.
    """

    images: int
    comparable: int
    conflicts: int
    rate: float | None
    precision: float | None
    recall: float | None
    supported: int
    said: int
    wanted: int


@dataclass(frozen=True)
class ClinicalReport:
    """Proxies by kind, the kinds in conflict by image id, and a measure for each rate (``side_conflict`` ...)."""

    kinds: dict[str, Proxy]
    per_image: dict[str, tuple[str, ...]]
    measures: tuple[Measure, ...]

    def as_json(self) -> dict[str, Any]:
        """Counts and shares by kind."""
        return {kind: asdict(proxy) for kind, proxy in self.kinds.items()}


def clinical_proxies(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> ClinicalReport:
    """Hold every caption against its references.

    Args:
        predictions: Caption by image id.
        references: At least one reference for each of these ids.
    """
    ids = sorted(predictions)
    counts = np.zeros((len(KINDS), len(ids), 5))  # conflict, comparable, supported, said, wanted
    per_image: dict[str, tuple[str, ...]] = {}
    for row, image in enumerate(ids):
        ours, theirs = mentions(predictions[image]), [mentions(text) for text in references[image]]
        conflicting = conflicts(ours, theirs)
        per_image[image] = tuple(conflicting)
        for place, kind in enumerate(KINDS):
            said, wanted = ours.values[kind], _union(other.values[kind] for other in theirs)
            shared = len(said & wanted)
            comparable = bool(said and wanted and {mention[0] for mention in said} & {mention[0] for mention in wanted})
            counts[place, row] = kind in conflicting, comparable, shared, len(said), len(wanted)
    sums = counts.sum(axis=1)
    kinds = {
        kind: Proxy(
            images=len(ids),
            comparable=int(total[1]),
            conflicts=int(total[0]),
            rate=_share(total[0], total[1]),
            precision=_share(total[2], total[3]),
            recall=_share(total[2], total[4]),
            supported=int(total[2]),
            said=int(total[3]),
            wanted=int(total[4]),
        )
        for kind, total in zip(KINDS, sums, strict=True)
    }
    measures = tuple(
        Measure(f"{kind}_conflict", counts[place, :, :2], ratio, higher_is_better=False)
        for place, kind in enumerate(KINDS)
    )
    return ClinicalReport(kinds, per_image, measures)


def conflicts(ours: Mentions, theirs: Sequence[Mentions]) -> list[str]:
    """The kinds in which a caption contradicts its references: it says what none of them says, of what they speak of.

    A kind that only one side mentions is no conflict. A second, unsupported size beside a supported one is.
    """
    wanted = {kind: _union(other.values[kind] for other in theirs) for kind in KINDS}
    bound = _union(other.bound for other in theirs)
    found = []
    if _sides_conflict(ours, wanted["side"], bound):
        found.append("side")
    found += [kind for kind in KINDS[1:] if _unsupported(ours.values[kind], wanted[kind], kind)]
    return found


def _sides_conflict(ours: Mentions, wanted: frozenset[Mention], bound: frozenset[Mention]) -> bool:
    said = ours.values["side"]
    if not said or not wanted:
        return False
    if not said & wanted:
        return True
    return any(
        (word, side) not in bound and (word, _OPPOSITE[side]) in bound and (word, _OPPOSITE[side]) not in ours.bound
        for word, side in ours.bound
    )


def _unsupported(said: frozenset[Mention], wanted: frozenset[Mention], kind: str) -> bool:
    """Whether something is said of a family that the references speak of, and never so."""
    families = {mention[0] for mention in wanted}
    strange = [mention for mention in said - wanted if mention[0] in families]
    if kind in ("modality", "plane"):  # several may be named: a PET/CT shows both
        return bool(strange) and any(not _of(said, family) & _of(wanted, family) for family, *_ in strange)
    return bool(strange)


def _of(mentions_: frozenset[Mention], family: str) -> frozenset[Mention]:
    return frozenset(mention for mention in mentions_ if mention[0] == family)


def mentions(text: str) -> Mentions:
    """What a caption or a reference says, of every kind."""
    text = text.lower().replace("’", "'")
    words = [lexicon.SPELLINGS.get(word, word) for word in _WORD.findall(text)]
    sides, bound = _sides(words)
    values = {
        "side": sides,
        "negation": _findings(words),
        "modality": frozenset(("modality", name) for name in _named(text, _modalities())),
        "plane": frozenset(
            [("plane", name) for name in _named(text, _planes())] + [("view", name) for name in _named(text, _views())]
        ),
        "numbers": frozenset([*_sizes(text), *_levels(text)]),
    }
    return Mentions(values, bound)


def modality_of(references: Sequence[str]) -> str:
    """The modality that the references name first, in the lexicon's words; empty where they name none."""
    for text in references:
        places = [
            (found.start(), name) for name, pattern in _modalities().items() if (found := pattern.search(text.lower()))
        ]
        if places:
            return min(places)[1]
    return ""


def _sides(words: Sequence[str]) -> tuple[frozenset[Mention], frozenset[Mention]]:
    """Sides, and sides with the words they belong to."""
    sides: set[Mention] = set()
    bound: set[Mention] = set()
    for place, word in enumerate(words):
        if word not in _SIDES:
            continue
        after = words[place + 1] if place + 1 < len(words) else ""
        if after in lexicon.NOT_SIDES.get(word, ()):
            continue
        for side in _SIDES[word]:
            sides.add(("side", side))
            bound.update((neighbour, side) for neighbour in _neighbours(words, place))
    return frozenset(sides), frozenset(bound)


def _neighbours(words: Sequence[str], place: int) -> list[str]:
    """Up to three content words behind a side word in its clause; where there are none, two before it."""
    behind: list[str] = []
    for word in words[place + 1 : place + 8]:
        if word in _CLAUSE_END or word in ",()[]" or word in _SIDES or len(behind) == 3:
            break
        if word not in _stop_words() and word != ":":
            behind.append(word)
    if behind:
        return behind
    near = reversed(words[max(0, place - 12) : place])
    return [word for word in near if word not in _stop_words() and word not in ".,;:()[]?!"][:2]


def _findings(words: Sequence[str]) -> frozenset[Mention]:
    """Findings of the lexicon, each ``present`` or ``denied``."""
    known = _finding_words()
    found: set[Mention] = set()
    for place, word in enumerate(words):
        finding = word if word in known else word.removesuffix("s") if word.removesuffix("s") in known else ""
        if finding:
            found.add((finding, "denied" if _denied(words, place) else "present"))
    return frozenset(found)


def _denied(words: Sequence[str], place: int) -> bool:
    for at in range(place - 1, max(-1, place - 8), -1):
        if words[at] in _CLAUSE_END or words[at] in ("but", "with"):
            break
        is_denial = words[at] in lexicon.DENIALS or (words[at] == "free" and words[at + 1] in ("of", "from"))
        is_kind = words[at] == "negative" and at > 0 and words[at - 1] in lexicon.NEGATIVE_KINDS
        if is_denial and not is_kind and words[at + 1] not in lexicon.NO_DENIALS:
            return True
    behind = []
    for word in words[place + 1 : place + 5]:
        if word in _CLAUSE_END or word == ",":
            break
        behind.append(word)
    return any(word in lexicon.LATE_DENIALS for word in behind) or any(
        first in ("is", "are", "was", "were") and second == "not" for first, second in pairwise(behind)
    )


def _sizes(text: str) -> list[Mention]:
    """Lengths in millimetres."""
    found: list[Mention] = []
    for numbers, unit in _SIZE.findall(text):
        for number in re.findall(r"\d+(?:[.,]\d+)?", numbers):
            value = float(number.replace(",", ".")) * _MILLIMETRES[unit]
            found.append(("size", f"{value:.4g}"))
    return found


def _levels(text: str) -> list[Mention]:
    """Vertebral levels: ``l4-l5``, ``L4/5`` and ``C3``; T1 and T2 are left to magnetic resonance."""
    found: list[Mention] = []
    for region, first, second_region, second in _LEVEL.findall(text):
        for letter, number in ((region, first), (second_region or region, second)):
            is_weighting = letter == "t" and number in ("1", "2")
            if number and not is_weighting and 1 <= int(number) <= _LEVELS[letter]:
                found.append(("level", f"{letter}{number}"))
    return found


def _named(text: str, patterns: Mapping[str, re.Pattern[str]]) -> list[str]:
    return [name for name, pattern in patterns.items() if pattern.search(text)]


def _pattern(entry: str, wrap: Callable[[str], str] = lambda words: rf"(?<!\w)(?:{words})(?!\w)") -> re.Pattern[str]:
    words, *patterns = entry.split("|", 1)
    return re.compile(wrap("|".join([*words.split(), *patterns])))


@cache
def _modalities() -> dict[str, re.Pattern[str]]:
    return {name: _pattern(entry) for name, entry in lexicon.MODALITIES.items()}


@cache
def _planes() -> dict[str, re.Pattern[str]]:
    return {name: _pattern(entry) for name, entry in lexicon.PLANES.items()}


@cache
def _views() -> dict[str, re.Pattern[str]]:
    return {
        name: _pattern(entry, lambda words: rf"(?<!\w)(?:{words})[ -]{lexicon.VIEW_WORDS}\b")
        for name, entry in lexicon.VIEWS.items()
    }


@cache
def _stop_words() -> frozenset[str]:
    return frozenset(lexicon.STOP_WORDS.split())


@cache
def _finding_words() -> frozenset[str]:
    return frozenset(lexicon.FINDINGS.split())


def _union(sets: Iterable[frozenset[Mention]]) -> frozenset[Mention]:
    return frozenset().union(*sets)


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
