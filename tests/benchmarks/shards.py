"""Reading local shards with two workers, ours against webdataset's, and the memory of it over a hundred shards.

    python -m pip install --target FOLDER webdataset
    WEBDATASET=FOLDER python tests/benchmarks/shards.py

Both decode the same pictures by the same function, fit them to 224, tokenize and collate; ours reads in random order
over all shards, webdataset one shard after another. The shards are those of generic-cc12m-like in ../shared, repeated.
Both take turns on the first batches of an epoch, and the median round counts; memory is of a whole epoch, the
proportional share of this process and its children.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from grrcoca_cli.data.batches import BatchReader, training_batches
from grrcoca_cli.data.images import fit_image, normalize
from grrcoca_cli.data.pictures import read_picture
from grrcoca_cli.data.shard_build import build_index
from grrcoca_cli.data.shard_index import INDEX_NAME
from grrcoca_cli.data.shards import open_shards
from grrcoca_cli.data.tokenizer import CaptionTokenizer

SOURCE = Path(__file__).resolve().parents[3] / "shared" / "data" / "generic-cc12m-like" / "cc12m"
SHARDS = 102
WORKERS = 2
BATCH = 64
SIZE = 224
ROUNDS = 3
BATCHES = 40  # of a round
MEAN = STD = (0.5, 0.5, 0.5)
Row = dict[str, str | float]


def memory(parent: int) -> float:
    """Megabytes that a process and its descendants hold, shared pages divided among those that share them."""
    total, family = 0, {parent}
    for path in sorted(Path("/proc").glob("[0-9]*/stat"), key=lambda path: int(path.parent.name)):
        try:
            ancestor = int(path.read_text().rpartition(")")[2].split()[1])
            pid = int(path.parent.name)
            if pid == parent or ancestor in family:
                family.add(pid)
                lines = (path.parent / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError, IndexError):
            continue
    return total / 1e3


def timed(batches: Iterator[Any], count: int, watch: Callable[[float], None] = lambda share: None) -> float:
    """Seconds of ``count`` batches behind the first ones, in which workers start."""
    warm = 2 * WORKERS
    for _ in range(warm):
        next(batches)
    began = time.perf_counter()
    for number in range(count - warm):
        next(batches)
        watch(number / (count - warm))
    return time.perf_counter() - began


def ours(
    folder: Path, tokenizer: CaptionTokenizer, count: int, watch: Callable[[float], None] = lambda share: None
) -> float:
    """Seconds of ``count`` batches as training takes them."""
    reader = BatchReader(open_shards(str(folder)), read_picture, tokenizer, SIZE, 77)
    batches = training_batches(reader, BATCH, 0, count, WORKERS)
    seconds = timed(batches, count, watch)
    batches.close()  # type: ignore[attr-defined]
    return seconds


def theirs(folder: Path, tokenizer: CaptionTokenizer, count: int) -> float:
    """Seconds of ``count`` batches of webdataset, in a DataLoader."""
    import webdataset

    def decode(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, str]:
        caption = sample["txt"].decode()
        tokens = torch.tensor(tokenizer.encode(caption, 77))
        return fit_image(read_picture(sample["jpg"]), SIZE), tokens, sample["__key__"]

    def collate(samples: list[tuple[torch.Tensor, torch.Tensor, str]]) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        images, tokens, keys = zip(*samples, strict=True)
        padded = torch.nn.utils.rnn.pad_sequence(list(tokens), batch_first=True)
        return normalize(torch.stack(list(images)), MEAN, STD), padded, list(keys)

    shards = sorted(map(str, folder.glob("*.tar")))
    dataset = webdataset.WebDataset(shards, shardshuffle=False).map(decode).batched(BATCH, collate, partial=False)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=WORKERS)
    return timed(iter(loader), count)


def rows() -> list[Row]:
    """Rate and memory; none where the pictures or webdataset are absent."""
    sys.path.append(os.environ.get("WEBDATASET", ""))
    try:
        import webdataset  # noqa: F401
    except ImportError:
        print("webdataset is not installed: see the head of tests/benchmarks/shards.py", file=sys.stderr)
        return []
    if not SOURCE.is_dir():
        return []
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sources = sorted(SOURCE.glob("*.tar"))
        for number in range(SHARDS):
            shutil.copyfile(sources[number % len(sources)], folder / f"{number:05d}.tar")
        build_index(sorted(map(str, folder.glob("*.tar"))), folder / INDEX_NAME)
        dataset = open_shards(str(folder))
        tokenizer = CaptionTokenizer.train((dataset.peek(index).captions[0] for index in range(480)), 1000)
        held: list[tuple[float, float]] = []

        def watch(share: float) -> None:
            if not held or share - held[-1][0] > 0.05:
                held.append((share, memory(os.getpid())))

        our_times, their_times = [], []
        for _ in range(ROUNDS):
            our_times.append(ours(folder, tokenizer, BATCHES))
            their_times.append(theirs(folder, tokenizer, BATCHES))
        ours(folder, tokenizer, len(dataset) // BATCH, watch)
    mine, other = statistics.median(our_times), statistics.median(their_times)
    pictures = (BATCHES - 2 * WORKERS) * BATCH
    early = statistics.median(megabytes for share, megabytes in held if 0.1 < share < 0.4)
    late = statistics.median(megabytes for share, megabytes in held if share > 0.7)
    return [
        {
            "name": f"{pictures} pictures out of {SHARDS} shards, {WORKERS} workers, against webdataset "
            f"({pictures / mine:.0f} and {pictures / other:.0f} a second)",
            "ours": round(mine, 3),
            "peer": round(other, 3),
            "ratio": round(other / mine, 3),
            "goal": 1.0,
        },
        {
            "name": f"MB held in the last third of {SHARDS} shards, against the first",
            "ours": round(late, 1),
            "peer": round(early, 1),
            "ratio": round(early / late, 3),
            "goal": 0.98,
        },
    ]


def main() -> None:
    """Print a table."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'ours':>9}{'peer':>9}{'ratio':>8}{'goal':>6}  what")
    for each in rows():
        print(f"{each['ours']:>9}{each['peer']:>9}{each['ratio']:>8}{each['goal']:>6}  {each['name']}")


if __name__ == "__main__":
    main()
