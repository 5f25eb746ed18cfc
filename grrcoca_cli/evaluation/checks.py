"""Ids of predictions and references held against each other, and what a reader of the scores must know of the set."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeVar

from grrcoca_cli.errors import UsageError

Missing = Literal["error", "zero", "skip"]
"""What an image without a prediction does: ends the scoring, counts as an empty caption, or is left out."""

_NAMED_IDS = 5  # how many ids an error names
_SHORT = 4  # tokens; a shorter reference has no 4-gram, so even a perfect caption stays under CIDEr-D 10
_COMMON = 0.1  # share of short references from which on a note says so

Value = TypeVar("Value")


def by_text_id(entries: Mapping[str, Value], name: str) -> dict[str, Value]:
    """The same entries under ids that are texts, for callers whose ids are numbers.

    Raises:
        UsageError: An id that is there as a number and as a text.
    """
    renamed = {str(image): value for image, value in entries.items()}
    if len(renamed) < len(entries):
        twice = {image for image, count in Counter(map(str, entries)).items() if count > 1}
        raise UsageError(f"{_count(twice, 'id')} twice among the {name}, as number and as text: {_listed(twice)}")
    return renamed


def check_ids(predicted: Collection[str], usable: Mapping[str, Sequence[object]], missing: Missing) -> set[str]:
    """Refuse ids that do not fit.

    Args:
        predicted: Ids of the predictions.
        usable: The references that are not empty, by image id.
        missing: What to do with an image without a prediction.

    Returns:
        The ids that have references and no prediction.

    Raises:
        UsageError: As `metrics.score`.
    """
    if not predicted:
        raise UsageError("there are no predictions to score; give at least one caption")
    if unknown := set(predicted) - usable.keys():
        raise UsageError(
            f"{_count(unknown, 'prediction')} without a reference: {_listed(unknown)}; ids of the references: "
            f"{_listed(usable.keys() - set(predicted) or usable.keys())}; check that the references are those of the "
            "same set and that the ids are written alike"
        )
    if empty := {image for image, captions in usable.items() if not captions}:
        raise UsageError(
            f"{_count(empty, 'image')} with empty references only: {_listed(empty)}; add a reference, or leave the "
            "image out of predictions and references"
        )
    absent = usable.keys() - set(predicted)
    if absent and missing == "error":
        raise UsageError(
            f"{_count(absent, 'image')} without a prediction: {_listed(absent)}; add the captions, or count them as "
            "empty ones with --missing zero"
        )
    return absent


def notes_on_predictions(tokens: Mapping[str, Sequence[str]], absent: Collection[str], missing: Missing) -> list[str]:
    """Sentences on images without a prediction, and on predictions without a word."""
    notes = []
    if absent and missing == "zero":
        notes.append(f"{_count(absent, 'image')} without a prediction, scored as an empty caption")
    if absent and missing == "skip":
        notes.append(f"{len(tokens)} of {len(tokens) + len(absent)} images are scored")
    if empty := [image for image in tokens if not tokens[image]]:
        notes.append(f"{_count(empty, 'caption')} without a word, scored 0")
    return notes


def notes_on_references(lengths: Sequence[int], given: int) -> list[str]:
    """Sentences on empty and on short references.

    Args:
        lengths: Tokens in each reference that is not empty.
        given: Count of references before empty ones were left out.
    """
    notes = []
    if len(lengths) < given:
        notes.append(f"{given - len(lengths)} of {given} references are empty and left out")
    short = sum(length < _SHORT for length in lengths)
    if short >= _COMMON * len(lengths):
        notes.append(
            f"{short} of {len(lengths)} references are under {_SHORT} words: cider_d of a perfect caption of 1, 2 or 3 "
            "words is 2.5, 5 or 7.5, not 10"
        )
    return notes


def _count(things: Collection[str], name: str) -> str:
    return f"{len(things)} {name}" + ("s" if len(things) > 1 else "")


def _listed(ids: Collection[str]) -> str:
    rest = len(ids) - _NAMED_IDS
    return ", ".join(sorted(ids)[:_NAMED_IDS]) + (f" and {rest} more" if rest > 0 else "")
