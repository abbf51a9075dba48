"""The tuner: puts three-factor adapters into a model's linear layers, by PEFT's rules."""

from __future__ import annotations

from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers.pytorch_utils import Conv1D

from nlora_lab.adapters.config import NLoraConfig
from nlora_lab.adapters.layer import NLoraLayer, NLoraLinear
from nlora_lab.errors import InputError


class NLoraModel(BaseTuner):
    """A model whose target layers carry three-factor adapters; made by ``peft.get_peft_model``."""

    prefix = "nlora_"
    tuner_layer_cls = NLoraLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(
        self,
        config: NLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        check_target(target, config.r, current_key)
        if isinstance(target, NLoraLayer):
            target.update_layer(adapter_name, config, inference_mode=config.inference_mode)
            return
        layer = NLoraLinear(target, adapter_name, config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def check_target(target: nn.Module, rank: int, where: str) -> None:
    """Raise :class:`InputError`, naming the layer, unless it is one this adapter can sit on."""
    base = target.get_base_layer() if isinstance(target, NLoraLayer) else target
    if not isinstance(base, nn.Linear | Conv1D):
        raise InputError(
            f"{where} is a {type(base).__name__}; this adapter sits on nn.Linear and Conv1D only: "
            "leave the layer out of target_modules"
        )
    if not base.weight.is_floating_point():
        raise InputError(
            f"{where} has quantised weights ({base.weight.dtype}); load the base model unquantised, "
            "because the start is computed from the weights themselves"
        )
    smaller = min(base.weight.shape)
    if rank > smaller:
        raise InputError(f"r={rank} is above the smaller side of {where}, {smaller}; choose a rank up to {smaller}")
