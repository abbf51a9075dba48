"""Differences with their intervals, as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nlora_lab.core.statistics import LEAST_PAIRS
from nlora_lab.methods.table import METHODS
from nlora_lab.plots.style import INK, new_figure, png_bytes
from nlora_lab.tasks.generated import TASKS

if TYPE_CHECKING:
    import pandas as pd

MARKERS = ("o", "D")


@dataclass(frozen=True)
class Differences:
    """Differences from LoRA in points, one panel a task, one row a method, one marker a setting; a PNG in a notebook.

    ``frames``: by setting, then by method, what :func:`~nlora_lab.paper.beside` gives.
    """

    frames: Mapping[str, Mapping[str, pd.DataFrame]]

    def _repr_png_(self) -> bytes:
        return self.png()

    def __repr__(self) -> str:
        names = dict.fromkeys(METHODS[name].label for rows in self.frames.values() for name in rows)
        return f"points more than LoRA, {' and '.join(self.frames)}: {', '.join(names)}"

    def png(self) -> bytes:
        """Full markers and whole lines where there are seeds enough for a verdict; hollow and dotted ones elsewhere."""
        names = list(dict.fromkeys(name for rows in self.frames.values() for name in rows))
        figure = new_figure(7.6, 1.4 + 0.5 * len(names), 100)
        for axes, task in zip(figure.subplots(1, len(TASKS), sharey=True), TASKS, strict=True):
            axes.axvline(0, color=INK, linewidth=1)
            for setting, (rows, marker) in enumerate(zip(self.frames.values(), MARKERS, strict=False)):
                for place, name in enumerate(names):
                    if name in rows and task in rows[name].index:
                        _mark(axes, rows[name].loc[task], METHODS[name].colour, place + 0.3 * setting - 0.15, marker)
            axes.set_title(task, fontsize=10, loc="left")
            axes.set_xlabel("points more than LoRA", fontsize=9)
            axes.set_yticks(range(len(names)), [METHODS[name].label for name in names], fontsize=9)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8, colors=INK)
            axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        keys = [_key(figure, setting, marker) for setting, marker in zip(self.frames, MARKERS, strict=False)]
        figure.legend(handles=keys, loc="outside upper right", ncols=len(keys), frameon=False, fontsize=8)
        return png_bytes(figure)


def _mark(axes: Any, row: Any, colour: str, height: float, marker: str) -> None:
    settled = row["pairs"] >= LEAST_PAIRS
    if not math.isnan(row["low"]):
        ends = [100 * row["low"], 100 * row["high"]]
        axes.plot(ends, [height] * 2, color=colour, linewidth=1.8, linestyle="-" if settled else ":")
    face = colour if settled else "white"
    axes.plot([100 * row["difference"]], [height], marker, color=colour, markerfacecolor=face, markersize=6)


def _key(figure: Any, setting: str, marker: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=marker, color=INK, markersize=6, label=setting)


def differences(frames: Mapping[str, Mapping[str, pd.DataFrame]]) -> Differences:
    """:class:`Differences` of comparisons by setting and method."""
    return Differences({setting: dict(rows) for setting, rows in frames.items()})
