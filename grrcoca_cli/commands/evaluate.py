"""``grrcoca eval``: losses and caption scores of a checkpoint, or the scores of anybody's captions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from grrcoca_cli.commands.results import as_json, per_image_rows, show_tables, write_rows
from grrcoca_cli.config import EvalConfig, Recipe, apply_settings, build_recipe
from grrcoca_cli.console import say
from grrcoca_cli.errors import ExitCode, UnreadableImage, UsageError
from grrcoca_cli.evaluation import align, read_columns, read_predictions, read_references
from grrcoca_cli.evaluation.judge import Evaluation, ModelSide, Result, Settings, judge
from grrcoca_cli.evaluation.metrics import Idf, Missing, dump_idf, read_idf, score
from grrcoca_cli.files import write_atomically

if TYPE_CHECKING:
    from grrcoca_cli.captioner import Captioner
    from grrcoca_cli.data.base import CaptionDataset

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
    unread: int = 0


def evaluate(options: Options) -> ExitCode:
    """Measure and print; gives the exit code.

    Raises:
        UsageError: The flags name neither a checkpoint with data nor predictions with references.
    """
    if options.predictions or options.references:
        recipe = _recipe(options.settings, {}, ("eval",))
        subject = _captions_of_files(options)
    else:
        subject, recipe = _captions_of_checkpoint(options)
    notes = list(subject.notes)
    other = None
    if options.compare:
        other = align(read_predictions(options.compare, notes=notes), subject.references, notes=notes)
    idf = read_idf(options.idf) if options.idf else None
    result = judge_subject(replace(subject, notes=tuple(notes)), recipe.eval, other, idf)
    _write_files(options, subject, result, recipe.eval, other)
    if options.as_json:
        print(json.dumps(as_json(result)))
    else:
        show_tables(result)
    return ExitCode.SOME_INPUTS_FAILED if subject.unread else ExitCode.OK


def judge_subject(
    subject: Subject, config: EvalConfig, other: Mapping[str, str] | None = None, idf: Idf | None = None
) -> Evaluation:
    """All numbers of a subject, those that need Java where they were asked for; beside those of ``other`` captions."""
    settings = Settings(config.tokenizer, config.group_by, config.cluster_by, config.resamples, config.seed)
    result = judge(
        subject.predictions,
        subject.references,
        settings,
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

    if config.verify_java and config.tokenizer != "coco":
        raise UsageError("eval.verify_java compares with the tokenizer 'coco': leave eval.tokenizer at it")
    texts = [(subject.predictions.get(image, ""), subject.references[image]) for image in result.ids]
    results, notes = dict(result.results), list(result.notes)
    if config.meteor:
        candidates = [coco_tokens(caption) for caption, _ in texts]
        corpus, _ = meteor(candidates, [list(map(coco_tokens, own)) for _, own in texts])
        results["meteor"] = Result(corpus)
    if config.verify_java:
        flat = [text for caption, own in texts for text in (caption, *own)]
        official = java_tokens(flat)
        differing = [text for text, tokens in zip(flat, official, strict=True) if tokens != coco_tokens(text)]
        notes.append(f"the Java tokenizer splits {len(differing)} of {len(flat)} captions and references otherwise")
        notes += [f"split otherwise: {text}" for text in differing[:SHOWN]]
        words = iter(" ".join(tokens) for tokens in official)
        joined = [(next(words), [next(words) for _ in own]) for _, own in texts]
        theirs = score(
            {image: caption for image, (caption, _) in zip(result.ids, joined, strict=True)},
            {image: own for image, (_, own) in zip(result.ids, joined, strict=True)},
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


def _captions_of_files(options: Options) -> Subject:
    if not (options.predictions and options.references):
        raise UsageError("scoring captions takes both --predictions FILE and --references FILE")
    if options.checkpoint or options.data:
        raise UsageError("give either --predictions and --references, or --checkpoint and --data, not both")
    if options.missing not in ("error", "zero"):
        raise UsageError(f"--missing {options.missing}: give error or zero")
    notes: list[str] = []
    references = read_references(*options.references)
    predictions = align(read_predictions(options.predictions, notes=notes), references, notes=notes)
    return Subject(
        what=f"{options.predictions.name} against {', '.join(path.name for path in options.references)}",
        predictions=predictions,
        references=references,
        missing="zero" if options.missing == "zero" else "error",
        columns=read_columns(options.references[0]),
        notes=tuple(notes),
    )


def _captions_of_checkpoint(options: Options) -> tuple[Subject, Recipe]:
    if not (options.checkpoint and options.data):
        raise UsageError(
            "eval takes --checkpoint DIR --dataset NAME --data DIR, or --predictions FILE --references FILE"
        )
    from grrcoca_cli.captioner import Captioner
    from grrcoca_cli.commands.datasets import open_split

    captioner = Captioner.load(options.checkpoint, options.device)
    tables: dict[str, object] = {
        "generation": captioner.checkpoint.config.generation.model_dump(),
        "data": {"dataset": options.dataset, "path": options.data},
    }
    recipe = _recipe(options.settings, tables, ("data", "training", "eval", "generation"))
    dataset = open_split(recipe.data, options.split)
    if len(dataset) == 0:
        raise UsageError(f"the {options.split} split of {options.data} has no sample with picture and caption")
    say(f"evaluating {captioner.checkpoint.folder} on {len(dataset)} samples of {options.data}, {options.split}")
    return caption_and_measure(captioner, dataset, recipe, options.split), recipe


def caption_and_measure(captioner: Captioner, dataset: CaptionDataset, recipe: Recipe, split: str) -> Subject:
    """Losses and captions of every sample, each picture read and encoded once.

    Raises:
        UnreadableImage: No picture can be read.
    """
    from grrcoca_cli.commands.modelside import describe_model, run_model

    found = run_model(captioner, dataset, recipe)
    if not found.captions:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.measurements.skipped.most_common())
        raise UnreadableImage("unreadable", f"none of the pictures of this split can be read ({kinds})")
    samples = [dataset.peek(index) for index in range(len(dataset))]
    return Subject(
        what=f"{captioner.checkpoint.folder.name} on {split}",
        predictions={key: best.text for key, best in found.captions.items()},
        references={sample.key: list(sample.captions) for sample in samples},
        missing="skip",
        columns={sample.key: sample.fields for sample in samples},
        model=describe_model(found, recipe),
        dataset=dataset,
        captioner=captioner,
        unread=found.measurements.skipped.total(),
    )


def _write_files(
    options: Options, subject: Subject, result: Evaluation, config: EvalConfig, other: Mapping[str, str] | None
) -> None:
    if options.out:
        write_rows(options.out, per_image_rows(result, subject.predictions, subject.references))
    if config.save_idf:
        write_atomically(Path(config.save_idf), dump_idf(subject.references, tokenizer=config.tokenizer))
    if options.report:
        from grrcoca_cli.commands.report import make_report

        compared_with = options.compare.name if options.compare else None
        write_atomically(options.report, make_report(subject, result, config, other, compared_with))
        say(f"report: {options.report}")
