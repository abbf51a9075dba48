"""What a start does to a model before any training, and in the first step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.methods.attachment import attach
from nlora_lab.methods.table import get_method
from nlora_lab.models.loading import load_model
from nlora_lab.models.names import EMBEDDED
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.training.loop import step0_change


def step0_meter(name: str, text: str, rank: int = 8, *, model: str = EMBEDDED, seed: int = 0) -> float:
    """How much attaching the method ``name`` changes the logits of ``text``: relative, 0 is bit for bit nothing.

    Raises :class:`InputError` for an unknown method, a rank above a layer's, and an empty text.
    """
    base, batch = _loaded(name, text, model)
    torch.manual_seed(seed)
    return step0_change(attach(load_model(model)[0], name, rank=rank), batch, base=base)


def first_step(
    name: str, text: str, rank: int = 8, lr: float = SHARED_RATE, *, model: str = EMBEDDED, seed: int = 0
) -> float:
    """``‖change of W‖ / ‖W‖`` over all adapted layers after one step of AdamW on the loss of ``text``.

    Adam's first step moves every trained number by about ``lr``, whatever the gradient's size, so this is the
    size the *start* gives to a step. Without weight decay. Raises :class:`InputError` as :func:`step0_meter`, for a
    rate that is not positive, and for "full", which has no adapter to look at.
    """
    base, batch = _loaded(name, text, model)
    if not (isinstance(lr, int | float) and 0 < lr < float("inf")):
        raise InputError(f"lr={lr!r} must be positive; for example 2e-4")
    if get_method(name).build is None:
        raise InputError(f"{name} has no adapter whose change could be measured; choose another method")
    torch.manual_seed(seed)
    tuned = attach(load_model(model)[0], name, rank=rank)
    optimizer = torch.optim.AdamW((p for p in tuned.parameters() if p.requires_grad), lr=lr, weight_decay=0)
    layers = [m for m in tuned.modules() if hasattr(m, "get_delta_weight")]
    before = [_delta(layer) for layer in layers]
    tuned(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    moved = torch.stack([(_delta(layer) - old).norm() for layer, old in zip(layers, before, strict=True)]).norm()
    size = torch.stack([base.get_submodule(n).weight.detach().norm() for n in _names(tuned)]).norm()
    return float(moved / size)


def _loaded(name: str, text: str, model: str) -> tuple[Any, dict[str, Tensor]]:
    get_method(name)
    base, tokenizer = load_model(model)
    tokens = tokenizer([text], return_tensors="pt")
    if tokens["input_ids"].shape[1] < 2:
        raise InputError(f"text={text!r} has fewer than two tokens; give a sentence")
    return base, {k: tokens[k] for k in ("input_ids", "attention_mask")}


def _delta(layer: Any) -> Tensor:
    change: Tensor = layer.get_delta_weight("default").detach().clone()
    return change


def _names(tuned: Any) -> list[str]:
    """The adapted layers, as the base model calls them."""
    names = [n for n, m in tuned.named_modules() if hasattr(m, "get_delta_weight")]
    return [n.removeprefix("base_model.model.") for n in names]
