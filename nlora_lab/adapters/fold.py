"""The fold: which adapters' starts have been subtracted from a layer's frozen weight.

``W`` becomes ``W − s·B0 N0 A0`` once. The start factors stay with the adapter, frozen, because they say what
to add back; they are also what a saved adapter carries, so that loading it on the original base folds
exactly what was folded in training, not what another machine would compute anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from nlora_lab.adapters.layer import NLoraLayer

START = ("nlora_A0", "nlora_N0", "nlora_B0")
FROZEN_A_AND_B = ("nlora_A", "nlora_N0", "nlora_B")  # of an adapter that trains N alone


class Folds:
    """The folds of one layer; every method that touches the weight gets the layer as its argument."""

    def __init__(self) -> None:
        self.wanted: set[str] = set()
        self.done: dict[str, list[nn.Parameter]] = {}
        """The parameters each fold was made of: where others have taken their place, it is renewed."""
        self._whole = False  # a state dict with the weight itself is being loaded

    def __contains__(self, adapter: object) -> bool:
        return adapter in self.wanted

    def __bool__(self) -> bool:
        return bool(self.wanted)

    def expect(self, adapter: str) -> None:
        """``adapter`` is one whose start belongs into the weight."""
        self.wanted.add(adapter)

    def idle(self, layer: NLoraLayer) -> list[str]:
        """The adapters that are folded but neither active nor merged, or disabled: their start is added back."""
        working = () if layer.disable_adapters else layer.merged_adapters or layer.active_adapters
        return [adapter for adapter in self.done if adapter not in working]

    @torch.no_grad()
    def renew(self, layer: NLoraLayer) -> None:
        """Fold what is wanted and not done, and again where the start's parameters have been replaced."""
        if torch.compiler.is_compiling():
            return
        for adapter in sorted(self.wanted):
            now = _start(layer, adapter)
            before = self.done.get(adapter)
            if before is not None and all(a is b for a, b in zip(now, before, strict=True)):
                continue
            if before is not None and _equal(now, before):  # moved, cast or copied with the model
                self.done[adapter] = now
                continue
            if before is not None:
                _add(layer, before, layer.scaling[adapter])
                del self.done[adapter]
            if not any(p.is_meta for p in now) and not layer.base_matrix().is_meta:
                _add(layer, now, -layer.scaling[adapter])
                self.done[adapter] = now

    @torch.no_grad()
    def undo(self, layer: NLoraLayer, adapter: str) -> None:
        """Add the start back to the weight, exact to rounding, and forget the adapter."""
        if adapter in self.done:
            self.renew(layer)
        self.wanted.discard(adapter)
        before = self.done.pop(adapter, None)
        if before is not None:
            _add(layer, before, layer.scaling[adapter])

    @torch.no_grad()
    def before_loading(self, layer: NLoraLayer, state_dict: dict[str, Any], prefix: str) -> None:
        """Take out a fold whose start is about to be overwritten; a loaded weight comes already folded."""
        self._whole = f"{prefix}base_layer.weight" in state_dict
        for adapter, before in list(self.done.items()) if not self._whole else ():
            new = [state_dict.get(f"{prefix}{name}.{adapter}.weight") for name in _names(layer, adapter)]
            if any(t is None for t in new) or _equal(new, before):
                continue
            _add(layer, before, layer.scaling[adapter])
            del self.done[adapter]

    @staticmethod
    def after_loading(layer: Any, _: object) -> None:
        """Hook: fold what the file brought."""
        folds: Folds = layer.folds
        if folds._whole:
            folds.done = {adapter: _start(layer, adapter) for adapter in sorted(folds.wanted)}
        elif folds:
            folds.renew(layer)


def _names(layer: NLoraLayer, adapter: str) -> tuple[str, ...]:
    return START if adapter in layer.nlora_A0 else FROZEN_A_AND_B


def _start(layer: NLoraLayer, adapter: str) -> list[nn.Parameter]:
    return [getattr(layer, name)[adapter].weight for name in _names(layer, adapter)]


def _equal(a: list[Any], b: list[Any]) -> bool:
    pairs = list(zip(a, b, strict=True))
    if any(x.is_meta or y.is_meta or x.shape != y.shape for x, y in pairs):
        return False
    return all(torch.equal(x.to(y.device, y.dtype), y) for x, y in pairs)


def _add(layer: NLoraLayer, start: list[nn.Parameter], scale: float) -> None:
    A, N, B = (p.detach().to(torch.promote_types(p.dtype, torch.float32)) for p in start)
    layer.add_to_base(B @ N, A, scale)
