"""Matrices to experiment with: a picture drawn by formulas (no file, no licence), and any spectrum you like."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nlora_lab.core.array_types import Float, Float32, Num
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_whole_number


def landscape(rows: int = 96, cols: int = 128) -> Float32[Tensor, "rows cols"]:
    """Draw a landscape in grey: the sun, mountains, their reflection in water, and a fence.

    Args:
        rows: the height in pixels, from 2 on.
        cols: the width in pixels, from 2 on.

    Returns:
        The picture, (rows, cols), float32, from 0 (black) to 1 (white).

    Raises:
        InputError: a size is out of range.
    """
    rows, cols = check_whole_number("rows", rows, 2, 10**5), check_whole_number("cols", cols, 2, 10**5)
    y, x = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, cols), indexing="ij")
    ridge = 0.38 - 0.14 * torch.sin(5 * x + 0.6) - 0.05 * torch.sin(17 * x) - 0.02 * torch.sin(43 * x + 1)
    shore, mirrored = 0.58, 1.16 - y
    sky = 0.95 - 0.5 * y
    sky = torch.where((x - 0.72).square() + (1.3 * (y - 0.17)).square() < 0.008, torch.ones_like(x), sky)
    slopes = 0.25 + 0.2 * (y - ridge) / 0.4 + 0.05 * torch.sin(60 * (y - ridge))
    above = torch.where(y > ridge, slopes, sky)
    water = torch.where(mirrored > ridge, 0.3 + 0.1 * (1 - y), 0.75 - 0.3 * y) + 0.06 * torch.sin(90 * y)
    scene = torch.where(y > shore, water, above)
    post = ((x * 9) % 1 < 0.12) & (y > 0.72) & (y < 0.95)
    rail = ((y - 0.78).abs() < 0.012) | ((y - 0.87).abs() < 0.012)
    return torch.where(post | rail, torch.full_like(x, 0.08), scene).clamp(0, 1)


def with_spectrum(sigma: Num[Tensor, " k"] | Sequence[float], seed: int = 0) -> Float[Tensor, "k k"]:
    """Make a square matrix with given singular values and random singular vectors.

    Args:
        sigma: the singular values, (k,), in any order.
        seed: decides the singular vectors.

    Returns:
        The matrix, (k, k), in float64 if ``sigma`` is a float64 tensor, else in float32.

    Raises:
        InputError: ``sigma`` is not a vector of finite numbers that are at least 0.
    """
    check_whole_number("seed", seed, 0, 2**63 - 2)
    try:
        values = torch.as_tensor(sigma)
        if values.dtype not in (torch.float32, torch.float64) and not values.is_complex():
            values = values.dequantize() if values.is_quantized else values.float()
    except (TypeError, ValueError, RuntimeError):  # NotImplementedError is one of them
        values = torch.empty(0)
    is_vector = values.ndim == 1 and len(values) > 0 and not values.is_complex()
    if not is_vector or not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
        given = f"{sigma.dtype} {tuple(sigma.shape)}" if isinstance(sigma, Tensor) else repr(sigma)
        raise InputError(f"sigma={given} must be a vector of finite numbers that are at least 0")
    k = len(values)
    noise = [torch.randn(k, k, generator=torch.Generator().manual_seed(seed + i), dtype=values.dtype) for i in (0, 1)]
    U, V = (torch.linalg.qr(X).Q for X in noise)
    W: Tensor = U @ torch.diag(values) @ V.T
    return W
