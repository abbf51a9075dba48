"""The named methods as configurations: SLoRA, NLoRA, NLoRA as released, IntTune, LoRA-XS."""

from __future__ import annotations

from typing import Any

from nlora_lab.adapters.config import NLoraConfig


def slora(r: int = 8, alpha: float | None = None, *, init: str = "kaiming", **options: Any) -> NLoraConfig:
    """StructuredLoRA: ``s·B N A`` with A and N random and B = 0; trains all three.

    ``init`` is N's: kaiming, xavier, orthogonal, identity or normal (``init_std``); ``options`` are the
    fields of :class:`NLoraConfig`. Guo, Chang and Wu, arXiv 2502.14482.
    """
    return NLoraConfig(r=r, alpha=alpha, start="random", init=init, **options)


def nlora(
    r: int = 8,
    alpha: float | None = None,
    *,
    pivots: Any = "leading",
    core: Any = "pinv",
    balance: bool = False,
    fold: bool = False,
    **options: Any,
) -> NLoraConfig:
    """NLoRA by its derivation: ``B = W[:, :r]``, ``A = W[:r, :]``, ``N = pinv(W[:r, :r])``, residual kept.

    The model's function is unchanged at step 0; trains B, N and A. ``pivots``, ``core`` and ``balance``
    choose another start of the same family (see :func:`nlora_lab.lowrank.nystrom`), ``fold`` subtracts it
    from the weight once (see :class:`NLoraConfig`).
    """
    return NLoraConfig(
        r=r,
        alpha=alpha,
        start="nystrom",
        pivots=pivots,
        core=core,
        balance=balance,
        residual=True,
        fold=fold,
        **options,
    )


def nlora_released(r: int = 8, alpha: float | None = None, **options: Any) -> NLoraConfig:
    """NLoRA as its authors released it: ``N = W[:r, :r]``, nothing subtracted from W.

    The model's function at step 0 becomes ``W + s·B N A``: it is *changed* before any training.
    """
    return NLoraConfig(r=r, alpha=alpha, start="nystrom", core="block", residual=False, **options)


def inttune(r: int = 8, alpha: float | None = None, **options: Any) -> NLoraConfig:
    """IntTune: NLoRA's start and residual, but only N trains: ``s·B (N − N0) A``, r² numbers a layer.

    The model's function is unchanged at step 0. ``options`` are those of :func:`nlora`: pivots, core, balance,
    fold and the fields of :class:`NLoraConfig`.
    """
    return nlora(r, alpha, train="N", **options)


def lora_xs(r: int = 8, alpha: float | None = None, *, init_std: float = 1e-5, **options: Any) -> NLoraConfig:
    """LoRA-XS: B = U Σ and A = Vᵀ from the truncated SVD of W, frozen; trains N, normal with ``init_std``.

    Bałazy et al., arXiv 2405.17604. The function at step 0 is unchanged but for about ``init_std``.
    """
    return NLoraConfig(r=r, alpha=alpha, start="svd", init="normal", init_std=init_std, train="N", **options)
