"""SLoRA, NLoRA, NLoRA as released, IntTune and LoRA-XS as a PEFT method like any other.

**Importing this package registers the method with PEFT.** Import it wherever such an adapter is loaded, before
``PeftModel.from_pretrained``. Without it, PEFT refuses the adapter with a KeyError.

PEFT's own ``register_peft_method`` only takes names of its built-in enum. The type is therefore entered in the public
tables of ``peft.mapping``, where PEFT looks everything up (peft >= 0.21).
"""

from __future__ import annotations

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)

from nlora_lab.adapters.config import NLORA, NLoraConfig
from nlora_lab.adapters.export import save_as_lora
from nlora_lab.adapters.layer import NLoraLayer, NLoraLinear
from nlora_lab.adapters.model import NLoraModel
from nlora_lab.adapters.presets import inttune, lora_xs, nlora, nlora_released, slora

PEFT_TYPE_TO_CONFIG_MAPPING[NLORA] = NLoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[NLORA] = NLoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[NLORA] = NLoraModel.prefix

__all__ = [
    "NLoraConfig",
    "NLoraLayer",
    "NLoraLinear",
    "NLoraModel",
    "inttune",
    "lora_xs",
    "nlora",
    "nlora_released",
    "save_as_lora",
    "slora",
]
