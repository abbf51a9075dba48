"""Checks of target layers and of saved adapters, made before anything in the model changes."""

from __future__ import annotations

import re
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from nlora_lab.adapters.config import NLoraConfig
from nlora_lab.adapters.factors import FactorLayer
from nlora_lab.adapters.layer import NLoraLayer
from nlora_lab.core.array_types import Float
from nlora_lab.core.errors import InputError
from nlora_lab.models.layers import (
    HEADS,
    PEFT_PREFIX,
    check_called,
    check_owner,
    check_selection,
    is_linear,
    read_by_parent,
    weight_owners,
)
from nlora_lab.models.layouts import PACKED


def check_adapter_name(model: nn.Module, adapter: str) -> None:
    """Check that PEFT can tell the name of an adapter from the other parts of the names of its tensors.

    Args:
        model: the model that the adapter is added to.
        adapter: the name of the adapter.

    Raises:
        InputError: a module or a parameter of the model has the same name. Tensors of other adapters would then get
            lost when they are saved. Or the name cannot be that of the folder into which PEFT saves the adapter.
    """
    if len(adapter) > LONGEST_NAME or not adapter.isprintable() or "/" in adapter or "\\" in adapter:
        raise InputError(
            f"adapter_name={adapter[:LONGEST_NAME]!r} cannot be the name of the folder to save it in; choose at most "
            f"{LONGEST_NAME} letters without slashes, such as 'default'"
        )
    names = [name for name, _ in model.named_parameters()]
    parts = {part for name in names for part in ADAPTER_PART.sub("", name).split(".")}
    is_attribute = hasattr(nn.ModuleDict(), adapter)  # PyTorch takes no such name for a part of a module
    if not adapter or "." in adapter or adapter in parts | RESERVED or is_attribute:
        raise InputError(
            f"adapter_name={adapter!r} is also the name of a part of the model, so saved tensors could not be told "
            "apart; choose another name without dots, such as 'default'"
        )


LONGEST_NAME = 100  # letters; a file system takes 255 bytes
ADAPTER_PART = re.compile(r"\.(n?lora_\w+|modules_to_save)\.[^.]+")  # what adapters add to a name, with their own
RESERVED = {"base_model", "model", "base_layer", "weight", "bias", "modules_to_save", "original_module"} | {
    *FactorLayer.adapter_layer_names
}


def check_targets(model: nn.Module, config: NLoraConfig, targets: dict[str, nn.Module]) -> None:
    """Check that the adapter can be put on every target.

    Args:
        model: the model that the targets belong to.
        config: the configuration of the adapter.
        targets: the target layers by name.

    Raises:
        InputError: a layer is not linear or is never called, its weight is quantised, sharded, computed or shared
            with another module, the rank is above its smaller side, or the start is computed from it and it holds NaN.
            Or an entry of the selection matches nothing. The message names the layer or the entry.
    """
    if not config.awaits_weights:  # a saved selection is checked by the tensors beside it
        check_selection(model, **_selection(config))
    owners, parents = weight_owners(model), read_by_parent(model)
    for layer_name, target in targets.items():
        base = _base_layer(layer_name, target)
        check_called(layer_name, base, parents)
        _check_plain(layer_name, base)
        check_owner(layer_name, base.weight, owners)
        rank, limit = config.rank_of(layer_name), min(base.weight.shape)
        if rank > limit:
            raise InputError(
                f"r={rank} is above the smaller side of {layer_name}, {limit}; choose a rank up to {limit}"
            )
        if config.start != "random" and not base.weight.is_meta and not _is_finite(base.weight):
            raise InputError(
                f"{layer_name} holds NaN or infinity, so its adapter cannot be initialised; load the model again"
            )


def _selection(config: NLoraConfig) -> dict[str, Any]:
    """The fields of a config that select modules, without the heads that PEFT adds for every classifier."""
    selection = {name: getattr(config, name) for name in SELECTION}
    saved = selection["modules_to_save"]
    if saved and config.task_type in ("SEQ_CLS", "TOKEN_CLS"):
        selection["modules_to_save"] = [name for name in saved if name not in HEADS]
    return selection


SELECTION = (
    "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "rank_pattern", "alpha_pattern",
)  # fmt: skip


def _base_layer(layer_name: str, target: nn.Module) -> Any:
    if isinstance(target, BaseTunerLayer) and not isinstance(target, NLoraLayer):
        raise InputError(
            f"{layer_name} already has an adapter of another PEFT method ({type(target).__module__}); unload it first"
        )
    base: Any = target.get_base_layer() if isinstance(target, NLoraLayer) else target
    if any(hasattr(base, name) for name in PACKED):
        raise InputError(f"{layer_name} has quantised weights ({type(base).__name__}); {_UNQUANTISED}")
    if not is_linear(base):
        raise InputError(
            f"{layer_name} is a {type(base).__name__}, and this adapter works on nn.Linear and Conv1D only; "
            "leave the layer out of target_modules"
        )
    return base


_UNQUANTISED = "load the base model unquantised, because the start is computed from the weights themselves"


def _check_plain(layer_name: str, base: Any) -> None:
    weight = base.weight
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise InputError(f"{layer_name} has quantised weights ({weight.dtype}); {_UNQUANTISED}")
    if type(weight) not in (nn.Parameter, Tensor) or type(weight.data) is not Tensor:
        kind = type(weight).__name__
        raise InputError(f"{layer_name} has weights of type {kind}, quantised or sharded; {_UNQUANTISED}")


def _is_finite(weight: Float[Tensor, "*shape"]) -> bool:
    weight = weight.detach()
    # a sum is one pass without a mask; it may overflow where every entry is finite
    return bool(torch.isfinite(weight.sum(dtype=torch.float32))) or bool(torch.isfinite(weight).all())


def check_saved_shapes(model: nn.Module, state_dict: dict[str, Tensor], adapter: str) -> None:
    """Check that the factors of a file are those of ``adapter`` in ``model``.

    Args:
        model: the model with the adapter.
        state_dict: the tensors of the file, by the model's own names.
        adapter: the name of the adapter.

    Raises:
        InputError: a factor is missing, has another shape, or belongs to a layer that the model lacks. The adapter was
            then made for another base model. The message names the factor and its shape.
    """
    expected = {k: p for k, p in model.named_parameters() if ".nlora_" in k and f".{adapter}." in k}
    prefix = PEFT_PREFIX if any(k.startswith(PEFT_PREFIX) for k in expected) else ""
    saved = {prefix + k.removeprefix(PEFT_PREFIX): t for k, t in state_dict.items() if ".nlora_" in k}
    remedy = "the adapter was made for another base model: load the one its adapter_config.json names"
    for key, tensor in saved.items():
        if key not in expected:
            raise InputError(f"the file has {key} {tuple(tensor.shape)}, for which this model has no layer; {remedy}")
        if tensor.shape != expected[key].shape:
            raise InputError(
                f"{key} is {tuple(tensor.shape)} in the file and {tuple(expected[key].shape)} in this model; {remedy}"
            )
    missing = [k for k in expected if k not in saved]
    if missing:
        shape = tuple(expected[missing[0]].shape)
        raise InputError(f"the file lacks {missing[0]} {shape}, which a layer of this model needs; {remedy}")
