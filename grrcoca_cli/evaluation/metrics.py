"""Captions in, scores out: the one function that turns captions and references into numbers."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from grrcoca_cli.errors import UsageError
from grrcoca_cli.evaluation import tokenize
from grrcoca_cli.evaluation.bleu import bleu
from grrcoca_cli.evaluation.checks import Missing as Missing
from grrcoca_cli.evaluation.checks import by_text_id, check_ids, notes_on_predictions, notes_on_references
from grrcoca_cli.evaluation.chrf import chrf
from grrcoca_cli.evaluation.cider import cider_d
from grrcoca_cli.evaluation.idf import Idf as Idf
from grrcoca_cli.evaluation.idf import dump_idf as dump_idf
from grrcoca_cli.evaluation.idf import read_idf as read_idf
from grrcoca_cli.evaluation.measures import Measure
from grrcoca_cli.evaluation.ngrams import pair_ngrams
from grrcoca_cli.evaluation.rouge import imageclef_rouge1, rouge_l

METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d", "imageclef_rouge1", "chrf")
PER_IMAGE = ("bleu4", "rouge_l", "cider_d", "imageclef_rouge1", "chrf")
METRICS_VERSION = 1
"""Of the definitions of metrics and tokenizers, for signatures: goes up with every change of a number."""


@dataclass(frozen=True)
class Scores:
    """What a set of captions scored.

    Attributes:
        metrics: Corpus values by `METRICS`, in this order: ``chrf`` from 0 to 100, ``cider_d`` from 0 to 10, all others
            from 0 to 1. None where a metric is not defined on the set; a note then says why.
        images: Count of scored images.
        references: Count of references that were scored against.
        notes: What a reader must know beside the numbers, a sentence each.
        per_image: `PER_IMAGE`, as far as they are defined, by image id. ``rouge_l``, ``cider_d`` and
            ``imageclef_rouge1`` average to the corpus values, ``bleu4`` and ``chrf`` do not.
        signature: Metrics, tokenizer, source of the idf, count of images and a hash of the references, as
            ``key:value`` joined by ``|``. Two numbers compare only where their signatures agree.
        ids: The scored images, sorted.
        measures: Each metric that is defined, its parts in the order of ``ids``.
    """

    metrics: dict[str, float | None]
    images: int
    references: int
    notes: tuple[str, ...]
    per_image: dict[str, dict[str, float]]
    signature: str
    ids: tuple[str, ...]
    measures: tuple[Measure, ...]


class _Caption(NamedTuple):
    text: str
    tokens: list[str]


def score(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    missing: Missing = "error",
    tokenizer: str = "coco",
    idf: Idf | None = None,
) -> Scores:
    """Score one caption an image against one or more references.

    The order of ids and of references changes no number, and each caption is scored by itself but for CIDEr-D's
    inverse document frequencies: those come from all of ``references``, also where ``missing="skip"`` scores fewer
    images.

    Args:
        predictions: Caption by image id, a text or a number. An empty caption scores 0.
        references: References by image id. Empty ones are left out and counted.
        missing: What to do with an image that has references and no prediction.
        tokenizer: For BLEU, ROUGE-L and CIDEr-D; a name that `tokenize.tokenizer` knows.
        idf: Saved document frequencies for CIDEr-D instead of those of ``references``.

    Raises:
        UsageError: No predictions; ids in only one of the two, or twice in one; an image whose references are all
            empty; an unknown tokenizer, or another one than that of ``idf``.
    """
    split = tokenize.tokenizer(tokenizer)
    if idf is not None and idf.tokenizer != tokenizer:
        raise UsageError(f"the saved idf is of tokenizer {idf.tokenizer!r}, not {tokenizer!r}; save it with that one")
    ours = {image: _caption(text, split) for image, text in by_text_id(predictions, "predictions").items()}
    theirs = {
        image: _usable(image, captions, split) for image, captions in by_text_id(references, "references").items()
    }
    absent = check_ids(ours.keys(), theirs, missing)
    notes = notes_on_predictions({image: caption.tokens for image, caption in ours.items()}, absent, missing)
    lengths = [len(caption.tokens) for captions in theirs.values() for caption in captions]
    notes += notes_on_references(lengths, given=sum(map(len, references.values())))

    ours |= dict.fromkeys(absent, _Caption("", []))
    ids = sorted(theirs.keys() - absent if missing == "skip" else theirs)
    measures = _measures(ours, theirs, ids, idf)
    if all(measure.name != "cider_d" for measure in measures):
        notes.append(f"cider_d is not defined: {_why_undefined(len(theirs), idf)}")
    return Scores(
        metrics=dict.fromkeys(METRICS) | {measure.name: measure.value for measure in measures},
        images=len(ids),
        references=sum(len(theirs[image]) for image in ids),
        notes=tuple(notes),
        per_image=_per_image(measures, ids),
        signature=_signature(references, images=len(ids), tokenizer=tokenizer, idf=idf),
        ids=tuple(ids),
        measures=tuple(measures),
    )


def _caption(text: str, split: Callable[[str], list[str]]) -> _Caption:
    """A caption without a word is empty for the metrics that take no tokens, too."""
    tokens = split(text)
    return _Caption(text if tokens else "", tokens)


def _usable(image: str, captions: Sequence[str], split: Callable[[str], list[str]]) -> list[_Caption]:
    """The references that have a word, sorted: sums of them then do not depend on their order in a file."""
    if isinstance(captions, str):  # a str is a sequence of str too, and would be scored letter by letter
        raise UsageError(f"the references of {image!r} are one string; give a list of captions")
    return [caption for caption in (_caption(text, split) for text in sorted(captions)) if caption.tokens]


def _measures(
    ours: Mapping[str, _Caption], theirs: Mapping[str, Sequence[_Caption]], ids: Sequence[str], idf: Idf | None
) -> list[Measure]:
    """All metrics that are defined, in the order of `METRICS`, with parts for ``ids`` only."""
    every = sorted(theirs)
    pairs = pair_ngrams(
        [ours[image].tokens for image in every],
        [[caption.tokens for caption in theirs[image]] for image in every],
        known=[ngram.split(" ") for ngram in idf.counts] if idf else (),
    )
    place = {image: row for row, image in enumerate(every)}
    rows = [place[image] for image in ids]
    over_all = [*bleu(pairs), *filter(None, [cider_d(pairs, idf)])]

    candidates, references = [ours[image] for image in ids], [theirs[image] for image in ids]
    texts = [caption.text for caption in candidates], [[caption.text for caption in several] for several in references]
    words = tokenize.tokenizer("imageclef")
    over_scored = [
        rouge_l([each.tokens for each in candidates], [[each.tokens for each in several] for several in references]),
        imageclef_rouge1(list(map(words, texts[0])), [list(map(words, several)) for several in texts[1]]),
        chrf(*texts),
    ]
    measures = [*(replace(measure, parts=measure.parts[rows]) for measure in over_all), *over_scored]
    return sorted(measures, key=lambda measure: METRICS.index(measure.name))


def _per_image(measures: Sequence[Measure], ids: Sequence[str]) -> dict[str, dict[str, float]]:
    values = {measure.name: measure.finish(measure.parts).tolist() for measure in measures if measure.name in PER_IMAGE}
    return {image: {name: values[name][row] for name in values} for row, image in enumerate(ids)}


def _why_undefined(images: int, idf: Idf | None) -> str:
    if idf:
        return "every word of the references is in all images that the saved idf comes from"
    alike = "there is one image" if images == 1 else "all references are the same"
    return f"it weighs words by how few images have them in their references, and {alike}"


def _signature(references: Mapping[str, Sequence[str]], *, images: int, tokenizer: str, idf: Idf | None) -> str:
    content = sorted((str(image), sorted(captions)) for image, captions in references.items())
    parts = {
        "bleu": "coco,closest,unsmoothed",
        "rouge_l": "coco,beta1.2",
        "cider_d": "coco,n4,sigma6",
        "imageclef_rouge1": "f,best",
        "chrf": "nc6,nw0,beta2,mixed",
        "metrics": f"grrcoca{METRICS_VERSION}",
        "tok": f"{tokenizer}.{tokenize.TOKENIZER_VERSION}",
        "idf": f"{idf.source},{idf.images}" if idf else f"references,{len(references)}",
        "n": str(images),
        "data": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12],
    }
    return "|".join(f"{key}:{value}" for key, value in parts.items())
