"""Several adapters at work on one frozen base: what a linear layer becomes, and the model around such layers.

The hidden states of K adapters stand one after the other in the batch, (K·B, T, d). A linear layer multiplies all of
them by its frozen weight at once, and adds to each adapter's part that adapter's update, which is a pair of thin
matrices whatever the method (:mod:`nlora_lab.training.batched_adapters`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nlora_lab.adapters.products import autocasting
from nlora_lab.models.layers import Shape, layer_shape, weight_matrix
from nlora_lab.training.batched_adapters import CannotBatch, ExtractedAdapter, Update
from nlora_lab.training.layer_views import LayerView

UpdateGroup = tuple[Tensor, Tensor, Tensor | None]
"""Updates of one width, of one layer and k adapters in a row: left (k, m, w), right (k, w, n), gain (k, 1, m)."""


class BatchedModel(nn.Module):
    """A causal language model whose linear layers take the updates of several adapters at once.

    ``model`` is taken over: its linear layers (those of ``adapters``, which all sit on the same ones) are
    replaced, and it is frozen. What is at work is chosen by :meth:`running`; outside of it the model is the base.
    Raises :class:`CannotBatch` for a model with dropout of its own: a run would then depend on its company.
    """

    def __init__(self, model: Any, adapters: Sequence[ExtractedAdapter]) -> None:
        super().__init__()
        if any(adapter.layers != adapters[0].layers for adapter in adapters):
            raise CannotBatch("the adapters do not sit on the same layers")
        _refuse_dropout(model)
        self.model = model.requires_grad_(False)
        self.places = adapters[0].layers
        wanted = {name for names in self.places.values() for name in names}
        #: by dotted name, in the model's order
        self.layers = {name: BatchedLinear(layer) for name, layer in model.named_modules() if name in wanted}
        for name, stacked in self.layers.items():
            model.set_submodule(name, stacked)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    def forward(self, **inputs: Any) -> Any:
        """The model's own output on (K·B, T) inputs, K being the number of adapters at work."""
        samples, length = inputs["input_ids"].shape
        for layer in self.layers.values():
            layer.rows = {samples, samples * length}
        return self.model(**inputs)

    def generate(self, **inputs: Any) -> Tensor:
        """The model's own, for one adapter at work or none."""
        tokens: Tensor = self.model.generate(**inputs)
        return tokens

    @contextmanager
    def running(self, adapters: Sequence[ExtractedAdapter], dtype: torch.dtype = torch.float32) -> Iterator[None]:
        """Within it these adapters are at work, each on its part of the batch, in this order; none: the base.

        Their numbers are read on entering, differentiably, and rounded to ``dtype``. Neighbours of one
        width are multiplied together, so give them in the order of their widths.
        """
        before = {name: layer.bands for name, layer in self.layers.items()}
        weights = {shape: [self.layers[name].matrix for name in names] for shape, names in self.places.items()}
        updates = [adapter.updates(weights) for adapter in adapters]
        for shape, names in self.places.items():
            bands = [_unbound(group, dtype) for group in _bands([u[shape] for u in updates])]
            for i, name in enumerate(names):
                self.layers[name].bands = [layerwise[i] for layerwise in bands]
        try:
            yield
        finally:
            for name, layer in self.layers.items():
                layer.bands = before[name]

    @contextmanager
    def solo(self, adapter: ExtractedAdapter) -> Iterator[None]:
        """Within it the model is the base with this one adapter, on batches of any size, and nothing is trained."""
        with torch.no_grad(), self.running([adapter]):
            yield

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within it the model is the base, as in PEFT."""
        with self.running([]):
            yield


class BatchedLinear(nn.Module):
    """``y = x Wᵀ + bias`` with, for each adapter's part of x, its update: for ``nn.Linear`` and ``Conv1D``."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.out_features, self.in_features = layer_shape(base)
        self.bands: list[UpdateGroup] = []
        self.rows: set[int] = set()

    @property
    def matrix(self) -> Tensor:
        """The frozen weight, (m, n)."""
        return weight_matrix(self.base)

    @property
    def weight(self) -> Tensor:
        """The base layer's own, which some models look at."""
        weight: Tensor = self.base.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's own."""
        bias: Tensor | None = self.base.bias
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """x (K·…, n) to (K·…, m); K adapters at work, K = 0 and 1 taking the whole of x."""
        count = sum(len(left) for left, _, _ in self.bands)
        if count > 1 and x.numel() // self.in_features not in self.rows:
            # experts of a mixture get some tokens only: nothing says whose they are
            raise CannotBatch("a layer of the model does not see all tokens in their order")
        dtype = torch.get_autocast_dtype(x.device.type) if autocasting(x) else x.dtype
        rows = x.reshape(max(count, 1), -1, self.in_features)
        parts = [None if part is None else part.to(dtype) for band in self.bands for part in band]
        bias = None if self.bias is None else self.bias.to(dtype)
        product: Any = _Product.apply  # untyped in torch
        y: Tensor = product(rows.to(dtype), self.matrix.to(dtype), bias, *parts)
        return y.view(*x.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """``(x Wᵀ + x rightᵀ leftᵀ) · gain + bias`` for x (K, rows, n): as few passes over x and y as there can be.

    Autograd on the parts would copy the bands' slices together and add up two gradients of x; here each band
    adds into its slice in place. W and bias are frozen.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *parts: Tensor | None) -> Tensor:
        y = F.linear(x, weight, bias)  # (K, rows, m)
        inner: list[Tensor | None] = []
        for here, left, right, gain in _slices(parts):
            z, part = torch.bmm(x[here], right.mT), y[here]
            part.baddbmm_(z, left.mT)
            inner += [z, None if gain is None else _apply_gain(part, gain, bias)]
        ctx.bands = len(parts) // 3
        ctx.save_for_backward(x, weight, *parts, *inner)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *saved = ctx.saved_tensors
        parts, inner = saved[: 3 * ctx.bands], saved[3 * ctx.bands :]
        bands = list(zip(_slices(parts), inner[::2], inner[1::2], strict=True))
        to_gains = [None if b is None else (grad[here] * b).sum(1, keepdim=True) for (here, *_), _, b in bands]
        if any(before is not None for _, _, before in bands):
            grad = grad.clone()  # it is not ours to write
            for (here, _, _, gain), _, _ in bands:
                if gain is not None:
                    grad[here] *= gain
        to_x = grad @ weight if ctx.needs_input_grad[0] else None
        given: list[Tensor | None] = []
        wanted = ctx.needs_input_grad[3:]
        for i, ((here, left, right, _), z, _) in enumerate(bands):
            part = grad[here]
            to_z = torch.bmm(part, left)
            # (w, m), then transposed: the other way round the product is several times slower
            given.append(torch.bmm(z.mT, part).mT if wanted[3 * i] else None)
            given.append(torch.bmm(to_z.mT, x[here]) if wanted[3 * i + 1] else None)
            given.append(to_gains[i])
            if to_x is not None:
                to_x[here].baddbmm_(to_z, right)
        return to_x, None, None, *given


def _apply_gain(part: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply ``part`` in place, but not the bias in it; what it was, without the bias."""
    if bias is not None:
        part -= bias
    before = part.clone()
    part *= gain
    if bias is not None:
        part += bias
    return before


def _slices(parts: Sequence[Any]) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
    """Each band with the part of x that is its adapters'."""
    at = 0
    for left, right, gain in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        yield slice(at, at + len(left)), left, right, gain
        at += len(left)


def _bands(updates: Sequence[Update]) -> Iterator[list[Update]]:
    """Neighbours that one batched product serves: of one width, with or without a gain."""
    for _, group in groupby(updates, key=lambda u: (u.right.shape[1], u.gain is None)):
        yield list(group)


def _unbound(updates: Sequence[Update], dtype: torch.dtype) -> list[UpdateGroup]:
    """One band a layer, from the updates (layers, …) of k adapters."""

    def layerwise(parts: list[Tensor]) -> tuple[Tensor, ...]:
        joined = parts[0].unsqueeze(1) if len(parts) == 1 else torch.stack(parts, dim=1)
        return joined.to(dtype).unbind(0)  # of (layers, k, …); indexing would have each layer fill a gradient of all

    left, right = layerwise([u.left for u in updates]), layerwise([u.right for u in updates])
    gains = [u.gain for u in updates if u.gain is not None]
    return list(zip(left, right, layerwise(gains) if gains else [None] * len(left), strict=True))


def _refuse_dropout(model: nn.Module) -> None:
    """Modules with a ``p``, and the bare numbers that attention takes."""
    for name, module in model.named_modules():
        rates = [module.p] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        rates += [v for key, v in vars(module).items() if "drop" in key and isinstance(v, float)]
        if any(rate > 0 for rate in rates):
            raise CannotBatch(f"{name} of the model drops out at random")


class ObservedBatchedAdapter:
    """One adapter of a stack, to be looked at (a :class:`nlora_lab.training.layer_views.ObservedModel`)."""

    def __init__(self, stack: BatchedModel, adapter: ExtractedAdapter) -> None:
        self._stack, self._adapter, self.ended = stack, adapter, False

    def layers(self) -> Iterator[LayerView]:
        """Its layers, in the model's order."""
        at = {name: (shape, i) for shape, names in self._stack.places.items() for i, name in enumerate(names)}
        for name, layer in self._stack.layers.items():
            yield self._view(name, layer.matrix, *at[name])

    def _view(self, name: str, weight: Tensor, shape: Shape, i: int) -> LayerView:
        moving = {f: p for f, p in self._adapter.now[shape].items() if p.requires_grad}
        return LayerView(
            name,
            weight,
            {f: p.detach()[i] for f, p in moving.items()},
            {f: p.grad[i] for f, p in moving.items() if p.grad is not None},
            lambda: self._adapter.change(shape, i, weight),
        )
