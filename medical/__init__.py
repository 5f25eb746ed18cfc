"""Everything radiology: DICOM pixels, intensity, ROCO, random transforms, the phantom set.

Names are imported when they are first used, so that ``import medical`` costs no numpy, pydicom, torch or MONAI.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medical.image import Description, RadiologyImage, read_image, read_pixels
    from medical.intensity import WindowUsed
    from medical.roco import open_roco
    from medical.transforms import radiology_augmentation

__all__ = [
    "Description",
    "RadiologyImage",
    "WindowUsed",
    "open_roco",
    "radiology_augmentation",
    "read_image",
    "read_pixels",
]

_HOMES = {
    "Description": "medical.image",
    "RadiologyImage": "medical.image",
    "WindowUsed": "medical.intensity",
    "open_roco": "medical.roco",
    "radiology_augmentation": "medical.transforms",
    "read_image": "medical.image",
    "read_pixels": "medical.image",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
