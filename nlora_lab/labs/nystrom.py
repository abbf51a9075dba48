"""``NystromLab`` approximates a matrix from its own rows and columns; ``EliminationLab`` shows how, in single steps."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import anywidget
import ipywidgets as widgets
import torch
import traitlets
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.labs.figures import Figures, allow_custom_widgets
from nlora_lab.labs.panel import LABEL_STYLE, Control, FigurePanel, LivePanel, format_error, one_of, within
from nlora_lab.lowrank.checks import IllConditionedWarning, check_matrix
from nlora_lab.lowrank.cross import CORES, nystrom
from nlora_lab.lowrank.curves import error_curve
from nlora_lab.lowrank.factors import LowRank
from nlora_lab.lowrank.matrices import with_spectrum
from nlora_lab.lowrank.pivots import PIVOTS, Pivots
from nlora_lab.lowrank.svd import singular_values
from nlora_lab.models.names import EMBEDDED
from nlora_lab.models.weights import list_weights
from nlora_lab.pages.matrices import FACTS, PAGE_ENTRIES, entry_of
from nlora_lab.pages.recorded import json_number
from nlora_lab.pages.scripts import NYSTROM, module, style
from nlora_lab.plots.approximations import APPROXIMATIONS, ErrorLine, line_of
from nlora_lab.plots.drawings import Picture
from nlora_lab.plots.matrices import (
    NystromDrawing,
    elimination,
    elimination_step,
    elimination_steps,
    thumbnail,
)
from nlora_lab.spectra.measures import block_condition

MAX_RANK = 96
SIZE = 128  # rows and columns of the generated matrices
EXACT_RANK = 12


class NystromWidget(anywidget.AnyWidget):
    """The lab in the page. It computes the approximations of a matrix that is not too large by itself."""

    _esm = module(NYSTROM)
    _css = style()

    facts = traitlets.Dict(FACTS).tag(sync=True)
    choices: traitlets.List[Any] = traitlets.List().tag(sync=True)
    entries = traitlets.Dict().tag(sync=True)
    computed = traitlets.Dict().tag(sync=True)
    matrix = traitlets.Unicode().tag(sync=True)
    p = traitlets.Float(1.0).tag(sync=True)
    rank = traitlets.Int(8).tag(sync=True)
    pivots = traitlets.Unicode(PIVOTS[0]).tag(sync=True)
    core = traitlets.Unicode(CORES[0]).tag(sync=True)
    tolerance = traitlets.Float(0.0).tag(sync=True)
    oversample = traitlets.Int(0).tag(sync=True)


class NystromLab(LivePanel):
    """A matrix, its cross (Nyström) approximation and the residual, with the error at every rank.

    Every control is an attribute and can be set from Python. What is shown is ``approximation``, ``error``, ``best``
    and ``condition``. The formulas are those of ``nl.nystrom``. The page computes in double precision. A matrix of
    more than 49,152 entries is computed in the kernel.

    Args:
        W: a matrix of your own, (m, n). It is then the first choice of ``matrix``, "yours".

    Attributes:
        matrix: the menu of the matrices: the layers of the embedded model, Gaussian noise, singular values
            σ_k = k^-p, and a matrix of exact rank.
        p: the slider of that exponent.
        rank: the slider of the rank r.
        pivots: the menu of ways to choose rows and columns.
        core: the menu of cores.
        tolerance: the menu of ``rtol``, the relative tolerance of the pseudo-inverse. 0 means the default.
        oversample: the slider of the number of extra rows. The core "block" takes none.
        widget: the lab as one anywidget, for notebooks that show no ipywidgets, such as marimo.

    Raises:
        InputError: W is not one finite matrix, or it is zero.
    """

    def __init__(self, W: Tensor | None = None) -> None:
        self._custom = None if W is None else check_one_matrix(W)
        self._analysed: dict[Any, AnalysedMatrix] = {}
        self._shown: tuple[Any, LowRank] | None = None
        self._names = {value: label for label, value in _choices(self._custom is not None)}
        allow_custom_widgets()
        choices = [[label, value] for value, label in self._names.items()]
        self.widget = w = NystromWidget(choices=choices, matrix=next(iter(self._names)))
        self._panel = widgets.VBox([w])
        self.matrix = Control(w, "matrix", lambda v: one_of("matrix", v, self._names))
        self.p = Control(w, "p", lambda v: round(within("p", v, 0, 3), 1))
        self.rank = Control(w, "rank", lambda v: round(within("rank", v, 1, self._current().max_rank)))
        self.pivots = Control(w, "pivots", lambda v: one_of("pivots", v, PIVOTS))
        self.core = Control(w, "core", lambda v: one_of("core", v, CORES))
        self.tolerance = Control(w, "tolerance", lambda v: within("tolerance", v, 0, 0.99))
        self.oversample = Control(w, "oversample", lambda v: round(within("oversample", v, 0, self._most_extra())))
        self._send_matrix()
        for choice in (self.matrix, self.p):
            choice.observe(lambda _: self._send_matrix(), "value")
        for control in (self.rank, self.pivots, self.core, self.tolerance, self.oversample):
            control.observe(lambda _: self._send_computed(), "value")

    # --- what is shown, from Python ---

    @property
    def W(self) -> Tensor:
        """The chosen matrix, (m, n), in float32 or better."""
        return self._current().W

    @property
    def approximation(self) -> LowRank:
        """The approximation that is shown."""
        options = self._options()
        key = (self.matrix.value, self.p.value, self.rank.value, *(v for k, v in options.items() if k != "generator"))
        if self._shown is None or self._shown[0] != key:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", IllConditionedWarning)  # the line below the controls shows it
                self._shown = key, nystrom(self.W, self.rank.value, **options)
        return self._shown[1]

    @property
    def error(self) -> float:
        """The relative Frobenius error of the approximation."""
        return self._curve()[self.rank.value - 1]

    @property
    def best(self) -> float:
        """The relative error of the best approximation of this rank (Eckart and Young, 1936)."""
        return self._current().best[self.rank.value - 1]

    @property
    def condition(self) -> float:
        """The condition number of the block of W on the chosen rows and columns."""
        f = self.approximation
        block = self.W[f.rows][:, f.cols]
        return block_condition(block, self.rank.value) if block.shape[0] == block.shape[1] else _condition(block)

    def summary(self) -> str:
        """Return matrix, rank, error, best possible error and condition number in one line."""
        m, n = self.W.shape
        worse = ", worse than approximating W by zero" if self.error > 1 else ""
        choice = f"{self.pivots.value}, {self.core.value}"
        extra = f", {self.oversample.value} extra rows" if self._options()["oversample"] else ""
        return (
            f"{self._names[self.matrix.value]} ({m} × {n}), rank {self.rank.value}, {choice}{extra}: "
            f"error {_error_text(self.error)}{worse}; best possible {_error_text(self.best)}; "
            f"condition number of the block {_condition_text(self.condition)}"
        )

    def drawing(self) -> NystromDrawing:
        """Return the figure that the controls select."""
        current, f = self._current(), self.approximation
        m, n = current.W.shape
        residual = f.residual(current.W)
        images = (current.thumb, thumbnail(current.W - residual), thumbnail(residual))
        return NystromDrawing(images, current.scale, self._lines(), current.sigma, self.rank.value, (m, n), self.error)

    def __repr__(self) -> str:
        return f"NystromLab: {self.summary()}"

    # --- behind it ---

    def _lines(self) -> list[ErrorLine]:
        current, approximation = self._current(), APPROXIMATIONS["nystrom"]
        label = f"{self.pivots.value}, {self.core.value}"
        lines = [line_of("svd", current.best, 1.5)]
        if self.core.value != "optimal":
            lines.append(line_of("optimal", current.curve({**self._options(), "core": "optimal"}), 1.5))
        return [*lines, ErrorLine(label, approximation.colour, "solid", self._curve(), 3.0)]

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

    def _current(self) -> AnalysedMatrix:
        choice = self.matrix.value
        key = (choice, self.p.value) if choice == "power" else choice
        if key not in self._analysed:
            self._analysed[key] = AnalysedMatrix(self._matrix(choice))
        return self._analysed[key]

    def _matrix(self, choice: str) -> Tensor:
        if choice == "yours" and self._custom is not None:
            return self._custom
        if choice == "gaussian":
            return gaussian(SIZE, SIZE, 0)
        if choice == "power":
            return with_spectrum(torch.arange(1, SIZE + 1, dtype=torch.float32) ** -self.p.value)
        if choice == "exact":
            return gaussian(SIZE, EXACT_RANK, 0) @ gaussian(EXACT_RANK, SIZE, 1)
        return read_embedded(choice)

    def _key(self) -> str:
        """The name of the matrix in the page: with a slider for the exponent there is one per exponent."""
        return f"power:{self.p.value:.1f}" if self.matrix.value == "power" else self.matrix.value

    def _most_extra(self) -> int:
        return min(32, self.W.shape[0] - self._current().max_rank)

    def _send_matrix(self) -> None:
        """Send the chosen matrix, and keep the sliders within its size."""
        current = self._current()
        in_page = current.W.numel() <= PAGE_ENTRIES
        entry = entry_of(current.W, current.max_rank, current.sigma, current.best, with_numbers=in_page)
        self.rank.value = self.rank.value  # checked again: the new matrix may be smaller
        self.oversample.value = self.oversample.value
        self._send_computed()
        self.widget.entries = {self._key(): entry}

    def _send_computed(self) -> None:
        """Send what the page draws of a matrix that is too large to be computed there."""
        if self.W.numel() <= PAGE_ENTRIES:
            return
        drawing = self.drawing()
        lines = [
            {
                "label": x.label,
                "colour": x.colour,
                "dash": x.dash,
                "width": x.width,
                "errors": [*map(json_number, x.errors)],
            }
            for x in drawing.lines
        ]
        (m, n), condition = drawing.shape, json_number(self.condition)
        images = [{"m": t.shape[0], "n": t.shape[1], "W": t.float().numpy().tobytes()} for t in drawing.matrices]
        self.widget.computed = {
            "key": self._key(), "m": m, "n": n, "images": images, "top": drawing.scale, "lines": lines,
            "sigma": drawing.sigma, "error": self.error, "condition": condition,
        }  # fmt: skip


class EliminationLab(FigurePanel):
    """An elimination of a small matrix: one step at a time, with a slider and a button that plays all steps.

    Nothing moves until you press the button. A page without a kernel shows all steps side by side.

    Args:
        W: the matrix, at most 12 × 12.
        steps: how many steps, from 1 to 4 and to min(m, n).
        pivots: the order of the pivots, as for ``nl.nystrom``.
        figures: "plotly", "image", or "auto" to choose by where the notebook runs.

    Attributes:
        step: the slider of the step.
        play: the button that moves the slider from the first step to the last.

    Raises:
        InputError: the matrix is zero or too large, an option is out of range, or a pivot is zero.
    """

    def __init__(self, W: Tensor, steps: int = 3, *, pivots: Pivots = "leading", figures: Figures = "auto") -> None:
        self._all = elimination(W, steps, pivots=pivots)
        self._steps = elimination_steps(W, steps, pivots)
        self.step = widgets.IntSlider(1, 1, steps, description="step", style=LABEL_STYLE)
        self.play = widgets.Play(value=1, min=1, max=steps, interval=2000, show_repeat=False)
        widgets.jslink((self.play, "value"), (self.step, "value"))
        self._controls = [[self.play, self.step]]
        self._open(figures)
        self._follow(self.step)

    def summary(self) -> str:
        """Return the pivot of the step and, as an example, the entry that the step changes most."""
        now = self._steps[self.step.value - 1]
        (i, j), S = now.pivot, now.before
        rest = now.subtracted.abs()
        rest[i], rest[:, j] = 0, 0
        k, q = divmod(int(rest.argmax()), S.shape[1])
        numbers = S[k, q], S[k, j], S[i, q], S[i, j], now.after[k, q]
        a, b, c, p, left = (f"{float(v):.3g}".replace("-", "−") for v in numbers)
        return (
            f"step {self.step.value} of {len(self._steps)}: the pivot is {p}, in row {i + 1} and column {j + 1}. "
            f"Row {k + 1}, column {q + 1} changes most: {a} − ({b}) · ({c}) / ({p}) = {left}"
        )

    def drawing(self) -> Picture:
        """Return the figure that the controls select."""
        return elimination_step(self._steps, self.step.value)

    def picture(self) -> bytes:
        """Return all steps as PNG bytes."""
        return self._all.png()


@dataclass
class AnalysedMatrix:
    """A matrix, with the results that are computed once.

    Attributes:
        W: the matrix, (m, n).
        max_rank: the largest rank of the slider.
        thumb: the matrix as a small image.
        scale: the size of an entry that an image shows in full colour.
        sigma: the singular values.
        best: the relative errors of the best approximations of rank 1 to ``max_rank``.
    """

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
        """Return the relative errors at rank 1 to ``max_rank``, with these options of ``error_curve``."""
        key = tuple((k, v) for k, v in options.items() if k != "generator")
        if key not in self._curves:
            self._curves[key] = error_curve(self.W, self.max_rank, **options).tolist()
        return self._curves[key]


def gaussian(m: int, n: int, seed: int) -> Tensor:
    """Draw independent standard normal entries, (m, n) in float32, from a seed."""
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def _choices(custom: bool) -> list[tuple[str, str]]:
    generated = [("Gaussian", "gaussian"), ("σ ~ k^-p", "power"), (f"exact rank {EXACT_RANK}", "exact")]
    return [*([("yours", "yours")] if custom else []), *embedded_layers(), *generated]


def embedded_layers() -> list[tuple[str, str]]:
    """Return a label and the name of every weight matrix in the layers of the embedded model."""
    in_layers = sorted((w for w in list_weights(EMBEDDED) if w.place[0] >= 0), key=lambda w: w.place[0])
    return [(f"layer {w.place[0]} {w.place[1]}", w.name) for w in in_layers]


def read_embedded(name: str) -> Tensor:
    """Read a weight matrix of the embedded model by its name, (out, in) in float32."""
    return check_matrix(next(w for w in list_weights(EMBEDDED) if w.name == name).read())


def check_one_matrix(W: Tensor) -> Tensor:
    """Return ``W`` in float32 or better, or raise ``InputError`` unless it is one matrix that is not zero."""
    work = check_matrix(W)
    if work.ndim != 2:
        raise InputError(f"W of shape {tuple(work.shape)} must be one matrix, with rows and columns")
    if not bool(work.any()):
        raise InputError("W must not be zero: a relative error needs something to compare with")
    return work


def _condition(block: Tensor) -> float:
    s = torch.linalg.svdvals(block.double())
    return float(s[0] / s[-1]) if s[-1] > 0 else math.inf


def _error_text(error: float) -> str:
    """The error. Below rounding the digits are noise, which differs from machine to machine."""
    return format_error(error) if error > 1e-5 else "0, to rounding"


def _condition_text(condition: float) -> str:
    return f"{condition:.1f}" if condition < 1e5 else "beyond 1e5: numerically singular"
