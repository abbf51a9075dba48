"""Rules that choose the rows and columns of a cross approximation.

Every rule is *nested*: the pivots of rank r are the first r pivots of any higher rank. One elimination therefore gives
the error at every rank (see ``error_curve``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nlora_lab.core.array_types import Float, Int64
from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice, check_whole_number
from nlora_lab.lowrank.checks import check_generator, check_matrix, check_rank, rescaled
from nlora_lab.lowrank.rules import PIVOTS, PivotRule

Indices = Tensor | Sequence[int]
Pivots = PivotRule | tuple[Indices, Indices]
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def choose_pivots(
    W: Float[Tensor, "*batch m n"],
    rank: int,
    pivots: Pivots = "leading",
    *,
    oversample: int = 0,
    generator: torch.Generator | None = None,
) -> tuple[Int64[Tensor, "*#batch q"], Int64[Tensor, "*#batch r"]]:
    """Choose the rows and columns of a cross approximation.

    Args:
        W: the matrix, (..., m, n), any floating dtype.
        rank: the rank r, from 1 to min(m, n).
        pivots: the rule.

            - "leading": the first rows and columns, as in the NLoRA paper.
            - "random": drawn without replacement, the same for a complete batch.
            - "cross": Gaussian elimination with complete pivoting. Each step takes the largest entry of the remainder
              (Bebendorf's adaptive cross approximation).
            - "qr": columns by column-pivoted QR, then rows by partial pivoting within those columns.
            - a pair ``(rows, cols)`` of indices. Indices must not repeat.
        oversample: p, how many more rows than columns to take, from 0 to m − r. "leading" and "random" take the next
            rows. "cross" and "qr" take the rows on which the approximation of rank r is worst.
        generator: the source of random numbers for "random". ``None`` means torch's global one.

    Returns:
        The rows and the columns, int64. They have the shapes (r + p,) and (r,), or (..., r + p) and (..., r) where each
        matrix of a batch gets pivots of its own.

    Raises:
        InputError: ``W`` is not a finite matrix, or an option is out of range.
    """
    work = check_matrix(W)
    rank = check_rank(rank, tuple(work.shape))
    check_generator(generator)
    oversample = check_whole_number("oversample", oversample, 0, work.shape[-2] - rank)
    return resolve_pivots(work, rank, pivots, oversample, generator)


def resolve_pivots(
    W: Float[Tensor, "*batch m n"], rank: int, pivots: Pivots, oversample: int, generator: torch.Generator | None
) -> tuple[Int64[Tensor, "*#batch q"], Int64[Tensor, "*#batch r"]]:
    """Choose rows (r + p,) and columns (r,) as ``choose_pivots`` does, for a matrix and options already checked."""
    m, n = W.shape[-2:]
    if not isinstance(pivots, str):
        return _explicit(pivots, rank, rank + oversample, W)
    check_choice("pivots", pivots, PIVOTS)
    if pivots == "leading":
        return torch.arange(rank + oversample, device=W.device), torch.arange(rank, device=W.device)
    if pivots == "random":
        device = W.device if generator is None else generator.device
        rows = torch.randperm(m, generator=generator, device=device)[: rank + oversample].to(W.device)
        return rows, torch.randperm(n, generator=generator, device=device)[:rank].to(W.device)
    choose = complete_pivoting if pivots == "cross" else qr_pivoting
    flat = W.reshape(-1, m, n)
    chosen = [choose(matrix, rank) for matrix in flat]
    if oversample:
        extra = [extra_rows(matrix, *pair, oversample)[-1] for matrix, pair in zip(flat, chosen, strict=True)]
        chosen = [(torch.cat([rows, more]), cols) for (rows, cols), more in zip(chosen, extra, strict=True)]
    batch = W.shape[:-2]
    rows = torch.stack([rows for rows, _ in chosen]).reshape(*batch, -1)
    return rows, torch.stack([cols for _, cols in chosen]).reshape(*batch, -1)


def complete_pivoting(
    W: Float[Tensor, "m n"], rank: int, *, in_place: bool = False
) -> tuple[Int64[Tensor, " r"], Int64[Tensor, " r"]]:
    """Eliminate ``W`` (m, n), each step on the largest entry left; return rows (r,) and columns (r,).

    A step makes 3 passes over ``W``. ``in_place`` overwrites ``W`` instead of copying it.
    """
    schur = W if in_place else W.clone()  # the Schur complement so far
    rows: list[int] = []
    cols: list[int] = []
    for _ in range(rank):
        # the largest of each row first: a norm reads W once and writes nothing of its size
        i = int(torch.linalg.vector_norm(schur, ord=torch.inf, dim=1).argmax())
        j = int(schur[i].abs().argmax())
        pivot = schur[i, j].clone()
        if pivot == 0:  # W is reproduced exactly: a further pivot changes nothing
            break
        column, row = schur[:, j].clone(), schur[i] / pivot
        schur.addr_(column, row, alpha=-1)
        schur[i], schur[:, j] = 0, 0  # exactly, so that neither is chosen again
        rows.append(i)
        cols.append(j)
    return _filled_up(W, rows, cols, rank)


def qr_pivoting(W: Float[Tensor, "m n"], rank: int) -> tuple[Int64[Tensor, " r"], Int64[Tensor, " r"]]:
    """Choose columns (r,) of ``W`` (m, n) by column-pivoted QR, then rows (r,) by partial pivoting within them."""
    W, _ = rescaled(W)  # squares of the entries are taken
    cols = column_pivots(W, rank)
    block = W[:, cols].clone()  # (m, r), eliminated in place
    rows: list[int] = []
    for k in range(len(cols)):
        i = int(block[:, k].abs().argmax())
        if block[i, k] == 0:
            break
        row = block[i, k:] / block[i, k]
        block[:, k:] -= torch.outer(block[:, k].clone(), row)
        block[i] = 0
        rows.append(i)
    return _filled_up(W, rows, cols[: len(rows)], rank)


def column_pivots(W: Float[Tensor, "m n"], rank: int) -> list[int]:
    """Return the first columns that QR with column pivoting takes from ``W`` (m, n); at most ``rank``.

    Each step takes the column that is farthest from the span of the columns before it, made orthogonal by Gram–Schmidt
    done twice. The distances are updated by Pythagoras. They are computed anew when cancellation has cost half of their
    digits.
    """
    basis = W.new_empty(len(W), 0)
    distance = W.square().sum(0)  # squared distance of each column from the span
    exact = distance.clone()  # the same when it was last computed anew
    eps = torch.finfo(W.dtype).eps
    cols: list[int] = []
    for _ in range(rank):
        stale = distance < eps**0.5 * exact
        stale[cols] = False  # the chosen ones have no distance left to lose
        if bool(stale.any()):
            rest = W - basis @ (basis.T @ W)
            distance = rest.square().sum(0)
            exact = distance.clone()
        distance[cols] = -1
        j = int(distance.argmax())
        q = W[:, j]
        for _ in range(2):
            q = q - basis @ (basis.T @ q)
        length = q.norm()
        if length <= eps * W[:, j].norm() or distance[j] <= 0:
            break
        q = q / length
        basis = torch.cat([basis, q[:, None]], dim=1)
        cols.append(j)
        distance = distance - (q @ W).square()
    return cols


def _filled_up(
    W: Float[Tensor, "m n"], rows: list[int], cols: list[int], rank: int
) -> tuple[Int64[Tensor, " r"], Int64[Tensor, " r"]]:
    """The pivots, with unused indices added up to ``rank``: a rule finds fewer where W has a lower rank."""
    m, n = W.shape
    rows = rows + [i for i in range(m) if i not in set(rows)][: rank - len(rows)]
    cols = cols + [j for j in range(n) if j not in set(cols)][: rank - len(cols)]
    return torch.tensor(rows, device=W.device), torch.tensor(cols, device=W.device)


def extra_rows(
    W: Float[Tensor, "m n"], rows: Int64[Tensor, " r"], cols: Int64[Tensor, " r"], count: int
) -> list[Int64[Tensor, " p"]]:
    """Choose the rows to oversample at each rank: those with the largest residual.

    One elimination of ``W`` along the nested pivots gives all ranks. It skips a pivot that is only rounding noise.

    Args:
        W: the matrix, (m, n), float32 or float64.
        rows: the pivot rows, (r,).
        cols: the pivot columns, (r,).
        count: p, the number of rows to add.

    Returns:
        One vector (p,) for each rank 1 … r. It holds none of the first pivots of that rank.
    """
    schur, _ = rescaled(W)
    schur = schur.clone()
    noise = torch.finfo(W.dtype).eps * max(W.shape) * float(schur.abs().max())
    chosen = []
    for k, (i, j) in enumerate(zip(rows.tolist(), cols.tolist(), strict=True), start=1):
        if abs(float(schur[i, j])) > noise:
            schur.addr_(schur[:, j].clone(), schur[i] / schur[i, j], alpha=-1)
            schur[i], schur[:, j] = 0, 0
        size = torch.linalg.vector_norm(schur, dim=1)
        size[rows[:k]] = -1
        chosen.append(size.topk(count).indices)
    return chosen


def _explicit(
    pivots: object, rank: int, n_rows: int, W: Float[Tensor, "*batch m n"]
) -> tuple[Int64[Tensor, "*#batch q"], Int64[Tensor, "*#batch r"]]:
    if not isinstance(pivots, tuple | list) or len(pivots) != 2:
        raise InputError(f"pivots={pivots!r} must be one of {', '.join(PIVOTS)}, or a pair (rows, cols)")
    sides = zip(("rows", "cols"), pivots, (n_rows, rank), W.shape[-2:], strict=True)
    rows, cols = (_check_indices(side, indices, count, size, W) for side, indices, count, size in sides)
    return rows, cols


def _check_indices(
    side: str, indices: object, count: int, size: int, W: Float[Tensor, "*batch m n"]
) -> Int64[Tensor, "*#batch k"]:
    """``count`` different indices below ``size`` as int64, one vector for all matrices or one for each."""
    try:
        vector = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError):
        vector = torch.empty(0)
    if vector.dtype in INTEGERS and tuple(vector.shape) in ((count,), (*W.shape[:-2], count)):
        vector = vector.to(W.device, torch.int64)
        ordered = vector.sort(dim=-1).values
        different = bool((ordered.diff(dim=-1) > 0).all())
        if different and int(ordered.min()) >= 0 and int(ordered.max()) < size:
            return vector
    raise InputError(f"pivots: {side} must be {count} different indices from 0 to {size - 1}, not {indices!r}")
