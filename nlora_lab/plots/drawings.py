"""What a drawing is for those who show it: a live panel, or a notebook without a kernel. And adapters as boxes."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS, get_method
from nlora_lab.plots import matplotlib_renderer, plotly_renderer
from nlora_lab.plots.figure import INK, Figure

# the factors of the product behind W, and the matrices that are trained
FACTORS = {
    "full": ("", "W"), "lora": ("BA", "BA"), "slora": ("BNA", "BNA"), "nlora": ("BNA", "BNA"),
    "nlora-released": ("BNA", "BNA"), "inttune": ("BNA", "N"), "lora-xs": ("BNA", "N"),
}  # fmt: skip
HIGH, WIDE, THIN = 66, 48, 13  # the sides m, n and r of a box, in pixels


class Drawing(Protocol):
    """A figure that has not been drawn yet."""

    def plotly(self) -> tuple[list[Any], dict[str, Any]]:
        """Return traces and layout, for ``plotly.graph_objects.Figure(data, layout)``."""

    def png(self) -> bytes:
        """Return the figure as PNG bytes."""


class Described:
    """A ``Drawing`` that both renderers draw from the description in ``figure``; a notebook shows its PNG."""

    def figure(self) -> Figure:
        """Return the description."""
        raise NotImplementedError

    def plotly(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return traces and layout, for ``plotly.graph_objects.Figure(data, layout)``."""
        return plotly_renderer.render(self.figure())

    def png(self) -> bytes:
        """Return the figure as PNG bytes, on white."""
        return matplotlib_renderer.render(self.figure())

    def _repr_png_(self) -> bytes:
        return self.png()


@dataclass(frozen=True, repr=False)
class Picture(Described):
    """A figure that a notebook shows as a PNG, which needs no kernel, or as a line of text.

    Attributes:
        description: the panels, marks and labels, from which ``png`` and ``plotly`` draw the figure.
        text: what the figure shows, in a line.
    """

    description: Figure
    text: str

    def __repr__(self) -> str:
        return self.text

    def figure(self) -> Figure:
        """Return the description."""
        return self.description


def picture_bundle(widget: Any, text: str, png: bytes | None = None) -> dict[str, Any]:
    """Return the MIME bundle of a live panel, with a line of text and a picture for pages without a kernel."""
    bundle = {**widget._repr_mimebundle_(), "text/plain": text}
    return bundle if png is None else {**bundle, "image/png": base64.b64encode(png).decode()}


@dataclass(frozen=True, repr=False)
class Boxes:
    """A drawing of boxes, which a notebook shows as SVG.

    Attributes:
        svg: the drawing.
        text: what it shows, in a line.
    """

    svg: str
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_svg_(self) -> str:
        return self.svg


def adapter_boxes(methods: Sequence[str] = ("lora", "slora", "nlora", "inttune")) -> Boxes:
    """Draw the matrices of methods as boxes: filled if they are trained, hollow if they are frozen.

    The sides of a box are m, n or r, the same in all rows. They are not to scale.

    Args:
        methods: the names of the methods, one row each.

    Returns:
        The drawing.

    Raises:
        InputError: a method is unknown, or has no drawing.
    """
    known = [get_method(name).name for name in methods]
    if not known or not set(known) <= set(FACTORS):
        raise InputError(f"methods={known!r} must be methods that can be drawn: {', '.join(FACTORS)}")
    row = HIGH + 34
    parts = [_row(name, 10 + i * row) for i, name in enumerate(known)]
    label = f"adapters as boxes: {', '.join(METHODS[name].label for name in known)}"
    size = f'width="680" height="{row * len(known)}" viewBox="0 0 680 {row * len(known)}"'
    style = f'font-family="sans-serif" font-size="13" fill="{INK}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{html.escape(label)}" {style}>'
    return Boxes("\n".join([head, *parts, "</svg>"]), label)


def _row(name: str, top: int) -> str:
    """One method: its name, W, and the factors behind it."""
    method, x = METHODS[name], 150
    parts = [f'<text x="0" y="{top + HIGH / 2 + 5}" fill="{method.colour}">{html.escape(method.label)}</text>']
    product, trained = FACTORS[name]
    terms = [("W", "", True)]
    terms += [(product, "+", True)] if product else []
    terms += [(product, "−", False)] if name in ("nlora", "inttune") else []
    for factors, sign, moves in terms:
        if sign:
            parts.append(f'<text x="{x}" y="{top + HIGH / 2 + 5}">{sign}</text>')
            x += 24
        for factor in factors:
            filled = moves and factor in trained
            parts.append(_box(factor, "" if moves else "₀", x, top, method.colour if filled else ""))
            x += {"A": WIDE, "W": WIDE}.get(factor, THIN) + 14
    return "\n".join(parts)


def _box(factor: str, index: str, x: int, top: int, colour: str) -> str:
    """One matrix, centred on its row, with its name below."""
    wide = WIDE if factor in "WA" else THIN
    high = HIGH if factor in "WB" else THIN
    y = top + (HIGH - high) // 2
    fill = f'fill="{colour}" stroke="{colour}"' if colour else f'fill="none" stroke="{INK}" stroke-dasharray="3 3"'
    return (
        f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" {fill}/>'
        f'<text x="{x + wide / 2}" y="{y + high + 16}" text-anchor="middle">{factor}{index}</text>'
    )
