"""Rotary tables: right after every move and cast, never in a checkpoint, never poisoned by tracing."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from grrcoca_cli.config import ModelConfig
from grrcoca_cli.model.coca import CoCa
from grrcoca_cli.model.initialise import SkipInit
from grrcoca_cli.model.rope import Rope, RopeTable, RotaryGrid, apply_rope

SETTINGS = {
    **{"size": "tiny", "image_size": 32, "vocab_size": 300, "context_length": 12, "rope": "axial"},
    **{"image_layers": 1, "unimodal_layers": 1, "multimodal_layers": 1},
}


def build(**settings: object) -> CoCa:
    torch.manual_seed(0)
    return CoCa(ModelConfig.model_validate({**SETTINGS, **settings})).eval()


def tables(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_buffers())


def test_angles_by_hand() -> None:
    grid = RotaryGrid((2, 3), 8, base=100.0, step=0.5, offset=1.0, prefix=1)
    cos, _ = grid.factors(torch.device("cpu"), torch.float64)
    assert cos.shape == (7, 8)
    assert (cos[0] == 1).all()
    row, column = 1, 2  # the last of six
    angles = [(row + 1) * 0.5, (row + 1) * 0.05, (column + 1) * 0.5, (column + 1) * 0.05]
    torch.testing.assert_close(cos[6], torch.tensor([*angles, *angles], dtype=torch.float64).cos())


def test_the_pair_is_rotated_by_its_angle() -> None:
    angle = torch.tensor([0.3, 1.1])
    cos, sin = angle.cos(), angle.sin()
    rope = Rope(torch.cat([cos, cos])[None], torch.cat([-sin, sin])[None])
    x = torch.randn(1, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    rotated = torch.view_as_complex(x.view(2, 2).T.contiguous()) * torch.polar(torch.ones(2), angle)
    torch.testing.assert_close(apply_rope(x, rope).view(2, 2).T, torch.view_as_real(rotated))


def test_no_checkpoint_holds_a_table() -> None:
    model = build()
    assert set(tables(model)) == {
        f"{tower}.rope.{half}" for tower in ("image_encoder", "text_decoder") for half in ("cos", "sin")
    }
    assert not set(tables(model)) & model.state_dict().keys()
    model.load_state_dict(build(image_positions="both").state_dict(), strict=False)


def test_casts_leave_tables_as_exact_as_they_can_be() -> None:
    model = build()
    before = {name: table.clone() for name, table in tables(model).items()}
    torch.testing.assert_close(tables(copy.deepcopy(model).bfloat16()), before, rtol=0, atol=0)
    torch.testing.assert_close(tables(copy.deepcopy(model).half().float()), before, rtol=0, atol=0)
    double = tables(copy.deepcopy(model).double())
    for name, table in double.items():
        assert table.dtype == torch.float64
        error = (table - before[name]).abs().max()
        assert 0 < error < 1e-5  # computed in float64, not converted to it
    torch.testing.assert_close(tables(copy.deepcopy(model).double().float()), before, rtol=0, atol=0)


def test_the_meta_device_has_no_say() -> None:
    expected = tables(build())
    with torch.device("meta"), SkipInit():
        model = CoCa(build().config)
    torch.testing.assert_close(tables(model), expected, rtol=0, atol=0)  # weights are assigned next
    emptied = copy.deepcopy(model).to_empty(device="cpu")
    torch.testing.assert_close(tables(emptied), expected, rtol=0, atol=0)
    torch.testing.assert_close(tables(model.to("meta").to_empty(device="cpu")), expected, rtol=0, atol=0)


def test_a_table_made_in_inference_mode_can_be_trained_with() -> None:
    with torch.inference_mode():
        table = RopeTable(RotaryGrid((4,), 8, 100.0)).double()
    assert not table.cos.is_inference()


EXPORT = """
import torch
from torch.export import Dim, export
from grrcoca_cli.config import ModelConfig
from grrcoca_cli.model.coca import CoCa

config = ModelConfig.model_validate({settings})
torch.manual_seed(0)
model, other = CoCa(config).eval(), CoCa(config).eval()
images = torch.randn(2, 3, 32, 32)
exported = export(model.image_encoder, (images,), dynamic_shapes=({{0: Dim("batch")}},)).module()
for each in (model, other):
    memory, features = each.encode_image(images)
    assert type(features) is torch.Tensor and features.isfinite().all(), type(features)
batch = torch.randn(5, 3, 32, 32)
torch.testing.assert_close(exported(batch), model.image_encoder(batch))

class Prefix(torch.nn.Module):
    def __init__(self, text):
        super().__init__()
        self.text = text
    def forward(self, tokens, memory):
        x, rope = self.text.embed(tokens), self.text._rope(0, tokens.shape[1])
        for block in self.text.unimodal:
            x = block(x, rope)
        return self.text.head(self.text.decode(x, memory))

memory = model.encode_image(images)[0]
prefix = Prefix(model.text_decoder).eval()
tokens = torch.randint(3, 300, (2, 6))
exported = export(prefix, (tokens, memory), dynamic_shapes=({{1: Dim("length", min=2, max=12)}}, None)).module()
for length in (2, 6, 12):
    tokens = torch.randint(3, 300, (2, length))
    torch.testing.assert_close(exported(tokens, memory), prefix(tokens, memory))
"""


@pytest.mark.parametrize("variant", ["grr-coca", "coca"])
def test_export_before_any_forward_poisons_nothing_and_takes_any_length(variant: str) -> None:
    code = EXPORT.format(settings={**SETTINGS, "variant": variant})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
