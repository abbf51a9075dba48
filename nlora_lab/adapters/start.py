"""The initial factors of an adapter, from its configuration and the frozen weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nlora_lab.adapters.config import NLoraConfig
from nlora_lab.adapters.products import Factors
from nlora_lab.core.array_types import Float
from nlora_lab.core.errors import InputError
from nlora_lab.lowrank.checks import SingularBlockError
from nlora_lab.lowrank.cross import nystrom
from nlora_lab.lowrank.slora_init import split_init
from nlora_lab.lowrank.svd import truncated_svd


@torch.no_grad()
def start_factors(W: Float[Tensor, "m n"], r: int, config: NLoraConfig, layer_name: str) -> Factors:
    """Compute the initial factors of an adapter as its configuration says.

    Random factors are drawn from torch's global generator.

    Args:
        W: the weight, (m, n).
        r: the rank.
        config: the configuration of the adapter.
        layer_name: the name of the layer, for error messages.

    Returns:
        A (r, n), N (r, r) and B (m, r) in float32 or wider, on the device of W. A and B may be views of W.

    Raises:
        InputError: W has no such start, because it holds NaN or the pseudo-inverse of its block overflows.
    """
    if config.start == "random":
        return _random_start(W, r, config)
    try:
        if config.start == "svd":
            f = truncated_svd(W, r)
            return f.right, init_core(torch.empty_like(f.core), config), f.left @ f.core
        f = nystrom(W, r, pivots=config.pivots, core=config.core, balance=config.balance)
    except SingularBlockError as error:
        raise SingularBlockError(f"{layer_name}: {error}") from error
    except InputError as error:
        raise InputError(f"{layer_name}: {error}") from error
    return f.right, f.core, f.left


def _random_start(W: Float[Tensor, "m n"], r: int, config: NLoraConfig) -> Factors:
    m, n = W.shape
    dtype, device = torch.promote_types(W.dtype, torch.float32), W.device
    A = nn.init.kaiming_uniform_(torch.empty(r, n, dtype=dtype, device=device), a=math.sqrt(5))
    N = init_core(torch.empty(r, r, dtype=dtype, device=device), config)
    return A, N, torch.zeros(m, r, dtype=dtype, device=device)


def init_core(N: Float[Tensor, "r r"], config: NLoraConfig) -> Float[Tensor, "r r"]:
    """Fill N (r, r) in place as ``config.init`` says, and return it."""
    shape, scaled = split_init(config.init)
    _fill(N, shape, config.init_std)
    if scaled:
        N.mul_(math.sqrt(len(N) / 3) / torch.linalg.matrix_norm(N))
    return N


def _fill(N: Float[Tensor, "r r"], shape: str, std: float) -> Float[Tensor, "r r"]:
    if shape == "kaiming":
        return nn.init.kaiming_uniform_(N, a=math.sqrt(5))
    if shape == "xavier":
        return nn.init.xavier_uniform_(N)
    if shape == "orthogonal":
        return nn.init.orthogonal_(N)
    if shape == "identity":
        return nn.init.eye_(N)
    return nn.init.normal_(N, std=std)
