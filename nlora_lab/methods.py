"""The one table of the methods compared: how each is built, called, counted and drawn.

Adding a method is one entry in :data:`METHODS`; the command line, the lab, the figures, the parameter
table and the contract tests read this table and nothing else.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from nlora_lab.errors import InputError, one_of
from nlora_lab.inits import CORE_INITS, check_core_init

if TYPE_CHECKING:
    import pandas as pd
    from peft import PeftConfig
    from torch import nn

Builder = Callable[..., "PeftConfig"]
Cost = Callable[[int, int, int], int]
"""Trainable numbers of one layer: (m, n, r) for W of shape (out, in) = (m, n)."""


def _full_cost(m: int, n: int, r: int) -> int:
    return m * n


def _two_factors(m: int, n: int, r: int) -> int:
    return r * (m + n)


def _two_factors_and_lengths(m: int, n: int, r: int) -> int:
    return r * (m + n) + m


def _three_factors(m: int, n: int, r: int) -> int:
    return r * (m + n) + r * r


def _core_alone(m: int, n: int, r: int) -> int:
    return r * r


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
        name: what it is called in code and on the command line.
        label: what it is called in figures.
        colour: its hue in every figure. No two methods share one, and two of the same dash stay apart under
            the three kinds of colour blindness.
        dash: its dash, plotly's name.
        trains: what trains, in words.
        start: where it starts, in words.
        cost: trainable numbers of one layer, ``cost(m, n, r)``.
        build: ``build(rank, alpha, init, **peft_options)`` makes the PEFT config; ``None`` trains every weight.
        inits: the initialisations of N it can choose from, the default first; empty where there is no choice.
        step0: the model's function before any training: "exact" (bit for bit the base model's), "near" (to
            rounding, or to a tiny random N) or "changed".
        writes_base: it writes the frozen weight, as PEFT's PiSSA and OLoRA do: ``disable_adapter()`` then
            gives the residual, not the base model.
    """

    name: str
    label: str
    colour: str
    dash: str
    trains: str
    start: str
    cost: Cost
    build: Builder | None = None
    inits: tuple[str, ...] = ()
    step0: Literal["exact", "near", "changed"] = "exact"
    writes_base: bool = False


def _lora(rank: int, alpha: float | None, init: str | None, *, variant: dict[str, Any], **options: Any) -> PeftConfig:
    from peft import LoraConfig

    dropout = options.pop("dropout", 0.0)
    lora_alpha = rank if alpha is None else alpha
    return LoraConfig(r=rank, lora_alpha=lora_alpha, lora_dropout=dropout, **variant, **options)


def _ours(
    rank: int, alpha: float | None, init: str | None, *, preset: str, variant: dict[str, Any], **options: Any
) -> PeftConfig:
    from nlora_lab import adapters

    chosen = {} if init is None else {"init": init}
    config: PeftConfig = getattr(adapters, preset)(rank, alpha, **chosen, **{**variant, **options})
    return config


def _peft(**variant: Any) -> Builder:
    return partial(_lora, variant=variant)


def _own(preset: str, **variant: Any) -> Builder:
    return partial(_ours, preset=preset, variant=variant)


BNA, BA, N_ALONE = "A, N, B", "A, B", "N"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("full", "full fine-tuning", "#6b6b6b", "dot", "every weight", "the model itself", _full_cost),
        Method("lora", "LoRA", "#0072b2", "solid", BA, "A Kaiming, B zero", _two_factors, _peft()),
        Method("rslora", "rsLoRA", "#56b4e9", "dash", BA, "LoRA's, scaled by alpha / √r instead of alpha / r",
               _two_factors, _peft(use_rslora=True)),
        Method("dora", "DoRA", "#16325c", "longdash", "A, B, and the length of each row of W",
               "LoRA's, the lengths those of W", _two_factors_and_lengths, _peft(use_dora=True), step0="near"),
        Method("pissa", "PiSSA", "#7b3294", "dashdot", BA, "the leading SVD of W, subtracted from W", _two_factors,
               _peft(init_lora_weights="pissa"), step0="near", writes_base=True),
        Method("olora", "OLoRA", "#b48cd6", "dot", BA, "the leading QR of W, subtracted from W", _two_factors,
               _peft(init_lora_weights="olora"), step0="near", writes_base=True),
        Method("lora-xs", "LoRA-XS", "#8c510a", "solid", N_ALONE, "B and A the leading SVD of W, N nearly zero",
               _core_alone, _own("lora_xs"), step0="near"),
        Method("slora", "SLoRA", "#d98c00", "dash", BNA, "A and N Kaiming, B zero", _three_factors, _own("slora"),
               CORE_INITS),
        Method("nlora", "NLoRA", "#009e73", "dashdot", BNA, "Nyström of W, with its residual", _three_factors,
               _own("nlora")),
        Method("nlora-pivoted", "NLoRA, cross pivots", "#7fcdb0", "solid", BNA,
               "Nyström of W on its largest pivots, with its residual", _three_factors,
               _own("nlora", pivots="cross")),
        Method("nlora-core", "NLoRA, optimal core", "#004d38", "longdashdot", BNA,
               "leading rows and columns of W, N = C⁺ W R⁺, with its residual", _three_factors,
               _own("nlora", core="optimal")),
        Method("nlora-balanced", "NLoRA, balanced", "#3f4a00", "dash", BNA,
               "NLoRA's product, shared evenly between B and A, N = 1", _three_factors, _own("nlora", balance=True)),
        Method("nlora-released", "NLoRA as released", "#c0448f", "longdash", BNA,
               "N = W[:r, :r], nothing subtracted", _three_factors, _own("nlora_released"), step0="changed"),
        Method("inttune", "IntTune", "#d55e00", "longdashdot", N_ALONE, "NLoRA's, B and A frozen", _core_alone,
               _own("inttune")),
    )
}  # fmt: skip


BUILT_IN = frozenset(METHODS)  # a process of its own knows these and no others


def variant(base: str, name: str, label: str, *, colour: str = "#a6761d", dash: str = "dot", **options: Any) -> Method:
    """The method ``base`` with other options, as an entry of its own: ``METHODS[name] = variant(base, name, …)``.

    ``options``: fields of the PEFT config that ``base`` builds (:class:`nlora_lab.adapters.NLoraConfig`, or PEFT's
    ``LoraConfig``), but for those that change what is trained or counted. Once it is in :data:`METHODS`, the lab,
    ``fine_tune``, ``race`` and the tables of this process know it.

    Raises :class:`nlora_lab.InputError` for an unknown base, for "full", which has no options, and for bad ones.
    """
    entry = get_method(base)
    _check_variant(name, colour, dash, options)
    if not isinstance(entry.build, partial):
        raise InputError(f"{base} has no options to vary; write a Method with a build function of your own")
    build = partial(entry.build.func, **entry.build.keywords)
    build.keywords["variant"] = {**entry.build.keywords["variant"], **options}
    told = ", ".join(f"{key}={value!r}" for key, value in options.items())
    made = replace(entry, name=name, label=label, colour=colour, dash=dash, build=build, start=f"{entry.start}; {told}")
    _try(made, told)
    return made


def _check_variant(name: str, colour: str, dash: str, options: dict[str, Any]) -> None:
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"name={name!r} must be of letters, digits, dots and dashes: it stands in file names")
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        raise InputError(f"colour={colour!r} must be of the form #a6761d")
    one_of("dash", dash, {entry.dash for entry in METHODS.values()})
    for option in FIXED & options.keys():
        raise InputError(
            f"{option} cannot vary: it changes what is trained or counted; choose another base, or a Method"
        )


FIXED = {
    "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform",
    "init_lora_weights", "use_dora", "train", "fold", "residual", "start",
}  # fmt: skip


def _try(entry: Method, told: str) -> None:
    assert entry.build is not None
    try:
        entry.build(4, None, None, target_modules="all-linear")
    except TypeError as error:
        raise InputError(f"{entry.name}: {told} does not fit ({error})") from error


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


def check_rank(model: nn.Module, rank: int, target_modules: Any = "all-linear") -> None:
    """Raise :class:`InputError`, naming the narrowest of the targets, if ``rank`` is above its smaller side."""
    from nlora_lab.models import linear_layers, target_layers

    if target_modules == "all-linear" and not linear_layers(model):
        raise InputError("the model has no linear layer to put an adapter on; choose another model")
    _check_rank_of(target_layers(model, target_modules), rank)


def _check_rank_of(layers: dict[str, Any], rank: int) -> None:
    where, narrowest = min(layers.items(), key=lambda item: min(item[1].weight.shape))
    limit = min(narrowest.weight.shape)
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"rank={rank!r} must be a whole number of at least 1")
    if rank > limit:
        raise InputError(f"rank={rank} is above {limit}, the smaller side of {where}; choose a rank from 1 to {limit}")


def _check_olora(layers: dict[str, Any]) -> None:
    from transformers.pytorch_utils import Conv1D

    for where, layer in layers.items():
        if isinstance(layer, Conv1D):
            raise InputError(
                f"{where} is a Conv1D, which PEFT's OLoRA cannot start from; choose pissa, or another model"
            )


def attach(
    model: Any, method: str, rank: int = 8, alpha: float | None = None, init: str | None = None, **options: Any
) -> Any:
    """``model`` made ready to be tuned by ``method``: a ``PeftModel``, or itself for "full".

    ``options`` go to the PEFT config (``target_modules``, by default every linear layer but the output head, which
    trains as it is in a sequence classifier; ``dropout``; …). ``alpha=None`` means the rank: a scale of 1, for
    rslora of √rank. Draws from torch's global generator: seed it before.
    """
    from nlora_lab.models import HEADS, head_modules, linear_layers, target_layers

    entry = get_method(method)
    check_init(entry, init)
    if entry.build is None:
        return model.requires_grad_(True)
    head = head_modules(model)
    options = {"target_modules": "all-linear", "task_type": "SEQ_CLS" if head else "CAUSAL_LM", **options}
    check_rank(model, rank, options["target_modules"])
    if method == "olora":
        _check_olora(target_layers(model, options["target_modules"]))
    if head and options["target_modules"] == "all-linear":
        options["target_modules"] = list(linear_layers(model))  # PEFT would take some heads for targets as well
    unknown = [name for name in head if not name.endswith(HEADS)]
    if unknown:
        options.setdefault("modules_to_save", unknown)  # PEFT trains no other
    from peft import get_peft_model

    with warnings.catch_warnings():
        # PEFT asks transformers for this property under its old name; nothing a learner can act on
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT sets it right by itself
        return get_peft_model(model, entry.build(rank, alpha, init, **options))


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers of ``model`` get a gradient; a tied weight counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameter_table(
    model_or_config: Any, rank: int = 8, target_modules: Any = "all-linear", methods: Iterable[str] | None = None
) -> pd.DataFrame:
    """How many numbers each method trains in an architecture, exactly; one row a method.

    ``model_or_config``: a model, a transformers config, "embedded", a folder with a config.json, or a hub
    id. Anything but a model is built on the meta device, without weights and without an output head.
    ``target_modules``: as in PEFT. ``methods``: names, by default all.

    Columns: ``method``, ``label``, ``trains``, ``trainable`` (numbers, those of a classifier's head among them),
    ``share`` (of the model's own numbers, 0 to 1; the body's where it was built from a config), ``beyond_lora``
    (numbers more than LoRA's at this rank).

    Raises :class:`nlora_lab.InputError` for an unknown method, targets that match nothing, and a rank above a
    layer's smaller side, naming the layer.
    """
    import pandas as pd
    from torch import nn

    from nlora_lab.models import head_modules, meta_body, target_layers

    entries = [get_method(name) for name in (METHODS if methods is None else methods)]
    model: Any = model_or_config if isinstance(model_or_config, nn.Module) else meta_body(model_or_config)
    if getattr(model, "peft_config", None):
        raise InputError("the model carries an adapter already; give the base model, or its config")
    layers = target_layers(model, target_modules)
    _check_rank_of(layers, rank)
    shapes = [layer_shape(layer) for layer in layers.values()]
    everything = sum(p.numel() for p in model.parameters())
    head = sum(p.numel() for name in head_modules(model) for p in model.get_submodule(name).parameters())
    lora = head + sum(_two_factors(m, n, rank) for m, n in shapes)
    rows = []
    for entry in entries:
        count = everything if entry.build is None else head + sum(entry.cost(m, n, rank) for m, n in shapes)
        row = {"method": entry.name, "label": entry.label, "trains": entry.trains, "trainable": count}
        rows.append({**row, "share": count / everything, "beyond_lora": count - lora})
    return pd.DataFrame(rows)


def layer_shape(layer: Any) -> tuple[int, int]:
    """(out, in) of a linear layer, GPT-2's transposed Conv1D included."""
    from transformers.pytorch_utils import Conv1D

    first, second = layer.weight.shape
    return (second, first) if isinstance(layer, Conv1D) else (first, second)
