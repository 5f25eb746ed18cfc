"""Everything that is said of a set of captions: scores with intervals and floor, a comparison, groups, proxies."""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from grrcoca_cli.errors import UsageError
from grrcoca_cli.evaluation.calibration import spearman
from grrcoca_cli.evaluation.clinical import ClinicalReport, clinical_proxies, modality_of
from grrcoca_cli.evaluation.diversity import diversity
from grrcoca_cli.evaluation.lexicon import LEXICON_VERSION
from grrcoca_cli.evaluation.measures import Measure
from grrcoca_cli.evaluation.metrics import Idf, Missing, Scores, score
from grrcoca_cli.evaluation.statistics import (
    Difference,
    Interval,
    bootstrap_intervals,
    by_group,
    compare,
    shuffled,
)
from grrcoca_cli.evaluation.tokenize import tokenizer

FROM_CAPTIONS = "modality"
"""The one grouping that needs no column: it is read out of the references."""

LOWER_IS_BETTER = frozenset(["ece", "image_to_text_median_rank", "text_to_image_median_rank"])
"""Of the numbers without a measure, which would say so itself."""

UNADJUSTED = "p values are not adjusted for the number of metrics: decide beforehand which one counts"


@dataclass(frozen=True)
class Settings:
    """How to judge; see `config.EvalConfig`."""

    tokenizer: str = "coco"
    group_by: str = ""
    cluster_by: str = ""
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class ModelSide:
    """What only a model can say of a data set.

    Attributes:
        ids: Of the images, in the order of the measures' parts.
        measures: Losses, perplexities, retrieval.
        values: Numbers without an interval (median ranks, calibration).
        logprobs: Mean log-probability of each predicted caption's tokens, by id.
        notes: What a reader must know of them.
        signature: What they depend on, as ``key:value`` joined by ``|``.
    """

    ids: Sequence[str] = ()
    measures: Sequence[Measure] = ()
    values: Mapping[str, float | None] = field(default_factory=dict)
    logprobs: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()
    signature: str = ""


@dataclass(frozen=True)
class Result:
    """One number and how sure it is.

    Attributes:
        value: None where the metric is not defined on the set; a note says why.
        interval: 95 %, from resampled images; None without resampling.
        floor: The same metric for random captions of the references.
        other: The same metric of the captions compared with.
        difference: Ours less theirs, paired by image.
        higher_is_better: False for losses.
    """

    value: float | None
    interval: Interval | None = None
    floor: float | None = None
    other: float | None = None
    difference: Difference | None = None
    higher_is_better: bool = True


@dataclass(frozen=True)
class Group:
    """The images that share a value of the grouping column; ``values`` by metric, with the idf of the whole set."""

    name: str
    images: int
    values: dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        results: By metric, those of the model first.
        images: Count of scored images.
        ids: Their ids, sorted.
        per_image: Scores by image id.
        groups: Largest first; empty without a grouping.
        clinical: Conflicts of side, negation, modality, plane and numbers.
        diversity: Lengths and variety of the captions.
        notes: What a reader must know, a sentence each.
        signature: How the numbers came about.
    """

    results: dict[str, Result]
    images: int
    ids: tuple[str, ...]
    per_image: dict[str, dict[str, float]]
    groups: tuple[Group, ...]
    clinical: ClinicalReport
    diversity: dict[str, float]
    notes: tuple[str, ...]
    signature: str


def judge(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    settings: Settings,
    *,
    missing: Missing = "error",
    idf: Idf | None = None,
    columns: Mapping[str, Mapping[str, str]] | None = None,
    model: ModelSide | None = None,
    other: Mapping[str, str] | None = None,
) -> Evaluation:
    """Score captions against references, with everything that helps to read the scores.

    Args:
        predictions: Caption by image id.
        references: References by image id.
        settings: How.
        missing: As in `metrics.score`.
        idf: Saved document frequencies for CIDEr-D; from ``references`` if None.
        columns: Further columns by image id, for groups and clusters.
        model: Numbers of the model that wrote the captions; its ids are those that are scored.
        other: Captions of another system, of the same images.

    Raises:
        UsageError: As `metrics.score`; a grouping or cluster column that is not there.
    """
    scores = score(predictions, references, missing=missing, tokenizer=settings.tokenizer, idf=idf)
    ids, columns = scores.ids, columns or {}
    scored = {image: predictions.get(image, "") for image in ids}
    clinical = clinical_proxies(scored, {image: references[image] for image in ids})
    measures = [*_in_order(model, ids), *scores.measures, *clinical.measures]
    clusters = _clusters(columns, ids, settings.cluster_by) if settings.cluster_by else None
    intervals: Mapping[str, Interval | None] = {}
    if settings.resamples:
        intervals = bootstrap_intervals(measures, clusters=clusters, resamples=settings.resamples, seed=settings.seed)
    floor = _floor(ids, references, settings, idf)
    differences: Mapping[str, Difference] = {}
    other_values: Mapping[str, float | None] = {}
    if other is not None:
        theirs, other_values = _other(other, ids, references, settings, missing, idf)
        ours = [measure for measure in measures if measure.name in {m.name for m in theirs}]
        defined = [measure for measure in ours if None not in (_finite(measure.value), other_values[measure.name])]
        differences = compare(defined, theirs, clusters=clusters, resamples=settings.resamples, seed=settings.seed)
    higher = {measure.name: measure.higher_is_better for measure in measures}
    values: dict[str, float | None] = {measure.name: _finite(measure.value) for measure in measures}
    singles = _model_values(model, scores)
    values = singles | scores.metrics | values  # a metric that is not defined has no measure
    names = [*(measure.name for measure in model.measures), *singles] if model else []
    results = {
        name: Result(
            values[name],
            intervals.get(name),
            floor.get(name),
            other_values.get(name),
            differences.get(name),
            higher.get(name, name not in LOWER_IS_BETTER),
        )
        for name in dict.fromkeys([*names, *values])
    }
    return Evaluation(
        results,
        scores.images,
        ids,
        scores.per_image,
        _groups(measures, columns, references, ids, settings.group_by),
        clinical,
        _diversity(scored, {image: references[image] for image in ids}, settings.tokenizer),
        (
            *(model.notes if model else ()),
            *scores.notes,
            *_notes_on_resampling(settings, clusters),
            *_notes_on_comparison(other, ids),
        ),
        "|".join([scores.signature, *_further_signature(settings, model)]),
    )


def _notes_on_resampling(settings: Settings, clusters: Sequence[str] | None) -> list[str]:
    if not settings.resamples or clusters is None:
        return []
    count = len(set(clusters))
    few = ": too few for intervals" if count < 2 else ""
    return [f"intervals resample {count} clusters by {settings.cluster_by}{few}"]


def _notes_on_comparison(other: Mapping[str, str] | None, ids: Sequence[str]) -> list[str]:
    if other is None:
        return []
    absent = sum(image not in other for image in ids)
    filled = [f"the captions compared with lack {absent} images, counted as empty captions"] if absent else []
    return [*filled, UNADJUSTED]


def _further_signature(settings: Settings, model: ModelSide | None) -> list[str]:
    """What the numbers beside the caption scores depend on."""
    boot = f"{settings.resamples},seed{settings.seed}" + (f",by-{settings.cluster_by}" if settings.cluster_by else "")
    return [f"lexicon:{LEXICON_VERSION}", f"boot:{boot}", *([model.signature] if model and model.signature else [])]


def check_columns(
    columns: Mapping[str, Mapping[str, str]], references: Mapping[str, Sequence[str]], settings: Settings
) -> None:
    """Refuse a grouping or a clustering by a column that is not there, before captions are made.

    Raises:
        UsageError: There is no such column, or it is empty.
    """
    if settings.cluster_by:
        _column(columns, list(references), settings.cluster_by)
    if settings.group_by and settings.group_by.lower() != FROM_CAPTIONS:
        _column(columns, list(references), settings.group_by)


def _in_order(model: ModelSide | None, ids: Sequence[str]) -> list[Measure]:
    """The model's measures with their parts in the order of the scores' ids."""
    if model is None:
        return []
    place = {image: row for row, image in enumerate(model.ids)}
    rows = [place[image] for image in ids]
    return [replace(measure, parts=measure.parts[rows]) for measure in model.measures]


def _model_values(model: ModelSide | None, scores: Scores) -> dict[str, float | None]:
    """The model's numbers without an interval, and whether its confidence goes with the score of a caption."""
    if model is None:
        return {}
    pairs = [(model.logprobs[image], row["cider_d"]) for image, row in scores.per_image.items() if "cider_d" in row]
    correlation = spearman([logprob for logprob, _ in pairs], [score for _, score in pairs])
    return {**model.values, "spearman_logprob_cider": correlation}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _column(columns: Mapping[str, Mapping[str, str]], ids: Sequence[str], name: str) -> list[str]:
    """A column's value for each image; empty for those without one.

    Raises:
        UsageError: No image has it.
    """
    wanted = name.lower()
    values = [{key.lower(): value for key, value in columns.get(image, {}).items()}.get(wanted, "") for image in ids]
    if not any(values):
        known = sorted({key for row in columns.values() for key in row})
        if wanted in map(str.lower, known):
            raise UsageError(f"column {name!r} is empty for every scored image")
        raise UsageError(f"no image has a column {name!r}; there are: {', '.join(known) or 'none'}")
    return values


def _clusters(columns: Mapping[str, Mapping[str, str]], ids: Sequence[str], name: str) -> list[str]:
    """Labels of images that are resampled together; an image without one stands for itself."""
    labels = _column(columns, ids, name)
    return [f"={label}" if label else f"?{image}" for image, label in zip(ids, labels, strict=True)]


def _floor(
    ids: Sequence[str], references: Mapping[str, Sequence[str]], settings: Settings, idf: Idf | None
) -> dict[str, float | None]:
    """Scores of each image's caption being a reference of another, drawn at random; empty for fewer than two images."""
    if len(ids) < 2:
        return {}
    split, draw = tokenizer(settings.tokenizer), random.Random(settings.seed)
    usable = {image: sorted(filter(split, references[image])) for image in ids}
    drawn = {image: draw.choice(usable[other]) for image, other in zip(ids, shuffled(ids, settings.seed), strict=True)}
    return score(drawn, references, missing="skip", tokenizer=settings.tokenizer, idf=idf).metrics


def _other(
    other: Mapping[str, str],
    ids: Sequence[str],
    references: Mapping[str, Sequence[str]],
    settings: Settings,
    missing: Missing,
    idf: Idf | None,
) -> tuple[list[Measure], dict[str, float | None]]:
    """Measures and values of another system's captions of the same images."""
    if unknown := other.keys() - references.keys():
        raise UsageError(f"the captions compared with have {len(unknown)} unknown ids, {min(unknown)!r} among them")
    absent = set(ids) - other.keys()
    if absent and missing != "zero":
        raise UsageError(
            f"the captions compared with lack {len(absent)} of {len(ids)} images, {min(absent)!r} among them: a paired "
            "comparison needs the same images"
        )
    filled = {image: other.get(image, "") for image in ids}
    scores = score(filled, references, missing="skip", tokenizer=settings.tokenizer, idf=idf)
    clinical = clinical_proxies(filled, {image: references[image] for image in ids})
    measures = [*scores.measures, *clinical.measures]
    return measures, {measure.name: _finite(measure.value) for measure in measures}


def _diversity(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], name: str) -> dict[str, float]:
    split = tokenizer(name)
    return diversity(
        {image: split(caption) for image, caption in predictions.items()},
        {image: [split(caption) for caption in captions] for image, captions in references.items()},
    )


def _groups(
    measures: Sequence[Measure],
    columns: Mapping[str, Mapping[str, str]],
    references: Mapping[str, Sequence[str]],
    ids: Sequence[str],
    name: str,
) -> tuple[Group, ...]:
    if not name:
        return ()
    named = {key.lower() for image in ids for key in columns.get(image, {})}
    if name.lower() == FROM_CAPTIONS and FROM_CAPTIONS not in named:
        groups = [modality_of(references[image]) or "(none named)" for image in ids]
    else:
        groups = [value or "(none)" for value in _column(columns, ids, name)]
    found = by_group(measures, groups)
    sizes = Counter(groups)
    return tuple(
        Group(group, count, {key: _finite(value) for key, value in found[group].items()})
        for group, count in sizes.most_common()
    )
