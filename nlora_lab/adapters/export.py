"""A three-factor adapter as a plain LoRA adapter: exact, no SVD, for any server that knows LoRA.

With k the rank of the exported pair, ``s · left (m, k) @ right (k, n)`` is the change of the *original*
weight: k = r for SLoRA, NLoRA as released, IntTune and LoRA-XS (``B N, A`` or ``B (N − N0), A``), and
k = 2r where a whole start is subtracted (``[B − B0, B0]``, ``[N A; N A − N0 A0]``, the difference
written so that nothing large cancels: see :mod:`nlora_lab.adapters.products`).
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
from nlora_lab.adapters.products import pair
from nlora_lab.core.errors import InputError

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
CARRIED = (
    "task_type", "auto_mapping", "base_model_name_or_path", "revision", "target_modules", "exclude_modules",
    "modules_to_save", "layers_to_transform", "layers_pattern",
)  # fmt: skip


def save_as_lora(model_or_saved_folder: Any, path: str | Path, adapter_name: str = "default") -> Path:
    """Write the adapter as a LoRA adapter that stock PEFT loads on the original base model; returns the folder.

    ``model_or_saved_folder``: a model with an adapter of this package (a ``PeftModel``, or a transformers
    model with ``add_adapter``), or the folder that ``save_pretrained`` wrote. The logits are equal to
    rounding. Ranks and scales of single layers and ``modules_to_save`` are carried over.

    Raises :class:`nlora_lab.InputError` where there is no such adapter, its file is damaged, or ``path``
    cannot be written.
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
            raise InputError(f"{folder} holds no saved adapter: {name} is missing; save one with save_pretrained")
    try:
        kind = NLoraConfig._get_peft_type(str(folder))
        if kind != NLORA:
            raise InputError(f"{folder} holds a {kind} adapter, not one of this package; there is nothing to convert")
        config = NLoraConfig.from_pretrained(str(folder))
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder}/adapter_config.json is damaged ({error}); save the adapter again") from error
    try:
        return config, load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / WEIGHTS} is no whole adapter file ({error}); save it again") from error


def _from_model(model: Any, adapter: str) -> tuple[NLoraConfig, dict[str, Tensor]]:
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not configs:
        raise InputError(f"{type(model).__name__} carries no adapter; attach or load one before exporting it")
    if adapter not in configs:
        raise InputError(f"adapter_name={adapter!r} is not in this model; it has: {', '.join(configs)}")
    config = configs[adapter]
    if not isinstance(config, NLoraConfig):
        raise InputError(f"{adapter!r} is a {config.peft_type} adapter, not one of this package; save_pretrained it")
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    # transformers' own add_adapter has no PeftModel around the model
    return config, {k if k.startswith(PREFIX) else PREFIX + k: v.detach() for k, v in state.items()}


def _lora_weights(config: NLoraConfig, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The LoRA file's tensors, and s of each layer by its name in the base model."""
    weights = {k: v.detach().cpu().contiguous() for k, v in state.items() if ".nlora_" not in k}
    layers = sorted(k.removesuffix(".nlora_A.weight") for k in state if k.endswith(".nlora_A.weight"))
    if not layers:
        raise InputError("the adapter has no factors; its file is empty or of another kind: save it again")
    scales = {}
    for layer in layers:
        left, right = _exact_pair(layer, state)
        weights[f"{layer}.lora_A.weight"], weights[f"{layer}.lora_B.weight"] = right, left
        name = layer.removeprefix(PREFIX)
        scales[name] = config.scaling_of(name)
    return weights, scales


def _exact_pair(layer: str, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """left (m, k) and right (k, n), multiplied in float64 and rounded once."""

    def factor(name: str) -> Tensor:
        try:
            return state[f"{layer}.nlora_{name}.weight"].detach().cpu().to(torch.float64)
        except KeyError:
            raise InputError(f"the adapter lacks nlora_{name} of {layer}; its file is damaged: save it again") from None

    now = factor("A"), factor("N"), factor("B")
    dtype = torch.promote_types(state[f"{layer}.nlora_A.weight"].dtype, torch.float32)
    if f"{layer}.nlora_A0.weight" in state:
        left, right = pair(now, (factor("A0"), factor("N0"), factor("B0")))
    elif f"{layer}.nlora_N0.weight" in state:
        left, right = pair((now[0], now[1] - factor("N0"), now[2]), None)
    else:
        left, right = pair(now, None)
    return left.to(dtype).contiguous(), right.to(dtype).contiguous()


def _lora_config(config: NLoraConfig, weights: dict[str, Tensor], scales: dict[str, float]) -> LoraConfig:
    """The ``LoraConfig`` under which PEFT's ``lora_alpha / r`` is s in every layer."""
    ranks = {name: weights[f"{PREFIX}{name}.lora_A.weight"].shape[0] for name in scales}
    alphas = {name: _whole(scales[name] * ranks[name]) for name in scales}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    made = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern={name: r for name, r in ranks.items() if r != rank},
        alpha_pattern={name: a for name, a in alphas.items() if a != alpha},
        lora_dropout=config.dropout,
        bias="none",
        inference_mode=True,
        **{name: getattr(config, name) for name in CARRIED},
    )
    for name in ("target_modules", "exclude_modules"):  # sets would be written in another order every time
        if isinstance(getattr(made, name), set):
            setattr(made, name, sorted(getattr(made, name)))
    return made


def _whole(value: float) -> float:
    """``16`` for ``16.0``: servers that read a LoRA adapter expect a whole alpha where there can be one."""
    return int(value) if float(value).is_integer() else value
