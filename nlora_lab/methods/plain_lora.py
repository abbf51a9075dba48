"""PEFT's LoRA configs: which of them are a plain LoRA, and which write the base weights.

Both follow from the options of a config and never from the name of a method, because a method can be a variant.
"""

from __future__ import annotations

import copy
import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError

if TYPE_CHECKING:
    from peft import LoraConfig

PLAIN_FIELDS = {
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
    "modules_to_save", "layers_to_transform", "layers_pattern", "lora_dropout", "fan_in_fan_out", "task_type",
    "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "init_lora_weights", "runtime_config", "loftq_config", "qalora_group_size",
}  # fmt: skip
"""The options under which the change of a weight is ``s·B A`` and nothing else trains."""

SUBTRACTED = ("pissa", "olora")  # the initialisations that subtract their start from the base weight


def check_plain(config: Any, label: str) -> None:
    """Check that an adapter can be written as a plain LoRA adapter.

    Args:
        config: its PEFT config.
        label: names the method in the message.

    Raises:
        InputError: an option changes more than ``s·B A``. The message names it.
    """
    default = type(config)()
    for option in fields(config):
        value = getattr(config, option.name)
        is_given = value not in (getattr(default, option.name), set(), [], {})  # PEFT turns some None into empty ones
        if option.name not in PLAIN_FIELDS and is_given:
            raise InputError(
                f"{label} cannot be written as a plain LoRA adapter, because of {option.name}={value!r}; "
                "choose form='peft'"
            )


def subtracts_start(config: Any) -> bool:
    """Return whether the adapter of a config starts from the base weight and subtracts its start from it."""
    return str(getattr(config, "init_lora_weights", "")).startswith(SUBTRACTED)


def with_twice_the_rank(config: LoraConfig) -> LoraConfig:
    """Return a copy of a LoRA config for factors of twice the rank, in which every layer keeps its scale.

    Args:
        config: the config of a plain LoRA adapter.

    Returns:
        The copy. It has the default initialisation, since its weights are loaded.
    """
    wide = copy.deepcopy(config)
    factor = math.sqrt(2) if config.use_rslora else 2  # s = alpha / √r, or alpha / r
    wide.r, wide.lora_alpha = 2 * config.r, config.lora_alpha * factor
    wide.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    # without a rank of its own in the pattern, a layer with an alpha of its own has the common rank, doubled too
    wide.alpha_pattern = {name: alpha * factor for name, alpha in (config.alpha_pattern or {}).items()}
    wide.init_lora_weights, wide.inference_mode = True, True
    for name in ("target_modules", "exclude_modules"):  # sets would be written in another order every time
        if isinstance(getattr(wide, name), set):
            setattr(wide, name, sorted(getattr(wide, name)))
    return wide
