"""``NystromLab`` approximates a matrix from its own rows and columns. It opens without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets as widgets
import traitlets

from nlora_lab.labs.figures import allow_custom_widgets
from nlora_lab.labs.panel import Control, LivePanel, format_error, one_of, within
from nlora_lab.lowrank.rules import CORES, PIVOTS
from nlora_lab.pages.matrices import FACTS, MatrixOpening, embedded_layers, shipped_matrix
from nlora_lab.pages.scripts import NYSTROM, json_number, module, style

if TYPE_CHECKING:
    from torch import Tensor

    from nlora_lab.lowrank.factors import LowRank
    from nlora_lab.pages.analysed_matrix import AnalysedMatrix
    from nlora_lab.plots.matrices import NystromDrawing

GENERATED = {"gaussian": "Gaussian", "power": "σ ~ k^-p", "exact": "exact rank 12"}
SETTINGS = ("matrix", "p", "rank", "pivots", "core", "tolerance", "oversample")


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
        self._analysed: dict[Any, AnalysedMatrix] = {}
        self._names = {value: label for label, value in embedded_layers()} | GENERATED
        self._opening = shipped_matrix() if W is None else None
        if W is not None:
            from nlora_lab.pages.analysed_matrix import AnalysedMatrix, check_one_matrix

            self._analysed["yours"] = AnalysedMatrix(check_one_matrix(W))
            self._names = {"yours": "yours", **self._names}
        allow_custom_widgets()
        choices = [[label, value] for value, label in self._names.items()]
        self.widget = w = NystromWidget(choices=choices, matrix=next(iter(self._names)))
        self._entry: dict[str, Any] = {}
        self._read_entry()
        self._panel = widgets.VBox([w])
        self.matrix = Control(w, "matrix", lambda v: one_of("matrix", v, self._names))
        self.p = Control(w, "p", lambda v: round(within("p", v, 0, 3), 1))
        self.rank = Control(w, "rank", lambda v: round(within("rank", v, 1, self._entry["max_rank"])))
        self.pivots = Control(w, "pivots", lambda v: one_of("pivots", v, PIVOTS))
        self.core = Control(w, "core", lambda v: one_of("core", v, CORES))
        self.tolerance = Control(w, "tolerance", lambda v: within("tolerance", v, 0, 0.99))
        self.oversample = Control(w, "oversample", lambda v: round(within("oversample", v, 0, self._most_extra())))
        self._change_matrix()
        for choice in (self.matrix, self.p):
            choice.observe(lambda _: self._change_matrix(), "value")
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
        return self._current().approximation(self.rank.value, self._options())

    @property
    def error(self) -> float:
        """The relative Frobenius error of the approximation."""
        return self._current().curve(self._options())[self.rank.value - 1]

    @property
    def best(self) -> float:
        """The relative error of the best approximation of this rank (Eckart and Young, 1936)."""
        return self._current().best[self.rank.value - 1]

    @property
    def condition(self) -> float:
        """The condition number of the block of W on the chosen rows and columns."""
        return self._current().condition(self.rank.value, self._options())

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
        return self._current().drawing(self.rank.value, self._options())

    def picture(self) -> bytes:
        """Return the figure as PNG bytes."""
        ready = self._as_opened()
        return ready.picture if ready else super().picture()

    def opening(self) -> MatrixOpening:
        """Return what the controls select now, in the form that ``shipped_matrix`` reads."""
        text = f"NystromLab: {self.summary()}"
        return MatrixOpening(self._settings(), self._current().entry(), text, self.drawing().png())

    def __repr__(self) -> str:
        ready = self._as_opened()
        return ready.text if ready else f"NystromLab: {self.summary()}"

    # --- behind it ---

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self.widget, name) for name in SETTINGS}

    def _as_opened(self) -> MatrixOpening | None:
        """What was made in advance, while the controls stand as they did then."""
        return self._opening if self._opening and self._opening.settings == self._settings() else None

    def _options(self) -> dict[str, Any]:
        return {
            "pivots": self.pivots.value,
            "core": self.core.value,
            "rtol": self.tolerance.value or None,
            "oversample": 0 if self.core.value == "block" else self.oversample.value,
        }

    def _current(self) -> AnalysedMatrix:
        key = self._key()
        if key not in self._analysed:
            from nlora_lab.pages.analysed_matrix import AnalysedMatrix, named_matrix  # imports torch

            self._analysed[key] = AnalysedMatrix(named_matrix(self.widget.matrix, self.widget.p))
        return self._analysed[key]

    def _key(self) -> str:
        """The name of the matrix in the page: with a slider for the exponent there is one per exponent."""
        w = self.widget
        return f"power:{w.p:.1f}" if w.matrix == "power" else w.matrix

    def _most_extra(self) -> int:
        return int(min(32, self._entry["m"] - self._entry["max_rank"]))

    def _read_entry(self) -> None:
        ready = self._as_opened()
        self._entry = ready.entry if ready else self._current().entry()

    def _change_matrix(self) -> None:
        """Send the chosen matrix, and keep the sliders within its size."""
        self._read_entry()
        self.rank.value = self.rank.value  # checked again: the new matrix may be smaller
        self.oversample.value = self.oversample.value
        self._send_computed()
        self.widget.entries = {self._key(): self._entry}

    def _send_computed(self) -> None:
        """Send what the page draws of a matrix that is too large to be computed there."""
        if "W" in self._entry:
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


def _error_text(error: float) -> str:
    """The error. Below rounding the digits are noise, which differs from machine to machine."""
    return format_error(error) if error > 1e-5 else "0, to rounding"


def _condition_text(condition: float) -> str:
    return f"{condition:.1f}" if condition < 1e5 else "beyond 1e5: numerically singular"
