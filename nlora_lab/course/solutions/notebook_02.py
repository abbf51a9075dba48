"""The exercises of notebook 02, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.linalg import eigvalsh, pinv, svdvals

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


def _kernels_and_landmarks() -> list[tuple[Any, ...]]:
    """Two kernel matrices, and a symmetric matrix that is not positive semi-definite."""
    trials = []
    for n, J, seed in ((9, [0, 3, 5], 4), (7, [6, 1], 5)):
        points = normal_matrix(n, 2, seed)
        trials.append((torch.exp(-torch.cdist(points, points).square() / 2), torch.tensor(J)))
    X = normal_matrix(8, 8, 6)
    return [*trials, (X + X.T, torch.tensor([2, 4]))]


def residual_eigenvalues(K: Tensor, J: Tensor) -> Tensor:
    """Return the eigenvalues of K − K[:, J] K[J, J]⁺ K[J, :], the smallest first."""
    residual = K - K[:, J] @ pinv(K[J][:, J]) @ K[J]
    eigenvalues: Tensor = eigvalsh(residual)
    return eigenvalues


def eliminate(W: Tensor, r: int) -> Tensor:
    """Eliminate r times with the largest entry that is left as the pivot."""
    S = W.clone()
    for _ in range(r):
        i, j = divmod(int(S.abs().argmax()), S.shape[1])
        S = S - torch.outer(S[:, j], S[i]) / S[i, j]
    return S


def _eliminate(pick: Callable[[Tensor, int], tuple[int, int]], sign: int = 1, steps: int = 0) -> Callable[..., Tensor]:
    """Elimination with another pivot, another sign, or more or fewer steps."""

    def run(W: Tensor, r: int) -> Tensor:
        S = W.clone()
        for k in range(r + steps):
            i, j = pick(S, k)
            S = S - sign * torch.outer(S[:, j], S[i]) / S[i, j]
        return S

    return run


def _largest(S: Tensor, k: int) -> tuple[int, int]:
    return divmod(int(S.abs().argmax()), S.shape[1])


def _undivided(W: Tensor, r: int) -> Tensor:
    S = W.clone()
    for k in range(r):
        i, j = _largest(S, k)
        S = S - torch.outer(S[:, j], S[i])
    return S


def largest_volume(W: Tensor, r: int) -> Tensor:
    """Try every choice of r rows and r columns."""
    m, n = W.shape
    pairs = [(i, j) for i in combinations(range(m), r) for j in combinations(range(n), r)]
    return torch.tensor(max(pairs, key=lambda pair: torch.linalg.det(W[pair[0], :][:, pair[1]]).abs()))


VOLUMES = ((5, 6, 2, 66), (6, 5, 2, 39), (5, 4, 3, 27))  # rows, columns, rank and seed


def _small_matrices() -> list[tuple[Any, ...]]:
    """Matrices whose largest block is neither the leading one nor the one that pivoting finds."""
    return [(normal_matrix(m, n, seed), r) for m, n, r, seed in VOLUMES]


def _block_by(size: Callable[[Tensor], Any]) -> Callable[[Tensor, int], Tensor]:
    """The block that is largest by another measure."""

    def run(W: Tensor, r: int) -> Tensor:
        m, n = W.shape
        pairs = [(i, j) for i in combinations(range(m), r) for j in combinations(range(n), r)]
        return torch.tensor(max(pairs, key=lambda pair: size(W[pair[0], :][:, pair[1]])))

    return run


def _pivoted_block(W: Tensor, r: int) -> Tensor:
    pivots, S = [], W.clone()
    for k in range(r):
        i, j = _largest(S, k)
        pivots.append((i, j))
        S = S - torch.outer(S[:, j], S[i]) / S[i, j]
    return torch.tensor([sorted(side) for side in zip(*pivots, strict=True)])


def _entries_read(count: float) -> str:
    m, r = 4096, 128
    return f"{count:,.0f} is {count / m**2:.2%} of all entries, and r columns alone have {r * m:,} of them"


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
        level="warm-up",
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
        level="warm-up",
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
        level="understand",
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
        level="understand",
    ),
    Exercise(
        "2.5",
        "why kernels are safe",
        "Test the theorem on which everything about kernels rests. Write residual_eigenvalues(K, J): the eigenvalues\n"
        "of the residual K − K[:, J] K[J, J]⁺ K[J, :], the smallest first (about 2 lines; use torch.linalg.eigvalsh).\n"
        "K is a symmetric (n, n) tensor, and J holds the landmarks. Return n numbers. The check tries two kernels and\n"
        "one symmetric matrix that is not PSD. Before you run it: for which of them can an eigenvalue be negative?",
        residual_eigenvalues,
        "For both kernels no eigenvalue is negative (beyond rounding), and for the third matrix some are. The proof "
        "in one line: xᵀ R x is the smallest value of zᵀ K z over all z that agree with x outside the landmarks, and "
        "for a PSD K no such value is negative.",
        (
            Mistake(lambda K, J: eigvalsh(K),
                "those are the eigenvalues of K. Subtract the approximation first."),
            Mistake(lambda K, J: eigvalsh(K[:, J] @ pinv(K[J][:, J]) @ K[J]),
                "those are the eigenvalues of the approximation. The theorem is about what it leaves: K minus it."),
            Mistake(lambda K, J: eigvalsh(K - K[:, J] @ K[J]),
                "the core is missing. The pseudo-inverse of K[J][:, J] stands between the columns and the rows."),
            Mistake(lambda K, J: eigvalsh(K - K[:, J] @ K[J][:, J] @ K[J]),
                "the block between columns and rows is not inverted. Use its pseudo-inverse."),
            Mistake(lambda K, J: eigvalsh(K - K[:, J] @ pinv(K[J, J]) @ K[J]),
                "K[J, J] takes the entries on the diagonal only, and a pseudo-inverse needs a matrix. The block is "
                "K[J][:, J]."),
            Mistake(lambda K, J: svdvals(K - K[:, J] @ pinv(K[J][:, J]) @ K[J]),
                "those are singular values. They are never negative, so they cannot test the theorem. Use eigvalsh."),
            Mistake(lambda K, J: residual_eigenvalues(K, J).flip(0),
                "the numbers are right, but in the wrong order. Return the smallest first."),
            Mistake(lambda K, J: K - K[:, J] @ pinv(K[J][:, J]) @ K[J],
                "that is the residual itself. Return its eigenvalues."),
        ),
        inputs=_kernels_and_landmarks,
        level="build",
    ),
    Exercise(
        "2.6",
        "elimination with pivots",
        "Write eliminate(W, r). Start with S = W. Then r times: find the entry of S that is largest in size, at row i\n"
        "and column j, and subtract the column S[:, j] times the row S[i, :], divided by the entry S[i, j]\n"
        "(about 5 lines). Return what is left after r steps, an (m, n) tensor. Do not write on W.",
        eliminate,
        'It is the residual of nl.nystrom(W, r, pivots="cross"). Each step makes one more row and column zero. You '
        'have all '
        "errors up to rank r from one run, and the pivots are the rows and columns that the approximation uses.",
        (
            Mistake(_eliminate(lambda S, k: divmod(int(S.argmax()), S.shape[1])),
                "that looks for the largest number and overlooks large negative ones. Take the largest in size: "
                "S.abs()."),
            Mistake(_eliminate(lambda S, k: (k, k)),
                "the pivots are the entries on the diagonal, in their order: elimination without pivoting, the leading "
                "block. Look for the largest entry of S in every step."),
            Mistake(_eliminate(lambda S, k: (k, int(S[k].abs().argmax()))),
                "each step takes the next row and looks for a pivot in that row only. Look in all of S."),
            Mistake(_eliminate(lambda S, k: divmod(int(S.abs().argmax()), S.shape[0])),
                "argmax numbers the entries row by row, so a row has as many numbers as S has columns. Divide by "
                "S.shape[1]."),
            Mistake(_undivided,
                "the division by the pivot S[i, j] is missing. Without it the row and the column do not become zero."),
            Mistake(_eliminate(_largest, sign=-1),
                "the sign is wrong. Subtract the product, so that row i and column j become zero."),
            Mistake(_eliminate(_largest, steps=-1), "that is one step too few. Make r steps."),
            Mistake(_eliminate(_largest, steps=1), "that is one step too many. Make r steps."),
            Mistake(lambda W, r: W - eliminate(W, r),
                "that is the approximation, the sum of what was subtracted. Return what is left."),
        ),
        inputs=tall_wide_and_square,
        level="build",
    ),
    Exercise(
        "2.7",
        "the block of maximal volume",
        "Write largest_volume(W, r): the r rows and r columns of a small W whose block has the largest determinant in\n"
        "size. Try all of them (itertools.combinations; about 4 lines). Return a (2, r) tensor: first the rows, then\n"
        "the columns, each in rising order.",
        largest_volume,
        "With this block no entry of the error is above (r + 1) σ_{r+1}. But you tried every block, and their number "
        "grows too fast for a real weight. Complete pivoting takes the largest entry of what is left, and hopes.",
        (
            Mistake(_block_by(torch.linalg.det),
                "you compared the determinants with their sign, and overlooked large negative ones. Take .abs()."),
            Mistake(_block_by(lambda block: -torch.linalg.det(block).abs()),
                "that is the block of smallest volume, the one closest to singular. Take the largest."),
            Mistake(lambda W, r: largest_volume(W, r).flip(0),
                "rows and columns are swapped. The first line of the result holds the rows."),
            Mistake(lambda W, r: torch.arange(r).repeat(2, 1),
                "that is the leading block. Try the other rows and columns too."),
            Mistake(_block_by(torch.linalg.matrix_norm),
                "that is the block of the largest norm. Its rows may still be nearly parallel. Compare determinants."),
            Mistake(_block_by(lambda block: -torch.linalg.cond(block)),
                "that is the best conditioned block. It may be small. Compare determinants."),
            Mistake(_pivoted_block,
                "that is the block of complete pivoting. It makes the best choice of each step, and that need not be "
                "the largest volume in the end. Try all blocks."),
        ),
        inputs=_small_matrices,
        level="understand",
    ),
    Exercise(
        "2.8",
        "how much of W is read",
        "A weight has 4096 × 4096 entries. How many of them does the approximation by the leading block read at\n"
        "r = 128, with the pseudo-inverse as its core? Count each entry once: one whole number (about 1 line).",
        1_032_192,
        "That is 6.15 % of the entries. The best approximation reads all 16,777,216, many times.",
        (
            Mistake(2 * 128 * 4096,
                "the block stands in the rows and in the columns, and you counted it twice."),
            Mistake(2 * 128 * 4096 + 128**2,
                "the block was counted three times. It is a part of the rows and of the columns already."),
            Mistake(128**2, "that is the block alone. Its rows and its columns are read to their ends."),
            Mistake(128 * 4096, "that is one side. The first 128 rows are read, and the first 128 columns."),
            Mistake(4096**2, "those are all entries. The approximation looks at some rows and columns only."),
            Mistake(2 * 128 * (4096 - 128), "the block itself is missing. It is read too, once."),
        ),
        gives=_entries_read,
        reason="r·(m + n) − r² = 128·8,192 − 128² = 1,032,192: the block is in the rows and in the columns.",
        level="warm-up",
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
