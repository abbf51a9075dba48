"""The exercises of notebook 02, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.linalg import pinv

from nlora_lab.course.exercises import Exercise, Mistake, normal_matrix, tall_wide_and_square


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
    """Return C − B A⁻¹ F."""
    A, F, B, C = W[:r, :r], W[:r, r:], W[r:, :r], W[r:, r:]
    residual: Tensor = C - B @ torch.linalg.inv(A) @ F
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
        "It reproduces the first r rows and columns exactly, and everything else only if W has rank r.",
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
                "1 / A inverts each entry separately. The inverse of a matrix is torch.linalg.pinv(A)."),
            Mistake(lambda W, r: W[:, :r] @ pinv(W[:r, :r]).T @ W[:r, :],
                "the pseudo-inverse is transposed. The product is C A⁺ R, without transposing."),
            Mistake(lambda W, r: W[:, :r] @ pinv(W)[:r, :r] @ W[:r, :],
                "you inverted W and cut out a block. Cut first, then invert: pinv(W[:r, :r])."),
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
        "Write W = [[A, F], [B, C]] with A the leading r × r block. Write schur(W, r): what the cross approximation\n"
        "leaves of the other rows and columns, C − B A⁻¹ F (about 2 lines). Return an (m − r, n − r) tensor.",
        schur,
        "The complete error of the approximation stands in this block. Elimination gives it for every r on the way.",
        (
            Mistake(lambda W, r: W - nystrom_by_hand(W, r),
                "the numbers are right, but the first r rows and columns, which are zero, are still there. Return "
                "the other (m − r) × (n − r) numbers: W[r:, r:] and so on."),
            Mistake(_from_blocks(lambda A, F, B, C: C + B @ pinv(A) @ F),
                "the sign is wrong. Take C MINUS what the approximation puts there."),
            Mistake(_from_blocks(lambda A, F, B, C: B @ pinv(A) @ F - C),
                "the sign is wrong: you have the approximation minus C. The Schur complement is C − B A⁻¹ F."),
            Mistake(_from_blocks(lambda A, F, B, C: C - B @ A @ F), "A is not inverted: B A F instead of B A⁻¹ F."),
            Mistake(_from_blocks(lambda A, F, B, C: C - B @ F), "A is missing: B F instead of B A⁻¹ F."),
            Mistake(_from_blocks(lambda A, F, B, C: B @ pinv(A) @ F),
                "that is what the approximation puts in the place of C. Subtract it from C."),
            Mistake(_from_blocks(lambda A, F, B, C: C),
                "that is C itself. Subtract the part that the chosen rows and columns explain, B A⁻¹ F."),
        ),
        inputs=tall_wide_and_square,
    ),
    Exercise(
        "2.4",
        "the best core",
        "Write best_core(W, rows, cols). With C = W[:, cols] and R = W[rows, :], it is the core U that makes C U R\n"
        "closest to W in the Frobenius norm, U = C⁺ W R⁺ (about 2 lines). rows and cols hold r indices each.\n"
        "Return an (r, r) tensor.",
        best_core,
        "With this core the error is never above that of approximating W by zero, whatever the indices.",
        (
            Mistake(lambda W, rows, cols: pinv(W[rows][:, cols]),
                "that is the pseudo-inverse of the block, Nyström's core. It fits the chosen rows and columns and "
                "does not look at the rest of W. The best core does: C⁺ W R⁺."),
            Mistake(_from_columns_and_rows(lambda W, C, R: pinv(R) @ W @ pinv(C)),
                "the order is swapped. C stands on the left of U, so its pseudo-inverse comes from the left: C⁺ W "
                "R⁺."),
            Mistake(lambda W, rows, cols: pinv(W[:, rows]) @ W @ pinv(W[cols, :]),
                "rows and columns are swapped: C = W[:, cols] and R = W[rows, :]."),
            Mistake(_from_columns_and_rows(lambda W, C, R: C @ pinv(C) @ W @ pinv(R) @ R),
                "that is the complete approximation C U R. Return U alone."),
            Mistake(_from_columns_and_rows(lambda W, C, R: C.T @ W @ R.T),
                "you transposed C and R. That is their pseudo-inverse only if they are orthonormal. Use pinv."),
            Mistake(lambda W, rows, cols: W[rows][:, cols],
                "that is the block itself, the core of the released code. The best core is C⁺ W R⁺."),
        ),
        inputs=_rows_and_columns,
    ),
)
# fmt: on
