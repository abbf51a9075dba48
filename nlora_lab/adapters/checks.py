"""What a target layer and a saved adapter must be, checked before anything in the model changes."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nlora_lab.adapters.config import NLoraConfig
from nlora_lab.adapters.layer import NLoraLayer
from nlora_lab.core.errors import InputError

PACKED = ("qweight", "W_q", "qzeros", "codebooks")  # where GPTQ, AWQ, HQQ and AQLM layers keep their weights


def check_targets(model: nn.Module, config: NLoraConfig, targets: dict[str, nn.Module]) -> None:
    """Raise :class:`InputError`, naming the layer, unless the adapter can sit on every one of ``targets``.

    Refused: what is no linear layer, quantised and sharded weights, a weight that another module shares,
    a rank above the layer's smaller side, and NaN in a weight that the start is computed from.
    """
    shared = _owners(model)
    for where, target in targets.items():
        base = _base(where, target)
        _check_plain(where, base)
        others = [name for name in shared[id(base.weight)] if not _is_within(name, where)]
        if others:
            raise InputError(
                f"{where} shares its weight with {others[0]}, and merging would change both; leave {where} out of "
                "target_modules, or untie the weights (tie_word_embeddings=False)"
            )
        rank, smaller = config.rank_of(where), min(base.weight.shape)
        if rank > smaller:
            raise InputError(f"r={rank} is above the smaller side of {where}, {smaller}; choose a rank up to {smaller}")
        if config.start != "random" and not base.weight.is_meta and not _is_finite(base.weight):
            raise InputError(f"{where} holds NaN or infinity, and the start is computed from it; load the model again")


def _base(where: str, target: nn.Module) -> Any:
    if isinstance(target, BaseTunerLayer) and not isinstance(target, NLoraLayer):
        raise InputError(
            f"{where} already carries an adapter of another PEFT method ({type(target).__module__}); unload it first"
        )
    base: Any = target.get_base_layer() if isinstance(target, NLoraLayer) else target
    if any(hasattr(base, name) for name in PACKED):
        raise InputError(f"{where} has quantised weights ({type(base).__name__}); {_UNQUANTISED}")
    if not isinstance(base, nn.Linear | Conv1D):
        raise InputError(
            f"{where} is a {type(base).__name__}; this adapter sits on nn.Linear and Conv1D only: "
            "leave the layer out of target_modules"
        )
    return base


_UNQUANTISED = "load the base model unquantised, because the start is computed from the weights themselves"


def _check_plain(where: str, base: Any) -> None:
    weight = base.weight
    if not weight.is_floating_point() or weight.element_size() < 2:
        raise InputError(f"{where} has quantised weights ({weight.dtype}); {_UNQUANTISED}")
    if type(weight) not in (nn.Parameter, Tensor) or type(weight.data) is not Tensor:
        raise InputError(f"{where} has weights of type {type(weight).__name__}, quantised or sharded; {_UNQUANTISED}")


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """The names of all modules that hold each parameter, by the parameter's id."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    return owners


def _is_within(name: str, where: str) -> bool:
    return name == where or name.startswith(f"{where}.")


def _is_finite(weight: Tensor) -> bool:
    weight = weight.detach()
    # a sum is one pass without a mask; it may overflow where every entry is finite
    return bool(torch.isfinite(weight.sum(dtype=torch.float32))) or bool(torch.isfinite(weight).all())


def check_saved_shapes(model: nn.Module, state_dict: dict[str, Tensor], adapter: str) -> None:
    """Raise :class:`InputError` unless the factors in ``state_dict`` are those of ``adapter`` in ``model``.

    Keys are the model's own. A factor of another shape, one the model has no layer for, and a missing one
    mean that the adapter was made for another base model; each is named with its shape.
    """
    wanted = {k: p for k, p in model.named_parameters() if ".nlora_" in k and f".{adapter}." in k}
    prefix = "base_model.model." if any(k.startswith("base_model.model.") for k in wanted) else ""
    given = {prefix + k.removeprefix("base_model.model."): t for k, t in state_dict.items() if ".nlora_" in k}
    other = "the adapter was made for another base model: load the one its adapter_config.json names"
    for key, tensor in given.items():
        if key not in wanted:
            raise InputError(f"the file has {key} {tuple(tensor.shape)}, for which this model has no layer; {other}")
        if tensor.shape != wanted[key].shape:
            raise InputError(
                f"{key} is {tuple(tensor.shape)} in the file and {tuple(wanted[key].shape)} in this model; {other}"
            )
    missing = [k for k in wanted if k not in given]
    if missing:
        shape = tuple(wanted[missing[0]].shape)
        raise InputError(f"the file lacks {missing[0]} {shape}, which this model's layer needs; {other}")
