"""Captions in, scores out: the one function that turns captions and references into numbers."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from statistics import fmean
from typing import Literal

from grrcoca_cli.errors import UsageError
from grrcoca_cli.evaluation import ngrams
from grrcoca_cli.evaluation.tokenize import TOKENIZER, coco_tokens

Missing = Literal["error", "zero", "skip"]
"""What an image without a prediction does: ends the scoring, counts as an empty caption, or is left out."""

_NAMED_IDS = 5  # how many ids an error names
_SHORT = 4  # tokens; a shorter reference has no 4-gram, so even a perfect caption stays under CIDEr-D 10
_COMMON = 0.1  # share of short references from which on a note says so


@dataclass(frozen=True)
class Scores:
    """What a set of captions scored.

    Attributes:
        metrics: Corpus values: ``bleu1`` to ``bleu4`` and ``rouge_l`` in [0, 1], ``cider_d`` in [0, 10], in this order.
            None where a metric is not defined on the set; a note then says why.
        images: Count of scored images.
        references: Count of references that were scored against.
        notes: What a reader must know beside the numbers, a sentence each.
        per_image: ``bleu4``, ``rouge_l`` and, where it is defined, ``cider_d`` by image id. ``rouge_l`` and ``cider_d``
            average to the corpus values, ``bleu4`` does not.
        signature: Metrics, tokenizer, source of the idf, count of images and a hash of the references, as
            ``key:value`` joined by ``|``. Two numbers compare only where their signatures agree.
    """

    metrics: dict[str, float | None]
    images: int
    references: int
    notes: tuple[str, ...]
    per_image: dict[str, dict[str, float]]
    signature: str


def score(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], *, missing: Missing = "error"
) -> Scores:
    """Score one caption an image against one or more references.

    The order of ids and of references changes no number, and each caption is scored by itself but for CIDEr-D's
    inverse document frequencies: those come from all of ``references``, also where ``missing="skip"`` scores fewer
    images.

    Args:
        predictions: Caption by image id. An empty caption scores 0.
        references: References by image id. Empty ones are left out and counted.
        missing: What to do with an image that has references and no prediction.

    Raises:
        UsageError: No predictions; ids in only one of the two; an image whose references are all empty.
    """
    tokens = {str(image): coco_tokens(caption) for image, caption in predictions.items()}
    tokenized = {
        str(image): sorted(filter(None, map(coco_tokens, _captions(image, captions))))
        for image, captions in references.items()
    }
    absent = _check_ids(tokens.keys(), tokenized, missing)
    ids = sorted(tokenized.keys() - absent if missing == "skip" else tokenized)
    notes = _notes(tokens, ids, absent, missing, tokenized, given=sum(map(len, references.values())))

    candidates = [tokens.get(image, []) for image in ids]
    scored = [tokenized[image] for image in ids]
    corpus_bleu, image_bleu = ngrams.bleu(candidates, scored)
    rouge_l = ngrams.rouge_l(candidates, scored)
    metrics: dict[str, float | None] = {f"bleu{order}": value for order, value in enumerate(corpus_bleu, start=1)}
    metrics |= {"rouge_l": fmean(rouge_l), "cider_d": None}
    per_image = {
        image: {"bleu4": bleu4, "rouge_l": rouge}
        for image, bleu4, rouge in zip(ids, image_bleu[-1], rouge_l, strict=True)
    }
    if reason := _cider_undefined(list(tokenized.values())):
        notes.append(f"cider_d is not defined: {reason}")
    else:
        cider_d = _cider_by_id(tokens, tokenized)
        metrics["cider_d"] = fmean(cider_d[image] for image in ids)
        for image, row in per_image.items():
            row["cider_d"] = cider_d[image]
    return Scores(
        metrics, len(ids), sum(map(len, scored)), tuple(notes), per_image, _signature(references, images=len(ids))
    )


def _captions(image: str, captions: Sequence[str]) -> Sequence[str]:
    if isinstance(captions, str):  # a str is a sequence of str too, and would be scored letter by letter
        raise UsageError(f"the references of {image!r} are one string; give a list of captions")
    return captions


def _check_ids(predicted: Collection[str], tokenized: Mapping[str, list[list[str]]], missing: Missing) -> set[str]:
    """Refuse ids that do not fit; return those that have references and no prediction."""
    if not predicted:
        raise UsageError("there are no predictions to score; give at least one caption")
    if unknown := set(predicted) - tokenized.keys():
        raise UsageError(
            f"{_count(unknown, 'prediction')} without a reference: {_listed(unknown)}; check that the references are "
            "those of the same set and that the ids are written alike"
        )
    if empty := {image for image, captions in tokenized.items() if not captions}:
        raise UsageError(
            f"{_count(empty, 'image')} with empty references only: {_listed(empty)}; add a reference, or leave the "
            "image out of predictions and references"
        )
    absent = tokenized.keys() - set(predicted)
    if absent and missing == "error":
        raise UsageError(
            f"{_count(absent, 'image')} without a prediction: {_listed(absent)}; add the captions, or count them as "
            'empty ones with missing "zero"'
        )
    return absent


def _notes(
    tokens: Mapping[str, list[str]],
    ids: Sequence[str],
    absent: Collection[str],
    missing: Missing,
    tokenized: Mapping[str, list[list[str]]],
    *,
    given: int,
) -> list[str]:
    notes = []
    if absent and missing == "zero":
        notes.append(f"{_count(absent, 'image')} without a prediction, scored as an empty caption")
    if absent and missing == "skip":
        notes.append(f"{len(ids)} of {len(tokenized)} images are scored; the idf of cider_d comes from all of them")
    if empty := [image for image in tokens if not tokens[image]]:
        notes.append(f"{_count(empty, 'caption')} without a word, scored 0")
    lengths = [len(caption) for captions in tokenized.values() for caption in captions]
    if len(lengths) < given:
        notes.append(f"{given - len(lengths)} of {given} references are empty and left out")
    short = sum(length < _SHORT for length in lengths)
    if short >= _COMMON * len(lengths):
        notes.append(
            f"{short} of {len(lengths)} references are under {_SHORT} words: cider_d of a perfect caption of 1, 2 or 3 "
            "words is 2.5, 5 or 7.5, not 10"
        )
    return notes


def _cider_undefined(tokenized: Sequence[Sequence[list[str]]]) -> str | None:
    """Why CIDEr-D has no value on this set, if it has none."""
    if len(tokenized) == 1:
        return "it weighs words by how few images have them in their references, and there is one image"
    if ngrams.all_alike(tokenized):
        return "it weighs words by how few images have them in their references, and all references are the same"
    return None


def _cider_by_id(tokens: Mapping[str, list[str]], tokenized: Mapping[str, list[list[str]]]) -> dict[str, float]:
    """CIDEr-D of every image with references, scored or not, so that the idf is that of the whole set."""
    ids = sorted(tokenized)
    values = ngrams.cider_d([tokens.get(image, []) for image in ids], [tokenized[image] for image in ids])
    return dict(zip(ids, values, strict=True))


def _signature(references: Mapping[str, Sequence[str]], *, images: int) -> str:
    content = sorted((str(image), sorted(captions)) for image, captions in references.items())
    parts = {
        "bleu": "coco,closest,unsmoothed",
        "rouge_l": "coco,beta1.2",
        "cider_d": "coco,n4,sigma6",
        "pycocoevalcap": version("pycocoevalcap"),
        "tok": f"{TOKENIZER},nltk{version('nltk')}",
        "idf": f"references,{len(references)}",
        "n": str(images),
        "data": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12],
    }
    return "|".join(f"{key}:{value}" for key, value in parts.items())


def _count(things: Collection[str], name: str) -> str:
    return f"{len(things)} {name}" + ("s" if len(things) > 1 else "")


def _listed(ids: Collection[str]) -> str:
    rest = len(ids) - _NAMED_IDS
    return ", ".join(sorted(ids)[:_NAMED_IDS]) + (f" and {rest} more" if rest > 0 else "")
