"""Everything radiology: DICOM pixels, intensity, ROCO, random transforms, the phantom set.

Names are imported when they are first used, so that ``import medical`` costs no numpy, pydicom, torch or MONAI.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medical.guard import GuardedReader, guarded_map, read_images
    from medical.image import Description, RadiologyImage, read_frames, read_image, read_pixels
    from medical.monai_reader import RadiologyReader
    from medical.roco import open_roco
    from medical.transforms import radiology_augmentation
    from medical.windows import WindowUsed

__all__ = [
    "Description",
    "GuardedReader",
    "RadiologyImage",
    "RadiologyReader",
    "WindowUsed",
    "guarded_map",
    "open_roco",
    "radiology_augmentation",
    "read_frames",
    "read_image",
    "read_images",
    "read_pixels",
]

_HOMES = {
    "Description": "medical.image",
    "GuardedReader": "medical.guard",
    "RadiologyImage": "medical.image",
    "RadiologyReader": "medical.monai_reader",
    "WindowUsed": "medical.windows",
    "guarded_map": "medical.guard",
    "open_roco": "medical.roco",
    "radiology_augmentation": "medical.transforms",
    "read_frames": "medical.image",
    "read_image": "medical.image",
    "read_images": "medical.guard",
    "read_pixels": "medical.image",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
