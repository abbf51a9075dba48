"""What a drawing is for those who show it: a live panel, or a notebook without a kernel."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Protocol

from nlora_lab.plots import matplotlib_renderer, plotly_renderer
from nlora_lab.plots.figure import Figure


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
