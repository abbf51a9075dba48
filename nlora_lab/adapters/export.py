"""A three-factor adapter as a plain LoRA adapter: exact, without an SVD, for any server that knows LoRA.

``s · left (m, k) @ right (k, n)`` is the change of the *original* weight, where k is the rank of the exported pair.
For SLoRA, NLoRA as released, IntTune and LoRA-XS, k = r. Where a complete start is subtracted, k = 2r. The pair is
that of ``nlora_lab.adapters.products.update_pair``, in which nothing large cancels.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nlora_lab.adapters.config import NLORA, NLoraConfig
from nlora_lab.adapters.products import NO_START, Start, update_pair
from nlora_lab.core.array_types import Float
from nlora_lab.core.errors import InputError
from nlora_lab.models.layers import PEFT_PREFIX

WEIGHTS = "adapter_model.safetensors"
COPIED_FIELDS = (
    "task_type", "auto_mapping", "base_model_name_or_path", "revision", "target_modules", "exclude_modules",
    "modules_to_save", "layers_to_transform", "layers_pattern",
)  # fmt: skip


def save_as_lora(model_or_saved_folder: Any, path: str | Path, adapter_name: str = "default") -> Path:
    """Write an adapter as a LoRA adapter that stock PEFT loads on the original base model.

    The logits are equal to rounding. Ranks and scales of single layers and ``modules_to_save`` are carried over.

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
        config, state = _from_folder(Path(model_or_saved_folder))
    else:
        config, state = _from_model(model_or_saved_folder, adapter_name)
    weights, scales = _lora_weights(config, state)
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        _lora_config(config, weights, scales).save_pretrained(str(folder))
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written ({error}); choose another folder") from error
    return folder


def _from_folder(folder: Path) -> tuple[NLoraConfig, dict[str, Tensor]]:
    for name in ("adapter_config.json", WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} does not hold a saved adapter: {name} is missing; save one with save_pretrained"
            )
    try:
        kind = NLoraConfig._get_peft_type(str(folder))
        if kind != NLORA:
            raise InputError(
                f"{folder} holds a {kind} adapter, not one of this package; give a folder with one of this package"
            )
        config = NLoraConfig.from_pretrained(str(folder))
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder}/adapter_config.json is damaged ({error}); save the adapter again") from error
    try:
        return config, load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS} is not a complete adapter file ({error}); save it again") from error


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
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    # transformers' own add_adapter has no PeftModel around the model
    return config, {k if k.startswith(PEFT_PREFIX) else PEFT_PREFIX + k: v.detach() for k, v in state.items()}


def _lora_weights(config: NLoraConfig, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return the tensors of the LoRA file, and the scale of each layer by its name in the base model."""
    weights = {k: v.detach().cpu().contiguous() for k, v in state.items() if ".nlora_" not in k}
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
    return left.to(dtype).contiguous(), right.to(dtype).contiguous()


def _lora_config(config: NLoraConfig, weights: dict[str, Tensor], scales: dict[str, float]) -> LoraConfig:
    """Return the ``LoraConfig`` under which PEFT's ``lora_alpha / r`` is s in every layer."""
    ranks = {name: weights[f"{PEFT_PREFIX}{name}.lora_A.weight"].shape[0] for name in scales}
    alphas = {name: _integral(scales[name] * ranks[name]) for name in scales}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern={name: r for name, r in ranks.items() if r != rank},
        alpha_pattern={name: a for name, a in alphas.items() if a != alpha},
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
