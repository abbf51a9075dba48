"""The approximations that the figures about matrices compare: how they are drawn and computed, and their errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nlora_lab.plots.figure import INK, Axis, Label, Limits, Line, Mark, Panel, Share, apart, round_ticks


@dataclass(frozen=True)
class Approximation:
    """One way to approximate a matrix: how it is drawn, and the options of ``error_curve`` that give it."""

    name: str
    label: str
    short: str
    colour: str
    dash: str
    options: Mapping[str, Any] = field(default_factory=dict)


APPROXIMATIONS: dict[str, Approximation] = {
    a.name: a
    for a in (
        Approximation("nystrom", "leading block, pseudo-inverse (NLoRA)", "leading, pinv", "#009e73", "dashdot"),
        Approximation("optimal", "leading block, optimal core", "optimal core", "#56b4e9", "dash", {"core": "optimal"}),
        Approximation("cross", "complete pivoting", "complete pivoting", "#d55e00", "longdash", {"pivots": "cross"}),
        Approximation("qr", "pivoted QR", "pivoted QR", "#c0448f", "dot", {"pivots": "qr"}),
        Approximation("svd", "truncated SVD, the best possible", "best possible", INK, "solid", {"kind": "svd"}),
    )
}


@dataclass(frozen=True)
class ErrorLine:
    """Relative errors at ranks 1 … R, with a name, a hue and a dash."""

    label: str
    colour: str
    dash: str
    errors: Sequence[float]
    width: float = 2.0


def line_of(name: str, errors: Sequence[float], width: float = 2.0) -> ErrorLine:
    """Return relative errors as a line in the look of ``APPROXIMATIONS[name]``."""
    a = APPROXIMATIONS[name]
    return ErrorLine(a.short, a.colour, a.dash, errors, width)


FLOOR, CEILING = 1e-3, 1e3  # errors beyond are drawn here: on a logarithmic axis, exact is nowhere
TICKS = {**{10.0**e: f"{10.0**e:g}" for e in range(-3, 4)}, FLOOR: f"≤ {FLOOR:g}", CEILING: f"≥ {CEILING:g}"}


def error_panel(lines: Sequence[ErrorLine], rank: int, room: float, heading: str, across: Share, up: Share) -> Panel:
    """Return a panel of errors against the rank, with a vertical line at ``rank`` and a name at the end of each line.

    The x axis is ``room`` times as long as the lines, for their names. ``across`` and ``up`` are the panel's place.
    """
    limits, labels = error_limits(lines), list[Label]()
    ranks = max((len(line.errors) for line in lines), default=1)
    marks: list[Mark] = [Line([1, ranks], [1, 1], dash="dot", width=1), Line([rank] * 2, limits, width=1)]
    for line in lines:
        drawn, places = [_cut(e) for e in line.errors], range(1, len(line.errors) + 1)
        hover = "rank %{x}: error %{y:.3g}"
        marks.append(Line(places, drawn, line.colour, line.dash, line.width, name=line.label, hover=hover))
        end = next((v for v in reversed(drawn) if not math.isnan(v)), 1.0)
        labels.append(Label(len(drawn), end, line.label, line.colour))
    axes = Axis("rank", (0, ranks * room), ticks=round_ticks(0, ranks)), Axis("relative error", limits, True, TICKS)
    return Panel(*axes, marks, apart(labels, limits, 0.085), heading, across=across, up=up)


def spectrum_panel(marks: Sequence[Line], heading: str, across: Share, up: Share, rank: int | None = None) -> Panel:
    """Return a panel of singular values against their number, from 0, with a vertical line at ``rank``."""
    top = 1.05 * max((v for mark in marks for v in mark.y if v is not None), default=1.0)
    count = max((len(mark.x) for mark in marks), default=1)
    cursor = [] if rank is None else [Line([rank] * 2, [0, top or 1.0], width=1)]
    axes = Axis("k", (0, 1.03 * count), ticks=round_ticks(0, count)), Axis(limits=(0, top or 1.0))
    return Panel(*axes, [*cursor, *marks], heading=heading, across=across, up=up)


def error_limits(lines: Sequence[ErrorLine]) -> Limits:
    """Return limits of the error axis that show every line and the error of zero, which is 1."""
    values = [0.0, *(math.log10(_cut(e)) for line in lines for e in line.errors if not math.isnan(e))]
    low, high = min(-0.35, *values), max(0.35, *values)
    return 10 ** (low - 0.1 * (high - low)), 10 ** (high + 0.05 * (high - low))


def _cut(error: float) -> float:
    return error if math.isnan(error) else min(max(error, FLOOR), CEILING)
