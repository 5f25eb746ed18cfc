"""A reader of tar headers: finds members and their offsets, extracts nothing.

Reads ustar, GNU long names and pax ``path`` and ``size`` (POSIX.1-2017, pax, "ustar Interchange Format").
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
"""Bytes of a header, and what each member's data is padded to a multiple of."""

_ZERO = bytes(BLOCK)
_LARGEST_NAME_RECORD = 1 << 20  # a long name or pax record above a megabyte is damage, not a name
_PAX_RECORD = re.compile(rb"(\d+) ([^=]+)=")


class DamagedTarError(Exception):
    """The archive ends before its end mark, or a header is not one.

    Attributes:
        kind: ``"truncated shard"`` or ``"damaged shard"``.
        name: The member that the cut went through, where its header was whole.
    """

    def __init__(self, kind: str, name: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.name = name


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file in an archive; positions are bytes from the archive's start.

    Attributes:
        name: Path inside the archive, as written there.
        offset: Of its data.
        size: Bytes of data.
    """

    name: str
    offset: int
    size: int


def iterate_members(file: BinaryIO, length: int) -> Iterator[Member]:
    """The regular files of the archive in ``file``, ``length`` bytes long, whole ones only.

    Raises:
        DamagedTarError: The archive is cut or damaged here; every whole member before was given.
    """
    position = 0
    while True:
        header = _next_header(file, position)
        if header is None:
            return
        member, kind, end = header
        if member.offset + member.size > length:
            raise DamagedTarError("truncated shard", member.name if kind in b"\x0007" else "")
        if kind in b"\x0007":
            yield member
        position = end


def _next_header(file: BinaryIO, start: int) -> tuple[Member, bytes, int] | None:
    """The member at ``start``, its type flag and the position behind it; None at the end mark, two blocks of zeros."""
    position, name, size = start, b"", None
    while True:
        file.seek(position)
        block = file.read(BLOCK)
        if block == _ZERO:
            if file.read(BLOCK) != _ZERO:
                raise DamagedTarError("truncated shard")
            return None
        if len(block) < BLOCK:
            raise DamagedTarError("truncated shard")
        _verify(block)
        kind, declared = block[156:157], _number(block[124:136])
        position += BLOCK
        if kind in b"LKxg":  # headers about the member that follows, or about all of them
            if declared > _LARGEST_NAME_RECORD:
                raise DamagedTarError("damaged shard")
            data = file.read(declared)
            if len(data) != declared:
                raise DamagedTarError("truncated shard")
            if kind == b"L":
                name = data.rstrip(b"\0")
            elif kind == b"x":
                name, size = _pax_fields(data, name, size)
            position += _padded(declared)
            continue
        if kind in b"123456":  # links, devices, folders: a size here says nothing about data
            declared, size = 0, None
        elif kind not in b"\x0007":
            raise DamagedTarError("damaged shard")  # sparse and multi-volume archives: no shard is one
        length = declared if size is None else size
        member = Member((name or _short_name(block)).decode("utf-8", "replace"), position, length)
        return member, kind, position + _padded(length)


def _verify(block: bytes) -> None:
    """The header's sum of bytes, its own field taken as blanks, as pre-POSIX tars (signed) or all others compute it."""
    stated = _number(block[148:156])
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if stated != total:
        signed = total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if stated != signed:
            raise DamagedTarError("damaged shard")


def _number(field: bytes) -> int:
    """Octal digits, or base 256 where the first bit is set (GNU, for sizes from 8 GiB)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError as error:
        raise DamagedTarError("damaged shard") from error


def _short_name(block: bytes) -> bytes:
    name = block[:100].split(b"\0")[0]
    prefix = block[345:500].split(b"\0")[0] if block[257:263] == b"ustar\0" else b""  # GNU keeps times there
    return prefix + b"/" + name if prefix else name


def _pax_fields(data: bytes, name: bytes, size: int | None) -> tuple[bytes, int | None]:
    """``path`` and ``size`` out of pax records ``"<length> <keyword>=<value>\\n"``."""
    position = 0
    while position < len(data):
        record = _PAX_RECORD.match(data, position)
        if record is None or int(record[1]) <= len(record[0]):
            raise DamagedTarError("damaged shard")
        end = position + int(record[1])
        value = data[record.end() : end - 1]
        if record[2] == b"path":
            name = value
        elif record[2] == b"size":
            if not value.isdigit():
                raise DamagedTarError("damaged shard")
            size = int(value)
        position = end
    return name, size


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
