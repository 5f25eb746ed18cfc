"""A folder of pictures with captions beside them: a CSV, TSV or JSON Lines file, or one text file a picture."""

import os
import posixpath
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path, PurePosixPath

from grrcoca_cli.data.base import ListDataset, Sample
from grrcoca_cli.data.captions import clean_caption
from grrcoca_cli.data.tables import EXTENSIONS, SPLITS, CaptionRow, canonical_split, read_table, split_in_name
from grrcoca_cli.errors import HasNoSplits, NoSuchSplit, UsageError

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".dcm", ".dicom", ".ima"})
"""Extensions of pictures; a file without one, or named by a UID, may be DICOM and counts as well."""


def open_folder(root: Path, split: str | None = None) -> ListDataset:
    """The samples of a folder, or of one split of it, in the order of its caption files.

    Captions come from every ``.csv``, ``.tsv`` or ``.jsonl`` at the root or one folder down that has a column for the
    picture and one for the caption (see `tables`); other columns become fields. Without such a file, ``scan.png``
    takes its caption from ``scan.txt``. A table may name a picture without its extension or its folder. Several rows
    of one picture are several captions of one sample.

    A split is named by a ``split`` column, else by the caption file's name (``captions_test.csv``), else by a folder's.

    Raises:
        UsageError: There is no such folder, no captions in it, or no such split.
    """
    pictures, rows = _read_rows(root)
    if split is not None:
        found = _splits_of(rows)
        if canonical_split(split) not in found:
            if not found:
                raise HasNoSplits(f"{root} has no split {split!r}: it has no splits")
            raise NoSuchSplit(f"{root} has no split {split!r}: its splits are {', '.join(found)}")
        rows = [(folder, row) for folder, row in rows if row.split == canonical_split(split)]
    return _join(root, pictures, rows)


def list_splits(root: Path) -> list[str]:
    """The splits that `open_folder` finds under ``root``, none where the folder is one set.

    Raises:
        UsageError: There is no such folder, or no captions in it.
    """
    return _splits_of(_read_rows(root)[1])


def _splits_of(rows: list[tuple[str, CaptionRow]]) -> list[str]:
    return sorted({row.split for _, row in rows if row.split})


def _read_rows(root: Path) -> tuple[list[str], list[tuple[str, CaptionRow]]]:
    """Pictures as paths below ``root``, and caption rows, each with the folder its caption file is in."""
    if not root.is_dir():
        raise UsageError(f"no folder at {root}")
    names = _walk(root)
    pictures = [name for name in names if _is_picture(name)]
    rows: list[tuple[str, CaptionRow]] = []
    unfit = []
    for name in names:
        if PurePosixPath(name).suffix.lower() in EXTENSIONS and name.count("/") <= 1:
            table, folder = read_table(root / name), posixpath.dirname(name)
            if isinstance(table, str):
                unfit.append(f"{name} {table}")
                if "caption" in name.lower() and split_in_name(PurePosixPath(name).stem):
                    raise UsageError(f"{root}: {name} is named as the captions of a split, and {table}")
                continue
            split = split_in_name(PurePosixPath(name).stem) or split_in_name(folder)
            rows += [(folder, row if row.split else replace(row, split=split)) for row in table]
    rows = rows or _read_text_files(root, names, pictures)
    if not rows:
        expected = "expected a .csv, .tsv or .jsonl with a picture and a caption column, or scan.txt beside scan.png"
        reason = "; ".join(unfit) or expected
        raise UsageError(f"no captions in {root}: {reason}")
    return pictures, rows


def _walk(root: Path) -> list[str]:
    """Files below ``root``, hidden ones left out, as sorted POSIX paths; linked folders are entered once."""
    found, entered = [], set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(folder).relative_to(root)
        found += [(below / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def _is_picture(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in PICTURES or suffix == "" or suffix[1:].isdigit()


def _stem(name: str) -> str:
    return name[: -len(PurePosixPath(name).suffix)] if PurePosixPath(name).suffix.lower() in PICTURES else name


def _read_text_files(root: Path, names: list[str], pictures: list[str]) -> list[tuple[str, CaptionRow]]:
    """A row for each text file that lies beside a picture of its name, and for each picture that has none."""
    texts = {name[: -len(".txt")]: name for name in names if name.lower().endswith(".txt")}
    rows = []
    for picture in pictures if any(_stem(name) in texts for name in pictures) else []:
        if picture == _stem(picture) and picture not in texts:
            continue  # no extension and no caption: a licence or a script more likely than DICOM
        text = texts.get(_stem(picture))
        caption = clean_caption((root / text).read_text(encoding="utf-8", errors="replace")) if text else ""
        split = next((SPLITS[part] for part in PurePosixPath(picture.lower()).parts[:-1] if part in SPLITS), None)
        rows.append(("", CaptionRow(picture, (caption,) if caption else (), split)))
    return rows


def _join(root: Path, pictures: list[str], rows: list[tuple[str, CaptionRow]]) -> ListDataset:
    """Put rows and pictures together; what cannot be used is counted by kind."""
    finder = _PictureFinder(root, pictures)
    skipped: Counter[str] = Counter()
    samples: dict[str, Sample] = {}
    for folder, row in rows:
        if not row.captions:
            skipped["empty caption"] += 1
            continue
        try:
            name = finder.find(row, folder)
        except LookupError as error:
            skipped[error.args[0]] += 1
            continue
        before = samples.get(name)
        if before is None:
            samples[name] = Sample(name, root / name, tuple(dict.fromkeys(row.captions)), row.fields)
        elif set(row.captions) <= set(before.captions):
            skipped["duplicate row"] += 1
        else:
            samples[name] = replace(before, captions=tuple(dict.fromkeys(before.captions + row.captions)))
    return ListDataset(list(samples.values()), skipped)


class _PictureFinder:
    """Which file below the root a row means."""

    def __init__(self, root: Path, pictures: list[str]) -> None:
        self._root = root.absolute()
        self._pictures = set(pictures)
        self._by_name: defaultdict[str, list[str]] = defaultdict(list)
        for picture in pictures:
            name = posixpath.basename(picture)
            for key in {name, _stem(name)}:
                self._by_name[key].append(picture)

    def find(self, row: CaptionRow, folder: str) -> str:
        """The picture's path below the root.

        As written counts first, from the root or from the caption file's ``folder``; then any file whose path ends
        so, with or without its extension; of several, the one in a folder of the row's split.

        Raises:
            LookupError: There is none, or no single one; its argument is the kind to count.
        """
        if not row.image:
            raise LookupError("no picture")
        image = row.image.replace("\\", "/")
        if posixpath.isabs(image):
            image = os.path.relpath(image, self._root)
        written = [posixpath.normpath(posixpath.join(start, image)) for start in ("", folder)]
        inside = [name for name in written if name != ".." and not name.startswith("../")]
        if not inside:
            raise LookupError("picture outside the folder")
        for name in inside:
            if name in self._pictures:
                return name
        ending = "/" + inside[0]
        matches = [
            name
            for name in self._by_name.get(posixpath.basename(inside[0]), ())
            if f"/{name}".endswith(ending) or f"/{_stem(name)}".endswith(ending)
        ]
        in_split = [name for name in matches if row.split in map(split_in_name, PurePosixPath(name).parts[:-1])]
        chosen = in_split or matches
        if len(chosen) != 1:
            raise LookupError("ambiguous picture" if chosen else "no picture")
        return chosen[0]
