"""Writes samples as webdataset shards: a picture, its captions and its fields side by side."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from grrcoca_cli.data.base import ImageReader, ImageSource, Pixels, Sample
from grrcoca_cli.data.folder import PICTURES
from grrcoca_cli.data.pictures import read_picture
from grrcoca_cli.errors import UnreadableImage
from grrcoca_cli.files import open_atomically

_KINDS = re.compile(rb"(\xff\xd8\xff)|(\x89PNG\r\n\x1a\n)|(RIFF....WEBP)", re.DOTALL)
_EXTENSIONS = ("jpg", "png", "webp")
_SAFE_KEY = re.compile(r"\w[\w-]*(/\w[\w-]*)*")
_LONGEST_KEY = 90  # bytes: no name in an archive needs a second header
_LARGEST_FILE = 1 << 28  # bytes of a picture that is taken over as it is

Members = dict[str, bytes]
"""What a shard holds of a sample, by file extension."""


def encode_sample(sample: Sample, render: ImageReader) -> Members:
    """A sample as the members of a shard: ``txt`` has the first caption, ``json`` all of them and the fields.

    JPEG, PNG and WebP keep their bytes, once they have been decoded as a trial. Anything else is rendered: grey as a
    PNG of 16 bits (half a step of 1/65535 is lost, and what lies outside the window), colour as one of 8.

    Args:
        sample: Its picture is a path or bytes.
        render: Reads pictures of the other formats.

    Raises:
        UnreadableImage: The picture gives no pixels.
    """
    extension, picture = _encode_picture(sample.image, render)
    about = {**sample.fields, "captions": list(sample.captions)}
    return {
        extension: picture,
        "txt": sample.captions[0].encode(),
        "json": json.dumps(about, ensure_ascii=False).encode("utf-8", "replace"),
    }


def shard_key(key: str, *, hidden: bool) -> str:
    """A sample's key as a name in an archive, where the first dot ends it; its hash where that is safer or asked for.

    A picture's extension goes, and further dots become underscores.
    """
    stem, _, extension = key.rpartition(".")
    name = (stem if f".{extension.lower()}" in PICTURES else key).replace(".", "_")
    if not hidden and _SAFE_KEY.fullmatch(name) and len(name.encode()) <= _LONGEST_KEY:
        return name
    return hashlib.blake2b(key.encode(errors="surrogateescape"), digest_size=12).hexdigest()


def write_shard(path: Path, samples: Iterable[tuple[str, Members]]) -> None:
    """Write a shard, whole or not at all; its bytes depend on ``samples`` alone.

    Args:
        path: A ``.tar``.
        samples: Keys and members; no key twice.

    Raises:
        OutOfResources: The disk is full.
        UsageError: The folder cannot be written to.
    """
    with open_atomically(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for key, members in samples:
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")  # owner, mode and time stay at their fixed defaults
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def _encode_picture(source: ImageSource, render: ImageReader) -> tuple[str, bytes]:
    try:
        data = source if isinstance(source, bytes) else _head(source)
        kind = _KINDS.match(data)
        if kind is None:
            return "png", _png(render(source))
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise UnreadableImage("cannot be opened", error.strerror or "") from error
    read_picture(data)
    assert kind.lastindex is not None
    return _EXTENSIONS[kind.lastindex - 1], data


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        if path.stat().st_size > _LARGEST_FILE:
            return b""
        return file.read(16)


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    if len(pixels) == 1:
        image = Image.fromarray(np.rint(pixels[0] * 65535).astype(np.uint16))
    else:
        image = Image.fromarray(np.rint(pixels.transpose(1, 2, 0) * 255).astype(np.uint8))
    image.save(buffer, "PNG")
    return buffer.getvalue()
