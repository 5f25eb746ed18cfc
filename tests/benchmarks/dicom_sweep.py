"""Every image file of pydicom, pydicom-data and ../shared/data/dicom: decoded or refused, and how near to DCMTK.

    python tests/benchmarks/dicom_sweep.py [FOLDER ...] [--all]

Each file is read with `read_image` and rendered once more by DCMTK's dcm2pnm or dcmj2pnm with the same frame and
window, 16 bits a sample; the mean |difference| is of [0, 1] levels. A file above `LIMIT` is listed, and explained in
`EXPLAINED` or else marked. Needs DCMTK; without it only the first half is printed.
"""

import argparse
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from grrcoca_cli.errors import UnreadableImage
from medical.dicom import HEAD_BYTES, is_dicom
from medical.image import RadiologyImage, read_image

LIMIT = 0.01
NO_PIXELS = frozenset({"not an image", "no pixel data"})
"""Refusals of objects that hold no picture to look at; the rest counts as files with pixels."""

EXPLAINED = {
    "MR_MR3_jpegls_near.dcm": "PixelPaddingValue 0: black here, windowed as if it were tissue by DCMTK; same samples",
}
"""Files of which DCMTK's picture is rightly another, with the reason."""

NOT_RENDERED = {
    "gdcm-US-ALOKA-16.dcm": "DCMTK passes over segmented palettes",
    "gdcm-US-ALOKA-16_big.dcm": "DCMTK passes over segmented palettes",
    "CT_enhanced_2frames_fragmented_jpeg51.dcm": "DCMTK does not join a frame's fragments without an offset table",
    "SC_rgb_jpeg.dcm": "DCMTK loses its way among this file's elements",
    **dict.fromkeys(
        ("SC_rgb_32bit.dcm", "SC_rgb_32bit_2frame.dcm", "SC_rgb_expb_32bit.dcm", "SC_rgb_expb_32bit_2frame.dcm"),
        "DCMTK wants samples of 32 bits in words (OW)",
    ),
}
"""Files that DCMTK makes no picture of, with the reason; of JPEG 2000 it has none."""


@dataclass(frozen=True)
class Outcome:
    """What became of one file: its picture or the kind and words of its refusal, and the difference to DCMTK's."""

    path: Path
    image: RadiologyImage | None
    kind: str = ""
    words: str = ""
    difference: float | None = None
    dcmtk: str = ""


def package_folder(name: str) -> list[Path]:
    """The data folder of an installed package, found without `pydicom.data`, which may download."""
    spec = importlib.util.find_spec(name)
    return [Path(place) / "data" for place in (spec.submodule_search_locations or [])] if spec else []


def default_folders() -> list[Path]:
    shared = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom"
    return [*package_folder("pydicom"), *package_folder("data_store"), *([shared] if shared.is_dir() else [])]


def dicom_files(folders: list[Path]) -> Iterator[Path]:
    """DICOM files by content, each once: the packages hold some under several names."""
    seen = set()
    for path in (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()):
        data = path.read_bytes()
        digest = hashlib.sha256(data).digest()
        if is_dicom(data[:HEAD_BYTES]) and digest not in seen:
            seen.add(digest)
            yield path


def read(path: Path) -> Outcome:
    try:
        image = read_image(path)
    except UnreadableImage as error:
        return Outcome(path, None, error.kind, str(error))
    difference, words = (None, "") if not shutil.which("dcm2pnm") else compare(path, image)
    return Outcome(path, image, difference=difference, dcmtk=words)


def compare(path: Path, image: RadiologyImage) -> tuple[float | None, str]:
    """Mean |difference| to DCMTK's rendering; None and why where it renders nothing comparable."""
    theirs = render_by_dcmtk(path, image)
    if theirs is None:
        return None, NOT_RENDERED.get(path.name, f"DCMTK does not render {image.description.transfer_syntax}")
    ours = image.pixels
    if theirs.shape[0] == 3 and ours.shape[0] == 1:
        theirs = theirs.mean(axis=0, keepdims=True)
    if theirs.shape != ours.shape:  # squared pixels: theirs are put to the same size
        height, width = ours.shape[1:]
        bands = [Image.fromarray(band).resize((width, height), Image.Resampling.BILINEAR) for band in theirs]
        theirs = np.stack([np.asarray(band) for band in bands])
    return float(np.abs(ours - theirs).mean()), ""


def render_by_dcmtk(path: Path, image: RadiologyImage) -> NDArray[np.float32] | None:
    """DCMTK's picture (C, H, W) in [0, 1] of the same frame through the same window; None where it makes none."""
    syntax = image.description.transfer_syntax
    tool = "dcml2pnm" if syntax.startswith("JPEG-LS") else "dcmj2pnm" if syntax.startswith("JPEG") else "dcm2pnm"
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.pnm"
        for flags in window_flags(image):
            frame = str(image.description.frame_read + 1)
            command = [tool, "-q", *flags, "+F", frame, "+Ma", "+opw", str(path), str(picture)]
            result = subprocess.run(command, capture_output=True, timeout=120, check=False)
            if result.returncode == 0 and picture.exists():
                return read_pnm(picture)
    return None


def window_flags(image: RadiologyImage) -> list[list[str]]:
    """dcm2pnm's flags for the window that was used, and others to try where it finds no window in the file itself."""
    window = image.description.window
    if window.source.startswith("VOI LUT"):
        return [["+Wl", "1"]]
    if window.center is None or window.width is None:
        return [[]]
    if window.source.startswith("percentiles"):  # ours is exact, DCMTK's LINEAR: half a unit to the side, one wider
        return [["+Ww", repr(window.center + 0.5), repr(window.width + 1)]]
    return [["+Wi", "1"], ["+Ww", repr(window.center), repr(window.width)]]


def read_pnm(path: Path) -> NDArray[np.float32]:
    """A plain (ASCII) PGM or PPM as (C, H, W) in [0, 1]."""
    text = re.sub(rb"#[^\n]*", b"", path.read_bytes())
    magic, rest = text[:2], text[2:]
    numbers = np.array(rest.split(), np.float64)
    width, height, largest = (int(number) for number in numbers[:3])
    channels = 3 if magic == b"P3" else 1
    levels = numbers[3 : 3 + width * height * channels] / largest
    return levels.reshape(height, width, channels).transpose(2, 0, 1).astype(np.float32)


def report(outcomes: list[Outcome], *, show_all: bool) -> bool:
    """Print tables and totals; whether every file above `LIMIT` is explained."""
    refused = [outcome for outcome in outcomes if outcome.image is None]
    decoded = [outcome for outcome in outcomes if outcome.image is not None]
    with_pixels = len(outcomes) - sum(outcome.kind in NO_PIXELS for outcome in outcomes)
    print(f"{len(outcomes)} distinct DICOM files, {with_pixels} with pixels to look at")
    print(f"{len(decoded)} decoded ({len(decoded) / max(with_pixels, 1):.1%} of those with pixels)\n\nrefused")
    for kind, count in Counter(outcome.kind for outcome in refused).most_common():
        print(f"  {count:4} {kind}")
        for words, same in Counter(o.words for o in refused if o.kind == kind).most_common():
            names = ", ".join(o.path.name for o in refused if o.words == words)
            print(f"       {same:4} {words}" + (f"  [{names}]" if kind not in NO_PIXELS else ""))
    compared = sorted((o for o in decoded if o.difference is not None), key=lambda o: -(o.difference or 0))
    near = sum(o.difference is not None and o.difference < LIMIT for o in compared)
    print(
        f"\n{len(compared)} compared with DCMTK, {near} nearer than {LIMIT}; "
        f"{len(decoded) - len(compared)} not rendered"
    )
    unexplained = 0
    for outcome in compared:
        assert outcome.difference is not None
        if outcome.difference >= LIMIT or show_all:
            why = EXPLAINED.get(outcome.path.name, "") if outcome.difference >= LIMIT else ""
            unexplained += outcome.difference >= LIMIT and not why
            print(f"  {outcome.difference:.4f}  {outcome.path.name}  {why or ('UNEXPLAINED' if not show_all else '')}")
    if show_all:
        for outcome in decoded:
            if outcome.difference is None:
                print(f"       -  {outcome.path.name}  {outcome.dcmtk}")
    return not unexplained


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--all", action="store_true", help="list every file that was compared or could not be")
    arguments = parser.parse_args()
    outcomes = [read(path) for path in dicom_files(arguments.folders or default_folders())]
    return 0 if report(outcomes, show_all=arguments.all) else 1


if __name__ == "__main__":
    sys.exit(main())
