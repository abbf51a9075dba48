"""The fold: the starts of adapters that have been subtracted from the frozen weight of a layer.

``W`` becomes ``W − s·B0 N0 A0`` once. The start factors stay with the adapter, frozen, because they say what to add
back. A saved adapter carries them too, so loading it on the original base folds exactly what training folded, not what
another machine would compute anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nlora_lab.adapters.factors import FactorLayer
from nlora_lab.adapters.products import Factors, at_least_float32, update_pair

COMPLETE_START = ("nlora_A0", "nlora_N0", "nlora_B0")
START_OF_N = ("nlora_A", "nlora_N0", "nlora_B")  # of an adapter that trains N alone: A and B are frozen


class Folds:
    """The folds of one layer. Every method that touches the weight takes the layer as an argument.

    Attributes:
        applied: by adapter, the parameters A0, N0 and B0 that its fold was made of. If other parameters have taken
            their place, the fold is made again.
    """

    def __init__(self) -> None:
        self._adapters: set[str] = set()  # those whose start belongs in the weight
        self.applied: dict[str, Factors] = {}
        self._weight_is_loaded = False  # a state dict with the weight itself is being loaded

    def __contains__(self, adapter: object) -> bool:
        return adapter in self._adapters

    def __bool__(self) -> bool:
        return bool(self._adapters)

    def register(self, adapter: str) -> None:
        """Note that the start of ``adapter`` belongs in the weight. ``refresh`` puts it there."""
        self._adapters.add(adapter)

    def inactive(self, layer: FactorLayer) -> list[str]:
        """List the folded adapters that are neither active nor merged, or disabled: their start is added back."""
        working = () if layer.disable_adapters else layer.merged_adapters or layer.active_adapters
        return [adapter for adapter in self.applied if adapter not in working]

    @torch.no_grad()
    def refresh(self, layer: FactorLayer) -> None:
        """Fold every start that is not in the weight yet, and fold again where its parameters have been replaced."""
        if torch.compiler.is_compiling():
            return
        for adapter in sorted(self._adapters):
            now = layer.start_factors(adapter)
            before = self.applied.get(adapter)
            if before is not None and all(a is b for a, b in zip(now, before, strict=True)):
                continue
            if before is not None and _equal(now, before):  # moved, cast or copied with the model
                self.applied[adapter] = now
                continue
            if before is not None:
                _add(layer, before, layer.scaling[adapter])
                del self.applied[adapter]
            if not any(p.is_meta for p in now) and not layer.base_matrix().is_meta:
                _add(layer, now, -layer.scaling[adapter])
                self.applied[adapter] = now

    @torch.no_grad()
    def remove(self, layer: FactorLayer, adapter: str) -> None:
        """Add the start back to the weight, exact to rounding, and forget the adapter."""
        if adapter in self.applied:
            self.refresh(layer)
        self._adapters.discard(adapter)
        before = self.applied.pop(adapter, None)
        if before is not None:
            _add(layer, before, layer.scaling[adapter])

    @torch.no_grad()
    def before_loading(self, layer: FactorLayer, state_dict: dict[str, Any], prefix: str) -> None:
        """Take out each fold whose start is about to be overwritten. A weight in the file comes already folded."""
        self._weight_is_loaded = f"{prefix}base_layer.weight" in state_dict
        for adapter, before in list(self.applied.items()) if not self._weight_is_loaded else ():
            loaded = [state_dict.get(f"{prefix}{name}.{adapter}.weight") for name in _names(layer, adapter)]
            if any(tensor is None for tensor in loaded) or _equal(loaded, before):
                continue
            _add(layer, before, layer.scaling[adapter])
            del self.applied[adapter]

    @staticmethod
    def after_loading(layer: Any, _: object) -> None:
        """Fold what the file brought. This is a hook of ``load_state_dict``."""
        folds: Folds = layer.folds
        if folds._weight_is_loaded:
            folds.applied = {adapter: layer.start_factors(adapter) for adapter in sorted(folds._adapters)}
        elif folds:
            folds.refresh(layer)


def _names(layer: FactorLayer, adapter: str) -> tuple[str, ...]:
    return COMPLETE_START if adapter in layer.nlora_A0 else START_OF_N


def _equal(a: Sequence[Any], b: Sequence[Tensor]) -> bool:
    pairs = list(zip(a, b, strict=True))
    if any(x.is_meta or y.is_meta or x.shape != y.shape for x, y in pairs):
        return False
    return all(torch.equal(x.to(y.device, y.dtype), y) for x, y in pairs)


def _add(layer: FactorLayer, start: Factors, scale: float) -> None:
    A, N, B = (at_least_float32(p) for p in start)
    layer.add_to_base(*update_pair((A, N, B)), scale)
