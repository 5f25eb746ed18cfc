"""``grrcoca prepare shards``: any data set as webdataset shards, with their index."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from grrcoca_cli.commands.datasets import dicom_reader, open_split, open_training
from grrcoca_cli.commands.prepare import make_index, summary
from grrcoca_cli.config import DataConfig, DatasetKind
from grrcoca_cli.console import Progress, say
from grrcoca_cli.data.base import CaptionDataset, ImageReader
from grrcoca_cli.data.shard_writer import Members, encode_sample, shard_key, write_shard
from grrcoca_cli.errors import ExitCode, UnreadableImage, UsageError
from grrcoca_cli.files import explain_os_errors, lock_folder, write_json

_SETTINGS = "prepare.json"
"""What the shards of a folder are made of: by it a later start goes on, and a foreign folder is known."""


@dataclass(frozen=True)
class Options:
    """What becomes shards.

    Attributes:
        dataset: A kind of data set.
        data: Where it lies.
        split: Its name in the set; empty for the training split, or for the whole of a set without splits.
        out: Folder of the new shards.
        samples_per_shard: Samples of the set that a shard stands for, those that cannot be read included.
        window: Intensity window of DICOM.
        keep_keys: Keep the keys of a folder, which are its file names.
    """

    dataset: str
    data: str
    split: str
    out: Path
    samples_per_shard: int = 1000
    window: str = "auto"
    keep_keys: bool = False


def prepare_shards(options: Options, *, as_json: bool) -> ExitCode:
    """Write the shards that are not there yet, then their index.

    Raises:
        UsageError: The data set cannot be opened, or ``out`` holds anything else.
        RunFolderInUse: Another process writes there.
    """
    if options.dataset not in get_args(DatasetKind):
        raise UsageError(f"--dataset {options.dataset}: choose {', '.join(get_args(DatasetKind))}")
    config = DataConfig.model_validate({"dataset": options.dataset, "path": options.data})
    split, dataset = (options.split, open_split(config, options.split)) if options.split else open_training(config)
    out = options.out
    _refuse_foreign(out)
    with lock_folder(out):
        _claim(out, _settings(options, split, dataset))
        for left in out.glob(".*.tar.*"):  # half a shard of a start that was killed
            left.unlink()
        hidden = options.dataset == "folder" and not options.keep_keys
        reader = dicom_reader(options.window)
        skipped = _write_all(dataset, options, reader, hidden)
        shards = sorted(map(str, out.glob("*.tar")))
        index = make_index(shards, None, processes=2)
    _show(options, dataset, summary(index), skipped, as_json=as_json)
    return ExitCode.SOME_INPUTS_FAILED if skipped else ExitCode.OK


def _write_all(dataset: CaptionDataset, options: Options, reader: ImageReader, hidden: bool) -> Counter[str]:
    """Every shard that is not there; the samples that could not be read, by kind, over all shards."""
    skipped, used = Counter[str](), set[str]()
    starts = range(0, len(dataset), options.samples_per_shard)
    progress = Progress("writing", len(starts), "shards")
    for number, start in enumerate(starts):
        indices = range(start, min(start + options.samples_per_shard, len(dataset)))
        path = options.out / f"{number:05d}.tar"
        stats = options.out / f"{number:05d}_stats.json"
        keys = [_unique(shard_key(dataset.key(index), hidden=hidden), used) for index in indices]
        if not path.exists():
            lost: Counter[str] = Counter()
            members = list(_members(dataset, indices, keys, reader, lost))
            counts = {"count": len(indices), "successes": len(members), "skipped": dict(lost)}
            write_json(stats, counts)  # before the shard, so that a shard that is there is done
            write_shard(path, members)
        with explain_os_errors(stats):
            skipped += Counter(json.loads(stats.read_bytes())["skipped"])
        progress.show(number + 1)
    progress.close()
    return skipped


def _members(
    dataset: CaptionDataset, indices: range, keys: list[str], reader: ImageReader, lost: Counter[str]
) -> Iterator[tuple[str, Members]]:
    for index, key in zip(indices, keys, strict=True):
        try:
            yield key, encode_sample(dataset[index], reader)
        except UnreadableImage as error:
            lost[error.kind] += 1


def _unique(key: str, used: set[str]) -> str:
    """``key``, with a number behind it where it was taken."""
    name, count = key, 1
    while name in used:
        count += 1
        name = f"{key}-{count}"
    used.add(name)
    return name


def _settings(options: Options, split: str, dataset: CaptionDataset) -> dict[str, Any]:
    step = max(1, len(dataset) // 1000)
    keys = json.dumps([dataset.key(index) for index in range(0, len(dataset), step)])
    given = asdict(options) | {"split": split}
    del given["out"], given["data"]  # the same data may have moved
    return {**given, "samples": len(dataset), "keys": hashlib.sha256(keys.encode()).hexdigest()[:16]}


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: choose another --out")
    if out.is_dir() and not (out / _SETTINGS).is_file() and any(path.name != "run.lock" for path in out.iterdir()):
        raise UsageError(f"{out} holds something that `grrcoca prepare shards` did not write: choose another --out")


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Note what the shards are made of, or find that an earlier start made the same."""
    path = out / _SETTINGS
    if not path.exists():
        write_json(path, settings)
        return
    try:
        former = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: choose another --out") from error
    if former != settings:
        differs = next((name for name in settings if settings[name] != former.get(name)), "samples")
        raise UsageError(f"{out} holds shards of other data or settings ({differs} differs): choose another --out")


def _show(
    options: Options, dataset: CaptionDataset, index: dict[str, Any], skipped: Counter[str], *, as_json: bool
) -> None:
    if as_json:
        left_out = {"rows": dict(dataset.skipped), "pictures": dict(skipped)}
        print(json.dumps({"schema": 1, "out": str(options.out), **index, "left_out": left_out}))
        return
    for kind, count in sorted((dataset.skipped + skipped).items()):
        say(f"left out: {count} {kind}")
    print(f"{options.out}: {index['usable']} of {len(dataset)} samples in {index['shards']} shards")
