"""Where the memory of a run goes: one bar per method, its parts side by side, and how much the card has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nlora_lab.core.formatting import format_bytes
from nlora_lab.methods.table import METHODS
from nlora_lab.plots.drawings import Described
from nlora_lab.plots.figure import Anchor, Axis, Bars, Figure, Label, Line, Mark, Panel, Points

GIB = 2**30
PARTS: dict[str, tuple[str, str, str]] = {
    "weights": ("weights of the model", "#b8b8b8", ""),
    "adapter": ("adapter", "#0072b2", ""),
    "gradients": ("gradients", "#d98c00", "/"),
    "optimizer": ("Adam's two means", "#009e73", "."),
    "activations": ("activations", "#56b4e9", "x"),
    "logits": ("logits", "#c0448f", "-"),
}
"""The name, hue and pattern of each field of an estimate; the pattern distinguishes parts where colour does not."""
PEAK = "the most at one time"  # activations are gone by the time the last gradients are there
LIMIT = "#d55e00"
TOP = -0.95  # of the axis of methods, whose first bar stands at 0


@dataclass(frozen=True)
class MemoryDrawing(Described):
    """The figure of ``MemoryLab``: bytes by method and part, and the memory of a card as a line.

    Attributes:
        parts: the bytes of each part, by method and then by the names in ``PARTS``.
        peaks: the most bytes that each method needs at one time. They decide whether it fits, and are fewer than the
            sum of the parts, because not all parts are held at that time.
        budget: the bytes that the card can give.
        card: the name of the card.
    """

    parts: Mapping[str, Mapping[str, float]]
    peaks: Mapping[str, float]
    budget: float
    card: str

    @property
    def labels(self) -> list[str]:
        """The methods' names in the figure, and whether each fits."""
        return [f"{METHODS[name].label}{'' if self.fits(name) else ' (does not fit)'}" for name in self.parts]

    def fits(self, method: str) -> bool:
        """Return whether the peak of a method stays within the budget.

        Args:
            method: the name of a method in ``peaks``.
        """
        return self.peaks[method] <= self.budget

    def figure(self) -> Figure:
        """Return the description that both renderers draw."""
        count, budget, marks = len(self.parts), self.budget / GIB, list[Mark]()
        sums = [sum(parts.values()) for parts in self.parts.values()]
        end = 1.08 * max(self.budget, *self.peaks.values(), *sums) / GIB
        for part, (name, hue, pattern) in PARTS.items():
            sizes = [parts[part] / GIB for parts in self.parts.values()]
            marks.append(Bars(range(count), sizes, hue, pattern, name=name, hover="%{x:.2f} GiB"))
        peaks = [peak / GIB for peak in self.peaks.values()]
        marks.append(Points(peaks, range(count), "black", "line-ns", 44, name=PEAK, hover="%{x:.2f} GiB"))
        marks.append(Line([budget] * 2, [TOP, count - 0.5], LIMIT, "dash", hover="%{x:.1f} GiB to use"))
        label = f"{self.card}: {format_bytes(self.budget)} to use"
        anchor: Anchor = "left" if budget < 0.6 * end else "right"  # the side on which the label has room
        methods = Axis("", (count - 0.5, TOP), ticks=dict(enumerate(self.labels)), grid=False)
        labels = [Label(budget, -0.62, label, LIMIT, anchor)]
        panel = Panel(Axis("GiB, all parts together", (0, end)), methods, marks, labels, legend="above")
        return Figure([panel], 840, 120 + 60 * count)
