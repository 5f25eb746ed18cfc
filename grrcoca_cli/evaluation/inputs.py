"""Predictions and references out of files, and the ids of the one matched to those of the other."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
    rows = read_rows(path)
    if notes is not None:
        notes += _notes_on_form(path, rows)
    for row in rows:
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


def read_references(*paths: Path, notes: list[str] | None = None) -> dict[str, list[str]]:
    """References by image id; several rows of an image, and several files, are several references, in their order.

    Raises:
        UsageError: A fault of a file, with its line; plain text files that differ in length.
    """
    references: defaultdict[str, list[str]] = defaultdict(list)
    check_lines(*paths)
    for path in paths:
        rows = read_rows(path)
        if notes is not None:
            notes += _notes_on_form(path, rows)
        for row in rows:
            image, captions = _entry(row, _REFERENCE_COLUMNS)
            references[image] += captions
    if not references:
        raise UsageError(f"{paths[0]}: there are no captions in it; give a file with references")
    return dict(references)


def _notes_on_form(path: Path, rows: Sequence[Row]) -> list[str]:
    """What to know where the form of a text file is a guess."""
    if not rows or not rows[0].form:
        return []
    if rows[0].form == "tabbed":
        return [f"{path.name} is read as a file, a tab and its caption in each line"]
    tabs = sum("\t" in str(row.fields["caption"]) for row in rows)
    return [f"{path.name} is read as one caption per line; tabs in {tabs} of {len(rows)} lines"] if tabs else []


def check_lines(*paths: Path) -> None:
    """Refuse plain text files of unequal length: they are matched line by line.

    Raises:
        UsageError: They differ, or one of the files has a fault.
    """
    lines: dict[Path, int] = {}
    for path in paths:
        rows = read_rows(path) if path.is_file() else []  # a pipe cannot be read twice
        if rows and rows[0].form == "plain":
            lines[path] = len(rows)
    if len(set(lines.values())) > 1:
        counted = " against ".join(f"{count} lines in {path}" for path, count in lines.items())
        raise UsageError(f"plain text files are matched line by line: {counted}; give files of equal length")


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


def file_names(columns: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """COCO's ``file_name`` of each image that has one, by image id, from `read_columns`."""
    return {image: fields["file_name"] for image, fields in columns.items() if fields.get("file_name")}


def align(
    predictions: Mapping[str, str],
    references: Mapping[str, list[str]],
    *,
    names: Mapping[str, str] | None = None,
    notes: list[str] | None = None,
) -> dict[str, str]:
    """The predictions under the ids of the references.

    An id that is in both stays. Otherwise a prediction is matched by file name: with the reference whose id, or whose
    name in ``names``, is the same path, or the same file name without folder and extension. A prediction that fits no
    reference keeps its id.

    Args:
        predictions: Caption by image id or path.
        references: References by image id or path.
        names: File name by image id of the references, where their file has one (COCO's ``file_name``).
        notes: Gets a sentence when file names were compared.

    Raises:
        UsageError: A file name that fits two predictions or two references.
    """
    names = {image: name for image, name in (names or {}).items() if image in references}
    unmatched = predictions.keys() - references.keys()
    if not unmatched or not (names or any(_stem(image) != image for image in (*unmatched, *references))):
        return dict(predictions)
    own = _by_name((_stem(image), image) for image in references)
    whole = _by_name((name, image) for image, name in names.items())
    stems = _by_name((_stem(name), image) for image, name in names.items())
    aligned: dict[str, str] = {}
    origin: dict[str, str] = {}
    through_names = 0
    for image, caption in predictions.items():
        fitting = [image] if image in references else own.get(_stem(image), [])
        if not fitting:
            fitting = whole.get(image) or stems.get(_stem(image), [])
            through_names += bool(fitting)
        fitting = fitting or [image]
        if len(fitting) > 1:
            raise UsageError(f"prediction {image!r} fits {len(fitting)} references by its file name; give whole ids")
        target = fitting[0]
        if target in origin:
            raise UsageError(
                f"predictions {origin[target]!r} and {image!r} fit one reference, {target!r}, by file name; "
                "give them the ids of the references"
            )
        origin[target], aligned[target] = image, caption
    matched = sum(target != image for target, image in origin.items()) - through_names
    if through_names and notes is not None:
        notes.append(f"{through_names} of {len(predictions)} predictions are matched by the references' file_name")
    if matched and notes is not None:
        notes.append(
            f"{matched} of {len(predictions)} predictions are matched by file name without folder and extension"
        )
    return aligned


def _by_name(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Image ids by name."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, image in pairs:
        found[name].append(image)
    return dict(found)


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
