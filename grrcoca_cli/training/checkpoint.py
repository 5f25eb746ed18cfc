"""Checkpoints: a folder in the Hub's layout, self-contained, sealed by a manifest; no pickle is read or written.

`read_config` and `find_checkpoint` need no torch, so that listings stay fast; torch is imported where tensors are.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from grrcoca_cli import __version__
from grrcoca_cli.config import GenerationConfig, ModelConfig, Section
from grrcoca_cli.console import say
from grrcoca_cli.errors import CheckpointRefused, UsageError
from grrcoca_cli.files import MANIFEST, new_folder, verify_folder
from grrcoca_cli.training.runfolder import describe_state

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from grrcoca_cli.data.tokenizer import CaptionTokenizer
    from grrcoca_cli.model.coca import CoCa
    from grrcoca_cli.training.ema import Ema
    from grrcoca_cli.training.ranks import Ranks

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
CARD = "README.md"
TRAINING = "training"
BEST = "best"
RAW_WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


class ImageContract(Section):
    """How a picture becomes the model's input: what training did, and every later reading must do."""

    size: int
    fit: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    window: str


class CheckpointConfig(Section):
    """``config.json``: everything but weights and tokenizer that a caption needs."""

    format_version: int
    grrcoca_version: str
    model: ModelConfig
    image: ImageContract
    generation: GenerationConfig
    step: int
    trained_on: str


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in evaluation mode, its tokenizer, and its contract."""

    folder: Path
    config: CheckpointConfig
    model: CoCa
    tokenizer: CaptionTokenizer


def save_checkpoint(
    target: Path,
    model: CoCa,
    tokenizer: CaptionTokenizer,
    config: CheckpointConfig,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    state: dict[str, Any] | None = None,
    ema: Ema | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Write a checkpoint folder, whole or not at all; with ``optimizers`` and ``state``, one that can be resumed.

    Args:
        target: The folder.
        model: Its weights; sharded ones are gathered, so that any number of processes can load them.
        tokenizer: Of the model.
        config: What the checkpoint says of itself.
        optimizers: Whose states are kept.
        state: Further things to go on from, plain JSON.
        ema: Averaged weights, which then are the checkpoint's; the model's own stand among what is resumed from.
        ranks: The processes that share the model, all of which call; the first one writes.

    Raises:
        OutOfResources: The disk is full; older checkpoints are untouched.
    """
    from grrcoca_cli.training.sharding import whole

    weights = whole(model.state_dict())
    published = weights if ema is None else whole(ema.averages)
    moments = whole(_optimizer_tensors(model, optimizers))

    need = sum(tensor.nbytes for tensors in (published, moments) for tensor in tensors.values())

    def write() -> None:
        with new_folder(target, need) as folder:
            _save_tensors(published, folder / WEIGHTS)
            (folder / CONFIG).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
            tokenizer.save(folder / TOKENIZER)
            (folder / CARD).write_text(_model_card(config, model), encoding="utf-8")
            if not optimizers:
                return
            (folder / TRAINING).mkdir()
            _save_tensors(moments, folder / TRAINING / OPTIMIZER)
            if ema is not None:
                _save_tensors(weights, folder / TRAINING / RAW_WEIGHTS)
            resumed = {**(state or {}), "ema_updates": ema.updates if ema else 0}
            (folder / TRAINING / STATE).write_text(json.dumps(resumed, indent=2) + "\n", encoding="utf-8")

    if ranks is None:
        write()
    else:
        ranks.agree(write)


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Verify and load a checkpoint folder.

    Raises:
        CheckpointRefused: It is damaged, of another format, or not a checkpoint.
    """
    import torch

    from grrcoca_cli.data.tokenizer import CaptionTokenizer
    from grrcoca_cli.model.coca import CoCa
    from grrcoca_cli.model.initialise import SkipInit

    verify_checkpoint(folder)
    config = read_config(folder)
    with torch.device("meta"), SkipInit():
        model = CoCa(config.model)
    _load_tensors(model, folder / WEIGHTS)
    return Checkpoint(folder, config, model.to(device).eval(), CaptionTokenizer.load(folder / TOKENIZER))


def load_training_state(
    folder: Path, model: CoCa, optimizers: Sequence[torch.optim.Optimizer], ema: Ema | None = None
) -> dict[str, Any]:
    """Put weights, their average and the optimisers back as they are in ``folder``; gives its ``state``.

    Raises:
        CheckpointRefused: A file is not what its name says, though it agrees with the manifest.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from grrcoca_cli.training.sharding import like

    own = folder / TRAINING / RAW_WEIGHTS
    try:
        state: dict[str, Any] = json.loads((folder / TRAINING / STATE).read_text(encoding="utf-8"))
        published = load_file(folder / WEIGHTS)
        weights = load_file(own) if own.exists() else published
        tensors = load_file(folder / TRAINING / OPTIMIZER)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointRefused(f"{folder} cannot be resumed: its weights or {TRAINING}/ cannot be read") from error
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        entries.setdefault(name, {})[entry] = value
    owner = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(like(parameter, weights[name]))
            if name in entries:
                owner[parameter].state[parameter] = {
                    key: value if key == "step" else like(parameter, value) for key, value in entries[name].items()
                }
    if ema is not None:
        ema.load(published, state["ema_updates"])
    return state


def read_config(folder: Path) -> CheckpointConfig:
    """``config.json`` of a checkpoint folder, checked.

    Raises:
        CheckpointRefused: It is absent, damaged or of a later format.
    """
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw["format_version"]
    except FileNotFoundError as error:
        raise CheckpointRefused(f"{folder} is not a checkpoint: it has no {CONFIG}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointRefused(f"{path} is damaged or not a grrcoca checkpoint's") from error
    if version != FORMAT_VERSION:
        raise CheckpointRefused(f"{path} has format version {version}; this grrcoca reads {FORMAT_VERSION}: update it")
    try:
        return CheckpointConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointRefused(f"{path}: {where}: {first['msg']}") from error


def checkpoints_of(run: Path) -> list[Path]:
    """Checkpoint folders of a run folder, newest first, whether or not they are sound.

    Raises:
        UsageError: They cannot be listed; a run must not take that for none, and start again.
    """
    folder = run / "checkpoints"
    try:
        names = [path for path in folder.iterdir() if path.name.startswith("step-") and path.name[5:].isdecimal()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error.strerror or error}") from error
    return sorted((path for path in names if path.is_dir()), key=lambda path: int(path.name[5:]), reverse=True)


def sound_checkpoints(run: Path) -> Iterator[Path]:
    """Those of `checkpoints_of` that agree with their manifest, newest first; damaged ones are named on stderr."""
    for folder in checkpoints_of(run):
        try:
            verify_checkpoint(folder)
        except CheckpointRefused as error:
            say(f"warning: {error}; trying the checkpoint before it")
            continue
        yield folder


def verify_checkpoint(folder: Path) -> None:
    """Compare a checkpoint with its manifest, which must list all that is loaded.

    Raises:
        CheckpointRefused: It is damaged or incomplete.
    """
    resumable = (f"{TRAINING}/{OPTIMIZER}", f"{TRAINING}/{STATE}") if (folder / TRAINING).is_dir() else ()
    verify_folder(folder, (WEIGHTS, CONFIG, TOKENIZER, *resumable))


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that ``path`` means: itself, or the newest sound one of a run folder.

    Raises:
        UsageError: There is nothing at ``path``.
        CheckpointRefused: It holds none, only damaged ones, or is a pickle.
    """
    if path.is_file():
        raise CheckpointRefused(
            f"{path} is a file; a checkpoint is a folder with {WEIGHTS}, {CONFIG} and {TOKENIZER}. "
            "Pickled weights (.pt, .pth, .bin, .ckpt) can run code and are never read"
        )
    if not path.is_dir():
        raise UsageError(f"no checkpoint at {path}: there is no such folder")
    if (path / CONFIG).is_file():
        return path
    folder = next(sound_checkpoints(path), None)
    if folder is None and not checkpoints_of(path) and (state := describe_state(path)):
        raise CheckpointRefused(f"{path}: this run has not saved a checkpoint yet ({state})")
    if folder is None:
        raise CheckpointRefused(f"{path} holds no sound checkpoint: expected {CONFIG} in it, or checkpoints/step-*/")
    return folder


def checkpoint_hash(folder: Path) -> str:
    """Short hash of a checkpoint's weights, for naming the model in results; taken from its manifest.

    Raises:
        CheckpointRefused: The manifest is absent or damaged.
    """
    return weights_sha256(folder)[:12]


def weights_sha256(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights, from its manifest.

    Raises:
        CheckpointRefused: The manifest is absent or damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return str(manifest["files"][WEIGHTS]["sha256"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointRefused(f"{folder / MANIFEST} is absent or damaged: copy the checkpoint again") from error


def count_parameters(folder: Path) -> int:
    """Parameters in a checkpoint's weight file, from its header alone.

    Raises:
        CheckpointRefused: The file is absent or not safetensors.
    """
    path = folder / WEIGHTS
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, path.stat().st_size)))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointRefused(f"{path} cannot be read as safetensors: copy it again") from error


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Tied weights share memory, which the format refuses: the first name of each keeps it.
    seen: set[int] = set()
    unique: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            unique[name] = tensor.detach().cpu().contiguous()
    try:
        save_file(unique, path)
    except SafetensorError as error:
        if code := re.search(r"os error (\d+)", str(error)):  # the cause is in its text alone
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        raise


def _load_tensors(model: CoCa, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointRefused(f"{path} cannot be read as safetensors: copy it again") from error
    try:
        # A file's tensors start anywhere; torch's own start at 64 bytes, and kernels sum in another order elsewhere.
        aligned = {name: tensor.clone() if tensor.data_ptr() % 64 else tensor for name, tensor in tensors.items()}
        missing, unexpected = model.load_state_dict(aligned, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointRefused(f"{path}: a tensor's shape does not fit {CONFIG}") from error
    tied = {"text_decoder.head.weight"} if model.config.tied_embeddings else set()
    if unexpected or set(missing) - tied:
        names = ", ".join(sorted({*unexpected, *(set(missing) - tied)})[:3])
        raise CheckpointRefused(f"{path} does not fit {CONFIG}: {names}")
    model.text_decoder.tie()


def _optimizer_tensors(model: CoCa, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for optimizer in optimizers
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _model_card(config: CheckpointConfig, model: CoCa) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"""---
library_name: grrcoca
pipeline_tag: image-to-text
tags: [contrastive-captioner, radiology]
---

# {config.model.variant_name}, {config.model.size_name}

A contrastive captioner of {parameters:,} parameters, trained for {config.step:,} steps on {config.trained_on}
with grrcoca {__version__}. Pictures: {config.image.size} px, {config.image.fit}, DICOM window
`{config.image.window}`.

```
grrcoca caption PICTURE --checkpoint THIS_FOLDER
```

Research output: not validated for any clinical use, not a diagnosis.
"""
