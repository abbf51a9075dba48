"""The linear layers of a model: which layers there are, their weight as (out, in), and what PEFT and FSDP add to them.

GPT-2 and its relatives store a weight transposed, in a ``Conv1D``. Only this module and ``safetensors`` know about it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_number, check_whole_number
from nlora_lab.models.layouts import is_computed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

Shape = tuple[int, int]
"""(out, in) of a weight."""

PEFT_PREFIX = "base_model.model."  # what PEFT puts before the names of the base model's modules
HEADS = ("score", "classifier")  # the names by which PEFT knows the head of a classifier


def is_conv1d(layer: Any) -> bool:
    """Return whether ``layer`` is transformers' ``Conv1D``, a linear layer that stores its weight as (in, out)."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(layer, Conv1D)


def is_linear(layer: Any) -> bool:
    """Return whether ``layer`` is an ``nn.Linear`` or a ``Conv1D``."""
    from torch import nn

    return isinstance(layer, nn.Linear) or is_conv1d(layer)


def weight_matrix(layer: Any) -> Tensor:
    """Return the weight of a linear layer in one orientation.

    Args:
        layer: an ``nn.Linear`` or a ``Conv1D``.

    Returns:
        The weight, (out, in), detached, in its own dtype. It is a view and not a copy.
    """
    weight: Tensor = layer.weight.detach()
    return weight.T if is_conv1d(layer) else weight


def layer_shape(layer: Any) -> Shape:
    """Return the shape of a linear layer.

    Args:
        layer: an ``nn.Linear`` or a ``Conv1D``, also on the meta device.

    Returns:
        (out, in).
    """
    first, second = layer.weight.shape
    return (second, first) if is_conv1d(layer) else (first, second)


def full_tensor(value: Any) -> Any:
    """Return the complete tensor where each process may hold a part of it (FSDP). Call this in every process.

    Args:
        value: a tensor, or a ``DTensor``.

    Returns:
        The complete tensor; an ordinary tensor unchanged.
    """
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def head_modules(model: Any) -> list[str]:
    """List the modules that form the head of a sequence classifier.

    These are the modules that PEFT trains beside an adapter: ``score`` or ``classifier`` (and DistilBERT's
    ``pre_classifier``). Where a model has neither, they are all modules beside its body. A pooler is left to the
    adapters, as PEFT does, unless ``load_model`` had to draw it at random. Then it has to be trained and saved like the
    rest of the head.

    Args:
        model: a transformers model.

    Returns:
        Their dotted names. The list is empty for any model that is not a sequence classifier.
    """
    if "ForSequenceClassification" not in type(model).__name__:
        return []
    beside = [
        n for n, m in model.named_children() if n != model.base_model_prefix and any(True for _ in m.parameters())
    ]
    head = [name for name in beside if name.endswith(HEADS)] or beside
    drawn = [name for name in getattr(model, "_drawn", []) if not f"{name}.".startswith(tuple(f"{h}." for h in head))]
    return [*drawn, *head]


def read_by_parent(model: Any) -> dict[str, str]:
    """List the linear layers that are never called, because a module above them reads their weight itself.

    An adapter on such a layer would have no effect on the model, until it is merged.

    Args:
        model: any module.

    Returns:
        The dotted name of each such layer, with the class of the module that reads it.
    """
    from torch import nn

    def children(module: Any) -> tuple[str, ...]:
        if isinstance(module, nn.MultiheadAttention):
            return tuple(name for name, child in module.named_modules() if is_linear(child))
        # only its quick way does so, which it takes in evaluation
        return ("linear1", "linear2") if isinstance(module, nn.TransformerEncoderLayer) else ()

    return {
        ".".join(filter(None, (name, child))): type(module).__name__
        for name, module in model.named_modules()
        for child in children(module)
    }


def fused_weights(model: Any) -> dict[str, tuple[int, ...]]:
    """List the weights with three dimensions, such as several experts in one tensor: name and shape.

    No adapter fits them.
    """
    from torch.nn.modules.conv import _ConvNd

    return {
        f"{name}.{own}".removeprefix("."): tuple(p.shape)
        for name, module in model.named_modules()
        if not isinstance(module, _ConvNd)
        for own, p in module._parameters.items()
        if p is not None and p.is_floating_point() and p.ndim == 3 and min(p.shape) > 1
    }


def check_called(name: str, layer: Any, parents: dict[str, str]) -> None:
    """Check that the weight of a linear layer is its own, and that the layer is called.

    Args:
        name: the name of the layer.
        layer: the layer.
        parents: what ``read_by_parent`` returns for the model.

    Raises:
        InputError: a module above the layer reads its weight, or the weight is computed from others at every call.
    """
    if name in parents:
        raise InputError(
            f"{name} is inside a {parents[name]}, which reads its weight and never calls it, so an adapter would do "
            "nothing; leave it out of target_modules"
        )
    if is_computed(layer):
        raise InputError(
            f"the weight of {name} is computed at every call (weight_norm, spectral_norm or another "
            "parametrisation), so no adapter can change it; remove the parametrisation, or leave the layer out of "
            "target_modules"
        )


def linear_layers(model: Any) -> dict[str, Any]:
    """List the linear layers that an adapter can sit on: every linear layer but those of the output head.

    Layers that are never called are left out (see ``read_by_parent``).

    Args:
        model: a model, for example a transformers model.

    Returns:
        The layers by dotted name, in the order of the model.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    within, uncalled = tuple(f"{name}." for name in head_modules(model)), read_by_parent(model)
    return {
        name: module
        for name, module in model.named_modules()
        if is_linear(module) and module is not head and not f"{name}.".startswith(within) and name not in uncalled
    }


def check_selection(model: Any, **options: Any) -> None:
    """Check that every entry of a selection of modules matches something in a model. PEFT ignores what does not.

    Args:
        model: a model without adapters.
        **options: fields of a PEFT config: ``target_modules``, ``exclude_modules``, ``modules_to_save``,
            ``layers_to_transform``, ``rank_pattern`` and ``alpha_pattern``. Other fields are not looked at.

    Raises:
        InputError: an entry matches nothing, or cannot be what it stands for. The message names it.
    """
    names = [name for name, _ in model.named_modules() if name]
    saved = options.get("modules_to_save")
    if isinstance(saved, str):  # PEFT would take each of its letters for the end of a name
        raise InputError(f"modules_to_save={saved!r} must be a list of names, such as [{saved!r}]")
    for field in ("target_modules", "exclude_modules", "modules_to_save"):
        entries = options.get(field)
        if not isinstance(entries, str | None) and not (
            isinstance(entries, list | tuple | set) and all(isinstance(entry, str) for entry in entries)
        ):
            raise InputError(f"{field}={entries!r} must be names of modules; give a list, such as ['q_proj', 'v_proj']")
        if isinstance(entries, str) and entries != "all-linear":
            _compiled(entries, entries, field)
        for entry in [] if entries is None or isinstance(entries, str) else sorted(entries):
            if not any(f".{name}".endswith(f".{entry}") for name in names):
                raise InputError(f"{field}: {entry!r} matches no module of this model; correct it, or leave it out")
    numbers = {int(part) for name in names for part in name.split(".") if part.isdecimal() and len(part) < 10}
    layers = options.get("layers_to_transform")
    for number in [layers] if isinstance(layers, int) else layers or []:
        if isinstance(number, bool) or number not in numbers:
            raise InputError(f"layers_to_transform: the model has no layer {number}; its layers have numbers from 0")
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern, value in (options.get(field) or {}).items():
            if field == "rank_pattern":
                check_whole_number(f"rank_pattern[{pattern!r}]", value)
            else:
                check_number(f"alpha_pattern[{pattern!r}]", value, above=0.0)
            whole = _compiled(rf"(.*\.)?({pattern})$", pattern, field)  # as PEFT does
            if not any(whole.match(name) for name in names):
                raise InputError(f"{field}: {pattern!r} matches no module of this model; correct it, or leave it out")


def weight_owners(model: Any) -> dict[int, list[str]]:
    """Return the names of all modules that hold each parameter, by the id of the parameter."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    return owners


def check_owner(layer: str, weight: Tensor, owners: Mapping[int, list[str]]) -> None:
    """Check that the weight of a layer belongs to no other module: merging an adapter would change both.

    Args:
        layer: the name of the layer.
        weight: its weight.
        owners: what ``weight_owners`` returns. Names within the layer are its own.

    Raises:
        InputError: another module has the weight, too. The message names both.
    """
    others = [name for name in owners.get(id(weight), ()) if not f"{name}.".startswith(f"{layer}.")]
    if others:
        layer, other = layer.removeprefix(PEFT_PREFIX), others[0].removeprefix(PEFT_PREFIX)
        raise InputError(
            f"{layer} shares its weight with {other}, and merging would change both; leave {layer} out of "
            "target_modules, or untie the weights (tie_word_embeddings=False)"
        )


def _compiled(expression: str, pattern: str, field: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise InputError(f"{field}: {pattern!r} is not a regular expression ({error}); correct it") from error


def target_layers(model: Any, target_modules: Any = "all-linear") -> dict[str, Any]:
    """List the linear layers that PEFT's ``target_modules`` selects in a model.

    Args:
        model: a model without adapters.
        target_modules: "all-linear", a regular expression, or a list of (endings of) names.

    Returns:
        The layers by dotted name, in the order of the model.

    Raises:
        InputError: the selection matches nothing, or a module that is not linear.
    """
    from peft.config import PeftConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    if target_modules == "all-linear":
        layers = linear_layers(model)
    else:
        selection: Any = PeftConfig()
        selection.target_modules = target_modules if isinstance(target_modules, str) else set(target_modules)
        check_selection(model, target_modules=target_modules)
        layers = {name: m for name, m in model.named_modules() if name and check_target_module_exists(selection, name)}
    if not layers:
        raise InputError(f"target_modules={target_modules!r} matches no layer of this model; name some of its layers")
    parents = read_by_parent(model)
    for name, module in layers.items():
        if not is_linear(module):
            raise InputError(f"{name} is a {type(module).__name__}, not a linear layer; leave it out of target_modules")
        check_called(name, module, parents)
    return layers
