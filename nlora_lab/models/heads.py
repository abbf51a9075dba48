"""The classes of a sequence classifier: which output of its head stands for which class.

The order of the outputs is a convention of whoever trained the head. Only the names in its config say what it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlora_lab.core.errors import ModelError
from nlora_lab.models.layers import head_modules


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names that a config gives to the outputs of a head.

    Args:
        config: the fields of a ``config.json``. (A transformers config has lost a ``label2id`` that stood alone.)

    Returns:
        The names in the order of the outputs. Empty if the config names none.

    Raises:
        ModelError: ``id2label`` and ``label2id`` are not tables of outputs and names, or contradict each other.
    """
    try:
        listed = _in_order({str(name): int(number) for number, name in (config.get("id2label") or {}).items()})
        by_name = {str(name): int(number) for name, number in (config.get("label2id") or {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"id2label or label2id in the config is not a table of outputs and names ({error})") from error
    inverse = _in_order(by_name)
    if listed and inverse and any(by_name.get(name, number) != number for number, name in enumerate(listed)):
        raise ModelError(
            f"the config says in id2label that the outputs are {', '.join(listed)}, and in label2id another order "
            f"({', '.join(inverse)}); correct the one that is wrong"
        )
    return listed or inverse


def stored_classes(source: str | Path, **options: Any) -> tuple[str, ...]:
    """Return the names of the classes in the ``config.json`` of a model.

    Args:
        source: a folder, or the hub id of a model that is here already.
        **options: as for ``from_pretrained``.

    Returns:
        The names, as ``class_names`` reads them.

    Raises:
        ModelError: the names contradict each other.
    """
    from transformers import PreTrainedConfig

    return class_names(PreTrainedConfig.get_config_dict(source, **options)[0])


def _in_order(outputs: Mapping[str, int]) -> tuple[str, ...]:
    """The names by their outputs. None if they are LABEL_0, LABEL_1 and so on: nobody has named the classes."""
    names = tuple(sorted(outputs, key=outputs.__getitem__))
    return () if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names


def class_order(stored: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """Find the output that stands for each label. Case, spaces and dashes do not count.

    Args:
        stored: the names of the outputs of a head, in order.
        labels: the names of the classes in the order that a task gives them.

    Returns:
        The output of each label. ``None`` if the two do not name the same classes.
    """
    plain = [re.sub(r"[\s-]+", "_", name.strip().casefold()) for name in stored]
    wanted = [re.sub(r"[\s-]+", "_", name.strip().casefold()) for name in labels]
    if len(set(plain)) != len(plain) or sorted(plain) != sorted(wanted):
        return None
    return [plain.index(name) for name in wanted]


def name_classes(model: Any, labels: Sequence[str]) -> None:
    """Write the names of the classes into the config of a model, so that every export carries them."""
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: number for number, label in enumerate(labels)}


def order_head(model: Any, stored: Sequence[str], labels: Sequence[str]) -> None:
    """Bring the outputs of a classifier into the order of ``labels``, by their names, and name them so.

    Where ``stored`` is empty or names other classes, the outputs stay in their order.

    Args:
        model: a sequence classifier without adapters. It is changed.
        stored: the names of the outputs of its head, in order.
        labels: the names of the classes in the order wanted.

    Raises:
        ModelError: the outputs have to be moved, and the head has no layer with that many outputs.
    """
    order = class_order(stored, labels)
    if order is not None and order != list(range(len(labels))):
        _move_outputs(_output_layer(model, len(labels)), order)
    name_classes(model, labels)


def order_logits(model: Any, order: Sequence[int]) -> None:
    """Let a classifier give its logits in another order, whatever an adapter does to its head.

    Args:
        model: a sequence classifier with an adapter. It is for measuring: an export does not carry the order.
        order: the output that comes first, second, and so on.
    """
    if list(order) == list(range(len(order))):
        return

    def reordered(_module: Any, _inputs: Any, output: Any) -> Any:
        output["logits"] = output["logits"][..., list(order)]
        return output

    model.get_base_model().register_forward_hook(reordered)


def check_end_tokens(model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Check that a classifier with an encoder and a decoder finds what it reads: the end token of every text.

    Such a classifier (BART, T5) takes the representation of the last end token, and needs the same number of them in
    every text. Other classifiers pass.

    Args:
        model: a sequence classifier, with or without an adapter.
        tokenizer: its tokenizer.
        rows: encoded rows with ``input_ids``.

    Raises:
        ModelError: the tokenizer adds no end token, pads with it, or a text has another number of them.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        return
    end = base.config.eos_token_id
    counts = [list(row["input_ids"]).count(end) for row in rows]
    wrong = next((n for n, count in enumerate(counts) if count == 0 or count != counts[0]), None)
    problem = f"pads with it (token {end})" if tokenizer.pad_token_id == end else None
    if wrong is not None:
        problem = f"puts {counts[wrong]} of them (token {end}) into row {wrong + 1}"
    if problem is not None:
        raise ModelError(
            f"a {type(base).__name__} reads the end token of each text, and its tokenizer {problem}; use a tokenizer "
            "that adds one end token to every text, or another model"
        )


def _output_layer(model: Any, outputs: int) -> Any:
    """The last layer of the head with that many outputs."""
    heads = tuple(f"{name}." for name in head_modules(model))
    layers = [
        module
        for name, module in model.named_modules()
        if f"{name}.".startswith(heads)
        and getattr(module, "weight", None) is not None
        and len(module.weight) == outputs
    ]
    if not layers:
        raise ModelError(
            f"the head of a {type(model).__name__} has no layer with {outputs} outputs, so its classes cannot be "
            "mapped to those of the task; choose another model"
        )
    return layers[-1]


def _move_outputs(layer: Any, order: list[int]) -> None:
    for name in ("weight", "bias"):
        values = getattr(layer, name, None)
        if values is not None:
            values.data = values.data[order].clone()
