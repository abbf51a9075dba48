"""What was recorded inside the adapters of a run at some steps. ``nlora_lab.training.recorder`` records it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

ALL_LAYERS = "all layers"


@dataclass(frozen=True)
class LayerState:
    """One adapted layer at one moment. All norms are Frobenius norms. A weight that is not finite gives NaN.

    Attributes:
        layer: the dotted name of the layer.
        sigma: the first singular values of the change of its weight W (m, n), largest first, zeros beyond its rank.
        size: ‖W‖.
        distance: ‖change‖ / ‖W‖.
        norms: the norm of each factor that trains ("A", "N", "B", "m", "W").
        gradients: the norm of the gradient of each factor that has one.
        intruders: see ``training.recorder.count_intruders``; ``None`` where they were not counted.
    """

    layer: str
    sigma: tuple[float, ...]
    size: float
    distance: float
    norms: Mapping[str, float]
    gradients: Mapping[str, float]
    intruders: int | None = None

    def quantities(self) -> dict[str, float]:
        """Return every number by its name in a table: ``sigma_1``, ``norm A``, ``gradient B``, ``distance``, …."""
        numbers = {f"sigma_{k}": value for k, value in enumerate(self.sigma, start=1)}
        numbers |= {f"norm {factor}": value for factor, value in self.norms.items()}
        numbers |= {f"gradient {factor}": value for factor, value in self.gradients.items()}
        numbers["distance"] = self.distance
        if self.intruders is not None:
            numbers["intruders"] = self.intruders
        return numbers


@dataclass(frozen=True)
class Snapshot:
    """All adapted layers after ``step`` updates, in the model's order."""

    step: int
    layers: tuple[LayerState, ...]

    def of(self, layer: str | None) -> LayerState | None:
        """Return the layer of this name. ``None`` asks for all layers as one, see :meth:`together`."""
        if layer is None:
            return self.together()
        return next((state for state in self.layers if state.layer == layer), None)

    def together(self) -> LayerState | None:
        """Return all layers as one, or ``None`` if there are none.

        Singular values, sizes, norms and gradients are root mean squares over the layers. ``distance`` is
        ‖all changes‖ / ‖all weights‖, and ``intruders`` are summed.
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


def series(
    snapshots: Iterable[Snapshot], quantity: str, layer: str | None = None
) -> tuple[Sequence[int], Sequence[float]]:
    """Return the steps and the values of one quantity, of one layer or, without a ``layer``, of all together."""
    states = [(shot.step, shot.of(layer)) for shot in snapshots]
    numbers = [(step, state.quantities()) for step, state in states if state is not None]
    points = [(step, values[quantity]) for step, values in numbers if quantity in values]
    return [step for step, _ in points], [value for _, value in points]


def _rms(values: Iterable[float]) -> float:
    squares = [v * v for v in values]
    return math.sqrt(sum(squares) / len(squares))


def _over_layers(layers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for numbers in layers for name in numbers)
    return {name: _rms(numbers[name] for numbers in layers if name in numbers) for name in names}
