"""Draw the model figure of the README as SVG, one file per color scheme: ``python tests/figures/model.py FOLDER``."""

import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 960, 452
FONT = "font-family=\"-apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\""


@dataclass(frozen=True)
class Scheme:
    """Colors of one figure, as CSS hexadecimal values.

    Attributes:
        text, muted: Labels and secondary labels.
        line: Arrows.
        image, pooler, text_fill, loss: Fill and border of each kind of box.
    """

    text: str
    muted: str
    line: str
    image: tuple[str, str]
    pooler: tuple[str, str]
    text_fill: tuple[str, str]
    loss: tuple[str, str]


SCHEMES = {
    "light": Scheme(
        text="#1f2328",
        muted="#59636e",
        line="#59636e",
        image=("#ddf4ff", "#54aeff"),
        pooler=("#fff8c5", "#d4a72c"),
        text_fill=("#dafbe1", "#4ac26b"),
        loss=("#ffebe9", "#ff8182"),
    ),
    "dark": Scheme(
        text="#f0f6fc",
        muted="#9198a1",
        line="#9198a1",
        image=("#0c2d6b", "#388bfd"),
        pooler=("#3b2a04", "#bb8009"),
        text_fill=("#04260f", "#2ea043"),
        loss=("#490202", "#f85149"),
    ),
}


class Drawing:
    """SVG elements of one figure in drawing order."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, *, size: int = 13, bold: bool = False, muted: bool = False) -> None:
        color = self.scheme.muted if muted else self.scheme.text
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" {FONT} font-size="{size}" fill="{color}" text-anchor="middle"{weight}>'
            f"{escape(text)}</text>"
        )

    def box(self, x: float, y: float, width: float, height: float, colors: tuple[str, str], lines: list[str]) -> None:
        """A rounded box; the first of ``lines`` is its title."""
        fill, border = colors
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}" stroke="{border}" '
            'stroke-width="1.5"/>'
        )
        top = y + height / 2 - (len(lines) - 1) * 9 + 5
        for number, line in enumerate(lines):
            self.text(x + width / 2, top + number * 18, line, size=12 if number else 14, bold=not number)

    def arrow(self, *points: tuple[float, float]) -> None:
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{self.scheme.line}" stroke-width="1.5" marker-end="url(#head)"/>'
        )

    def svg(self) -> str:
        head = (
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{self.scheme.line}"/></marker></defs>'
        )
        title = "<title>GRR-CoCa: image encoder, attentional poolers, unimodal and multimodal decoder</title>"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
            f"{title}{head}{''.join(self.parts)}</svg>\n"
        )


def draw(scheme: Scheme) -> str:
    """The figure: image side on the left, text side on the right, losses on top."""
    d = Drawing(scheme)
    block = ["RMSNorm, attention with RoPE", "RMSNorm, GEGLU"]

    d.text(150, 440, "image  (3, H, W)")
    d.arrow((150, 424), (150, 396))
    d.box(40, 316, 220, 80, scheme.image, ["Image encoder", *block])
    d.arrow((150, 316), (150, 274))
    d.text(196, 299, "(N, D)", size=12, muted=True)
    d.box(40, 222, 220, 52, scheme.pooler, ["Generative pooler", "256 learned queries"])
    d.arrow((150, 222), (150, 184))
    d.box(40, 132, 220, 52, scheme.pooler, ["Contrastive pooler", "1 learned query"])
    d.arrow((150, 132), (150, 92), (290, 92), (290, 60))
    d.text(210, 116, "image features (E)", size=12, muted=True)

    d.text(480, 440, "caption tokens  (L), [CLS] at the end")
    d.arrow((480, 424), (480, 396))
    d.box(360, 316, 240, 80, scheme.text_fill, ["Unimodal decoder", *block])
    d.arrow((480, 316), (480, 92), (410, 92), (410, 60))
    d.text(574, 116, "text features (E), from [CLS]", size=12, muted=True)

    d.arrow((600, 356), (670, 356))
    d.text(636, 346, "(L, D)", size=12, muted=True)
    d.box(670, 300, 250, 112, scheme.text_fill, ["Multimodal decoder", *block[:1], "cross-attention", *block[1:]])
    d.arrow((260, 248), (795, 248), (795, 300))
    d.text(640, 240, "image tokens (256, D)", size=12, muted=True)
    d.arrow((920, 356), (940, 356), (940, 92), (795, 92), (795, 60))
    d.text(890, 116, "logits (L, V)", size=12, muted=True)

    d.box(230, 12, 240, 48, scheme.loss, ["Contrastive loss"])
    d.box(675, 12, 240, 48, scheme.loss, ["Caption loss"])
    return d.svg()


def main() -> None:
    folder = Path(sys.argv[1])
    for name, scheme in SCHEMES.items():
        path = folder / f"model-{name}.svg"
        path.write_text(draw(scheme), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
