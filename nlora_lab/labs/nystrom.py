"""``NystromLab``: choose a matrix, rows, columns and a core, drag the rank, see what is left."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as widgets
import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.labs.figures import Figures
from nlora_lab.labs.panel import WORDS, FigurePanel, error_words
from nlora_lab.lowrank.checks import IllConditionedWarning, check_matrix
from nlora_lab.lowrank.cross import CORES, nystrom
from nlora_lab.lowrank.curves import error_curve
from nlora_lab.lowrank.factors import LowRank
from nlora_lab.lowrank.matrices import with_spectrum
from nlora_lab.lowrank.pivots import PIVOTS
from nlora_lab.lowrank.svd import singular_values
from nlora_lab.models.weights import weights
from nlora_lab.plots.approximations import APPROXIMATIONS, ErrorLine, line_of
from nlora_lab.plots.matrices import NystromDrawing, thumbnail
from nlora_lab.spectra.measures import block_condition

MAX_RANK = 96
SIZE = 128  # rows and columns of the made-up matrices
EXACT_RANK = 12
TOLERANCES = [("none", 0.0), *((f"{t:g}", t) for t in (1e-6, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3))]


class NystromLab(FigurePanel):
    """A matrix, its cross approximation and what is left, with the error at every rank.

    Every control is an attribute and can be set from Python: ``matrix`` (a layer of the embedded model,
    "Gaussian", "σ ~ k^-p" with the exponent ``p``, "exact rank"), ``rank``, ``pivots``, ``core``,
    ``tolerance`` (rtol of the pseudo-inverse) and ``oversample``. What is shown is :attr:`approximation`,
    :attr:`error`, :attr:`best` and :attr:`condition`.

    Args:
        W: a matrix of your own, (m, n); the first choice of ``matrix`` is then "yours".
        figures: "plotly", "image", or "auto" to choose by where the notebook runs.
    """

    def __init__(self, W: Tensor | None = None, *, figures: Figures = "auto") -> None:
        self._yours = None if W is None else one_matrix(W)
        self._made: dict[Any, Matrix] = {}
        self._shown: tuple[Any, LowRank] | None = None
        names = _choices(self._yours is not None)
        wide = widgets.Layout(width="360px")
        self.matrix = widgets.Dropdown(options=names, description="matrix", style=WORDS, layout=wide)
        self.p = widgets.FloatSlider(
            1.0, min=0, max=3, step=0.1, description="exponent p", style=WORDS, continuous_update=False
        )
        self.rank = widgets.IntSlider(8, 1, MAX_RANK, description="rank r", style=WORDS, layout=wide)
        self.pivots = widgets.Dropdown(options=PIVOTS, description="rows, columns", style=WORDS)
        self.core = widgets.Dropdown(options=CORES, description="core", style=WORDS)
        self.tolerance = widgets.SelectionSlider(
            options=TOLERANCES, description="tolerance", style=WORDS, continuous_update=False, layout=wide
        )
        self.oversample = widgets.IntSlider(0, 0, 32, description="extra rows", style=WORDS, continuous_update=False)
        self._controls = [[self.matrix, self.p], [self.rank, self.tolerance], [self.pivots, self.core, self.oversample]]
        self._fit()
        self._open(figures)
        self.matrix.observe(lambda _: self._changed(), "value")
        self.core.observe(lambda _: self._fit(), "value")
        self._follow(self.p, self.rank, self.pivots, self.core, self.tolerance, self.oversample)

    # --- what is shown, from Python ---

    @property
    def W(self) -> Tensor:
        """The matrix chosen, (m, n) in float32 or better."""
        return self._current().W

    @property
    def approximation(self) -> LowRank:
        """The approximation shown."""
        options = self._options()
        key = (self.matrix.value, self.p.value, self.rank.value, *(v for k, v in options.items() if k != "generator"))
        if self._shown is None or self._shown[0] != key:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", IllConditionedWarning)  # the line under the controls says it
                self._shown = key, nystrom(self.W, self.rank.value, **options)
        return self._shown[1]

    @property
    def error(self) -> float:
        """Its relative Frobenius error."""
        return self._curve()[self.rank.value - 1]

    @property
    def best(self) -> float:
        """The error of the best approximation of this rank (Eckart–Young)."""
        return self._current().best[self.rank.value - 1]

    @property
    def condition(self) -> float:
        """The condition number of the block on the chosen rows and columns."""
        f = self.approximation
        block = self.W[f.rows][:, f.cols]
        return block_condition(block, self.rank.value) if block.shape[0] == block.shape[1] else _condition(block)

    def told(self) -> str:
        """Matrix, rank, error, best possible and condition number."""
        m, n = self.W.shape
        worse = ", worse than approximating W by zero" if self.error > 1 else ""
        chosen = f"{self.pivots.value}, {self.core.value}"
        extra = f", {self.oversample.value} extra rows" if self._options()["oversample"] else ""
        return (
            f"{self.matrix.label} ({m} × {n}), rank {self.rank.value}, {chosen}{extra}: "
            f"error {_told(self.error)}{worse}; best possible {_told(self.best)}; "
            f"condition number of the block {_told_condition(self.condition)}"
        )

    def drawing(self) -> NystromDrawing:
        """The figure's data as the controls say now."""
        current, f = self._current(), self.approximation
        m, n = current.W.shape
        residual = f.residual(current.W)
        heats = (current.thumb, thumbnail(current.W - residual), thumbnail(residual))
        return NystromDrawing(
            heats, current.scale, self._lines(), current.sigma, self.rank.value, (m, n), self.error
        )  # fmt: skip

    # --- behind it ---

    def _lines(self) -> list[ErrorLine]:
        current, shown = self._current(), APPROXIMATIONS["nystrom"]
        label = f"{self.pivots.value}, {self.core.value}"
        lines = [line_of("svd", current.best, 1.5)]
        if self.core.value != "optimal":
            lines.append(line_of("optimal", current.curve({**self._options(), "core": "optimal"}), 1.5))
        return [*lines, ErrorLine(label, shown.colour, "solid", self._curve(), 3.0)]

    def _options(self) -> dict[str, Any]:
        return {
            "pivots": self.pivots.value,
            "core": self.core.value,
            "rtol": self.tolerance.value or None,
            "oversample": 0 if self.core.value == "block" else self.oversample.value,
            "generator": torch.Generator().manual_seed(0),
        }

    def _curve(self) -> list[float]:
        return self._current().curve(self._options())

    def _current(self) -> Matrix:
        chosen = self.matrix.value
        key = (chosen, self.p.value) if chosen == "power" else chosen
        if key not in self._made:
            self._made[key] = Matrix(self._make(chosen))
        return self._made[key]

    def _make(self, chosen: str) -> Tensor:
        if chosen == "yours" and self._yours is not None:
            return self._yours
        if chosen == "gaussian":
            return gaussian(SIZE, SIZE, 0)
        if chosen == "power":
            return with_spectrum(torch.arange(1, SIZE + 1, dtype=torch.float32) ** -self.p.value)
        if chosen == "exact":
            return gaussian(SIZE, EXACT_RANK, 0) @ gaussian(EXACT_RANK, SIZE, 1)
        return read_embedded(chosen)

    def _changed(self) -> None:
        self._held = True  # one new figure, not one for each slider that is moved along
        try:
            self._fit()
        finally:
            self._held = False
        self._redraw()

    def _fit(self) -> None:
        """Keep the sliders within what the matrix has, and grey out what makes no difference."""
        current = self._current()
        self.rank.max = current.max_rank
        self.oversample.max = min(32, current.W.shape[0] - current.max_rank)
        self.oversample.disabled = self.core.value == "block"
        self.p.layout.visibility = "visible" if self.matrix.value == "power" else "hidden"


@dataclass
class Matrix:
    """A matrix with what is computed of it once."""

    W: Tensor
    max_rank: int = field(init=False)
    thumb: Tensor = field(init=False)
    scale: float = field(init=False)
    sigma: list[float] = field(init=False)
    best: list[float] = field(init=False)
    _curves: dict[Any, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.max_rank = max(1, min(MAX_RANK, 3 * min(self.W.shape) // 4))
        self.thumb = thumbnail(self.W)
        self.scale = float(self.thumb.abs().flatten().quantile(0.98)) or float(self.thumb.abs().max())
        self.sigma = singular_values(self.W).tolist()
        self.best = error_curve(self.W, self.max_rank, "svd").tolist()

    def curve(self, options: dict[str, Any]) -> list[float]:
        """The errors at ranks 1 … ``max_rank`` for these options of ``error_curve``."""
        key = tuple((k, v) for k, v in options.items() if k != "generator")
        if key not in self._curves:
            self._curves[key] = error_curve(self.W, self.max_rank, **options).tolist()
        return self._curves[key]


def gaussian(m: int, n: int, seed: int) -> Tensor:
    """Independent standard normal entries, (m, n) in float32, the same for the same seed."""
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def _choices(yours: bool) -> list[tuple[str, str]]:
    made = [("Gaussian", "gaussian"), ("σ ~ k^-p", "power"), (f"exact rank {EXACT_RANK}", "exact")]
    return [*([("yours", "yours")] if yours else []), *embedded_layers(), *made]


def embedded_layers() -> list[tuple[str, str]]:
    """The weight matrices of the embedded model's layers: what to call them, and their names."""
    found = sorted((w for w in weights("embedded") if w.place[0] >= 0), key=lambda w: w.place[0])
    return [(f"layer {w.place[0]} {w.place[1]}", w.name) for w in found]


def read_embedded(name: str) -> Tensor:
    """One of them, (out, in) in float32."""
    return check_matrix(next(w for w in weights("embedded") if w.name == name).read())


def one_matrix(W: Tensor) -> Tensor:
    """``W`` if it is one matrix that is not zero, else :class:`InputError`."""
    work = check_matrix(W)
    if work.ndim != 2 or not bool(work.any()):
        raise InputError(f"W must be one matrix that is not zero, not a tensor {tuple(work.shape)}")
    return work


def _condition(block: Tensor) -> float:
    s = torch.linalg.svdvals(block.double())
    return float(s[0] / s[-1]) if s[-1] > 0 else math.inf


def _told(error: float) -> str:
    """Below rounding, digits are noise, and differ from machine to machine."""
    return error_words(error) if error > 1e-5 else "0, to rounding"


def _told_condition(condition: float) -> str:
    return f"{condition:.1f}" if condition < 1e5 else "beyond 1e5: numerically singular"
