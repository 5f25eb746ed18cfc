"""A soak: the survival table's small run for half an hour, with its memory, open files and threads.

python tests/benchmarks/soak.py [--minutes 30]   exit 1 where memory grows by a megabyte or more in 1,000 steps
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
EVERY = 10.0
"""Seconds between samples."""
LIMIT = 1.0
"""Megabytes in 1,000 steps."""

SETTINGS = (
    *("training.steps=100000000", "training.eval_every=200", "training.save_every=500", "training.keep=2"),
    *("data.workers=2", "training.warmup_steps=100"),
)


@dataclass(frozen=True)
class Sample:
    """One look at the run.

    Attributes:
        step: So far.
        main, group: Megabytes of the training process and of all its processes: PSS of anonymous pages.
        files, threads: Open ones of the training process.
    """

    step: int
    main: float
    group: float
    files: int
    threads: int


def look(process: int, out: Path) -> Sample:
    """Take a sample of a session's processes."""
    from tests.survival.children import members

    sizes = {member: _megabytes(member) for member in members(process)}
    folder = Path("/proc", str(process))
    return Sample(
        _steps(out),
        sizes[process],
        sum(sizes.values()),
        sum(1 for _ in (folder / "fd").iterdir()),
        sum(1 for _ in (folder / "task").iterdir()),
    )


def _megabytes(process: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):  # not the libraries' part, which hangs on who else has them loaded
                return int(line.split()[1]) / 1024
    return 0.0


def _steps(out: Path) -> int:
    """The last step in the log, from its last whole line."""
    with suppress(OSError), (out / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().splitlines(keepends=True)
        whole = [line for line in lines if line.startswith(b"{") and line.endswith(b"\n")]
        return int(json.loads(whole[-1])["step"]) if whole else 0
    return 0


def slope(samples: list[Sample], what: str) -> float:
    """Megabytes in 1,000 steps by least squares, after the first fifth."""
    kept = samples[len(samples) // 5 :]
    steps = np.array([sample.step for sample in kept]) / 1000
    return float(np.polyfit(steps, [getattr(sample, what) for sample in kept], 1)[0])


def soak(minutes: float, folder: Path) -> list[Sample]:
    """Run, look on, and stop it as a scheduler would."""
    from tests.survival.children import wait_for
    from tests.survival.harness import RECIPE, write_shard

    recipe, shards, out = folder / "recipe.toml", folder / "pairs.tar", folder / "run"
    recipe.write_text(RECIPE)
    write_shard(shards, 256)
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    words = ["pretrain", "--recipe", recipe, "--data", shards, "--out", out, "--device", "cpu", *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    samples = []
    with (folder / "err").open("w") as err:
        run = subprocess.Popen(
            [sys.executable, "-m", "grrcoca_cli", *map(str, words)], env=environment, stderr=err, start_new_session=True
        )
        try:
            wait_for(lambda: _steps(out) > 10 or run.poll() is not None, 120, "the first steps")
            end = time.monotonic() + 60 * minutes
            while time.monotonic() < end and run.poll() is None:
                samples.append(look(run.pid, out))
                time.sleep(EVERY)
            run.send_signal(signal.SIGTERM)
            code = run.wait(60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    if code != 75:
        sys.exit(f"the run ended with {code}:\n{(folder / 'err').read_text()[-2000:]}")
    return samples


def main() -> int:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = soak(options.minutes, Path(folder))
    first, last = samples[0], samples[-1]
    print(f"{last.step} steps in {options.minutes:g} minutes, {len(samples)} samples")
    grew = {what: slope(samples, what) for what in ("main", "group")}
    for what, name in (("main", "training process"), ("group", "with its workers")):
        begin, end = getattr(first, what), getattr(last, what)
        print(f"{name}: {begin:.0f} to {end:.0f} MB, {grew[what]:+.3f} MB in 1,000 steps (target: under {LIMIT:g})")
    print(f"open files {first.files} to {last.files}, threads {first.threads} to {last.threads}")
    return int(max(grew.values()) >= LIMIT or last.files > first.files + 20 or last.threads > first.threads + 5)


if __name__ == "__main__":
    sys.exit(main())
