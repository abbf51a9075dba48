"""The tuner: it puts three-factor adapters into the linear layers of a model, by PEFT's rules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from nlora_lab.adapters.checks import check_adapter_name, check_saved_shapes, check_targets
from nlora_lab.adapters.config import NLoraConfig
from nlora_lab.adapters.layer import NLoraLayer, NLoraLinear
from nlora_lab.adapters.snapshot import Snapshot
from nlora_lab.core.errors import InputError


class NLoraModel(BaseTuner):
    """A model whose target layers have three-factor adapters, made by ``peft.get_peft_model``.

    An adapter goes in completely or not at all. All targets are checked first, and whatever still fails half-way is
    rolled back, so that the model is left as it was.
    """

    prefix = "nlora_"
    tuner_layer_cls = NLoraLayer
    # target_modules=None means what PEFT's LoRA takes for this architecture
    target_module_mapping: ClassVar[dict[str, Any]] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into ``model`` as PEFT does, completely or not at all.

        The start is folded into the weights last, when nothing else can fail.

        Args:
            model: the model.
            adapter_name: the name of the adapter.
            *args: passed on to PEFT.
            **kwargs: passed on to PEFT.

        Raises:
            InputError: a target layer cannot have this adapter.
        """
        config: NLoraConfig = self.peft_config[adapter_name]
        snapshot = Snapshot(model, config)
        self._before = snapshot  # for a file that turns out not to fit, once the adapter is in
        try:
            check_adapter_name(model, adapter_name)
            check_targets(model, config, self._targets(model, config))
            super().inject_adapter(model, adapter_name, *args, **kwargs)
            for layer in model.modules():
                if isinstance(layer, NLoraLayer) and adapter_name in layer.folds:
                    layer.folds.refresh(layer)
        except BaseException:
            snapshot.restore(model, adapter_name)
            self.peft_config.pop(adapter_name, None)  # with transformers' add_adapter this is the model's own dict
            raise

    def _targets(self, model: nn.Module, config: NLoraConfig) -> dict[str, nn.Module]:
        """Return the modules that PEFT is going to put this adapter on, by name, without changing anything."""
        inside = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, NLoraLayer))
        with _resolved(self, config, model):
            return {
                name: module
                for name, module in model.named_modules()
                if name and not name.startswith(inside) and self._check_target_module_exists(config, name)
            }

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
        if isinstance(target, NLoraLayer):
            target.update_layer(adapter_name, config, current_key, inference_mode=config.inference_mode)
            return
        layer = NLoraLinear(target, adapter_name, config, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: Any) -> None:
        """Replace a module as PEFT does, but let a trained head consist of several layers, as RoBERTa's does."""
        if isinstance(child, ModulesToSaveWrapper):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Leave the factors in float32 or wider, as they are. ``False`` asks for the dtype of the base weight."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            return
        for layer_name, layer in self.model.named_modules():
            if isinstance(layer, NLoraLayer) and adapter_name in layer.nlora_A:
                _round_to_base(layer, adapter_name, layer_name)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters as PEFT does.

        Args:
            adapter_names: the adapters to merge. ``None`` means the active ones.
            safe_merge: whether to check every layer before the first one is written.

        Raises:
            InputError: ``safe_merge`` is set, and an adapter has NaN or infinite weights.
        """
        if safe_merge:
            self._check_finite(adapter_names)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:
        if merge and safe_merge:
            self._check_finite(adapter_names)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _check_finite(self, adapter_names: list[str] | None) -> None:
        for layer_name, layer in self.model.named_modules():
            for adapter in (adapter_names or layer.active_adapters) if isinstance(layer, NLoraLayer) else ():
                if adapter in layer.nlora_A and not all(bool(f.isfinite().all()) for f in layer.factors(adapter)):
                    raise InputError(
                        f"{layer_name}: adapter {adapter!r} has NaN or infinite weights, so nothing was merged; "
                        "load or train it again"
                    )

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse ``adapter_names``, which PEFT would ignore silently: only LoRA can mix adapters in a batch."""
        if kwargs.get("adapter_names") is not None:
            raise InputError(
                "adapter_names: this adapter cannot be mixed with others in one batch; run the rows of each adapter "
                "after set_adapter, or export the adapters with save_as_lora, because PEFT's LoRA can mix them"
            )
        yield

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: NLoraConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Name the tensors of a file as PEFT does, and refuse a file that was made for another base model.

        An adapter that was put in only to be loaded is taken out again. One that was in the model before stays.
        """
        renamed = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        try:
            check_saved_shapes(model, renamed, adapter_name)
        except InputError:
            tuner = getattr(model, "base_model", None)
            if isinstance(tuner, NLoraModel) and config.awaits_weights:
                tuner._before.restore(tuner.model, adapter_name)
                tuner.peft_config.pop(adapter_name, None)
            raise
        config.awaits_weights = False
        return renamed


@contextmanager
def _resolved(tuner: NLoraModel, config: NLoraConfig, model: nn.Module) -> Iterator[None]:
    """Resolve ``target_modules`` to names while the targets are looked for. PEFT resolves it for good later on."""
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    before = config.target_modules
    try:
        tuner._prepare_adapter_config(config, tuner.get_model_config(model))
        _maybe_include_all_linear_layers(config, model)
        yield
    finally:
        config.target_modules = before


def _round_to_base(layer: NLoraLayer, adapter: str, layer_name: str) -> None:
    dtype = layer.base_matrix().dtype
    for name in layer.adapter_layer_names:
        held = getattr(layer, name)
        if adapter in held and not held[adapter].weight.is_meta:
            held[adapter].to(dtype)
            if not bool(torch.isfinite(held[adapter].weight).all()):
                raise InputError(
                    f"{layer_name}: the start does not fit into {dtype}; leave autocast_adapter_dtype on, which keeps "
                    "the adapter in float32"
                )
