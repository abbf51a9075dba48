"""Which rows and columns a cross approximation stands on.

Every rule here is *nested*: the pivots of rank r are the first r of those of any higher rank, so
that one elimination gives the error at every rank (:func:`nlora_lab.lowrank.error_curve`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_choice
from nlora_lab.lowrank.checks import check_count, check_generator, check_matrix, check_rank, rescaled

Indices = Tensor | Sequence[int]
Pivots = Literal["leading", "random", "cross", "qr"] | tuple[Indices, Indices]
PIVOTS = ("leading", "random", "cross", "qr")


def choose_pivots(
    W: Tensor, rank: int, pivots: Pivots = "leading", *, oversample: int = 0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Row and column indices (int64) for ``W`` (…, m, n): ``rank + oversample`` rows, ``rank`` columns.

    - "leading": the first ones, as in the NLoRA paper;
    - "random": drawn without replacement (by ``generator``), the same for a whole batch;
    - "cross": Gaussian elimination with complete pivoting; each step takes the largest entry of
      what is left (Bebendorf's adaptive cross approximation);
    - "qr": columns by column-pivoted QR, rows by partial pivoting within those columns;
    - a pair ``(rows, cols)`` of different indices.

    Extra rows (``oversample``) are the next ones for "leading" and "random", and for "cross" and "qr"
    those the approximation of rank ``rank`` is worst on. Shapes are (r,), or (…, r) where a batch
    gets pivots of its own. Raises :class:`InputError` for anything else.
    """
    work = check_matrix(W)
    rank = check_rank(rank, tuple(work.shape))
    check_generator(generator)
    oversample = check_count("oversample", oversample, 0, work.shape[-2] - rank)
    return pick(work, rank, pivots, oversample, generator)


def pick(
    W: Tensor, rank: int, pivots: Pivots, oversample: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """:func:`choose_pivots` for a matrix that has been checked."""
    m, n = W.shape[-2:]
    if not isinstance(pivots, str):
        return _explicit(pivots, rank, rank + oversample, W)
    check_choice("pivots", pivots, PIVOTS)
    if pivots == "leading":
        return torch.arange(rank + oversample, device=W.device), torch.arange(rank, device=W.device)
    if pivots == "random":
        where = W.device if generator is None else generator.device
        rows = torch.randperm(m, generator=generator, device=where)[: rank + oversample].to(W.device)
        return rows, torch.randperm(n, generator=generator, device=where)[:rank].to(W.device)
    choose = complete_pivoting if pivots == "cross" else qr_pivoting
    flat = W.reshape(-1, m, n)
    chosen = [choose(matrix, rank) for matrix in flat]
    if oversample:
        extra = [extra_rows(matrix, *c, oversample)[-1] for matrix, c in zip(flat, chosen, strict=True)]
        chosen = [(torch.cat([r, more]), c) for (r, c), more in zip(chosen, extra, strict=True)]
    batch = W.shape[:-2]
    rows = torch.stack([r for r, _ in chosen]).reshape(*batch, -1)
    return rows, torch.stack([c for _, c in chosen]).reshape(*batch, -1)


def complete_pivoting(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Elimination of ``W`` (m, n), each time on the largest entry left: 3 passes over W a step."""
    left = W.clone()  # the Schur complement so far
    rows: list[int] = []
    cols: list[int] = []
    for _ in range(rank):
        # the largest of each row first: a norm reads W once and writes nothing of its size
        i = int(torch.linalg.vector_norm(left, ord=torch.inf, dim=1).argmax())
        j = int(left[i].abs().argmax())
        pivot = left[i, j].clone()
        if pivot == 0:  # W is reproduced exactly: whatever comes next changes nothing
            break
        column, row = left[:, j].clone(), left[i] / pivot
        left.addr_(column, row, alpha=-1)
        left[i], left[:, j] = 0, 0  # exactly, so that neither is chosen again
        rows.append(i)
        cols.append(j)
    return _finish(W, rows, cols, rank)


def qr_pivoting(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Columns of ``W`` (m, n) by column-pivoted QR, then rows by partial pivoting within them."""
    W, _ = rescaled(W)  # squares of the entries are taken
    cols = column_pivots(W, rank)
    block = W[:, cols].clone()  # (m, r), eliminated in place
    taken: list[int] = []
    for k in range(len(cols)):
        i = int(block[:, k].abs().argmax())
        if block[i, k] == 0:
            break
        row = block[i, k:] / block[i, k]
        block[:, k:] -= torch.outer(block[:, k].clone(), row)
        block[i] = 0
        taken.append(i)
    return _finish(W, taken, cols[: len(taken)], rank)


def column_pivots(W: Tensor, rank: int) -> list[int]:
    """The first columns that QR with column pivoting takes, by Gram–Schmidt done twice.

    Each step takes the column that is farthest from the span of those taken before. The distances are
    updated (Pythagoras), and computed anew when cancellation has eaten half of their digits.
    """
    basis = W.new_empty(len(W), 0)
    far = W.square().sum(0)  # squared distance of each column from the span
    fresh = far.clone()
    eps = torch.finfo(W.dtype).eps
    cols: list[int] = []
    for _ in range(rank):
        stale = far < eps**0.5 * fresh
        stale[cols] = False  # those taken have no distance left to lose
        if bool(stale.any()):
            rest = W - basis @ (basis.T @ W)
            far = fresh = rest.square().sum(0)
            fresh = fresh.clone()
        far[cols] = -1
        j = int(far.argmax())
        q = W[:, j]
        for _ in range(2):
            q = q - basis @ (basis.T @ q)
        length = q.norm()
        if length <= eps * W[:, j].norm() or far[j] <= 0:
            break
        q = q / length
        basis = torch.cat([basis, q[:, None]], dim=1)
        cols.append(j)
        far = far - (q @ W).square()
    return cols


def _finish(W: Tensor, rows: list[int], cols: list[int], rank: int) -> tuple[Tensor, Tensor]:
    """Fill up to ``rank`` with unused indices: W had a lower rank."""
    m, n = W.shape
    rows = rows + [i for i in range(m) if i not in set(rows)][: rank - len(rows)]
    cols = cols + [j for j in range(n) if j not in set(cols)][: rank - len(cols)]
    return torch.tensor(rows, device=W.device), torch.tensor(cols, device=W.device)


def extra_rows(W: Tensor, rows: Tensor, cols: Tensor, count: int) -> list[Tensor]:
    """For each rank 1 … r, the ``count`` other rows that the first pivots leave the largest residual on.

    One elimination of ``W`` (m, n) along the nested pivots; a pivot that is only rounding noise is passed over.
    """
    left, _ = rescaled(W)
    left = left.clone()
    noise = torch.finfo(W.dtype).eps * max(W.shape) * float(left.abs().max())
    chosen = []
    for k, (i, j) in enumerate(zip(rows.tolist(), cols.tolist(), strict=True), start=1):
        if abs(float(left[i, j])) > noise:
            left.addr_(left[:, j].clone(), left[i] / left[i, j], alpha=-1)
            left[i], left[:, j] = 0, 0
        size = torch.linalg.vector_norm(left, dim=1)
        size[rows[:k]] = -1
        chosen.append(size.topk(count).indices)
    return chosen


def _explicit(pivots: object, rank: int, n_rows: int, W: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(pivots, tuple | list) or len(pivots) != 2:
        raise InputError(f"pivots={pivots!r} must be one of {', '.join(PIVOTS)}, or a pair (rows, cols)")
    sizes = zip(("rows", "cols"), pivots, (n_rows, rank), W.shape[-2:], strict=True)
    rows, cols = (_indices(what, given, count, size, W) for what, given, count, size in sizes)
    return rows, cols


def _indices(what: str, given: object, count: int, size: int, W: Tensor) -> Tensor:
    try:
        vector = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        vector = torch.empty(0)
    batch = W.shape[:-2]
    whole = vector.dtype in (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
    shaped = vector.shape == (count,) or vector.shape == (*batch, count)
    if whole and shaped:
        vector = vector.to(W.device, torch.int64)
        ordered = vector.sort(dim=-1).values
        different = bool((ordered.diff(dim=-1) > 0).all())
        if different and int(ordered.min()) >= 0 and int(ordered.max()) < size:
            return vector
    raise InputError(f"pivots: {what} must be {count} different indices from 0 to {size - 1}, not {given!r}")
