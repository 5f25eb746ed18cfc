"""One process of `test_ranks.py`: gradients of a shared global batch, in several ways of sharing it; run by itself.

Writes what the first process holds afterwards to the folder that is its argument.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file

from grrcoca_cli.config import Recipe, build_recipe
from grrcoca_cli.data.batches import Batch
from grrcoca_cli.data.tokenizer import CaptionTokenizer
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.training.ranks import Ranks, join_ranks
from grrcoca_cli.training.sharding import whole
from grrcoca_cli.training.step import GradientStep, spread

CASES: dict[str, dict[str, object]] = {
    "whole": {},
    "cached": {"accumulation": 2},
    "micro": {"accumulation": 2, "contrastive_batch": "micro"},
    "sigmoid": {"loss": "sigmoid"},
    "sigmoid-cached": {"loss": "sigmoid", "accumulation": 3},
    "clip": {"caption_weight": 0},
    "captioner": {"contrastive_weight": 0},
    "one-missing": {"missing": True},
}
SAMPLES = 12


def recipe_of(case: dict[str, object], strategy: str) -> Recipe:
    """A small model and the case's way of training."""
    training = {key: value for key, value in case.items() if key not in ("loss", "missing")}
    return build_recipe(
        {
            "model": {
                **{"size": "tiny", "image_size": 32, "image_width": 32, "text_width": 32, "image_layers": 2},
                **{"unimodal_layers": 1, "multimodal_layers": 1, "vocab_size": 300, "context_length": 16},
                "contrastive_loss": case.get("loss", "infonce"),
            },
            "training": {"batch_size": SAMPLES, **training},
            "distributed": {"strategy": strategy},
        },
        "test",
    )


def micro_batches(case: dict[str, object], recipe: Recipe, ranks: Ranks) -> list[Batch]:
    """This process's share of each micro-batch of twelve samples; in one case the first process's cannot be read."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(SAMPLES, 3, 32, 32, generator=generator)
    tokens = torch.zeros(SAMPLES, 16, dtype=torch.long)
    for row in range(SAMPLES):
        length = 4 + row
        tokens[row, :length] = torch.randint(3, 300, (length,), generator=generator)
    micro = SAMPLES // recipe.training.accumulation
    found = []
    for first in range(0, SAMPLES, micro):
        indices = ranks.share.of(list(range(first, first + micro)))
        if case.get("missing"):
            indices = [index for index in indices if index >= 4]
        longest = 4 + max(indices, default=-4)
        keys = [str(index) for index in indices]
        found.append(Batch(images[indices], tokens[indices, :longest], keys, keys, Counter()))
    return found


def gradients(name: str, strategy: str, ranks: Ranks) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses, and gradients by parameter, of a case; the norm before clipping is among the losses."""
    case = CASES[name]
    recipe = recipe_of(case, strategy)
    torch.manual_seed(0)
    model = CoCa(recipe.model).train()
    tokenizer = CaptionTokenizer.train(["a"], 300)
    device = torch.device("cpu")
    step = GradientStep(model, spread(model, recipe, ranks, device), recipe, tokenizer, ranks, device)
    losses = step.backward(micro_batches(case, recipe, ranks), seed=0)
    found = whole({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    found = {key: gradient.clone() for key, gradient in found.items()}
    return losses | {"norm": step.clip()}, found


def main(out: Path) -> None:
    """Every case under every strategy."""
    torch.set_num_threads(1)
    with join_ranks(120) as ranks:
        for strategy in ("ddp", "fsdp2"):
            for name in CASES:
                losses, found = gradients(name, strategy, ranks)
                if ranks.is_first:
                    save_file(found, out / f"{strategy}-{name}.safetensors")
                    (out / f"{strategy}-{name}.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]) / os.environ["WORLD_SIZE"])
