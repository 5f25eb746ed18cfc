"""``grrcoca doctor``: what this installation can do."""

import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from grrcoca_cli.errors import ExitCode
from medical.decoding import decodable

PACKAGES = (
    "torch",
    "torchvision",
    "monai",
    "pydicom",
    "pylibjpeg-openjpeg",
    "python-gdcm",
    "tokenizers",
    "pycocoevalcap",
)
OPTIONAL = {"imagecodecs": "dicom-extra", "pyarrow": "parquet"}
"""Packages of the extras, each with its extra."""


def doctor(*, as_json: bool) -> ExitCode:
    """Print versions, device and decodable transfer syntaxes; exit 2 where a needed package is missing."""
    packages = {name: installed_version(name) for name in PACKAGES}
    extras = {name: installed_version(name) for name in OPTIONAL}
    report: dict[str, object] = {
        "python": sys.version.split()[0],
        "packages": packages,
        "extras": extras,
        "device": _device(),
    }
    report["transfer_syntaxes"] = codecs = decodable()
    report["free_disk_gb"] = round(shutil.disk_usage(Path.cwd()).free / 1e9, 1)
    if as_json:
        print(json.dumps({"schema": 1, **report}))
    else:
        print(f"{'Python':<24}{report['python']}")
        for name, found in packages.items():
            print(f"{name:<24}{found or 'MISSING: install grrcoca again'}")
        for name, found in extras.items():
            print(f"{name:<24}{found or f'absent: pip install grrcoca[{OPTIONAL[name]}]'}")
        print(
            f"{'device':<24}{report['device']}\n{'free disk':<24}{report['free_disk_gb']} GB\n\nDICOM transfer syntaxes"
        )
        for name, missing in codecs.items():
            print(f"  {'no ' if missing else 'yes'}  {name}{f'  (needs {missing})' if missing else ''}")
    return ExitCode.OK if all(packages.values()) else ExitCode.USAGE


def installed_version(package: str) -> str:
    """The version of an installed package; empty where it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _device() -> str:
    try:
        import torch
    except ImportError:
        return "none: torch is not installed"
    if torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    if torch.backends.mps.is_available():
        return "mps"
    return f"cpu, {torch.get_num_threads()} threads"
