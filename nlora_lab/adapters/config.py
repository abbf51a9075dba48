"""The configuration of the three-factor adapter ``s·B N A`` and its presets."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Literal

from peft.config import PeftConfig

from nlora_lab.errors import InputError, one_of
from nlora_lab.inits import check_core_init
from nlora_lab.lowrank import CORES


class _NLoraType(enum.StrEnum):
    """PEFT wants a ``str`` with a ``.value``; transformers derives the prefix ``nlora_`` from it."""

    NLORA = "NLORA"


NLORA = _NLoraType.NLORA


@dataclass
class NLoraConfig(PeftConfig):
    """Configuration of ``y = W x + s·B N A x`` (minus the start, with ``residual``).

    For ``W`` of shape (m, n): ``B`` (m, r), ``N`` (r, r), ``A`` (r, n) and ``s = alpha / r``. Use a
    preset (:func:`slora`, :func:`nlora`, :func:`nlora_released`) unless you want your own mix.

    Args:
        r: rank, at least 1 and at most the smaller side of every target layer.
        alpha: numerator of the scale; ``None`` means ``r``, so that ``s = 1`` as in the paper.
        target_modules: as in PEFT: names, a regular expression, or "all-linear".
        exclude_modules: as in PEFT.
        start: "random" (A Kaiming, B zero, N by ``init``) or "nystrom" (all three from ``W``).
        init: initialisation of N for ``start="random"``: kaiming, xavier, orthogonal, identity, normal.
        init_std: standard deviation for ``init="normal"``.
        core: N for ``start="nystrom"``: "pinv", "optimal" or "block" (see :func:`nlora_lab.lowrank.nystrom`).
        residual: subtract the initial ``s·B0 N0 A0``, so that the function is unchanged at step 0. The
            frozen weight itself is never written: the initial factors are kept beside it, and
            ``disable_adapter()`` gives the base model back exactly.
        dropout: on the adapter's input, 0 to below 1.
        modules_to_save: as in PEFT.
    """

    r: int = 8
    alpha: float | None = None
    target_modules: str | list[str] | set[str] | None = "all-linear"
    exclude_modules: str | list[str] | None = None
    start: Literal["random", "nystrom"] = "random"
    init: str = "kaiming"
    init_std: float = 0.02
    core: Literal["pinv", "optimal", "block"] = "pinv"
    residual: bool = False
    dropout: float = 0.0
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    bias: Literal["none"] = "none"
    peft_type: Any = field(default=NLORA, init=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = NLORA
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise InputError(f"r={self.r!r}: the rank must be a whole number of at least 1")
        if self.alpha is not None and not self.alpha > 0:
            raise InputError(f"alpha={self.alpha!r} must be positive; None means alpha = r, a scale of 1")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout={self.dropout!r} must be at least 0 and below 1")
        one_of("start", self.start, ("random", "nystrom"))
        one_of("core", self.core, CORES)
        if self.start == "random":
            check_core_init(self.init)
            if self.residual:
                raise InputError("residual=True belongs to start='nystrom': with B = 0 there is nothing to subtract")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)

    @property
    def scaling(self) -> float:
        """``s = alpha / r``."""
        return 1.0 if self.alpha is None else self.alpha / self.r


def slora(r: int = 8, alpha: float | None = None, *, init: str = "kaiming", **options: Any) -> NLoraConfig:
    """StructuredLoRA: ``s·B N A`` with A and N random and B = 0; trains all three."""
    return NLoraConfig(r=r, alpha=alpha, start="random", init=init, **options)


def nlora(r: int = 8, alpha: float | None = None, *, core: Any = "pinv", **options: Any) -> NLoraConfig:
    """NLoRA by its derivation: ``B = W[:, :r]``, ``A = W[:r, :]``, ``N = pinv(W[:r, :r])``, residual kept.

    The model's function is unchanged at step 0; trains B, N and A.
    """
    return NLoraConfig(r=r, alpha=alpha, start="nystrom", core=core, residual=True, **options)


def nlora_released(r: int = 8, alpha: float | None = None, **options: Any) -> NLoraConfig:
    """NLoRA as its authors released it: ``N = W[:r, :r]``, nothing subtracted from W.

    The model's function at step 0 becomes ``W + s·B N A``: it is *changed* before any training.
    """
    return NLoraConfig(r=r, alpha=alpha, start="nystrom", core="block", residual=False, **options)
