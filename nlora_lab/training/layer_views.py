"""What callbacks see of an adapted layer while it trains: its factors, their gradients, the change of its weight.

One description serves every method, single runs (``training.loop``) and batched ones (``training.batched``). So the
recorder (``training.recorder``) need not know which method it looks at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from nlora_lab.adapters.products import Start, update_pair
from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import to_float64
from nlora_lab.models.layers import PEFT_PREFIX, full_tensor, is_conv1d, is_linear, linear_layers, weight_matrix


@dataclass(frozen=True)
class WeightChange:
    """The change of a weight (m, n), as a product of thin matrices where it has low rank.

    Attributes:
        left: (m, k); without ``right`` the change itself, (m, n).
        right: (k, n), or ``None`` for a dense change.
    """

    left: Tensor
    right: Tensor | None = None

    def dense(self) -> Tensor:
        """Return the change as one (m, n) matrix."""
        return self.left if self.right is None else self.left @ self.right

    def singular_values(self) -> Tensor:
        """Compute the singular values that can differ from zero, at most k of them.

        For a product they come from two QR decompositions and a k × k matrix. The (m, n) matrix is never formed.

        Returns:
            The values in float64, largest first.
        """
        values: Tensor = torch.linalg.svdvals(self._core())
        return values

    def leading(self, count: int) -> tuple[list[float], float]:
        """Compute the largest singular values, quickly enough to be called while a model trains.

        The values of a dense change come from its Gram matrix in float32, with a relative error of about
        ``1e-7 (σ₁/σ)²``.

        Args:
            count: the number of values.

        Returns:
            The values, with zeros where there are fewer, and the Frobenius norm. All NaN if the change is not finite.
        """
        values, size = _from_gram(self.left) if self.right is None else _from_core(self._core())
        return ([*values, *[0.0] * count] if math.isfinite(size) else [math.nan] * count)[:count], size

    def _core(self) -> Tensor:
        """A matrix with the singular values of the change, as small as possible."""
        if self.right is None:
            return to_float64(self.left)
        left, right = to_float64(self.left), to_float64(self.right)
        if left.shape[1] > min(left.shape[0], right.shape[1]):
            return left @ right
        outer: Tensor = torch.linalg.qr(left, mode="r").R
        inner: Tensor = torch.linalg.qr(right.T, mode="r").R
        return outer @ inner.T

    def norm(self) -> float:
        """Compute the Frobenius norm, of a product from traces of k × k matrices in float64."""
        if self.right is None:
            return float(torch.linalg.vector_norm(to_float64(self.left)))
        left, right = to_float64(self.left), to_float64(self.right)
        return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())


@dataclass(frozen=True)
class LayerView:
    """One adapted layer at one moment. All tensors are the live ones, detached. Copy what you want to keep.

    Attributes:
        name: the dotted name of the layer in the base model.
        weight: W (m, n) before any tuning.
        factors: what trains, by the paper's letters: "A", "N", "B"; "m" for DoRA's lengths; "W" in full fine-tuning.
        gradients: the gradients of the factors, as far as they exist at this moment.
        make_change: computes :attr:`change`.
    """

    name: str
    weight: Tensor
    factors: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    make_change: Callable[[], WeightChange] = field(repr=False)

    @property
    def change(self) -> WeightChange:
        """The change of the weight from W until now."""
        return self.make_change()


class ObservedModel(Protocol):
    """A model in training, as callbacks see it. ``ended``: it trains no further and has no gradients."""

    ended: bool

    def layers(self) -> Iterator[LayerView]:
        """Return its adapted layers, in the model's order."""


class ObservedPeftModel:
    """A model that ``attach`` returned, for callbacks. Make it *before* the first step.

    Args:
        model: the model.
        base: the untouched base model, for methods that write the base weights: full fine-tuning, PiSSA, OLoRA.

    Raises:
        InputError: full fine-tuning without ``base``.
    """

    def __init__(self, model: Any, base: Any = None) -> None:
        self.ended = False
        self._has_adapter = hasattr(model, "peft_config")
        if not self._has_adapter and base is None:
            raise InputError("full fine-tuning writes the weights themselves; give the untouched model as base=")
        self._base = base
        self._layers = _adapted_layers(model) if self._has_adapter else linear_layers(model)
        # PiSSA and OLoRA take their start out of the frozen weight, so their change is relative to the start
        writes_base = self._has_adapter and base is not None
        self._starts = {n: _lora_start(layer) for n, layer in self._layers.items()} if writes_base else {}

    @torch.no_grad()
    def layers(self) -> Iterator[LayerView]:
        """Return the adapted layers. In full fine-tuning these are all linear layers."""
        for name, layer in self._layers.items():
            if not self._has_adapter:
                yield _gathered(self._full_view(name, layer))
            elif hasattr(layer, "update_factors"):
                yield _gathered(self._nlora_view(name, layer))
            else:
                yield _gathered(self._lora_view(name, layer))

    def _full_view(self, name: str, layer: Any) -> LayerView:
        before = weight_matrix(self._base.get_submodule(name))

        def change() -> WeightChange:
            now = full_tensor(weight_matrix(layer))
            return WeightChange(now - before.to(now.device))  # the untouched base model stays on the CPU

        return LayerView(name, before, *_trained({"W": layer.weight}, is_conv1d(layer)), change)

    def _nlora_view(self, name: str, layer: Any) -> LayerView:
        adapter = layer.active_adapters[0]
        factors = {f: getattr(layer, f"nlora_{f}")[adapter].weight for f in "ANB"}

        def change() -> WeightChange:
            left, right = layer.update_factors(adapter)
            return WeightChange(left.detach() * layer.scaling[adapter], right.detach())

        return LayerView(name, layer.original_matrix().detach(), *_trained(factors), change)

    def _lora_view(self, name: str, layer: Any) -> LayerView:
        adapter = layer.active_adapters[0]
        A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        factors, scale = {"A": A, "B": B}, layer.scaling[adapter]
        W = weight_matrix(layer.get_base_layer() if self._base is None else self._base.get_submodule(name))
        if adapter in layer.lora_magnitude_vector:
            lengths = layer.lora_magnitude_vector[adapter].weight
            trained = _trained({**factors, "m": lengths})
            return LayerView(name, W, *trained, lambda: _dora_change(W, A, B, scale, lengths))
        start, A, B = self._starts.get(name), A.detach(), B.detach()

        def change() -> WeightChange:
            if start is None:
                return WeightChange(*update_pair((A, None, B), scale=scale))
            # complete tensors, because the start is from before they were sharded
            return WeightChange(*update_pair((full_tensor(A), None, full_tensor(B)), start, scale))

        return LayerView(name, W, *_trained(factors), change)


def _gathered(view: LayerView) -> LayerView:
    """The same view with complete tensors, where each process holds a part of them."""
    if not hasattr(view.weight, "full_tensor") and not any(hasattr(t, "full_tensor") for t in view.factors.values()):
        return view

    def change() -> WeightChange:
        local = view.make_change()
        return WeightChange(full_tensor(local.left), full_tensor(local.right))

    factors, gradients = ({name: full_tensor(t) for name, t in held.items()} for held in (view.factors, view.gradients))
    return LayerView(view.name, full_tensor(view.weight), factors, gradients, change)


def _adapted_layers(model: Any) -> dict[str, Any]:
    """The linear layers with an adapter. PEFT also wraps embeddings, some rows of them, and single parameters."""
    layers = ((n.removeprefix(PEFT_PREFIX), m) for n, m in model.named_modules() if hasattr(m, "active_adapters"))
    return {name: m for name, m in layers if hasattr(m, "get_base_layer") and is_linear(m.get_base_layer())}


def _lora_start(layer: Any) -> Start:
    adapter = layer.active_adapters[0]
    return layer.lora_A[adapter].weight.detach().clone(), None, layer.lora_B[adapter].weight.detach().clone()


def _trained(factors: Mapping[str, Tensor], transposed: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The factors that train, and the gradients that exist."""

    def seen(t: Tensor) -> Tensor:
        return t.detach().T if transposed else t.detach()

    trained = {name: p for name, p in factors.items() if p.requires_grad}
    return (
        {name: seen(p) for name, p in trained.items()},
        {name: seen(p.grad) for name, p in trained.items() if p.grad is not None},
    )


def _dora_change(W: Tensor, A: Tensor, B: Tensor, scale: float, lengths: Tensor) -> WeightChange:
    """DoRA's weight is a direction of each row times its length, so its change is dense and not of low rank."""
    moved = (B.detach() @ A.detach()).mul_(scale).add_(W)
    return WeightChange(moved.mul_((lengths.detach() / torch.linalg.vector_norm(moved, dim=1))[:, None]).sub_(W))


def _from_core(core: Tensor) -> tuple[list[float], float]:
    """The singular values of ``core`` (k, l), largest first, and its Frobenius norm."""
    size = float(torch.linalg.vector_norm(core))
    return (torch.linalg.svdvals(core).tolist() if math.isfinite(size) else []), size


def _from_gram(X: Tensor) -> tuple[list[float], float]:
    """The singular values of a large ``X`` (m, n), largest first, and its Frobenius norm."""
    wide = X.to("cpu" if X.device.type == "mps" else X.device, torch.promote_types(X.dtype, torch.float32))
    size = float(torch.linalg.vector_norm(wide, dtype=torch.float64))
    if size == 0 or not math.isfinite(size):
        return [], size
    tall = (wide if len(wide) >= wide.shape[1] else wide.T) / size  # squares of its entries must not overflow
    squares = torch.linalg.eigvalsh(tall.T @ tall).flip(-1)
    return (squares.clamp(min=0).sqrt() * size).tolist(), size


def relative_distance(layers: Iterator[LayerView]) -> float:
    """Compute ``‖change of W‖ / ‖W‖``, with Frobenius norms over all adapted layers together."""
    changed = total = 0.0
    for layer in layers:
        changed += layer.change.norm() ** 2
        total += float(torch.linalg.vector_norm(to_float64(layer.weight))) ** 2
    return (changed / total) ** 0.5 if total else 0.0
