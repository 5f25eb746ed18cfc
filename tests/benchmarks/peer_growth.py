"""How our cost grows: images a second over the batch, seconds a token over the length, memory for both; with a picture.

`python tests/benchmarks/peer_growth.py` prints both tables and draws growth.png (untracked).
"""

import argparse
from pathlib import Path

from peer import Pair

BATCHES = (4, 8, 16, 32, 64)
LENGTHS = (16, 32, 64, 128)
PICTURE = Path("growth.png")


def training(rounds: int, device: str) -> list[tuple[int, float, float]]:
    """(batch, images a second, peak GB) of a training step in float32 with captions of 76 tokens."""
    found = []
    for batch in BATCHES:
        settings = {"work": "train", "batch": batch, "precision": "float32", "device": device}
        pair = Pair(settings, None, rounds)
        found.append((batch, batch / pair.seconds[0], pair.peaks[0]))
    return found


def decoding(rounds: int, device: str) -> list[tuple[int, float, float]]:
    """(length, milliseconds a token, peak GB) of greedy captions of one picture."""
    found = []
    for length in LENGTHS:
        settings = {"work": "caption", "images": 1, "beams": 1, "tokens": length, "context": 132, "device": device}
        pair = Pair(settings, None, rounds)
        found.append((length, 1000 * pair.seconds[0] / length, pair.peaks[0]))
    return found


def draw(by_batch: list[tuple[int, float, float]], by_length: list[tuple[int, float, float]]) -> None:
    """Both tables as one picture."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(8, 6), sharex="col", layout="constrained")
    for column, table, titles in (
        (0, by_batch, ("batch", "training, images a second")),
        (1, by_length, ("tokens", "greedy, ms a token")),
    ):
        for line, values in ((0, [each[1] for each in table]), (1, [each[2] for each in table])):
            axes[line, column].plot([each[0] for each in table], values, marker="o")
            axes[line, column].set_ylim(0, 1.1 * max(values))
            axes[line, column].set_ylabel(titles[1] if line == 0 else "peak memory, GB")
        axes[1, column].set_xlabel(titles[0])
        axes[1, column].set_xscale("log", base=2)
        axes[1, column].set_xticks([each[0] for each in table], [str(each[0]) for each in table])
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    by_batch, by_length = training(options.rounds, options.device), decoding(options.rounds, options.device)
    print(f"{'batch':>8}{'images/s':>12}{'peak GB':>10}")
    for batch, speed, peak in by_batch:
        print(f"{batch:>8}{speed:>12.2f}{peak:>10.2f}")
    print(f"{'tokens':>8}{'ms a token':>12}{'peak GB':>10}")
    for length, speed, peak in by_length:
        print(f"{length:>8}{speed:>12.1f}{peak:>10.2f}")
    draw(by_batch, by_length)


if __name__ == "__main__":
    main()
