"""The factors of the adapters of one linear layer, and the frozen weight that they change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from nlora_lab.adapters.products import Factors, Start, at_least_float32, update_pair
from nlora_lab.core.array_types import Float
from nlora_lab.models.layers import is_conv1d, layer_shape, weight_matrix


class AdapterState(NamedTuple):
    """What decides the update of one adapter in one layer: ``s·(B N A − B0 N0 A0)``.

    Attributes:
        factors: the current A (r, n), N (r, r) and B (m, r).
        start: A0, N0 and B0 in the same shapes, or ``None`` for each that is not subtracted.
        scale: the scale s.
    """

    factors: Factors
    start: Start
    scale: float

    def at_least_float32(self) -> AdapterState:
        """Return the same state with detached tensors in float32, or in their own dtype where that is wider."""
        A, N, B = (at_least_float32(factor) for factor in self.factors)
        A0, N0, B0 = (None if factor is None else at_least_float32(factor) for factor in self.start)
        return AdapterState((A, N, B), (A0, N0, B0), self.scale)


class FactorLayer(BaseTunerLayer):
    """The factors of every adapter of one layer, each an ``nn.Linear`` under the adapter's name.

    The start of a Nyström adapter (``A0, N0, B0``, or ``N0`` alone where only N trains) is a set of frozen
    ``nn.Linear`` as well. PEFT then moves, casts, saves and freezes it together with the rest.
    """

    adapter_layer_names = ("nlora_A", "nlora_N", "nlora_B", "nlora_A0", "nlora_N0", "nlora_B0")
    other_param_names = ("r", "scaling", "nlora_dropout")
    base_layer: Any
    # each is an nn.ModuleDict, typed here as what it holds
    nlora_A: Mapping[str, nn.Linear]
    nlora_N: Mapping[str, nn.Linear]
    nlora_B: Mapping[str, nn.Linear]
    nlora_A0: Mapping[str, nn.Linear]
    nlora_N0: Mapping[str, nn.Linear]
    nlora_B0: Mapping[str, nn.Linear]
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
        self.out_features, self.in_features = layer_shape(self.get_base_layer())

    def adapter_state(self, adapter: str) -> AdapterState:
        """Return the factors, the start and the scale of an adapter.

        Args:
            adapter: the name of the adapter.

        Returns:
            The state, with the parameters themselves: not detached, and in the dtype they are kept in.
        """
        A0, N0, B0 = (
            held[adapter].weight if adapter in held else None for held in (self.nlora_A0, self.nlora_N0, self.nlora_B0)
        )
        return AdapterState(self.factors(adapter), (A0, N0, B0), self.scaling[adapter])

    def factors(self, adapter: str) -> Factors:
        """Return the factors of an adapter.

        Args:
            adapter: the name of the adapter.

        Returns:
            The parameters A (r, n), N (r, r) and B (m, r).
        """
        return self.nlora_A[adapter].weight, self.nlora_N[adapter].weight, self.nlora_B[adapter].weight

    def start_factors(self, adapter: str) -> Factors:
        """Return the factors whose product is the start of an adapter.

        Where only N trains, A and B never move, so they stand for A0 and B0. An adapter without a start has none of
        the three, and this returns its current factors.

        Args:
            adapter: the name of the adapter.

        Returns:
            The parameters A0 (r, n), N0 (r, r) and B0 (m, r).
        """
        (A, N, B), (A0, N0, B0), _ = self.adapter_state(adapter)
        return A if A0 is None else A0, N if N0 is None else N0, B if B0 is None else B0

    def update_factors(self, adapter: str) -> tuple[Float[Tensor, "m k"], Float[Tensor, "k n"]]:
        """Return the change of the original weight as a product of two matrices, without the scale.

        Args:
            adapter: the name of the adapter.

        Returns:
            left (m, k) and right (k, n), detached, in float32 or wider: ``s · left @ right`` is the change.
        """
        factors, start, _ = self.adapter_state(adapter).at_least_float32()
        return update_pair(factors, start)

    def get_delta_weight(self, adapter: str) -> Float[Tensor, "m n"]:
        """Return ``s·(B N A − B0 N0 A0)``, the change of the original weight, as a dense matrix.

        Args:
            adapter: the name of the adapter.

        Returns:
            The matrix (out, in) in float32 or wider.
        """
        left, right = self.update_factors(adapter)
        return left @ right * self.scaling[adapter]

    def start_weight(self, adapter: str) -> Float[Tensor, "m n"]:
        """Return the start ``s·B0 N0 A0`` as a dense matrix.

        Args:
            adapter: the name of the adapter.

        Returns:
            The matrix (out, in) in float32 or wider.
        """
        A, N, B = (at_least_float32(factor) for factor in self.start_factors(adapter))
        left, right = update_pair((A, N, B))
        return left @ right * self.scaling[adapter]

    def base_matrix(self) -> Float[Tensor, "m n"]:
        """Return the frozen weight (out, in), detached: as it is now, with all that is folded into it or merged."""
        return weight_matrix(self.get_base_layer())

    @torch.no_grad()
    def add_to_base(self, left: Float[Tensor, "m k"], right: Float[Tensor, "k n"], scale: float) -> None:
        """Add ``scale · left @ right`` to the base weight in place, without a second matrix of its size.

        A weight of lower precision than the factors is widened for the sum, and rounded once.

        Args:
            left: the matrix (m, k).
            right: the matrix (k, n).
            scale: the scale.
        """
        base = self.get_base_layer()
        weight = base.weight.data
        a, b = (right.T, left.T) if is_conv1d(base) else (left, right)
        a, b = a.to(weight.device), b.to(weight.device)
        if weight.dtype == a.dtype:
            weight.addmm_(a, b, alpha=scale)
        else:
            weight.copy_(weight.to(a.dtype).addmm_(a, b, alpha=scale))
