"""``SvdLab`` compresses a picture and a weight matrix; ``EliminationLab`` shows an elimination in single steps."""

from __future__ import annotations

import ipywidgets as widgets
from torch import Tensor

from nlora_lab.labs.figures import Figures
from nlora_lab.labs.panel import LABEL_STYLE, FigurePanel, format_error
from nlora_lab.lowrank.matrices import landscape
from nlora_lab.lowrank.pivots import Pivots
from nlora_lab.lowrank.svd import truncated_svd
from nlora_lab.pages.analysed_matrix import AnalysedMatrix, check_one_matrix, named_matrix
from nlora_lab.pages.matrices import embedded_layers
from nlora_lab.plots.approximations import APPROXIMATIONS, ErrorLine
from nlora_lab.plots.drawings import Picture
from nlora_lab.plots.matrices import NystromDrawing, elimination, elimination_step, elimination_steps, thumbnail

PICTURE = "a picture"


class SvdLab(FigurePanel):
    """A matrix and its best approximation of a rank (Eckart and Young, 1936), with the error at every rank.

    Every control is an attribute and can be set from Python. What is shown is ``error`` and ``kept``.

    Args:
        W: a matrix of your own, (m, n). It is then the first choice of ``matrix``, "yours".
        figures: "plotly", "image", or "auto" to choose by where the notebook runs.

    Attributes:
        matrix: the menu of the matrices: a picture, the layers of the embedded model, and Gaussian noise.
        rank: the slider of the rank r.

    Raises:
        InputError: W is not one finite matrix, or it is zero.
    """

    def __init__(self, W: Tensor | None = None, *, figures: Figures = "auto") -> None:
        self._custom = None if W is None else check_one_matrix(W)
        self._analysed: dict[str, AnalysedMatrix] = {}
        self._picture = AnalysedMatrix(landscape())
        first = [] if W is None else [("yours", "yours")]
        choices = [*first, (PICTURE, "picture"), *embedded_layers(), ("Gaussian noise", "gaussian")]
        wide = widgets.Layout(width="360px")
        self.matrix = widgets.Dropdown(options=choices, description="matrix", style=LABEL_STYLE, layout=wide)
        self.rank = widgets.IntSlider(
            8, 1, self._current().max_rank, description="rank r", style=LABEL_STYLE, layout=wide
        )
        self._controls = [[self.matrix, self.rank]]
        self._open(figures)
        self.matrix.observe(lambda _: self._matrix_changed(), "value")
        self._follow(self.rank)

    @property
    def W(self) -> Tensor:
        """The chosen matrix, (m, n), in float32 or better."""
        return self._current().W

    @property
    def error(self) -> float:
        """The relative Frobenius error of the best approximation of this rank."""
        return self._current().best[self.rank.value - 1]

    @property
    def kept(self) -> float:
        """The r (m + n) numbers of the factors as a share of the matrix's m n. Above 1 they save nothing."""
        m, n = self.W.shape
        return self.rank.value * (m + n) / (m * n)

    def summary(self) -> str:
        """Return matrix, rank, share of the numbers and error in one line."""
        m, n = self.W.shape
        return (
            f"{self.matrix.label} ({m} × {n}), rank {self.rank.value}: {self.kept:.1%} of the numbers, "
            f"error {format_error(self.error)}"
        )

    def drawing(self) -> NystromDrawing:
        """Return the figure that the controls select."""
        current, rank, picture = self._current(), self.rank.value, self.matrix.value == "picture"
        m, n = current.W.shape
        f = truncated_svd(current.W, rank)
        images = thumbnail(current.W, 128), thumbnail(f.product(), 128), thumbnail(f.residual(current.W), 128)
        best = APPROXIMATIONS["svd"]
        lines = [ErrorLine("best possible", "#0072b2", "solid", current.best, 3.0)]
        if not picture:
            lines.insert(0, ErrorLine("the picture's", best.colour, "dash", self._picture.best, 1.5))
        return NystromDrawing(images, current.scale, lines, current.sigma, rank, (m, n), self.error, grey=picture)

    def _current(self) -> AnalysedMatrix:
        choice = self.matrix.value
        if choice == "picture":
            return self._picture
        if choice not in self._analysed:
            custom = self._custom if choice == "yours" else None
            self._analysed[choice] = AnalysedMatrix(named_matrix(choice) if custom is None else custom)
        return self._analysed[choice]

    def _matrix_changed(self) -> None:
        with self._one_redraw():
            self.rank.max = self._current().max_rank


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
