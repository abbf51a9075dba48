"""What the start of an adapter does to a model before any training, and in the first step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_number
from nlora_lab.methods.attachment import attach
from nlora_lab.methods.table import get_method
from nlora_lab.models.layers import PEFT_PREFIX
from nlora_lab.models.loading import load_model
from nlora_lab.models.names import EMBEDDED
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.training.measurement import step0_change


def initial_change(name: str, text: str, rank: int = 8, *, model: str = EMBEDDED, seed: int = 0) -> float:
    """Measure how much attaching a method changes the logits of a text, before any training.

    Args:
        name: the name of the method.
        text: the text, of at least two tokens.
        rank: the rank of the adapter.
        model: "embedded", "larger", a folder, or a hub id.
        seed: the seed of the start.

    Returns:
        The root mean square change of the logits over that of the logits. 0 means that no bit has changed.

    Raises:
        InputError: the method is unknown, the rank is above a layer's smaller side, or the text is too short.
        ModelError: the model cannot be loaded.
    """
    base, batch = _model_and_batch(name, text, model)
    torch.manual_seed(seed)
    return step0_change(attach(load_model(model)[0], name, rank=rank), batch, base=base)


def first_step(
    name: str, text: str, rank: int = 8, lr: float = SHARED_RATE, *, model: str = EMBEDDED, seed: int = 0
) -> float:
    """Measure how far one step of AdamW on the loss of a text moves the weights, without weight decay.

    Adam's first step moves every trained number by about ``lr``, whatever the size of its gradient. So this is the size
    that the *start* gives to a step.

    Args:
        name: the name of the method. "full" has no adapter and is refused.
        text: the text, of at least two tokens.
        rank: the rank of the adapter.
        lr: the learning rate.
        model: "embedded", "larger", a folder, or a hub id.
        seed: the seed of the start.

    Returns:
        ``‖change of W‖ / ‖W‖``, Frobenius norms over all adapted layers together.

    Raises:
        InputError: the method is unknown or has no adapter, the rate is not above 0, the rank is above a layer's
            smaller side, or the text is too short.
        ModelError: the model cannot be loaded.
    """
    base, batch = _model_and_batch(name, text, model)
    check_number("lr", lr, above=0, remedy="try 2e-4")
    if get_method(name).build is None:
        raise InputError(f"method={name!r} has no adapter whose change could be measured; choose another method")
    torch.manual_seed(seed)
    tuned = attach(load_model(model)[0], name, rank=rank)
    optimizer = torch.optim.AdamW((p for p in tuned.parameters() if p.requires_grad), lr=lr, weight_decay=0)
    layers = {n.removeprefix(PEFT_PREFIX): m for n, m in tuned.named_modules() if hasattr(m, "get_delta_weight")}
    before = [_update(layer) for layer in layers.values()]
    tuned(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    changes = [(_update(layer) - old).norm() for layer, old in zip(layers.values(), before, strict=True)]
    sizes = [base.get_submodule(layer_name).weight.detach().norm() for layer_name in layers]
    return float(torch.stack(changes).norm() / torch.stack(sizes).norm())


def _model_and_batch(name: str, text: str, model: str) -> tuple[Any, dict[str, Tensor]]:
    """The base model, and the text as a batch of one row."""
    get_method(name)
    base, tokenizer = load_model(model)
    tokens = tokenizer([text], return_tensors="pt")
    if tokens["input_ids"].shape[1] < 2:
        raise InputError(f"text={text!r} has fewer than two tokens; give a sentence")
    return base, {key: tokens[key] for key in ("input_ids", "attention_mask")}


def _update(layer: Any) -> Tensor:
    """What the adapter adds to the weight of a layer, (m, n)."""
    update: Tensor = layer.get_delta_weight("default").detach().clone()
    return update
