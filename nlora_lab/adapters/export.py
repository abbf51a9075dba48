"""A three-factor adapter as a plain LoRA adapter: exact, without an SVD, for any server that knows LoRA.

``s · left (m, k) @ right (k, n)`` is the change of the *original* weight, where k is the rank of the exported pair.
For SLoRA, NLoRA as released, IntTune and LoRA-XS, k = r. Where a complete start is subtracted, k = 2r. The pair is
that of ``nlora_lab.adapters.products.update_pair``, in which nothing large cancels.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nlora_lab.adapters.config import NLORA, NLoraConfig
from nlora_lab.adapters.layer import NLoraLayer
from nlora_lab.adapters.products import NO_START, Start, update_pair
from nlora_lab.adapters.saved import CONFIG, WEIGHTS, read_adapter, read_settings
from nlora_lab.core.array_types import Float
from nlora_lab.core.documents import read_text
from nlora_lab.core.errors import InputError, ModelError
from nlora_lab.core.files import atomic_folder, expand_path
from nlora_lab.models.layers import HEADS, PEFT_PREFIX, head_modules, linear_layers
from nlora_lab.models.loading import meta_body
from nlora_lab.models.names import CONFIG as MODEL_CONFIG
from nlora_lab.models.names import check_config

COPIED_FIELDS = (
    "task_type", "auto_mapping", "base_model_name_or_path", "revision", "target_modules", "exclude_modules",
    "modules_to_save", "layers_to_transform", "layers_pattern",
)  # fmt: skip


def save_as_lora(model_or_saved_folder: Any, path: str | Path, adapter_name: str = "default") -> Path:
    """Write an adapter as a LoRA adapter that stock PEFT loads on the original base model.

    The logits are equal to rounding. Ranks and scales of single layers and ``modules_to_save`` are carried over. A
    classifier's config is written beside the adapter, because only it says which output is which class.

    Args:
        model_or_saved_folder: a model with an adapter of this package (a ``PeftModel``, or a transformers model with
            ``add_adapter``), or the folder that ``save_pretrained`` wrote.
        path: the folder to write. It is made if it is missing.
        adapter_name: which adapter of the model. It is not used for a folder.

    Returns:
        The folder.

    Raises:
        InputError: the adapter does not exist, its file is damaged, or ``path`` cannot be written.
    """
    if isinstance(model_or_saved_folder, str | Path):
        config, state = _from_folder(expand_path(model_or_saved_folder))
    else:
        config, state = _from_model(model_or_saved_folder, adapter_name)
    weights, scales = _lora_weights(config, state)
    folder = expand_path(path)
    try:
        with atomic_folder(folder) as part:
            save_file(weights, part / WEIGHTS, metadata={"format": "pt"})
            _lora_config(config, weights, scales).save_pretrained(str(part))
            save_classes(model_or_saved_folder, part)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{str(path)!r} cannot be written ({error}); choose another folder") from error
    return folder


def save_classes(model_or_saved_folder: Any, folder: Path) -> None:
    """Write the config of a classifier beside its adapter, because only the config says which output is which class.

    Args:
        model_or_saved_folder: the model with the adapter, or a folder with a saved one and the config beside it.
        folder: where the adapter is written.
    """
    if isinstance(model_or_saved_folder, str | Path):
        beside = expand_path(model_or_saved_folder) / MODEL_CONFIG
        if os.path.lexists(beside):
            check_config(beside)
            (folder / MODEL_CONFIG).write_text(read_text(beside), encoding="utf-8")
        return
    model = model_or_saved_folder
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if head_modules(base):
        base.config.save_pretrained(str(folder))


def _from_folder(folder: Path) -> tuple[NLoraConfig, dict[str, Tensor]]:
    kind = read_settings(folder)["peft_type"]
    if kind != NLORA:
        raise InputError(
            f"{folder} holds a {kind} adapter, not one of this package; give a folder with one of this package"
        )
    config, header = read_adapter(folder)
    if config.target_modules is None:
        raise InputError(f"{folder / CONFIG} names no target_modules; save the adapter again")
    foreign = next((name for name in sorted(header) if not name.startswith(PEFT_PREFIX)), None)
    if foreign is not None:
        raise InputError(
            f"{folder / WEIGHTS} holds {foreign}, and PEFT's names start with {PEFT_PREFIX}; save it again"
        )
    state = load_file(folder / WEIGHTS)
    _check_complete(folder, config, state)
    return config, state


def _check_complete(folder: Path, config: NLoraConfig, state: dict[str, Tensor]) -> None:
    """Check the factors of every layer in a file against its config: which there must be, and their ranks."""
    starts = () if not config.residual else ("N0",) if config.train == "N" else ("A0", "N0", "B0")
    layers = {key.partition(".nlora_")[0] for key in state if ".nlora_" in key}
    for layer in sorted(layers):
        rank = config.rank_of(layer.removeprefix(PEFT_PREFIX))
        for name in ("A", "N", "B", *starts):
            factor = state.get(f"{layer}.nlora_{name}.weight")
            if factor is None:
                raise InputError(f"nlora_{name} of {layer} is missing from {folder}; save the adapter again")
            ranks = {"A": factor.shape[:1], "N": factor.shape, "B": factor.shape[1:]}[name[0]]
            if factor.ndim != 2 or set(ranks) != {rank}:
                raise InputError(
                    f"nlora_{name} of {layer} is {tuple(factor.shape)} in {folder}, and its config says rank {rank}; "
                    "save the adapter again"
                )
    missing = sorted(_selected_layers(config, layers) - layers)
    if missing:
        raise InputError(
            f"{folder} has no factors of {missing[0]}, which its config selects ({len(missing)} layers are missing); "
            "save the adapter again"
        )
    _check_nothing_else(folder, config, state, layers)


def _check_nothing_else(folder: Path, config: NLoraConfig, state: dict[str, Tensor], layers: set[str]) -> None:
    """Check that a config speaks of every layer in its file, and the file of every module that the config trains."""
    for layer in sorted(layers):
        name = layer.removeprefix(PEFT_PREFIX)
        if config.target_modules != "all-linear" and not check_target_module_exists(config, name):
            raise InputError(
                f"{folder} has factors of {layer}, which its config does not select; save the adapter again"
            )
    heads = HEADS if config.task_type in ("SEQ_CLS", "TOKEN_CLS") else ()  # PEFT lists more than a model has
    for name in sorted(set(config.modules_to_save or ()).difference(heads)):
        if not any(f".{name}." in key for key in state):
            raise InputError(f"{folder} lacks {name}, which its config trains in full; save the adapter again")


def _selected_layers(config: NLoraConfig, layers: set[str]) -> set[str]:
    """The layers that a config selects in its base model, if that is a folder here, with names as in ``layers``."""
    base = config.base_model_name_or_path
    if not base or not Path(base).is_dir():
        return set()
    try:
        names = list(linear_layers(meta_body(str(base))))
    except ModelError:
        return set()
    # the body lacks the first part of the names, such as "model."
    starts = (layer.removesuffix(name) for layer in layers for name in names if layer.endswith(f".{name}"))
    start = next(starts, "")
    inside = start.removeprefix(PEFT_PREFIX)
    return {start + name for name in names if start and check_target_module_exists(config, inside + name)}


def _from_model(model: Any, adapter: str) -> tuple[NLoraConfig, dict[str, Tensor]]:
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not configs:
        raise InputError(f"{type(model).__name__} has no adapter; attach or load one before you export it")
    if adapter not in configs:
        raise InputError(f"adapter_name={adapter!r} is not in this model; it has: {', '.join(configs)}")
    config = configs[adapter]
    if not isinstance(config, NLoraConfig):
        raise InputError(
            f"{adapter!r} is a {config.peft_type} adapter, not one of this package; save it with save_pretrained"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Setting `save_embedding_layers` to `True`"
        )  # which is what is wanted
        state = get_peft_model_state_dict(model, adapter_name=adapter)  # with embeddings that were resized
    layers = sum(isinstance(m, NLoraLayer) and adapter in m.nlora_A for m in model.modules())
    saved = sum(key.endswith(".nlora_A.weight") for key in state)
    if saved != layers:
        raise InputError(
            f"PEFT gives the tensors of {saved} of the {layers} layers of adapter {adapter!r}; "
            "give the adapter another name"
        )
    # transformers' own add_adapter has no PeftModel around the model
    return config, {k if k.startswith(PEFT_PREFIX) else PEFT_PREFIX + k: v.detach() for k, v in state.items()}


def _lora_weights(config: NLoraConfig, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the tensors of the LoRA file, and the scale of each layer by its name in the base model."""
    # copies, because tied embeddings are one tensor, and a file takes each tensor once
    weights = {k: v.detach().cpu().contiguous().clone() for k, v in state.items() if ".nlora_" not in k}
    layers = sorted(k.removesuffix(".nlora_A.weight") for k in state if k.endswith(".nlora_A.weight"))
    if not layers:
        raise InputError("the adapter has no factors, so its file is empty or of another kind; save it again")
    scales = {}
    for layer in layers:
        left, right = _pair_of_layer(layer, state)
        weights[f"{layer}.lora_A.weight"], weights[f"{layer}.lora_B.weight"] = right, left
        name = layer.removeprefix(PEFT_PREFIX)
        scales[name] = config.scaling_of(name)
    return weights, scales


def _pair_of_layer(layer: str, state: dict[str, Tensor]) -> tuple[Float[Tensor, "m k"], Float[Tensor, "k n"]]:
    """Return left (m, k) and right (k, n), multiplied in float64 and rounded once."""

    def factor(name: str) -> Tensor:
        try:
            return state[f"{layer}.nlora_{name}.weight"].detach().cpu().to(torch.float64)
        except KeyError:
            raise InputError(f"nlora_{name} of {layer} is missing from the adapter; save the adapter again") from None

    start: Start = NO_START
    if f"{layer}.nlora_A0.weight" in state:
        start = factor("A0"), factor("N0"), factor("B0")
    elif f"{layer}.nlora_N0.weight" in state:
        start = None, factor("N0"), None
    left, right = update_pair((factor("A"), factor("N"), factor("B")), start)
    dtype = torch.promote_types(state[f"{layer}.nlora_A.weight"].dtype, torch.float32)
    left, right = left.to(dtype).contiguous(), right.to(dtype).contiguous()
    if not bool(left.isfinite().all() and right.isfinite().all()):
        raise InputError(f"the product of the factors of {layer} does not fit into {dtype}; train the adapter again")
    return left, right


def _lora_config(config: NLoraConfig, weights: dict[str, Tensor], scales: dict[str, float]) -> LoraConfig:
    """Return the ``LoraConfig`` under which PEFT's ``lora_alpha / r`` is s in every layer."""
    ranks = {name: weights[f"{PEFT_PREFIX}{name}.lora_A.weight"].shape[0] for name in scales}
    alphas = {name: _integral(scales[name] * ranks[name]) for name in scales}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        # PEFT reads a key as a regular expression for the end of a name
        rank_pattern={f"^{re.escape(name)}": r for name, r in ranks.items() if r != rank},
        alpha_pattern={f"^{re.escape(name)}": a for name, a in alphas.items() if a != alpha},
        lora_dropout=config.dropout,
        bias="none",
        inference_mode=True,
        **{name: getattr(config, name) for name in COPIED_FIELDS},
    )
    for name in ("target_modules", "exclude_modules"):  # sets would be written in another order every time
        if isinstance(getattr(lora, name), set):
            setattr(lora, name, sorted(getattr(lora, name)))
    return lora


def _integral(value: float) -> float:
    """Return ``16`` for ``16.0``: servers that read a LoRA adapter expect an integer alpha where one is possible."""
    return int(value) if float(value).is_integer() else value
