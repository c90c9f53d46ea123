"""Write SVG: boxes, arrows, bars and lines in one style, on a card that is legible on light and dark pages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, 'DejaVu Sans Mono', monospace"
INK, SOFT, LINE, CARD = "#1d2430", "#566070", "#c6ccd6", "#fbfbf9"
BLUE, ORANGE, GREEN, GREY, RED = "#2a5bd7", "#c2691c", "#3d7f4f", "#7d8695", "#b3372f"
# Fill and edge of a box.
FILLS = {
    "blue": ("#dfe9ff", "#86a8ec"),
    "orange": ("#ffe8d4", "#e3ac78"),
    "green": ("#e3f1e5", "#97c2a1"),
    "yellow": ("#fff6cc", "#d9c25e"),
    "grey": ("#eceff4", "#c6ccd6"),
    "purple": ("#efe8f8", "#b9a3d6"),
    "red": ("#fde7e4", "#dd9c96"),
}
Anchor = Literal["start", "middle", "end"]


@dataclass
class Picture:
    """A drawing of a size; `title` is for readers who do not see it."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 14,
        colour: str = INK,
        weight: int = 400,
        anchor: Anchor = "start",
    ) -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" font-weight="{weight}" '
            f'text-anchor="{anchor}">{escape(text)}</text>'
        )

    def heading(self, text: str, under: str = "") -> None:
        self.text(24, 36, text, size=18, weight=600)
        if under:
            self.text(24, 58, under, size=13, colour=SOFT)

    def box(  # noqa: PLR0917 - where, how large, and what
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        title: str = "",
        lines: Iterable[str] = (),
        *,
        dashed: bool = False,
    ) -> None:
        """A box with a bold title and lines below it, centred."""
        colour, edge = FILLS[fill] if fill else ("none", LINE)
        dashes = ' stroke-dasharray="6 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8" fill="{colour}" '
            f'stroke="{edge}"{dashes}/>'
        )
        texts = [*([(title, 15.0, 600, INK)] if title else []), *((line, 13.0, 400, SOFT) for line in lines)]
        top = y + height / 2 - 9.5 * len(texts) + 14
        for number, (text, size, weight, ink) in enumerate(texts):
            self.text(x + width / 2, top + 19 * number, text, size=size, weight=weight, colour=ink, anchor="middle")

    def arrow(self, *points: tuple[float, float], colour: str = SOFT, dashed: bool = False) -> None:
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        dashes = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dashes} marker-end="url(#head)"/>'
        )

    def region(self, *points: tuple[float, float]) -> None:
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        self.parts.append(
            f'<path d="M{path} z" fill="none" stroke="{LINE}" stroke-width="1.5" stroke-dasharray="6 4"/>'
        )

    def line(
        self, points: Sequence[tuple[float, float]], colour: str, width: float = 2.5, *, dashed: bool = False
    ) -> None:
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        dashes = ' stroke-dasharray="7 5"' if dashed else ""
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashes}/>')

    def dot(self, x: float, y: float, colour: str, radius: float = 4.5) -> None:
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{colour}"/>')

    def ring(self, x: float, y: float, colour: str) -> None:
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="5" fill="none" stroke="{colour}" stroke-width="2"/>')

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{colour}"/>')

    def svg(self) -> str:
        head = (
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="{SOFT}"/></marker></defs>'
        )
        card = f'<rect width="{self.width}" height="{self.height}" rx="10" fill="{CARD}" stroke="{LINE}"/>'
        body = "\n".join([f"<title>{escape(self.title)}</title>", head, card, *self.parts])
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'font-family="{escape(FONT)}">\n{body}\n</svg>\n'
        )
