"""Small charts for a notebook, as pictures: lines by name, and one bar a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import METHODS, get_method
from nlora_lab.plots.style import INK, MPL_DASH, new_figure, png_bytes

HUES = ("#0072b2", "#d98c00", "#009e73", "#c0448f", "#56b4e9", "#d55e00")  # Okabe and Ito, darkened a little


@dataclass(frozen=True)
class Chart:
    """Lines by name, shown by a notebook as a PNG: it needs no kernel to be seen.

    ``lines`` maps a name to its values; they stand at 1, 2, 3, … or at ``x``. ``log`` is for the y axis. Every line
    has a hue and a dash of its own, and its name beside its end.
    """

    lines: Mapping[str, Sequence[float]]
    xlabel: str = ""
    ylabel: str = ""
    log: bool = False
    x: Sequence[float] | None = None

    def _repr_png_(self) -> bytes:
        return self.png()

    def __repr__(self) -> str:
        return f"{self.ylabel} against {self.xlabel}: {', '.join(self.lines)}"

    def png(self) -> bytes:
        """The chart as PNG bytes."""
        from matplotlib.ticker import MaxNLocator

        figure = new_figure(7.2, 3.0, 100)
        axes = figure.add_subplot()
        dashes = list(MPL_DASH.values())
        for i, (name, values) in enumerate(self.lines.items()):
            y = [float(v) for v in values]
            x = list(range(1, len(y) + 1)) if self.x is None else list(self.x)
            if not y or len(x) != len(y):
                raise InputError(f"{name}: {len(y)} values and {len(x)} places; give as many of both")
            hue = HUES[i % len(HUES)]
            style: dict[str, Any] = {"color": hue, "linestyle": dashes[i % len(dashes)], "linewidth": 1.8}
            axes.plot(x, y, label=name, **style)
            if all(float(place).is_integer() for place in x):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # no layer 0.5
        axes.set(xlabel=self.xlabel, ylabel=self.ylabel, yscale="log" if self.log else "linear")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=INK)
        axes.grid(alpha=0.25, linewidth=0.6)
        return png_bytes(figure)


def chart(
    lines: Mapping[str, Any], *, xlabel: str = "", ylabel: str = "", log: bool = False, x: Sequence[float] | None = None
) -> Chart:
    """A :class:`Chart` of named lines (sequences or 1-D tensors)."""
    plain = {name: v.tolist() if hasattr(v, "tolist") else list(v) for name, v in lines.items()}
    return Chart(plain, xlabel, ylabel, log, None if x is None else list(x))


@dataclass(frozen=True)
class MethodBars:
    """One number a method as bars in the methods' colours, on a logarithmic axis; a PNG like :class:`Chart`."""

    values: Mapping[str, float]
    xlabel: str

    def _repr_png_(self) -> bytes:
        return self.png()

    def __repr__(self) -> str:
        return f"{self.xlabel}: {', '.join(METHODS[name].label for name in self.values)}"

    def png(self) -> bytes:
        """The bars as PNG bytes; a method's bar is left out where its number is 0."""
        figure = new_figure(7.2, 0.6 + 0.3 * len(self.values), 100)
        axes = figure.add_subplot()
        labels, colours = ([getattr(METHODS[name], what) for name in self.values] for what in ("label", "colour"))
        drawn = axes.barh(labels, list(self.values.values()), color=colours, height=0.65)
        axes.bar_label(drawn, [f"{value:.2g}" for value in self.values.values()], padding=4, fontsize=8)
        axes.set(xscale="log", xlabel=self.xlabel)
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        return png_bytes(figure)


def method_bars(values: Mapping[str, float], *, xlabel: str = "") -> MethodBars:
    """:class:`MethodBars` of numbers by method name; :class:`InputError` for an unknown one."""
    for name in values:
        get_method(name)
    return MethodBars({name: float(value) for name, value in values.items()}, xlabel)
