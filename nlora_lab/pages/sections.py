"""The labs as sections of a page: the recorded runs, Nyström approximations, and the map of a model's layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nlora_lab.lowrank.curves import error_curve
from nlora_lab.lowrank.rules import PIVOTS
from nlora_lab.lowrank.slora_init import CORE_INITS
from nlora_lab.models.names import EMBEDDED
from nlora_lab.models.weights import list_weights, places
from nlora_lab.pages.analysed_matrix import AnalysedMatrix, named_matrix
from nlora_lab.pages.matrices import FACTS
from nlora_lab.pages.page import Lab, write_page
from nlora_lab.pages.recorded import recorded_data
from nlora_lab.pages.scripts import FINE_TUNING, NYSTROM, SPECTRUM
from nlora_lab.plots.approximations import APPROXIMATIONS
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.shipped import STEPS, recorded_runs
from nlora_lab.tasks.generated import TASKS

TITLE = "nlora_lab: low-rank fine-tuning in a page"
SHOWN = ("self_attn.q_proj", "self_attn.v_proj")  # of every layer: a page of all matrices would take megabytes
MAP_RANKS = 64
FINE_TUNING_TEXT = (
    "Every point is a run that was recorded. Move the learning rate, or drag in a figure that has it below. Curves "
    "show the median over seeds, and bands and whiskers the range."
)
NYSTROM_TEXT = "A matrix approximated by a few of its rows and columns. This page computes every approximation itself."
MAP_TEXT = (
    "The relative error of an approximation in every layer of the embedded model. Choose a cell to see all ranks."
)


def write_labs(path: str | Path) -> Path:
    """Write the page of the three labs: recorded runs, Nyström approximations, and the map of the embedded model.

    Args:
        path: the HTML file.

    Returns:
        The file, below 1.5 MB.

    Raises:
        InputError: the file cannot be written.
    """
    return write_page(path, TITLE, [fine_tuning_lab(recorded_runs()), nystrom_lab(), spectrum_map()])


def write_lab(path: str | Path, recordings: RecordedRuns, settings: Mapping[str, Any] | None = None) -> Path:
    """Write the page of the fine-tuning lab alone.

    Args:
        path: the HTML file.
        recordings: the recorded runs.
        settings: as for ``fine_tuning_lab``.

    Returns:
        The file.

    Raises:
        InputError: the file cannot be written.
    """
    return write_page(path, TITLE, [fine_tuning_lab(recordings, settings)])


def fine_tuning_lab(recordings: RecordedRuns, settings: Mapping[str, Any] | None = None) -> Lab:
    """Return the fine-tuning lab on recorded runs.

    Args:
        recordings: the recorded runs.
        settings: values of the lab's controls, by their names in the page. The others have their defaults.

    Returns:
        The section of a page.
    """
    data, curves = recorded_data(recordings)
    state = {
        "kernel": False, "recorded": data, "curves": curves, "methods": ["lora", "slora", "nlora"], "lr": SHARED_RATE,
        "own_rates": False, "rank": 8, "init": CORE_INITS[0], "steps": STEPS, "task": next(iter(TASKS)), "seed": 0,
        "measure": "accuracy", "live": [], "running": False, "progress": [0, 1], "status": [],
    }  # fmt: skip
    return Lab("Fine-tuning: recorded runs", FINE_TUNING_TEXT, FINE_TUNING, {**state, **(settings or {})})


def nystrom_lab() -> Lab:
    """Return the Nyström lab on matrices of the embedded model, Gaussian noise and a decaying spectrum."""
    generated = {
        "Gaussian": named_matrix("gaussian"),
        "σ ~ 1/k": named_matrix("power"),
    }
    matrices = {**dict(_embedded_matrices()), **generated}
    state = {
        "facts": FACTS, "choices": [[name, name] for name in matrices], "computed": {},
        "entries": {name: AnalysedMatrix(W).entry() for name, W in matrices.items()}, "matrix": next(iter(matrices)),
        "p": 1.0, "rank": 8, "pivots": PIVOTS[0], "core": "pinv", "tolerance": 0.0, "oversample": 0,
    }  # fmt: skip
    return Lab("Nyström approximations", NYSTROM_TEXT, NYSTROM, state)


def spectrum_map() -> Lab:
    """Return the map of the embedded model: the errors of all approximations, to four digits, at ranks 1 to 64."""
    weights = [w for w in list_weights(EMBEDDED) if w.place[0] >= 0]
    at = dict(zip(places(weights), weights, strict=True))
    layers, modules = sorted({layer for layer, _ in at}), list(dict.fromkeys(module for _, module in at))
    errors = [[_errors(at[layer, module].read()) for layer in layers] for module in modules]
    looks = [{"label": a.label, "short": a.short, "colour": a.colour, "dash": a.dash} for a in APPROXIMATIONS.values()]
    data = {"layers": layers, "modules": modules, "approximations": looks, "errors": errors}
    state = {"map": data, "rank": 8, "approximation": 0, "chosen": [0, 0]}
    return Lab("Every layer of a model", MAP_TEXT, SPECTRUM, state)


def _embedded_matrices() -> Iterable[tuple[str, Tensor]]:
    for weight in list_weights(EMBEDDED):
        layer, module = weight.place
        if layer >= 0 and module in SHOWN:
            yield f"layer {layer} {module}", weight.read().float()


def _errors(W: Tensor) -> list[list[float]]:
    """The errors of one matrix: a list per approximation, with an entry per rank."""
    curves = (error_curve(W.float(), MAP_RANKS, **a.options) for a in APPROXIMATIONS.values())
    return [[float(f"{e:.4g}") for e in curve.tolist()] for curve in curves]
