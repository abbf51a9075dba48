"""Permutations of the weights that leave the function of a network unchanged, but change NLoRA's start.

The neurons of an MLP and the heads of an attention layer have no order. Renumbering them permutes rows of some matrices
and columns of others, and the network computes the same function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import atomic_folder, expand_path
from nlora_lab.core.validation import check_whole_number, whole_number
from nlora_lab.models.loading import load_model, quiet
from nlora_lab.models.names import EMBEDDED


@torch.no_grad()
def permute_neurons(model: Any, layer: int, generator: torch.Generator | None = None) -> Tensor:
    """Permute the MLP neurons of one layer, in place.

    Rows of ``gate_proj`` and ``up_proj`` and columns of ``down_proj`` move together. The function stays the same up to
    rounding, since sums are taken in another order.

    Args:
        model: a Llama-like model. It is changed.
        layer: the index of the layer, from 0.
        generator: the source of random numbers. ``None`` means torch's global one.

    Returns:
        The old index of each neuron in the new order, (neurons,), int64.

    Raises:
        InputError: the model is not Llama-like, or has no such layer.
    """
    mlp = _block(model, layer, "mlp", ("gate_proj", "up_proj", "down_proj"))
    order = torch.randperm(mlp.gate_proj.weight.shape[0], generator=generator)
    _permute(mlp.gate_proj, order, 0)
    _permute(mlp.up_proj, order, 0)
    _permute(mlp.down_proj, order, 1)
    return order


@torch.no_grad()
def permute_heads(model: Any, layer: int, generator: torch.Generator | None = None) -> Tensor:
    """Permute the attention heads of one layer, in place.

    Rows of ``q_proj``, ``k_proj`` and ``v_proj`` and columns of ``o_proj`` move by complete heads. Heads that share
    keys and values (grouped queries) move as a group.

    Args:
        model: a Llama-like model. It is changed.
        layer: the index of the layer, from 0.
        generator: the source of random numbers. ``None`` means torch's global one.

    Returns:
        The old index of each group of heads in the new order, (groups,), int64.

    Raises:
        InputError: the model is not Llama-like, or has no such layer.
    """
    attention = _block(model, layer, "self_attn", ("q_proj", "k_proj", "v_proj", "o_proj"))
    config = model.config
    groups, heads = config.num_key_value_heads, config.num_attention_heads
    order = torch.randperm(groups, generator=generator)
    size = attention.q_proj.weight.shape[0] // heads
    key_rows = torch.arange(groups * size).reshape(groups, -1)[order].flatten()
    query_rows = torch.arange(heads * size).reshape(groups, -1)[order].flatten()
    _permute(attention.q_proj, query_rows, 0)
    _permute(attention.k_proj, key_rows, 0)
    _permute(attention.v_proj, key_rows, 0)
    _permute(attention.o_proj, query_rows, 1)
    return order


def renumber(model: Any, seed: int) -> None:
    """Permute the MLP neurons of every layer, in place.

    The function stays the same up to rounding, and so do the singular values. The leading blocks change, so this is
    another draw of NLoRA's start.

    Args:
        model: a Llama-like model. It is changed.
        seed: the seed of the new order, from 0.

    Raises:
        InputError: the model is not Llama-like, or the seed is not a whole number from 0.
    """
    check_whole_number("seed", seed, low=0, high=2**62)
    generator = torch.Generator().manual_seed(seed)
    for layer in range(len(_layers(model))):
        permute_neurons(model, layer, generator)


def save_renumbered(folder: str | Path, seed: int, model: str = EMBEDDED) -> Path:
    """Save a copy of a model whose MLP neurons are numbered in another order (see ``renumber``).

    Args:
        folder: where the copy is saved, in the layout of the hub. It must not exist, or be empty.
        seed: the seed of the new order, from 0.
        model: "embedded", "larger", a folder, or a hub id of a Llama-like model.

    Returns:
        The folder.

    Raises:
        InputError: the model is not Llama-like, the folder holds files, or the seed is not a whole number from 0.
        OSError: the folder cannot be written.
    """
    place = expand_path(folder, "folder")
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"folder={str(folder)!r} exists and is not an empty folder; choose another one")
    copy, tokenizer = load_model(model)
    renumber(copy, seed)
    with quiet(bar=False, reports=True), atomic_folder(place) as part:  # half a copy would be taken for one
        copy.save_pretrained(part)
        tokenizer.save_pretrained(part)
    return place


def _permute(linear: Any, order: Tensor, dim: int) -> None:
    linear.weight.copy_(linear.weight.index_select(dim, order.to(linear.weight.device)))
    if dim == 0 and linear.bias is not None:
        linear.bias.copy_(linear.bias[order])


def _block(model: Any, layer: int, name: str, parts: tuple[str, ...]) -> Any:
    layers = _layers(model)
    index = whole_number(layer)
    if index is None or not 0 <= index < len(layers):
        raise InputError(f"layer={layer!r}: the model has {len(layers)} layers; give a whole number from 0")
    block = getattr(layers[index], name, None)
    if block is None or not all(hasattr(block, part) for part in parts):
        raise InputError(f"layer {layer} has no {name} with {', '.join(parts)}; give a Llama-like model")
    return block


def _layers(model: Any) -> Any:
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None:
        raise InputError(f"a {type(model).__name__} has no model.layers; give a Llama-like model")
    return layers
