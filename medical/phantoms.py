"""Synthetic radiology studies whose captions are known to be true: the embedded data set, and a yardstick.

Every study is a function of (seed, index): a chest radiograph, an axial CT or an axial MR of varied anatomy with one
lesion or none. The caption states, in one fixed order, what a reader can see: modality, body part, size, shape,
density, side, zone. Sides are the patient's, in the radiological convention. None of it comes from a patient.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medical import phantom_anatomy as anatomy

Style = Literal["plain", "report"]
"""``plain``: as an alternative text on a web page; ``report``: as a radiologist's one-line report."""


@dataclass(frozen=True)
class Protocol:
    """One way of imaging: its words, its geometry, and what a lesion looks like in it.

    Attributes:
        modality, body_part: As scored.
        plain, report: How the two caption styles open.
        densities: The words for darker and for brighter than its surroundings.
        lesion_values: The lesion's value for each of the two, in the units of the painter.
        zones: The words for nearer the picture's top and nearer its bottom.
        site: Distance from the midline, height of the upper zone, height of the lower zone; body coordinates.
        field_of_view: Width of the picture, mm.
        window: Centre and width, in the units of the painter.
        paint: Paints the anatomy.
    """

    modality: str
    body_part: str
    plain: str
    report: str
    densities: tuple[str, str]
    lesion_values: tuple[float, float]
    zones: tuple[str, str]
    site: tuple[float, float, float]
    field_of_view: float
    window: tuple[float, float]
    paint: Callable[[anatomy.Canvas], None]


CT_WORDS, MR_WORDS = ("hypodense", "hyperdense"), ("hypointense", "hyperintense")
AXIAL_ZONES = ("anterior", "posterior")

PROTOCOLS = (
    Protocol(
        "radiograph", "chest", "chest x-ray", "Frontal chest radiograph", ("lucent", "dense"), (-0.24, 0.32),
        ("upper", "lower"), (0.46, -0.36, 0.18), 400, (0.5, 1.0), anatomy.chest_radiograph,
    ),
    Protocol(
        "CT", "chest", "chest CT", "Axial CT of the chest", CT_WORDS, (-990, 260),
        AXIAL_ZONES, (0.45, -0.23, 0.23), 400, (-300, 1600), anatomy.chest_ct,
    ),
    Protocol(
        "CT", "abdomen", "abdomen CT", "Axial CT of the abdomen", CT_WORDS, (-45, 240),
        AXIAL_ZONES, (0.45, -0.25, 0.24), 400, (50, 400), anatomy.abdomen_ct,
    ),
    Protocol(
        "CT", "head", "head CT", "Axial CT of the head", CT_WORDS, (8, 74),
        AXIAL_ZONES, (0.32, -0.35, 0.35), 240, (40, 100), anatomy.head_ct,
    ),
    Protocol(
        "T1 MR", "head", "T1 head MRI", "Axial T1-weighted MR of the head", MR_WORDS, (0.10, 0.95),
        AXIAL_ZONES, (0.32, -0.35, 0.35), 240, (0.5, 1.0), anatomy.head_mr_t1,
    ),
    Protocol(
        "T2 MR", "head", "T2 head MRI", "Axial T2-weighted MR of the head", MR_WORDS, (0.06, 1.0),
        AXIAL_ZONES, (0.32, -0.35, 0.35), 240, (0.5, 1.0), anatomy.head_mr_t2,
    ),
)  # fmt: skip

SIDES = ("left", "right")
SHAPES = ("round", "oval", "spiculated")
SIZES = {"small": (0.09, 0.097), "medium": (0.142, 0.15), "large": (0.228, 0.242)}
"""Diameter of a disc of the lesion's area, as a share of the field of view; the gaps keep the words unambiguous."""
DRIFT = {"small": 0.11, "medium": 0.08, "large": 0.05}
"""How far the centre may lie from the site, body coordinates: never so far that side or zone is in doubt."""
LESION_SHARE = 0.9
MONOCHROME1_SHARE = 0.4


@dataclass(frozen=True)
class Lesion:
    """What there is to be found.

    Attributes:
        size, shape, density: Words of `SIZES`, `SHAPES` and the protocol.
        side: The patient's side.
        zone: A word of the protocol.
        diameter_mm: Diameter of a disc of the same area.
    """

    size: str
    shape: str
    density: str
    side: str
    zone: str
    diameter_mm: float


@dataclass(frozen=True)
class Phantom:
    """The truth about one study."""

    protocol: Protocol
    lesion: Lesion | None

    def caption(self, style: Style = "report") -> str:
        """The truth in words; the two styles state the same facts in the same order."""
        found, protocol = self.lesion, self.protocol
        region = "zone" if protocol.modality == "radiograph" else "quadrant"
        if style == "plain":
            if found is None:
                return f"{protocol.plain}, no focal lesion"
            what = f"{found.size} {found.shape} {found.density} lesion"
            return f"{protocol.plain}, {what}, {found.side} {found.zone} {region}"
        if found is None:
            return f"{protocol.report}: no focal lesion."
        what = f"a {found.size} {found.shape} {found.density} lesion"
        return f"{protocol.report}: {what} in the {found.side} {found.zone} {region}."

    def attributes(self) -> dict[str, str]:
        """The truth by attribute, with the keys and words of `parse_caption`."""
        facts = {"modality": self.protocol.modality, "body_part": self.protocol.body_part}
        if self.lesion is None:
            return facts | {"lesion": "absent"}
        return facts | {"lesion": "present"} | {name: getattr(self.lesion, name) for name in LESION_ATTRIBUTES}


@dataclass(frozen=True)
class Acquisition:
    """How the stored values are to be shown, in DICOM's terms.

    Attributes:
        photometric: ``MONOCHROME1`` (low values bright) or ``MONOCHROME2``.
        intercept: Added to a stored value before the window.
        window: Centre and width, after the intercept.
        pixel_spacing: Millimetres between neighbouring pixels.
    """

    photometric: str
    intercept: int
    window: tuple[int, int]
    pixel_spacing: float


class Study(NamedTuple):
    """A phantom, its stored values (H, W) of 12 bits, and how to show them."""

    phantom: Phantom
    stored: NDArray[np.uint16]
    acquisition: Acquisition

    def display(self) -> NDArray[np.uint8]:
        """The picture on a screen (H, W), through DICOM's linear window (PS3.3, C.11.2.1.2.1)."""
        centre, width = self.acquisition.window
        value = self.stored.astype(np.float32) + np.float32(self.acquisition.intercept)
        shown = np.clip((value - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
        if self.acquisition.photometric == "MONOCHROME1":
            shown = 1 - shown
        return np.rint(shown * 255).astype(np.uint8)


def draw(seed: int, index: int, *, pixels: int = 128) -> Study:
    """Draw study number ``index`` of the set named by ``seed``: the same one in every run.

    Args:
        seed, index: Not negative; studies of different pairs are independent.
        pixels: Height and width, 64 or more.

    Raises:
        ValueError: ``pixels`` is under 64, too few for a small lesion's shape.
    """
    if pixels < 64:
        raise ValueError(f"phantoms need 64 pixels or more to show their lesions, not {pixels}")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    protocol = PROTOCOLS[rng.integers(len(PROTOCOLS))]
    canvas = anatomy.Canvas(rng, pixels)
    protocol.paint(canvas)
    lesion = _place_lesion(canvas, protocol) if rng.random() < LESION_SHARE else None
    canvas.lay_marker(protocol.window[0] + 0.45 * protocol.window[1])
    stored, acquisition = _acquire(canvas, protocol)
    return Study(Phantom(protocol, lesion), stored, acquisition)


def _place_lesion(canvas: anatomy.Canvas, protocol: Protocol) -> Lesion:
    """Choose a lesion, each word as likely as any other, and paint it."""
    rng = canvas.rng
    size, shape, side = list(SIZES)[rng.integers(len(SIZES))], SHAPES[rng.integers(len(SHAPES))], SIDES[rng.integers(2)]
    zone, density = int(rng.integers(2)), int(rng.integers(2))
    diameter = rng.uniform(*SIZES[size])
    out, *heights = protocol.site
    cx = canvas.jitter(out if side == "left" else -out, 0.7 * DRIFT[size])  # the patient's left is the picture's right
    cy = canvas.jitter(heights[zone], DRIFT[size])
    radius = diameter / canvas.scale  # half the field of view is 1, so a diameter's share of it is a radius
    mask = _lesion_mask(canvas, shape, cx, cy, radius)
    value = protocol.lesion_values[density]
    if protocol.modality == "radiograph":
        canvas.add(mask, value * canvas.jitter(1, 0.1))  # a projection adds up
    else:
        low, high = protocol.lesion_values
        canvas.paint(mask, value + (high - low) * canvas.jitter(0, 0.03))
    words = protocol.densities[density], side, protocol.zones[zone]
    return Lesion(size, shape, *words, diameter_mm=round(diameter * protocol.field_of_view, 1))


def _lesion_mask(canvas: anatomy.Canvas, shape: str, cx: float, cy: float, radius: float) -> anatomy.Plane:
    """Coverage of a lesion whose area is that of a disc of ``radius``, body coordinates (H, W)."""
    if shape == "spiculated":
        spikes, turn = int(canvas.rng.integers(6, 9)), canvas.jitter(0, np.pi)
        angle = np.arctan2(canvas.y - np.float32(cy), canvas.x - np.float32(cx)) + np.float32(turn)
        reach = np.float32(0.55) + np.float32(1.15) * np.cos(angle * np.float32(spikes / 2)) ** 6  # mean square 1
        return canvas.outline(canvas.radius(cx, cy, radius, radius) / reach, 0.8 * radius)
    stretch = np.sqrt(canvas.jitter(2.7, 0.2) if shape == "oval" else canvas.jitter(1.06, 0.05))
    rx, ry = radius * stretch, radius / stretch
    return canvas.outline(canvas.radius(cx, cy, rx, ry, canvas.jitter(0, 20)), ry)


def _acquire(canvas: anatomy.Canvas, protocol: Protocol) -> tuple[NDArray[np.uint16], Acquisition]:
    """Expose: from the painter's units to 12 stored bits, with the noise of the modality."""
    rng, jitter, image = canvas.rng, canvas.jitter, canvas.image
    centre, width = protocol.window
    photometric, intercept = "MONOCHROME2", 0
    if protocol.modality == "CT":
        intercept = -1024
        stored = image + canvas.noise() * np.float32(width * jitter(0.05, 0.02)) + 1024
        window = (round(centre + width * jitter(0, 0.05)), round(width * jitter(1, 0.1)))
    elif protocol.modality == "radiograph":
        exposed = np.clip(image * np.float32(jitter(1, 0.1)) + np.float32(jitter(0.02, 0.04)), 0, 1)
        stored = 250 + 3500 * (exposed + canvas.noise() * np.float32(jitter(0.02, 0.008)))
        window = (2000, 3500)
        if rng.random() < MONOCHROME1_SHARE:
            photometric, stored, window = "MONOCHROME1", 4095 - stored, (4096 - window[0], window[1])
    else:
        shading = 1 + jitter(0, 0.1) * canvas.x + jitter(0, 0.1) * canvas.y  # a coil hears what is near it best
        noise = np.float32(jitter(0.04, 0.015))
        signal = np.hypot(image * shading.astype(np.float32) + noise * canvas.noise(), noise * canvas.noise())  # Rician
        gain = jitter(1600, 500)
        stored, window = signal * np.float32(gain), (round(gain * centre), round(gain * width * jitter(1, 0.1)))
    spacing = protocol.field_of_view / image.shape[0]
    return np.rint(np.clip(stored, 0, 4095)).astype(np.uint16), Acquisition(photometric, intercept, window, spacing)


LESION_ATTRIBUTES = ("size", "shape", "density", "side", "zone")

_PATTERNS: dict[str, re.Pattern[str]] = {
    name: re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)
    for name, words in {
        "body_part": ("chest", "abdomen", "head"),
        "size": tuple(SIZES),
        "shape": SHAPES,
        "density": tuple(word for words in (["lucent", "dense"], CT_WORDS, MR_WORDS) for word in words),
        "side": SIDES,
        "zone": ("upper", "lower", *AXIAL_ZONES),
    }.items()
}
_MODALITIES = {
    "radiograph": re.compile(r"\b(x-ray|radiograph)\b", re.IGNORECASE),
    "CT": re.compile(r"\bCT\b", re.IGNORECASE),
    "T1 MR": re.compile(r"\bT1\b.*\bMRI?\b", re.IGNORECASE),
    "T2 MR": re.compile(r"\bT2\b.*\bMRI?\b", re.IGNORECASE),
}


def parse_caption(text: str) -> dict[str, str]:
    """The attributes that a caption of either style names; one that it does not name is left out.

    Returns:
        Some of ``modality``, ``body_part``, ``lesion`` (``present`` or ``absent``) and `LESION_ATTRIBUTES`.
    """
    facts = {}
    for modality, pattern in _MODALITIES.items():
        if pattern.search(text):
            facts["modality"] = modality
            break
    if re.search(r"\blesion\b", text, re.IGNORECASE):
        facts["lesion"] = "absent" if re.search(r"\bno\b", text, re.IGNORECASE) else "present"
    for name, pattern in _PATTERNS.items():
        if match := pattern.search(text):
            facts[name] = match[1].lower()
    return facts


def attribute_accuracy(predictions: Mapping[str, str], references: Mapping[str, str]) -> dict[str, float]:
    """Share of captions that get each attribute right, 0 to 1, over the references that state it.

    Args:
        predictions: Caption by key; a missing one counts as wrong.
        references: True caption by key.

    Returns:
        By the keys of `parse_caption`, and ``quadrant`` (side and zone both right) and ``exact`` (word for word).
        An attribute that no reference states is left out.
    """
    verdicts: dict[str, list[bool]] = {}
    for key, reference in references.items():
        prediction = predictions.get(key, "")
        told, truth = parse_caption(prediction), parse_caption(reference)
        rights = {name: told.get(name) == word for name, word in truth.items()}
        if "side" in rights and "zone" in rights:
            rights["quadrant"] = rights["side"] and rights["zone"]
        rights["exact"] = prediction.split() == reference.split()
        for name, right in rights.items():
            verdicts.setdefault(name, []).append(right)
    return {name: sum(rights) / len(rights) for name, rights in verdicts.items()}
