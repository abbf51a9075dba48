"""The rows of linear_algebra.py: one measurement each, with that of a peer, and the Markdown table that they make."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from statistics import quantiles
from typing import Any


@dataclass
class Row:
    """One measurement: the figures of this package and of the peer, one per round, and the target.

    ``kind`` says what ``ratio`` is and how ``reach``, the target, is used:

    - "faster": the peer's median divided by ours. It must be at least ``reach``.
    - "of it": our median divided by the peer's. It must be at most ``reach``.
    - "figure": no ratio. Our figure itself must be at most ``reach``.

    Our figure is the median or another ``percentile``. A row without ``reach`` has no target.
    """

    name: str
    what: str
    kind: str
    reach: float | None
    ours: list[float]
    peer: list[float] | None
    unit: str = "ms"
    percentile: int = 50
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def ours_figure(self) -> float:
        return percentile(self.ours, self.percentile)

    @property
    def peer_figure(self) -> float | None:
        return None if self.peer is None else percentile(self.peer, 50)

    @property
    def ratio(self) -> float | None:
        if self.kind == "figure" or self.peer_figure is None:
            return None
        return self.peer_figure / self.ours_figure if self.kind == "faster" else self.ours_figure / self.peer_figure

    @property
    def reached(self) -> bool | None:
        if self.reach is None:
            return None
        value = self.ours_figure if self.ratio is None else self.ratio
        return value >= self.reach if self.kind == "faster" else value <= self.reach

    def record(self) -> dict[str, Any]:
        derived = {
            "ours_figure": self.ours_figure,
            "ours_quartiles": quartiles(self.ours),
            "peer_figure": self.peer_figure,
            "peer_quartiles": None if self.peer is None else quartiles(self.peer),
            "ratio": self.ratio,
            "reached": self.reached,
        }
        return rounded(asdict(self) | derived)


def percentile(values: list[float], p: int) -> float:
    return values[0] if len(values) == 1 else quantiles(values, n=100, method="inclusive")[p - 1]


def quartiles(values: list[float]) -> list[float]:
    return [percentile(values, 25), percentile(values, 75)]


def rounded(value: Any) -> Any:
    """Round to six significant digits. More would be noise in a file under version control."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


# --- the table ---


def digits(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    number = f"{value:.1e}" if value < 1e-2 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{number} {unit}".strip()


def target(row: Row) -> str:
    if row.reach is None:
        return "–"
    bound = digits(row.reach, row.unit) if row.kind == "figure" else f"{row.reach:g}×"
    return f"≥ {bound}" if row.kind == "faster" else f"≤ {bound}"


def spread(values: list[float], middle: float, unit: str) -> str:
    if len(values) == 1:
        return digits(middle, unit)
    low, high = quartiles(values)
    return f"{digits(middle, unit)} ({digits(low, '')}–{digits(high, '')})"


def line(row: Row) -> str:
    ours = spread(row.ours, row.ours_figure, row.unit)
    peer = "–" if row.peer is None else spread(row.peer, row.peer_figure or 0, row.unit)
    ratio = "–" if row.ratio is None else f"{row.ratio:.3g}×"
    reached = {True: "yes", False: "**no**", None: "–"}[row.reached]
    return f"| {row.what} | {ours} | {peer} | {ratio} | {target(row)} | {reached} |"


def table(rows: list[Row]) -> str:
    head = ["| measurement | nlora-lab | peer | ratio | target | reached |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *map(line, rows)])


def stored_table(stored: dict[str, Any]) -> str:
    """The table of a record."""
    names = [f.name for f in fields(Row)]
    return table([Row(**{name: row[name] for name in names}) for row in stored["rows"]])
