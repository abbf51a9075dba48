"""Random matrices of given shapes and spectra, the same in every run."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

SHAPES = st.tuples(st.integers(2, 24), st.integers(2, 24), st.integers(0, 10**6))
"""Draws (m, n, seed) for a property test."""


def gaussian(m: int, n: int, seed: int = 0) -> torch.Tensor:
    """Independent standard normal entries, (m, n), float64."""
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def decaying(m: int, n: int, p: float) -> torch.Tensor:
    """Singular values k^-p and random singular vectors, (m, n), float64."""
    k = min(m, n)
    U, V = torch.linalg.qr(gaussian(m, k, 1)).Q, torch.linalg.qr(gaussian(n, k, 2)).Q
    return U @ torch.diag(torch.arange(1, k + 1, dtype=torch.float64) ** -p) @ V.T
