"""Files of a series as volumes: grouped by series, orientation and shape, sorted along the normal of their slices."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grrcoca_cli.errors import UnreadableImage
from medical.dicom import NOT_PICTURES, is_dicom, parse_header, sop_class_name
from medical.elements import integer, numbers, texts, value
from medical.image import named_refusals, read_head
from medical.sources import ImageInput, load

_TOLERANCE = 0.005
"""Direction cosines of one scan differ in the fifth digit; those of two scans in the first or second."""

MOST_INFLATED = 100
"""Bytes that a byte of a file may hold, deflated."""


@dataclass(frozen=True)
class Header:
    """What grouping needs of one file, and nothing that identifies.

    Attributes:
        series: Salted hash of SeriesInstanceUID; empty where there is none.
        orientation: Direction cosines of rows and columns; empty where they are not given.
        position: Of the slice along its normal, in mm; None without a position.
        instance: InstanceNumber, or None.
        rows: Height in pixels.
        columns: Width in pixels.
        frames: Count of frames.
        localizer: Whether it is a scout of a scan.
    """

    series: str = ""
    orientation: tuple[float, ...] = ()
    position: float | None = None
    instance: int | None = None
    rows: int = 0
    columns: int = 0
    frames: int = 1
    localizer: bool = False


@dataclass(frozen=True)
class Volumes:
    """How a set of files falls into volumes; files are meant by their index.

    Attributes:
        volumes: Each its files in order along the normal, sorted by its first file's index; single pictures and
            multi-frame files are volumes by themselves.
        localizers: Files that are scouts.
        refused: Why a file is no picture, by index.
    """

    volumes: list[list[int]] = field(default_factory=list)
    localizers: list[int] = field(default_factory=list)
    refused: dict[int, UnreadableImage] = field(default_factory=dict)


def read_header(request: tuple[ImageInput, bytes]) -> Header:
    """The header of one file, its pixels left alone: what a guarded worker does.

    Args:
        request: The input, and a salt that is the same for all files of a set.

    Raises:
        UnreadableImage: The file cannot be read, or is no picture.
    """
    item, salt = request
    source = load(item)
    if not is_dicom(read_head(source)):
        return Header()
    found = _dicom_header(source, salt)
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if found.frames > max(1, MOST_INFLATED * size):  # a frame takes a byte at the least
        raise UnreadableImage("truncated", f"{found.frames:,} frames cannot be in {size:,} bytes")
    return found


def _dicom_header(source: Path | bytes, salt: bytes) -> Header:
    with named_refusals():
        dataset = parse_header(source)
        name = sop_class_name(dataset)
        if name in NOT_PICTURES or ("Image" not in name and not integer(dataset, "Rows")):
            raise UnreadableImage("not an image", name)
        uid = value(dataset, "SeriesInstanceUID")
        cosines, place = numbers(dataset, "ImageOrientationPatient"), numbers(dataset, "ImagePositionPatient")
        return Header(
            series=hashlib.blake2b(str(uid).encode(), key=salt, digest_size=8).hexdigest() if uid else "",
            orientation=cosines if len(cosines) == 6 else (),
            position=_along_normal(cosines, place),
            instance=integer(dataset, "InstanceNumber"),
            rows=integer(dataset, "Rows") or 0,
            columns=integer(dataset, "Columns") or 0,
            frames=max(integer(dataset, "NumberOfFrames") or 1, 1),
            localizer="LOCALIZER" in (text.upper() for text in texts(dataset, "ImageType")),
        )


def _along_normal(cosines: Sequence[float], place: Sequence[float]) -> float | None:
    """Distance of a slice from the origin along the cross product of its rows and columns (PS3.3 C.7.6.2.1.1).

    None where the cosines are none: those of a sound file make a normal of length 1.
    """
    if len(cosines) != 6 or len(place) != 3:
        return None
    (a, b, c), (d, e, f) = cosines[:3], cosines[3:]
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    if not 0.9 < math.hypot(*normal) < 1.1:
        return None
    return sum(n * p for n, p in zip(normal, place, strict=True))


def group_series(headers: Sequence[Header | UnreadableImage]) -> Volumes:
    """Volumes of some files.

    Args:
        headers: Of each file, or why it has none, in the order of their names.
    """
    found = Volumes()
    stacks: defaultdict[tuple[str, int, int], list[list[int]]] = defaultdict(list)
    for index, header in enumerate(headers):
        if isinstance(header, UnreadableImage):
            found.refused[index] = header
        elif header.localizer:
            found.localizers.append(index)
        elif not header.series or header.frames > 1:
            found.volumes.append([index])
        else:
            alike = stacks[header.series, header.rows, header.columns]
            stack = next((stack for stack in alike if _parallel(headers[stack[0]], header)), None)
            if stack is None:
                alike.append(stack := [])
            stack.append(index)
    found.volumes.extend(_sorted(stack, headers) for alike in stacks.values() for stack in alike)
    found.volumes.sort(key=min)
    return found


def _parallel(a: Header | UnreadableImage, b: Header) -> bool:
    """Whether two slices lie alike; compared and not rounded, which would part neighbours at a rounding edge."""
    assert isinstance(a, Header)
    pairs = zip(a.orientation, b.orientation, strict=False)
    return len(a.orientation) == len(b.orientation) and all(abs(x - y) <= _TOLERANCE for x, y in pairs)


def _sorted(members: list[int], headers: Sequence[Header | UnreadableImage]) -> list[int]:
    """By position, if every slice has one; slices of one position, or all, by their number; else as they came."""
    found = {index: header for index in members if isinstance(header := headers[index], Header)}
    placed = all(header.position is not None for header in found.values())

    def order(index: int) -> tuple[float, int]:
        header = found[index]
        return (header.position or 0.0) if placed else 0.0, header.instance or 0

    return sorted(members, key=order)


def choose(count: int, which: int | str) -> list[int]:
    """Positions of a volume's slices to read: ``"all"``, ``"first"``, an index, else the middle one.

    Raises:
        UnreadableImage: There is no such slice.
    """
    if which == "all":
        return list(range(count))
    index = which if isinstance(which, int) else 0 if which == "first" else count // 2
    if not 0 <= index < count:
        raise UnreadableImage("no such slice", f"slice {index} of {count}, counted from 0")
    return [index]
