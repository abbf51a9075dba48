"""``SpectrumLab``: every layer of a model in one map. Choose a layer to see its singular values."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Any

import ipywidgets as widgets
import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.labs.figures import Figures
from nlora_lab.labs.panel import LABEL_STYLE, FigurePanel, format_error
from nlora_lab.lowrank.checks import check_matrix
from nlora_lab.lowrank.curves import error_curve
from nlora_lab.lowrank.svd import singular_values
from nlora_lab.models.names import EMBEDDED
from nlora_lab.models.weights import Weight, list_weights, places
from nlora_lab.plots.approximations import APPROXIMATIONS, line_of
from nlora_lab.plots.layer_maps import LayersDrawing
from nlora_lab.spectra.measures import marchenko_pastur_values

MAX_RANK = 64
TRAINED, FRESH = "these weights", "fresh weights"


class SpectrumLab(FigurePanel):
    """A map of relative errors, layer by module, at one rank.

    A blue cell is approximated better than by zero, a red one worse. Click on a cell, or set ``layer`` and ``module``,
    to see the singular values of its matrix beside those of noise, and its error at every rank. Every control is an
    attribute and can be set from Python. The map as numbers is ``errors``.

    "Fresh weights" are independent normal numbers of the same standard deviation. This is how transformers initialises
    a linear layer. None of the errors depends on the standard deviation.

    Args:
        model: a model, a safetensors file or folder, or a hub id. By default the embedded model. Weights outside the
            numbered layers are shown only if there are no numbered layers.
        figures: "plotly", "image", or "auto" to choose by where the notebook runs.

    Attributes:
        rank: the slider of the rank r.
        approximation: the menu of approximations, by the names in ``plots.approximations.APPROXIMATIONS``.
        shown: the buttons "these weights" and "fresh weights".
        layer: the menu of the layers.
        module: the menu of the modules of a layer.
        max_rank: the largest rank of the slider.

    Raises:
        InputError: the model has no weight matrix, it cannot be read, or a weight is not finite.
    """

    def __init__(self, model: Any | str | Path | None = None, *, figures: Figures = "auto") -> None:
        self._cells = _in_layers(list_weights(EMBEDDED if model is None else model))
        self._at = dict(zip(places(self._cells), self._cells, strict=True))
        self._layers = sorted({layer for layer, _ in self._at})
        self._modules = list(dict.fromkeys(module for _, module in self._at))
        self._curves: dict[tuple[str, str, str], list[float]] = {}
        self._spectra: dict[tuple[str, str], list[float]] = {}
        self.max_rank = min(MAX_RANK, max(min(w.shape) for w in self._cells))
        wide = widgets.Layout(width="360px")
        self.rank = widgets.IntSlider(
            min(8, self.max_rank), 1, self.max_rank, description="rank r", style=LABEL_STYLE, layout=wide
        )
        self.approximation = widgets.Dropdown(
            options=[(a.label, a.name) for a in APPROXIMATIONS.values()], description="approximation",
            style=LABEL_STYLE, layout=wide,
        )  # fmt: skip
        self.shown = widgets.ToggleButtons(options=[TRAINED, FRESH], style={"button_width": "120px"})
        self.layer = widgets.Dropdown(options=self._layers, description="layer", style=LABEL_STYLE)
        self.module = widgets.Dropdown(options=self._modules, description="module", style=LABEL_STYLE)
        self._controls = [[self.rank, self.approximation], [self.layer, self.module, self.shown]]
        self._open(figures)
        self._follow(self.rank, self.approximation, self.shown, self.layer, self.module)
        self._figure.on_click(self._clicked)

    # --- what is shown, from Python ---

    @property
    def errors(self) -> dict[tuple[int, str], float]:
        """The relative error by (layer, module) at the slider's rank. NaN where that rank is too high."""
        kind, shown, rank = self.approximation.value, self.shown.value, self.rank.value
        return {place: self._error(w, kind, shown, rank) for place, w in self._at.items()}

    def summary(self) -> str:
        """Return in one line how many matrices the approximation helps, and its error on the chosen one."""
        errors = [e for e in self.errors.values() if not math.isnan(e)]
        helped, middle = sum(e < 1 for e in errors), median(errors) if errors else math.nan
        chosen = self.errors.get((self.layer.value, self.module.value), math.nan)
        name = f"layer {self.layer.value} {self.module.value}"
        return (
            f"{APPROXIMATIONS[self.approximation.value].label}, rank {self.rank.value}, {self.shown.value}: "
            f"{helped} of {len(errors)} matrices are better off than with zero; median error {format_error(middle)}; "
            f"{name}: {format_error(chosen)}"
        )

    def drawing(self) -> LayersDrawing:
        """Return the figure that the controls select."""
        errors = self.errors
        table = [[errors.get((layer, module), math.nan) for layer in self._layers] for module in self._modules]
        chosen = (self._modules.index(self.module.value), self._layers.index(self.layer.value))
        heading = f"relative error at rank {self.rank.value}, {self.shown.value}"
        weight = self._at.get((self.layer.value, self.module.value))
        spectra, lines = {}, []
        if weight is not None:
            for shown in (TRAINED, FRESH):
                spectra[shown] = self._spectrum(weight, shown)
            spectra["noise, in theory"] = self._noise(weight)
            lines = [line_of(kind, self._curve(weight, kind, self.shown.value)) for kind in APPROXIMATIONS]
        return LayersDrawing(self._modules, self._layers, table, chosen, heading, spectra, lines, self.rank.value)

    # --- behind it ---

    def _error(self, weight: Weight, kind: str, shown: str, rank: int) -> float:
        curve = self._curve(weight, kind, shown)
        return curve[rank - 1] if rank <= len(curve) else math.nan

    def _curve(self, weight: Weight, kind: str, shown: str) -> list[float]:
        key = (weight.name, kind, shown)
        if key not in self._curves:
            W = self._read(weight, shown)
            top = min(self.max_rank, *weight.shape)
            options = dict(APPROXIMATIONS[kind].options)
            self._curves[key] = error_curve(W, top, **options).tolist() if bool(W.any()) else [math.nan] * top
        return self._curves[key]

    def _spectrum(self, weight: Weight, shown: str) -> list[float]:
        key = (weight.name, shown)
        if key not in self._spectra:
            self._spectra[key] = singular_values(self._read(weight, shown)).tolist()
        return self._spectra[key]

    def _noise(self, weight: Weight) -> list[float]:
        std = math.sqrt(sum(s * s for s in self._spectrum(weight, TRAINED)) / math.prod(weight.shape))
        return marchenko_pastur_values(*weight.shape, std).tolist() if std > 0 else []

    def _read(self, weight: Weight, shown: str) -> Tensor:
        check_choice("shown", shown, (TRAINED, FRESH))
        try:
            W = check_matrix(weight.read()).cpu()
        except InputError as error:
            raise InputError(f"{weight.name}: {error}") from error
        if shown == TRAINED:
            return W
        spread = float(torch.linalg.vector_norm(W)) / math.sqrt(W.numel())
        return spread * torch.randn(W.shape, generator=torch.Generator().manual_seed(self._cells.index(weight)))

    def _clicked(self, layer: str, module: str) -> None:
        with self._one_redraw():
            self.layer.value, self.module.value = int(layer), module


def _in_layers(listed: list[Weight]) -> list[Weight]:
    return [w for w in listed if w.place[0] >= 0] or listed
