"""Mutants of real files: each gives a picture or a named refusal, in time, in bounds, in silence."""

import importlib.util
import random
import re
import struct
from collections import Counter
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pytest

from grrcoca_cli.errors import UnreadableImage
from medical.dicom import HEAD_BYTES, is_dicom
from medical.guard import Limits, guarded_map
from medical.image import RadiologyImage, read_image

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom"
LARGEST = 300_000
LIMITS = Limits(seconds=5, memory_mb=1024)

_PIXEL_DATA = b"\xe0\x7f\x10\0"
_VR = re.compile(rb"AE|AS|AT|CS|DA|DS|DT|FD|FL|IS|LO|LT|OB|OW|PN|SH|SL|SQ|SS|ST|TM|UI|UL|UN|US|UT")
_VRS = [b"OB", b"OW", b"SQ", b"UN", b"US", b"DS", b"IS", b"UI", b"PN", b"LO", b"AT", b"FD", b"??", b"\0\0"]
_LENGTHS = [0, 1, 2, 3, 7, 255, 65534, 65535, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]


class Mutant(NamedTuple):
    """A damaged copy of a file, and the name of the sound one."""

    origin: Path
    content: bytes


@cache
def originals() -> tuple[Path, ...]:
    """DICOM images of at most `LARGEST` bytes, each content once, in an order that is everywhere the same."""
    folders = [SHARED]
    for package in ("pydicom", "data_store"):  # not by `pydicom.data`, which may download
        spec = importlib.util.find_spec(package)
        folders += [Path(place) / "data" for place in (spec.submodule_search_locations or [])] if spec else []
    found: dict[bytes, Path] = {}
    for path in sorted((path for folder in folders for path in folder.rglob("*")), key=lambda path: path.name):
        if path.is_file() and path.stat().st_size <= LARGEST:
            content = path.read_bytes()
            if is_dicom(content[:HEAD_BYTES]) and (_PIXEL_DATA in content or b"deflate" in path.name.encode()):
                found.setdefault(content, path)
    return tuple(found.values())


def mutants(count: int, first: int = 0) -> Iterator[Mutant]:
    """Every original in turn, each time damaged otherwise."""
    for number in range(first, first + count):
        origin = originals()[number % len(originals())]
        yield Mutant(origin, mutate(origin.read_bytes(), random.Random(number)))


def mutate(content: bytes, draw: random.Random) -> bytes:
    """One to three changes: flipped bytes, cuts, repeated ranges, other lengths and other VRs of elements.

    All in one region: the header, the first bytes of the pixel data (which a codec believes), or the file at large.
    """
    changed, pixels = bytearray(content), max(content.find(_PIXEL_DATA), HEAD_BYTES)
    start, end = draw.choice(
        [(0, pixels + 12), (pixels + 12, pixels + 800), (pixels + 12, len(content)), (0, len(content))]
    )
    changes = [_flip, _flip, _cut, _repeat, *([_edit_length, _edit_vr] if start == 0 else [])]
    for _ in range(draw.randint(1, 3)):
        at = min(draw.randrange(start, max(end, start + 1)), max(len(changed) - 1, 0))
        draw.choice(changes)(changed, at, draw)
    return bytes(changed)


def _flip(content: bytearray, at: int, draw: random.Random) -> None:
    for place in range(at, min(at + draw.choice([1, 1, 4, 32]), len(content))):
        content[place] = draw.randrange(256)


def _cut(content: bytearray, at: int, draw: random.Random) -> None:
    del content[at : draw.choice([len(content), at + draw.randint(1, 64)])]


def _repeat(content: bytearray, at: int, draw: random.Random) -> None:
    content[at:at] = content[at : at + draw.randint(1, 512)] * draw.choice([1, 2, 50])


def _edit_length(content: bytearray, at: int, draw: random.Random) -> None:
    """Of the element that stands next, in both places where it may be; else of an item, wherever one is."""
    length = draw.choice(_LENGTHS)
    found = _VR.search(content, at) or _VR.search(content, 132)
    if found and draw.random() < 0.7:
        content[found.end() : found.end() + 2] = struct.pack("<H", length & 0xFFFF)
        if draw.random() < 0.5:
            content[found.end() + 2 : found.end() + 6] = struct.pack("<I", length)
    else:
        item = max(content.find(b"\xfe\xff\0\xe0"), 0)
        content[item + 4 : item + 8] = struct.pack("<I", length)


def _edit_vr(content: bytearray, at: int, draw: random.Random) -> None:
    if found := _VR.search(content, at) or _VR.search(content, 132):
        content[found.start() : found.end()] = draw.choice(_VRS)


@cache
def identity(origin: Path) -> frozenset[str]:
    """Values of a file that no message may hold: names, dates, UIDs, descriptions, whatever is text and long enough."""
    from pydicom import dcmread
    from pydicom._uid_dict import UID_dictionary

    from medical.dicom import quiet_pydicom

    values = set()
    with quiet_pydicom():
        try:
            dataset = dcmread(BytesIO(origin.read_bytes()), force=True, stop_before_pixels=True)
            for element in dataset.iterall():
                if element.VR in {"PN", "LO", "SH", "ST", "LT", "UT", "DA", "TM", "DT", "UI", "AE"}:
                    values.add(str(element.value).strip().lower())
        except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError, OSError, RecursionError):
            pass  # a file that is broken as it stands: what was found of it counts
    registered = " ".join(name for name, *_ in UID_dictionary.values()).lower()  # the standard's names may be told
    return frozenset(value for value in values if len(value) > 4 and value not in registered)


def check(count: int, first: int = 0) -> Counter[str]:
    """Read mutants through the guard; gives how many became what."""
    origins: list[Path] = []

    def contents() -> Iterator[bytes]:
        for mutant in mutants(count, first):
            origins.append(mutant.origin)
            yield mutant.content

    outcomes: Counter[str] = Counter()
    for number, answer in enumerate(guarded_map(read_image, contents(), limits=LIMITS)):
        if isinstance(answer, UnreadableImage):
            said, kind = str(answer), answer.kind
            assert kind != "too slow", f"mutant {first + number}"
            assert "memory" not in said, f"mutant {first + number}: {said}"
        else:
            assert isinstance(answer, RadiologyImage)
            assert answer.pixels.min() >= 0
            assert answer.pixels.max() <= 1
            said, kind = str(answer.description), "read"
        told = [value for value in identity(origins[number]) if value in said.lower()]
        assert not told, f"mutant {first + number} of {origins[number].name} tells a value of the file"
        outcomes[kind] += 1
    assert outcomes.total() == count
    return outcomes


def test_mutants_are_deterministic() -> None:
    assert list(mutants(20, 500)) == list(mutants(20, 500))
    changed = [mutant for mutant in mutants(200) if mutant.content != mutant.origin.read_bytes()]
    assert len(changed) > 190


def test_a_thousand_mutants(capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = check(1000)
    assert capfd.readouterr() == ("", "")
    assert outcomes["read"] > 200  # else the mutants test little but the first bytes
    assert len(outcomes) > 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_mutants(capfd: pytest.CaptureFixture[str]) -> None:
    outcomes = check(10_000, first=1000)
    assert capfd.readouterr() == ("", "")
    assert outcomes["read"] > 2000
