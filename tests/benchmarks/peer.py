"""Ours beside open_clip's CoCa at equal sizes, and beside a cached captioner of HF transformers.

Each work is done by two processes in turn, ours first, one round after another; a row holds the medians. The peers live
in an environment of their own, made at the first run. How cost grows is in `peer_growth.py`.
"""

import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch
from peer_protocol import Side

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / ".venv-peer"
VERSIONS = ("torch==2.14.1", "torchvision==0.29.1", "open_clip_torch==3.3.0", "transformers==4.55.4")
ROCO = ROOT.parent / "shared" / "data" / "roco-v1-text"
OURS, PEER = HERE / "peer_ours.py", HERE / "peer_openclip.py"
BATCH, TOKENS = 16, 64
ROCO_CAPTIONS = 25 * BATCH
FULL = "76 tokens, s"
Row = dict[str, str | float]


def peer_python() -> Path:
    """The peers' interpreter; its environment is made where it is not there."""
    python = ENVIRONMENT / "bin" / "python"
    ready = ENVIRONMENT / ".ready"
    if not ready.exists() or ready.read_text() != " ".join(VERSIONS):
        print(f"installing {', '.join(VERSIONS)} into {ENVIRONMENT.name}", file=sys.stderr)
        venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *VERSIONS], check=True)
        ready.write_text(" ".join(VERSIONS))
    return python


class Pair:
    """One work as both sides do it: medians over rounds that alternate, after a first one that is not counted.

    Attributes:
        ours, theirs: What each side said of itself.
        seconds, peaks: Of ours and of theirs; peaks are resident memory in GB.
    """

    def __init__(self, ours: dict[str, Any], theirs: dict[str, Any] | None, rounds: int) -> None:
        scripts = [(Path(sys.executable), OURS, ours)]
        if theirs is not None:
            scripts.append((peer_python(), PEER, theirs))
        sides = [Side(*script) for script in scripts]
        for side in sides:
            side.run()
        answers = [[side.run() for side in sides] for _ in range(rounds)]
        for side in sides:
            side.close()
        self.ours, self.theirs = sides[0].facts, sides[-1].facts
        self.seconds = [statistics.median(turn[i]["seconds"] for turn in answers) for i in range(len(sides))]
        self.peaks = [answers[-1][i]["peak_gb"] for i in range(len(sides))]


def row(name: str, ours: float, peer: float, goal: float) -> Row:
    """Of seconds or GB: the ratio says how many times less ours needs."""
    return {"name": name, "ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(peer / ours, 3), "goal": goal}


def training(rounds: int, device: str) -> list[Row]:
    """A training step in either precision: time, memory, real lengths, gradient checkpointing."""
    rows: list[Row] = []
    base = {"work": "train", "batch": BATCH, "device": device}
    for precision, goal, roco_goal in (("float32", 1.45, 0.0), ("bf16", 1.8, 3.0)):
        what = f"training step, batch {BATCH}, {precision}"
        settings: dict[str, Any] = {**base, "precision": precision}
        if precision == "bf16" and not _has_bf16(device):
            # This processor has no bf16 products: what is left of the step then has no goals of its own.
            what, goal, roco_goal = f"{what} without its products", 0.0, 0.0
            settings["without_products"] = True
        pair = Pair(settings, settings, rounds)
        rows += [
            row(f"{what}, {FULL}", *pair.seconds, goal),
            row(f"{what}, peak memory, GB", *pair.peaks, 1.25),
        ]
        less = Pair({**settings, "checkpointing": True}, None, rounds)
        rows += [
            row(f"{what}, gradient checkpointing, peak memory, GB", less.peaks[0], pair.peaks[1], 1.6),
            row(f"{what}, gradient checkpointing, s", less.seconds[0], pair.seconds[1], 1.0 if goal else 0.0),
        ]
        if ROCO.is_dir():
            real = Pair({**settings, "lengths": roco_lengths()}, None, rounds * 3)
            name = f"{what}, lengths of ROCO captions, s (the peer pads)"
            rows.append(row(name, real.seconds[0], pair.seconds[1], roco_goal))
    return rows


def captioning(rounds: int, device: str) -> list[Row]:
    """Captions of 64 tokens from pictures: greedy, eight at once, a beam of four; both peers."""
    rows: list[Row] = []
    peers = (("open_clip", "caption", (5.0, 10.0, 9.0)), ("HF ViT-B/16 + GPT-2", "hf-caption", (1.0, 1.0, 1.0)))
    for peer, work, goals in peers:
        for (images, beams), goal in zip(((1, 1), (8, 1), (1, 4)), goals, strict=True):
            settings = {"images": images, "beams": beams, "tokens": TOKENS, "device": device}
            pair = Pair({**settings, "work": "caption"}, {**settings, "work": work}, rounds)
            how = f"beam of {beams}" if beams > 1 else "greedy"
            rows.append(row(f"{how}, {images} images, {TOKENS} tokens, against {peer}, s", *pair.seconds, goal))
    return rows


def sizes(device: str) -> list[Row]:
    """Parameters and the products of a training step (forward and backward), of both sides; no goals, so goal 0."""
    settings = {"work": "train", "batch": BATCH, "precision": "float32", "count_flops": True, "device": device}
    sides = [Side(Path(sys.executable), OURS, settings), Side(peer_python(), PEER, settings)]
    for side in sides:
        side.close()
    parameters, flops = ([side.facts[name] for side in sides] for name in ("parameters", "flops"))
    return [
        row("parameters, millions", *(count / 1e6 for count in parameters), 0.0),
        row(f"training step, batch {BATCH}, 76 tokens, TFLOP", *(count / 1e12 for count in flops), 0.0),
    ]


def per_flop(rows: list[Row]) -> list[Row]:
    """For each full training step, the ratio of the rates at which both sides compute; needs `sizes`."""
    (work,) = [each for each in rows if str(each["name"]).endswith("TFLOP")]
    found = []
    for each in rows:
        name = str(each["name"])
        if name.endswith(FULL) and "without" not in name:
            ours, peer = (float(each[side]) / float(work[side]) for side in ("ours", "peer"))
            found.append(row(f"{name.removesuffix(', s')}, s a TFLOP", ours, peer, 0.0))
    return found


def roco_lengths() -> list[int]:
    """Token counts of real captions, by the peer's tokenizer for both sides."""
    side = Side(peer_python(), PEER, {"work": "lengths", "data": str(ROCO), "count": ROCO_CAPTIONS})
    side.close()
    lengths: list[int] = side.facts["lengths"]
    return lengths


def rows(rounds: int = 3, device: str = "cpu") -> list[Row]:
    """The whole table."""
    found = [*sizes(device), *training(rounds, device), *captioning(rounds, device)]
    return found + per_flop(found)


def _has_bf16(device: str) -> bool:
    return device != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
