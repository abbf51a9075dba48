"""The exercises of notebook 01, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.linalg import matrix_norm, matrix_rank, qr, svd, svdvals

from nlora_lab.course.exercises import Exercise, Mistake, Question, normal_matrix, tall_wide_and_square


def _noise_and_rank_2() -> list[tuple[Any, ...]]:
    return [(0.3 * normal_matrix(9, 7, 1),), (normal_matrix(6, 2, 2) @ normal_matrix(2, 10, 3),)]


def best(W: Tensor, r: int) -> Tensor:
    """Sum the first r terms of the singular value decomposition (Eckart–Young)."""
    U, s, Vh = svd(W)
    product: Tensor = U[:, :r] @ torch.diag(s[:r]) @ Vh[:r]
    return product


def stable_rank(W: Tensor) -> Tensor:
    """Return ‖W‖_F² / σ₁²."""
    ratio: Tensor = matrix_norm(W) ** 2 / matrix_norm(W, ord=2) ** 2
    return ratio


def rank_for(s: Tensor, error: float) -> int:
    """Count the ranks, from 0 on, whose relative error is too large."""
    energy = s.flip(0).square().cumsum(0).flip(0)  # what is left at rank 0, 1, 2, …
    return int(((energy / energy[0]).sqrt() > error).sum())


def _spectra_and_errors() -> list[tuple[Any, ...]]:
    k = torch.arange(1.0, 41, dtype=torch.float64)
    return [(1 / k, 0.2), (k**-0.5, 0.5), (0.8**k, 0.05), (1 / k**2, 0.01), (k.flip(0), 0.7)]


def _rank_by(measure: Callable[[Tensor], Tensor], extra: int = 0) -> Callable[[Tensor, float], int]:
    """The smallest rank at which another measure of what is left is small enough."""
    return lambda s, error: int((measure(s) > error).sum()) + extra


def _left(s: Tensor) -> Tensor:
    """Return the share of the energy that is left at each rank, from 0 on."""
    return s.flip(0).square().cumsum(0).flip(0) / s.square().sum()


def sketched_svd(W: Tensor, r: int, X: Tensor, steps: int) -> Tensor:
    """Find a basis of W X, sharpen it by power steps, and take the best approximation of rank r inside it."""
    Q = qr(W @ X).Q
    for _ in range(steps):
        Q = qr(W @ (W.T @ Q)).Q
    U, s, Vh = svd(Q.T @ W, full_matrices=False)
    product: Tensor = Q @ U[:, :r] @ torch.diag(s[:r]) @ Vh[:r]
    return product


def _matrices_and_sketches() -> list[tuple[Any, ...]]:
    """A tall, a wide and a square matrix, each with random columns to mix with and a number of power steps."""
    trials = []
    for m, n, r, steps, seed in ((12, 9, 3, 1, 11), (8, 13, 2, 2, 12), (10, 10, 4, 1, 13)):
        trials.append((normal_matrix(m, n, seed), r, normal_matrix(n, r + 2, seed + 10), steps))
    return trials


def _sketched(
    change: Callable[[int], int] = int, orthonormal: bool = True, finish: str = "cut"
) -> Callable[[Tensor, int, Tensor, int], Tensor]:
    """``sketched_svd`` with another number of power steps, without QR, or with another end."""

    def run(W: Tensor, r: int, X: Tensor, steps: int) -> Tensor:
        Q = W @ X
        for _ in range(change(steps)):
            Q = W @ (W.T @ (qr(Q).Q if orthonormal else Q))
        Q = qr(Q).Q if orthonormal else Q
        inside = Q.T @ W
        if finish == "uncut":
            return Q @ inside
        if finish == "first columns":
            return Q[:, :r] @ inside[:r]
        return best(inside, r) if finish == "inside" else Q @ best(inside, r)

    return run


def _from_svd(formula: Callable[..., Tensor]) -> Callable[[Tensor, int], Tensor]:
    return lambda W, r: formula(*svd(W, full_matrices=False), r)


def _from_full_svd(formula: Callable[..., Tensor]) -> Callable[[Tensor, int], Tensor]:
    return lambda W, r: formula(*svd(W), r)


def _dropped(s: Tensor, r: int) -> Tensor:
    return torch.cat([s[:r], torch.zeros_like(s[r:])])


def _numbers_at_rank(r: float) -> str:
    m, n = 352, 128
    return f"rank {r:g} takes {r:g}·({m} + {n}) = {r * (m + n):,.0f} numbers, and W itself {m}·{n} = {m * n:,}"


# a mistake and its hint are one paragraph here, not five lines
# fmt: off
EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "1.1",
        "the best approximation of rank r",
        "Write best(W, r): the matrix of rank r that is closest to W. Use torch.linalg.svd (about 2 lines).\n"
        "W is an (m, n) tensor and 1 ≤ r ≤ min(m, n). Return an (m, n) tensor.",
        best,
        "By Eckart and Young, no matrix of rank r is closer to W, in the Frobenius norm or in the spectral norm.",
        (
            Mistake(_from_svd(lambda U, s, Vh, r: U[:, :r] @ torch.diag(s[:r]) @ Vh.T[:r]),
                "you took rows of V (or columns of Vh, transposed). torch returns Vh = Vᵀ. Its first r ROWS are "
                "the first r singular vectors: Vh[:r]."),
            Mistake(_from_svd(lambda U, s, Vh, r: U[:, :r] @ torch.diag(s[:r]) @ Vh[:, :r]),
                "the shapes do not fit, because Vh[:, :r] takes columns. torch returns Vh = Vᵀ, already transposed. "
                "You need its first r rows: Vh[:r]."),
            Mistake(_from_svd(lambda U, s, Vh, r: U[:, :r] @ s[:r] @ Vh[:r]),
                "s is a vector, not a matrix. Write torch.diag(s[:r]), or scale the columns by U[:, :r] * s[:r]."),
            Mistake(_from_svd(lambda U, s, Vh, r: U[:, :r] @ Vh[:r]),
                "the singular values are missing. Weight each pair of vectors by its σ."),
            Mistake(_from_svd(lambda U, s, Vh, r: U[:, :r] @ torch.diag(s[:r] ** 2) @ Vh[:r]),
                "the singular values came in twice (σ²). Multiply by s once: into U or into Vh, not into both."),
            Mistake(_from_svd(lambda U, s, Vh, r: U[:, : r + 1] @ torch.diag(s[: r + 1]) @ Vh[: r + 1]),
                "you kept r + 1 terms. Python's slice :r has r entries, 0 to r − 1, so :r is enough."),
            Mistake(_from_svd(lambda U, s, Vh, r: s[r - 1] * torch.outer(U[:, r - 1], Vh[r - 1])),
                "that is the r-th term alone, a matrix of rank 1. Sum the first r terms: slice with :r."),
            Mistake(_from_svd(lambda U, s, Vh, r: U @ torch.diag(s) @ Vh),
                "that is W itself, because all terms are there. Keep only the first r of them."),
            Mistake(_from_full_svd(lambda U, s, Vh, r: U @ torch.diag(s) @ Vh),
                "the shapes do not fit, because torch.linalg.svd returns a square U and a square Vh. Keep the first r "
                "columns of U, the first r values of s and the first r rows of Vh."),
            Mistake(_from_full_svd(lambda U, s, Vh, r: U @ torch.diag(_dropped(s, r)) @ Vh),
                "the idea is right, but U and Vh are square here, and diag(s) does not fit between them. Ask for "
                "svd(W, full_matrices=False), or slice: U[:, :r], s[:r], Vh[:r]."),
        ),
        inputs=tall_wide_and_square,
        level="understand",
    ),
    Exercise(
        "1.2",
        "where low rank stops saving",
        "A factorisation W ≈ B A of an m × n matrix stores B (m × r) and A (r × n). How many numbers is that?\n"
        "Give the largest rank r at which it is fewer than the m·n numbers of W, for W of 352 × 128\n"
        "(an MLP weight of the embedded model): one whole number (about 1 line).",
        93,
        "Below rank 94 of 128 the factors are smaller than W. An adapter of rank 8 needs 9 % of the numbers of W.",
        (
            Mistake(94, "rank 94 is the first that no longer saves: 94·480 = 45,120 is more than 45,056. Go one down."),
            Mistake(352 * 128 / (352 + 128),
                "the two sides balance there, but a rank is a whole number. Which is the last one below?"),
            Mistake(128,
                "at rank 128, the largest that W can have, the factors hold more numbers than W. Count them: r·m for B "
                "and r·n for A."),
            Mistake(64,
                "rank 64 saves, but it is not the largest rank that does. (It would be the limit of a square matrix of "
                "side 128.) Compare r·(m + n) with m·n."),
            Mistake(80,
                "rank 80 saves, but it is not the largest rank that does. (It would be with an r × r core in between. "
                "Here there are only two factors.)"),
            Mistake(127,
                "at rank 127 the factors hold more numbers than W. (r·(m + n − r) would be fewer, but the factors "
                "store r·(m + n).)"),
        ),
        gives=_numbers_at_rank,
        reason="r·(352 + 128) < 352·128 = 45,056, so r < 45,056 / 480 = 93.87: the largest whole number is 93.",
        level="warm-up",
    ),
    Exercise(
        "1.3",
        "stable rank",
        "Write stable_rank(W) = ‖W‖_F² / σ₁², with σ₁ the largest singular value (about 1 line).\n"
        "W is an (m, n) tensor. Return one number.",
        stable_rank,
        "It counts the directions that W really uses, from 1 up to the rank. It hardly moves when W does.",
        (
            Mistake(lambda W: matrix_norm(W) / matrix_norm(W, ord=2),
                "neither norm is squared. Energies add up as squares: ‖W‖_F² is the sum of all σ²."),
            Mistake(lambda W: matrix_norm(W) ** 2 / matrix_norm(W, ord=2),
                "the Frobenius norm is squared and σ₁ is not. Divide by σ₁². A rank must not change when W is scaled."),
            Mistake(lambda W: matrix_norm(W) / matrix_norm(W, ord=2) ** 2,
                "σ₁ is squared and the Frobenius norm is not. Square both. A rank must not change when W is scaled."),
            Mistake(matrix_rank,
                "that is the number of singular values that are not zero, the ordinary rank. The stable rank weights "
                "each singular value by its size relative to σ₁."),
            Mistake(lambda W: svdvals(W).sum() / svdvals(W).max(),
                "you added the singular values themselves. ‖W‖_F² is the sum of their squares."),
            Mistake(lambda W: matrix_norm(W, ord=2) ** 2 / matrix_norm(W) ** 2,
                "that is the reciprocal: the share of σ₁² in the sum of all σ². Turn the fraction over."),
            Mistake(lambda W: W.norm() ** 2 / W.norm(2) ** 2,
                "that is always 1: W.norm(2) is the Frobenius norm too, because it treats W as one long vector. The "
                "largest singular value is torch.linalg.matrix_norm(W, ord=2)."),
        ),
        inputs=_noise_and_rank_2,
        level="warm-up",
    ),
    Exercise(
        "1.4",
        "how many directions are enough",
        "Write rank_for(s, error): the smallest rank at which the relative error of the best approximation is at most\n"
        "error. s holds all singular values of a matrix, the largest first, and 0 < error < 1\n"
        "(about 3 lines). Return one whole number.",
        rank_for,
        "No approximation was computed: the singular values alone say what every rank costs.",
        (
            Mistake(_rank_by(_left),
                "you compared the share of the energy with the error. The relative error is the root of that share: an "
                "error of 0.1 leaves 0.1² = 1 % of the energy, not 10 %."),
            Mistake(_rank_by(lambda s: s.flip(0).cumsum(0).flip(0) / s.sum()),
                "you added the singular values themselves. Energies add up: square them, add, and take the root."),
            Mistake(_rank_by(lambda s: _left(s).sqrt(), -1),
                "that is one too few. At rank r the values s[r:] are left, and s[r] is the first of them."),
            Mistake(_rank_by(lambda s: _left(s).sqrt(), 1),
                "that is one too many. At rank r the values s[r:] are left, and s[r - 1] is still kept."),
            Mistake(_rank_by(lambda s: s / s[0]),
                "you compared single values, s[r] / s[0]. That is the error in the spectral norm. In the Frobenius "
                "norm all dropped values count together."),
            Mistake(_rank_by(lambda s: _left(s).sqrt() * s.norm()),
                "the error is not relative. Divide by the norm of all singular values."),
            Mistake(lambda s, error: int((s > error).sum()),
                "you counted the singular values above error. Compare what all dropped ones leave together."),
        ),
        inputs=_spectra_and_errors,
        level="understand",
    ),
    Exercise(
        "1.5",
        "the randomised SVD",
        "Write sketched_svd(W, r, X, steps). X is (n, q) and random, with q a little larger than r. Make an\n"
        "orthonormal basis Q of the columns of W X (torch.linalg.qr). Then, steps times, replace Q by an orthonormal\n"
        "basis of W (Wᵀ Q). Return the best approximation of rank r of Q Qᵀ W, which is Q times that of the small\n"
        "matrix Qᵀ W (about 5 lines). Return an (m, n) tensor.",
        sketched_svd,
        "W was only multiplied by thin matrices, and the SVD saw q rows. That is nl.lowrank.randomized_svd.",
        (
            Mistake(_sketched(finish="uncut"),
                "that is Q Qᵀ W, of rank q. Cut it to rank r: take the best approximation of rank r of Qᵀ W."),
            Mistake(_sketched(finish="first columns"),
                "you kept the first r columns of Q. They are no better than the others: Q is not ordered by size. Take "
                "the SVD of Qᵀ W, and cut there."),
            Mistake(_sketched(finish="inside"),
                "that is the approximation of the small matrix Qᵀ W. Multiply it by Q to come back to m rows."),
            Mistake(_sketched(lambda steps: 0),
                "the power steps are missing: steps times, Q becomes an orthonormal basis of W (Wᵀ Q)."),
            Mistake(_sketched(lambda steps: steps - 1),
                "that is one power step too few. Start from W X, and then make steps of them."),
            Mistake(_sketched(lambda steps: steps + 1),
                "that is one power step too many. W X itself is not one of them."),
            Mistake(_sketched(orthonormal=False),
                "Q is not orthonormal, so Q Qᵀ is not a projection. Take Q = torch.linalg.qr(...).Q."),
            Mistake(lambda W, r, X, steps: qr(W @ X) @ W,
                "torch.linalg.qr returns two matrices, Q and R. Take the first: torch.linalg.qr(W @ X).Q."),
            Mistake(lambda W, r, X, steps: best(W, r),
                "that is the best approximation, from an SVD of W itself. It is what you want to avoid: use X."),
        ),
        inputs=_matrices_and_sketches,
        level="build",
    ),
)
# fmt: on

QUESTIONS: tuple[Question, ...] = (
    Question(
        "1.Q1",
        "0.13. The formula is √(Σ_{k>32} 1/k² / Σ_{k≤512} 1/k²) = √(0.0288 / 1.643) = 0.132. Notebook 2 prints it\n"
        'as "best possible".',
    ),
    Question(
        "1.Q2",
        "Turning the picture upside down exchanges rows. Exchanging rows changes no singular value, and the error\n"
        "of the best approximation depends on the singular values alone. So the error is the same at every rank:\n"
        "neither better nor worse.",
    ),
    Question(
        "1.Q3",
        "A picture of noise around zero: every pixel drawn on its own, as often negative as positive. For 96 ×\n"
        "128 normal pixels the error at rank 8 is 0.87, and that of the weights is 0.89. Noise in shades of grey\n"
        "from 0 to 1 is easier (0.44), because its mean grey is one large direction.",
    ),
)
