"""``SvdLab``: a picture and a weight matrix, compressed by the same slider."""

from __future__ import annotations

import ipywidgets as widgets
from torch import Tensor

from nlora_lab.labs.figures import Figures
from nlora_lab.labs.nystrom import Matrix, embedded_layers, gaussian, one_matrix, read_embedded
from nlora_lab.labs.panel import WORDS, FigurePanel, error_words
from nlora_lab.lowrank.matrices import landscape
from nlora_lab.lowrank.svd import truncated_svd
from nlora_lab.plots.approximations import APPROXIMATIONS, ErrorLine
from nlora_lab.plots.matrices import NystromDrawing, thumbnail

PICTURE = "a picture"


class SvdLab(FigurePanel):
    """A matrix and its best approximation of the slider's rank, with the error at every rank.

    ``matrix`` chooses between a picture, the embedded model's layers and Gaussian noise, ``rank`` is the slider;
    both can be set from Python. :attr:`error` is what is shown, :attr:`kept` the share of the numbers.

    Args:
        W: a matrix of your own, (m, n); the first choice of ``matrix`` is then "yours".
        figures: "plotly", "image", or "auto" to choose by where the notebook runs.
    """

    def __init__(self, W: Tensor | None = None, *, figures: Figures = "auto") -> None:
        self._yours = None if W is None else one_matrix(W)
        self._made: dict[str, Matrix] = {}
        self._picture = Matrix(landscape())
        own = [] if W is None else [("yours", "yours")]
        choices = [*own, (PICTURE, "picture"), *embedded_layers(), ("Gaussian noise", "gaussian")]
        wide = widgets.Layout(width="360px")
        self.matrix = widgets.Dropdown(options=choices, description="matrix", style=WORDS, layout=wide)
        self.rank = widgets.IntSlider(8, 1, self._current().max_rank, description="rank r", style=WORDS, layout=wide)
        self._controls = [[self.matrix, self.rank]]
        self._open(figures)
        self.matrix.observe(lambda _: self._changed(), "value")
        self._follow(self.rank)

    @property
    def W(self) -> Tensor:
        """The matrix chosen, (m, n)."""
        return self._current().W

    @property
    def error(self) -> float:
        """The relative Frobenius error of the best approximation of this rank."""
        return self._current().best[self.rank.value - 1]

    @property
    def kept(self) -> float:
        """The factors' numbers r (m + n) as a share of the matrix's m n; above 1 nothing is saved."""
        m, n = self.W.shape
        return self.rank.value * (m + n) / (m * n)

    def told(self) -> str:
        """Matrix, rank, share of numbers and error."""
        m, n = self.W.shape
        return (
            f"{self.matrix.label} ({m} × {n}), rank {self.rank.value}: {self.kept:.1%} of the numbers, "
            f"error {error_words(self.error)}"
        )

    def drawing(self) -> NystromDrawing:
        """The figure's data as the controls say now."""
        current, rank, picture = self._current(), self.rank.value, self.matrix.value == "picture"
        m, n = current.W.shape
        f = truncated_svd(current.W, rank)
        heats = thumbnail(current.W, 128), thumbnail(f.product(), 128), thumbnail(f.residual(current.W), 128)
        best = APPROXIMATIONS["svd"]
        lines = [ErrorLine("best possible", "#0072b2", "solid", current.best, 3.0)]
        if not picture:
            lines.insert(0, ErrorLine("the picture's", best.colour, "dash", self._picture.best, 1.5))
        return NystromDrawing(heats, current.scale, lines, current.sigma, rank, (m, n), self.error, grey=picture)

    def _current(self) -> Matrix:
        chosen = self.matrix.value
        if chosen == "picture":
            return self._picture
        if chosen not in self._made:
            if chosen == "yours" and self._yours is not None:
                W = self._yours
            else:
                W = gaussian(128, 128, 0) if chosen == "gaussian" else read_embedded(chosen)
            self._made[chosen] = Matrix(W)
        return self._made[chosen]

    def _changed(self) -> None:
        self._held = True
        try:
            self.rank.max = self._current().max_rank
        finally:
            self._held = False
        self._redraw()
