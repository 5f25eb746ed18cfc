import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from grrcoca_cli.data.images import as_pixels, augment_picture, fit_image, normalize
from grrcoca_cli.data.pictures import read_picture
from grrcoca_cli.errors import NotAnImage, UnreadableImage, UsageError

RANDOM = np.random.default_rng(0)
GREY16 = RANDOM.integers(0, 65535, (12, 20), dtype=np.uint16)
COLOUR = RANDOM.integers(0, 255, (12, 20, 3), dtype=np.uint8)


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_every_level(file_format: str) -> None:
    pixels = read_picture(encode(Image.fromarray(GREY16), file_format))
    assert pixels.shape == (1, 12, 20)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(np.rint(pixels[0] * 65535).astype(np.uint16), GREY16)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "BMP"])
def test_colour_is_lossless_and_channels_come_first(file_format: str) -> None:
    pixels = read_picture(encode(Image.fromarray(COLOUR), file_format, lossless=True))
    np.testing.assert_array_equal(np.rint(pixels * 255).astype(np.uint8), COLOUR.transpose(2, 0, 1))
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_without_a_range_are_stretched(dtype: type) -> None:
    values = np.array([[-1000, 0], [1000, 3000]], dtype=dtype)
    pixels = read_picture(encode(Image.fromarray(values), "TIFF"))
    np.testing.assert_allclose(pixels[0], [[0, 0.25], [0.5, 1]], atol=1e-6)


def test_floats_in_the_unit_range_stay_and_the_infinite_is_bounded() -> None:
    values = np.array([[0.25, np.nan], [np.inf, 0.5]], dtype=np.float32)
    pixels = read_picture(encode(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(pixels[0], np.array([[0.25, 0], [1, 0.5]], dtype=np.float32))


def test_transparent_parts_are_white() -> None:
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[0, :, 3] = 255  # one opaque black row
    pixels = read_picture(encode(Image.fromarray(rgba), "PNG"))
    assert pixels.shape == (3, 4, 4)
    assert pixels[:, 0].max() == 0
    assert pixels[:, 1:].min() == 1


def test_palette_one_bit_and_cmyk() -> None:
    picture = Image.fromarray(COLOUR)
    assert read_picture(encode(picture.convert("P"), "PNG")).shape == (3, 12, 20)
    one_bit = read_picture(encode(picture.convert("1"), "PNG"))
    assert one_bit.shape == (1, 12, 20)
    assert set(np.unique(one_bit)) == {0, 1}
    flat = Image.new("RGB", (8, 8), (200, 100, 50))
    cmyk = read_picture(encode(flat.convert("CMYK"), "JPEG", quality=100))
    np.testing.assert_allclose(cmyk.mean((1, 2)) * 255, [200, 100, 50], atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.zeros((8, 16), dtype=np.uint8)
    upright[:4, :4] = 255  # bright top left corner
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = Image.fromarray(upright) if undo is None else Image.fromarray(upright).transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = read_picture(encode(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(pixels[0] * 255, upright)


def test_content_counts_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "scan.txt"
    path.write_bytes(encode(Image.fromarray(COLOUR), "PNG"))
    assert read_picture(path).shape == (3, 12, 20)


@pytest.mark.parametrize(
    ("content", "error", "kind"),
    [
        (b"", UnreadableImage, "empty file"),
        (b"ID,Caption\n", NotAnImage, "not an image"),
        (b"BMI was normal in this patient.", NotAnImage, "not an image"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", NotAnImage, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", NotAnImage, "not an image"),
        (b"P5 2 2 255 abcd", NotAnImage, "not an image"),
    ],
)
def test_what_is_no_picture_is_refused(content: bytes, error: type[UnreadableImage], kind: str) -> None:
    with pytest.raises(error) as refusal:
        read_picture(content)
    assert type(refusal.value) is error
    assert refusal.value.kind == kind


def test_missing_files_folders_and_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none.png", tmp_path / "pipe"):
        with pytest.raises(UnreadableImage, match="no such file"):
            read_picture(path)


def test_truncated_jpeg() -> None:
    data = encode(Image.fromarray(COLOUR).resize((200, 200)), "JPEG")
    with pytest.raises(UnreadableImage) as refusal:
        read_picture(data[: len(data) // 2])
    assert refusal.value.kind == "truncated"


def test_a_bomb_is_refused_by_its_header() -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    for edge in (9_000, 12_000, 40_000):  # above our limit, where Pillow would warn, where it would refuse
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0))
        with pytest.raises(UnreadableImage) as refusal:
            read_picture(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
        assert refusal.value.kind == "too many pixels"


def test_damaged_files_raise_one_error_and_stay_silent(capfd: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(0)
    grey, colour = Image.fromarray(GREY16), Image.fromarray(COLOUR)
    whole = [encode(colour, name) for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
    whole += [encode(grey, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate")]
    refused = 0
    for data in whole:
        for trial in range(60):
            broken = bytearray(data[: draw.randrange(len(data))] if trial % 2 else data)
            for _ in range(draw.randrange(1, 6) if broken else 0):
                broken[draw.randrange(len(broken))] = draw.randrange(256)
            try:
                pixels = read_picture(bytes(broken))
                assert pixels.min() >= 0
                assert pixels.max() <= 1
            except UnreadableImage:
                refused += 1
    assert refused > 100
    assert capfd.readouterr() == ("", "")


def test_letterbox_keeps_the_aspect_between_black_bars() -> None:
    image = fit_image(np.ones((1, 10, 30), dtype=np.float32), 24)
    assert image.shape == (3, 24, 24)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image[:, 8:16], torch.ones(3, 8, 24))
    assert image[:, :8].max() == 0
    assert image[:, 16:].max() == 0
    torch.testing.assert_close(fit_image(np.ones((3, 10, 30), dtype=np.float32), 24, "squash"), torch.ones(3, 24, 24))


def test_small_detail_is_averaged_and_not_skipped() -> None:
    checkers = (np.indices((128, 128)).sum(0) % 2).astype(np.float32)[None]
    assert fit_image(checkers, 16).sub(0.5).abs().max() < 0.1


@pytest.mark.parametrize("shape", [(1, 1, 5000), (3, 5000, 1), (1, 1, 1), (3, 8, 8), (1, 4000, 7)])
def test_any_shape_fits(shape: tuple[int, int, int]) -> None:
    for fit in ("letterbox", "squash"):
        image = fit_image(np.ones(shape, dtype=np.float32), 8, fit)
        assert image.shape == (3, 8, 8)
        assert image.max().item() == pytest.approx(1)


def test_normalize_by_channel() -> None:
    images = torch.rand(2, 3, 4, 4)
    expected = torch.stack([(images[:, 0] - 0.1) / 1, (images[:, 1] - 0.2) / 2, (images[:, 2] - 0.3) / 4], dim=1)
    before = images.clone()
    torch.testing.assert_close(normalize(images, (0.1, 0.2, 0.3), (1, 2, 4)), expected)
    assert torch.equal(images, before)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 40))
def test_augmentation_depends_on_its_seed_alone_and_never_mirrors(seed: int, size: int) -> None:
    ramp = torch.linspace(0, 1, size).expand(3, size, size)  # grows to the right, so a mirrored picture would fall
    state = torch.get_rng_state()
    first, second = augment_picture(ramp, seed), augment_picture(ramp, seed)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == ramp.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert (first.diff(dim=-1) >= -1e-6).all()


def test_augmentations_differ_by_seed() -> None:
    image = torch.rand(3, 32, 32)
    assert not torch.equal(augment_picture(image, 1), augment_picture(image, 2))


def test_pictures_are_mirrored_or_turned_only_where_asked_for() -> None:
    image = torch.zeros(3, 32, 32)
    image[:, :, :16] = 1  # the left half
    brighter_left = [augment_picture(image, seed)[:, :, :10].mean() > 0.5 for seed in range(40)]
    assert all(brighter_left)
    mirrored = sum(bool(augment_picture(image, seed, flip=True)[:, :, :10].mean() < 0.5) for seed in range(40))
    assert 8 < mirrored < 32
    turned = sum(bool(augment_picture(image, seed, quarter_turns=True)[:, :10].mean() > 0.9) for seed in range(40))
    assert 2 < turned < 20


def test_a_decoded_image_is_taken_as_pillow_array_or_tensor() -> None:
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    expected = grey[None].astype(np.float32) / 255
    color = np.stack([grey] * 3, axis=-1)
    for image in (grey, torch.from_numpy(grey), Image.fromarray(grey), expected, expected[0]):
        np.testing.assert_array_equal(as_pixels(image), expected)
    for image in (color, color.transpose(2, 0, 1), Image.fromarray(color)):
        np.testing.assert_array_equal(as_pixels(image), np.repeat(expected, 3, axis=0))
    deep = np.array([[0, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(as_pixels(deep), [[[0.0, 1.0]]])
    np.testing.assert_array_equal(as_pixels(Image.fromarray(deep)), [[[0.0, 1.0]]])


@pytest.mark.parametrize("image", [np.zeros((2, 3, 5, 7)), np.full((2, 3), 1.5), np.zeros((2, 3), int), 7, None])
def test_an_array_that_is_no_image_is_refused(image: object) -> None:
    with pytest.raises(UsageError, match="image"):
        as_pixels(image)  # type: ignore[arg-type]
