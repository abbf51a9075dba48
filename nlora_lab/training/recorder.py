"""Records what happens inside the adapters while they train: singular values, norms, gradients, distance, intruders.

``InsideRecorder`` is a ``watch`` function for ``nl.fine_tune``. docs/inside.md explains what each number means.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlora_lab.core.validation import check_whole_number
from nlora_lab.runs.snapshots import LayerState, Snapshot
from nlora_lab.training.layer_views import LayerView, ObservedModel

if TYPE_CHECKING:
    import pandas as pd

EXAMINED = 10  # leading singular vectors that are tested for being intruders
ALIKE = 0.5  # a vector whose cosine with one of W's is this large is not an intruder
INTRUDER_LIMIT = 1024  # smaller side of a matrix up to which intruders are counted: it costs two SVDs


@dataclass
class InsideRecorder:
    """Records what happens inside a run: ``fine_tune(cfg, watch=InsideRecorder())``.

    It takes a :class:`Snapshot` before the first update, then every ``every`` updates, and at the end. It holds the
    last run that it watched, and may be read from another thread meanwhile. An error while recording ends the
    recording but not the run. ``failed`` then says why, and the earlier snapshots stay.

    Args:
        every: the number of updates between two snapshots.
        top: the number of singular values of each change to keep.
        intruder_limit: the smaller side of a matrix up to which its intruders are counted at the end of the run. 0
            counts none, ``None`` counts in every layer.
        bases: a dict that keeps the left singular vectors of the weights by layer. Give the recorders of one race the
            same dict, and each weight is decomposed only once. By default nothing is kept.

    Attributes:
        seconds: the time that recording has taken so far, which is part of the run's time.
        failed: why the recording ended early; empty if it did not.
    """

    every: int = 10
    top: int = 4
    intruder_limit: int | None = INTRUDER_LIMIT
    bases: dict[str, Tensor] | None = field(default=None, repr=False)
    seconds: float = field(default=0.0, init=False)
    failed: str = field(default="", init=False)

    def __post_init__(self) -> None:
        check_whole_number("every", self.every, 1, 10**9)
        check_whole_number("top", self.top, 1, 10**4)
        if self.intruder_limit is not None:
            check_whole_number("intruder_limit", self.intruder_limit, 0, 10**9)
        self._taken: list[Snapshot] = []
        self._sizes: dict[str, float] = {}  # ‖W‖ never changes

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The snapshots so far, in order."""
        return tuple(self._taken)

    @torch.no_grad()
    def __call__(self, updates: int, model: ObservedModel) -> None:
        """Take a snapshot of ``model`` after ``updates`` updates, if one is due."""
        if updates == 0:  # another run
            self._taken, self._sizes, self.seconds, self.failed = [], {}, 0.0, ""
        if self.failed or (updates % self.every and not model.ended):
            return
        started = time.perf_counter()
        try:
            states = tuple(self._state(view, model.ended) for view in model.layers())
            if states:
                self._taken.append(Snapshot(updates, states))
        except Exception as error:  # a decomposition that does not converge, no memory for it: the run matters more
            self.failed = f"after {updates} updates: {type(error).__name__}: {error}"
        self.seconds += time.perf_counter() - started

    def table(self) -> pd.DataFrame:
        """Return one row per number: step, layer, quantity (see ``LayerState.quantities``), value."""
        import pandas as pd

        rows = [
            (shot.step, state.layer, quantity, float(value))
            for shot in self.snapshots
            for state in shot.layers
            for quantity, value in state.quantities().items()
        ]
        return pd.DataFrame(rows, columns=["step", "layer", "quantity", "value"])

    def summary(self) -> pd.DataFrame:
        """Return one row per snapshot: step, and the quantities of all layers together (see ``Snapshot.together``)."""
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


@torch.no_grad()
def count_intruders(
    W: Tensor, change: Tensor, first: int = EXAMINED, alike: float = ALIKE, before: Tensor | None = None
) -> int:
    """Count the intruder dimensions of a change: leading left singular vectors of ``W + change`` that W does not have.

    A vector is an intruder dimension if its largest |cosine| with any left singular vector of ``W`` is below ``alike``
    (Shuttleworth, Andreas, Torralba and Sharma, arXiv 2410.21228). Vectors whose singular values are zero to rounding
    are arbitrary, and left out on both sides.

    Args:
        W: the weight before tuning, (m, n).
        change: its change, (m, n).
        first: the number of leading vectors of ``W + change`` to examine.
        alike: the cosine below which a vector is new.
        before: the left singular vectors of ``W`` (m, k), if they are known.

    Returns:
        The number of intruder dimensions, at most ``first``.
    """
    # the untouched base model stays on the CPU
    change = _wide(change, W.dtype)
    W = _wide(W, W.dtype).to(change.device)
    before, after = _left_vectors(W) if before is None else before.to(change.device), _left_vectors(W + change)
    closest = (before.T @ after[:, :first]).abs()
    if 0 in closest.shape:
        return closest.shape[1]
    return int((closest.amax(dim=0) < alike).sum())


def _wide(t: Tensor, least: torch.dtype) -> Tensor:
    """In float32 or better, on the CPU where the device has no SVD (MPS)."""
    return t.to("cpu" if t.device.type == "mps" else t.device, torch.promote_types(least, torch.float32))


def _left_vectors(W: Tensor) -> Tensor:
    U, S, _ = torch.linalg.svd(W, full_matrices=False)
    kept: Tensor = U[:, S[0] * max(W.shape) * torch.finfo(S.dtype).eps < S]
    return kept


def _norm(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t, dtype=torch.promote_types(t.dtype, torch.float32)))
