"""What a user points at, as single pictures to read: files, folders, zip archives, a DICOMDIR, standard input.

Names are the user's own paths, those of archive members too, and are shown as given; nothing is unpacked to disk.
"""

import io
import os
import re
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from grrcoca_cli.errors import UnreadableImage, UsageError
from medical.dicom import HEAD_BYTES, is_dicom, quiet_pydicom
from medical.elements import items, value
from medical.guard import guarded_map
from medical.image import RadiologyImage, read_image

STDIN = "-"
MAX_BYTES = 2**31
"""Most bytes of an archive's member, or of standard input."""
MAX_HELD = 2**28
"""Most bytes of all members of an archive on standard input: they are held in memory."""
MAX_MEMBERS = 100_000
MAX_INFLATION = (2**26, 200)
"""A member above so many bytes may not be more than so many times what it takes in the archive."""

_STEP = 2**20
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_DIRECTORY = re.compile(rb"1\.2\.840\.10008\.1\.3\.10(?![\d.])")
"""SOP class of a DICOMDIR, Media Storage Directory, in a file's meta elements."""


_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, KeyError, ValueError)
"""What zipfile raises for a member that is cut, changed, or packed in a way it does not know."""


@dataclass(frozen=True)
class ImageInput:
    """One file to read, or why it is not read.

    Attributes:
        name: What to call it in output: the path as given, ``archive.zip/member``, or ``-``.
        path: The file, or the archive it is in; None for standard input.
        member: Its name in the archive.
        content: The bytes, of standard input.
        named: Whether the user named it, and did not merely name the folder it is in.
        grouped: Whether it is part of a set of series (an archive, a DICOMDIR).
        refusal: Why it is not read, or None.
    """

    name: str
    path: Path | None
    member: str = ""
    content: bytes = field(default=b"", repr=False)
    named: bool = True
    grouped: bool = False
    refusal: UnreadableImage | None = None


def find_inputs(paths: Iterable[Path | str]) -> Iterator[ImageInput]:
    """Every picture below some paths, in the order of their names; hidden files of folders are passed over.

    Archives and DICOMDIRs are known by content, and opened where they were named.

    Raises:
        UsageError: A path does not exist, or standard input is too large.
    """
    for path in paths:
        if str(path) == STDIN:
            yield from _standard_input()
            continue
        path = Path(path)
        if path.is_dir():
            yield from _folder(path)
        elif path.is_file():
            yield from _file(path)
        elif path.exists():
            yield ImageInput(str(path), path, refusal=UnreadableImage("cannot be opened", "not a regular file"))
        else:
            raise UsageError(f"{path} does not exist")


def load(item: ImageInput) -> Path | bytes:
    """What `medical.read_image` takes: the path, or the bytes of an archive's member.

    Raises:
        UnreadableImage: The member is damaged, or holds more than the archive says.
    """
    if item.path is None:
        return item.content
    if not item.member:
        return item.path
    try:
        archive = _opened(item.path, item.path.stat().st_mtime_ns)
        return _inflate(archive, archive.getinfo(item.member))
    except _DAMAGED as error:
        raise _not_given(error) from None


@lru_cache(maxsize=1)  # the members of an archive follow each other, and its directory is read once
def _opened(path: Path, modified: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _not_given(error: Exception) -> UnreadableImage:
    return UnreadableImage("damaged", f"the archive does not give it ({type(error).__name__})")


def _inflate(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The bytes of a member, inflated in steps: all at once, zipfile makes room for more than the size it states.

    Raises:
        UnreadableImage: It is refused. A name may stand twice in an archive, and was checked for the other one.
    """
    if refusal := _refused(member):
        raise refusal
    with archive.open(member) as file:
        return b"".join(iter(partial(file.read, _STEP), b""))


def read_input(request: tuple[ImageInput, int | str, str | None]) -> RadiologyImage:
    """`medical.read_image` of an input, with frame and window: what a guarded worker does."""
    item, frame, window = request
    return read_image(load(item), frame=frame, window=window)


def _file(path: Path) -> Iterator[ImageInput]:
    head = b""
    if os.access(path, os.R_OK):
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    if head.startswith(_ZIP):
        with path.open("rb") as file:
            yield from _members(file, str(path), path)
    elif is_dicom(head) and _DIRECTORY.search(head):
        yield from _directory(path)
    else:
        yield ImageInput(str(path), path)


def _folder(root: Path) -> Iterator[ImageInput]:
    unread: list[OSError] = []
    # Links to folders are not followed: they may lead in a circle
    for folder, folders, names in os.walk(root, onerror=unread.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = Path(folder) / name
                if path.is_file() or not path.exists():  # no pipe, which would be waited for; a dangling link is named
                    yield ImageInput(str(path), path, named=False)
    for error in unread:
        refusal = UnreadableImage("cannot be opened", error.strerror or type(error).__name__)
        yield ImageInput(str(error.filename), Path(error.filename), named=False, refusal=refusal)


def _standard_input() -> Iterator[ImageInput]:
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UsageError(f"standard input holds more than {MAX_BYTES:,} bytes: give a file")
    if content.startswith(_ZIP):
        yield from _members(io.BytesIO(content), STDIN, None)
    else:
        yield ImageInput(STDIN, None, content=content)


def _members(file: BinaryIO, name: str, path: Path | None) -> Iterator[ImageInput]:
    """The members of an archive in the order of their names; those of standard input with their bytes."""
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        refused = UnreadableImage("damaged", f"begins as a zip archive and is none ({type(error).__name__})")
        yield ImageInput(name, path, refusal=refused)
        return
    with archive:
        members = sorted(archive.infolist(), key=lambda member: member.filename)
        if len(members) > MAX_MEMBERS:
            refused = UnreadableImage(
                "too large", f"{len(members):,} members, at most {MAX_MEMBERS:,} are read: unpack it"
            )
            yield ImageInput(name, path, refusal=refused)
            return
        held = 0  # of standard input, whose members are all in memory at once
        for member in members:
            if member.filename and (member.is_dir() or _is_hidden(member.filename)):
                continue
            shown, refusal, content = f"{name}/{member.filename}", _refused(member), b""
            if refusal is None and path is None:
                held += member.file_size
                if held > MAX_HELD:
                    raise UsageError(f"the archive in {name} holds more than {MAX_HELD:,} bytes: give it as a file")
                try:
                    content = _inflate(archive, member)
                except _DAMAGED as error:
                    refusal = _not_given(error)
            yield ImageInput(shown, path, member.filename, content, named=False, grouped=True, refusal=refusal)


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return "__MACOSX" in parts or any(part.startswith(".") and part != ".." for part in parts)


def _refused(member: zipfile.ZipInfo) -> UnreadableImage | None:
    """Why a member is not read: it leaves its folder, is a link, is locked, or is a bomb."""
    if not member.filename:  # all of it behind a zero byte; `is_dir` would fail on it
        return UnreadableImage("damaged", "it has no name")
    name = member.filename.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or name[1:2] == ":":
        return UnreadableImage("unsafe path", "it leads out of the archive's folder")
    if stat.S_ISLNK(member.external_attr >> 16):
        return UnreadableImage("unsafe path", "it is a link")
    if member.flag_bits & 1:
        return UnreadableImage("encrypted", "unlock the archive first")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile inflates others without limit
        return UnreadableImage("not supported", "compressed by another method than deflate: pack the archive again")
    floor, times = MAX_INFLATION
    if member.file_size > MAX_BYTES or member.file_size > max(floor, times * member.compress_size):
        return UnreadableImage("too large", f"{member.file_size:,} bytes out of {member.compress_size:,}")
    return None


def _directory(path: Path) -> Iterator[ImageInput]:
    """The files that a DICOMDIR names, below its folder alone; a record is called by its number."""
    (found,) = guarded_map(directory_entries, [path], workers=1)
    if isinstance(found, UnreadableImage):
        yield ImageInput(str(path), path, refusal=found)
        return
    for number, components in enumerate(found, start=1):
        target = _target(path.parent, components)
        if isinstance(target, UnreadableImage):
            yield ImageInput(f"{path} record {number}", None, named=False, grouped=True, refusal=target)
        else:
            yield ImageInput(str(target), target, named=False, grouped=True)


def _target(folder: Path, components: tuple[str, ...]) -> Path | UnreadableImage:
    """The file that a record of a DICOMDIR names, or why it is not read."""
    outside = UnreadableImage("unsafe path", "it leads out of the DICOMDIR's folder")
    if any(part in ("", ".", "..") or "/" in part or "\\" in part for part in components):
        return outside
    lower = (part.lower() for part in components)  # of media that were copied with such names
    try:
        for target in (folder.joinpath(*components), folder.joinpath(*lower)):
            if target.is_file():
                return target if target.resolve().is_relative_to(folder.resolve()) else outside
    except OSError:  # a name too long for a file; the message would quote it
        pass
    return UnreadableImage("no such file")


def directory_entries(path: Path) -> list[tuple[str, ...]]:
    """Components of every ReferencedFileID of a DICOMDIR, in order.

    Raises:
        UnreadableImage: It cannot be parsed.
    """
    from pydicom import dcmread

    with quiet_pydicom():
        dataset = dcmread(path, force=True, specific_tags=["DirectoryRecordSequence", "ReferencedFileID"])
        entries = []
        for record in items(dataset, "DirectoryRecordSequence"):
            if components := value(record, "ReferencedFileID"):
                parts = [components] if isinstance(components, str) else list(components)
                entries.append(tuple(str(part) for part in parts))
        return entries
