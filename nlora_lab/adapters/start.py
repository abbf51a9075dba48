"""The initial factors of an adapter, from its configuration and the frozen weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nlora_lab.adapters.config import NLoraConfig
from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import SingularBlockError
from nlora_lab.lowrank.core_init import split_init
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.svd import truncated_svd

Factors = tuple[Tensor, Tensor, Tensor]
"""A (r, n), N (r, r), B (m, r): the order in which they act on x."""


@torch.no_grad()
def start_factors(W: Tensor, r: int, config: NLoraConfig, where: str) -> Factors:
    """A, N and B as ``config`` says, for ``W`` (m, n): in float32 or better, on W's device.

    Random ones are drawn from torch's global generator. Raises :class:`InputError`, naming the layer
    ``where``, if W has no such start: NaN in it, or a block whose pseudo-inverse overflows.
    """
    if config.start == "random":
        return _random_start(W, r, config)
    try:
        if config.start == "svd":
            f = truncated_svd(W, r)
            return f.right, init_core(torch.empty_like(f.core), config), f.left @ f.core
        f = nystrom(W, r, pivots=config.pivots, core=config.core, balance=config.balance)
    except SingularBlockError as error:
        raise SingularBlockError(f"{where}: {error}") from error
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return f.right, f.core, f.left


def _random_start(W: Tensor, r: int, config: NLoraConfig) -> Factors:
    m, n = W.shape
    dtype, device = torch.promote_types(W.dtype, torch.float32), W.device
    A = nn.init.kaiming_uniform_(torch.empty(r, n, dtype=dtype, device=device), a=math.sqrt(5))
    N = init_core(torch.empty(r, r, dtype=dtype, device=device), config)
    return A, N, torch.zeros(m, r, dtype=dtype, device=device)


def init_core(N: Tensor, config: NLoraConfig) -> Tensor:
    """N (r, r) filled in place by ``config.init``, and returned."""
    shape, scaled = split_init(config.init)
    _fill(N, shape, config.init_std)
    if scaled:
        N.mul_(math.sqrt(len(N) / 3) / torch.linalg.matrix_norm(N))
    return N


def _fill(N: Tensor, shape: str, std: float) -> Tensor:
    if shape == "kaiming":
        return nn.init.kaiming_uniform_(N, a=math.sqrt(5))
    if shape == "xavier":
        return nn.init.xavier_uniform_(N)
    if shape == "orthogonal":
        return nn.init.orthogonal_(N)
    if shape == "identity":
        return nn.init.eye_(N)
    return nn.init.normal_(N, std=std)
