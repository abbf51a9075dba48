"""Attaching a method to a model: its adapter is built and put into the target layers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_number, check_whole_number
from nlora_lab.methods.table import Method, check_init, get_method
from nlora_lab.models.layers import (
    HEADS,
    check_owner,
    check_selection,
    fused_weights,
    head_modules,
    is_conv1d,
    linear_layers,
    read_by_parent,
    target_layers,
    weight_owners,
)

if TYPE_CHECKING:
    from torch import nn


REFUSALS = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ZeroDivisionError, ImportError,
)  # fmt: skip
"""What PEFT raises where it cannot do what its options ask for."""


def attach(
    model: Any, method: Method | str, rank: int = 8, alpha: float | None = None, init: str | None = None, **options: Any
) -> Any:
    """Prepare a model to be tuned by a method.

    The factors are drawn from torch's global generator: seed it before. By default every linear layer except the output
    head gets an adapter. The head of a sequence classifier trains in full beside the adapters.

    Args:
        model: the base model. It is changed in place.
        method: a method, or its name in ``METHODS``.
        rank: the rank of the adapter.
        alpha: the numerator of its scale. ``None`` means the rank: a scale of 1, and of √r for rslora.
        init: the initialisation of N, for methods that have a choice. ``None`` means the first of them.
        **options: options of the PEFT config: ``target_modules``, ``dropout`` and others.

    Returns:
        A ``PeftModel``, or ``model`` itself for "full".

    Raises:
        InputError: the method or the init is unknown, alpha is not above 0, the rank is above the smaller side of a
            layer, or the model has no layer for the adapter. Or PEFT refuses the options, or a target shares its
            weight with another module.
    """
    entry = method if isinstance(method, Method) else get_method(method)
    check_init(entry, init)
    if alpha is not None:
        check_number("alpha", alpha, above=0.0, remedy="or leave it out")
    if entry.build is None:
        return model.requires_grad_(True)
    head = head_modules(model)
    options = {"target_modules": "all-linear", "task_type": "SEQ_CLS" if head else "CAUSAL_LM", **options}
    check_selection(model, **options)
    layers = check_rank(model, rank, options["target_modules"], options.get("rank_pattern"))
    if options["target_modules"] == "all-linear":
        _say_what_is_left_out(model)
        if head or read_by_parent(model) or fused_weights(model):
            # PEFT would take some heads for targets, layers that are never called, and experts in one tensor
            options["target_modules"] = list(layers)
    unknown_heads = [name for name in head if not name.endswith(HEADS)]
    if unknown_heads:
        options.setdefault("modules_to_save", unknown_heads)  # PEFT trains only the heads it knows by name
    from peft import get_peft_model

    with warnings.catch_warnings():
        # PEFT asks transformers for this property under its old name; nothing a learner can act on
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT sets it right by itself
        try:
            config = entry.build(int(rank), alpha, init, **options)
            if getattr(config, "init_lora_weights", None) == "olora":
                _check_olora(layers)
            adapted = get_peft_model(model, config)
        except InputError:
            raise
        except REFUSALS as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"PEFT cannot put {entry.label} on this {type(model).__name__} ({reason}); change the options, or "
                "choose another method or model"
            ) from error
    _check_parameters(adapted)
    if not getattr(config, "layer_replication", None):  # its copies of a layer share one weight on purpose
        check_unshared(adapted)
    return adapted


def _check_parameters(model: Any) -> None:
    """Refuse adapters on parameters that are not layers: PEFT makes them of the names of fused experts."""
    if parameters := getattr(model.peft_config["default"], "target_parameters", None):
        raise InputError(
            f"target_modules leads to parameters that are not linear layers ({', '.join(sorted(parameters))}), and "
            "the lab trains linear layers only; leave them out"
        )


def check_unshared(model: Any) -> None:
    """Check that no weight with an adapter belongs to another module too: merging would change both.

    Args:
        model: a ``PeftModel``.

    Raises:
        InputError: a weight is shared. The message names both modules.
    """
    owners = weight_owners(model)
    for name, module in model.named_modules():
        has_factors = hasattr(module, "lora_A") or hasattr(module, "update_factors")
        weight = getattr(module.get_base_layer(), "weight", None) if has_factors else None
        if weight is not None:
            check_owner(name, weight, owners)


def _say_what_is_left_out(model: Any) -> None:
    """Warn of matrices that "all-linear" cannot reach. What does not train should not be a surprise."""
    left_out = {**fused_weights(model), **read_by_parent(model)}
    if left_out:
        name, what = next(iter(left_out.items()))
        why = f"inside a {what}" if isinstance(what, str) else f"one tensor of shape {what}, not a linear layer"
        warnings.warn(
            f"{len(left_out)} weights of this {type(model).__name__} get no adapter, {name} first ({why}); only its "
            "linear layers train",
            stacklevel=3,
        )


def check_rank(
    model: nn.Module, rank: int, target_modules: Any = "all-linear", rank_pattern: dict[str, int] | None = None
) -> dict[str, Any]:
    """Check that every target layer can have an adapter of this rank.

    Args:
        model: the base model.
        rank: the rank.
        target_modules: the target layers, as PEFT takes them.
        rank_pattern: ranks of single layers, as PEFT takes them.

    Returns:
        The target layers by name.

    Raises:
        InputError: a rank is not a whole number, or is above the smaller side of a target. The message names the layer
            that it exceeds by most. Or the model has no such layer.
    """
    from peft.utils.other import get_pattern_key

    if target_modules == "all-linear" and not linear_layers(model):
        raise InputError("the model has no linear layer to put an adapter on; choose another model")
    layers = target_layers(model, target_modules)
    pattern = rank_pattern or {}
    check_whole_number("rank", rank)
    asked = {name: pattern.get(get_pattern_key(list(pattern), name), rank) for name in layers}
    worst = min(layers, key=lambda name: min(layers[name].weight.shape) - asked[name])
    limit = min(layers[worst].weight.shape)
    if asked[worst] > limit:
        raise InputError(
            f"rank={asked[worst]} is above {limit}, the smaller side of {worst}; choose a rank from 1 to {limit}"
        )
    return layers


def _check_olora(layers: dict[str, Any]) -> None:
    for name, layer in layers.items():
        if is_conv1d(layer):
            raise InputError(f"{name} is a Conv1D, which PEFT's OLoRA cannot start from; choose pissa or another model")
