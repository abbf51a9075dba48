"""The adapted linear layer: ``y = W x + s·(B N A − B0 N0 A0) x``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from nlora_lab.adapters.config import NLoraConfig
from nlora_lab.adapters.factors import FactorLayer
from nlora_lab.adapters.fold import Folds
from nlora_lab.adapters.products import (
    NO_START,
    Factors,
    add_update,
    at_least_float32,
    autocasting,
    subtract_start,
    update_pair,
)
from nlora_lab.adapters.start import start_factors
from nlora_lab.core.array_types import Float
from nlora_lab.core.errors import InputError

FACTORS = ("A", "N", "B")


class NLoraLayer(FactorLayer):
    """The adapters of one layer: how they are added, folded, applied and removed.

    Attributes:
        r: the rank of each adapter.
        scaling: the scale s of each adapter.
        folds: the starts that have been subtracted from the frozen weight.
        merged_adapters: the adapters whose update has been added to the frozen weight.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.folds = Folds()

    def update_layer(self, adapter: str, config: NLoraConfig, layer_name: str, inference_mode: bool = False) -> None:
        """Add an adapter to this layer and initialise it.

        The factors are in float32 or wider, whatever dtype W has. PEFT's ``autocast_adapter_dtype=False`` rounds them
        afterwards.

        Args:
            adapter: the name of the adapter.
            config: its configuration.
            layer_name: the dotted name of this layer in the model.
            inference_mode: whether the adapter is frozen.

        Raises:
            InputError: the weight has no such start.
        """
        r = config.rank_of(layer_name)
        self.r[adapter], self.scaling[adapter] = r, config.scaling_of(layer_name)
        self.nlora_dropout[adapter] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        for factor in FACTORS:
            getattr(self, f"nlora_{factor}")[adapter] = self._empty_factor(factor, r, draws=config.start == "random")
        subtracted = () if not config.residual else ("N",) if config.train == "N" else FACTORS
        for factor in subtracted:
            getattr(self, f"nlora_{factor}0")[adapter] = self._empty_factor(factor, r)
        frozen = ("nlora_A", "nlora_B") if config.train == "N" else ()
        self.frozen_peft_weight_names[adapter] = (*frozen, *(f"nlora_{factor}0" for factor in subtracted))
        if config.fold:
            self.folds.register(adapter)
        if not self._is_loaded_later() and not self.base_matrix().is_meta:
            self._fill(adapter, start_factors(self.original_matrix(), r, config, layer_name), subtracted)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _empty_factor(self, factor: str, r: int, draws: bool = False) -> nn.Linear:
        """Make a factor without values. ``draws``: torch's generator advances as for any other ``nn.Linear``."""
        inputs, outputs = {"A": (self.in_features, r), "N": (r, r), "B": (r, self.out_features)}[factor]
        return nn.Linear(inputs, outputs, bias=False, device=None if draws else "meta")

    def _is_loaded_later(self) -> bool:
        """Return whether this runs under ``low_cpu_mem_usage``, which puts every new parameter on the meta device."""
        return nn.ParameterList([nn.Parameter(torch.empty(0))])[0].is_meta

    def _fill(self, adapter: str, start: Factors, subtracted: tuple[str, ...]) -> None:
        for factor, value in zip(FACTORS, start, strict=True):
            # a copy each: leading rows are a view of W, and the start must not move with the factor
            for name in (f"nlora_{factor}", f"nlora_{factor}0")[: 1 + (factor in subtracted)]:
                copy = at_least_float32(value).clone(memory_format=torch.contiguous_format)
                getattr(self, name)[adapter].weight = nn.Parameter(copy)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Do as PEFT does, but never round: PEFT would cast loaded float32 factors to the base layer's bf16."""
        target = device if device is not None else self.get_base_layer().weight.device
        if target.type == "meta":  # an offloaded base layer: the factors stay where they are
            return
        for name in (*self.adapter_layer_names, "nlora_dropout"):
            held = getattr(self, name)
            if adapter_name in held and not any(p.is_meta for p in held[adapter_name].parameters()):
                held[adapter_name].to(target)

    def add_update(
        self, adapter: str, result: Float[Tensor, "*rows m"], x: Float[Tensor, "*rows n"]
    ) -> Float[Tensor, "*rows m"]:
        """Return ``result + s·(B N A − B0 N0 A0) x``, or ``result + s·B N A x`` where the start is folded into W.

        This is exactly ``result`` until the factors move (see ``nlora_lab.adapters.products``).

        Args:
            adapter: the name of the adapter.
            result: the output of the base layer, ``(*rows, m)``.
            x: the input of the layer, ``(*rows, n)``.

        Returns:
            The sum, ``(*rows, m)``.
        """
        factors, start, scale = self.adapter_state(adapter)
        x = self.nlora_dropout[adapter](self._cast_unless_autocast(x, factors[0].dtype))
        if adapter in self.folds:
            start = NO_START
        return add_update(result, x, subtract_start(factors, start), scale)

    def add_start(
        self, adapter: str, result: Float[Tensor, "*rows m"], x: Float[Tensor, "*rows n"]
    ) -> Float[Tensor, "*rows m"]:
        """Return ``result + s·B0 N0 A0 x``: what the fold of an inactive adapter took out of the weight.

        Args:
            adapter: the name of the adapter.
            result: the output of the base layer, ``(*rows, m)``.
            x: the input of the layer, ``(*rows, n)``.

        Returns:
            The sum, ``(*rows, m)``.
        """
        start = self.start_factors(adapter)
        return add_update(result, self._cast_unless_autocast(x, start[0].dtype), start, self.scaling[adapter])

    def _cast_unless_autocast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x if autocasting(x) else self._cast_input_dtype(x, dtype)

    def merge_factors(self, adapter: str) -> tuple[Float[Tensor, "m k"], Float[Tensor, "k n"]]:
        """Return what merging adds to the weight: all of ``B N A`` where the start is folded into W.

        Args:
            adapter: the name of the adapter.

        Returns:
            left (m, k) and right (k, n), without the scale, in float32 or wider.
        """
        if adapter not in self.folds:
            return self.update_factors(adapter)
        return update_pair(self.adapter_state(adapter).at_least_float32().factors)

    def original_matrix(self) -> Float[Tensor, "m n"]:
        """Return the weight as (out, in), as it was before anything was folded into it or merged."""
        W = self.base_matrix()
        for adapter in self.folds.applied:
            W = at_least_float32(W) + self.start_weight(adapter).to(W.device)
        for adapter in self.merged_adapters:
            left, right = self.merge_factors(adapter)
            W = at_least_float32(W) - (left @ right * self.scaling[adapter]).to(W.device)
        return W

    def discard(self, adapter: str) -> None:
        """Remove an adapter without activating another one. What its fold took out of the weight is added back.

        Args:
            adapter: the name of the adapter.
        """
        self.folds.remove(self, adapter)
        for name in (*self.adapter_layer_names, *self.other_param_names):
            held = getattr(self, name)
            if adapter in held:
                del held[adapter]
        self.frozen_peft_weight_names.pop(adapter, None)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter as PEFT does. What its fold took out of the weight is added back.

        Args:
            adapter_name: the name of the adapter.
        """
        self.folds.remove(self, adapter_name)
        super().delete_adapter(adapter_name)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return ``True``: PEFT's ``convert_to_lora`` works, by an SVD. ``save_as_lora`` is exact and quicker.

        Args:
            adapter_name: the name of the adapter.
        """
        return True


class NLoraLinear(nn.Module, NLoraLayer):
    """A linear layer (``nn.Linear`` or transformers' ``Conv1D``) with three-factor adapters."""

    def __init__(self, base_layer: nn.Module, adapter: str, config: NLoraConfig, layer_name: str) -> None:
        super().__init__()
        NLoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter
        self.update_layer(adapter, config, layer_name, inference_mode=config.inference_mode)
        register: Any = self.register_load_state_dict_post_hook  # untyped in torch
        register(Folds.after_loading)

    def forward(self, x: Float[Tensor, "*rows n"], *args: Any, **kwargs: Any) -> Float[Tensor, "*rows m"]:
        """Return the output of the base layer plus the update of every active adapter.

        A merged update is in the base layer already. Disabled adapters add nothing.

        Args:
            x: the input, ``(*rows, n)``.
            *args: passed on to the base layer.
            **kwargs: passed on to the base layer.

        Returns:
            The output, ``(*rows, m)``, in the dtype of the base layer's output.
        """
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            if not self.folds:
                return self.base_layer(x, *args, **kwargs)
        if self.folds:
            self.folds.refresh(self)
        result = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for adapter in self.active_adapters if not (self.merged or self.disable_adapters) else ():
            if adapter in self.nlora_A:
                result = self.add_update(adapter, result, x)
        for adapter in self.folds.inactive(self):
            result = self.add_start(adapter, result, x)
        return result.to(dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of adapters to the base weight, as PEFT defines it.

        Args:
            safe_merge: whether to check first that the update is finite.
            adapter_names: the adapters to merge. ``None`` means the active ones.

        Raises:
            InputError: ``safe_merge`` is set, and the weights of an adapter are NaN or infinite.
        """
        self.folds.refresh(self)
        for adapter in check_adapters_to_merge(self, adapter_names) or []:
            if adapter not in self.nlora_A:
                continue
            left, right = self.merge_factors(adapter)
            if safe_merge and not bool(torch.isfinite(left @ right).all()):
                raise InputError(
                    f"adapter {adapter!r} has NaN or infinite weights and was not merged; load or train it again"
                )
            self.add_to_base(left, right, self.scaling[adapter])
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Take merged updates out of the base weight again, exact to rounding."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            if adapter in self.nlora_A:
                self.add_to_base(*self.merge_factors(adapter), -self.scaling[adapter])

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the bare base layer for PEFT's ``unload`` and ``merge_and_unload``, with nothing left folded into it.

        Args:
            merge: whether to merge the adapters first.
            safe_merge: whether to check that the updates are finite before they are merged.
            adapter_names: the adapters to merge. ``None`` means the active ones.

        Returns:
            The base layer.
        """
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        elif self.merged:
            self.unmerge()
        for adapter in [name for name in self.folds.applied if name not in self.merged_adapters]:
            self.folds.remove(self, adapter)
        base: nn.Module = self.get_base_layer()
        return base

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.folds.before_loading(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __repr__(self) -> str:
        return "nlora." + super().__repr__()
