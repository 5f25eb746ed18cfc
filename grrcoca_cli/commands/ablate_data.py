"""What all runs of a study share: phantoms drawn once, one tokenizer, one split that every run is judged on."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from grrcoca_cli.commands.datasets import OpenedData, open_data, open_split
from grrcoca_cli.commands.train import TOKENIZER_CAPTIONS
from grrcoca_cli.config import DataConfig, build_recipe
from grrcoca_cli.console import say
from grrcoca_cli.data.base import CaptionDataset
from grrcoca_cli.data.shard_names import is_shards
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.errors import NoSuchSplit, UsageError
from grrcoca_cli.files import explain_os_errors, make_folder, write_atomically
from grrcoca_cli.studies import Tables
from medical.phantom_files import write_shards
from medical.phantoms import Style

TOKENIZER = Path("data") / "tokenizer.json"
"""In a study's folder: what all its runs share."""

SEED = 0
PIXELS = 64
REPORTS = 1_000_000
"""Number of the first phantom of a fine-tuning set: far behind those of any pretraining set."""


VALIDATION = "validation"
"""In place of a split's name: what training validates on, a split of the set or a share cut off by hash."""


@dataclass(frozen=True)
class Judged:
    """The samples that runs are judged on."""

    dataset: str
    path: str
    split: str

    def config(self, data: DataConfig) -> DataConfig:
        """How to read them, as ``data`` says."""
        return data.model_copy(update={"dataset": self.dataset, "path": self.path})

    def open(self, data: DataConfig) -> CaptionDataset:
        """The samples themselves."""
        config = self.config(data)
        return open_data(config, Path()).validation if self.split == VALIDATION else open_split(config, self.split)

    def as_json(self) -> dict[str, str]:
        """For a file."""
        return asdict(self)


@dataclass(frozen=True)
class SharedData:
    """Where a study's data lie: ``OUT/data``.

    Attributes:
        out: The study's folder.
        test: Phantoms that runs are judged on; their numbers come first, so that any two training sets of phantoms
            are nested and hold none of them.
    """

    out: Path
    test: int

    def place(self, tables: Tables, style: Style = "plain") -> Tables:
        """The tables with phantoms, where they ask for them, drawn into shards; other data as they are.

        Raises:
            UsageError: Other data without a path.
        """
        data = dict(tables.get("data", {}))
        config = DataConfig.model_validate(data)
        if config.dataset == "phantoms" and not config.path:
            first = self.test if style == "plain" else REPORTS + self.test
            data |= {"dataset": "shards", "path": str(self._draw(first, config.phantoms, style))}
        elif not config.path:
            raise UsageError(f"the {config.dataset} data set needs --data PATH")
        return {**tables, "data": data}

    def judged(self, tables: Tables, placed: Tables, split: str, style: Style = "plain") -> Judged:
        """What a run of ``tables``, ``placed`` as it was, is judged on: phantoms of their own, or a split.

        Raises:
            UsageError: The set has no such split, or fewer than two samples in it.
        """
        config = DataConfig.model_validate(placed["data"])
        if tables["data"].get("dataset") == "phantoms" and not tables["data"].get("path"):
            first = 0 if style == "plain" else REPORTS
            return Judged("shards", str(self._draw(first, self.test, style)), "all")
        return Judged(config.dataset, config.path, _split_of(config, split))

    def tokenizer(self, placed: Sequence[Tables]) -> str:
        """One tokenizer for all runs: the recipe's, or one trained on the largest training set."""
        recipes = [build_recipe(tables, "study") for tables in placed]
        if given := recipes[0].data.tokenizer:
            return given
        path = self.out / TOKENIZER
        if not path.exists():
            say("training the tokenizer that all runs share")
            opened = {recipe.data.path: self._open(recipe.data) for recipe in recipes}
            train = max(opened.values(), key=lambda found: len(found.train)).train
            captions = itertools.islice(
                (text for i in range(len(train)) for text in train.peek(i).captions), TOKENIZER_CAPTIONS
            )
            vocab_size = max(recipe.model.vocab_size for recipe in recipes)
            make_folder(path.parent)
            write_atomically(path, CaptionTokenizer.train(captions, vocab_size).to_json())
        return str(path)

    def _open(self, data: DataConfig) -> OpenedData:
        return open_data(data, self.out / "data")

    def _draw(self, first: int, count: int, style: Style) -> Path:
        folder = self.out / "data" / f"{style}-{first}-{first + count}"
        done = folder / ".complete"
        if not done.exists():
            say(f"drawing {count} synthetic studies into {folder}")
            with explain_os_errors(folder):
                write_shards(folder, count=count, seed=SEED, style=style, first=first, pixels=PIXELS)
                done.touch()
        return folder


@functools.cache  # every run asks, and a large set takes its time to open
def _split_of(config: DataConfig, split: str) -> str:
    """``split``, or where it is empty ``test``, or where there is none `VALIDATION`."""
    if not split:
        try:
            split = "test"
            Judged(config.dataset, config.path, split).open(config)
        except NoSuchSplit:
            split = VALIDATION
    count = len(Judged(config.dataset, config.path, split).open(config))
    if count < 2:
        raise UsageError(f"{config.path}, {split}: {count} samples are too few to judge on; give data with more")
    return split


def with_data(tables: Tables, path: str) -> Tables:
    """The tables with ``--data`` put in; phantoms then become shards or a folder, by what lies there."""
    if not path:
        return tables
    data = dict(tables.get("data", {}))
    data["path"] = path
    if data.get("dataset", "folder") in ("phantoms", "folder", "shards"):
        data["dataset"] = "shards" if is_shards(path) else "folder"
    return {**tables, "data": data}
