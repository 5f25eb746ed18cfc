"""Paints the anatomy of the phantoms: smooth shapes in physical units, seen as a radiologist sees them.

The body's own coordinates run from -1 to 1 over the field of view: x to the picture's right, which is the patient's
left (liver and right heart border on the picture's left, apex, descending aorta, stomach and spleen on its right);
y to the picture's bottom, which is the feet on a radiograph and the back on an axial slice.
"""

from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
"""One value a pixel, (H, W)."""

MARKER_L = np.array([[1, 0, 0, 0]] * 5 + [[1, 1, 1, 1]], dtype=np.float32)
"""The letter L: which side is the patient's left."""


class Canvas:
    """A square picture in the making, with the coordinates of a patient who lies a little shifted, turned and bent.

    Args:
        rng: Source of the patient's position and of every later variation.
        pixels: Height and width.

    Attributes:
        image: Values so far (H, W), in the units of the modality.
        x, y: Body coordinates of each pixel's centre (H, W).
        scale: Body size relative to the field of view.
    """

    def __init__(self, rng: np.random.Generator, pixels: int) -> None:
        self.rng = rng
        self.axis = ((2 * np.arange(pixels) + 1) / pixels - 1).astype(np.float32)
        self.image: Plane = np.zeros((pixels, pixels), dtype=np.float32)
        self.scale = self.jitter(0.97, 0.06)
        turn, bend, phase = np.radians(self.jitter(0, 6)), self.jitter(0, 0.025), rng.uniform(0, 2 * np.pi)
        across, down = self.axis - self.jitter(0, 0.05), (self.axis - self.jitter(0, 0.05))[:, None]
        sway = np.float32(bend) * np.sin(3 * self.axis + np.float32(phase))[:, None]
        cos, sin = np.float32(np.cos(turn) / self.scale), np.float32(np.sin(turn) / self.scale)
        self.x: Plane = cos * across + sin * down + sway
        self.y: Plane = cos * down - sin * across
        self.edge = np.float32(3 / pixels / self.scale)  # 1.5 pixels: an antialiased outline

    def jitter(self, centre: float, spread: float) -> float:
        """A uniform draw from ``centre - spread`` to ``centre + spread``."""
        return float(self.rng.uniform(centre - spread, centre + spread))

    @cached_property
    def theta(self) -> Plane:
        """Angle of each pixel about the body's centre, radians (H, W)."""
        return np.arctan2(self.y, self.x)

    def ellipse(
        self, cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0, *, boxy: bool = False, soft: float = 1.0
    ) -> Plane:
        """Share of each pixel inside an ellipse, 0 to 1 (H, W); its centre and radii vary by a few per cent.

        Args:
            cx, cy: Centre.
            rx, ry: Radii.
            degrees: Turn, clockwise on the picture.
            boxy: A superellipse of the fourth degree instead.
            soft: Width of the outline, in units of 1.5 pixels.
        """
        cx, cy = self.jitter(cx, 0.015), self.jitter(cy, 0.015)
        rx, ry = rx * self.jitter(1, 0.05), ry * self.jitter(1, 0.05)
        return self.outline(self.radius(cx, cy, rx, ry, degrees, boxy=boxy), min(rx, ry), soft=soft)

    def radius(self, cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0, *, boxy: bool = False) -> Plane:
        """Distance of each pixel from a centre, 1 on the ellipse of radii ``rx`` and ``ry`` (H, W)."""
        u, v = self.x - np.float32(cx), self.y - np.float32(cy)
        if degrees:
            cos, sin = np.float32(np.cos(np.radians(degrees))), np.float32(np.sin(np.radians(degrees)))
            u, v = cos * u + sin * v, cos * v - sin * u
        square = np.square(u * np.float32(1 / rx)), np.square(v * np.float32(1 / ry))
        radius: Plane = np.sqrt(np.hypot(*square) if boxy else square[0] + square[1])
        return radius

    def outline(self, radius: Plane, size: float, *, soft: float = 1.0) -> Plane:
        """Turn a radius that is 1 on the outline of a shape of half-width ``size`` into coverage, 0 to 1 (H, W)."""
        inside: Plane = (1 - radius) * np.float32(size / (soft * self.edge)) + np.float32(0.5)
        return inside.clip(0, 1)

    def paint(self, mask: Plane, value: float | Plane) -> None:
        """Replace what lies under ``mask`` by ``value``."""
        self.image += mask * (value - self.image)

    def add(self, mask: Plane, value: float) -> None:
        """Lay ``value`` over what lies under ``mask``, as in a projection."""
        self.image += mask * np.float32(value)

    def dots(self, count: int, radius: float) -> Plane:
        """Small round blots anywhere in the picture, such as vessels cut across, 0 to 1 (H, W)."""
        centres = self.rng.uniform(-1, 1, size=(2, count, 1)).astype(np.float32)
        width = (radius * self.rng.uniform(0.6, 1.4, size=(count, 1))).astype(np.float32)
        blots: NDArray[np.float32] = np.exp(-np.square((self.axis - centres) / width))  # (2, count, W)
        together: Plane = np.matmul(blots[1].T, blots[0])
        return together.clip(0, 1)

    def lay_marker(self, value: float) -> None:
        """Set the letter L in the top corner at the patient's left, as a radiographer or a workstation does."""
        height, width = (len(self.axis) // 64 * side for side in MARKER_L.shape)
        letter = np.kron(MARKER_L, np.ones((height // MARKER_L.shape[0],) * 2)) > 0
        top, left = (int(self.jitter(at, 0.02) * len(self.axis)) for at in (0.04, 0.91))
        self.image[top : top + height, left : left + width][letter] = value

    def texture(self, cells: int) -> Plane:
        """Smooth noise of unit spread that varies over ``cells`` cells across the picture (H, W)."""
        spread = _interpolation(len(self.axis), cells)
        coarse = self.rng.standard_normal((cells, cells), dtype=np.float32)
        smooth: Plane = np.matmul(np.matmul(spread, coarse), spread.T)
        return smooth

    def noise(self) -> Plane:
        """White noise of unit spread (H, W)."""
        return self.rng.standard_normal(self.image.shape, dtype=np.float32)


@cache
def _interpolation(pixels: int, cells: int) -> Plane:
    """Linear interpolation from ``cells`` values to ``pixels`` values, as a matrix."""
    position = np.linspace(0, cells - 1, pixels)[:, None]
    weights = np.clip(1 - np.abs(position - np.arange(cells)), 0, 1)
    return np.asarray(weights, dtype=np.float32)


def chest_radiograph(canvas: Canvas) -> None:
    """Frontal chest radiograph: attenuation relative to the film's range, 0 air to 1."""
    c, jitter = canvas, canvas.jitter
    c.paint(c.ellipse(0, 0.55, 0.96, 1.45, boxy=True, soft=3), 0.64)
    c.paint(c.ellipse(-0.95, -0.95, 0.5, 0.33, 35, soft=3) + c.ellipse(0.95, -0.95, 0.5, 0.33, -35, soft=3), 0.05)
    right_dome, left_dome = (c.ellipse(side * 0.45, 0.98, 0.52, height) for side, height in ((-1, 0.50), (1, 0.43)))
    chest = np.maximum(c.ellipse(-0.44, 0.02, 0.36, 0.82, 4), c.ellipse(0.44, 0.02, 0.36, 0.82, -4))
    lungs = chest * (1 - right_dome) * (1 - left_dome)
    c.add(lungs, -jitter(0.34, 0.03))
    c.add(c.ellipse(0.50, 0.74, 0.16, 0.09, 10) * left_dome, -0.28)  # the stomach's bubble
    c.add(c.ellipse(0.0, -0.78, 0.045, 0.36), -0.14)  # trachea
    spine = c.ellipse(0, 0.1, 0.085, 1.4, boxy=True, soft=2)
    c.add(spine * (1 + 0.3 * np.cos(c.y * np.float32(26))), 0.10)
    heart = np.maximum(c.ellipse(0.12, 0.34, 0.33, 0.24, 28, soft=2), c.ellipse(0.02, -0.02, 0.15, 0.5, soft=2))
    heart = np.maximum(heart, c.ellipse(0.12, -0.33, 0.09, 0.1, soft=2))  # aortic knob
    c.add(heart * lungs, 0.28)
    ribs = c.y * np.float32(jitter(29, 2)) - 9 * np.square(np.abs(c.x) - np.float32(0.25)) + jitter(0, 3)
    c.add(chest * np.clip(np.cos(ribs) * 2 - 0.6, 0, 1), 0.055)
    for side in (-1, 1):
        c.add(c.ellipse(side * 0.42, -0.70, 0.38, 0.035, side * -jitter(14, 6)), 0.12)  # clavicles
        for angle in (-60, -25, 15, 50):
            cx, cy = 0.2 + 0.13 * np.cos(np.radians(angle)), 0.02 + 0.13 * np.sin(np.radians(angle))
            c.add(c.ellipse(side * cx, cy, 0.15, 0.02, side * jitter(angle, 10), soft=3), 0.07)  # hilar vessels
    c.add(c.texture(9) * lungs, 0.015)
    if c.rng.random() < 0.3:
        lead = c.x - np.float32(jitter(0, 0.3)) - np.float32(0.15) * np.sin(c.y * np.float32(jitter(3, 1)))
        c.add(np.clip(1.5 - np.abs(lead) / c.edge, 0, 1), 0.15)  # a monitor's lead on the skin


def _trunk(canvas: Canvas) -> Plane:
    """Skin, fat, muscle, ribs, vertebra and table of an axial CT of the trunk in HU; gives the cavity's mask."""
    c = canvas
    c.image[:] = -1000
    table = np.abs(c.y - np.float32(0.80) + np.float32(0.12) * np.square(c.x))
    c.paint(np.clip(1.5 - table / c.edge, 0, 1), -250)
    c.paint(c.ellipse(0, 0, 0.93, 0.71, boxy=True), -100)
    c.paint(c.ellipse(0, 0, 0.86, 0.64, boxy=True), 50)
    wall = c.outline(c.radius(0, 0, 0.82, 0.60, boxy=True), 0.60)
    cavity = c.outline(c.radius(0, 0, 0.76, 0.55, boxy=True), 0.55)
    c.paint((wall - cavity) * np.clip(np.cos(c.theta * 12 + c.jitter(0, 3)) * 3, 0, 1), 420)  # ribs
    return cavity


def _vertebra(canvas: Canvas) -> None:
    """Vertebral body, canal and spinous process in HU."""
    c = canvas
    c.paint(c.ellipse(0, 0.51, 0.22, 0.06), 380)
    c.paint(c.ellipse(0, 0.60, 0.035, 0.09), 450)
    c.paint(c.ellipse(0, 0.37, 0.13, 0.11), c.jitter(420, 60))
    c.paint(c.ellipse(0, 0.50, 0.05, 0.035), 20)


def chest_ct(canvas: Canvas) -> None:
    """Axial CT of the chest at the ventricles of the heart, HU."""
    c = canvas
    _trunk(c)
    lungs = np.maximum(c.ellipse(-0.43, 0.0, 0.32, 0.50, 5), c.ellipse(0.43, 0.0, 0.32, 0.50, -5))
    c.paint(lungs, c.jitter(-700, 40) + 25 * c.texture(12))
    c.paint(lungs * c.dots(60, 0.022), -150)  # vessels
    c.paint(c.ellipse(0, -0.12, 0.13, 0.42), 10)
    c.paint(c.ellipse(0.10, -0.12, 0.23, 0.17, 30), c.jitter(110, 40))  # heart, apex to the patient's left
    c.paint(c.ellipse(0, -0.53, 0.13, 0.04), 350)  # sternum
    _vertebra(c)
    c.paint(c.ellipse(0.17, 0.30, 0.065, 0.065), c.jitter(150, 40))  # descending aorta


def abdomen_ct(canvas: Canvas) -> None:
    """Axial CT of the upper abdomen at the liver, with contrast medium, HU."""
    c = canvas
    cavity = _trunk(c)
    c.paint(cavity, -90)
    c.paint(cavity * c.ellipse(0.42, -0.16, 0.36, 0.36, -15), c.jitter(35, 8))  # stomach, full
    c.paint(c.ellipse(0.22, -0.47, 0.13, 0.045), -850)  # its air, on top in a patient who lies on the back
    c.paint(cavity * c.ellipse(0.48, 0.26, 0.28, 0.27, 20), c.jitter(105, 12))  # spleen
    liver = np.maximum(c.ellipse(-0.42, 0.02, 0.38, 0.54, 8, boxy=True), c.ellipse(-0.10, -0.27, 0.30, 0.2, -12))
    c.paint(cavity * liver, c.jitter(90, 12) + 5 * c.texture(14))
    c.paint(cavity * liver * c.dots(25, 0.025), 135)  # its vessels
    for side in (-1, 1):
        c.paint(c.ellipse(side * 0.20, 0.36, 0.12, 0.09, side * 40), 50)  # psoas and crus
    _vertebra(c)
    c.paint(c.ellipse(0.08, 0.20, 0.06, 0.06), c.jitter(190, 40))  # aorta
    c.paint(c.ellipse(-0.11, 0.18, 0.07, 0.05), c.jitter(120, 20))  # inferior vena cava


def _brain(canvas: Canvas, grey: float, white: float, csf: float) -> None:
    """Brain at the lateral ventricles, in the units of its three tissues."""
    c, jitter = canvas, canvas.jitter
    radius = c.radius(0, 0, 0.63, 0.78)
    brain = c.outline(radius, 0.63)
    angle = c.theta * int(c.rng.integers(15, 21)) + np.float32(jitter(2, 1)) * np.sin(2 * c.theta)
    folds: Plane = np.cos(angle)
    c.paint(brain, csf)
    c.paint(c.outline(radius * (np.float32(1.04) + np.float32(0.07) * (folds - 0.3).clip(0)), 0.6), grey)
    c.paint(c.outline(radius * (np.float32(1.20) + np.float32(0.09) * folds), 0.5, soft=2), white)
    fissure: Plane = (np.float32(1.2) - np.abs(c.x) / c.edge).clip(0, 1) * ((np.abs(c.y) - 0.42) * 20).clip(0, 1)
    c.paint(fissure * brain, csf)
    for side in (-1, 1):
        c.paint(c.ellipse(side * 0.20, 0.02, 0.09, 0.15, side * 20, soft=2), grey)  # thalamus and lentiform nucleus
        c.paint(c.ellipse(side * 0.085, -0.17, 0.042, 0.15, side * -18), csf)  # ventricles: anterior horns
        c.paint(c.ellipse(side * 0.135, 0.25, 0.045, 0.14, side * 22), csf)  # and posterior horns
    c.paint(c.ellipse(0, 0.05, 0.015, 0.1), csf)  # third ventricle


def _head_shape(canvas: Canvas) -> None:
    """Narrow the forehead: a head is an egg."""
    canvas.x /= 1 + np.float32(0.10) * canvas.y


def head_ct(canvas: Canvas) -> None:
    """Axial CT of the head at the lateral ventricles, HU."""
    c = canvas
    _head_shape(c)
    c.image[:] = -1000
    c.paint(c.outline(c.radius(0, 0, 0.76, 0.92), 0.76), 20)  # scalp
    c.paint(c.outline(c.radius(0, 0, 0.73, 0.885), 0.73), c.jitter(900, 100))
    c.paint(c.ellipse(0, -0.845, 0.09, 0.022), -900)  # frontal sinus
    _brain(c, grey=c.jitter(38, 1.5), white=c.jitter(30, 1.5), csf=c.jitter(7, 2))
    for cx, cy in ((0, 0.19), (-0.13, 0.3), (0.13, 0.3)):
        if c.rng.random() < 0.5:
            c.paint(c.ellipse(cx, cy, 0.02, 0.02), 110)  # calcified pineal gland and choroid plexus


def head_mr_t1(canvas: Canvas) -> None:
    """Axial T1-weighted MR of the head: signal relative to the brightest tissue, 0 to 1; fluid is dark."""
    _head_mr(canvas, scalp=0.9, fluid=0.12, grey=0.44, white=0.60)


def head_mr_t2(canvas: Canvas) -> None:
    """Axial T2-weighted MR of the head: signal relative to the brightest tissue, 0 to 1; fluid is bright."""
    _head_mr(canvas, scalp=0.75, fluid=0.90, grey=0.52, white=0.38)


def _head_mr(canvas: Canvas, *, scalp: float, fluid: float, grey: float, white: float) -> None:
    """MR of the head at the lateral ventricles, from the signal of its tissues."""
    c, jitter = canvas, canvas.jitter
    _head_shape(c)
    c.image[:] = 0.02
    c.paint(c.outline(c.radius(0, 0, 0.77, 0.93), 0.77), jitter(scalp, 0.08))
    c.paint(c.outline(c.radius(0, 0, 0.72, 0.87), 0.72), 0.05)  # the skull gives no signal
    c.paint(c.outline(c.radius(0, 0, 0.66, 0.81), 0.66), fluid)
    _brain(c, grey=jitter(grey, 0.03), white=jitter(white, 0.03), csf=jitter(fluid, 0.03))
