"""`make bench`: what is fast and what is not, printed and kept in bench.json (untracked). Medians; no asserts.

`ratio` says how many times better ours is than the peer. Where the peer is a limit in seconds, the goal is 1.0; where
it is the slow way of our own model (no cache), it says what the cache is worth.
"""

import functools
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
import pictures
import scoring
import torch

from grrcoca_cli import __version__
from grrcoca_cli.config import GenerationConfig, ModelConfig, TrainingConfig
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.generate import SpecialTokens, generate
from grrcoca_cli.model.losses import caption_nll, contrastive_loss
from grrcoca_cli.training.checkpoint import FORMAT_VERSION, CheckpointConfig, ImageContract, save_checkpoint
from grrcoca_cli.training.optimizer import make_optimizers

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


def decoding() -> list[Row]:
    """A small model writing 32 tokens, with its cache and without; the images are encoded beforehand."""
    torch.manual_seed(0)
    model = CoCa(ModelConfig.model_validate({"size": "small", "vocab_size": 8000})).eval()
    special = SpecialTokens(pad=0, bos=1, eos=2)
    rows = []
    for images, beams in ((1, 1), (8, 1), (1, 4)):
        memory, _ = model.encode_image(torch.randn(images, 3, 224, 224))
        settings = GenerationConfig(beams=beams, min_tokens=32, max_tokens=32)
        work = functools.partial(generate, model, memory, special, settings)
        fast, slow = median_seconds(work), median_seconds(functools.partial(work, use_cache=False))
        rows.append(row(f"decode 32 tokens, {images} images, {beams} beams: cache against none", fast, slow, 1.0))
    return rows


def training_step() -> Row:
    """A training step of a small model, batch 16: captions of real lengths against captions padded to the context."""
    torch.manual_seed(0)
    model = CoCa(ModelConfig.model_validate({"size": "small", "vocab_size": 8000})).train()
    (optimizer,) = make_optimizers(model, TrainingConfig())
    images = torch.randn(16, 3, 224, 224)

    def step(length: int) -> None:
        tokens = torch.randint(3, 8000, (16, length))
        output = model(images, tokens, 0)
        loss = 2 * caption_nll(output.logits, output.targets) / len(output.targets)
        (loss + contrastive_loss(output.image_features, output.text_features, model.logit_scale)).backward()
        optimizer.step()
        optimizer.zero_grad()

    ours, padded = median_seconds(lambda: step(24)), median_seconds(lambda: step(77))
    return row("training step, batch 16: longest caption 24 tokens against padded to 77", ours, padded, 1.0)


def caption_start_to_end(folder: Path) -> Row:
    """`grrcoca caption` of one DICOM file; the limit is torch's own import time and 1.5 s."""
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
    return row("grrcoca caption, one DICOM file, start to end, against torch's import + 1.5 s", ours, limit, 1.0)


def quick_answers() -> list[Row]:
    """`grrcoca --help` and `grrcoca ls` against a limit."""
    return [
        row(f"grrcoca {' '.join(words)}", median_seconds(command("-m", "grrcoca_cli", *words), 5), HELP_LIMIT, 1.0)
        for words in (["--help"], ["ls", "recipes"])
    ]


def main() -> None:
    """Run all, print a table, write bench.json."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [*quick_answers(), caption_start_to_end(Path(folder)), training_step(), *decoding()]
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
