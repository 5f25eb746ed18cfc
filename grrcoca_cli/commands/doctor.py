"""``grrcoca doctor``: what this installation can do."""

import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from grrcoca_cli.errors import ExitCode

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


def doctor(*, as_json: bool) -> ExitCode:
    """Print versions, device and decodable transfer syntaxes; exit 2 where a needed package is missing."""
    packages = {name: _version(name) for name in PACKAGES}
    report: dict[str, object] = {"python": sys.version.split()[0], "packages": packages, "device": _device()}
    report["transfer_syntaxes"] = codecs = _codecs()
    report["free_disk_gb"] = round(shutil.disk_usage(Path.cwd()).free / 1e9, 1)
    if as_json:
        print(json.dumps({"schema": 1, **report}))
    else:
        print(f"{'Python':<24}{report['python']}")
        for name, found in packages.items():
            print(f"{name:<24}{found or 'MISSING: install grrcoca again'}")
        print(
            f"{'device':<24}{report['device']}\n{'free disk':<24}{report['free_disk_gb']} GB\n\nDICOM transfer syntaxes"
        )
        for name, missing in codecs.items():
            print(f"  {'no ' if missing else 'yes'}  {name}{f'  (needs {missing})' if missing else ''}")
    return ExitCode.OK if all(packages.values()) else ExitCode.USAGE


def _version(package: str) -> str:
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


def _codecs() -> dict[str, str]:
    """Transfer syntaxes by name, each with what it lacks (empty where it can be decoded)."""
    from pydicom import uid
    from pydicom.pixels.decoders.base import get_decoder

    native = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)
    found = {syntax.name: "" for syntax in (*native, uid.DeflatedExplicitVRLittleEndian)}
    for syntax in (
        *uid.JPEGTransferSyntaxes,
        *uid.JPEGLSTransferSyntaxes,
        *uid.JPEG2000TransferSyntaxes,
        uid.RLELossless,
    ):
        try:
            decoder = get_decoder(syntax)
        except NotImplementedError:
            found[syntax.name] = "a decoder that nobody provides"
            continue
        found[syntax.name] = "" if decoder.is_available else ", or ".join(decoder.missing_dependencies)
    return found
