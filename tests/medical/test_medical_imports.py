"""`import medical` costs nothing, and reading DICOM needs neither torch nor MONAI."""

import subprocess
import sys

import pytest

import medical

HEAVY = ("torch", "monai", "numpy", "pydicom", "PIL")


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_after("import medical; medical.__all__") == set()


def test_reading_dicom_loads_neither_torch_nor_monai(make_dicom, tmp_path):
    import numpy as np

    path = tmp_path / "image.dcm"
    path.write_bytes(make_dicom(np.eye(8, dtype=np.uint8)))
    code = f"import medical; from pathlib import Path; assert medical.read_image(Path({str(path)!r})).pixels.max() == 1"
    assert loaded_after(code) & {"torch", "monai"} == set()


def test_every_exported_name_is_there():
    assert all(getattr(medical, name) for name in medical.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = medical.nonsense
