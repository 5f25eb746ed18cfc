"""GRR-CoCa: train, run and judge contrastive captioners on radiology pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from grrcoca_cli.captioner import Captioner

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(checkpoint: str | bytes | os.PathLike[str], device: str = "auto") -> Captioner:
    """Load a checkpoint or run folder: an object with ``caption``, ``encode_image`` and ``encode_text``.

    Args:
        checkpoint: A checkpoint folder, or a run folder, whose newest sound checkpoint is taken.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        CheckpointRefused: It is damaged or not a checkpoint.
        UsageError: There is nothing there, or no such device.
    """
    from grrcoca_cli.captioner import Captioner  # torch is loaded here, not with the package

    return Captioner.load(checkpoint, device)
