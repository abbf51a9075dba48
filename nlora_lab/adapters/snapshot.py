"""The state of a model before an adapter is injected, and the way back to it."""

from __future__ import annotations

from typing import Any

from torch import nn

from nlora_lab.adapters.layer import NLoraLayer


class Snapshot:
    """The modules and trainable flags of ``model``, and the targets of ``config``, before an injection.

    A snapshot holds references, not copies. An injection writes no weight except by a fold, and ``restore`` adds
    that back.
    """

    def __init__(self, model: nn.Module, config: Any) -> None:
        self._children = [(p, name, child) for p in model.modules() for name, child in p.named_children()]
        self._flags = [(p, p.requires_grad) for p in model.parameters()]
        layers = [m for m in model.modules() if isinstance(m, NLoraLayer)]
        self._active = [(layer, layer._active_adapter) for layer in layers]
        self._config, self._targets = config, config.target_modules

    def restore(self, model: nn.Module, adapter: str) -> None:
        """Undo the injection of ``adapter``."""
        for layer in [m for m in model.modules() if isinstance(m, NLoraLayer)]:
            layer.discard(adapter)
        for parent, name, child in self._children:
            if parent._modules.get(name) is not child:
                setattr(parent, name, child)
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        for layer, active in self._active:
            layer._active_adapter = active
        self._config.target_modules = self._targets
