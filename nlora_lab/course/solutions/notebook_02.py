"""The exercises of notebook 02, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.linalg import pinv

from nlora_lab.course.exercises import Exercise, Mistake, Question, normal_matrix, tall_wide_and_square


def _rows_and_columns() -> list[tuple[Any, ...]]:
    return [
        (normal_matrix(9, 7, 1), torch.tensor([1, 4, 6]), torch.tensor([0, 2, 5])),
        (normal_matrix(6, 10, 2), torch.tensor([5, 0]), torch.tensor([3, 4])),
    ]


def nystrom_by_hand(W: Tensor, r: int) -> Tensor:
    """Multiply the first r columns, the pseudo-inverse of the leading block, and the first r rows."""
    product: Tensor = W[:, :r] @ pinv(W[:r, :r]) @ W[:r, :]
    return product


def schur(W: Tensor, r: int) -> Tensor:
    """Return W₂₂ − W₂₁ W₁₁⁻¹ W₁₂."""
    W11, W12, W21, W22 = W[:r, :r], W[:r, r:], W[r:, :r], W[r:, r:]
    residual: Tensor = W22 - W21 @ torch.linalg.inv(W11) @ W12
    return residual


def best_core(W: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return C⁺ W R⁺: least squares from the left and from the right."""
    C, R = W[:, cols], W[rows, :]
    core: Tensor = pinv(C) @ W @ pinv(R)
    return core


def _from_blocks(formula: Callable[..., Tensor]) -> Callable[[Tensor, int], Tensor]:
    return lambda W, r: formula(W[:r, :r], W[:r, r:], W[r:, :r], W[r:, r:])


def _from_columns_and_rows(formula: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda W, rows, cols: formula(W, W[:, cols], W[rows, :])


def _residual(x: float) -> str:
    return f"with x = {x:g} the residual x − 4·(1/2)·1 is {x - 2:g}, and it has to be 0"


# a mistake and its hint are one paragraph here, not five lines
# fmt: off
EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "2.1",
        "Nyström by hand",
        "Write nystrom_by_hand(W, r): the first r columns of W, times the pseudo-inverse of its leading r × r block,\n"
        "times its first r rows (about 1 line; use torch.linalg.pinv). W is (m, n). Return an (m, n) tensor.",
        nystrom_by_hand,
        "If the block is invertible, it reproduces the first r rows and columns exactly. Everything else it reproduces "
        "only if W has rank r.",
        (
            Mistake(lambda W, r: W[:, :r] @ W[:r, :r] @ W[:r, :],
                "the core is the block itself, as in the code that the NLoRA authors released. That product grows as "
                "W cubed and approximates nothing. The core has to undo the block, so it is its pseudo-inverse."),
            Mistake(lambda W, r: W[:, :r] @ W[:r, :r].T @ W[:r, :],
                "the core is the block transposed. A transposed block undoes the block only if it is orthogonal. Use "
                "pinv."),
            Mistake(lambda W, r: W[:, :r] @ W[:r, :],
                "the core between columns and rows is missing, so the leading block comes out as its own square. Put "
                "its pseudo-inverse between them."),
            Mistake(lambda W, r: W[:, :r] @ (1 / W[:r, :r]) @ W[:r, :],
                "1 / W11 inverts each entry separately. The inverse of a matrix is torch.linalg.pinv(W11)."),
            Mistake(lambda W, r: W[:, :r] @ pinv(W[:r, :r]).T @ W[:r, :],
                "the pseudo-inverse is transposed. The product is C W₁₁⁺ R, without transposing."),
            Mistake(lambda W, r: W[:, :r] @ pinv(W)[:r, :r] @ W[:r, :],
                "you inverted W and cut out a block. Cut first, then invert: pinv(W[:r, :r])."),
            Mistake(lambda W, r: W[:r, :] @ pinv(W[:r, :r]) @ W[:, :r],
                "the factors are swapped. The columns W[:, :r] stand on the left, and the rows W[:r, :] on the right."),
        ),
        inputs=tall_wide_and_square,
    ),
    Exercise(
        "2.2",
        "when it is exact",
        "W = [[2, 1], [4, x]] is approximated with r = 1 from its first row and first column.\n"
        "For which x is the approximation exact? One number (about 1 line, or pen and paper).",
        2,
        "The second row is then twice the first. W has rank 1, the same as its leading block.",
        (
            Mistake(8,
                "you multiplied by the leading entry: 4·2·1. The core is its inverse, 1/2 (the block itself is the "
                "core of the released code)."),
            Mistake(4,
                "4·1 has no core in it. The inverse of the leading entry stands between the column and the row."),
            Mistake(1, "with x = 1 the second column is constant. The rows have to be multiples: [4, x] = 2·[2, 1]."),
            Mistake(0.5, "the fraction is upside down: 2·1/4. Take the inverse of the leading entry, 2."),
            Mistake(-2,
                "the sign is wrong. The residual x − 4·(1/2)·1 has to be 0, so both terms have the same sign."),
            Mistake(0, "x is not the residual. The residual is x − 4·(1/2)·1, and it has to be 0."),
        ),
        gives=_residual,
        reason="The Schur complement x − 4·(1/2)·1 = x − 2 has to be 0.",
    ),
    Exercise(
        "2.3",
        "the Schur complement",
        "Cut W into [[W11, W12], [W21, W22]] with W11 the leading r × r block. Write schur(W, r): what the cross\n"
        "approximation leaves of the other rows and columns, S = W22 − W21 W11⁻¹ W12 (about 2 lines).\n"
        "Return an (m − r, n − r) tensor.",
        schur,
        "The complete error of the approximation stands in this block. Elimination gives it for every r on the way.",
        (
            Mistake(lambda W, r: W - nystrom_by_hand(W, r),
                "the numbers are right, but the first r rows and columns, which are zero, are still there. Return "
                "the other (m − r) × (n − r) numbers: W[r:, r:] and so on."),
            Mistake(_from_blocks(lambda W11, W12, W21, W22: W22 + W21 @ pinv(W11) @ W12),
                "the sign is wrong. Take W22 MINUS what the approximation puts there."),
            Mistake(_from_blocks(lambda W11, W12, W21, W22: W21 @ pinv(W11) @ W12 - W22),
                "the sign is wrong: you have the approximation minus W22. The Schur complement is W22 minus the rest."),
            Mistake(_from_blocks(lambda W11, W12, W21, W22: W22 - W21 @ W11 @ W12),
                "W11 is not inverted: W21 W11 W12 instead of W21 W11⁻¹ W12."),
            Mistake(_from_blocks(lambda W11, W12, W21, W22: W22 - W21 @ W12),
                "W11 is missing: W21 W12 instead of W21 W11⁻¹ W12."),
            Mistake(_from_blocks(lambda W11, W12, W21, W22: W21 @ pinv(W11) @ W12),
                "that is what the approximation puts in the place of W22. Subtract it from W22."),
            Mistake(_from_blocks(lambda W11, W12, W21, W22: W22),
                "that is W22 itself. Subtract the part that the chosen rows and columns explain, W21 W11⁻¹ W12."),
            Mistake(_from_blocks(lambda W11, W12, W21, W22: W22 - W12 @ torch.linalg.inv(W11) @ W21),
                "the factors are swapped. W21, the tall block below, stands on the left, and W12 on the right."),
        ),
        inputs=tall_wide_and_square,
    ),
    Exercise(
        "2.4",
        "the best core",
        "Write best_core(W, rows, cols). With C = W[:, cols] and R = W[rows, :], it is the core N that makes C N R\n"
        "closest to W in the Frobenius norm, N = C⁺ W R⁺ (about 2 lines). rows and cols hold r indices each.\n"
        "Return an (r, r) tensor.",
        best_core,
        "With this core the error is never above that of approximating W by zero, whatever the indices.",
        (
            Mistake(lambda W, rows, cols: pinv(W[rows][:, cols]),
                "that is the pseudo-inverse of the block, Nyström's core. It fits the chosen rows and columns and "
                "does not look at the rest of W. The best core does: C⁺ W R⁺."),
            Mistake(_from_columns_and_rows(lambda W, C, R: pinv(R) @ W @ pinv(C)),
                "the order is swapped. C stands on the left of N, so its pseudo-inverse comes from the left: C⁺ W "
                "R⁺."),
            Mistake(lambda W, rows, cols: pinv(W[:, rows]) @ W @ pinv(W[cols, :]),
                "rows and columns are swapped: C = W[:, cols] and R = W[rows, :]."),
            Mistake(_from_columns_and_rows(lambda W, C, R: C @ pinv(C) @ W @ pinv(R) @ R),
                "that is the complete approximation C N R. Return N alone."),
            Mistake(_from_columns_and_rows(lambda W, C, R: C.T @ W @ R.T),
                "you transposed C and R. That is their pseudo-inverse only if they are orthonormal. Use pinv."),
            Mistake(lambda W, rows, cols: W[rows][:, cols],
                "that is the block itself, the core of the released code. The best core is C⁺ W R⁺."),
        ),
        inputs=_rows_and_columns,
    ),
)
# fmt: on

QUESTIONS: tuple[Question, ...] = (
    Question(
        "2.Q1",
        "Let R be the residual. It is PSD, so its diagonal entries eᵢᵀ R eᵢ are at least 0. What the\n"
        "approximation took away, K − R, is PSD too. So xᵀ R x ≤ xᵀ K x for every x, and the largest eigenvalue\n"
        "of R is at most that of K. For a PSD matrix, the largest eigenvalue is the spectral norm.",
    ),
    Question(
        "2.Q2",
        "Its first row is zero, so the block is singular at every rank. The pseudo-inverse ignores that\n"
        "direction, and the product has a rank of at most r − 1. NLoRA's A₀ then has a row of zeros.",
    ),
    Question(
        "2.Q3",
        "The tolerance and the additional rows. Both compute the core from the chosen rows and columns alone.\n"
        "Pivoted QR and complete pivoting read all of W to choose, and the optimal core C⁺ W R⁺ reads all of W to\n"
        "fit.",
    ),
)
