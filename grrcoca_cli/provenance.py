"""What a result was made with: written into every output, so that a number can be traced to its run."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grrcoca_cli import __version__
from grrcoca_cli.files import sha256_of


def provenance(settings: Mapping[str, Any], **inputs: Any) -> dict[str, Any]:
    """The tool, the time, the inputs and the settings of a result.

    Args:
        settings: Resolved settings, every default named.
        inputs: What else it depends on: checkpoint, data set, files, precision.
    """
    time_now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"tool": "grrcoca", "version": __version__, "time": time_now, **inputs, "settings": dict(settings)}


def of_file(path: Path) -> dict[str, str]:
    """A file by its path and its content; a pipe has no second reading, and so no hash."""
    return {"path": str(path), **({"sha256": sha256_of(path)} if path.is_file() else {})}


def as_lines(made_with: Mapping[str, Any]) -> dict[str, str]:
    """Provenance for people: a text for each entry, nested entries under ``outer.inner``, without the settings."""
    lines: dict[str, str] = {}
    for name, value in made_with.items():
        if name == "settings":
            continue
        if isinstance(value, list):
            value = {str(number): entry for number, entry in enumerate(value, start=1)}
        if isinstance(value, Mapping):
            lines |= {f"{name}.{key}": text for key, text in as_lines(value).items()}
        else:
            lines[name] = str(value)
    return lines
