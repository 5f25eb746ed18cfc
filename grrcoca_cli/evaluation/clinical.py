"""Clinical proxies: where a caption contradicts its references in side, negation, modality, plane or numbers.

Scores over n-grams hardly see a left that should be a right. These counts do, by a short lexicon and with their
denominators. They are a proxy: they read words and no pictures, know few of them, and are no clinical judgement.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from grrcoca_cli.evaluation import lexicon
from grrcoca_cli.evaluation.measures import Measure, ratio
from grrcoca_cli.evaluation.mentions import KINDS as KINDS
from grrcoca_cli.evaluation.mentions import OPPOSITE, Mention, Mentions, words_of
from grrcoca_cli.evaluation.mentions import mentions as mentions
from grrcoca_cli.evaluation.mentions import modality_of as modality_of


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

    To say more than the references, or less, is no conflict; another size in the place of theirs is.
    """
    wanted = {kind: _union(other.values[kind] for other in theirs) for kind in KINDS}
    found = [kind for kind in KINDS if kind != "side" and _contradict(ours.values[kind], wanted[kind], kind)]
    if _sides_conflict(ours, wanted["side"], _union(other.bound for other in theirs)):
        found.insert(0, "side")
    return found


def _sides_conflict(ours: Mentions, wanted: frozenset[Mention], bound: frozenset[Mention]) -> bool:
    said = ours.values["side"]
    if not said or not wanted:
        return False
    if not said & wanted:
        return True
    if len(wanted) == 1 and any(
        (word, "both") in ours.bound for word, _ in bound if word in words_of(lexicon.FINDINGS)
    ):
        return True  # bilateral effusions, where the references know of a left one only
    return any(
        side in OPPOSITE
        and (word, side) not in bound
        and (word, OPPOSITE[side]) in bound
        and (word, OPPOSITE[side]) not in ours.bound
        for word, side in ours.bound
    )


def _contradict(said: frozenset[Mention], wanted: frozenset[Mention], kind: str) -> bool:
    """Whether caption and references differ in a family that both speak of."""
    for family in {mention[0] for mention in said} & {mention[0] for mention in wanted}:
        ours, theirs = _of(said, family), _of(wanted, family)
        if kind not in ("modality", "plane"):
            differ = not (ours <= theirs or theirs <= ours)
        else:  # several may be named: a PET/CT shows both
            kindred = any({ours_, theirs_} in lexicon.KINDRED_MODALITIES for _, ours_ in ours for _, theirs_ in theirs)
            differ = not (ours & theirs or kindred)
        if differ:
            return True
    return False


def _of(mentions_: frozenset[Mention], family: str) -> frozenset[Mention]:
    return frozenset(mention for mention in mentions_ if mention[0] == family)


def _union(sets: Iterable[frozenset[Mention]]) -> frozenset[Mention]:
    return frozenset().union(*sets)


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
