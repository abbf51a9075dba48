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
from nlora_lab.core.validation import check_choice, check_number, check_whole_number
from nlora_lab.lowrank.rules import CORES, PIVOTS
from nlora_lab.lowrank.slora_init import check_core_init

STARTS = ("random", "nystrom", "svd")
TRAINABLE = ("BNA", "N")
ALPHA_REMEDY = "alpha=None means alpha = r, a scale of 1"


class _NLoraType(enum.StrEnum):
    """PEFT wants a ``str`` with a ``.value``; transformers derives the prefix ``nlora_`` from it."""

    NLORA = "NLORA"


NLORA = _NLoraType.NLORA


@dataclass
class NLoraConfig(PeftConfig):
    """Configuration of ``y = W x + s·B N A x``, minus the start with ``residual``.

    For ``W`` of shape (m, n): ``B`` (m, r), ``N`` (r, r), ``A`` (r, n) and ``s = alpha / r``. Use a preset (``slora``,
    ``nlora``, ``nlora_released``, ``inttune``, ``lora_xs``) unless you want a mix of your own.

    Attributes:
        r: the rank, at least 1 and at most the smaller side of every target layer.
        alpha: the numerator of the scale. ``None`` means the rank of the layer, so that ``s = 1`` as in the paper.
        target_modules: as in PEFT: names, a regular expression, or "all-linear".
        exclude_modules: as in PEFT.
        start: "random" (A Kaiming, B zero, N by ``init``), "nystrom" (all three from ``W``) or "svd" (B and A are the
            leading singular vectors of ``W``, B times the singular values, N by ``init``).
        init: the initialisation of N where it is random: "kaiming", "xavier", "orthogonal", "identity" or "normal".
            Each but the first also exists with "-scaled" at its end: it then has the size of Kaiming's (see
            ``nlora_lab.lowrank.slora_init.split_init``).
        init_std: the standard deviation for ``init="normal"``.
        pivots: for ``start="nystrom"``, how its rows and columns of ``W`` are chosen: "leading", "random" (drawn from
            torch's global generator), "cross" or "qr" (see ``nl.nystrom``).
        core: for ``start="nystrom"``, N: "pinv", "optimal" or "block" (see ``nl.nystrom``).
        balance: for ``start="nystrom"``, share the singular values of the same product evenly between B and A, and make
            N the identity.
        residual: subtract the start ``s·B0 N0 A0``, so that the function is unchanged at step 0. The frozen weight
            itself is never written: the start factors are kept beside it, and ``disable_adapter()`` gives the base
            model back exactly.
        fold: with ``residual``, subtract the start from the frozen weight once instead of at every step. A step then
            costs as much as one of SLoRA. The price: the base weight is written, so step 0 is unchanged only to
            rounding. Disabling, deleting and unloading the adapter add the start back, to rounding too. It is saved and
            loaded like any other adapter, on the original base model.
        train: "BNA", or "N" alone with A and B frozen (IntTune, LoRA-XS).
        use_rslora: use ``s = alpha / √r`` (Kalajdzievski 2023, arXiv 2312.03732) instead of ``alpha / r``.
        rank_pattern: ranks of single layers, as in PEFT. The keys are names, ends of names or regular expressions.
        alpha_pattern: alphas of single layers, in the same form.
        dropout: the dropout on the input of the adapter, from 0 to below 1.
        modules_to_save: as in PEFT.
        layers_to_transform: as in PEFT.
        layers_pattern: as in PEFT.
        bias: "none". PEFT's other values are refused.
        peft_type: always "NLORA".

    Raises:
        InputError: a value is not allowed, or two values do not go together.
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

    # not a field: the adapter of this config is being loaded, and is worth nothing until its weights arrive
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
        """The scale ``s`` of a layer that no pattern names."""
        return self.scaling_of("")

    def rank_of(self, layer: str) -> int:
        """Return the rank of a layer.

        Args:
            layer: the dotted name of the layer. ``rank_pattern`` is matched with it as in PEFT.

        Returns:
            The rank.
        """
        return self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), layer), self.r)

    def scaling_of(self, layer: str) -> float:
        """Return the scale ``s`` of a layer: ``alpha / r``, or ``alpha / √r`` with ``use_rslora``.

        Args:
            layer: the dotted name of the layer. ``alpha_pattern`` is matched with it as in PEFT.

        Returns:
            The scale.
        """
        r = self.rank_of(layer)
        alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), layer), self.alpha)
        alpha = r if alpha is None else alpha
        return alpha / math.sqrt(r) if self.use_rslora else alpha / r

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, with sets as sorted lists so that the saved file is the same every time."""
        return {k: sorted(v) if isinstance(v, set) else v for k, v in super().to_dict().items()}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> NLoraConfig:
        """Load a configuration as PEFT does, and check the adapter file beside it before any model changes.

        Args:
            pretrained_model_name_or_path: a folder or a hub id.
            subfolder: the folder of the adapter inside it.
            **kwargs: passed on to PEFT.

        Returns:
            The configuration.

        Raises:
            InputError: a value of the configuration is not allowed, or a local adapter file is damaged.
        """
        config: NLoraConfig = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        check_adapter_file(Path(pretrained_model_name_or_path) / (subfolder or ""))
        config.awaits_weights = True
        return config


def check_adapter_file(folder: Path) -> None:
    """Check that the safetensors file of a saved adapter, if there is one in ``folder``, can be read."""
    from safetensors import SafetensorError, safe_open

    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        return
    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a complete adapter file ({error}); save or copy the adapter again") from error


def _check_numbers(config: NLoraConfig) -> None:
    """Check every number, and turn numpy's into Python's, which JSON knows."""
    config.r = check_whole_number("r", config.r)
    for key, rank in config.rank_pattern.items():
        config.rank_pattern[key] = check_whole_number(f"rank_pattern[{key!r}]", rank)
    if config.alpha is not None:
        config.alpha = _checked_number("alpha", config.alpha, above=0.0, remedy=ALPHA_REMEDY)
    for key, alpha in config.alpha_pattern.items():
        config.alpha_pattern[key] = _checked_number(f"alpha_pattern[{key!r}]", alpha, above=0.0, remedy=ALPHA_REMEDY)
    config.dropout = _checked_number("dropout", config.dropout, low=0.0, below=1.0, remedy="0 means no dropout")
    config.init_std = _checked_number("init_std", config.init_std, above=0.0, remedy="try 0.02")


def _checked_number(name: str, value: Any, **bounds: Any) -> float:
    number: Any = check_number(name, value, **bounds)
    plain: float = number.item() if hasattr(number, "item") else number
    return plain


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
            why = "with B = 0 there is nothing to subtract" if config.start == "random" else "with 'svd', N is tiny"
            raise InputError(f"residual=True belongs to start='nystrom': {why}; leave it out")
    if config.start == "random" and config.train == "N":
        raise InputError("train='N': B is 0 and frozen, so N never gets a gradient; use start='nystrom' or 'svd'")
    if config.fold and not config.residual:
        raise InputError("fold=True folds the start into the weight and needs residual=True; leave fold out")


def _check_targets(config: NLoraConfig) -> None:
    if config.layers_to_transform is not None and isinstance(config.target_modules, str):
        raise InputError(
            f"layers_to_transform={config.layers_to_transform!r} does not work with target_modules="
            f"{config.target_modules!r}, which is a string; give the names of the modules as a list"
        )
    if config.layers_pattern and config.layers_to_transform is None:
        raise InputError(
            f"layers_pattern={config.layers_pattern!r} says where the numbers of layers_to_transform are in a name; "
            "give both or neither"
        )
