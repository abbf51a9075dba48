"""What can be seen of an adapted layer while it trains: its factors, their gradients, the change of its weight.

One description for every method and both ways to train (:mod:`nlora_lab.training.loop`, :mod:`nlora_lab.training.races`), so that
what looks inside a run (:mod:`nlora_lab.training.recorder`) need not know which method it looks at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import to_float64
from nlora_lab.models.layers import PEFT_PREFIX, full_tensor


@dataclass(frozen=True)
class Change:
    """The change of a weight (m, n): ``left (m, k) @ right (k, n)``; where ``right`` is ``None``, ``left`` itself."""

    left: Tensor
    right: Tensor | None = None

    def dense(self) -> Tensor:
        """The change as one (m, n) matrix."""
        return self.left if self.right is None else self.left @ self.right

    def singular_values(self) -> Tensor:
        """All singular values that can differ from zero, descending, float64: at most k of them.

        Of a product, from two QR decompositions and a k × k matrix: the (m, n) matrix is never formed.
        """
        values: Tensor = torch.linalg.svdvals(self._core())
        return values

    def leading(self, count: int) -> tuple[list[float], float]:
        """The first ``count`` singular values, zeros where there are fewer, and the Frobenius norm.

        Quick enough to be called while a model trains: a dense change's values come from its Gram matrix in float32,
        with a relative error of about ``1e-7 (σ₁/σ)²``. All NaN if the change is not finite.
        """
        values, size = _by_gram(self.left) if self.right is None else _by_core(self._core())
        return ([*values, *[0.0] * count] if math.isfinite(size) else [math.nan] * count)[:count], size

    def _core(self) -> Tensor:
        """A matrix with the singular values of the change, as small as it can be."""
        if self.right is None:
            return to_float64(self.left)
        left, right = to_float64(self.left), to_float64(self.right)
        if left.shape[1] > min(left.shape[0], right.shape[1]):
            return left @ right
        outer: Tensor = torch.linalg.qr(left, mode="r").R
        inner: Tensor = torch.linalg.qr(right.T, mode="r").R
        return outer @ inner.T

    def norm(self) -> float:
        """The Frobenius norm, from traces of k × k matrices in float64."""
        if self.right is None:
            return float(torch.linalg.vector_norm(to_float64(self.left)))
        left, right = to_float64(self.left), to_float64(self.right)
        return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0).sqrt())


@dataclass(frozen=True)
class LayerView:
    """One adapted layer at one moment.

    ``weight`` (m, n) is W before any tuning, ``factors`` what trains, by the paper's letters ("A", "N", "B"; "m" the
    lengths of DoRA; "W" in full fine-tuning), ``gradients`` the same where there is one just now. All
    are the live tensors, detached: copy what is to be kept.
    """

    name: str
    weight: Tensor
    factors: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    make_change: Callable[[], Change] = field(repr=False)

    @property
    def change(self) -> Change:
        """How far the weight is from W now."""
        return self.make_change()


class ObservedModel(Protocol):
    """A model being tuned, to be looked at. ``ended``: it is trained no further, and there are no gradients."""

    ended: bool

    def layers(self) -> Iterator[LayerView]:
        """Its adapted layers, in the model's order."""


class ObservedPeftModel:
    """A model that :func:`nlora_lab.methods.attachment.attach` returned; to be made *before* its first step.

    ``base``: the untouched base model, for what writes the base weights: full fine-tuning, PiSSA, OLoRA.
    """

    def __init__(self, model: Any, base: Any = None) -> None:
        self.ended = False
        self._tuned = hasattr(model, "peft_config")
        if not self._tuned and base is None:
            raise InputError("full fine-tuning writes the weights themselves; give the untouched model as base=")
        self._base = base
        self._layers = _adapted(model) if self._tuned else _linear(model)
        # PiSSA and OLoRA take their start out of the frozen weight: their change counts from there
        writes = self._tuned and base is not None
        self._starts = {n: _start(layer) for n, layer in self._layers.items()} if writes else {}

    @torch.no_grad()
    def layers(self) -> Iterator[LayerView]:
        """The adapted layers; in full fine-tuning every linear layer."""
        for name, layer in self._layers.items():
            if not self._tuned:
                yield _gathered(self._full(name, layer))
            elif hasattr(layer, "update_factors"):
                yield _gathered(self._ours(name, layer))
            else:
                yield _gathered(self._lora(name, layer))

    def _full(self, name: str, layer: Any) -> LayerView:
        before = _matrix(self._base.get_submodule(name))

        def change() -> Change:
            now = full_tensor(_matrix(layer))
            return Change(now - before.to(now.device))  # the base that was kept aside stays on the CPU

        return LayerView(name, before, *_trained({"W": layer.weight}, _flip(layer)), change)

    def _ours(self, name: str, layer: Any) -> LayerView:
        adapter = layer.active_adapters[0]
        parts = {f: getattr(layer, f"nlora_{f}")[adapter].weight for f in "ANB"}

        def change() -> Change:
            left, right = layer.update_factors(adapter)
            return Change(left.detach() * layer.scaling[adapter], right.detach())

        return LayerView(name, layer.original_matrix().detach(), *_trained(parts), change)

    def _lora(self, name: str, layer: Any) -> LayerView:
        adapter = layer.active_adapters[0]
        A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        parts, scale = {"A": A, "B": B}, layer.scaling[adapter]
        W = _matrix(layer.get_base_layer() if self._base is None else self._base.get_submodule(name))
        if adapter in layer.lora_magnitude_vector:
            lengths = layer.lora_magnitude_vector[adapter].weight
            return LayerView(name, W, *_trained({**parts, "m": lengths}), lambda: _dora(W, A, B, scale, lengths))
        start, A, B = self._starts.get(name), A.detach(), B.detach()

        def change() -> Change:
            if start is None:
                return Change(B * scale, A)
            # B A − B0 A0 from differences, as in nlora_lab.adapters.products: nothing large is subtracted
            b, a = full_tensor(B), full_tensor(A)  # the start is from before they were sharded
            return Change(torch.cat([b - start[1], start[1]], 1).mul_(scale), torch.cat([a, a - start[0]]))

        return LayerView(name, W, *_trained(parts), change)


def _gathered(view: LayerView) -> LayerView:
    """``view``, with the tensors whole."""
    if not hasattr(view.weight, "full_tensor") and not any(hasattr(t, "full_tensor") for t in view.factors.values()):
        return view

    def change() -> Change:
        made = view.make_change()
        return Change(full_tensor(made.left), full_tensor(made.right))

    factors, gradients = ({name: full_tensor(t) for name, t in held.items()} for held in (view.factors, view.gradients))
    return LayerView(view.name, full_tensor(view.weight), factors, gradients, change)


def _adapted(model: Any) -> dict[str, Any]:
    found = ((n.removeprefix(PEFT_PREFIX), m) for n, m in model.named_modules() if hasattr(m, "get_base_layer"))
    return {name: module for name, module in found if hasattr(module, "active_adapters")}


def _linear(model: Any) -> dict[str, Any]:
    from nlora_lab.models.layers import linear_layers

    return linear_layers(model)


def _start(layer: Any) -> tuple[Tensor, Tensor]:
    adapter = layer.active_adapters[0]
    return layer.lora_A[adapter].weight.detach().clone(), layer.lora_B[adapter].weight.detach().clone()


def _flip(layer: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)  # GPT-2 stores W transposed


def _matrix(layer: Any) -> Tensor:
    weight: Tensor = layer.weight.detach()
    return weight.T if _flip(layer) else weight


def _trained(parts: Mapping[str, Tensor], flipped: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What trains of ``parts``, and the gradients that are there."""

    def seen(t: Tensor) -> Tensor:
        return t.detach().T if flipped else t.detach()

    moving = {name: p for name, p in parts.items() if p.requires_grad}
    return (
        {name: seen(p) for name, p in moving.items()},
        {name: seen(p.grad) for name, p in moving.items() if p.grad is not None},
    )


def _dora(W: Tensor, A: Tensor, B: Tensor, scale: float, lengths: Tensor) -> Change:
    """DoRA's weight is a direction of each row times its length: dense, not of low rank."""
    moved = (B.detach() @ A.detach()).mul_(scale).add_(W)
    return Change(moved.mul_((lengths.detach() / torch.linalg.vector_norm(moved, dim=1))[:, None]).sub_(W))


def _by_core(core: Tensor) -> tuple[list[float], float]:
    """The singular values of ``core`` (k, l), descending, and its Frobenius norm."""
    size = float(torch.linalg.vector_norm(core))
    return (torch.linalg.svdvals(core).tolist() if math.isfinite(size) else []), size


def _by_gram(X: Tensor) -> tuple[list[float], float]:
    """The same of a large ``X`` (m, n)."""
    wide = X.to("cpu" if X.device.type == "mps" else X.device, torch.promote_types(X.dtype, torch.float32))
    size = float(torch.linalg.vector_norm(wide, dtype=torch.float64))
    if size == 0 or not math.isfinite(size):
        return [], size
    tall = (wide if len(wide) >= wide.shape[1] else wide.T) / size  # squares of its entries must not overflow
    squares = torch.linalg.eigvalsh(tall.T @ tall).flip(-1)
    return (squares.clamp(min=0).sqrt() * size).tolist(), size


def relative_distance(layers: Iterator[LayerView]) -> float:
    """``‖change of W‖ / ‖W‖``, Frobenius norms over all adapted layers together."""
    moved = size = 0.0
    for layer in layers:
        moved += layer.change.norm() ** 2
        size += float(torch.linalg.vector_norm(to_float64(layer.weight))) ** 2
    return (moved / size) ** 0.5 if size else 0.0
