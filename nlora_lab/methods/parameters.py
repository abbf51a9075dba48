"""Counting what a method trains, in a model and in an architecture that is not loaded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.methods.attachment import check_rank
from nlora_lab.methods.table import METHODS, get_method
from nlora_lab.models.layers import head_modules, layer_shape

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


def trainable_parameters(model: nn.Module) -> int:
    """Count the numbers of a model that get a gradient.

    Args:
        model: the model.

    Returns:
        The count. A tied weight counts once.
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameter_table(
    model_or_config: Any, rank: int = 8, target_modules: Any = "all-linear", methods: Iterable[str] | None = None
) -> pd.DataFrame:
    """Count exactly what each method trains in an architecture.

    Anything but a model is built on the meta device, without weights and without an output head.

    Args:
        model_or_config: a model, a transformers config, "embedded", "larger", a folder with a config.json, or a hub id.
        rank: the rank of the adapters.
        target_modules: the target layers, as PEFT takes them.
        methods: names of methods. ``None`` means all.

    Returns:
        A frame with one row per method. ``trainable`` counts numbers, with those of a classifier's head. ``share`` is
        their part of all numbers of the model, from 0 to 1 (of its body where it was built from a config).
        ``beyond_lora`` counts the numbers beyond LoRA's at this rank. The other columns are ``method``, ``label`` and
        ``trains``.

    Raises:
        InputError: a method is unknown, the targets match no layer, the rank is above the smaller side of a layer, or
            the model has an adapter already.
    """
    import pandas as pd
    from torch import nn

    from nlora_lab.models.loading import meta_body

    entries = [get_method(name) for name in (METHODS if methods is None else methods)]
    model: Any = model_or_config if isinstance(model_or_config, nn.Module) else meta_body(model_or_config)
    if getattr(model, "peft_config", None):
        raise InputError("the model has an adapter already; give the base model, or its config")
    shapes = [layer_shape(layer) for layer in check_rank(model, rank, target_modules).values()]
    everything = sum(p.numel() for p in model.parameters())
    head = sum(p.numel() for name in head_modules(model) for p in model.get_submodule(name).parameters())
    lora = head + sum(METHODS["lora"].cost(m, n, rank) for m, n in shapes)
    rows = []
    for entry in entries:
        count = everything if entry.build is None else head + sum(entry.cost(m, n, rank) for m, n in shapes)
        row = {"method": entry.name, "label": entry.label, "trains": entry.trains, "trainable": count}
        rows.append({**row, "share": count / everything, "beyond_lora": count - lora})
    return pd.DataFrame(rows)
