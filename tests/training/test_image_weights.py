"""Vision Transformers by other names: equal outputs, every tensor accounted for, refusals that name both sides."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from grrcoca_cli.config import ModelConfig
from grrcoca_cli.errors import CheckpointRefused, GrrcocaError, UsageError
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.training.image_weights import load_image_weights

LAYERS, WIDTH, HEADS = 2, 32, 4
TO_TIMM = (
    ("conv_proj.", "patch_embed.proj."),
    ("encoder.pos_embedding", "pos_embed"),
    ("class_token", "cls_token"),
    ("encoder.layers.encoder_layer_", "blocks."),
    (".ln_1.", ".norm1."),
    (".self_attention.in_proj_", ".attn.qkv."),
    (".self_attention.out_proj.", ".attn.proj."),
    (".ln_2.", ".norm2."),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.3.", ".mlp.fc2."),
    ("encoder.ln.", "norm."),
    ("heads.head.", "head."),
)


def ours(**settings: object) -> CoCa:
    torch.manual_seed(1)
    small = {"image_size": 32, "patch_size": 8, "image_width": WIDTH, "image_heads": HEADS, "image_layers": LAYERS}
    base = {"size": "tiny", "variant": "baseline-coca", "vocab_size": 300, **small}
    return CoCa(ModelConfig.model_validate({**base, **settings})).eval()


@pytest.fixture(scope="module")
def theirs() -> TorchvisionViT:
    """Random everywhere: torchvision starts heads and class token at zero."""
    torch.manual_seed(0)
    model = TorchvisionViT(32, 8, LAYERS, HEADS, WIDTH, 4 * WIDTH, num_classes=5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    return model


@pytest.fixture(scope="module")
def weights(theirs: TorchvisionViT) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in theirs.state_dict().items()}


def as_timm(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        for old, new in TO_TIMM:
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def saved(weights: dict[str, Tensor], folder: Path) -> Path:
    save_file(weights, folder / "vit.safetensors")
    return folder / "vit.safetensors"


@torch.no_grad()
def without_class_token(model: TorchvisionViT, images: Tensor) -> Tensor:
    """torchvision's own modules on the patches alone (B, N, D)."""
    x = model.conv_proj(images).flatten(2).transpose(1, 2) + model.encoder.pos_embedding[:, 1:]
    return model.encoder.ln(model.encoder.layers(model.encoder.dropout(x)))


def test_patches_come_out_as_torchvisions_do(
    theirs: TorchvisionViT, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    model = ours()
    report = load_image_weights(model, saved(weights, tmp_path))
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.image_encoder(images), without_class_token(theirs, images), atol=1e-5, rtol=0)
    assert report.names == "torchvision"
    assert report.unmatched == ("class_token", "heads.head.bias", "heads.head.weight")
    assert report.left_out_positions == 1
    assert report.resampled is None
    said = "\n".join(report.lines())
    for name in (*report.unmatched, "the first row of the positions", "data.mean", "vit.safetensors"):
        assert name in said


def test_every_name_of_every_layout_leads_to_the_same(weights: dict[str, Tensor], tmp_path: Path) -> None:
    reference = ours()
    load_image_weights(reference, saved(weights, tmp_path))
    older = {
        re.sub(r"mlp\.0\.", "mlp.linear_1.", re.sub(r"mlp\.3\.", "mlp.linear_2.", n)): w for n, w in weights.items()
    }
    timm = as_timm(weights)
    bare = {name: tensor for name, tensor in timm.items() if name != "cls_token" and not name.startswith("head.")}
    bare["pos_embed"] = timm["pos_embed"][:, 1:].contiguous()
    for layout, names, left_out in ((older, "torchvision", 3), (timm, "timm", 3), (bare, "timm", 0)):
        model = ours()
        report = load_image_weights(model, saved(layout, tmp_path))
        assert (report.names, len(report.unmatched)) == (names, left_out)
        assert report.loaded + left_out == len(layout)
        for name, parameter in model.image_encoder.named_parameters():
            assert torch.equal(parameter, reference.image_encoder.get_parameter(name)), name


def test_every_parameter_of_the_encoder_is_filled_and_no_other(weights: dict[str, Tensor], tmp_path: Path) -> None:
    model = ours(variant="coca")
    rest = {name: p.clone() for name, p in model.named_parameters() if not name.startswith("image_encoder.")}
    with torch.no_grad():
        for parameter in model.image_encoder.parameters():
            parameter.fill_(torch.nan)
    load_image_weights(model, saved(weights, tmp_path))
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        assert name not in rest or torch.equal(parameter, rest[name])


def test_half_precision_becomes_float32(weights: dict[str, Tensor], tmp_path: Path) -> None:
    model = ours()
    load_image_weights(model, saved({name: tensor.half() for name, tensor in weights.items()}, tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_positions_of_another_grid_are_resampled(weights: dict[str, Tensor], tmp_path: Path) -> None:
    # A plane keeps its slope under any interpolation, but for what the edges do to their neighbours.
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    plane = torch.stack([rows.flatten(), columns.flatten()], dim=1).repeat(1, WIDTH // 2)  # (64, D)
    larger = {**weights, "encoder.pos_embedding": torch.cat([torch.full((1, WIDTH), 99.0), plane]).unsqueeze(0)}
    model = ours()
    report = load_image_weights(model, saved(larger, tmp_path))
    assert report.resampled == (8, 4)
    assert "from 8 x 8 to 4 x 4 patches" in "\n".join(report.lines())
    grid = model.image_encoder.positions.detach().view(4, 4, WIDTH)  # centres at 0.5, 2.5, 4.5, 6.5
    torch.testing.assert_close(grid[1:3, 0, 0], torch.tensor([2.5, 4.5]), atol=0.05, rtol=0)
    torch.testing.assert_close(grid[0, 1:3, 1], torch.tensor([2.5, 4.5]), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 16}, "patch_size 8, the model has 16"),
        ({"image_width": 64}, "image_width 32, the model has 64"),
        ({"image_layers": 3}, "image_layers 2, the model has 3"),
        ({"variant": "grr-coca"}, "model.image_norm is 'rmsnorm'"),
        ({"image_positions": "rope"}, "model.image_positions is 'rope'"),
        ({"attention_bias": False}, "model.attention_bias is False"),
        ({"qk_norm": True}, "model.qk_norm is True"),
    ],
)
def test_another_architecture_is_refused(
    weights: dict[str, Tensor], tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    model = ours(**settings)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(UsageError, match=re.escape(message)):
        load_image_weights(model, saved(weights, tmp_path))
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.ln.weight": None}, "lacks what fills image_encoder.norm.weight"),
        ({"encoder.layers.encoder_layer_0.ls_1.gamma": torch.ones(WIDTH)}, "encoder_layer_0.ls_1.gamma changes"),
        (
            {"encoder.layers.encoder_layer_1.mlp.0.weight": torch.ones(3 * WIDTH, WIDTH)},
            "(96, 32) there, (128, 32) here",
        ),
        ({"encoder.pos_embedding": torch.ones(1, 15, WIDTH)}, "15 positions are no square grid"),
        ({"conv_proj.weight": torch.ones(WIDTH, 1, 8, 8)}, "(32, 1, 8, 8), not of square patches in three channels"),
        ({"conv_proj.weight": None}, "neither patch_embed.proj.weight nor conv_proj.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    weights: dict[str, Tensor], tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    changed = {name: tensor for name, tensor in {**weights, **change}.items() if tensor is not None}
    with pytest.raises(UsageError, match=re.escape(message)):
        load_image_weights(ours(), saved(changed, tmp_path))


def test_pickles_and_damage_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "vit.pth")
    with pytest.raises(CheckpointRefused, match=r"converted by: python -c"):
        load_image_weights(ours(), tmp_path / "vit.pth")
    disguised = tmp_path / "disguised.safetensors"
    (tmp_path / "vit.pth").rename(disguised)
    with pytest.raises(CheckpointRefused, match="cannot be read as safetensors"):
        load_image_weights(ours(), disguised)
    with pytest.raises(GrrcocaError, match="there is no such file"):
        load_image_weights(ours(), tmp_path / "absent.safetensors")


def test_the_line_that_converts_a_pickle_works(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "WEIGHTS.pth")
    with pytest.raises(CheckpointRefused) as refused:
        load_image_weights(ours(), tmp_path / "WEIGHTS.pth")
    words = shlex.split(str(refused.value).split("converted by: ")[1])
    subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True, timeout=60)
    assert load_image_weights(ours(), tmp_path / "WEIGHTS.safetensors").loaded == 5 + 12 * LAYERS
