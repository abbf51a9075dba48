"""The adapted linear layer: ``y = W x + s·(B N A − B0 N0 A0) x``."""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nlora_lab.adapters.config import NLoraConfig
from nlora_lab.errors import InputError
from nlora_lab.lowrank import nystrom

START_FACTORS = ("nlora_A0", "nlora_N0", "nlora_B0")


class NLoraLayer(BaseTunerLayer):
    """The adapters of one layer, each a set of factors held as ``nn.Linear`` under its name.

    The start of a Nyström adapter (``A0, N0, B0``) is kept as frozen ``nn.Linear`` too, because
    PEFT then moves, casts, saves and freezes it together with the rest.
    """

    adapter_layer_names = ("nlora_A", "nlora_N", "nlora_B", *START_FACTORS)
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
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        weight = self.get_base_layer().weight
        # Conv1D (GPT-2) stores W transposed, as (in, out)
        self.transposed = isinstance(self.get_base_layer(), Conv1D)
        self.out_features, self.in_features = weight.T.shape if self.transposed else weight.shape

    def base_matrix(self) -> Tensor:
        """The frozen weight as (out, in), whatever way the layer stores it."""
        weight = self.get_base_layer().weight
        return weight.T if self.transposed else weight

    def update_layer(self, adapter: str, config: NLoraConfig, inference_mode: bool = False) -> None:
        """Add the adapter named ``adapter`` to this layer and initialise it."""
        r, m, n = config.r, self.out_features, self.in_features
        self.r[adapter], self.scaling[adapter] = r, config.scaling
        self.nlora_dropout[adapter] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        shapes = {"A": (n, r), "N": (r, r), "B": (r, m)}  # nn.Linear(in, out)
        for factor, (inside, outside) in shapes.items():
            getattr(self, f"nlora_{factor}")[adapter] = nn.Linear(inside, outside, bias=False)
            if config.residual:
                getattr(self, f"nlora_{factor}0")[adapter] = nn.Linear(inside, outside, bias=False)
        if config.residual:
            self.frozen_peft_weight_names[adapter] = START_FACTORS
        self._move_adapter_to_device_of_base_layer(adapter)
        if self.nlora_A[adapter].weight.device.type != "meta" and self.base_matrix().device.type != "meta":
            self.reset_parameters(adapter, config)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    @torch.no_grad()
    def reset_parameters(self, adapter: str, config: NLoraConfig) -> None:
        """Initialise the factors as ``config`` says (see the table in the README)."""
        A, N, B = (getattr(self, f"nlora_{f}")[adapter].weight for f in "ANB")
        if config.start == "random":
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))
            init_core(N, config)
            nn.init.zeros_(B)
            return
        start = nystrom(self.base_matrix(), config.r, core=config.core)
        for weight, value in ((A, start.right), (N, start.core), (B, start.left)):
            weight.copy_(value)
        if config.residual:
            for factor, weight in zip("ANB", (A, N, B), strict=True):
                getattr(self, f"nlora_{factor}0")[adapter].weight.copy_(weight)

    def update(self, adapter: str, x: Tensor) -> Tensor:
        """``s·(B N A − B0 N0 A0) x``: (…, n) → (…, m), in the adapter's dtype.

        The two products are formed apart and in the same way, so that they cancel exactly as long
        as the factors have not moved.
        """
        x = self._cast_input_dtype(x, self.nlora_A[adapter].weight.dtype)
        x = self.nlora_dropout[adapter](x)
        if adapter not in self.nlora_N0:
            y = self.nlora_B[adapter](self.nlora_N[adapter](self.nlora_A[adapter](x)))
            return y * self.scaling[adapter]
        # Both products are large beside W x and nearly equal. Rounded to bf16 before they are
        # subtracted, what is left of them is noise, so autocast must not touch them.
        with _no_autocast(x):
            y = self.nlora_B[adapter](self.nlora_N[adapter](self.nlora_A[adapter](x)))
            y = y - self.nlora_B0[adapter](self.nlora_N0[adapter](self.nlora_A0[adapter](x)))
            return y * self.scaling[adapter]

    def get_delta_weight(self, adapter: str) -> Tensor:
        """``s·(B N A − B0 N0 A0)`` as a dense (out, in) matrix in float32 or better."""
        A, N, B = (self._factor(f, adapter) for f in ("A", "N", "B"))
        delta = B @ (N @ A)
        if adapter in self.nlora_N0:
            A, N, B = (self._factor(f, adapter) for f in ("A0", "N0", "B0"))
            delta = delta - B @ (N @ A)
        return delta * self.scaling[adapter]

    def _factor(self, factor: str, adapter: str) -> Tensor:
        weight = getattr(self, f"nlora_{factor}")[adapter].weight
        return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def _no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    if x.device.type == "meta" or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def init_core(N: Tensor, config: NLoraConfig) -> None:
    """Fill N (r, r) in place by ``config.init``."""
    if config.init == "kaiming":
        nn.init.kaiming_uniform_(N, a=math.sqrt(5))
    elif config.init == "xavier":
        nn.init.xavier_uniform_(N)
    elif config.init == "orthogonal":
        # orthogonal_ needs a QR, which half precision does not have
        N.copy_(nn.init.orthogonal_(torch.empty_like(N, dtype=torch.float32)))
    elif config.init == "identity":
        nn.init.eye_(N)
    else:
        nn.init.normal_(N, std=config.init_std)


class NLoraLinear(nn.Module, NLoraLayer):
    """A linear layer (``nn.Linear`` or transformers' ``Conv1D``) with three-factor adapters."""

    def __init__(self, base_layer: nn.Module, adapter: str, config: NLoraConfig) -> None:
        super().__init__()
        NLoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter
        self.update_layer(adapter, config, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, plus every active adapter's update unless merged or disabled."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        dtype = result.dtype
        for adapter in self.active_adapters:
            if adapter in self.nlora_A:
                result = result + self.update(adapter, x)
        return result.to(dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the active adapters' updates to the base weight (PEFT's contract)."""
        for adapter in check_adapters_to_merge(self, adapter_names) or []:
            if adapter not in self.nlora_A:
                continue
            merged = self._base_plus(self.get_delta_weight(adapter))
            if safe_merge and not bool(torch.isfinite(merged).all()):
                raise InputError(f"adapter {adapter!r} has NaN or infinite weights, so it was not merged")
            self.get_base_layer().weight.data = merged
            self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Take merged updates out of the base weight again, exact to rounding."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            if adapter in self.nlora_A:
                self.get_base_layer().weight.data = self._base_plus(-self.get_delta_weight(adapter))

    def _base_plus(self, delta: Tensor) -> Tensor:
        weight = self.get_base_layer().weight.data
        change = delta.T if self.transposed else delta
        return (weight.to(delta.dtype) + change).to(weight.dtype)

    def __repr__(self) -> str:
        return "nlora." + super().__repr__()
