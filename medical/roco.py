"""ROCO, radiology figures with their captions: the 2018 repository, its Kaggle copy, ROCOv2 as on Zenodo, the Hub's.

Which of them a folder holds is found by looking. Pelka et al., "Radiology Objects in COntext (ROCO)", LABELS 2018;
Rückert et al., "ROCOv2", Scientific Data 2024, doi 10.1038/s41597-024-03496-6.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from grrcoca_cli.data.base import ListDataset, Sample
from grrcoca_cli.data.captions import clean_caption
from grrcoca_cli.errors import NoSuchSplit, UsageError
from medical.roco_parquet import ParquetDataset, find_parquet, open_parquet

SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
KINDS = {
    "radiology": ("radiology",),
    "non-radiology": ("non-radiology",),
    "both": ("radiology", "non-radiology"),
}
HOW_TO_GET = (
    "ROCO: git clone https://github.com/razorx89/roco-dataset, then its scripts/fetch.py downloads the pictures; "
    "ROCOv2: unpack https://doi.org/10.5281/zenodo.10821435 into one folder"
)

Row = tuple[str, str, str]
"""One line of a caption file: id, the picture's name, the caption as written."""


def open_roco(root: Path, split: str, *, kind: str = "radiology") -> ListDataset | ParquetDataset:
    """The rows of one split that have a picture and a caption; no picture is opened yet.

    Args:
        root: Of ROCO, the folder that holds ``data`` (or ``all_data``, as on Kaggle), or that folder itself; of ROCOv2,
            the folder of ``train_captions.csv``; of the Hub's copies, the folder of ``train-00000-of-….parquet`` or
            the one above its ``data``.
        split: ``train``, ``validation`` (also ``valid`` or ``val``) or ``test``.
        kind: ``radiology``, ``non-radiology`` or ``both``; ROCOv2 and the Hub's copies are radiology alone.

    Returns:
        Samples by ROCO id, in the file's order. ``fields`` holds what the folder gives: ``article`` (PMC id),
        ``keywords`` and ``cuis`` (joined by ``;``). ``skipped`` counts ``"no picture"``, ``"empty caption"``,
        ``"malformed row"`` and ``"repeated id"``; without downloaded pictures every row is ``"no picture"``.

    Raises:
        UsageError: No such folder, split, kind or layout; says what was looked for and found, and how to get ROCO.
    """
    names = next((names for name, names in SPLITS.items() if split == name or split in names), None)
    if names is None or kind not in KINDS:
        raise UsageError(
            f"ROCO has no split {split!r} of kind {kind!r}; splits: {', '.join(SPLITS)}; kinds: {', '.join(KINDS)}"
        )
    if not root.is_dir():
        raise UsageError(f"no folder {root}. {HOW_TO_GET}")
    samples: dict[str, Sample] = {}
    skipped: Counter[str] = Counter()
    captions, parquet = _first_file(root, [f"{name}_captions.csv" for name in names]), find_parquet(root, names)
    if (captions or parquet) and kind == "non-radiology":
        raise UsageError(f"{root} holds ROCOv2 or a copy of the Hub, which have no non-radiology part; use radiology")
    if captions:
        _read_v2(captions, samples, skipped)
        return ListDataset(list(samples.values()), skipped)
    if parquet:
        return open_parquet(parquet)
    for part in KINDS[kind]:
        _read_v1(_v1_folder(root, names, part), samples, skipped)
    return ListDataset(list(samples.values()), skipped)


def _v1_folder(root: Path, names: tuple[str, ...], part: str) -> Path:
    bases = (root, root / "data", root / "all_data")
    for folder in (base / name / part for base in bases for name in names):
        if folder.is_dir():
            return folder
    found = ", ".join(sorted(path.name for path in root.iterdir())[:12]) or "nothing"
    raise NoSuchSplit(
        f"{root} has neither {' or '.join(f'{name}/{part}' for name in names)} (looked in it, in data and in all_data) "
        f"as ROCO has, nor {' or '.join(f'{name}_captions.csv' for name in names)} as ROCOv2 has, nor "
        f"{names[0]}-*.parquet as the Hub has; it holds: {found}. {HOW_TO_GET}"
    )


def _read_v1(folder: Path, samples: dict[str, Sample], skipped: Counter[str]) -> None:
    """Rows of ``captions.txt``, else of Kaggle's ``traindata.csv`` and its like."""
    table = _first_file(folder, ["captions.txt", "traindata.csv", "valdata.csv", "validationdata.csv", "testdata.csv"])
    if table is None:
        raise UsageError(f"{folder} has neither captions.txt nor a *data.csv as on Kaggle. {HOW_TO_GET}")
    # Kaggle names a picture as its article does, the repository's scripts by the ROCO id; licences.txt knows both
    licences = {row[0]: row[1] for row in _csv_rows(folder / "licences.txt") if len(row) > 1}
    keywords, cuis = _values_by_id(folder / "keywords.txt"), _values_by_id(folder / "cuis.txt")
    rows: Iterator[Row | None]
    if table.suffix == ".txt":
        split_lines = (line.split("\t", 1) for line in _lines(table))
        rows = (
            (row[0].strip(), licences.get(row[0].strip(), ""), row[1]) if len(row) > 1 else None for row in split_lines
        )
    else:
        rows = ((row[0].strip(), row[1], row[2]) if len(row) > 2 else None for row in _csv_rows(table))
    _add(
        rows,
        _pictures([folder / "images"]),
        {"article": {key: name.split("_", 1)[0] for key, name in licences.items()}, "keywords": keywords, "cuis": cuis},
        samples,
        skipped,
    )


def _read_v2(captions: Path, samples: dict[str, Sample], skipped: Counter[str]) -> None:
    split = captions.name.removesuffix("_captions.csv")
    cuis: dict[str, str] = {}
    for name in (
        f"{split}_concepts_manual.csv",
        f"{split}_concepts.csv",
    ):  # the second knows all of the first's, and more
        cuis |= {row[0].strip(): row[1].strip() for row in _csv_rows(captions.with_name(name)) if len(row) > 1}
    rows = ((row[0].strip(), "", row[1]) if len(row) > 1 else None for row in _csv_rows(captions))
    pictures = _pictures([captions.with_name(name) for name in (f"{split}_images", split)])
    _add(rows, pictures, {"cuis": cuis}, samples, skipped)


def _add(
    rows: Iterator[Row | None],
    pictures: dict[str, Path],
    fields: dict[str, dict[str, str]],
    samples: dict[str, Sample],
    skipped: Counter[str],
) -> None:
    """Turn rows into samples, or count why not.

    Args:
        rows: None stands for a malformed one.
        pictures: Paths by file name without extension.
        fields: Values by field, then by id.
        samples: Filled, by id.
        skipped: Counted up, by reason.
    """
    for row in rows:
        if row is None or not row[0]:
            skipped["malformed row"] += 1
            continue
        key, name, caption = row[0], row[1].strip(), clean_caption(row[2])
        picture = pictures.get(Path(key).stem) or pictures.get(Path(name).stem)
        if key in samples:
            skipped["repeated id"] += 1
        elif not caption:
            skipped["empty caption"] += 1
        elif picture is None:
            skipped["no picture"] += 1
        else:
            known = {field: values[key] for field, values in fields.items() if values.get(key)}
            samples[key] = Sample(key, picture, (caption,), known)


def _first_file(folder: Path, names: list[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _pictures(folders: list[Path]) -> dict[str, Path]:
    """Files by name without extension, from those of the folders that exist."""
    found: dict[str, Path] = {}
    for folder in folders:
        if folder.is_dir():
            with os.scandir(folder) as entries:  # 65,000 files: one listing, and no look at each row's path
                found |= {Path(entry.name).stem: folder / entry.name for entry in entries if entry.is_file()}
    return found


def _lines(path: Path) -> Iterator[str]:
    """Lines that end in LF and nothing else: captions hold U+2028 and form feeds, which are no line ends here."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
        for line in file:
            if text := line.rstrip("\r\n"):
                yield text


def _csv_rows(path: Path) -> Iterator[list[str]]:
    """Rows after the header; none if there is no such file."""
    if path.is_file():
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.reader(file)
            next(rows, None)
            try:
                yield from (row for row in rows if row)
            except csv.Error as error:  # a stray quote that swallows the rest of the file
                raise UsageError(f"{path}, line {rows.line_num}: {error}") from error


def _values_by_id(path: Path) -> dict[str, str]:
    """``ID<TAB><TAB>v1<TAB>v2`` as values joined by ``;``; nothing if there is no such file."""
    if not path.is_file():
        return {}
    rows = (line.split("\t") for line in _lines(path))
    return {row[0].strip(): ";".join(value.strip() for value in row[1:] if value.strip()) for row in rows}
