"""Pictures of one matrix: what an approximation leaves, an elimination step by step, and the errors of all blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_whole_number
from nlora_lab.lowrank.checks import check_matrix, check_nonzero
from nlora_lab.lowrank.pivots import Pivots, choose_pivots
from nlora_lab.lowrank.volume import Blocks, all_blocks
from nlora_lab.plots.approximations import APPROXIMATIONS, ErrorLine, error_panel, spectrum_panel
from nlora_lab.plots.drawings import Described, Picture
from nlora_lab.plots.figure import Axis, Figure, Heatmap, Label, Line, Mark, Panel, Points, log_limits

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LEVELS = 100  # a heat map's colours, on either side of zero
LIMIT = 64  # rows and columns a heat map shows at most
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
EXACT = 1e-12  # of the largest entry: a singular value below is rounding
MOST_DRAWN, MOST_STEPS = 12, 4  # rows, columns and steps of an elimination whose numbers can be read


def thumbnail(X: Tensor, limit: int = LIMIT) -> Tensor:
    """Shrink ``X`` (m, n) to at most ``limit`` rows and columns; each cell is the largest entry of its block.

    Largest by absolute value and with its sign: a mean would make every large matrix look like zero.
    """
    for dim in (0, 1):
        size = X.shape[dim]
        width = -(-size // limit)
        if width == 1:
            continue
        X = X.movedim(dim, 0)
        lack = -size % width
        if lack:  # repeat the last row: it adds no entry of its own
            X = torch.cat([X, X[-1:].expand(lack, -1)])
        blocks = X.reshape(-1, width, X.shape[1])
        at = blocks.abs().argmax(dim=1, keepdim=True)
        X = blocks.gather(1, at).squeeze(1).movedim(0, dim)
    return X


def levels(X: Tensor, scale: float) -> npt.NDArray[np.int8]:
    """Round ``X`` (m, n) to steps from −LEVELS to LEVELS; ``scale`` and everything above it are the last step."""
    steps = (X / scale).nan_to_num(0).clamp(-1, 1) * LEVELS
    result: npt.NDArray[np.int8] = steps.round().to("cpu", torch.int8).numpy()
    return result


@dataclass(frozen=True)
class NystromDrawing(Described):
    """The figure of ``NystromLab`` and ``SvdLab``.

    Attributes:
        matrices: W, its approximation and the residual, (rows, columns) each, at most ``LIMIT`` or so of both.
        scale: the absolute value at which the colours of all three end.
        lines: the errors at every rank.
        sigma: the singular values of W.
        rank: the rank of the approximation.
        shape: the rows and columns of W itself.
        error: the relative error of the approximation.
        grey: whether W is a picture, with grey values from 0 to 1.
    """

    matrices: tuple[Tensor, Tensor, Tensor]
    scale: float
    lines: Sequence[ErrorLine]
    sigma: Sequence[float]
    rank: int
    shape: tuple[int, int]
    error: float
    grey: bool = False

    def figure(self) -> Figure:
        """Return the description that both renderers draw."""
        m, n = self.shape
        headings = f"W, {m} × {n}", f"approximation, rank {self.rank}", f"what is left: {self.error:.3g} of ‖W‖"
        maps = [self._map(i, heading) for i, heading in enumerate(headings)]
        errors = error_panel(self.lines, self.rank, 1.3, "error at every rank", (0, 0.6), (0, 0.4))
        sigma = Line(range(1, len(self.sigma) + 1), self.sigma, hover="σ<sub>%{x}</sub> = %{y:.3g}")
        spectrum = spectrum_panel([sigma], "singular values of W", (0.69, 1), (0, 0.4), self.rank)
        return Figure([*maps, errors, spectrum], dpi=110)

    def _map(self, i: int, heading: str) -> Panel:
        matrix, grey = self.matrices[i], self.grey and i < 2
        scale = 0.5 if self.grey else self.scale  # the residual of a picture is small: half of its range is full colour
        colours = levels(2 * matrix - 1, 1.0) if grey else levels(matrix, scale)
        m, n = colours.shape
        cells = Heatmap(colours, (-LEVELS, LEVELS), "gray" if grey else "RdBu_r")
        columns, rows = (Axis(limits=ends, ticks={}, grid=False) for ends in ((-0.5, n - 0.5), (m - 0.5, -0.5)))
        return Panel(columns, rows, [cells], heading=heading, across=(0.345 * i, 0.345 * i + 0.31), up=(0.49, 1))


@dataclass(frozen=True)
class EliminationStep:
    """One step of an elimination.

    Attributes:
        before: what is left before the step, (m, n).
        pivot: the row and the column of the entry by which the step divides.
        subtracted: the pivot's column times its row, divided by the pivot, (m, n).
        done: the rows and the columns that are zero before the step.
    """

    before: Tensor
    pivot: tuple[int, int]
    subtracted: Tensor
    done: tuple[list[int], list[int]]

    @property
    def after(self) -> Tensor:
        """What is left after the step, (m, n)."""
        return self.before - self.subtracted


def elimination_steps(W: Tensor, steps: int, pivots: Pivots = "leading") -> list[EliminationStep]:
    """Eliminate a small matrix, and keep every step.

    Args:
        W: a matrix, at most 12 × 12.
        steps: how many steps, from 1 to min(m, n).
        pivots: the order of the pivots, as for ``nl.nystrom``.

    Returns:
        The steps, in float64.

    Raises:
        InputError: the matrix is zero or too large, an option is out of range, or a pivot is zero.
    """
    S = check_matrix(W).to(torch.float64, copy=True)
    if S.ndim != 2 or max(S.shape) > MOST_DRAWN:
        raise InputError(f"W has the shape {tuple(S.shape)}; give one matrix of at most {MOST_DRAWN} × {MOST_DRAWN}")
    check_nonzero(S.abs().amax())
    rows, cols = choose_pivots(S, check_whole_number("steps", steps, 1, min(S.shape)), pivots)
    made: list[EliminationStep] = []
    for i, j in zip(rows.tolist(), cols.tolist(), strict=True):
        if S[i, j] == 0:
            raise InputError(f"the pivot of step {len(made) + 1} is zero; take fewer steps, or pivots='cross'")
        done = [step.pivot[0] for step in made], [step.pivot[1] for step in made]
        made.append(EliminationStep(S, (i, j), torch.outer(S[:, j], S[i]) / S[i, j], done))
        S = made[-1].after
    return made


def elimination(W: Tensor, steps: int = 3, *, pivots: Pivots = "leading") -> Picture:
    """Draw an elimination step by step: the numbers that are left, the rows and columns that are done, and the pivot.

    The frame is the entry by which the next step divides. A row and a column that are done are zero, and drawn white.
    What is left besides them is the Schur complement.

    Args:
        W: a small matrix, at most 12 × 12.
        steps: how many steps, from 1 to 4 and to min(m, n).
        pivots: the order of the pivots, as for ``nl.nystrom``.

    Returns:
        One panel for the matrix and one per step, which a notebook shows as a PNG.

    Raises:
        InputError: the matrix is zero or too large, an option is out of range, or a pivot is zero.
    """
    check_whole_number("steps", steps, 1, MOST_STEPS)
    made, width = elimination_steps(W, steps, pivots), 1 / (steps + 1)
    frames = [(step.before, step.done, step.pivot) for step in made] + [(made[-1].after, _done(made[-1]), None)]
    panels = []
    for k, (S, done, pivot) in enumerate(frames):
        across = (k * width, (k + 0.92) * width)
        panels.append(_cells(S, done, pivot, _scale(made), _left(made, k) if k else "W", across))
    m, n = W.shape
    text = f"an elimination of a {m} × {n} matrix in {steps} steps, and what each step leaves"
    return Picture(Figure(panels, 250 * (steps + 1), 60 + 180 * m / n), text)


def elimination_step(made: Sequence[EliminationStep], step: int) -> Picture:
    """Draw one step of an elimination: what is left before it, what it subtracts, and what is left after it.

    The frame is the entry by which the step divides.

    Args:
        made: the steps, from ``elimination_steps``.
        step: the number of the step, from 1.

    Returns:
        Three panels, which a notebook shows as a PNG.

    Raises:
        InputError: the step was not made.
    """
    now = made[check_whole_number("step", step, 1, len(made)) - 1]
    before = _left(made, step - 1) if step > 1 else "W"
    panels = [
        _cells(now.before, now.done, now.pivot, _scale(made), before, (0, 0.31)),
        _cells(now.subtracted, now.done, now.pivot, _scale(made), "− column · row / pivot", (0.345, 0.655)),
        _cells(now.after, _done(now), None, _scale(made), f"= {_left(made, step)}", (0.69, 1)),
    ]
    m, n = now.before.shape
    text = f"step {step} of an elimination: what is left before it, what it subtracts, and what is left after it"
    return Picture(Figure(panels, 960, 60 + 240 * m / n), text)


def _done(step: EliminationStep) -> tuple[list[int], list[int]]:
    """The rows and the columns that are zero after a step."""
    return [*step.done[0], step.pivot[0]], [*step.done[1], step.pivot[1]]


def _scale(made: Sequence[EliminationStep]) -> float:
    return float(made[0].before.abs().max())


def _left(made: Sequence[EliminationStep], k: int) -> str:
    return f"after step {k}: {float(made[k - 1].after.norm() / made[0].before.norm()):.2f} of ‖W‖"


def _cells(
    S: Tensor, done: tuple[list[int], list[int]], pivot: tuple[int, int] | None, scale: float, heading: str,
    across: tuple[float, float],
) -> Panel:  # fmt: skip
    """One panel: a matrix as numbers on colours, the rows and columns that are done as white zeros."""
    colours = S.clone()
    colours[done[0]], colours[:, done[1]] = torch.nan, torch.nan
    texts = [["" if v != v else f"{round(v, 1) + 0.0:g}".replace("-", "−") for v in row] for row in colours.tolist()]
    # plotly writes dark text into empty cells, which a dark page hides: the zeros that are done are labels
    zeros = [Label(j, i, "0", anchor="center") for i, j in colours.isnan().nonzero().tolist()]
    cells = Heatmap(colours.tolist(), (-1.4 * scale, 1.4 * scale), "RdBu_r", texts, framed=pivot)
    (m, n), none = S.shape, dict[float, str]()
    columns, rows = (Axis(limits=ends, ticks=none, grid=False) for ends in ((-0.5, n - 0.5), (m - 0.5, -0.5)))
    return Panel(columns, rows, [cells], zeros, heading, across=across)


def block_errors(W: Tensor, rank: int) -> Picture:
    """Draw the error of every r × r block of a small matrix against its volume, with the bound for the largest volume.

    Args:
        W: a small matrix, (m, n). At most 20,000 blocks are tried.
        rank: the rank r, below min(m, n).

    Returns:
        The picture, which a notebook shows as a PNG.

    Raises:
        InputError: ``W`` has a rank of at most r, has too many blocks, or is not a finite matrix.
    """
    blocks = all_blocks(W, rank)
    sigma = blocks.bound / (rank + 1)
    if not sigma > EXACT * float(W.abs().max()):
        raise InputError(f"W has a rank of {rank} at most, so every block is exact; give a smaller rank")
    volume, error = (blocks.volume / blocks.volume[0]).tolist(), (blocks.error / sigma).tolist()
    limits = log_limits(volume, 0.08)
    marks: list[Mark] = [
        Line(limits, [rank + 1] * 2, "black", "dash", 1.5, name=f"the bound, r + 1 = {rank + 1}"),
        Points(volume, error, "#b0b0b0", sizes=5, name=f"all {len(volume):,} invertible blocks"),
    ]
    # APPROXIMATIONS has the colours that the leading block and complete pivoting have in every figure
    chosen = {"maximal volume": ("#0072b2", 0, 16)}
    for name, label, size in (("nystrom", "leading block", 10), ("cross", "complete pivoting", 9)):
        place = _find(blocks, *choose_pivots(W, rank, "cross" if name == "cross" else "leading"))
        if place is not None:
            chosen[label] = APPROXIMATIONS[name].colour, place, size
    marks += [
        Points([volume[at]], [error[at]], hue, "diamond", size, "black", name=name)
        for name, (hue, at, size) in chosen.items()
    ]
    across = Axis("volume of the block, the largest = 1", limits, log=True)
    up = Axis(f"largest entry of the error, in σ{rank + 1}".translate(SUBSCRIPTS), log_limits(error, 0.08), log=True)
    text = f"the error of each of {len(volume)} blocks of rank {rank} against its volume"
    return Picture(Figure([Panel(across, up, marks, legend="beside")], 820, 340), text)


def _find(blocks: Blocks, rows: Tensor, cols: Tensor) -> int | None:
    """The place of a block among all, or ``None`` if it is not invertible."""
    same = (blocks.rows == rows.sort().values).all(1) & (blocks.cols == cols.sort().values).all(1)
    return int(same.nonzero()[0]) if bool(same.any()) else None
