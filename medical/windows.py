"""Windows by name: what a ``window=`` argument means, and how the window that was used is told."""

import re
from dataclasses import dataclass
from difflib import get_close_matches

from grrcoca_cli.errors import UsageError
from medical.elements import plain

CT_PRESETS = {
    "abdomen": (40.0, 400.0),
    "angio": (300.0, 600.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "liver": (60.0, 160.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "soft-tissue": (40.0, 400.0),
    "spine": (50.0, 250.0),
    "stroke": (35.0, 40.0),
    "subdural": (75.0, 215.0),
    "temporal-bone": (600.0, 2800.0),
}
"""Centre and width in Hounsfield units, as radiologists set them by hand."""


@dataclass(frozen=True)
class WindowUsed:
    """How grey levels were mapped to [0, 1].

    Attributes:
        source: Where the mapping came from and why, one of a fixed set of phrases.
        center: Centre in modality units (HU for CT), or None where no window was used.
        width: Width in the same units, or None.
    """

    source: str
    center: float | None = None
    width: float | None = None

    def __str__(self) -> str:
        if self.center is None or self.width is None:
            return self.source
        return f"{self.source} (centre {self.center:g}, width {self.width:g})"


@dataclass(frozen=True)
class WindowChoice:
    """One window that was asked for, understood; without arguments the file's own first.

    Attributes:
        index: Position among the file's own windows.
        name: Name of one of the file's windows (WindowCenterWidthExplanation), as `plain` gives it.
        percentiles: Whether the file's windows are to be passed over.
        preset: Name of a CT preset.
        center: Centre in modality units, from a preset or as given.
        width: Width in modality units.
    """

    index: int | None = None
    name: str = ""
    percentiles: bool = False
    preset: str = ""
    center: float = 0.0
    width: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "WindowChoice":
        """Understand ``"auto"``, ``"1"``, ``"40/400"``, ``"lung"``, ``"percentile"`` or the name of a file's window.

        A name that is nearly a preset's is taken for a slip of the pen, unless ``name:`` stands before it.

        Raises:
            UsageError: Anything else.
        """
        wanted = plain(text)
        preset = re.sub("[ _]", "-", wanted)
        if wanted == "auto":
            return cls()
        if wanted == "percentile":
            return cls(percentiles=True)
        if preset in CT_PRESETS:
            center, width = CT_PRESETS[preset]
            return cls(preset=preset, center=center, width=width)
        if re.fullmatch(r"[0-9]{1,4}", wanted):
            return cls(index=int(wanted))
        if pair := re.fullmatch(r"([+-]?\d{1,9}(?:\.\d{1,9})?)/(\d{1,9}(?:\.\d{1,9})?)", wanted):
            center, width = (float(part) for part in pair.groups())
            if width > 0:
                return cls(center=center, width=width)
        if name := wanted.removeprefix("name:").strip() if wanted.startswith("name:") else "":
            return cls(name=name)
        near = get_close_matches(preset, [*CT_PRESETS, "auto", "percentile"], n=1)
        if not near and re.fullmatch(r"[^\W\d][\w .+-]*", wanted):
            return cls(name=wanted)
        raise UsageError(
            f"window {text!r} is not understood{f', did you mean {near[0]!r}' if near else ''}; give the index of a "
            f"window of the file (0) or its name, centre/width (40/400), 'percentile', a CT preset "
            f"({', '.join(CT_PRESETS)}), or three of them for three channels (lung,mediastinum,bone)"
        )


def parse_windows(text: str | None) -> tuple[WindowChoice, ...]:
    """A ``window=`` argument: one choice, or three with commas between them, a channel each. None is ``"auto"``.

    Raises:
        UsageError: A choice is not understood, or there are two or more than three.
    """
    parts = ("auto" if text is None else text).split(",")
    if len(parts) not in (1, 3):
        raise UsageError(f"window {text!r} has {len(parts)} parts; give one as centre/width or by name, or three")
    return tuple(WindowChoice.parse(part) for part in parts)
