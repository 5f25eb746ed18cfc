"""Reading 200 files in two guarded worker processes against reading them in this one; the workers' start is apart.

    python tests/benchmarks/guard.py

The batch is what a user has, small and large, native and compressed, and some that are refused: 100 files of pydicom
and pydicom-data, and 100 phantoms. A second row is for 2k radiographs alone. Both ways take turns, and the median
round counts. Two workers gain nothing where the second core is somebody else's, so look at the load that is printed.
"""

import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from grrcoca_cli.errors import UnreadableImage
from medical.guard import read_images
from medical.image import read_image
from medical.phantom_files import write_dicom_set

ROUNDS = 5
WORKERS = 2
START = 2.0
Row = dict[str, str | float]


def package_files() -> list[Path]:
    """DICOM files of pydicom and pydicom-data, found without `pydicom.data`, which may download."""
    folders: list[Path] = []
    for name in ("pydicom", "data_store"):
        spec = importlib.util.find_spec(name)
        folders += [Path(place) / "data" for place in (spec.submodule_search_locations or [])] if spec else []
    return [path for folder in folders for path in sorted(folder.rglob("*.dcm"))]


def read_here(files: Sequence[Path]) -> float:
    """Seconds of reading one after another in this process."""
    began = time.perf_counter()
    for path in files:
        try:
            read_image(path)
        except UnreadableImage:
            continue
    return time.perf_counter() - began


def read_guarded(files: Sequence[Path], workers: int = WORKERS) -> float:
    """Seconds of reading in workers that have started."""
    began = 0.0

    def sources() -> Iterator[Path]:
        nonlocal began
        yield from files  # a first time, so that codecs are imported, as they are in this process
        time.sleep(START)  # until the last of them are read, and nothing yet of what is timed
        began = time.perf_counter()
        yield from files

    for _ in read_images(sources(), workers=workers):
        pass
    return time.perf_counter() - began


def start() -> float:
    """Seconds until a fresh worker has read its first file."""
    began = time.perf_counter()
    list(read_images(package_files()[:1], workers=1))
    return time.perf_counter() - began


def compare(name: str, files: Sequence[Path]) -> Row:
    """One row, in the form of `run.py`: the pool is ours, this process the peer."""
    read_here(files)
    pool, here = [], []
    for _ in range(ROUNDS):
        here.append(read_here(files))
        pool.append(read_guarded(files))
    ours, peer = statistics.median(pool), statistics.median(here)
    return {"name": name, "ours": round(ours, 4), "peer": round(peer, 4), "ratio": round(peer / ours, 3), "goal": 1.0}


def rows() -> list[Row]:
    """The mixed batch and the 2k radiographs."""
    real = package_files()
    with tempfile.TemporaryDirectory() as folder:
        write_dicom_set(Path(folder), splits={"train": 200 - min(100, len(real))}, seed=0)
        step = max(1, len(real) // 100)
        mixed = [*real[::step][:100], *sorted(Path(folder).glob("train/*.dcm"))]
        large = [path for path in real if path.name.startswith(("RG1_", "RG3_"))] * 4
        found = [compare(f"{len(mixed)} mixed files, {WORKERS} guarded workers against this process", mixed)]
        if large:
            found.append(compare(f"{len(large)} reads of 2k radiographs, the same", large))
    return found


def main() -> None:
    """Print a table, with the start of a worker below it."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; start of a worker, first file read: {start():.2f} s")
    print(f"{'ours s':>9}{'peer s':>9}{'ratio':>8}{'goal':>6}  what")
    for each in rows():
        print(f"{each['ours']:>9}{each['peer']:>9}{each['ratio']:>8}{each['goal']:>6}  {each['name']}")


if __name__ == "__main__":
    main()
