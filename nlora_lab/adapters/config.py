"""The configuration of the three-factor adapter ``s·B N A``."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peft.config import PeftConfig
from peft.utils.other import get_pattern_key

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.lowrank.core_init import check_core_init
from nlora_lab.lowrank.cross import CORES
from nlora_lab.lowrank.pivots import PIVOTS

STARTS = ("random", "nystrom", "svd")
TRAINABLE = ("BNA", "N")


class _NLoraType(enum.StrEnum):
    """PEFT wants a ``str`` with a ``.value``; transformers derives the prefix ``nlora_`` from it."""

    NLORA = "NLORA"


NLORA = _NLoraType.NLORA


@dataclass
class NLoraConfig(PeftConfig):
    """Configuration of ``y = W x + s·B N A x`` (minus the start, with ``residual``).

    For ``W`` of shape (m, n): ``B`` (m, r), ``N`` (r, r), ``A`` (r, n) and ``s = alpha / r``. Use a
    preset (:func:`slora`, :func:`nlora`, :func:`nlora_released`, :func:`inttune`, :func:`lora_xs`)
    unless you want your own mix. Every bad value raises :class:`nlora_lab.InputError`.

    Args:
        r: rank, at least 1 and at most the smaller side of every target layer.
        alpha: numerator of the scale; ``None`` means the layer's rank, so that ``s = 1`` as in the paper.
        use_rslora: ``s = alpha / √r`` (Kalajdzievski, arXiv 2312.03732) instead of ``alpha / r``.
        rank_pattern: ranks of single layers, as in PEFT: {name, its end, or a regular expression: rank}.
        alpha_pattern: the same for alpha.
        target_modules: as in PEFT: names, a regular expression, or "all-linear".
        exclude_modules: as in PEFT.
        start: "random" (A Kaiming, B zero, N by ``init``), "nystrom" (all three from ``W``) or "svd" (B and A
            the leading singular vectors of ``W``, B times the singular values, N by ``init``).
        init: initialisation of N where it is random: kaiming, xavier, orthogonal, identity, normal; each but the
            first also with "-scaled" behind it, at Kaiming's size (see :func:`nlora_lab.lowrank.core_init.split_init`).
        init_std: standard deviation for ``init="normal"``.
        pivots: for ``start="nystrom"``, the rows and columns of ``W`` it stands on: "leading", "random" (drawn
            from torch's global generator), "cross" or "qr" (see :func:`nlora_lab.lowrank.nystrom`).
        core: N for ``start="nystrom"``: "pinv", "optimal" or "block" (see there too).
        balance: for ``start="nystrom"``, the same product with its singular values shared evenly between B
            and A, and N the identity.
        residual: subtract the initial ``s·B0 N0 A0``, so that the function is unchanged at step 0. The
            frozen weight itself is never written: the initial factors are kept beside it, and
            ``disable_adapter()`` gives the base model back exactly.
        fold: with ``residual``, subtract the start from the frozen weight once, instead of at every step:
            a step then costs what SLoRA's does. The price: the base weight is written, so step 0 is unchanged
            only to rounding. Disabling the adapter, deleting and unloading it add the start back, to
            rounding too. Saved and loaded like any other adapter, on the original base model.
        train: "BNA", or "N" alone, with A and B frozen (IntTune, LoRA-XS).
        dropout: on the adapter's input, 0 to below 1.
        modules_to_save: as in PEFT.
        layers_to_transform: as in PEFT.
        layers_pattern: as in PEFT.
    """

    r: int = 8
    alpha: float | None = None
    target_modules: str | list[str] | set[str] | None = "all-linear"
    exclude_modules: str | list[str] | set[str] | None = None
    start: Literal["random", "nystrom", "svd"] = "random"
    init: str = "kaiming"
    init_std: float = 0.02
    pivots: Literal["leading", "random", "cross", "qr"] = "leading"
    core: Literal["pinv", "optimal", "block"] = "pinv"
    balance: bool = False
    residual: bool = False
    fold: bool = False
    train: Literal["BNA", "N"] = "BNA"
    use_rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    dropout: float = 0.0
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    bias: Literal["none"] = "none"
    peft_type: Any = field(default=NLORA, init=True)

    # not a field: the adapter of this config is being loaded, and is worth nothing until its file has come
    awaits_weights = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = NLORA
        # a JSON file has null where a dict was left out
        self.rank_pattern, self.alpha_pattern = self.rank_pattern or {}, self.alpha_pattern or {}
        _check_numbers(self)
        _check_start(self)
        _check_targets(self)
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list | tuple):
                setattr(self, name, set(getattr(self, name)))

    @property
    def scaling(self) -> float:
        """``s`` of a layer no pattern names."""
        return self.scaling_of("")

    def rank_of(self, layer: str) -> int:
        """The rank at the layer of this dotted name, by PEFT's matching of ``rank_pattern``."""
        return self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), layer), self.r)

    def scaling_of(self, layer: str) -> float:
        """``s = alpha / r``, or ``alpha / √r``, at the layer of this dotted name."""
        r = self.rank_of(layer)
        alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), layer), self.alpha)
        alpha = r if alpha is None else alpha
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r

    def to_dict(self) -> dict[str, Any]:
        """The fields, with sets as sorted lists: the saved file is the same every time."""
        return {k: sorted(v) if isinstance(v, set) else v for k, v in super().to_dict().items()}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> NLoraConfig:
        """PEFT's, but a local adapter file that cannot be read is found here, before any model is touched."""
        config: NLoraConfig = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        check_adapter_file(Path(pretrained_model_name_or_path) / (subfolder or ""))
        config.awaits_weights = True
        return config


def check_adapter_file(folder: Path) -> None:
    """Raise :class:`InputError` if the safetensors file of a saved adapter is there and damaged."""
    from safetensors import SafetensorError, safe_open

    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        return
    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is no whole adapter file ({error}); save or copy the adapter again") from error


def _check_numbers(config: NLoraConfig) -> None:
    ranks = {"r": config.r, **{f"rank_pattern[{key!r}]": value for key, value in config.rank_pattern.items()}}
    for name, r in ranks.items():
        if isinstance(r, bool) or not isinstance(r, int) or r < 1:
            raise InputError(f"{name}={r!r}: the rank must be a whole number of at least 1")
    alphas = {"alpha": config.alpha, **{f"alpha_pattern[{k!r}]": v for k, v in config.alpha_pattern.items()}}
    for name, alpha in alphas.items():
        if alpha is not None and not (_is_number(alpha) and alpha > 0):
            raise InputError(f"{name}={alpha!r} must be positive; alpha=None means alpha = r, a scale of 1")
    if not (_is_number(config.dropout) and 0.0 <= config.dropout < 1.0):
        raise InputError(f"dropout={config.dropout!r} must be at least 0 and below 1")
    if not (_is_number(config.init_std) and config.init_std > 0):
        raise InputError(f"init_std={config.init_std!r} must be positive")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_start(config: NLoraConfig) -> None:
    check_choice("start", config.start, STARTS)
    check_choice("core", config.core, CORES)
    if not isinstance(config.pivots, str):  # a pair of indices fits one layer, not every layer of a model
        raise InputError(f"pivots={config.pivots!r} is not known; choose one of: {', '.join(PIVOTS)}")
    check_choice("pivots", config.pivots, PIVOTS)
    check_choice("train", config.train, TRAINABLE)
    check_choice("bias", config.bias, ("none",))
    if config.start != "nystrom":
        check_core_init(config.init)
        if config.residual:
            why = "with B = 0 there is nothing to subtract" if config.start == "random" else "and N is tiny with svd"
            raise InputError(f"residual=True belongs to start='nystrom': {why}; leave it out")
    if config.start == "random" and config.train == "N":
        raise InputError("train='N': with B = 0 and frozen N never gets a gradient; use start='nystrom' or 'svd'")
    if config.fold and not config.residual:
        raise InputError("fold=True folds the residual into the weight, so it needs residual=True; leave fold out")


def _check_targets(config: NLoraConfig) -> None:
    if config.layers_to_transform is not None and isinstance(config.target_modules, str):
        raise InputError(
            f"layers_to_transform={config.layers_to_transform!r} cannot go with target_modules="
            f"{config.target_modules!r}, a string; give the names of the modules as a list"
        )
    if config.layers_pattern and config.layers_to_transform is None:
        raise InputError(
            f"layers_pattern={config.layers_pattern!r} says where the numbers of layers_to_transform stand; "
            "give both or neither"
        )
