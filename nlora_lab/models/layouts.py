"""Weights that are not stored as the matrix itself: quantised, scaled, or computed from several tensors.

Such numbers look like a matrix and are not the one that the model multiplies by.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from nlora_lab.core.errors import InputError, ModelError

PACKED = ("qweight", "W_q", "qzeros", "codebooks")  # where GPTQ, AWQ, HQQ and AQLM layers keep their weights
# whole numbers in two dimensions are masks or positions where the name says so, and else packed weights
WHOLE = {"I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL"}
BUFFER = re.compile(r"(_ids|_index|_idxs?|mask|positions?|buckets?|(^|\.)(masked_)?bias)$")
NARROW_FLOATS = {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"}
UNUSUAL = WHOLE | {"C64"}  # of a tensor called "weight", which would be left out of a list of floats
SCALE = re.compile(
    r"(?:^|_)[wq]?(scales?|scaling_factors?|scb|absmax|zeros|zero_points?|quant_map|quant_state)(_inv)?(_.*)?$",
    re.IGNORECASE,
)
PARTS = re.compile(r"(\.weight_v|\.weight_orig|\.weight_mask|\.weight\.[USV]|\.parametrizations\.weight\.original\d*)$")
ADAPTER = re.compile(r"\.(lora|nlora)_A(\.|$)")
REMEDY = "scan the unquantised checkpoint, or load the model dequantised and scan that"

Header = Mapping[str, tuple[str, list[int]]]


def check_plain(place: str, header: Header, config: Mapping[str, Any]) -> None:
    """Check that the tensors of a checkpoint are the matrices themselves.

    Args:
        place: names the checkpoint in messages.
        header: dtype and shape of all its tensors.
        config: its ``config.json``; empty if there is none.

    Raises:
        ModelError: the config or a tensor says otherwise. The message names the layout.
    """
    # eight bits say little without a scale, whatever the weight beside it is called
    eight = {name.rpartition(".")[0] for name, (dtype, shape) in header.items() if dtype[:2] == "F8" and len(shape) > 1}
    layout = _configured(config) or next(filter(None, (_layout(name, header, eight) for name in header)), "")
    if layout:
        raise ModelError(f"{place} holds quantised weights ({layout}); {REMEDY}")
    parts = next((name for name in header if PARTS.search(name) and len(header[name][1]) == 2), None)
    if parts is not None:
        raise ModelError(
            f"{place} holds weights that are computed from several tensors ({parts}); "
            "remove weight_norm, spectral_norm or the pruning, and save the model again"
        )
    for name in header:
        if (found := ADAPTER.search(name)) and {f"{name[: found.start()]}{w}" for w in BASES} & set(header):
            raise ModelError(
                f"{place} holds an adapter beside its weights ({name}); merge it, and save the model again"
            )


BASES = (".weight", ".base_layer.weight")
"""The ends of the name of a weight that has an adapter."""


def _configured(config: Mapping[str, Any]) -> str:
    """The method of a config's ``quantization_config``, or "" without one. MLX writes ``quantization``."""
    for field in ("quantization_config", "quantization", "compression_config"):
        if settings := config.get(field):
            method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
            return f"{field}: {method or 'no method is named'}"
    # a model of several parts has a config for each
    parts = (_configured(part) for part in config.values() if isinstance(part, Mapping))
    return next(filter(None, parts), "")


def _layout(name: str, header: Header, eight: Collection[str]) -> str:
    """What says that a tensor is quantised or is the scale of another one; "" if nothing does.

    ``eight`` holds the modules with a weight in eight bits.
    """
    dtype, shape = header[name]
    parent, _, last = name.rpartition(".")
    is_buffer = BUFFER.search(name) and not last.startswith("weight")
    if dtype in NARROW_FLOATS or (dtype in WHOLE and len(shape) > 1 and not is_buffer):
        return f"{name} is {dtype}"
    match = SCALE.search(last)
    if last in PACKED:
        return name
    if last == "weight" and dtype in UNUSUAL and shape:  # four-bit weights of some libraries are one long vector
        return f"{name} is {dtype}"
    if parent in eight and last not in ("weight", "bias") and len(shape) < 3:
        return f"{name} is a scale"
    if match is None or ("scaling" in last and len(shape) < 2):  # I-BERT keeps vectors of them beside plain weights
        return ""
    stem = last[: match.start()]
    scaled = [f"{parent}.{own}".strip(".") for own in ("weight", "", stem, f"{stem}_weight")]
    is_scale = parent in eight or any(len(header[s][1]) > 1 for s in scaled if s in header and s != name)
    return f"{name} is a scale" if is_scale else ""


def is_computed(module: Any) -> bool:
    """Return whether a module computes its weight at every call, by weight_norm, spectral_norm or the like."""
    from torch.nn.utils.parametrize import is_parametrized

    return is_parametrized(module, "weight") or bool({"weight_g", "weight_orig"} & set(module._parameters))


def _is_scale(module: Any, own: str, tensor: Any) -> bool:
    """Whether a tensor of a live module scales its weight. A buffer that no file keeps needs a clearer name."""
    is_kept = own not in module._non_persistent_buffers_set
    return bool(SCALE.search(own)) and (own.startswith("weight_") or (tensor.ndim > 1 and is_kept))


def check_plain_model(model: Any) -> None:
    """Check that the weights of a live model are the matrices themselves.

    Args:
        model: an ``nn.Module``.

    Raises:
        InputError: a layer is quantised, or its weight is computed. The message names it.
    """
    import torch
    from torch import Tensor, nn

    for name, module in model.named_modules():
        packed = next((field for field in (*PACKED, "_packed_params") if hasattr(module, field)), None)
        for own, t in module._buffers.items():
            if t is not None and t.ndim > 1 and not t.is_floating_point() and not BUFFER.search(f"{name}.{own}"):
                raise InputError(
                    f"{name}.{own} has quantised weights (a buffer of {t.dtype}); {REMEDY}".removeprefix(".")
                )
        tensors = [*module._parameters.items(), *module._buffers.items()]
        scale = next((own for own, t in tensors if t is not None and _is_scale(module, own, t)), None)
        for own, p in module._parameters.items():
            if p is None or p.ndim < 2:
                continue
            is_plain = p.is_floating_point() and type(p) in (nn.Parameter, Tensor) and p.layout is torch.strided
            if packed or not is_plain or (scale and own == "weight"):
                what = packed or scale or f"{type(p).__name__} of {p.dtype}, {p.layout}"
                raise InputError(f"{name}.{own} has quantised weights ({what}); {REMEDY}".removeprefix("."))
        if packed:
            raise InputError(f"{name} has quantised weights ({packed}); {REMEDY}")
        if is_computed(module):
            computed = [p for p in module.parameters() if p.ndim == 2]
            if computed:
                raise InputError(
                    f"the weight of {name} is computed from several tensors; remove weight_norm or spectral_norm first"
                )
