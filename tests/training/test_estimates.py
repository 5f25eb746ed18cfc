"""Estimates against what torch counts: operations, saved tensors, the optimiser's states, a checkpoint's bytes."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from grrcoca_cli.config import DistributedConfig, FinetuneConfig, ModelConfig, Recipe, build_recipe
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.layers import GEGLU
from grrcoca_cli.model.losses import Pairs
from grrcoca_cli.training.costs import activation_bytes, step_flops
from grrcoca_cli.training.estimates import amount, estimate
from grrcoca_cli.training.optimizer import freeze, make_optimizers

CPU = torch.device("cpu")
SMALL = {"size": "tiny", "vocab_size": 500, "image_layers": 2, "unimodal_layers": 1}
WIDE = {**SMALL, "image_size": 96, "image_width": 192, "text_width": 144, "embed_dim": 64, "vocab_size": 900}


def model_of(settings: dict[str, object]) -> CoCa:
    torch.manual_seed(0)
    return CoCa(ModelConfig.model_validate(settings)).train()


def loss_of(model: CoCa, pairs: int, tokens: int) -> Tensor:
    images = torch.randn(pairs, 3, model.config.image_size, model.config.image_size)
    captions = torch.randint(3, model.config.vocab_size, (pairs, tokens))
    output = model(images, captions, pad_id=0)
    return output.nll + model.pair_loss(Pairs.alone(output.image_features, output.text_features))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"variant": "baseline-coca"},
        {"variant": "coca", "generative_pooler": "none", "tied_embeddings": True},
        {"generative_pooler": "parallel", "geglu": "wide", "rope": "axial", "qk_norm": True},
        {"gradient_checkpointing": True, "patch_dropout": 0.5},
        WIDE,
    ],
)
@pytest.mark.parametrize("frozen", ["none", "image"])
def test_operations_are_those_that_torch_counts(settings: dict[str, object], frozen: Literal["none", "image"]) -> None:
    model = model_of({**SMALL, **settings})
    freeze(model, frozen)
    # The fused attention of a CPU is not counted by torch; its plain one is, product by product.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss_of(model, 3, 20).backward()
    assert step_flops(model, 3, 20, contrastive=3) == pytest.approx(counter.get_total_flops(), rel=0.02)


def saved_bytes(model: CoCa, pairs: int, tokens: int, *, half: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters and their 16-bit copies left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        loss_of(model, pairs, tokens)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    # The head and the end of a GEGLU layer make their 16-bit copies anew in the backward pass; these tables have none.
    own = [f"{name}.down." for name, module in model.named_modules() if isinstance(module, GEGLU)]
    own += [".head.", "token_embedding", "positions"]
    copied = [p for name, p in model.named_parameters() if p.dim() > 1 and not any(part in name for part in own)]
    return total - (sum(2 * p.numel() for p in copied) if half else 0)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "arm",
    [
        {"variant": "grr-coca"},
        {"variant": "baseline-coca"},
        {"variant": "coca"},
        {"variant": "grr-coca", "image_positions": "both"},
    ],
)
@pytest.mark.parametrize(("size", "tokens"), [(SMALL, 40), (WIDE, 12)])
def test_activations_are_those_that_autograd_saves(
    size: dict[str, object], tokens: int, arm: dict[str, object], half: bool
) -> None:
    model = model_of({**size, **arm})
    estimated = 8 * activation_bytes(model.config, tokens, half=half)
    assert estimated == pytest.approx(saved_bytes(model, 8, tokens, half=half), rel=0.1)


def test_what_is_frozen_or_recomputed_is_not_kept() -> None:
    model = model_of(SMALL)
    freeze(model, "image")
    kept = 8 * activation_bytes(model.config, 20, half=False, frozen_image=True)
    assert kept == pytest.approx(saved_bytes(model, 8, 20, half=False), rel=0.1)
    plain = activation_bytes(model.config, 20, half=False)
    recomputed = model.config.model_copy(update={"gradient_checkpointing": True})
    assert activation_bytes(recomputed, 20, half=False) < 0.8 * plain


def recipe_of(**training: object) -> Recipe:
    base = {"steps": 500, "batch_size": 32, "accumulation": 2, "keep": 3}
    return build_recipe({"model": SMALL, "training": {**base, **training}}, "test")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_is_as_large_as_estimated(optimizer: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    recipe = recipe_of(optimizer=optimizer)
    model = CoCa(recipe.model)
    optimizers = make_optimizers(model, recipe.training)
    loss_of(model, 4, 9).backward()
    for one in optimizers:
        one.step()
    tensors = {f"w/{name}": value for name, value in model.state_dict().items()}
    states = [(number, values) for one in optimizers for number, values in enumerate(one.state.values())]
    tensors |= {f"{id(v)}/{number}/{key}": t for number, v in states for key, t in v.items() if torch.is_tensor(t)}
    save_file(tensors, tmp_path / "all.safetensors")
    size = (tmp_path / "all.safetensors").stat().st_size
    found = estimate(recipe, 1000, 20, 1, CPU)
    assert found.checkpoint_bytes == pytest.approx(size, rel=0.01)
    assert found.checkpoints == 4


def test_figures_of_a_run() -> None:
    recipe = recipe_of()
    found = estimate(recipe, 1000, 20.5, 1, CPU)
    assert (found.epochs, found.images_seen, found.micro_batch) == (16.0, 16_000, 16)
    total = sum(parameter.numel() for parameter in CoCa(recipe.model).parameters())
    assert sum(found.parameters.values()) == total == found.trained_parameters
    assert found.parameters["vocabulary head"] == 500 * 96
    assert found.memory["weights"] == found.memory["gradients"] == 4 * total
    assert found.memory["optimiser"] == 8 * total
    assert found.flops_per_step < found.flops_per_step_padded
    assert found.as_json()["parameters"]["image encoder"] > 0

    frozen = estimate(recipe.model_copy(update={"finetune": FinetuneConfig(freeze="image")}), 1000, 20.5, 1, CPU)
    assert frozen.trained_parameters == total - found.parameters["image encoder"]
    assert frozen.memory["activations"] < found.memory["activations"]
    assert "frozen" in frozen.lines()[0]
    assert "frozen" not in found.lines()[0]

    options = {"ema": 0.99, "keep_best": True, "eval_every": 10}
    wide = recipe.model_copy(
        update={
            "training": recipe.training.model_copy(update=options),
            "distributed": DistributedConfig(strategy="fsdp2"),
        }
    )
    spread = estimate(wide, 1000, 20.5, 4, CPU)
    assert spread.memory["weights"] == spread.memory["average"] == total
    assert spread.micro_batch == 4
    assert spread.memory["activations"] == pytest.approx(found.memory["activations"] / 4, rel=1e-3)
    assert spread.checkpoint_bytes == found.checkpoint_bytes + 4 * total
    assert spread.checkpoints == found.checkpoints + 1
    assert estimate(recipe, 1000, 20.5, 4, CPU).memory["weights"] == 4 * total


def test_lines_say_the_figures() -> None:
    lines = "\n".join(estimate(recipe_of(), 1000, 20.5, 1, CPU).lines())
    for word in ("16.0 epochs", "16,000 pictures", "captions of 20 tokens", "with 77", "4 checkpoints", "16 pairs"):
        assert word in lines
    assert "average" not in lines


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (2_134_000_000, "2.13 GB"), (5e18, "5e+03 PB")],
)
def test_amounts(count: float, text: str) -> None:
    assert amount(count, "B") == text
