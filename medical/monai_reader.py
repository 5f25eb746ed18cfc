"""`RadiologyReader`: `read_image` as a reader of MONAI's ``LoadImage`` and ``LoadImaged``."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from os import PathLike
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from monai.data import ImageReader
from monai.transforms import LoadImaged
from monai.utils import MetaKeys
from numpy.typing import NDArray

from grrcoca_cli.data.base import ImageSource, as_source
from medical.image import read_image

if TYPE_CHECKING:
    Names: TypeAlias = Sequence[str | PathLike[str] | bytes] | str | PathLike[str] | bytes


class RadiologyReader(ImageReader):  # type: ignore[misc]  # MONAI has no types
    """Pixels (C, H, W) in [0, 1] of DICOM files and pictures, windowed, inverted and squared as `read_image` does.

    ``LoadImaged(keys="image", reader=RadiologyReader(window="lung"))``, or `load_radiology`. Where a reader's `read`
    raises, MONAI goes on to its own readers in silence, and those swap the axes and know no window; so here `read`
    never does, and a bad file raises `errors.UnreadableImage` from `get_data`.

    Args:
        frame: As `read_image` takes it.
        window: As `read_image` takes it.
    """

    def __init__(self, frame: int | str = "auto", window: str | None = None) -> None:
        self.frame = frame
        self.window = window

    def verify_suffix(self, filename: "Names") -> bool:
        """Whether every file is there; what it is, its content tells and not its name."""
        return all(isinstance(source, bytes) or source.is_file() for source in _sources(filename))

    def read(self, data: "Names", **kwargs: object) -> list[ImageSource]:
        """The paths (or bytes) alone; `get_data` opens them."""
        return _sources(data)

    def get_data(self, img: Sequence[ImageSource]) -> tuple[NDArray[np.float32], dict[str, object]]:
        """Pixels and what may be said of the file.

        Args:
            img: What `read` gave; of several files of one size the channels are put one after the other.

        Returns:
            (C, H, W) float32, and a dictionary of `medical.image.Description`'s fields (of the first file) with MONAI's
            ``original_channel_dim`` and ``spatial_shape``.

        Raises:
            UnreadableImage: A file gives no pixels.
            UsageError: `frame` or `window` is not understood.
        """
        images = [read_image(path, frame=self.frame, window=self.window) for path in img]
        pixels = images[0].pixels if len(images) == 1 else np.concatenate([image.pixels for image in images])
        first = images[0].description
        told = asdict(first) | {"window": str(first.window), "warnings": "; ".join(first.warnings)}
        shape = {MetaKeys.ORIGINAL_CHANNEL_DIM: 0, MetaKeys.SPATIAL_SHAPE: np.asarray(pixels.shape[1:])}
        return pixels, told | {str(key): found for key, found in shape.items()}


def load_radiology(keys: str | Sequence[str], *, frame: int | str = "auto", window: str | None = None) -> LoadImaged:
    """MONAI's ``LoadImaged`` with `RadiologyReader` as its only reader, and without what MONAI says of its others.

    Args:
        keys: The entries of the dictionary that hold paths.
        frame: As `read_image` takes it.
        window: As `read_image` takes it.
    """
    reader, logger = RadiologyReader(frame, window), logging.getLogger("monai")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            transform = LoadImaged(keys, reader=reader)
        finally:
            logger.setLevel(level)
    transform._loader.readers = [reader]
    return transform


def _sources(names: "Names") -> list[ImageSource]:
    if isinstance(names, str | PathLike | bytes):
        return [as_source(names)]
    return [as_source(name) for name in names]
