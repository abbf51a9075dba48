"""A frozen base model with several adapters at work on it at once.

The hidden states of K adapters stand one after the other in the batch, (K·B, T, d). A linear layer multiplies all of
them by its frozen weight at once. To each adapter's part it adds that adapter's update, which is a product of two thin
matrices for every method (see ``batched.adapters``).
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
from nlora_lab.training.batched.adapters import CannotBatch, ExtractedAdapter, Update
from nlora_lab.training.layer_views import LayerView

UpdateGroup = tuple[Tensor, Tensor, Tensor | None]
"""Updates of one width, of one layer and k neighbouring adapters: left (k, m, w), right (k, w, n), gain (k, 1, m)."""


class BatchedModel(nn.Module):
    """A causal language model whose linear layers take the updates of several adapters at once.

    :meth:`active` chooses the adapters that are at work. Outside of it the model is the base model.

    Args:
        model: the base model. Its linear layers are replaced, and it is frozen.
        adapters: the adapters, all of them on the same layers.

    Raises:
        CannotBatch: the adapters are on different layers, or the model has dropout, which would make a run depend on
            the runs beside it.
    """

    def __init__(self, model: Any, adapters: Sequence[ExtractedAdapter]) -> None:
        super().__init__()
        if any(adapter.layers != adapters[0].layers for adapter in adapters):
            raise CannotBatch("the adapters are not on the same layers")
        _refuse_dropout(model)
        self.model = model.requires_grad_(False)
        self.names_by_shape = adapters[0].layers
        adapted = {name for names in self.names_by_shape.values() for name in names}
        #: by dotted name, in the model's order
        self.layers = {name: BatchedLinear(layer) for name, layer in model.named_modules() if name in adapted}
        for name, layer in self.layers.items():
            model.set_submodule(name, layer)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        device: torch.device = self.model.device
        return device

    def forward(self, **inputs: Any) -> Any:
        """Return the output of the model on (K·B, T) inputs, for K adapters at work."""
        samples, length = inputs["input_ids"].shape
        for layer in self.layers.values():
            layer.expected_rows = {samples, samples * length}
        return self.model(**inputs)

    def generate(self, **inputs: Any) -> Tensor:
        """Generate with the model, for one adapter at work or none."""
        tokens: Tensor = self.model.generate(**inputs)
        return tokens

    @contextmanager
    def active(self, adapters: Sequence[ExtractedAdapter], dtype: torch.dtype = torch.float32) -> Iterator[None]:
        """Put adapters to work within a ``with`` block, each on its part of the batch, in this order.

        Args:
            adapters: the adapters. None of them gives the base model. Neighbours of one width are multiplied together,
                so give them in the order of their widths.
            dtype: their factors are read once, differentiably, and rounded to this dtype.
        """
        before = {name: layer.groups for name, layer in self.layers.items()}
        weights = {shape: [self.layers[name].matrix for name in names] for shape, names in self.names_by_shape.items()}
        updates = [adapter.updates(weights) for adapter in adapters]
        for shape, names in self.names_by_shape.items():
            groups = [_by_layer(group, dtype) for group in _alike([update[shape] for update in updates])]
            for i, name in enumerate(names):
                self.layers[name].groups = [layers[i] for layers in groups]
        try:
            yield
        finally:
            for name, layer in self.layers.items():
                layer.groups = before[name]

    @contextmanager
    def single(self, adapter: ExtractedAdapter) -> Iterator[None]:
        """Put one adapter to work within a ``with`` block, without gradients, on batches of any size."""
        with torch.no_grad(), self.active([adapter]):
            yield

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Make the model the base model within a ``with`` block, as in PEFT."""
        with self.active([]):
            yield


class BatchedLinear(nn.Module):
    """``y = x Wᵀ + bias``, and for each adapter's part of x its update. For ``nn.Linear`` and ``Conv1D``.

    Args:
        base: the layer to replace.
    """

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.out_features, self.in_features = layer_shape(base)
        self.groups: list[UpdateGroup] = []
        self.expected_rows: set[int] = set()

    @property
    def matrix(self) -> Tensor:
        """The frozen weight, (m, n)."""
        return weight_matrix(self.base)

    @property
    def weight(self) -> Tensor:
        """The weight as the base layer stores it, which some models read."""
        weight: Tensor = self.base.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the base layer."""
        bias: Tensor | None = self.base.bias
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """Map x (K·…, n) to (K·…, m) for K adapters at work. K = 0 and K = 1 take all of x."""
        count = sum(len(left) for left, _, _ in self.groups)
        if count > 1 and x.numel() // self.in_features not in self.expected_rows:
            # the experts of a mixture get some of the tokens, and nothing tells which adapter these belong to
            raise CannotBatch("a layer of the model does not see all tokens in their order")
        dtype = torch.get_autocast_dtype(x.device.type) if autocasting(x) else x.dtype
        rows = x.reshape(max(count, 1), -1, self.in_features)
        parts = [None if part is None else part.to(dtype) for group in self.groups for part in group]
        bias = None if self.bias is None else self.bias.to(dtype)
        product: Any = _Product.apply  # untyped in torch
        y: Tensor = product(rows.to(dtype), self.matrix.to(dtype), bias, *parts)
        return y.view(*x.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """``(x Wᵀ + x rightᵀ leftᵀ) · gain + bias`` for x (K, rows, n), with as few passes over x and y as possible.

    If autograd handled every group by itself, it would copy their slices together and add up two gradients of x. Here
    each group adds into its slice in place. W and bias are frozen.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *parts: Tensor | None) -> Tensor:
        y = F.linear(x, weight, bias)  # (K, rows, m)
        saved: list[Tensor | None] = []
        for here, left, right, gain in _slices(parts):
            z, part = torch.bmm(x[here], right.mT), y[here]
            part.baddbmm_(z, left.mT)
            saved += [z, None if gain is None else _apply_gain(part, gain, bias)]
        ctx.groups = len(parts) // 3
        ctx.save_for_backward(x, weight, *parts, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *saved = ctx.saved_tensors
        parts, inner = saved[: 3 * ctx.groups], saved[3 * ctx.groups :]
        groups = list(zip(_slices(parts), inner[::2], inner[1::2], strict=True))
        to_gains = [None if b is None else (grad[here] * b).sum(1, keepdim=True) for (here, *_), _, b in groups]
        if any(before_gain is not None for _, _, before_gain in groups):
            grad = grad.clone()  # it belongs to autograd and must not be written
            for (here, _, _, gain), _, _ in groups:
                if gain is not None:
                    grad[here] *= gain
        to_x = grad @ weight if ctx.needs_input_grad[0] else None
        to_parts: list[Tensor | None] = []
        needed = ctx.needs_input_grad[3:]
        for i, ((here, left, right, _), z, _) in enumerate(groups):
            part = grad[here]
            to_z = torch.bmm(part, left)
            # (w, m), then transposed: the other way round the product is several times slower
            to_parts.append(torch.bmm(z.mT, part).mT if needed[3 * i] else None)
            to_parts.append(torch.bmm(to_z.mT, x[here]) if needed[3 * i + 1] else None)
            to_parts.append(to_gains[i])
            if to_x is not None:
                to_x[here].baddbmm_(to_z, right)
        return to_x, None, None, *to_parts


def _apply_gain(part: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply ``part`` in place, but not the bias in it. Return what it was, without the bias."""
    if bias is not None:
        part -= bias
    before = part.clone()
    part *= gain
    if bias is not None:
        part += bias
    return before


def _slices(parts: Sequence[Any]) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
    """Each group with the slice of x that belongs to its adapters."""
    at = 0
    for left, right, gain in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        yield slice(at, at + len(left)), left, right, gain
        at += len(left)


def _alike(updates: Sequence[Update]) -> Iterator[list[Update]]:
    """Neighbours that one batched product serves: of one width, with or without a gain."""
    for _, group in groupby(updates, key=lambda u: (u.right.shape[1], u.gain is None)):
        yield list(group)


def _by_layer(updates: Sequence[Update], dtype: torch.dtype) -> list[UpdateGroup]:
    """Turn the updates (layers, …) of k adapters into one group per layer."""

    def layers_of(parts: list[Tensor]) -> tuple[Tensor, ...]:
        joined = parts[0].unsqueeze(1) if len(parts) == 1 else torch.stack(parts, dim=1)
        return joined.to(dtype).unbind(0)  # of (layers, k, …); indexing would have each layer fill a gradient of all

    left, right = layers_of([u.left for u in updates]), layers_of([u.right for u in updates])
    gains = [u.gain for u in updates if u.gain is not None]
    return list(zip(left, right, layers_of(gains) if gains else [None] * len(left), strict=True))


def _refuse_dropout(model: nn.Module) -> None:
    """Raise for modules with a dropout rate, and for the bare numbers that attention takes."""
    for name, module in model.named_modules():
        rates = [module.p] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        rates += [v for key, v in vars(module).items() if "drop" in key and isinstance(v, float)]
        if any(rate > 0 for rate in rates):
            raise CannotBatch(f"{name} of the model drops out at random")


class ObservedBatchedAdapter:
    """One adapter of a batched model, for callbacks (an ``ObservedModel``)."""

    def __init__(self, model: BatchedModel, adapter: ExtractedAdapter) -> None:
        self._model, self._adapter, self.ended = model, adapter, False

    def layers(self) -> Iterator[LayerView]:
        """The adapted layers, in the model's order."""
        by_shape = self._model.names_by_shape
        positions = {name: (shape, i) for shape, names in by_shape.items() for i, name in enumerate(names)}
        for name, layer in self._model.layers.items():
            yield self._view(name, layer.matrix, *positions[name])

    def _view(self, name: str, weight: Tensor, shape: Shape, i: int) -> LayerView:
        trained = {f: p for f, p in self._adapter.factors[shape].items() if p.requires_grad}
        return LayerView(
            name,
            weight,
            {f: p.detach()[i] for f, p in trained.items()},
            {f: p.grad[i] for f, p in trained.items() if p.grad is not None},
            lambda: self._adapter.change(shape, i, weight),
        )
