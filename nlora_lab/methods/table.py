"""The table of the methods: how each is built, called, counted and drawn.

To add a method, add one entry to ``METHODS``. The command line, the lab, the figures, the parameter table and the
contract tests read this table and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.lowrank.slora_init import CORE_INITS, check_core_init

if TYPE_CHECKING:
    from peft import PeftConfig

Builder = Callable[..., "PeftConfig"]
Cost = Callable[[int, int, int], int]
"""The number of trainable numbers in one layer, ``cost(m, n, r)`` for W of shape (out, in) = (m, n)."""


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
        name: its name in code and on the command line.
        label: its name in figures.
        colour: its colour in every figure, as "#rrggbb". Every method has its own. Two methods with the same dash can
            be told apart under the three kinds of colour blindness.
        dash: its dash in every figure, by plotly's name.
        trains: what trains, in words.
        start: where it starts, in words.
        cost: ``cost(m, n, r)`` counts the trainable numbers of one layer with W (m, n).
        build: ``build(rank, alpha, init, **peft_options)`` makes the PEFT config. ``None`` trains every weight.
        inits: the initialisations of N to choose from, the default first. Empty for methods without a choice.
        step0: the function of the model before any training: "exact" (the base model's, bit for bit), "near" (to
            rounding, or to a tiny random N) or "changed".
        writes_base: whether it writes the frozen weight, as PEFT's PiSSA and OLoRA do. ``disable_adapter()`` then gives
            the residual, not the base model.
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

    @property
    def freezes_base(self) -> bool:
        """Whether the base weights stay as they were loaded, bit for bit: an adapter, and not a ``writes_base`` one."""
        return self.build is not None and not self.writes_base


def _lora(rank: int, alpha: float | None, init: str | None, *, variant: dict[str, Any], **options: Any) -> PeftConfig:
    from peft import LoraConfig

    dropout = options.pop("dropout", 0.0)
    lora_alpha = rank if alpha is None else alpha
    return LoraConfig(r=rank, lora_alpha=lora_alpha, lora_dropout=dropout, **variant, **options)


def _preset(
    rank: int, alpha: float | None, init: str | None, *, preset: str, variant: dict[str, Any], **options: Any
) -> PeftConfig:
    from nlora_lab import adapters

    start = {} if init is None else {"init": init}
    config: PeftConfig = getattr(adapters, preset)(rank, alpha, **start, **{**variant, **options})
    return config


def _lora_with(**variant: Any) -> Builder:
    """Build PEFT's ``LoraConfig`` with these options."""
    return partial(_lora, variant=variant)


def _preset_with(preset: str, **variant: Any) -> Builder:
    """Build the config of a preset of ``nlora_lab.adapters`` with these options."""
    return partial(_preset, preset=preset, variant=variant)


BNA, BA, N_ALONE = "A, N, B", "A, B", "N"

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("full", "full fine-tuning", "#6b6b6b", "dot", "every weight", "the model itself", _full_cost),
        Method("lora", "LoRA", "#0072b2", "solid", BA, "A Kaiming, B zero", _two_factors, _lora_with()),
        Method("rslora", "rsLoRA", "#56b4e9", "dash", BA, "LoRA's, scaled by alpha / √r instead of alpha / r",
               _two_factors, _lora_with(use_rslora=True)),
        Method("dora", "DoRA", "#16325c", "longdash", "A, B, and the length of each row of W",
               "LoRA's, the lengths those of W", _two_factors_and_lengths, _lora_with(use_dora=True), step0="near"),
        Method("pissa", "PiSSA", "#7b3294", "dashdot", BA, "the leading SVD of W, subtracted from W", _two_factors,
               _lora_with(init_lora_weights="pissa"), step0="near", writes_base=True),
        Method("olora", "OLoRA", "#b48cd6", "dot", BA, "the leading QR of W, subtracted from W", _two_factors,
               _lora_with(init_lora_weights="olora"), step0="near", writes_base=True),
        Method("lora-xs", "LoRA-XS", "#8c510a", "solid", N_ALONE, "B and A the leading SVD of W, N nearly zero",
               _core_alone, _preset_with("lora_xs"), step0="near"),
        Method("slora", "SLoRA", "#d98c00", "dash", BNA, "A and N Kaiming, B zero", _three_factors,
               _preset_with("slora"), CORE_INITS),
        Method("nlora", "NLoRA", "#009e73", "dashdot", BNA, "Nyström of W, with its residual", _three_factors,
               _preset_with("nlora")),
        Method("nlora-pivoted", "NLoRA, cross pivots", "#7fcdb0", "solid", BNA,
               "Nyström of W on its largest pivots, with its residual", _three_factors,
               _preset_with("nlora", pivots="cross")),
        Method("nlora-core", "NLoRA, optimal core", "#004d38", "longdashdot", BNA,
               "leading rows and columns of W, N = C⁺ W R⁺, with its residual", _three_factors,
               _preset_with("nlora", core="optimal")),
        Method("nlora-balanced", "NLoRA, balanced", "#3f4a00", "dash", BNA,
               "NLoRA's product, shared evenly between B and A, N = 1", _three_factors,
               _preset_with("nlora", balance=True)),
        Method("nlora-released", "NLoRA as released", "#c0448f", "longdash", BNA,
               "N = W[:r, :r], nothing subtracted", _three_factors, _preset_with("nlora_released"), step0="changed"),
        Method("inttune", "IntTune", "#d55e00", "longdashdot", N_ALONE, "NLoRA's, B and A frozen", _core_alone,
               _preset_with("inttune")),
    )
}  # fmt: skip
"""All methods by name. An entry that you add is a method like any other, until Python ends."""


BUILT_IN = frozenset(METHODS)
"""The methods that every process knows. Those that a caller adds to ``METHODS`` exist only in the caller's process."""


def variant(base: str, name: str, label: str, *, colour: str = "#a6761d", dash: str = "dot", **options: Any) -> Method:
    """Make a new method from another one, with other options of its PEFT config.

    Put the result into the table: ``METHODS[name] = variant(base, name, …)``. The lab, ``fine_tune``, ``race`` and the
    tables of this process then know it.

    Args:
        base: the name of the method to start from.
        name: the new name: letters, digits, dots and dashes.
        label: the name in figures.
        colour: the colour in figures, as "#rrggbb".
        dash: the dash in figures, by plotly's name.
        **options: fields of the PEFT config that ``base`` builds (``NLoraConfig``, or PEFT's ``LoraConfig``), except
            those that change what is trained or counted.

    Returns:
        The method.

    Raises:
        InputError: the base is unknown or has no options, as "full", or an option or a name is not allowed.
    """
    entry = get_method(base)
    _check_variant(name, colour, dash, options)
    if not isinstance(entry.build, partial):
        raise InputError(f"{base} has no options to vary; write a Method with your own build function")
    build = partial(entry.build.func, **entry.build.keywords)
    build.keywords["variant"] = {**entry.build.keywords["variant"], **options}
    changes = ", ".join(f"{key}={value!r}" for key, value in options.items())
    start = f"{entry.start}; {changes}"
    method = replace(entry, name=name, label=label, colour=colour, dash=dash, build=build, start=start)
    _check_build(method, changes)
    return method


def _check_variant(name: str, colour: str, dash: str, options: dict[str, Any]) -> None:
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(
            f"name={name!r} must consist of letters, digits, dots and dashes, because it is used in file names"
        )
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        raise InputError(f"colour={colour!r} must have the form '#a6761d'")
    check_choice("dash", dash, {entry.dash for entry in METHODS.values()})
    for option in FIXED_OPTIONS & options.keys():
        raise InputError(
            f"{option}={options[option]!r} changes what is trained or counted, so it cannot vary; choose another base, "
            "or write a Method"
        )


FIXED_OPTIONS = {
    "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform",
    "init_lora_weights", "use_dora", "train", "fold", "residual", "start",
}  # fmt: skip


def _check_build(method: Method, changes: str) -> None:
    assert method.build is not None
    try:
        method.build(4, None, None, target_modules="all-linear")
    except InputError:
        raise
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"{method.name}: {changes} is not an option of its config ({reason})") from error


def get_method(name: str) -> Method:
    """Return a method of the table by its name.

    Args:
        name: the name.

    Returns:
        The method.

    Raises:
        InputError: the method is unknown. The message lists all names.
    """
    check_choice("method", name, METHODS)
    return METHODS[name]


def check_init(method: Method, init: str | None) -> None:
    """Check that a method can have this initialisation of N.

    Args:
        method: the method.
        init: the name of the initialisation, or ``None`` for the method's default.

    Raises:
        InputError: the method has no choice, or the name is unknown.
    """
    if init is None:
        return
    if not method.inits:
        raise InputError(f"init={init!r}: {method.name} has no choice of init for N; leave init out")
    check_core_init(init)
