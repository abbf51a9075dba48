"""methods.parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.methods.attachment import _check_rank_of
from nlora_lab.methods.table import METHODS, _two_factors, get_method
from nlora_lab.models.layers import layer_shape

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers of ``model`` get a gradient; a tied weight counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameter_table(
    model_or_config: Any, rank: int = 8, target_modules: Any = "all-linear", methods: Iterable[str] | None = None
) -> pd.DataFrame:
    """How many numbers each method trains in an architecture, exactly; one row a method.

    ``model_or_config``: a model, a transformers config, "embedded", a folder with a config.json, or a hub
    id. Anything but a model is built on the meta device, without weights and without an output head.
    ``target_modules``: as in PEFT. ``methods``: names, by default all.

    Columns: ``method``, ``label``, ``trains``, ``trainable`` (numbers, those of a classifier's head among them),
    ``share`` (of the model's own numbers, 0 to 1; the body's where it was built from a config), ``beyond_lora``
    (numbers more than LoRA's at this rank).

    Raises :class:`nlora_lab.InputError` for an unknown method, targets that match nothing, and a rank above a
    layer's smaller side, naming the layer.
    """
    import pandas as pd
    from torch import nn

    from nlora_lab.models.layers import head_modules, target_layers
    from nlora_lab.models.loading import meta_body

    entries = [get_method(name) for name in (METHODS if methods is None else methods)]
    model: Any = model_or_config if isinstance(model_or_config, nn.Module) else meta_body(model_or_config)
    if getattr(model, "peft_config", None):
        raise InputError("the model carries an adapter already; give the base model, or its config")
    layers = target_layers(model, target_modules)
    _check_rank_of(layers, rank)
    shapes = [layer_shape(layer) for layer in layers.values()]
    everything = sum(p.numel() for p in model.parameters())
    head = sum(p.numel() for name in head_modules(model) for p in model.get_submodule(name).parameters())
    lora = head + sum(_two_factors(m, n, rank) for m, n in shapes)
    rows = []
    for entry in entries:
        count = everything if entry.build is None else head + sum(entry.cost(m, n, rank) for m, n in shapes)
        row = {"method": entry.name, "label": entry.label, "trains": entry.trains, "trainable": count}
        rows.append({**row, "share": count / everything, "beyond_lora": count - lora})
    return pd.DataFrame(rows)
