"""`make bench`: what is fast and what is not, printed and kept in bench.json (untracked). Medians; no asserts.

`ratio` says how many times better ours is than the peer. Where the peer is a limit in seconds, the goal is 1.0; a goal
of 0 is none.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import guard
import peer
import pictures
import scoring
import torch

from grrcoca_cli import __version__
from grrcoca_cli.config import GenerationConfig, ModelConfig
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.training.checkpoint import FORMAT_VERSION, CheckpointConfig, ImageContract, save_checkpoint

ROUNDS = 3
HELP_LIMIT = 0.25
CAPTION_LIMIT = 1.5
Row = dict[str, str | float]


def median_seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median wall time of ``work``, after one run that is not counted."""
    work()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def row(name: str, ours: float, peer: float, goal: float) -> Row:
    """Seconds of ours and the peer's; the ratio is how many times faster ours is."""
    return {"name": name, "ours": round(ours, 4), "peer": round(peer, 4), "ratio": round(peer / ours, 3), "goal": goal}


def command(*words: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)


def with_a_checkpoint(folder: Path) -> list[Row]:
    """`grrcoca info`, and `caption` of one DICOM file, whose limit is torch's own import time and 1.5 s."""
    from medical.phantom_files import write_dicom_set

    tokenizer = CaptionTokenizer.train(["a synthetic caption"], 512)
    model_config = ModelConfig.model_validate({"size": "tiny", "vocab_size": tokenizer.vocab_size})
    config = CheckpointConfig(
        format_version=FORMAT_VERSION,
        grrcoca_version=__version__,
        model=model_config,
        image=ImageContract(size=64, fit="letterbox", mean=(0.5,) * 3, std=(0.5,) * 3, window="auto"),
        generation=GenerationConfig(),
        step=0,
        trained_on="nothing",
    )
    save_checkpoint(folder / "checkpoint", CoCa(model_config), tokenizer, config)
    write_dicom_set(folder / "studies", splits={"test": 1}, seed=0)
    words = ["caption", str(folder / "studies" / "test"), "--checkpoint", str(folder / "checkpoint"), "--device", "cpu"]
    ours = median_seconds(command("-m", "grrcoca_cli", *words), 5)
    limit = median_seconds(command("-c", "import torch"), 5) + CAPTION_LIMIT
    info = median_seconds(command("-m", "grrcoca_cli", "info", str(folder / "checkpoint")), 5)
    return [
        row("grrcoca info", info, HELP_LIMIT, 1.0),
        row("grrcoca caption, one DICOM file, start to end, against torch's import + 1.5 s", ours, limit, 1.0),
    ]


def quick_answers() -> list[Row]:
    """`grrcoca --help`, `ls` against a limit."""
    return [
        row(f"grrcoca {' '.join(words)}", median_seconds(command("-m", "grrcoca_cli", *words), 5), HELP_LIMIT, 1.0)
        for words in (["--help"], ["ls", "recipes"])
    ]


def main() -> None:
    """Run all, print a table, write bench.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round against the peers instead of three")
    parser.add_argument("--device", default="cpu", help="where both sides of the peers' rows compute")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [*quick_answers(), *with_a_checkpoint(Path(folder))]
    rows += peer.rows(1 if options.quick else ROUNDS, options.device)
    rows += [*scoring.rows(), *pictures.rows(), *guard.rows()]
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    Path("bench.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    print(machine)
    print(f"{'ours s':>9}{'peer s':>9}{'ratio':>8}{'goal':>6}  what")
    for each in rows:
        print(f"{each['ours']:>9}{each['peer']:>9}{each['ratio']:>8}{each['goal']:>6}  {each['name']}")


if __name__ == "__main__":
    main()
