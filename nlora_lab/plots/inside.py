"""Inside a run: the singular values of the update, and the norms of its factors and of their gradients.

A hue and a dash is a method, as everywhere. A marker is a factor, named where its line ends. All axes of values are
logarithmic, and zero stands on a level of its own below the other values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from nlora_lab.core.formatting import format_rate
from nlora_lab.methods.table import METHODS
from nlora_lab.models.names import split_name
from nlora_lab.plots.drawings import Described
from nlora_lab.plots.figure import Axis, Figure, Label, Limits, Line, Panel, apart, round_ticks
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.snapshots import Snapshot, series

SYMBOLS = {"A": "circle", "N": "square", "B": "diamond", "m": "triangle-up", "W": "x"}
SIGNS = {"A": "●", "N": "■", "B": "◆", "m": "▲", "W": "✕"}
MARKED = 6  # markers on a line, about
NAMED = 2  # runs whose factors are named at the ends of their lines; of more, the heading says what a marker is
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
SHARES = ((0.0, 0.34), (0.43, 0.67), (0.76, 1.0))
WIDTHS = (270, 190, 190)  # pixels of the panels where the figure is 900 wide: the names have to fit into them
LETTER = 7.5  # pixels
MISSING = "no such layer in these runs"


class InsideRecord(NamedTuple):
    """What ``InsideDrawing`` draws of one run.

    Attributes:
        name: the name of the run.
        colour: the hue of its method.
        dash: the dash of its method.
        snapshots: what was recorded of the run.
    """

    name: str
    colour: str
    dash: str
    snapshots: Sequence[Snapshot]


_Curve = tuple[Line, str]  # with the label at its end
Record = InsideRecord | tuple[str, str, str, Sequence[Snapshot]]


def inside_record(config: RunConfig, snapshots: Sequence[Snapshot], name: str = "") -> InsideRecord:
    """Return what ``InsideDrawing`` draws of a run, in its method's hue and dash; by default named after it."""
    method = METHODS[config.method]
    return InsideRecord(name or config.label, method.colour, method.dash, snapshots)


class _Levels:
    """The logarithmic axis of values that may be zero: those negligible beside the largest stand on a level below."""

    def __init__(self, values: Sequence[float], decades: float) -> None:
        self.values = [v for v in values if math.isfinite(v)]
        top = max(self.values, default=0.0)
        self.least = min([v for v in self.values if v > top * 10**-decades], default=1.0)
        low, high = math.log10(self.least), math.log10(max([*self.values, self.least]))
        self.low, self.high = min(low, (low + high) / 2 - 0.3), max(high, (low + high) / 2 + 0.3)
        self.zero: float | None = None  # where anything is negligible
        if any(v < self.least for v in self.values):
            self.zero = 10 ** (self.low - 0.14 * (self.high - self.low))

    def place(self, value: float) -> float | None:
        """Where a value is drawn; nowhere if it is not finite."""
        if not math.isfinite(value):
            return None
        return value if value >= self.least else self.zero or self.least

    @property
    def limits(self) -> Limits:
        """The ends of the axis."""
        bottom = self.low if self.zero is None else math.log10(self.zero)
        margin = 0.06 * (self.high - bottom)
        return 10 ** (bottom - margin), 10 ** (self.high + margin)

    def ticks(self) -> dict[float, str]:
        """Powers of ten, with 2 and 5 between them where they are few, and zero."""
        if not self.values:
            return {}
        steps: tuple[int, ...] = (1, 2, 5) if self.high - self.low < 1.5 else (1,)
        every = max(1, math.ceil((self.high - self.low) / 6))
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        marks = [c * 10.0**e for e in powers for c in steps if e % every == 0]
        inside = [v for v in marks if self.low - 1e-9 <= math.log10(v) <= self.high + 0.1]
        ticks = {v: f"{v:g}" if v >= 1e-3 else format_rate(v) for v in inside}
        if self.zero is not None:
            ticks[self.zero] = "0" if all(v == 0 for v in self.values if v < self.least) else "≈ 0"
        return ticks


@dataclass(frozen=True)
class InsideDrawing(Described):
    """Three panels over the updates of one or more runs.

    On the left are the largest singular values of the change of the weight; smaller ones are fainter. In the middle
    are the norms of the factors that train, and on the right the norms of their gradients.

    Attributes:
        records: the runs, as ``InsideRecord`` or as tuples like it.
        layer: the name of a layer; ``None`` is all layers together, as root mean squares.
        top: how many singular values are drawn.
        factors: the letters of the factors to draw, where they train.
    """

    records: Sequence[Record]
    layer: str | None = None
    top: int = 4
    factors: str = "ANBmW"

    def figure(self) -> Figure:
        """Return the description that both renderers draw."""
        records = [InsideRecord(*record) for record in self.records]
        values, norms, gradients = list[_Curve](), list[_Curve](), list[_Curve]()
        for record in records:
            for k in range(1, self.top + 1):
                values += self._curve(record, f"sigma_{k}", f"σ{k}".translate(SUBSCRIPTS), 0.62 ** (k - 1))
            for f in self.factors:
                norms += self._curve(record, f"norm {f}", f)
                gradients += self._curve(record, f"gradient {f}", f)
        many = f"σ₁ … σ{self.top}".translate(SUBSCRIPTS) if self.top > 1 else "σ₁"
        trained = {line.symbol for line, _ in norms}
        key = "  ".join(f"{SIGNS[f]} {f}" for f in self.factors if SYMBOLS[f] in trained)
        contents = (  # heading, lines, and the decades below the largest value that are still drawn
            (f"singular values of the change: {many}", values, 4),
            ("norms of the factors" if self._named else f"norms of the factors: {key}", norms, 7),
            ("norms of their gradients", gradients, 7),
        )
        end = max((line.x[-1] or 0 for line, _ in [*values, *norms, *gradients]), default=10) or 1
        panels = [_panel(i, *content, end) for i, content in enumerate(contents)]
        if not values:
            recorded = any(record.snapshots for record in records)
            panels[0] = replace(panels[0], message=MISSING if recorded else "nothing recorded yet")
        return Figure(panels, 1040, 380, dpi=110, margins=(52, 12, 62, 44), heading=self.heading)

    @property
    def heading(self) -> str:
        """The run, if there is one only, and the layer."""
        whose = f"{self.records[0][0]}: " if len(self.records) == 1 else ""
        return whose + ("all layers together (root mean square)" if self.layer is None else place_text(self.layer))

    @property
    def _named(self) -> bool:
        return len(self.records) <= NAMED

    def _curve(self, record: InsideRecord, quantity: str, sign: str, opacity: float = 1.0) -> list[_Curve]:
        """The line of one quantity of a run, with the label at its end; nothing if it was not recorded."""
        x, y = series(record.snapshots, quantity, self.layer)
        if sign in SYMBOLS:
            label = sign if self._named else ""
        elif len(self.records) == 1:  # the heading names it
            label = sign
        else:  # a run is named once, at its largest value
            label = _broken(record.name) if sign == "σ₁" else ""
        look = record.colour, record.dash, 2.2, max(opacity, 0.2), SYMBOLS.get(sign, ""), round(len(x) / MARKED) or 1
        hover = "after %{x} updates: %{customdata:.3g}"
        return [(Line(x, y, *look, y, name=f"{record.name} {sign}", hover=hover), label)] if x else []


def _panel(i: int, heading: str, curves: Sequence[_Curve], decades: float, end: float) -> Panel:
    levels = _Levels([v for line, _ in curves for v in line.values or ()], decades)
    marks, labels = [], list[Label]()
    for line, label in curves:
        y = [levels.place(v) for v in line.values or ()]
        marks.append(replace(line, y=y))
        drawn = [(place, v) for place, v in zip(line.x, y, strict=True) if place is not None and v is not None]
        if label and drawn:
            labels.append(Label(*drawn[-1], label, line.colour, shift=7))
    # the x axis is longer than the runs: the names stand at the ends of the lines
    longest = max((len(word) for _, label in curves for word in label.split("\n")), default=0)
    room = WIDTHS[i] / max(0.5 * WIDTHS[i], WIDTHS[i] - LETTER * (longest + 2))
    updates = Axis("updates", (0, end * room), ticks=round_ticks(0, end))
    values = Axis(limits=levels.limits, log=True, ticks=levels.ticks())
    return Panel(updates, values, marks, apart(labels, levels.limits, 0.06), heading, across=SHARES[i])


def _broken(name: str) -> str:
    """A long name in two or three lines."""
    return name if len(name) < 13 else name.replace(", ", ",\n").replace(" · ", "\n· ")


def place_text(layer: str) -> str:
    """Name a layer for a heading: ``model.layers.2.mlp.up_proj`` is ``layer 2, mlp.up_proj``."""
    number, module = split_name(layer)
    return module if number < 0 else f"layer {number}, {module}"
