"""Predictions and references out of files, and the ids of the one matched to those of the other."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from grrcoca_cli.errors import UsageError
from grrcoca_cli.evaluation.records import ID_COLUMNS, Row, read_rows

_PREDICTION_COLUMNS = ("caption", "prediction", "text", "captions")
_REFERENCE_COLUMNS = ("references", "reference", "captions", "caption", "text")
_IMAGE_SUFFIXES = frozenset(
    [".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".ima", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2"]
)


def read_predictions(path: Path, *, notes: list[str] | None = None) -> dict[str, str]:
    """One caption by image id out of a file of any form that `records.read_rows` knows.

    Rows with a filled ``error`` field and no caption, as ``grrcoca caption`` writes them, are left out.

    Args:
        path: The file.
        notes: Gets a sentence for each thing to know: rows left out, captions that are there twice.

    Raises:
        UsageError: A fault of the file, with its line; two different captions for one image.
    """
    predictions: dict[str, str] = {}
    failed = repeated = 0
    for row in read_rows(path):
        if _failed(row):
            failed += 1
            continue
        image, captions = _entry(row, _PREDICTION_COLUMNS)
        for caption in captions:
            repeated += image in predictions
            if predictions.setdefault(image, caption) != caption:
                raise UsageError(
                    f"{row.place}: a second, different caption for {image!r}; keep one caption an image"
                    " (if these are references, give the file as references)"
                )
    if failed and notes is not None:
        notes.append(f"{failed} of the predictions' rows are errors without a caption, and left out")
    if repeated and notes is not None:
        notes.append(f"{repeated} of the predictions' rows repeat a caption word for word, and count once")
    if not predictions:
        why = f"all of its {failed} rows are errors" if failed else "there are no captions in it"
        raise UsageError(f"{path}: {why}; make the captions again")
    return predictions


def read_references(*paths: Path) -> dict[str, list[str]]:
    """References by image id; several rows of an image, and several files, are several references, in their order.

    Raises:
        UsageError: A fault of a file, with its line; plain text files that differ in length.
    """
    references: defaultdict[str, list[str]] = defaultdict(list)
    lines: dict[Path, int] = {}
    for path in paths:
        rows = read_rows(path)
        if path.suffix.lower() == ".txt":
            lines[path] = len(rows)
        for row in rows:
            image, captions = _entry(row, _REFERENCE_COLUMNS)
            references[image] += captions
    if len(set(lines.values())) > 1:
        counted = ", ".join(f"{path} has {count}" for path, count in lines.items())
        raise UsageError(f"plain text files are matched line by line, and {counted} lines; give files of equal length")
    if not references:
        raise UsageError(f"{paths[0]}: there are no captions in it; give a file with references")
    return dict(references)


def read_columns(path: Path) -> dict[str, dict[str, str]]:
    """The other columns of a file of references by image id (modality, patient), for groups and clusters.

    Of several rows of an image the first counts.

    Raises:
        UsageError: A fault of the file, with its line.
    """
    columns: dict[str, dict[str, str]] = {}
    for row in read_rows(path):
        image, _ = _entry(row, _REFERENCE_COLUMNS)
        others = {name: str(value) for name, value in row.fields.items() if isinstance(value, str | int | float)}
        columns.setdefault(image, others)
    return columns


def align(
    predictions: Mapping[str, str], references: Mapping[str, list[str]], *, notes: list[str] | None = None
) -> dict[str, str]:
    """The predictions under the ids of the references.

    Where an id is in both, nothing changes. Else, if ids of either side are paths or end in an image's extension, ids
    are the same whose file names without extension are; a prediction that fits no reference keeps its id.

    Args:
        predictions: Caption by image id or path.
        references: References by image id or path.
        notes: Gets a sentence when file names were compared.

    Raises:
        UsageError: A file name that fits two predictions or two references.
    """
    unmatched = predictions.keys() - references.keys()
    if not unmatched or not any(_stem(image) != image for image in (*unmatched, *references)):
        return dict(predictions)
    stems: defaultdict[str, list[str]] = defaultdict(list)
    for image in references:
        stems[_stem(image)].append(image)
    aligned: dict[str, str] = {}
    origin: dict[str, str] = {}
    for image, caption in predictions.items():
        fitting = [image] if image in references else stems.get(_stem(image), [image])
        if len(fitting) > 1:
            raise UsageError(f"prediction {image!r} fits {len(fitting)} references by its file name; give whole ids")
        target = fitting[0]
        if target in origin:
            raise UsageError(
                f"predictions {origin[target]!r} and {image!r} fit one reference, {target!r}, by file name; "
                "give them the ids of the references"
            )
        origin[target], aligned[target] = image, caption
    matched = sum(target != image for target, image in origin.items())
    if matched and notes is not None:
        notes.append(
            f"{matched} of {len(predictions)} predictions are matched by file name without folder and extension"
        )
    return aligned


def _stem(image: str) -> str:
    """The last part of a path, without an image's extension; other extensions stay, as in ``1.2.840``."""
    name = PurePosixPath(image.replace("\\", "/"))
    return name.stem if name.suffix.lower() in _IMAGE_SUFFIXES else name.name


def _failed(row: Row) -> bool:
    return bool(row.fields.get("error")) and not any(row.fields.get(column) for column in _PREDICTION_COLUMNS)


def _entry(row: Row, text_columns: Sequence[str]) -> tuple[str, list[str]]:
    """Image id and captions of one row."""
    image = row.fields[_column(row, ID_COLUMNS, "the image's id")]
    column = _column(row, text_columns, "the caption")
    value = row.fields[column]
    if isinstance(image, bool) or not isinstance(image, str | int) or not str(image).strip():
        raise UsageError(f"{row.place}: the image's id must be a text or a whole number, and not empty")
    captions = []
    for caption in value if isinstance(value, list) else [value]:
        if caption is not None and not isinstance(caption, str):
            raise UsageError(f"{row.place}: {column!r} must be a text or a list of texts")
        # Half a surrogate pair, which JSON can hold and no file can
        captions.append((caption or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return str(image).strip(), captions


def _column(row: Row, names: Sequence[str], meaning: str) -> str:
    """The first of ``names`` that the row has."""
    for name in names:
        if name in row.fields:
            return name
    message = f"{row.place}: no column for {meaning} among {', '.join(map(repr, row.fields)) or 'none'}"
    for found in row.fields:
        if close := get_close_matches(found, names, n=1, cutoff=0.7):
            raise UsageError(f"{message}; did you mean {close[0]!r} for {found!r}?")
    raise UsageError(f"{message}; name it {' or '.join(map(repr, names))}")
