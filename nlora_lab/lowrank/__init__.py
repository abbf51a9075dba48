r"""Low-rank approximation of a weight matrix: the Nyström (cross) family, its rivals, and its error.

Write ``W`` (m, n) with the ``r × r`` block ``A_r`` on chosen rows ``I`` and columns ``J``. The cross
approximation, Nyström's idea for a rectangular matrix, is

.. math:: W \approx C\, U\, R, \qquad C = W[:, J],\; R = W[I, :],\; U = A_r^{+},

exact if and only if ``rank(A_r) = rank(W)``. The *optimal* core for the same rows and columns is
``U = C⁺ W R⁺`` (Stewart 1999). The NLoRA authors' released code uses ``U = A_r`` itself ("block"),
which is not an approximation of ``W``: it scales as ``W`` cubed.

Everything takes one matrix or a batch of them, any floating dtype, on any device; it is computed in
float32 or better, small ``r × r`` systems in float64. Batches have their dimensions in front.
"""

from __future__ import annotations

from nlora_lab.lowrank.checks import IllConditionedWarning, SingularBlockError, check_matrix, check_rank
from nlora_lab.lowrank.cross import CORES, nystrom
from nlora_lab.lowrank.curves import error_curve
from nlora_lab.lowrank.factors import LowRank, relative_error
from nlora_lab.lowrank.kernels import nystrom_psd
from nlora_lab.lowrank.pivots import PIVOTS, choose_pivots
from nlora_lab.lowrank.svd import generalized_nystrom, randomized_svd, singular_values, truncated_svd

__all__ = [
    "CORES",
    "PIVOTS",
    "IllConditionedWarning",
    "LowRank",
    "SingularBlockError",
    "check_matrix",
    "check_rank",
    "choose_pivots",
    "error_curve",
    "generalized_nystrom",
    "nystrom",
    "nystrom_psd",
    "randomized_svd",
    "relative_error",
    "singular_values",
    "truncated_svd",
]
