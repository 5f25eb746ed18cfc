"""Colour samples and palette indices to RGB in [0, 1]. YBR is already RGB when it comes out of the decoder."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grrcoca_cli.errors import UnreadableImage
from medical.elements import numbers, value
from medical.lut import segmented_entries, table_entries

if TYPE_CHECKING:
    from pydicom import Dataset


def scale_colour(stored: NDArray[Any], bits_stored: int) -> NDArray[np.float32]:
    """RGB samples (H, W, 3) to [0, 1] by the bits they have."""
    white = np.float32(max(2.0**bits_stored - 1, float(stored.max())))
    levels: NDArray[np.float32] = np.clip(stored.astype(np.float32) / white, 0, 1)
    return levels


def apply_palette(stored: NDArray[Any], dataset: "Dataset") -> NDArray[np.float32]:
    """Palette indices (H, W) to RGB (H, W, 3) in [0, 1] (PS3.3 C.7.6.3.1.5, C.7.9.2).

    Raises:
        UnreadableImage: ``"damaged"``, where a table is missing or empty.
    """
    channels: list[NDArray[np.float32]] = []
    for colour in ("Red", "Green", "Blue"):
        descriptor = numbers(dataset, f"{colour}PaletteColorLookupTableDescriptor")
        data = value(dataset, f"{colour}PaletteColorLookupTableData")
        segments = value(dataset, f"Segmented{colour}PaletteColorLookupTableData")
        if len(descriptor) != 3:
            raise UnreadableImage("damaged", f"{colour}PaletteColorLookupTableDescriptor")
        count, first, bits = int(descriptor[0]) or 2**16, int(descriptor[1]), int(descriptor[2])
        if isinstance(data, bytes):
            entries: NDArray[Any] = table_entries(data, count, dataset)
        elif isinstance(segments, bytes):
            entries = segmented_entries(segments, count, bits, dataset)
        else:
            raise UnreadableImage("damaged", f"{colour}PaletteColorLookupTableData")
        if not entries.size:
            raise UnreadableImage("damaged", f"{colour}PaletteColorLookupTableData")
        # 8-bit entries are at times stored in words: then 255 is white
        white = 255 if bits <= 8 and entries.max() <= 255 else np.iinfo(entries.dtype).max
        index = np.clip(stored.astype(np.int64) - first, 0, len(entries) - 1)
        channels.append(entries[index].astype(np.float32) / np.float32(white))
    return np.stack(channels, axis=-1)
