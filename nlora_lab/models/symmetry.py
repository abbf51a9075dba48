"""Changes of the weights that the network does not notice, and NLoRA's start does.

The neurons of an MLP and the heads of an attention layer have no order: numbering them anew permutes
rows of some matrices and columns of others, and the function stays what it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError


@torch.no_grad()
def permute_neurons(model: Any, layer: int, generator: torch.Generator | None = None) -> Tensor:
    """Number the MLP neurons of ``layer`` anew, in place, in a Llama-like ``model``; returns the order.

    Rows of ``gate_proj`` and ``up_proj`` and columns of ``down_proj`` move together, so that the function is
    unchanged (to rounding: sums are taken in another order). The order is int64, (neurons,).
    """
    mlp = _block(model, layer, "mlp", ("gate_proj", "up_proj", "down_proj"))
    order = torch.randperm(mlp.gate_proj.weight.shape[0], generator=generator)
    _move(mlp.gate_proj, order, 0)
    _move(mlp.up_proj, order, 0)
    _move(mlp.down_proj, order, 1)
    return order


@torch.no_grad()
def permute_heads(model: Any, layer: int, generator: torch.Generator | None = None) -> Tensor:
    """Number the attention heads of ``layer`` anew, in place, in a Llama-like ``model``; returns the order.

    Rows of ``q_proj``, ``k_proj`` and ``v_proj`` and columns of ``o_proj`` move in whole heads. Heads that share
    keys and values (grouped queries) move as a group. The order of the groups is int64.
    """
    attention = _block(model, layer, "self_attn", ("q_proj", "k_proj", "v_proj", "o_proj"))
    config = model.config
    groups, heads = config.num_key_value_heads, config.num_attention_heads
    order = torch.randperm(groups, generator=generator)
    size = attention.q_proj.weight.shape[0] // heads
    small = torch.arange(groups * size).reshape(groups, -1)[order].flatten()
    large = torch.arange(heads * size).reshape(groups, -1)[order].flatten()
    _move(attention.q_proj, large, 0)
    _move(attention.k_proj, small, 0)
    _move(attention.v_proj, small, 0)
    _move(attention.o_proj, large, 1)
    return order


def _move(linear: Any, order: Tensor, dim: int) -> None:
    linear.weight.copy_(linear.weight.index_select(dim, order.to(linear.weight.device)))
    if dim == 0 and linear.bias is not None:
        linear.bias.copy_(linear.bias[order])


def _block(model: Any, layer: int, name: str, parts: tuple[str, ...]) -> Any:
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None or not 0 <= layer < len(layers):
        count = "no layers by that name" if layers is None else f"{len(layers)} layers"
        raise InputError(f"layer={layer!r}: the model has {count}; a Llama-like model and a layer from 0 on are needed")
    block = getattr(layers[layer], name, None)
    if block is None or not all(hasattr(block, part) for part in parts):
        raise InputError(f"layer {layer} has no {name} with {', '.join(parts)}; a Llama-like model is needed")
    return block
