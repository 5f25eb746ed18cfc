"""``grrcoca eval``: losses and caption scores of a checkpoint, or the scores of anybody's captions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grrcoca_cli.commands.result_tables import show_tables
from grrcoca_cli.commands.results import as_json, kind_of_rows, per_image_rows, write_rows
from grrcoca_cli.config import EvalConfig, Recipe, apply_settings, build_recipe
from grrcoca_cli.console import say
from grrcoca_cli.errors import ExitCode, UnreadableImage, UsageError
from grrcoca_cli.evaluation import align, read_columns, read_predictions, read_references
from grrcoca_cli.evaluation.inputs import check_lines, file_names
from grrcoca_cli.evaluation.judge import Evaluation, ModelSide, Result, Settings, check_columns, judge
from grrcoca_cli.evaluation.metrics import Idf, Missing, dump_idf, read_idf, score
from grrcoca_cli.evaluation.tokenize import tokenizer
from grrcoca_cli.files import check_output_file, write_atomically, write_json
from grrcoca_cli.provenance import of_file, provenance
from grrcoca_cli.training.checkpoint import find_checkpoint, read_config, weights_sha256
from grrcoca_cli.training.ranks import ALONE, Ranks, join_ranks

if TYPE_CHECKING:
    from grrcoca_cli.captioner import Captioner
    from grrcoca_cli.data.base import CaptionDataset, Sample

_NOT_SHOWN = ("limit", "save_idf")
SHOWN = 10
"""Most captions that are printed to show a difference."""


@dataclass(frozen=True)
class Options:
    """The command's flags."""

    checkpoint: Path | None = None
    dataset: str = "folder"
    data: str = ""
    split: str = "test"
    predictions: Path | None = None
    references: Sequence[Path] = ()
    missing: str = "error"
    compare: Path | None = None
    idf: Path | None = None
    out: Path | None = None
    report: Path | None = None
    settings: Sequence[str] = ()
    device: str = "auto"
    as_json: bool = False


@dataclass(frozen=True)
class Subject:
    """What is judged, wherever it came from.

    Attributes:
        what: A line that says what is scored on what.
        predictions: Caption by image id.
        references: References by image id.
        missing: What an image without a prediction does.
        columns: Further columns by image id.
        model: Numbers of the model, where there is one.
        notes: What a reader must know of how it was read.
        dataset: Where the pictures are, for the report's thumbnails.
        captioner: Reads them.
        made_with: What it depends on: checkpoint and data, or files.
        unread: Count of pictures that could not be read.
    """

    what: str
    predictions: dict[str, str]
    references: dict[str, list[str]]
    missing: Missing
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    model: ModelSide | None = None
    notes: tuple[str, ...] = ()
    dataset: CaptionDataset | None = None
    captioner: Captioner | None = None
    made_with: Mapping[str, object] = field(default_factory=dict)
    unread: int = 0


def evaluate(options: Options) -> ExitCode:
    """Measure and print; gives the exit code.

    Raises:
        UsageError: The flags name neither a checkpoint with data nor predictions with references, or one of them is
            wrong; found before any picture is read.
    """
    if options.missing not in ("error", "zero"):
        raise UsageError(f"--missing {options.missing}: give error or zero")
    of_files = options.predictions or options.references
    plan = _plan_of_files(options) if of_files else _plan_of_checkpoint(options)
    config = plan.recipe.eval
    _check_outputs(options, config)
    check_columns(plan.columns, plan.references, _settings(config))
    notes: list[str] = []
    other = None
    if options.compare:
        names = _file_names(options)
        other = align(read_predictions(options.compare, notes=notes), plan.references, names=names, notes=notes)
        notes = [f"the captions compared with: {note}" for note in notes]
    idf = read_idf(options.idf) if options.idf else None

    with join_ranks(plan.recipe.distributed.timeout) as ranks:
        subject = plan.run(ranks)
        if not ranks.is_first:
            return ExitCode.OK  # one process scores and writes
    result = judge_subject(replace(subject, notes=(*subject.notes, *notes)), config, other, idf)
    made_with = _made_with(options, subject, plan.recipe)
    if options.as_json:
        print(json.dumps(as_json(result, subject.what, made_with["settings"], made_with)))
    else:
        show_tables(result, made_with)
    _write_files(options, subject, result, plan.recipe, other, made_with)
    return ExitCode.SOME_INPUTS_FAILED if subject.unread else ExitCode.OK


@dataclass(frozen=True)
class Plan:
    """What is to be judged, with everything that can be checked before the work; ``run`` does the work."""

    recipe: Recipe
    references: dict[str, list[str]]
    columns: Mapping[str, Mapping[str, str]]
    run: Callable[[Ranks], Subject]


def _settings(config: EvalConfig) -> Settings:
    return Settings(config.tokenizer, config.group_by, config.cluster_by, config.resamples, config.seed)


def _made_with(options: Options, subject: Subject, recipe: Recipe) -> dict[str, Any]:
    """The provenance of all outputs."""
    others = {name: of_file(path) for name, path in (("compare", options.compare), ("idf", options.idf)) if path}
    settings = shown_settings(recipe, of_files=subject.captioner is None)
    return provenance(settings, **subject.made_with, **others)


def shown_settings(recipe: Recipe, *, of_files: bool) -> dict[str, object]:
    """The settings that the numbers depend on, for the outputs."""
    shown = {f"eval.{name}": value for name, value in recipe.eval.model_dump().items() if name not in _NOT_SHOWN}
    if of_files:
        return {name: value for name, value in shown.items() if name != "eval.batch_size"}
    generation = {f"generation.{name}": value for name, value in recipe.generation.model_dump().items()}
    return {**shown, **generation, "training.precision": recipe.training.precision}


def _check_outputs(options: Options, config: EvalConfig) -> None:
    """Refuse what cannot be written or computed before hours are spent on it."""
    if options.out:
        kind_of_rows(options.out)
    idf = Path(config.save_idf) if config.save_idf else None
    for option, path in (("--out", options.out), ("--report", options.report), ("eval.save_idf", idf)):
        if path is not None:
            check_output_file(path, option)
    if config.verify_java and config.tokenizer != "coco":
        raise UsageError("eval.verify_java compares with the tokenizer 'coco': leave eval.tokenizer at it")
    if config.meteor or config.verify_java:
        from grrcoca_cli.evaluation.java import find_java

        find_java()


def judge_subject(
    subject: Subject, config: EvalConfig, other: Mapping[str, str] | None = None, idf: Idf | None = None
) -> Evaluation:
    """All numbers of a subject, those that need Java where they were asked for; beside those of ``other`` captions."""
    result = judge(
        subject.predictions,
        subject.references,
        _settings(config),
        missing=subject.missing,
        idf=idf,
        columns=subject.columns,
        model=subject.model,
        other=other,
    )
    if config.meteor or config.verify_java:
        result = _with_java(result, subject, config, idf)
    return replace(result, notes=(*subject.notes, *result.notes))


def _with_java(result: Evaluation, subject: Subject, config: EvalConfig, idf: Idf | None) -> Evaluation:
    """METEOR, and what the official tokenizer makes of the captions: pycocoevalcap's Java programs, where asked for."""
    from grrcoca_cli.evaluation.java import java_tokens, meteor
    from grrcoca_cli.evaluation.tokenize import coco_tokens

    texts = [(subject.predictions.get(image, ""), subject.references[image]) for image in result.ids]
    results, notes = dict(result.results), list(result.notes)
    if config.meteor:
        candidates = [coco_tokens(caption) for caption, _ in texts]
        corpus, _ = meteor(candidates, [list(map(coco_tokens, own)) for _, own in texts])
        results["meteor"] = Result(corpus)
        notes.append("meteor is of the whole set by its own aggregation, without an interval")
    if config.verify_java:
        # All references, also of images that are not scored: the document frequencies come from them
        flat = [*subject.predictions.values(), *(text for own in subject.references.values() for text in own)]
        official = java_tokens(flat)
        differing = [text for text, tokens in zip(flat, official, strict=True) if tokens != coco_tokens(text)]
        notes.append(f"the Java tokenizer splits {len(differing)} of {len(flat)} captions and references otherwise")
        notes += [f"split otherwise: {text}" for text in differing[:SHOWN]]
        words = iter(" ".join(tokens) for tokens in official)
        theirs = score(
            {image: next(words) for image in subject.predictions},
            {image: [next(words) for _ in own] for image, own in subject.references.items()},
            missing=subject.missing,
            tokenizer="whitespace",
            idf=replace(idf, tokenizer="whitespace") if idf else None,
        )
        results |= {f"{name}_java": Result(theirs.metrics[name]) for name in ("bleu4", "rouge_l", "cider_d")}
    return replace(result, results=results, notes=tuple(notes))


def _recipe(settings: Sequence[str], tables: dict[str, object], sections: Sequence[str]) -> Recipe:
    """The recipe with ``--set`` put in, in the sections that are free here."""
    tables = apply_settings(tables, settings)
    if other := sorted(set(tables) - set(sections)):
        raise UsageError(f"--set {other[0]}.…: only {', '.join(sections)} can be set here")
    return build_recipe(tables, "eval")


def _file_names(options: Options) -> dict[str, str]:
    """File names of the references' images by image id, as far as their files have them."""
    return {image: name for path in options.references for image, name in file_names(read_columns(path)).items()}


def _plan_of_files(options: Options) -> Plan:
    if not (options.predictions and options.references):
        raise UsageError("scoring captions takes both --predictions FILE and --references FILE")
    if options.checkpoint or options.data:
        raise UsageError("give either --predictions and --references, or --checkpoint and --data, not both")
    recipe = _recipe(options.settings, {}, ("eval",))
    notes: list[str] = []
    if options.missing == "error":
        check_lines(options.predictions, *options.references)
    references = read_references(*options.references, notes=notes)
    columns = read_columns(options.references[0])
    names = _file_names(options)
    predictions = align(read_predictions(options.predictions, notes=notes), references, names=names, notes=notes)
    subject = Subject(
        what="captions against references",
        predictions=predictions,
        references=references,
        missing="zero" if options.missing == "zero" else "error",
        columns=columns,
        notes=tuple(notes),
        made_with={
            "predictions": of_file(options.predictions),
            "references": [of_file(path) for path in options.references],
        },
    )
    return Plan(recipe, references, columns, lambda _: subject)


def _plan_of_checkpoint(options: Options) -> Plan:
    if not (options.checkpoint and options.data):
        raise UsageError(
            "eval takes --checkpoint DIR --dataset NAME --data DIR, or --predictions FILE --references FILE"
        )
    if any(setting.startswith("eval.limit") for setting in options.settings):
        raise UsageError("eval.limit is of the evaluations inside training: here the whole split is measured")
    from grrcoca_cli.commands.datasets import open_split

    folder = find_checkpoint(options.checkpoint)
    tables: dict[str, object] = {
        "generation": read_config(folder).generation.model_dump(),
        "data": {"dataset": options.dataset, "path": options.data},
    }
    recipe = _recipe(options.settings, tables, ("data", "training", "eval", "generation"))
    dataset = open_split(recipe.data, options.split)
    if len(dataset) == 0:
        raise UsageError(f"the {options.split} split of {options.data} has no sample with picture and caption")
    samples = [dataset.peek(index) for index in range(len(dataset))]

    def run(ranks: Ranks) -> Subject:
        from grrcoca_cli.captioner import Captioner

        captioner = Captioner.load(folder, options.device)
        say(f"evaluating {folder} on {len(dataset)} samples of {options.data}, {options.split}")
        return caption_and_measure(captioner, dataset, samples, recipe, options.split, ranks)

    references = {sample.key: list(sample.captions) for sample in samples}
    return Plan(recipe, references, {sample.key: sample.fields for sample in samples}, run)


def caption_and_measure(
    captioner: Captioner,
    dataset: CaptionDataset,
    samples: Sequence[Sample],
    recipe: Recipe,
    split: str,
    ranks: Ranks = ALONE,
) -> Subject:
    """Losses and captions of every sample, each picture read and encoded once.

    Args:
        captioner: The model.
        dataset: The pictures.
        samples: What `CaptionDataset.peek` says of each of them.
        recipe: How to measure and decode.
        split: Its name.
        ranks: The processes that share the work; each gets all of it.

    Raises:
        UnreadableImage: No picture can be read.
    """
    from grrcoca_cli.commands.modelside import describe_model, run_model

    found = run_model(captioner, dataset, recipe, ranks)
    if not found.captions:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.measurements.skipped.most_common())
        raise UnreadableImage("unreadable", f"none of the pictures of this split can be read ({kinds})")
    split_words = tokenizer(recipe.eval.tokenizer)
    wordless = {sample.key for sample in samples if not any(map(split_words, sample.captions))}
    return Subject(
        what=f"{captioner.checkpoint.folder.name} on {split}",
        predictions={key: best.text for key, best in found.captions.items() if key not in wordless},
        references={sample.key: list(sample.captions) for sample in samples if sample.key not in wordless},
        missing="skip",
        columns={sample.key: sample.fields for sample in samples},
        model=describe_model(found, recipe),
        notes=(f"samples whose captions have no word, not scored: {len(wordless)}",) if wordless else (),
        dataset=dataset,
        captioner=captioner,
        made_with={
            "checkpoint": {
                "path": str(captioner.checkpoint.folder.resolve()),
                "weights_sha256": weights_sha256(captioner.checkpoint.folder),
            },
            "data": {"dataset": recipe.data.dataset, "path": recipe.data.path, "split": split},
            **captioner.numerics(recipe.training.precision, recipe.generation),
        },
        unread=found.measurements.skipped.total(),
    )


def _write_files(
    options: Options,
    subject: Subject,
    result: Evaluation,
    recipe: Recipe,
    other: Mapping[str, str] | None,
    made_with: dict[str, Any],
) -> None:
    config = recipe.eval
    if options.out:
        write_rows(options.out, per_image_rows(result, subject.predictions, subject.references))
        write_json(options.out.with_name(f"{options.out.name}.provenance.json"), made_with)
    if config.save_idf:
        write_atomically(Path(config.save_idf), dump_idf(subject.references, tokenizer=config.tokenizer))
    if options.report:
        from grrcoca_cli.commands.report import make_report

        write_atomically(options.report, make_report(subject, result, config, made_with, other))
        say(f"report: {options.report}")
