"""A figure of the differences from LoRA with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nlora_lab.analysis.statistics import LEAST_SEEDS
from nlora_lab.methods.table import METHODS
from nlora_lab.plots.figure import INK
from nlora_lab.plots.matplotlib_renderer import new_figure, png_bytes
from nlora_lab.tasks.generated import TASKS

if TYPE_CHECKING:
    import pandas as pd

MARKERS = ("o", "D")  # the first setting, the second setting


@dataclass(frozen=True)
class DifferencePlot:
    """A figure of differences from LoRA in points. A notebook shows it as a PNG.

    There is one panel per task, one row per method and one marker per setting.

    Attributes:
        frames: by setting, then by method, what ``compare_methods`` returned.
    """

    frames: Mapping[str, Mapping[str, pd.DataFrame]]

    def _repr_png_(self) -> bytes:
        return self.png()

    def __repr__(self) -> str:
        labels = dict.fromkeys(METHODS[name].label for rows in self.frames.values() for name in rows)
        return f"points more than LoRA, {' and '.join(self.frames)}: {', '.join(labels)}"

    def png(self) -> bytes:
        """Draw the figure.

        A full marker with a solid line has enough seeds for a verdict. A hollow marker with a dotted line has
        too few.

        Returns:
            The bytes of a PNG file.
        """
        names = list(dict.fromkeys(name for rows in self.frames.values() for name in rows))
        figure = new_figure(7.6, 1.4 + 0.5 * len(names), 100)
        for axes, task in zip(figure.subplots(1, len(TASKS), sharey=True), TASKS, strict=True):
            axes.axvline(0, color=INK, linewidth=1)
            for setting, (rows, marker) in enumerate(zip(self.frames.values(), MARKERS, strict=False)):
                for place, name in enumerate(names):
                    if name in rows and task in rows[name].index:
                        height = place + 0.3 * setting - 0.15
                        _draw_difference(axes, rows[name].loc[task], METHODS[name].colour, height, marker)
            axes.set_title(task, fontsize=10, loc="left")
            axes.set_xlabel("points more than LoRA", fontsize=9)
            axes.set_yticks(range(len(names)), [METHODS[name].label for name in names], fontsize=9)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8, colors=INK)
            axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        handles = [_legend_handle(setting, marker) for setting, marker in zip(self.frames, MARKERS, strict=False)]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=8)
        return png_bytes(figure)


def _draw_difference(axes: Any, row: Any, colour: str, height: float, marker: str) -> None:
    enough = row["seeds"] >= LEAST_SEEDS
    if not math.isnan(row["low"]):
        ends = [100 * row["low"], 100 * row["high"]]
        axes.plot(ends, [height] * 2, color=colour, linewidth=1.8, linestyle="-" if enough else ":")
    face = colour if enough else "white"
    axes.plot([100 * row["difference"]], [height], marker, color=colour, markerfacecolor=face, markersize=6)


def _legend_handle(setting: str, marker: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=marker, color=INK, markersize=6, label=setting)


def plot_differences(frames: Mapping[str, Mapping[str, pd.DataFrame]]) -> DifferencePlot:
    """Make a figure of differences from LoRA.

    Args:
        frames: by setting (for example "all at 2e-4"), then by method, what ``compare_methods`` returned. At most two
            settings are drawn.

    Returns:
        The figure. It is drawn when it is shown.
    """
    return DifferencePlot({setting: dict(rows) for setting, rows in frames.items()})
