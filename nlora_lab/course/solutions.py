"""The questions of notebooks 01 to 03, their solutions, and the mistakes people make on the way.

An exercise is one entry of :data:`TABLE`. A mistake is a wrong solution: it is run on the same inputs as
the learner's own, and where the two agree the learner reads its hint. A mistake may also raise; it is then
recognised by what it raises. How answers are compared stands in :mod:`nlora_lab.course.checking`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.linalg import matrix_norm, matrix_rank, pinv, svd, svdvals

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Mistake:
    """A typical wrong answer: a number, or a function like the learner's; and what to say to it."""

    answer: Any
    hint: str


@dataclass(frozen=True)
class Exercise:
    """A question, what answers it, and what to say to whom.

    A question for a function has ``inputs``, which makes its argument lists anew at every call; a question
    for a number has none. ``gives`` puts a wrong number to the test, in words, without naming the right one;
    ``reason`` says how the right number comes about.
    """

    number: str
    title: str
    question: str
    solution: Any
    means: str
    mistakes: tuple[Mistake, ...]
    inputs: Callable[[], list[tuple[Any, ...]]] | None = None
    gives: Callable[[float], str] | None = None
    reason: str = ""


# --- what the learner's functions are called with ---


def _normal(m: int, n: int, seed: int) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _matrices() -> list[tuple[Any, ...]]:
    """A tall, a wide and a square matrix; their leading blocks are far from singular."""
    return [(_normal(9, 7, 1), 3), (_normal(6, 10, 2), 2), (_normal(8, 8, 3), 5)]


def _spectra() -> list[tuple[Any, ...]]:
    """Noise, and a matrix of rank 2."""
    return [(0.3 * _normal(9, 7, 1),), (_normal(6, 2, 2) @ _normal(2, 10, 3),)]


def _indices() -> list[tuple[Any, ...]]:
    return [
        (_normal(9, 7, 1), torch.tensor([1, 4, 6]), torch.tensor([0, 2, 5])),
        (_normal(6, 10, 2), torch.tensor([5, 0]), torch.tensor([3, 4])),
    ]


def _noises() -> list[tuple[Any, ...]]:
    return [(352, 128, 0.02), (64, 1000, 0.5), (128, 128, 3.0)]


def _scans() -> list[tuple[Any, ...]]:
    """Two tables as ``nl.scan`` makes them: in one Nyström helps some layers, in the other none."""
    import pandas as pd

    columns = ["layer", "module", "nystrom_r8", "svd_r8"]
    some = [
        (0, "self_attn.q_proj", 0.83, 0.55), (0, "mlp.up_proj", 3.4, 0.87), (1, "self_attn.q_proj", 12.0, 0.71),
        (1, "mlp.up_proj", 0.97, 0.86), (2, "self_attn.q_proj", 0.62, 0.6), (2, "mlp.up_proj", 190.0, 0.88),
        (3, "self_attn.q_proj", 4.7, 0.74),
    ]  # fmt: skip
    none = [(0, "self_attn.v_proj", 2.9, 0.88), (1, "self_attn.v_proj", 1.2, 0.83), (2, "mlp.gate_proj", 53.0, 0.78)]
    return [(pd.DataFrame(rows, columns=columns),) for rows in (some, none)]


# --- solutions ---


def best(W: Tensor, r: int) -> Tensor:
    """Eckart–Young: the first r terms of the singular value decomposition."""
    U, S, Vh = svd(W)
    product: Tensor = U[:, :r] @ torch.diag(S[:r]) @ Vh[:r]
    return product


def stable_rank(W: Tensor) -> Tensor:
    """‖W‖_F² / σ₁²."""
    ratio: Tensor = matrix_norm(W) ** 2 / matrix_norm(W, ord=2) ** 2
    return ratio


def nystrom_by_hand(W: Tensor, r: int) -> Tensor:
    """The first r columns, the inverse of the corner, the first r rows."""
    product: Tensor = W[:, :r] @ pinv(W[:r, :r]) @ W[:r, :]
    return product


def schur(W: Tensor, r: int) -> Tensor:
    """C − B A⁻¹ F."""
    A, F, B, C = W[:r, :r], W[:r, r:], W[r:, :r], W[r:, r:]
    residual: Tensor = C - B @ torch.linalg.inv(A) @ F
    return residual


def best_core(W: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """C⁺ W R⁺: least squares from the left and from the right."""
    C, R = W[:, cols], W[rows, :]
    core: Tensor = pinv(C) @ W @ pinv(R)
    return core


def marchenko_pastur_edge(m: int, n: int, std: float) -> float:
    """std · (√m + √n)."""
    return float(std * (m**0.5 + n**0.5))


def layers_where_nystrom_helps(table: DataFrame) -> list[tuple[Any, ...]]:
    """The rows whose error is below 1."""
    good = table[table["nystrom_r8"] < 1]
    return list(zip(good["layer"], good["module"], strict=True))


# --- mistakes that do not fit on a line ---


def _best_with(change: Callable[..., Tensor]) -> Callable[[Tensor, int], Tensor]:
    return lambda W, r: change(*svd(W, full_matrices=False), r)


def _schur_with(change: Callable[..., Tensor]) -> Callable[[Tensor, int], Tensor]:
    return lambda W, r: change(W[:r, :r], W[:r, r:], W[r:, :r], W[r:, r:])


def _core_with(change: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda W, rows, cols: change(W, W[:, cols], W[rows, :])


def _chosen(choose: Callable[[DataFrame], Any]) -> Callable[[DataFrame], Any]:
    return lambda table: list(table[choose(table)][["layer", "module"]].itertuples(index=False, name=None))


def _count(r: float) -> str:
    m, n = 352, 128
    return f"rank {r:g} takes {r:g}·({m} + {n}) = {r * (m + n):,.0f} numbers, and W itself {m}·{n} = {m * n:,}"


def _residual(x: float) -> str:
    return f"with x = {x:g} the residual x − 4·(1/2)·1 is {x - 2:g}, and it has to be 0"


# a mistake and its hint are one paragraph here, not five lines
# fmt: off
TABLE: tuple[Exercise, ...] = (
    Exercise(
        "1.1",
        "the best approximation of rank r",
        "Write best(W, r): the matrix of rank r closest to W, by torch.linalg.svd (about 2 lines).\n"
        "W is an (m, n) tensor and 1 ≤ r ≤ min(m, n); return an (m, n) tensor.",
        best,
        "By Eckart and Young no matrix of rank r is closer to W, in the Frobenius norm or the spectral one.",
        (
            Mistake(_best_with(lambda U, S, Vh, r: U[:, :r] @ torch.diag(S[:r]) @ Vh.T[:r]),
                "you took rows of V (or columns of Vh, transposed). torch returns Vh = Vᵀ, whose first r ROWS are "
                "the first r singular vectors: Vh[:r]."),
            Mistake(_best_with(lambda U, S, Vh, r: U[:, :r] @ torch.diag(S[:r]) @ Vh[:, :r]),
                "the shapes do not fit, because Vh[:, :r] takes columns. torch returns Vh = Vᵀ, already transposed: "
                "its first r rows, Vh[:r], are what you want."),
            Mistake(_best_with(lambda U, S, Vh, r: U[:, :r] @ S[:r] @ Vh[:r]),
                "S is a vector, not a matrix: write torch.diag(S[:r]), or scale the columns by U[:, :r] * S[:r]."),
            Mistake(_best_with(lambda U, S, Vh, r: U[:, :r] @ Vh[:r]),
                "the singular values are missing: each pair of vectors has to be weighted by its σ."),
            Mistake(_best_with(lambda U, S, Vh, r: U[:, :r] @ torch.diag(S[:r] ** 2) @ Vh[:r]),
                "the singular values came in twice (σ²). Multiply by S once: into U or into Vh, not both."),
            Mistake(_best_with(lambda U, S, Vh, r: U[:, : r + 1] @ torch.diag(S[: r + 1]) @ Vh[: r + 1]),
                "you kept r + 1 terms. Python's slice :r has r entries, 0 to r − 1, so :r is enough."),
            Mistake(_best_with(lambda U, S, Vh, r: S[r - 1] * torch.outer(U[:, r - 1], Vh[r - 1])),
                "that is the r-th term alone, a matrix of rank 1. Sum the first r terms: slice with :r."),
            Mistake(_best_with(lambda U, S, Vh, r: U @ torch.diag(S) @ Vh),
                "that is W itself again: all terms are there. Keep the first r of them."),
        ),
        inputs=_matrices,
    ),
    Exercise(
        "1.2",
        "where low rank stops saving",
        "A factorisation W ≈ B A of an m × n matrix stores B (m × r) and A (r × n). How many numbers is that?\n"
        "Give the largest rank r at which it is fewer than the m·n numbers of W, for W of 352 × 128\n"
        "(an MLP weight of the embedded model): one whole number (about 1 line).",
        93,
        "Below rank 94 of 128 the factors are smaller than W: an adapter of rank 8 needs 9 % of W's numbers.",
        (
            Mistake(94, "rank 94 is the first that no longer saves: 94·480 = 45,120 is more than 45,056. Go one down."),
            Mistake(352 * 128 / (352 + 128),
                "the two sides balance there, but a rank is a whole number. Which is the last one below?"),
            Mistake(128,
                "128 is the largest rank W can have, and there the factors hold more numbers than W. Count them: "
                "r·m for B and r·n for A."),
            Mistake(64,
                "half of the full rank is the break-even of a square matrix. Here m is larger than n: compare r·(m "
                "+ n) with m·n."),
            Mistake(80,
                "that counts an r × r core as well, the N of SLoRA and NLoRA. Here there are two factors only."),
            Mistake(127,
                "r·(m + n − r) counts the degrees of freedom of a rank-r matrix. The factors store more than that: "
                "r·(m + n) numbers."),
        ),
        gives=_count,
        reason="r·(352 + 128) < 352·128 = 45,056, so r < 45,056 / 480 = 93.87: the largest whole number is 93.",
    ),
    Exercise(
        "1.3",
        "stable rank",
        "Write stable_rank(W) = ‖W‖_F² / σ₁², with σ₁ the largest singular value (about 1 line).\n"
        "W is an (m, n) tensor; return one number.",
        stable_rank,
        "It counts the directions W really uses, from 1 up to the rank, and hardly moves when W does.",
        (
            Mistake(lambda W: matrix_norm(W) / matrix_norm(W, ord=2),
                "neither norm is squared. Energies add up as squares: ‖W‖_F² is the sum of all σ²."),
            Mistake(lambda W: matrix_norm(W) ** 2 / matrix_norm(W, ord=2),
                "the Frobenius norm is squared and σ₁ is not. Divide by σ₁²; a rank must not change when W is "
                "scaled."),
            Mistake(lambda W: matrix_norm(W) / matrix_norm(W, ord=2) ** 2,
                "σ₁ is squared and the Frobenius norm is not. Square both; a rank must not change when W is scaled."),
            Mistake(matrix_rank,
                "that is the number of singular values that are not zero, the ordinary rank. The stable rank weighs "
                "each of them by its size beside σ₁."),
            Mistake(lambda W: svdvals(W).sum() / svdvals(W).max(),
                "you added the singular values themselves. ‖W‖_F² is the sum of their squares."),
            Mistake(lambda W: matrix_norm(W, ord=2) ** 2 / matrix_norm(W) ** 2,
                "that is the reciprocal: σ₁'s share of the whole. Turn the fraction over."),
        ),
        inputs=_spectra,
    ),
    Exercise(
        "2.1",
        "Nyström by hand",
        "Write nystrom_by_hand(W, r): the first r columns of W, times the pseudo-inverse of its leading r × r block,\n"
        "times its first r rows (about 1 line; torch.linalg.pinv). W is (m, n); return an (m, n) tensor.",
        nystrom_by_hand,
        "It reproduces the first r rows and columns exactly, and everything else only if W has rank r.",
        (
            Mistake(lambda W, r: W[:, :r] @ W[:r, :r] @ W[:r, :],
                "the core is the block itself, as in the code the NLoRA authors released. That product grows as W "
                "cubed and approximates nothing: the core has to undo the block, so it is its pseudo-inverse."),
            Mistake(lambda W, r: W[:, :r] @ W[:r, :r].T @ W[:r, :],
                "the core is the block transposed. Transposing undoes a block only if it is orthogonal; take pinv."),
            Mistake(lambda W, r: W[:, :r] @ W[:r, :],
                "there is no core between columns and rows, so the leading block comes out as its own square. Put "
                "its pseudo-inverse between them."),
            Mistake(lambda W, r: W[:, :r] @ (1 / W[:r, :r]) @ W[:r, :],
                "1 / A inverts every entry on its own. The inverse of a matrix is torch.linalg.pinv(A)."),
            Mistake(lambda W, r: W[:, :r] @ pinv(W[:r, :r]).T @ W[:r, :],
                "the pseudo-inverse is transposed. The product is C A⁺ R as it stands."),
            Mistake(lambda W, r: W[:, :r] @ pinv(W)[:r, :r] @ W[:r, :],
                "you inverted W and cut out a block. Cut first, then invert: pinv(W[:r, :r])."),
        ),
        inputs=_matrices,
    ),
    Exercise(
        "2.2",
        "when it is exact",
        "W = [[2, 1], [4, x]] is approximated with r = 1 from its first row and first column.\n"
        "For which x is the approximation exact? One number (about 1 line, or pen and paper).",
        2,
        "The second row is then twice the first: W has rank 1, the same as its leading block.",
        (
            Mistake(8,
                "you multiplied by the leading entry: 4·2·1. The core is its inverse, 1/2 (the block itself is the "
                "released code's core)."),
            Mistake(4, "4·1 has no core in it. Between column and row stands the inverse of the leading entry."),
            Mistake(1, "with x = 1 the second column is constant. The rows have to be multiples: [4, x] = 2·[2, 1]."),
            Mistake(0.5, "the fraction is upside down: 2·1/4. The inverse to take is that of the leading entry, 2."),
            Mistake(-2,
                "the sign is turned round: the residual x − 4·(1/2)·1 has to be 0, so both have the same sign."),
            Mistake(0, "x is not the residual: that is x − 4·(1/2)·1, and this has to be 0."),
        ),
        gives=_residual,
        reason="The Schur complement x − 4·(1/2)·1 = x − 2 has to be 0.",
    ),
    Exercise(
        "2.3",
        "the Schur complement",
        "Write W = [[A, F], [B, C]] with A the leading r × r block. Write schur(W, r): what is left on the other rows\n"
        "and columns after the cross approximation, C − B A⁻¹ F (about 2 lines). Return an (m − r, n − r) tensor.",
        schur,
        "The whole error of the approximation stands in this block; elimination gives it for every r on the way.",
        (
            Mistake(lambda W, r: W - nystrom_by_hand(W, r),
                "the numbers are right, but the first r rows and columns, which are zero, are still there. Return "
                "the other (m − r) × (n − r): W[r:, r:] and so on."),
            Mistake(_schur_with(lambda A, F, B, C: C + B @ pinv(A) @ F),
                "the sign: what is left is C MINUS what the approximation puts there."),
            Mistake(_schur_with(lambda A, F, B, C: B @ pinv(A) @ F - C),
                "the sign is turned round: you have the approximation minus C. What is left is C − B A⁻¹ F."),
            Mistake(_schur_with(lambda A, F, B, C: C - B @ A @ F), "A is not inverted: B A F instead of B A⁻¹ F."),
            Mistake(_schur_with(lambda A, F, B, C: C - B @ F), "A has dropped out: B F instead of B A⁻¹ F."),
            Mistake(_schur_with(lambda A, F, B, C: B @ pinv(A) @ F),
                "that is what the approximation puts in the place of C. Subtract it from C."),
            Mistake(_schur_with(lambda A, F, B, C: C),
                "that is C itself: the part the chosen rows and columns explain, B A⁻¹ F, is not taken off yet."),
        ),
        inputs=_matrices,
    ),
    Exercise(
        "2.4",
        "the best core",
        "Write best_core(W, rows, cols): with C = W[:, cols] and R = W[rows, :], the core U that makes C U R closest\n"
        "to W in the Frobenius norm, U = C⁺ W R⁺ (about 2 lines). rows and cols hold r indices each; return (r, r).",
        best_core,
        "With this core the error is never above that of approximating W by zero, whatever the indices.",
        (
            Mistake(lambda W, rows, cols: pinv(W[rows][:, cols]),
                "that is the pseudo-inverse of the block, Nyström's core: it fits the chosen rows and columns and "
                "does not look at the rest of W. The best core does: C⁺ W R⁺."),
            Mistake(_core_with(lambda W, C, R: pinv(R) @ W @ pinv(C)),
                "the order is swapped. C stands on the left of U, so its pseudo-inverse comes from the left: C⁺ W "
                "R⁺."),
            Mistake(lambda W, rows, cols: pinv(W[:, rows]) @ W @ pinv(W[cols, :]),
                "rows and columns are exchanged: C = W[:, cols] and R = W[rows, :]."),
            Mistake(_core_with(lambda W, C, R: C @ pinv(C) @ W @ pinv(R) @ R),
                "that is the whole approximation C U R. Return U alone."),
            Mistake(_core_with(lambda W, C, R: C.T @ W @ R.T),
                "you transposed C and R. That is their pseudo-inverse only if they are orthonormal; take pinv."),
            Mistake(lambda W, rows, cols: W[rows][:, cols],
                "that is the block itself, the core of the released code. The best core is C⁺ W R⁺."),
        ),
        inputs=_indices,
    ),
    Exercise(
        "3.1",
        "the edge of noise",
        "Write marchenko_pastur_edge(m, n, std): the largest singular value to expect of a large m × n matrix of\n"
        "independent entries with mean 0 and standard deviation std (about 1 line). Return one number.",
        marchenko_pastur_edge,
        "A singular value far above this edge is not noise; one just above it may be chance.",
        (
            Mistake(lambda m, n, std: std * (m + n) ** 0.5,
                "√(m + n) is not √m + √n. The two sides of the matrix add their roots."),
            Mistake(lambda m, n, std: m**0.5 + n**0.5,
                "std is missing: double the entries, and every singular value doubles."),
            Mistake(lambda m, n, std: (std * (m**0.5 + n**0.5)) ** 2,
                "that is squared, the edge of the eigenvalues of WᵀW. Take the root."),
            Mistake(lambda m, n, std: std**2 * (m**0.5 + n**0.5),
                "you multiplied by the variance, std². Singular values grow as std."),
            Mistake(lambda m, n, std: std * abs(m**0.5 - n**0.5),
                "that is the lower edge, where the smallest singular value lies. The largest has a plus."),
            Mistake(lambda m, n, std: std * (m * n) ** 0.5,
                "std·√(m n) is the Frobenius norm to expect: all singular values together, not the largest."),
        ),
        inputs=_noises,
    ),
    Exercise(
        "3.2",
        "where Nyström helps",
        "A scan's table has a row a weight matrix, with the columns layer, module, nystrom_r8 and svd_r8: relative\n"
        "errors at rank 8. Write layers_where_nystrom_helps(table): the list of (layer, module) pairs whose Nyström\n"
        "error is better than that of approximating the weight by zero (about 2 lines; any order).",
        layers_where_nystrom_helps,
        "Now ask it of a model's own scan: in the embedded model the list is empty.",
        (
            Mistake(_chosen(lambda t: t["nystrom_r8"] < t["svd_r8"]),
                "you compared with the SVD, which nothing of the same rank can beat, so the list is always empty. "
                "What relative error has the zero matrix?"),
            Mistake(_chosen(lambda t: t["nystrom_r8"] > 1),
                "those are the others, where Nyström is worse than zero. A smaller error is better."),
            Mistake(_chosen(lambda t: t["svd_r8"] < 1),
                "you looked at svd_r8, the best possible, which is always below 1. The question is about nystrom_r8."),
            Mistake(lambda t: t["nystrom_r8"] < 1,
                "those are True and False, one a row. Use them to choose the rows: table[...]."),
            Mistake(lambda t: t[t["nystrom_r8"] < 1],
                "the rows are right, but they are whole. Return their layer and module only, as a list of pairs."),
            Mistake(lambda t: t[t["nystrom_r8"] < 1].index,
                "those are the numbers of the rows. Return what stands there under layer and module."),
            Mistake(lambda t: t[t["nystrom_r8"] < 1]["layer"],
                "those are the layers alone. A layer has several weights: return (layer, module) pairs."),
        ),
        inputs=_scans,
    ),
)
# fmt: on
