"""From a recipe's ``[data]`` to samples, an image reader and an augmentation: where radiology meets the loop."""

import contextlib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from grrcoca_cli import __version__
from grrcoca_cli.commands.doctor import installed_version
from grrcoca_cli.config import DataConfig
from grrcoca_cli.console import say
from grrcoca_cli.data.base import Augmentation, CaptionDataset, ImageReader
from grrcoca_cli.data.cache import CachedReader
from grrcoca_cli.data.coco import open_coco, open_flickr30k
from grrcoca_cli.data.folder import open_folder
from grrcoca_cli.data.images import augment_picture
from grrcoca_cli.data.pictures import read_picture
from grrcoca_cli.data.shards import ShardDataset, open_shards
from grrcoca_cli.data.splits import count_overlaps, split_by_hash
from grrcoca_cli.data.tables import canonical_split
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.errors import HasNoSplits, NoSuchSplit, UnreadableImage, UsageError
from grrcoca_cli.files import explain_os_errors, make_folder

_DECODERS = ("numpy", "torch", "pillow", "pydicom", "pylibjpeg-openjpeg", "python-gdcm", "imagecodecs")
"""Packages whose versions may change a pixel."""

SHOWN_PROBLEMS = 10
"""Most shards that are named when something is wrong with them; all are counted."""

_SEARCHED_FOR_OVERLAPS = 200_000
"""Most training samples that are compared with those of validation: each one has to be read."""

WHOLE = "all"
"""A split's name that means every sample of a set."""


@dataclass(frozen=True)
class OpenedData:
    """Training and validation samples of one set, and what was left out on the way."""

    train: CaptionDataset
    validation: CaptionDataset
    skipped: Counter[str]


def open_data(data: DataConfig, out: Path) -> OpenedData:
    """Open the training and the validation split; without a validation split, a share of training is cut by hash.

    Phantoms without a path are drawn into ``out / "phantoms"`` first.

    Raises:
        UsageError: The set is not there, or not in its layout.
    """
    if data.dataset == "phantoms" and not data.path:
        data = data.model_copy(update={"path": str(_draw_phantoms(data.phantoms, out / "phantoms"))})
    split, train = open_training(data)
    if split != data.split:
        return _cut(train, data, train.skipped)
    try:
        validation = _open_split(data, data.validation_split)
    except NoSuchSplit:
        return _cut(train, data, train.skipped)
    return OpenedData(train, validation, train.skipped + validation.skipped)


def open_training(data: DataConfig) -> tuple[str, CaptionDataset]:
    """The training split and its name: ``all`` for a set without splits.

    Raises:
        UsageError: The set is not there, not in its layout, or has splits and no training split.
    """
    try:
        return data.split, _open_split(data, data.split)
    except HasNoSplits:
        return WHOLE, _open_split(data, WHOLE)


def open_split(data: DataConfig, split: str) -> CaptionDataset:
    """One split, by its name in the set; ``all`` is the whole of a folder or of shards.

    A set without splits has ``train`` and ``valid``, those that training cuts by hash.

    Raises:
        NoSuchSplit: There is no such split; the message names those that there are.
        UsageError: The set is not there, or not in its layout.
    """
    try:
        return _open_split(data, split)
    except HasNoSplits as error:
        wanted = canonical_split(split)
        if wanted not in (canonical_split(data.split), canonical_split(data.validation_split)):
            raise NoSuchSplit(
                f"{data.path} has no split {split!r} and none of its own: use {WHOLE} for the whole set, or "
                f"{data.split} or {data.validation_split}, which are cut by hash as in training"
            ) from error
        train, validation = split_by_hash(_open_split(data, WHOLE), data.validation_fraction, data.group_column)
        return train if wanted == canonical_split(data.split) else validation


def _open_shards(data: DataConfig) -> ShardDataset:
    """The shards, after a line about each that is not as it was indexed."""
    dataset = open_shards(data.path, window=data.shard_window, cache=data.shard_cache)
    for line in dataset.problems[:SHOWN_PROBLEMS]:
        say(f"warning: {line}")
    if len(dataset.problems) > SHOWN_PROBLEMS:
        say(f"warning: and {len(dataset.problems) - SHOWN_PROBLEMS} more shards")
    return dataset


def _open_split(data: DataConfig, split: str) -> CaptionDataset:
    if not data.path:
        raise UsageError(f"the {data.dataset} data set needs --data PATH")
    if data.dataset == "shards":
        if split != WHOLE:
            raise HasNoSplits(f"{data.path} has no split {split!r}: shards have no splits")
        return _open_shards(data)
    if data.dataset == "roco":
        from medical import open_roco

        return open_roco(Path(data.path), split, kind=data.roco_kind)
    if data.dataset in ("coco", "flickr30k"):
        return (open_coco if data.dataset == "coco" else open_flickr30k)(Path(data.path), split)
    return open_folder(Path(data.path), None if split == WHOLE else split)


def _cut(whole: CaptionDataset, data: DataConfig, skipped: Counter[str]) -> OpenedData:
    train, validation = split_by_hash(whole, data.validation_fraction, data.group_column)
    return OpenedData(train, validation, skipped)


def _draw_phantoms(count: int, folder: Path) -> Path:
    from medical.phantom_files import write_dicom_set

    done = folder / ".complete"
    if not done.exists():
        make_folder(folder)
        say(f"drawing {count} synthetic studies into {folder}")
        held_out = max(1, count // 20)
        splits = {"train": count, "valid": held_out, "test": 200}
        with explain_os_errors(folder):
            write_dicom_set(folder, splits=splits, seed=0)
            done.touch()
    return folder


def image_reader(data: DataConfig, size: int) -> ImageReader:
    """How pictures of the set become pixels: shards hold plain pictures, anything else may be DICOM.

    Args:
        data: With ``cache``, decoded pictures are kept there.
        size: Edge of the model's pictures, in pixels.
    """
    read = read_picture if data.dataset == "shards" else dicom_reader(data.window)
    if not data.cache:
        return read
    versions = "|".join(f"{name} {installed_version(name) or 'absent'}" for name in _DECODERS)
    contract = f"{data.dataset == 'shards'}|{data.window}|{__version__}|{versions}"
    return CachedReader(read, Path(data.cache), size, data.fit, contract, int(data.cache_gb * 1e9))


def dicom_reader(window: str) -> ImageReader:
    """A reader of DICOM and pictures that maps grey levels by ``window``, as `DataConfig.window` names it.

    It works in a guarded process of its own: files from outside never meet a decoder in this one.
    """
    from medical import GuardedReader, read_pixels

    return GuardedReader(partial(read_pixels, window=None if window == "auto" else window))


def augmentation(data: DataConfig) -> Augmentation | None:
    """The random transform of training pictures that the recipe names."""
    if data.augment == "radiology":
        from medical import radiology_augmentation

        return radiology_augmentation
    if data.augment == "picture":
        return partial(augment_picture, flip=data.flip, quarter_turns=data.quarter_turns)
    return None


def describe_cut_captions(train: CaptionDataset, tokenizer: CaptionTokenizer, context_length: int) -> str:
    """A line about captions that do not fit into the context, by the first of the set; empty where all do."""
    captions: list[str] = []
    with contextlib.suppress(UnreadableImage):  # a shard that is no more what it was; training counts it
        for index in range(min(1000, len(train))):
            captions += train.peek(index).captions
    cut = sum(tokenizer.count(caption) > context_length for caption in captions)
    if not cut:
        return ""
    return (
        f"note: {cut} of the first {len(captions)} captions are longer than model.context_length = {context_length} "
        "tokens and are cut there"
    )


def describe(opened: OpenedData, data: DataConfig, *, overlaps: bool) -> list[str]:
    """Lines that say what was found, what was left out, and (with ``overlaps``) what the two splits share."""
    train, validation = opened.train, opened.validation
    lines = [
        f"data: {len(train)} training and {len(validation)} validation samples ({data.dataset}, {data.path or 'drawn'})"
    ]
    if opened.skipped:
        lines.append("left out: " + ", ".join(f"{count} {kind}" for kind, count in sorted(opened.skipped.items())))
    if overlaps and len(train) > _SEARCHED_FOR_OVERLAPS:
        lines.append(f"validation samples also in training: not looked for among more than {_SEARCHED_FOR_OVERLAPS:,}")
    elif overlaps:
        shared = count_overlaps(train, validation, data.group_column)
        said = ", ".join(f"{count} by {kind}" for kind, count in sorted(shared.items())) or "none"
        lines.append(f"validation samples also in training: {said}")
    return lines
