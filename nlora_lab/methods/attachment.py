"""methods.attachment."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.methods.table import check_init, get_method

if TYPE_CHECKING:
    from torch import nn


def check_rank(model: nn.Module, rank: int, target_modules: Any = "all-linear") -> None:
    """Raise :class:`InputError`, naming the narrowest of the targets, if ``rank`` is above its smaller side."""
    from nlora_lab.models.layers import linear_layers, target_layers

    if target_modules == "all-linear" and not linear_layers(model):
        raise InputError("the model has no linear layer to put an adapter on; choose another model")
    _check_rank_of(target_layers(model, target_modules), rank)


def _check_rank_of(layers: dict[str, Any], rank: int) -> None:
    where, narrowest = min(layers.items(), key=lambda item: min(item[1].weight.shape))
    limit = min(narrowest.weight.shape)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"rank={rank!r} must be a whole number of at least 1")
    if rank > limit:
        raise InputError(f"rank={rank} is above {limit}, the smaller side of {where}; choose a rank from 1 to {limit}")


def _check_olora(layers: dict[str, Any]) -> None:
    from transformers.pytorch_utils import Conv1D

    for where, layer in layers.items():
        if isinstance(layer, Conv1D):
            raise InputError(
                f"{where} is a Conv1D, which PEFT's OLoRA cannot start from; choose pissa, or another model"
            )


def attach(
    model: Any, method: str, rank: int = 8, alpha: float | None = None, init: str | None = None, **options: Any
) -> Any:
    """``model`` made ready to be tuned by ``method``: a ``PeftModel``, or itself for "full".

    ``options`` go to the PEFT config (``target_modules``, by default every linear layer but the output head, which
    trains as it is in a sequence classifier; ``dropout``; …). ``alpha=None`` means the rank: a scale of 1, for
    rslora of √rank. Draws from torch's global generator: seed it before.
    """
    from nlora_lab.models.layers import HEADS, head_modules, linear_layers, target_layers

    entry = get_method(method)
    check_init(entry, init)
    if entry.build is None:
        return model.requires_grad_(True)
    head = head_modules(model)
    options = {"target_modules": "all-linear", "task_type": "SEQ_CLS" if head else "CAUSAL_LM", **options}
    check_rank(model, rank, options["target_modules"])
    if method == "olora":
        _check_olora(target_layers(model, options["target_modules"]))
    if head and options["target_modules"] == "all-linear":
        options["target_modules"] = list(linear_layers(model))  # PEFT would take some heads for targets as well
    unknown = [name for name in head if not name.endswith(HEADS)]
    if unknown:
        options.setdefault("modules_to_save", unknown)  # PEFT trains no other
    from peft import get_peft_model

    with warnings.catch_warnings():
        # PEFT asks transformers for this property under its old name; nothing a learner can act on
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT sets it right by itself
        return get_peft_model(model, entry.build(rank, alpha, init, **options))
