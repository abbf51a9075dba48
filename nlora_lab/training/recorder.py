"""What happens inside the adapters while they train: singular values, norms, gradients, distance, intruders.

:class:`InsideRecorder` is a ``watch`` of :func:`nlora_lab.fine_tune`. What each number means, and what to look
for, is in docs/inside.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlora_lab.lowrank.checks import check_count
from nlora_lab.training.layer_views import LayerView, ObservedModel

if TYPE_CHECKING:
    import pandas as pd

ALL_LAYERS = "all layers"
EXAMINED = 10  # leading singular vectors that may be intruders
ALIKE = 0.5  # a vector this close to one of W's is no intruder
LARGEST = 1024  # smaller side of a matrix up to which intruders are counted unasked: it costs two SVDs


@dataclass(frozen=True)
class LayerState:
    """One adapted layer at one moment.

    ``sigma``: the first singular values of the change of its weight W (m, n), largest first, zeros beyond its rank.
    ``size``: ‖W‖. ``distance``: ‖change‖ / ‖W‖. ``norms`` and ``gradients``: of each factor that trains ("A", "N",
    "B", "m", "W") and of its gradient, where there was one. All norms are Frobenius norms. ``intruders``: see
    :func:`count_intruders`; ``None`` where they were not counted. A weight that is no longer finite gives NaN.
    """

    layer: str
    sigma: tuple[float, ...]
    size: float
    distance: float
    norms: Mapping[str, float]
    gradients: Mapping[str, float]
    intruders: int | None = None

    def quantities(self) -> dict[str, float]:
        """Every number by the name it has in a table: ``sigma_1``, ``norm A``, ``gradient B``, ``distance``, …"""
        found = {f"sigma_{k}": value for k, value in enumerate(self.sigma, start=1)}
        found |= {f"norm {factor}": value for factor, value in self.norms.items()}
        found |= {f"gradient {factor}": value for factor, value in self.gradients.items()}
        found["distance"] = self.distance
        if self.intruders is not None:
            found["intruders"] = self.intruders
        return found


@dataclass(frozen=True)
class Snapshot:
    """All adapted layers after ``step`` updates, in the model's order."""

    step: int
    layers: tuple[LayerState, ...]

    def of(self, layer: str | None) -> LayerState | None:
        """The layer of this name; ``None`` asks for all layers as one (:meth:`together`)."""
        if layer is None:
            return self.together()
        return next((state for state in self.layers if state.layer == layer), None)

    def together(self) -> LayerState | None:
        """All layers as one: root mean squares over the layers, on the scale of one layer, led by the largest.

        ``distance`` is then ‖all changes‖ / ‖all weights‖; ``intruders`` are summed. ``None`` without layers.
        """
        return self._together

    @cached_property
    def _together(self) -> LayerState | None:
        if not self.layers:
            return None
        counted = [s.intruders for s in self.layers if s.intruders is not None]
        size = _rms(s.size for s in self.layers)
        moved = _rms(s.distance * s.size for s in self.layers)
        return LayerState(
            ALL_LAYERS,
            tuple(_rms(values) for values in zip(*(s.sigma for s in self.layers), strict=True)),
            size,
            moved / size if size else 0.0,
            _over_layers([s.norms for s in self.layers]),
            _over_layers([s.gradients for s in self.layers]),
            sum(counted) if counted else None,
        )


@dataclass
class InsideRecorder:
    """Looks inside a run: ``fine_tune(cfg, watch=InsideRecorder())``.

    Takes a :class:`Snapshot` before the first update, every ``every`` updates and at the end. It holds the last run
    that it watched, and may be read from another thread while it grows. What goes wrong while looking ends the
    recording, not the run: ``failed`` then says why, and the snapshots up to there stay.

    Args:
        every: updates between two snapshots.
        top: how many singular values of each change to keep.
        intruder_limit: smaller side of a matrix up to which its intruders are counted, at the end of the run;
            0 counts none, ``None`` counts in every layer.
        bases: the left singular vectors of the weights by layer, as they are found: give the recorders of one race
            the same dict, and each weight is decomposed once. By default a recorder keeps none.
    """

    every: int = 10
    top: int = 4
    intruder_limit: int | None = LARGEST
    bases: dict[str, Tensor] | None = field(default=None, repr=False)
    seconds: float = field(default=0.0, init=False)  # spent here so far, of the run's time
    failed: str = field(default="", init=False)

    def __post_init__(self) -> None:
        check_count("every", self.every, 1, 10**9)
        check_count("top", self.top, 1, 10**4)
        if self.intruder_limit is not None:
            check_count("intruder_limit", self.intruder_limit, 0, 10**9)
        self._taken: list[Snapshot] = []
        self._sizes: dict[str, float] = {}  # ‖W‖ never changes

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """Those taken so far, in order."""
        return tuple(self._taken)

    @torch.no_grad()
    def __call__(self, updates: int, subject: ObservedModel) -> None:
        """Look at ``subject`` after ``updates`` updates, if it is time to."""
        if updates == 0:  # another run
            self._taken, self._sizes, self.seconds, self.failed = [], {}, 0.0, ""
        if self.failed or (updates % self.every and not subject.ended):
            return
        started = time.perf_counter()
        try:
            states = tuple(self._state(view, subject.ended) for view in subject.layers())
            if states:
                self._taken.append(Snapshot(updates, states))
        except Exception as error:  # a decomposition that does not converge, no memory for it: the run matters more
            self.failed = f"after {updates} updates: {type(error).__name__}: {error}"
        self.seconds += time.perf_counter() - started

    def table(self) -> pd.DataFrame:
        """One row a number: step, layer, quantity (see :meth:`LayerState.quantities`), value."""
        import pandas as pd

        rows = [
            (shot.step, state.layer, quantity, float(value))
            for shot in self.snapshots
            for state in shot.layers
            for quantity, value in state.quantities().items()
        ]
        return pd.DataFrame(rows, columns=["step", "layer", "quantity", "value"])

    def summary(self) -> pd.DataFrame:
        """One row a snapshot: step, and the quantities of all layers together (see :meth:`Snapshot.together`)."""
        import pandas as pd

        together = [(shot.step, shot.together()) for shot in self.snapshots]
        return pd.DataFrame([{"step": step, **state.quantities()} for step, state in together if state is not None])

    def _state(self, view: LayerView, ended: bool) -> LayerState:
        change, W = view.change, view.weight
        if view.name not in self._sizes:
            self._sizes[view.name] = _norm(W)
        sigma, moved = change.leading(self.top)
        size = self._sizes[view.name]
        counted = ended and (self.intruder_limit is None or min(W.shape) <= self.intruder_limit)
        dense = change.dense() if counted else None
        countable = dense is not None and bool(torch.isfinite(dense).all())
        return LayerState(
            view.name,
            tuple(sigma),
            size,
            moved / size if size else math.nan if moved else 0.0,
            {factor: _norm(value) for factor, value in view.factors.items()},
            {factor: _norm(value) for factor, value in view.gradients.items()},
            count_intruders(W, dense, before=self._base(view)) if dense is not None and countable else None,
        )

    def _base(self, view: LayerView) -> Tensor | None:
        if self.bases is None:
            return None
        if view.name not in self.bases:
            self.bases[view.name] = _left_vectors(_wide(view.weight, view.weight.dtype))
        return self.bases[view.name]


def series(
    snapshots: Iterable[Snapshot], quantity: str, layer: str | None = None
) -> tuple[Sequence[int], Sequence[float]]:
    """Steps and values of one quantity; of all layers together without a ``layer``."""
    states = [(shot.step, shot.of(layer)) for shot in snapshots]
    found = [(step, state.quantities()) for step, state in states if state is not None]
    there = [(step, values[quantity]) for step, values in found if quantity in values]
    return [step for step, _ in there], [value for _, value in there]


@torch.no_grad()
def count_intruders(
    W: Tensor, change: Tensor, first: int = EXAMINED, alike: float = ALIKE, before: Tensor | None = None
) -> int:
    """How many of the ``first`` leading left singular vectors of ``W + change`` (m, n) are new.

    A vector is new, an *intruder dimension*, if its largest |cosine| with any left singular vector of ``W`` (m, n)
    is below ``alike`` (Shuttleworth, Andreas, Torralba and Sharma, arXiv 2410.21228). Vectors of singular values
    that are zero to rounding are arbitrary, and left out on both sides. ``before``: those of ``W``, if they are known.
    """
    # a base model that was kept aside stays on the CPU
    change = _wide(change, W.dtype)
    W = _wide(W, W.dtype).to(change.device)
    before, after = _left_vectors(W) if before is None else before.to(change.device), _left_vectors(W + change)
    closest = (before.T @ after[:, :first]).abs()
    if 0 in closest.shape:
        return closest.shape[1]
    return int((closest.amax(dim=0) < alike).sum())


def _wide(t: Tensor, least: torch.dtype) -> Tensor:
    """In float32 or better, where there is an SVD: MPS has none."""
    return t.to("cpu" if t.device.type == "mps" else t.device, torch.promote_types(least, torch.float32))


def _left_vectors(W: Tensor) -> Tensor:
    U, S, _ = torch.linalg.svd(W, full_matrices=False)
    kept: Tensor = U[:, S[0] * max(W.shape) * torch.finfo(S.dtype).eps < S]
    return kept


def _norm(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)))


def _rms(values: Iterable[float]) -> float:
    squares = [v * v for v in values]
    return math.sqrt(sum(squares) / len(squares))


def _over_layers(layers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for numbers in layers for name in numbers)
    return {name: _rms(numbers[name] for numbers in layers if name in numbers) for name in names}
