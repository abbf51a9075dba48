"""The named methods as configurations: SLoRA, NLoRA, NLoRA as released, IntTune, LoRA-XS."""

from __future__ import annotations

from typing import Any

from nlora_lab.adapters.config import NLoraConfig


def slora(r: int = 8, alpha: float | None = None, *, init: str = "kaiming", **options: Any) -> NLoraConfig:
    """Configure StructuredLoRA (SLoRA): ``s·B N A`` with A and N random and B = 0. All three train.

    Source: Guo, Chang and Wu 2025, arXiv 2502.14482.

    Args:
        r: the rank.
        alpha: the numerator of the scale ``s = alpha / r``. ``None`` means r.
        init: the initialisation of N: "kaiming", "xavier", "orthogonal", "identity" or "normal" (with ``init_std``).
        **options: other fields of ``NLoraConfig``.

    Returns:
        The configuration.

    Raises:
        InputError: a value is not allowed.
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
    """Configure NLoRA as derived in the paper: ``B = W[:, :r]``, ``A = W[:r, :]``, ``N = pinv(W[:r, :r])``.

    The start is subtracted, so the function of the model is unchanged at step 0. B, N and A train. Source: Guo, Chang
    and Wu 2025, arXiv 2502.14482.

    Args:
        r: the rank.
        alpha: the numerator of the scale ``s = alpha / r``. ``None`` means r.
        pivots: how rows and columns of W are chosen: "leading", "random", "cross" or "qr" (see ``nl.nystrom``).
        core: N: "pinv", "optimal" or "block" (see ``nl.nystrom``).
        balance: whether to share the singular values of the product evenly between B and A.
        fold: whether to subtract the start from the frozen weight once (see ``NLoraConfig``).
        **options: other fields of ``NLoraConfig``.

    Returns:
        The configuration.

    Raises:
        InputError: a value is not allowed.
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
    """Configure NLoRA as its authors released it: ``N = W[:r, :r]``, with nothing subtracted.

    The weight at step 0 becomes ``W + s·B N A``. So the function of the model is *changed* before any training.

    Args:
        r: the rank.
        alpha: the numerator of the scale ``s = alpha / r``. ``None`` means r.
        **options: other fields of ``NLoraConfig``.

    Returns:
        The configuration.

    Raises:
        InputError: a value is not allowed.
    """
    return NLoraConfig(r=r, alpha=alpha, start="nystrom", core="block", residual=False, **options)


def inttune(r: int = 8, alpha: float | None = None, **options: Any) -> NLoraConfig:
    """Configure IntTune: the start and residual of NLoRA, but only N trains. The update is ``s·B (N − N0) A``.

    It trains r² numbers per layer. The function of the model is unchanged at step 0. Source: Guo, Chang and Wu 2025,
    arXiv 2502.14482.

    Args:
        r: the rank.
        alpha: the numerator of the scale ``s = alpha / r``. ``None`` means r.
        **options: the options of ``nlora``: pivots, core, balance, fold and other fields of ``NLoraConfig``.

    Returns:
        The configuration.

    Raises:
        InputError: a value is not allowed.
    """
    return nlora(r, alpha, train="N", **options)


def lora_xs(r: int = 8, alpha: float | None = None, *, init_std: float = 1e-5, **options: Any) -> NLoraConfig:
    """Configure LoRA-XS: B = U Σ and A = Vᵀ from the truncated SVD of W, frozen. Only N trains.

    N is drawn from a normal distribution. The function at step 0 changes by about ``init_std``. Source: Bałazy et al.
    2024, arXiv 2405.17604.

    Args:
        r: the rank.
        alpha: the numerator of the scale ``s = alpha / r``. ``None`` means r.
        init_std: the standard deviation of N.
        **options: other fields of ``NLoraConfig``.

    Returns:
        The configuration.

    Raises:
        InputError: a value is not allowed.
    """
    return NLoraConfig(r=r, alpha=alpha, start="svd", init="normal", init_std=init_std, train="N", **options)
