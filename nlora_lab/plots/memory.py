"""Where the memory of a run goes: one bar a method, its parts side by side, and how much the card has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nlora_lab.core.formatting import format_bytes
from nlora_lab.methods.table import METHODS
from nlora_lab.plots.style import INK, axis, blank_layout, new_figure, png_bytes

GIB = 2**30
PARTS: dict[str, tuple[str, str, str]] = {
    "weights": ("weights of the model", "#b8b8b8", ""),
    "adapter": ("adapter", "#0072b2", ""),
    "gradients": ("gradients", "#d98c00", "/"),
    "optimizer": ("Adam's two means", "#009e73", "."),
    "activations": ("activations", "#56b4e9", "x"),
    "logits": ("logits", "#c0448f", "-"),
}
"""By a field of an estimate: what it is called, its hue, and a pattern, so that colour is not alone."""
PEAK = "the most at one time"  # activations are gone by the time the last gradients are there


@dataclass(frozen=True)
class MemoryDrawing:
    """The figure of :class:`nlora_lab.MemoryLab`: bytes by method and part, and the ``budget`` as a line.

    ``peaks``: what each method holds at the worst moment, which decides whether it fits: not all parts are there then.
    """

    held: Mapping[str, Mapping[str, float]]
    peaks: Mapping[str, float]
    budget: float
    card: str

    @property
    def labels(self) -> list[str]:
        """The methods' names in the figure, and whether each fits."""
        return [f"{METHODS[name].label}{'' if self.fits(name) else ' (does not fit)'}" for name in self.held]

    def fits(self, method: str) -> bool:
        """Whether the worst moment stays below the budget."""
        return self.peaks[method] <= self.budget

    @property
    def _end(self) -> float:
        ends = [*self.peaks.values(), *(sum(parts.values()) for parts in self.held.values())]
        return 1.08 * max(self.budget, *ends) / GIB

    @property
    def _line_words(self) -> str:
        return f"{self.card}: {format_bytes(self.budget)} to use"

    def plotly(self) -> tuple[list[Any], dict[str, Any]]:
        """One trace a part, stacked."""
        import plotly.graph_objects as go

        places = list(range(len(self.held)))
        traces: list[Any] = [
            go.Bar(
                y=places, x=[parts[part] / GIB for parts in self.held.values()], name=name, orientation="h",
                marker={"color": hue, "pattern": {"shape": shape, "fgcolor": "white", "size": 6, "solidity": 0.25}},
                hovertemplate=f"{name}: %{{x:.2f}} GiB<extra></extra>", width=0.6,
            )
            for part, (name, hue, shape) in PARTS.items()
        ]  # fmt: skip
        traces.append(
            go.Scatter(
                y=places, x=[peak / GIB for peak in self.peaks.values()], mode="markers", name=PEAK,
                marker={"symbol": "line-ns", "size": 44, "line": {"color": "black", "width": 2}},
                hovertemplate=f"{PEAK}: %{{x:.2f}} GiB<extra></extra>",
            )
        )  # fmt: skip
        traces.append(
            go.Scatter(
                x=[self.budget / GIB] * 2, y=[-0.95, len(places) - 0.5], mode="lines", showlegend=False,
                line={"color": "#d55e00", "width": 2, "dash": "dash"},
                hovertemplate=f"{self.card}: %{{x:.1f}} GiB to use<extra></extra>",
            )
        )  # fmt: skip
        layout = blank_layout(120 + 60 * len(places))
        layout |= {
            "barmode": "stack",
            "xaxis": {**axis(), "title": {"text": "GiB, all parts together"}, "range": [0, self._end]},
            "yaxis": {
                **axis(), "tickmode": "array", "tickvals": places, "ticktext": self.labels,
                "range": [len(places) - 0.5, -0.95],
                "ticks": "", "showgrid": False,
            },
            "annotations": [
                {
                    "x": self.budget / GIB, "y": -0.62, "text": self._line_words, "showarrow": False,
                    "xanchor": "left" if self.budget / GIB < 0.6 * self._end else "right", "xshift": 4,
                    "font": {"color": "#d55e00"},
                }
            ],
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
            "margin": {"l": 150, "r": 20, "t": 44, "b": 44},
        }  # fmt: skip
        return traces, layout

    def png(self) -> bytes:
        """The same bars as a picture."""
        figure = new_figure(8.4, 1.4 + 0.5 * len(self.held), 100)
        axes, left = figure.add_subplot(), [0.0] * len(self.held)
        for part, (name, hue, hatch) in PARTS.items():
            sizes = [parts[part] / GIB for parts in self.held.values()]
            axes.barh(
                self.labels, sizes, left=left, color=hue, label=name, height=0.6, hatch=hatch * 3, edgecolor="white"
            )
            left = [start + size for start, size in zip(left, sizes, strict=True)]
        axes.plot(
            [peak / GIB for peak in self.peaks.values()], self.labels, linestyle="none", marker="|", markersize=36,
            markeredgewidth=1.8, color="black", label=PEAK,
        )  # fmt: skip
        axes.axvline(self.budget / GIB, color="#d55e00", linestyle="--")
        right = self.budget / GIB < 0.6 * self._end  # the side on which the words have room
        axes.annotate(
            self._line_words, (self.budget / GIB, -0.62), xytext=(5 if right else -5, 0), textcoords="offset points",
            ha="left" if right else "right", va="center", fontsize=8, color="#d55e00",
        )  # fmt: skip
        axes.set(xlabel="GiB, all parts together", xlim=(0, self._end), ylim=(len(self.held) - 0.5, -0.95))
        axes.legend(
            frameon=False,
            fontsize=7.5,
            ncols=7,
            loc="lower left",
            bbox_to_anchor=(-0.12, 1),
            handlelength=1.2,
            markerscale=0.25,
            columnspacing=1.2,
        )
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=INK, left=False)
        return png_bytes(figure)
