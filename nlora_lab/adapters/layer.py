"""The adapted linear layer: ``y = W x + s·(B N A − B0 N0 A0) x``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nlora_lab.adapters.config import NLoraConfig
from nlora_lab.adapters.fold import Folds
from nlora_lab.adapters.products import add_product, apply, autocasting, pair, stacked
from nlora_lab.adapters.start import Factors, start_factors
from nlora_lab.core.errors import InputError

FACTORS = ("A", "N", "B")


class NLoraLayer(BaseTunerLayer):
    """The adapters of one layer, each a set of factors held as ``nn.Linear`` under its name.

    The start of a Nyström adapter (``A0, N0, B0``; for one that trains N alone, ``N0``) is kept as frozen
    ``nn.Linear`` too, because PEFT then moves, casts, saves and freezes it together with the rest.
    """

    adapter_layer_names = ("nlora_A", "nlora_N", "nlora_B", "nlora_A0", "nlora_N0", "nlora_B0")
    other_param_names = ("r", "scaling", "nlora_dropout")
    base_layer: Any
    nlora_A: nn.ModuleDict
    nlora_N: nn.ModuleDict
    nlora_B: nn.ModuleDict
    nlora_A0: nn.ModuleDict
    nlora_N0: nn.ModuleDict
    nlora_B0: nn.ModuleDict
    # PEFT is untyped, and nn.Module's __getattr__ would make these Tensor | Module
    get_base_layer: Any
    active_adapters: Any

    def __init__(self, base_layer: nn.Module) -> None:
        self.base_layer = base_layer
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())
        self.nlora_dropout = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.frozen_peft_weight_names: dict[str, tuple[str, ...]] = {}
        self.folds = Folds()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        weight = self.get_base_layer().weight
        # Conv1D (GPT-2) stores W transposed, as (in, out)
        self.transposed = isinstance(self.get_base_layer(), Conv1D)
        self.out_features, self.in_features = weight.T.shape if self.transposed else weight.shape

    def base_matrix(self) -> Tensor:
        """The frozen weight as (out, in), whatever way the layer stores it; without what is folded or merged."""
        weight = self.get_base_layer().weight
        return weight.T if self.transposed else weight

    def update_layer(self, adapter: str, config: NLoraConfig, where: str, inference_mode: bool = False) -> None:
        """Add the adapter named ``adapter`` to this layer, which is ``where`` in the model, and initialise it.

        The factors are in float32 or better, whatever W is in: PEFT's ``autocast_adapter_dtype=False``
        rounds them afterwards.
        """
        r = config.rank_of(where)
        self.r[adapter], self.scaling[adapter] = r, config.scaling_of(where)
        self.nlora_dropout[adapter] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        for factor in FACTORS:
            getattr(self, f"nlora_{factor}")[adapter] = self._empty(factor, r, draws=config.start == "random")
        kept = () if not config.residual else ("N",) if config.train == "N" else FACTORS
        for factor in kept:
            getattr(self, f"nlora_{factor}0")[adapter] = self._empty(factor, r)
        frozen = ("nlora_A", "nlora_B") if config.train == "N" else ()
        self.frozen_peft_weight_names[adapter] = (*frozen, *(f"nlora_{factor}0" for factor in kept))
        if config.fold:
            self.folds.expect(adapter)
        if not self._loads_later() and not self.base_matrix().is_meta:
            self._fill(adapter, start_factors(self.original_matrix(), r, config, where), kept)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _empty(self, factor: str, r: int, draws: bool = False) -> nn.Linear:
        """A factor without values; ``draws``: torch's generator moves on as it does for any other nn.Linear."""
        inside, outside = {"A": (self.in_features, r), "N": (r, r), "B": (r, self.out_features)}[factor]
        return nn.Linear(inside, outside, bias=False, device=None if draws else "meta")

    def _loads_later(self) -> bool:
        """Whether this runs under ``low_cpu_mem_usage``, which puts every new parameter on the meta device."""
        return nn.ParameterList([nn.Parameter(torch.empty(0))])[0].is_meta

    def _fill(self, adapter: str, start: Factors, kept: tuple[str, ...]) -> None:
        for factor, value in zip(FACTORS, start, strict=True):
            # an own copy each: leading rows are a view of W, and the start must not move with the factor
            names = [f"nlora_{factor}"] + [f"nlora_{factor}0"] * (factor in kept)
            for name in names:
                dtype = torch.promote_types(value.dtype, torch.float32)
                own = value.to(dtype).clone(memory_format=torch.contiguous_format)
                getattr(self, name)[adapter].weight = nn.Parameter(own)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT's, but never rounds: it would cast loaded float32 factors to the base layer's bf16."""
        target = device if device is not None else self.get_base_layer().weight.device
        if target.type == "meta":  # an offloaded base layer: the factors stay where they are
            return
        for name in (*self.adapter_layer_names, "nlora_dropout"):
            held = getattr(self, name)
            if adapter_name in held and not any(p.is_meta for p in held[adapter_name].parameters()):
                held[adapter_name].to(target)

    def factors(self, adapter: str, zero: str = "") -> Factors:
        """A, N and B of an adapter; with ``zero="0"`` those of its start, as far as it is kept apart."""
        A, N, B = (
            getattr(self, f"nlora_{f}{zero if adapter in getattr(self, f'nlora_{f}{zero}') else ''}")[adapter].weight
            for f in FACTORS
        )
        return A, N, B

    def add_update(self, adapter: str, result: Tensor, x: Tensor) -> Tensor:
        """``result + s·(B N A − B0 N0 A0) x`` for x (…, n) and result (…, m).

        Exactly ``result`` as long as the factors have not moved (see :mod:`nlora_lab.adapters.products`).
        """
        A, N, B = now = self.factors(adapter)
        if not autocasting(x):
            x = self._cast_input_dtype(x, A.dtype)
        x = self.nlora_dropout[adapter](x)
        if adapter not in self.nlora_N0 or adapter in self.folds:
            z, left = apply(now, x)
        elif adapter not in self.nlora_A0:
            z, left = apply((A, N - self.factors(adapter, "0")[1], B), x)
        else:
            z, left = apply(stacked(now, self.factors(adapter, "0")), x)
        return add_product(result, z, left, self.scaling[adapter])

    def add_start(self, adapter: str, result: Tensor, x: Tensor) -> Tensor:
        """``result + s·B0 N0 A0 x``: what a folded adapter that is not at work took out of the weight."""
        start = self.factors(adapter, "0")
        if not autocasting(x):
            x = self._cast_input_dtype(x, start[0].dtype)
        return add_product(result, *apply(start, x), self.scaling[adapter])

    def update_factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """left (m, k), right (k, n) in float32 or better: ``s · left @ right`` is the change of the original weight."""
        now = _wide(self.factors(adapter))
        if adapter not in self.nlora_N0:
            return pair(now, None)
        if adapter not in self.nlora_A0:
            return pair((now[0], now[1] - _wide(self.factors(adapter, "0"))[1], now[2]), None)
        return pair(now, _wide(self.factors(adapter, "0")))

    def get_delta_weight(self, adapter: str) -> Tensor:
        """``s·(B N A − B0 N0 A0)``, the change of the original weight, as a dense (out, in) matrix."""
        left, right = self.update_factors(adapter)
        return left @ right * self.scaling[adapter]

    def start_weight(self, adapter: str) -> Tensor:
        """``s·B0 N0 A0`` as a dense (out, in) matrix in float32 or better."""
        left, right = pair(_wide(self.factors(adapter, "0")), None)
        return left @ right * self.scaling[adapter]

    def merge_factors(self, adapter: str) -> tuple[Tensor, Tensor]:
        """What merging adds to the weight as it is: the whole ``s·B N A`` where the start is folded into it."""
        return pair(_wide(self.factors(adapter)), None) if adapter in self.folds else self.update_factors(adapter)

    def original_matrix(self) -> Tensor:
        """The weight (out, in) as it was before anything was folded into it or merged."""
        W = self.base_matrix()
        for adapter in self.folds.done:
            W = W.to(torch.promote_types(W.dtype, torch.float32)) + self.start_weight(adapter).to(W.device)
        for adapter in self.merged_adapters:
            left, right = self.merge_factors(adapter)
            W = W.to(torch.promote_types(W.dtype, torch.float32)) - (left @ right * self.scaling[adapter]).to(W.device)
        return W

    @torch.no_grad()
    def add_to_base(self, left: Tensor, right: Tensor, scale: float) -> None:
        """Add ``scale · left @ right`` (out, in) to the base weight in place: no second matrix of its size.

        A weight of lower precision than the factors is widened for the sum, and rounded once.
        """
        weight = self.get_base_layer().weight.data
        a, b = (right.T, left.T) if self.transposed else (left, right)
        a, b = a.to(weight.device), b.to(weight.device)
        if weight.dtype == a.dtype:
            weight.addmm_(a, b, alpha=scale)
        else:
            weight.copy_(weight.to(a.dtype).addmm_(a, b, alpha=scale))

    def discard(self, adapter: str) -> None:
        """Forget ``adapter`` without choosing another one; what it had folded into the weight is added back."""
        self.folds.undo(self, adapter)
        for name in (*self.adapter_layer_names, *self.other_param_names):
            held = getattr(self, name)
            if adapter in held:
                del held[adapter]
        self.frozen_peft_weight_names.pop(adapter, None)

    def delete_adapter(self, adapter_name: str) -> None:
        """PEFT's; what the adapter had folded into the weight is added back."""
        self.folds.undo(self, adapter_name)
        super().delete_adapter(adapter_name)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """PEFT's ``convert_to_lora`` (an SVD) may be used; :func:`save_as_lora` is exact and quicker."""
        return True


def _wide(factors: Factors) -> Factors:
    A, N, B = (f.detach().to(torch.promote_types(f.dtype, torch.float32)) for f in factors)
    return A, N, B


class NLoraLinear(nn.Module, NLoraLayer):
    """A linear layer (``nn.Linear`` or transformers' ``Conv1D``) with three-factor adapters."""

    def __init__(self, base_layer: nn.Module, adapter: str, config: NLoraConfig, where: str) -> None:
        super().__init__()
        NLoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter
        self.update_layer(adapter, config, where, inference_mode=config.inference_mode)
        register: Any = self.register_load_state_dict_post_hook  # untyped in torch
        register(Folds.after_loading)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, plus every active adapter's update unless merged or disabled."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            if not self.folds:
                return self.base_layer(x, *args, **kwargs)
        if self.folds:
            self.folds.renew(self)
        result = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for adapter in self.active_adapters if not (self.merged or self.disable_adapters) else ():
            if adapter in self.nlora_A:
                result = self.add_update(adapter, result, x)
        for adapter in self.folds.idle(self):
            result = self.add_start(adapter, result, x)
        return result.to(dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the active adapters' updates to the base weight (PEFT's contract)."""
        self.folds.renew(self)
        for adapter in check_adapters_to_merge(self, adapter_names) or []:
            if adapter not in self.nlora_A:
                continue
            left, right = self.merge_factors(adapter)
            if safe_merge and not bool(torch.isfinite(left @ right).all()):
                raise InputError(f"adapter {adapter!r} has NaN or infinite weights, so it was not merged")
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
        """The bare base layer for PEFT's ``unload`` and ``merge_and_unload``, with nothing left folded into it."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        elif self.merged:
            self.unmerge()
        for adapter in [a for a in self.folds.done if a not in self.merged_adapters]:
            self.folds.undo(self, adapter)
        base: nn.Module = self.get_base_layer()
        return base

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.folds.before_loading(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __repr__(self) -> str:
        return "nlora." + super().__repr__()
