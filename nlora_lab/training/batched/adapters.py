"""The factors of an adapter, taken out of the model it was built in, and the update they make of each weight.

For every method the update of a weight (m, n) is a product ``left (m, w) @ right (w, n)``. Its width w is the rank, or
twice the rank where a start is subtracted. DoRA has a gain of each row on top. The layers of one shape are in one
tensor each, (layers, …), so one operation serves all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nlora_lab.adapters.products import update_pair
from nlora_lab.models.layers import PEFT_PREFIX, Shape, layer_shape, weight_matrix
from nlora_lab.training.layer_views import WeightChange

Factors = dict[str, Tensor]
"""By the paper's letters: A (layers, r, n), N (layers, r, r), B (layers, m, r), and DoRA's lengths m (layers, m)."""

SAME_WEIGHT = 1e-4  # of ‖W‖: how far rounding moves W when a method takes its start out of the frozen weight


class CannotBatch(Exception):
    """This adapter or this model cannot share a frozen base model with others. The message says why."""


class Update(NamedTuple):
    """Updates of the layers of one shape: left (layers, m, w), right (layers, w, n), gain (layers, 1, m) or None."""

    left: Tensor
    right: Tensor
    gain: Tensor | None


@dataclass(frozen=True)
class _LayerFactors:
    """One layer's part of an adapter: its factors, trained and frozen, the start to subtract, and its scale."""

    factors: dict[str, nn.Parameter]
    start: Factors
    scale: float


class ExtractedAdapter:
    """The factors of the adapter in a model, as leaf tensors of their own.

    A method that has written its start into the frozen weight (PiSSA, OLoRA) becomes the same function as a difference
    to the untouched weight, ``s·(B A − B0 A0)``.

    Args:
        model: a ``PeftModel``.
        base: the untouched base model. The updates are relative to its weights.

    Raises:
        CannotBatch: the adapter is more than such an update.
    """

    def __init__(self, model: Any, base: Any) -> None:
        names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        layers: dict[str, _LayerFactors] = {}
        for name, layer in model.named_modules():
            if hasattr(layer, "get_base_layer") and hasattr(layer, "active_adapters"):
                where = name.removeprefix(PEFT_PREFIX)
                layers[where] = _layer_factors(where, layer, weight_matrix(base.get_submodule(where)))
        trained = [id(p) for layer in layers.values() for p in layer.factors.values() if p.requires_grad]
        scales = {layer.scale for layer in layers.values()}
        if sorted(trained) != sorted(names) or len(scales) != 1:
            raise CannotBatch("the adapter trains more than its factors, or scales its layers differently")
        (self.scale,) = scales

        by_shape: dict[Shape, list[str]] = {}
        for where in layers:
            by_shape.setdefault(layer_shape(base.get_submodule(where)), []).append(where)
        #: the adapted layers: those of one shape in the order in which they are in the tensors
        self.layers = by_shape
        self.factors: dict[Shape, Factors] = {}
        self.start: dict[Shape, Factors] = {}
        self._names: dict[Shape, dict[str, list[str]]] = {}
        for shape, wheres in by_shape.items():
            alike = [layers[where] for where in wheres]
            if len({(tuple(layer.factors), tuple(layer.start)) for layer in alike}) != 1:
                raise CannotBatch("the adapter is not of one kind in all layers")
            self.factors[shape] = {f: _leaf([layer.factors[f] for layer in alike]) for f in alike[0].factors}
            self.start[shape] = {f: torch.stack([layer.start[f].detach() for layer in alike]) for f in alike[0].start}
            self._names[shape] = {
                f: [names[id(layer.factors[f])] for layer in alike] for f in _trained(self.factors[shape])
            }
        first_factors, first_start = next(iter(self.factors.values())), next(iter(self.start.values()))
        #: of its updates; where ranks differ from layer to layer, that of the first ones
        self.width = first_factors["A"].shape[1] * (2 if "A" in first_start else 1)
        self._order = list(names.values())

    def named_parameters(self) -> list[tuple[str, Tensor]]:
        """The trained factors, as leaf tensors, each after its letter."""
        return [pair for factors in self.factors.values() for pair in _trained(factors).items()]

    def parameters(self) -> list[Tensor]:
        """The trained factors, as leaf tensors."""
        return [p for _, p in self.named_parameters()]

    def factors_without_gradient(self) -> list[str]:
        """Return the names of the trained factors of the layers that a backward pass has not reached.

        The layers of one shape share a tensor, so a layer that was not called has gradients of zero. One factor alone
        may have them too: where B starts at zero, A has no gradient in the first step.
        """
        names: list[str] = []
        for shape, factors in self.factors.items():
            gradients = [p.grad for p in _trained(factors).values() if p.grad is not None]
            count = len(self.layers[shape])
            reached = [any(bool(gradient[i].any()) for gradient in gradients) for i in range(count)]
            names += [of_layers[i] for of_layers in self._names[shape].values() for i in range(count) if not reached[i]]
        return names

    def to(self, device: torch.device) -> ExtractedAdapter:
        """Move everything to ``device``."""
        for tensors in (*self.factors.values(), *self.start.values()):
            for name, value in tensors.items():
                tensors[name] = value.detach().to(device).requires_grad_(value.requires_grad)
        return self

    def updates(self, weights: Mapping[Shape, list[Tensor]]) -> dict[Shape, Update]:
        """Return the update of each weight by now, differentiable. ``weights`` (m, n) are those of :attr:`layers`."""
        return {
            shape: update(factors, self.start[shape], self.scale, weights[shape])
            for shape, factors in self.factors.items()
        }

    @torch.no_grad()
    def change(self, shape: Shape, number: int, weight: Tensor) -> WeightChange:
        """Return the change of the weight (m, n) of layer ``number`` among those of ``shape``."""
        here = slice(number, number + 1)
        now, start = ({f: t[here] for f, t in tensors[shape].items()} for tensors in (self.factors, self.start))
        left, right, gain = update(now, start, self.scale, [weight])
        if gain is None:
            return WeightChange(left[0].detach(), right[0].detach())  # a view of a leaf requires a gradient even here
        return WeightChange((weight + left[0] @ right[0]) * gain[0].T - weight)

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the trained factors on the CPU, by their names in the model they were built in."""
        by_name = {
            name: value.detach().cpu().clone()
            for shape, letters in self._names.items()
            for factor, names in letters.items()
            for name, value in zip(names, self.factors[shape][factor], strict=True)
        }
        return {name: by_name[name] for name in self._order}


def update(now: Factors, start: Factors, scale: float, weights: Iterable[Tensor]) -> Update:
    """Compute the update that factors make of the weights of several layers at once, differentiably.

    Args:
        now: the factors, with a leading dimension of layers.
        start: the factors to subtract: none, N, or all.
        scale: the scale s.
        weights: the weights (m, n) of the layers, which DoRA's gain needs.

    Returns:
        The update of each layer, see ``adapters.products.update_pair``. ``left`` contains the scale.
    """
    factors = now["A"], now.get("N"), now["B"]
    left, right = update_pair(factors, (start.get("A"), start.get("N"), start.get("B")), scale)
    lengths = now.get("m")
    return Update(left, right, None if lengths is None else _gain(lengths, left, right, weights))


def _gain(lengths: Tensor, left: Tensor, right: Tensor, weights: Iterable[Tensor]) -> Tensor:
    """DoRA's ``m / ‖row of W + s B A‖``, (layers, 1, m). The norm is constant for the gradient, as its authors do it.

    ``‖w + l R‖² = ‖w‖² + 2 l·(R w) + l (R Rᵀ) lᵀ``, so no matrix of W's size is made.
    """
    with torch.no_grad():
        cross_terms = torch.stack([W @ R.T for W, R in zip(weights, right, strict=True)])  # (layers, m, w)
        squares = torch.stack([W.square().sum(1) for W in weights])  # (layers, m)
        squared = squares + ((2 * cross_terms + left @ (right @ right.mT)) * left).sum(-1)
        norm = squared.clamp(min=0).sqrt()
    return (lengths / norm).unsqueeze(1)


def _layer_factors(where: str, layer: Any, weight: Tensor) -> _LayerFactors:
    if len(layer.active_adapters) != 1:
        raise CannotBatch(f"{where} does not have exactly one adapter")
    adapter = layer.active_adapters[0]
    scale = float(layer.scaling[adapter])
    dropouts = layer.nlora_dropout if hasattr(layer, "nlora_A") else getattr(layer, "lora_dropout", {})
    if adapter in dropouts and getattr(dropouts[adapter], "p", 0.0) > 0:
        raise CannotBatch(f"the adapter of {where} drops out at random")
    if hasattr(layer, "nlora_A"):
        if layer.folds:
            raise CannotBatch(f"the start of {where} is folded into its weight")
        factors = {f: getattr(layer, f"nlora_{f}")[adapter].weight for f in "ANB"}
        starts = {f: getattr(layer, f"nlora_{f}0") for f in "ANB"}
        return _LayerFactors(factors, {f: held[adapter].weight for f, held in starts.items() if adapter in held}, scale)
    if not hasattr(layer, "lora_A") or adapter not in layer.lora_A:
        raise CannotBatch(f"{where} is a {type(layer).__name__}")
    factors = {"A": layer.lora_A[adapter].weight, "B": layer.lora_B[adapter].weight}
    if adapter in layer.lora_magnitude_vector:
        factors["m"] = layer.lora_magnitude_vector[adapter].weight
    elif adapter in getattr(layer, "lora_variant", {}):
        raise CannotBatch(f"{where} is a variant of LoRA")
    return _LayerFactors(factors, _subtracted_start(where, layer, weight, factors, scale), scale)


def _subtracted_start(where: str, layer: Any, weight: Tensor, factors: Factors, scale: float) -> Factors:
    """The start that a method has subtracted from the frozen weight. Empty if the weight is untouched."""
    residual = weight_matrix(layer.get_base_layer())
    if torch.equal(residual, weight):
        return {}
    A, B = factors["A"].detach(), factors["B"].detach()
    if float((residual + scale * (B @ A) - weight).norm()) > SAME_WEIGHT * float(weight.norm()):
        raise CannotBatch(f"the frozen weight of {where} is not W less the start")
    return {"A": A.clone(), "B": B.clone()}


def _leaf(parameters: list[nn.Parameter]) -> Tensor:
    if len({(p.shape, p.requires_grad) for p in parameters}) != 1:
        raise CannotBatch("the adapter does not have one rank in all layers")
    return torch.stack([p.detach() for p in parameters]).requires_grad_(parameters[0].requires_grad)


def _trained(factors: Factors) -> Factors:
    return {f: p for f, p in factors.items() if p.requires_grad}
