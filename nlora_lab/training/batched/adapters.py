"""An adapter lifted out of the model it was built in: its numbers, and the update they make of each weight.

Whatever the method, the update of a weight (m, n) is a product ``left (m, w) @ right (w, n)`` of the rank's width, or
of twice the rank where a start is subtracted, and for DoRA a gain of each row on top. The layers of
one shape stand in one tensor each, (layers, …): one operation then serves all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nlora_lab.models.layers import PEFT_PREFIX, layer_shape, weight_matrix
from nlora_lab.training.layer_views import Change

Shape = tuple[int, int]
"""(out, in) of a weight."""

Factors = dict[str, Tensor]
"""By the paper's letters: A (layers, r, n), N (layers, r, r), B (layers, m, r), and DoRA's lengths m (layers, m)."""

CLOSE = 1e-4  # of ‖W‖: more than rounding when a method has taken its start out of the frozen weight


class CannotBatch(Exception):
    """This adapter, or this model, cannot share a frozen base with others; it says why."""


class Update(NamedTuple):
    """Of the layers of one shape: left (layers, m, w), right (layers, w, n), gain (layers, 1, m) or ``None``."""

    left: Tensor
    right: Tensor
    gain: Tensor | None


@dataclass(frozen=True)
class _Piece:
    """One layer's part of an adapter: what trains and what is frozen, the start it counts from, its scale."""

    factors: dict[str, nn.Parameter]
    start: Factors
    scale: float


class ExtractedAdapter:
    """The numbers of the adapter in ``model``, a ``PeftModel``, as leaf tensors of their own.

    ``base`` is the untouched base model, whose weights the updates count from. A method that has written its start
    into the frozen weight (PiSSA, OLoRA) becomes the same function as a difference, ``s·(B A − B0 A0)``. Raises
    :class:`CannotBatch` for an adapter that is more than such an update.
    """

    def __init__(self, model: Any, base: Any) -> None:
        names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        pieces: dict[str, _Piece] = {}
        for name, layer in model.named_modules():
            if hasattr(layer, "get_base_layer") and hasattr(layer, "active_adapters"):
                where = name.removeprefix(PEFT_PREFIX)
                pieces[where] = _piece(where, layer, weight_matrix(base.get_submodule(where)))
        read = [id(p) for piece in pieces.values() for p in piece.factors.values() if p.requires_grad]
        scales = {piece.scale for piece in pieces.values()}
        if sorted(read) != sorted(names) or len(scales) != 1:
            raise CannotBatch("the adapter trains more than its factors, or scales its layers differently")
        (self.scale,) = scales

        by_shape: dict[Shape, list[str]] = {}
        for where in pieces:
            by_shape.setdefault(layer_shape(base.get_submodule(where)), []).append(where)
        #: which layers: those of one shape in the order they stand in the tensors
        self.layers = by_shape
        self.now: dict[Shape, Factors] = {}
        self.start: dict[Shape, Factors] = {}
        self._names: dict[Shape, dict[str, list[str]]] = {}
        for shape, layers in by_shape.items():
            some = [pieces[where] for where in layers]
            if len({(tuple(p.factors), tuple(p.start)) for p in some}) != 1:
                raise CannotBatch("the adapter is not of one kind in all layers")
            self.now[shape] = {f: _leaf([p.factors[f] for p in some]) for f in some[0].factors}
            self.start[shape] = {f: torch.stack([p.start[f].detach() for p in some]) for f in some[0].start}
            self._names[shape] = {f: [names[id(p.factors[f])] for p in some] for f in _moving(self.now[shape])}
        some_now, some_start = next(iter(self.now.values())), next(iter(self.start.values()))
        #: of its updates; where ranks differ from layer to layer, that of the first ones
        self.width = some_now["A"].shape[1] * (2 if "A" in some_start else 1)
        self._order = list(names.values())

    def parameters(self) -> list[Tensor]:
        """What trains, as leaves."""
        return [p for factors in self.now.values() for p in _moving(factors).values()]

    def to(self, device: torch.device) -> ExtractedAdapter:
        """Move everything to ``device``."""
        for tensors in (*self.now.values(), *self.start.values()):
            for name, value in tensors.items():
                tensors[name] = value.detach().to(device).requires_grad_(value.requires_grad)
        return self

    def updates(self, weights: Mapping[Shape, list[Tensor]]) -> dict[Shape, Update]:
        """What each weight changes by now, differentiable. ``weights`` (m, n) are those of :attr:`layers`."""
        return {shape: update(now, self.start[shape], self.scale, weights[shape]) for shape, now in self.now.items()}

    @torch.no_grad()
    def change(self, shape: Shape, number: int, weight: Tensor) -> Change:
        """How far the layer ``number`` among those of ``shape`` is from its weight (m, n)."""
        here = slice(number, number + 1)
        now, start = ({f: t[here] for f, t in factors[shape].items()} for factors in (self.now, self.start))
        left, right, gain = update(now, start, self.scale, [weight])
        if gain is None:
            return Change(left[0].detach(), right[0].detach())  # a view of a leaf wants a gradient even here
        return Change((weight + left[0] @ right[0]) * gain[0].T - weight)

    def weights(self) -> dict[str, Tensor]:
        """What trains, by the names it has in the model it was built in, in their order: copies on the CPU."""
        own = {
            name: value.detach().cpu().clone()
            for shape, letters in self._names.items()
            for factor, names in letters.items()
            for name, value in zip(names, self.now[shape][factor], strict=True)
        }
        return {name: own[name] for name in self._order}


def update(now: Factors, start: Factors, scale: float, weights: Iterable[Tensor]) -> Update:
    r"""The change of the weights that factors with a leading dimension make, written so that nothing large cancels.

    ``s·B A``; ``s·B N A``; with a start subtracted, as in :mod:`nlora_lab.adapters.products`, in differences that
    are exactly zero until a factor moves: ``s·B (N − N0) A``, or with :math:`A' = N A` (A itself where there is no N)

    .. math:: s\,(B A' - B_0 A'_0) = s\,[B - B_0, B_0]\,[A'; A' - A'_0].
    """
    A, N, B = now["A"], now.get("N"), now["B"]
    if "A" not in start:
        core = N if N is None or "N" not in start else N - start["N"]
        left, right = B if core is None else B @ core, A
    else:
        moved = A - start["A"]
        if N is not None:
            A, moved = N @ A, (N - start["N"]) @ start["A"] + N @ moved
        left, right = torch.cat([B - start["B"], start["B"]], dim=-1), torch.cat([A, moved], dim=-2)
    lengths = now.get("m")
    return Update(left * scale, right, None if lengths is None else _gain(lengths, left * scale, right, weights))


def _gain(lengths: Tensor, left: Tensor, right: Tensor, weights: Iterable[Tensor]) -> Tensor:
    """DoRA's ``m / ‖row of W + s B A‖``, (layers, 1, m), the norm held constant for the gradient as its authors do.

    ``‖w + l R‖² = ‖w‖² + 2 l·(R w) + l (R Rᵀ) lᵀ``: no matrix of W's size is made.
    """
    with torch.no_grad():
        across = torch.stack([W @ R.T for W, R in zip(weights, right, strict=True)])  # (layers, m, w)
        own = torch.stack([W.square().sum(1) for W in weights])  # (layers, m)
        squared = own + ((2 * across + left @ (right @ right.mT)) * left).sum(-1)
        norm = squared.clamp(min=0).sqrt()
    return (lengths / norm).unsqueeze(1)


def _piece(where: str, layer: Any, weight: Tensor) -> _Piece:
    if len(layer.active_adapters) != 1:
        raise CannotBatch(f"{where} has not one adapter")
    adapter = layer.active_adapters[0]
    scale = float(layer.scaling[adapter])
    dropouts = layer.nlora_dropout if hasattr(layer, "nlora_A") else getattr(layer, "lora_dropout", {})
    if adapter in dropouts and getattr(dropouts[adapter], "p", 0.0) > 0:
        raise CannotBatch(f"the adapter of {where} drops out at random")
    if hasattr(layer, "nlora_A"):
        if layer.folds:
            raise CannotBatch(f"the start of {where} is folded into its weight")
        factors = {f: getattr(layer, f"nlora_{f}")[adapter].weight for f in "ANB"}
        kept = {f: getattr(layer, f"nlora_{f}0") for f in "ANB"}
        return _Piece(factors, {f: held[adapter].weight for f, held in kept.items() if adapter in held}, scale)
    if not hasattr(layer, "lora_A") or adapter not in layer.lora_A:
        raise CannotBatch(f"{where} is a {type(layer).__name__}")
    factors = {"A": layer.lora_A[adapter].weight, "B": layer.lora_B[adapter].weight}
    if adapter in layer.lora_magnitude_vector:
        factors["m"] = layer.lora_magnitude_vector[adapter].weight
    elif adapter in getattr(layer, "lora_variant", {}):
        raise CannotBatch(f"{where} is a variant of LoRA")
    return _Piece(factors, _taken_out(where, layer, weight, factors, scale), scale)


def _taken_out(where: str, layer: Any, weight: Tensor, factors: Factors, scale: float) -> Factors:
    """The start that a method has subtracted from the frozen weight; empty if that is as it was."""
    left = weight_matrix(layer.get_base_layer())
    if torch.equal(left, weight):
        return {}
    A, B = factors["A"].detach(), factors["B"].detach()
    if float((left + scale * (B @ A) - weight).norm()) > CLOSE * float(weight.norm()):
        raise CannotBatch(f"{where} has a frozen weight that is not W less the start")
    return {"A": A.clone(), "B": B.clone()}


def _leaf(parts: list[nn.Parameter]) -> Tensor:
    if len({(p.shape, p.requires_grad) for p in parts}) != 1:
        raise CannotBatch("the adapter has not one rank in all layers")
    return torch.stack([p.detach() for p in parts]).requires_grad_(parts[0].requires_grad)


def _moving(factors: Factors) -> Factors:
    return {f: p for f, p in factors.items() if p.requires_grad}
