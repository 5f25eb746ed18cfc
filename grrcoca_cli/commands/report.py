"""The HTML report of ``grrcoca eval``: evaluation, captions and small pictures on one page."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from grrcoca_cli.commands.results import LABELS
from grrcoca_cli.errors import UnreadableImage
from grrcoca_cli.evaluation.bleu import smoothed_bleu4
from grrcoca_cli.evaluation.report import RANKING, ReportImage, render_report
from grrcoca_cli.evaluation.tokenize import tokenizer
from grrcoca_cli.provenance import as_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from grrcoca_cli.commands.evaluate import Subject
    from grrcoca_cli.config import EvalConfig
    from grrcoca_cli.data.base import Pixels
    from grrcoca_cli.evaluation.judge import Evaluation

THUMBNAIL = 224
"""Pixels of a thumbnail's longer edge: sharp at twice the size it is shown in."""

HEADLINES = ("coca_loss", "ppl_token", "bleu4", "rouge_l", "cider_d", "side_conflict")


def make_report(
    subject: Subject,
    result: Evaluation,
    config: EvalConfig,
    made_with: Mapping[str, Any],
    other: Mapping[str, str] | None,
) -> str:
    """The page, with thumbnails where the pictures are at hand."""
    split = tokenizer(config.tokenizer)
    captions = {image: subject.predictions.get(image, "") for image in result.ids}
    ranks = smoothed_bleu4(
        [split(captions[image]) for image in result.ids],
        [[split(reference) for reference in subject.references[image]] for image in result.ids],
    )
    images = [
        ReportImage(
            id=image,
            caption=captions[image],
            references=tuple(subject.references[image]),
            scores={RANKING: rank, **{k: v for k, v in result.per_image[image].items() if k in ("rouge_l", "cider_d")}},
            conflicts=result.clinical.per_image[image],
            other=None if other is None else other.get(image, ""),
            logprob=subject.model.logprobs.get(image) if subject.model else None,
        )
        for image, rank in zip(result.ids, ranks, strict=True)
    ]
    return render_report(
        result,
        images,
        what=subject.what,
        labels=LABELS | {RANKING: "smoothed BLEU-4"},
        headlines=HEADLINES,
        settings={name: str(value) for name, value in made_with["settings"].items()},
        provenance=as_lines(made_with),
        thumbnail=_thumbnails(subject),
        compared_with=None if other is None else "the other captions",
        seed=config.seed,
    )


def _thumbnails(subject: Subject) -> Callable[[str], bytes | None]:
    """Makes a small JPEG of an image by its id; None where there is none, or it cannot be read."""
    dataset, captioner = subject.dataset, subject.captioner
    if dataset is None or captioner is None:
        return lambda image: None
    place = {dataset.key(index): index for index in range(len(dataset))}

    def thumbnail(image: str) -> bytes | None:
        try:
            return _small_jpeg(captioner.read(dataset[place[image]].image))
        except UnreadableImage:
            return None

    return thumbnail


def _small_jpeg(pixels: Pixels) -> bytes:
    from PIL import Image

    levels = np.rint(pixels * 255).astype(np.uint8)
    picture = Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return stream.getvalue()
