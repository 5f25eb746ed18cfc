"""MS-COCO and Flickr30k in the layouts they are passed around in; which one a folder holds is found by looking.

Lin et al., "Microsoft COCO", ECCV 2014; Young et al., "From image descriptions to visual denotations", TACL 2014;
Karpathy and Fei-Fei, CVPR 2015, for the splits that captioning papers use.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from grrcoca_cli.data.base import ListDataset, Sample
from grrcoca_cli.data.captions import clean_caption
from grrcoca_cli.data.tables import canonical_split
from grrcoca_cli.errors import HasNoSplits, NoSuchSplit, UsageError

COCO_HOW_TO_GET = (
    "MS-COCO: unpack train2014.zip and val2014.zip (or the 2017 ones) from cocodataset.org into one folder, with "
    "annotations_trainval2014.zip, or with dataset_coco.json of Karpathy's splits, beside them"
)
FLICKR_HOW_TO_GET = (
    "Flickr30k: the pictures (by request from its authors) in a folder flickr30k-images, and results_20130124.token or "
    "dataset_flickr30k.json of Karpathy's splits beside it"
)

_KARPATHY_SPLITS = {"restval": "train"}  # what of COCO's validation set Karpathy trains on
_WHOLE = ("", "all")

Row = tuple[str, list[str]]
"""A picture's file name, which is unique over all folders, and its captions."""


def open_coco(root: Path, split: str) -> ListDataset:
    """MS-COCO's pictures of one split, with all their captions.

    Args:
        root: The folder of ``dataset_coco.json`` or of ``annotations``; pictures in ``train2014`` and its like, there
            or in ``images``.
        split: ``train``, ``valid`` or ``test`` of Karpathy's splits; ``train`` or ``valid`` of the annotation files.

    Raises:
        UsageError: No such folder, layout or split; says how to get the data.
    """
    if karpathy := _first(root, ["dataset_coco.json", "annotations/dataset_coco.json"]):
        return _open(root, _karpathy(karpathy, split), COCO_HOW_TO_GET)
    wanted = "val" if canonical_split(split) == "valid" else canonical_split(split)
    folders = (root / "annotations", root)
    found = [path for folder in folders for path in sorted(folder.glob(f"captions_{wanted}*.json"))]
    if not found:
        others = sorted(path.name for folder in folders for path in folder.glob("captions_*.json"))
        there = f"it has {', '.join(others)}. " if others else ""
        raise NoSuchSplit(
            f"{root} has neither dataset_coco.json nor annotations/captions_{wanted}*.json: {there}{COCO_HOW_TO_GET}"
        )
    return _open(root, _annotations(found[-1]), COCO_HOW_TO_GET)


def open_flickr30k(root: Path, split: str) -> ListDataset:
    """Flickr30k's pictures of one split, with their five captions.

    Args:
        root: The folder of ``dataset_flickr30k.json``, ``results_20130124.token`` or ``results.csv``.
        split: Of Karpathy's splits; the other two layouts are one set, called ``train``.

    Raises:
        UsageError: No such folder, layout or split; says how to get the data.
    """
    if karpathy := _first(root, ["dataset_flickr30k.json", "annotations/dataset_flickr30k.json"]):
        return _open(root, _karpathy(karpathy, split), FLICKR_HOW_TO_GET)
    table = _first(root, ["results_20130124.token", "results.token", "results.csv", "flickr30k_images/results.csv"])
    if table is None:
        raise UsageError(
            f"{root} has neither dataset_flickr30k.json nor results_20130124.token nor results.csv: {FLICKR_HOW_TO_GET}"
        )
    if split not in _WHOLE:
        raise HasNoSplits(f"{table} has no splits, so no {split!r}: name none, or use dataset_flickr30k.json")
    return _open(root, _token_file(table) if table.suffix == ".token" else _kaggle_table(table), FLICKR_HOW_TO_GET)


def _karpathy(path: Path, split: str) -> Iterator[Row]:
    images = _json(path).get("images", [])
    splits = {_split_of(image) for image in images}
    wanted = canonical_split(split)
    if split != "all" and wanted not in splits:
        raise NoSuchSplit(f"{path} has no split {split!r}: it has {', '.join(sorted(splits)) or 'none'}")
    for image in images:
        if split == "all" or _split_of(image) == wanted:
            yield (
                str(image.get("filename", "")),
                [str(sentence.get("raw", "")) for sentence in image.get("sentences", [])],
            )


def _split_of(image: dict[str, Any]) -> str:
    name = str(image.get("split", ""))
    return canonical_split(_KARPATHY_SPLITS.get(name, name))


def _annotations(path: Path) -> Iterator[Row]:
    document = _json(path)
    captions: dict[object, list[str]] = {image["id"]: [] for image in document.get("images", [])}
    for annotation in document.get("annotations", []):
        captions.setdefault(annotation["image_id"], []).append(str(annotation["caption"]))
    for image in document.get("images", []):
        yield str(image["file_name"]), captions[image["id"]]


def _token_file(path: Path) -> Iterator[Row]:
    """``1000.jpg#0<TAB>caption``, the captions of a picture side by side."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    pairs = (line.split("\t", 1) for line in lines if "\t" in line)
    yield from _together((name.rsplit("#", 1)[0], caption) for name, caption in pairs)


def _kaggle_table(path: Path) -> Iterator[Row]:
    """``image_name| comment_number| comment``, or the same with commas."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    delimiter = "|" if "|" in text.split("\n", 1)[0] else ","
    rows = csv.reader(text.splitlines(), delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "|" else 0)
    next(rows, None)
    yield from _together((row[0].strip(), row[-1]) for row in rows if len(row) > 1)


def _together(pairs: Iterable[tuple[str, str]]) -> Iterator[Row]:
    captions: dict[str, list[str]] = {}
    for name, caption in pairs:
        captions.setdefault(name, []).append(caption)
    yield from captions.items()


def _open(root: Path, rows: Iterator[Row], how_to_get: str) -> ListDataset:
    """Samples of the rows whose picture is below ``root``; the rest is counted."""
    listed, pictures = list(rows), _pictures(root)
    if not pictures:
        raise UsageError(f"{root} holds no pictures: {how_to_get}")
    samples: list[Sample] = []
    skipped: Counter[str] = Counter()
    for name, captions in listed:
        kept = tuple(text for text in map(clean_caption, captions) if text)
        path = pictures.get(Path(name).name)
        if path is None:
            skipped["no picture"] += 1
        elif not kept:
            skipped["empty caption"] += 1
        else:
            samples.append(Sample(Path(name).stem, path, kept))
    return ListDataset(samples, skipped)


def _pictures(root: Path) -> dict[str, Path]:
    """JPEG files by name: COCO's and Flickr's names are unique over all their folders."""
    found: dict[str, Path] = {}
    for folder, folders, names in os.walk(root):
        folders.sort()
        found |= {name: Path(folder) / name for name in names if name.lower().endswith((".jpg", ".jpeg", ".png"))}
    return found


def _first(root: Path, names: list[str]) -> Path | None:
    if not root.is_dir():
        raise UsageError(f"no folder {root}")
    return next((root / name for name in names if (root / name).is_file()), None)


def _json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid JSON ({type(error).__name__}): download it again") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path} is not of the layout its name promises: download it again")
    return document
