"""The one table of the methods compared: how each is built, called and drawn.

Adding a method is one entry in :data:`METHODS`; the command line, the lab, the figures and the
tests read this table and nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nlora_lab.errors import InputError, one_of
from nlora_lab.inits import CORE_INITS, check_core_init

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

Builder = Callable[..., "PeftConfig"]


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    ``label``, ``colour`` (from Okabe and Ito's palette, told apart by the colour-blind) and ``dash``
    are the same in every figure. ``build(rank, alpha, init, **peft_options)`` makes the PEFT
    config; ``None`` trains every weight. ``inits`` lists the initialisations of N it can choose
    from, the default first; empty where the method has none.
    """

    name: str
    label: str
    colour: str
    dash: str
    trains: str
    start: str
    build: Builder | None = None
    inits: tuple[str, ...] = ()


def _lora(rank: int, alpha: float | None, init: str | None, **options: Any) -> PeftConfig:
    from peft import LoraConfig

    dropout = options.pop("dropout", 0.0)
    return LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, lora_dropout=dropout, **options)


def _slora(rank: int, alpha: float | None, init: str | None, **options: Any) -> PeftConfig:
    from nlora_lab.adapters import slora

    return slora(rank, alpha, init=init or "kaiming", **options)


def _nlora(rank: int, alpha: float | None, init: str | None, **options: Any) -> PeftConfig:
    from nlora_lab.adapters import nlora

    return nlora(rank, alpha, **options)


def _nlora_released(rank: int, alpha: float | None, init: str | None, **options: Any) -> PeftConfig:
    from nlora_lab.adapters import nlora_released

    return nlora_released(rank, alpha, **options)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("full", "full fine-tuning", "#6b6b6b", "dot", "every weight", "the model itself"),
        Method("lora", "LoRA", "#0072b2", "solid", "A, B", "A Kaiming, B zero", _lora),
        Method(
            "slora", "SLoRA", "#d98c00", "dash", "A, N, B", "A and N Kaiming, B zero", _slora, inits=CORE_INITS
        ),
        Method("nlora", "NLoRA", "#009e73", "dashdot", "A, N, B", "Nyström of W, with its residual", _nlora),
        Method(
            "nlora-released",
            "NLoRA as released",
            "#c0448f",
            "longdash",
            "A, N, B",
            "N = W[:r, :r], nothing subtracted",
            _nlora_released,
        ),
    )
}  # fmt: skip


def get_method(name: str) -> Method:
    """The entry called ``name``; :class:`InputError` lists the known ones."""
    one_of("method", name, METHODS)
    return METHODS[name]


def check_init(method: Method, init: str | None) -> None:
    """Raise :class:`InputError` unless ``init`` is ``None`` or one this method's N can have."""
    if init is None:
        return
    if not method.inits:
        raise InputError(f"init={init!r}: {method.name} has no choice of init for N; leave init out")
    check_core_init(init)


def check_rank(model: nn.Module, rank: int) -> None:
    """Raise :class:`InputError`, naming the narrowest layer, if ``rank`` is above its smaller side."""
    from nlora_lab.models import linear_layers

    layers = linear_layers(model)
    if not layers:
        raise InputError("the model has no linear layer to put an adapter on; choose another model")
    where, narrowest = min(layers.items(), key=lambda item: min(item[1].weight.shape))
    limit = min(narrowest.weight.shape)
    if rank > limit:
        raise InputError(f"rank={rank} is above {limit}, the smaller side of {where}; choose a rank from 1 to {limit}")


def attach(
    model: Any, method: str, rank: int = 8, alpha: float | None = None, init: str | None = None, **options: Any
) -> Any:
    """``model`` made ready to be tuned by ``method``: a ``PeftModel``, or itself for "full".

    ``options`` go to the PEFT config (``target_modules``, by default every linear layer but the
    output head; ``dropout``; …). Draws from torch's global generator: seed it before.
    """
    entry = get_method(method)
    check_init(entry, init)
    if entry.build is None:
        return model.requires_grad_(True)
    options = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    if options["target_modules"] == "all-linear":
        check_rank(model, rank)
    from peft import get_peft_model

    with warnings.catch_warnings():
        # PEFT asks transformers for this property under its old name; nothing a learner can act on
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return get_peft_model(model, entry.build(rank, alpha, init, **options))


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers of ``model`` get a gradient; a tied weight counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
