"""The exercises of notebook 05, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from nlora_lab.course.exercises import Exercise, Mistake, Question, normal_matrix

Trials = Sequence[tuple[float, float, float]]
"""(rate, validation loss, test accuracy) of each rate."""


def _rates_and_losses() -> list[tuple[Trials]]:
    """The rate with the best test accuracy is another one, a rate diverged, and the best rate stands anywhere."""
    return [
        ([(5e-3, 0.06, 0.6), (1e-2, 0.055, 0.7), (2e-2, 0.07, 0.74), (5e-2, 2.4, 0.0), (1e-1, math.inf, math.nan)],),
        ([(1e-3, 0.30, 0.20), (2e-3, 0.12, 0.55), (1e-1, math.inf, math.nan)],),
        ([(2e-4, 0.08, 0.39), (5e-4, 0.40, 0.02), (1e-4, 0.11, 0.41)],),
        ([(2e-2, 0.50, 0.30), (5e-3, 0.31, 0.48), (1e-2, 0.30, 0.45), (2e-3, 0.64, 0.10)],),
    ]


def own_rate(tried: Trials) -> float:
    """Return the rate with the lowest validation loss. The test split is for the report only."""
    return min(tried, key=lambda row: row[1])[0]


def _factors_and_gradients() -> list[tuple[Any, ...]]:
    return [
        (normal_matrix(2, 5, 1), normal_matrix(7, 2, 2), 2e-4, 0.5),
        (normal_matrix(3, 6, 3), normal_matrix(4, 3, 4), 1e-2, 2.5),
    ]


def first_step(A: Tensor, G: Tensor, eta: float, s: float) -> Tensor:
    """Return ‖s ΔB A‖_F with ΔB = −η sign(G)."""
    size: Tensor = (s * eta * torch.sign(G) @ A).norm()
    return size


def _factor_fits() -> list[tuple[Any, ...]]:
    sizes = ((6, 5, 2, 1, 0.02, 5), (4, 7, 3, 2, 0.015, 4))
    return [
        (normal_matrix(m, r, seed), normal_matrix(r, n, seed + 10), normal_matrix(m, n, seed + 20), eta, steps)
        for m, n, r, seed, eta, steps in sizes
    ]


def fit(B: Tensor, A: Tensor, W: Tensor, eta: float, steps: int) -> Tensor:
    """Fit B A ≈ W by gradient descent on ½‖W − B A‖². Both factors move at once."""
    return _descend(B, A, W, eta, steps)


def _descend(
    B: Tensor, A: Tensor, W: Tensor, eta: float, steps: int, new_B: bool = False, new_residual: bool = False,
    factor: float = 1.0, only_B: bool = False,
) -> Tensor:  # fmt: skip
    """The loop, or one that takes the second gradient with the new B, with the new residual, or not at all."""
    losses = []
    for _ in range(steps):
        E = B @ A - W
        losses.append(E.square().sum().item() / 2)
        moved = B - factor * eta * (E @ A.T)
        if new_residual:
            E = moved @ A - W
        if not only_B:
            A = A - factor * eta * ((moved if new_B or new_residual else B).T @ E)
        B = moved
    return torch.tensor(losses)


Draws = Mapping[int, Sequence[float]]
"""The accuracies of several numberings, by rank."""


def _draws() -> list[tuple[Draws]]:
    """Ranks that explain most, ranks that explain little, and groups of different sizes."""
    return [
        ({4: [50.0, 31.0, 28.0, 48.0], 16: [1.0, 3.0, 6.0, 2.0]},),
        ({4: [40.0, 10.0, 30.0], 8: [42.0, 12.0, 25.0], 16: [30.0, 8.0, 33.0]},),
        ({2: [10.0, 20.0], 4: [60.0, 70.0, 65.0, 75.0, 50.0], 8: [30.0, 20.0, 40.0]},),
    ]


def explained(draws: Draws) -> float:
    """Return the share of the squared deviations that lies between the means of the ranks."""
    within = sum(_squares(values) for values in draws.values())
    return 1 - within / _squares(_all(draws))


def _squares(values: Sequence[float]) -> float:
    return sum((value - fmean(values)) ** 2 for value in values)


def _all(draws: Draws) -> list[float]:
    return [value for values in draws.values() for value in values]


def _means(draws: Draws) -> list[float]:
    return [fmean(values) for values in draws.values()]


def _first_step(value: float) -> str:
    return f"rsLoRA's first change of W would be {math.sqrt(8) * value / 0.01:.3g} times as large as LoRA's"


# a mistake and its hint are one paragraph here, not five lines
# fmt: off
EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        "5.1",
        "a rate of its own",
        "A method was tried at several rates. Write own_rate(tried): the rate to compare it at (about 1 line).\n"
        "tried is a list of (rate, validation loss, test accuracy). A run that diverged has an infinite loss.",
        own_rate,
        "A rate chosen on the test split would make every accuracy that you report a little too good.",
        (
            Mistake(lambda tried: max(tried, key=lambda row: row[2])[0],
                "that looks at the test accuracy, which is what you want to report. Choose by validation loss."),
            Mistake(lambda tried: max(tried, key=lambda row: row[1])[0],
                "that is the rate with the highest validation loss. Take the lowest."),
            Mistake(lambda tried: min(row[1] for row in tried),
                "that is the lowest validation loss itself. Return its rate."),
            Mistake(lambda tried: min(range(len(tried)), key=lambda i: tried[i][1]),
                "that is the place in the list. Return the rate at this place."),
            Mistake(lambda tried: max(row[0] for row in tried if math.isfinite(row[1])),
                "that is the largest rate that did not diverge: the edge of the cliff, not the bottom of the valley."),
        ),
        inputs=_rates_and_losses,
        level="warm-up",
    ),
    Exercise(
        "5.2",
        "the rate that makes the same step",
        "LoRA and rsLoRA are the same product B A with different scales: alpha / r for LoRA, alpha / √r for rsLoRA.\n"
        "Here alpha = r = 8. At the start B = 0, and Adam's first step moves every number of B by the rate, whatever\n"
        "the gradient. At which rate is rsLoRA's first change of W as large as LoRA's at 1e-2?\n"
        "One number to three significant digits (about 1 line).",
        0.01 / math.sqrt(8),
        "The best rate of a method says nothing about its idea: here it follows from one factor, √8.",
        (
            Mistake(0.01 * math.sqrt(8), "the scale is larger, so the rate has to be smaller. Divide."),
            Mistake(0.01 / 8, "the scales are 8/8 = 1 and 8/√8 = √8. Their ratio is √8, not 8."),
            Mistake(0.01, "that is LoRA's rate. The scale of rsLoRA is √8 times as large."),
            Mistake(0.01 * 8, "the scale is larger, so the rate has to be smaller, and by √8."),
        ),
        gives=_first_step,
        reason="s · rate is the same where rate = 1e-2 · 1 / √8 = 3.54e-3.",
        digits=3,
        level="understand",
    ),
    Exercise(
        "5.3",
        "the size of the first step",
        "LoRA starts with B = 0. So the gradient with respect to A is zero, and only B moves. Adam's first step\n"
        "changes every entry of B by −eta · sign(G), where G is the gradient with respect to B. Derive the change\n"
        "of W + s B A, and write first_step(A, G, eta, s): the Frobenius norm of this change (about 1 line).\n"
        "A is (r, n), G is (m, r), eta is the learning rate and s the scale. Return one number.",
        first_step,
        "The size of the gradient is gone: only its signs are left. What sets the first step is the rate, the scale, "
        "and the size of the factor that does not move. For NLoRA that factor is N₀ A₀.",
        (
            Mistake(lambda A, G, eta, s: (s * eta * G @ A).norm(),
                "that is the step of plain gradient descent. Adam divides by the size of the gradient, so only "
                "sign(G) is left."),
            Mistake(lambda A, G, eta, s: (eta * torch.sign(G) @ A).norm(),
                "the scale s is missing. W changes by s ΔB A."),
            Mistake(lambda A, G, eta, s: (eta * torch.sign(G)).norm(),
                "that is the change of B. W changes by s ΔB A."),
            Mistake(lambda A, G, eta, s: s * eta * torch.sign(G).norm() * A.norm(),
                "the product of the norms is only an upper bound. Multiply the matrices first, then take the norm."),
            Mistake(lambda A, G, eta, s: torch.linalg.matrix_norm(s * eta * torch.sign(G) @ A, ord=2),
                "that is the spectral norm. The question is about the Frobenius norm: .norm()."),
            Mistake(lambda A, G, eta, s: s * eta * A.norm(),
                "A is multiplied by the m × r matrix of signs. Each row of the change is a sum of rows of A with "
                "signs."),
            Mistake(lambda A, G, eta, s: first_step(A, G, eta, s) ** 2,
                "that is the square of the norm. Take the root."),
        ),
        inputs=_factors_and_gradients,
        level="build",
    ),
    Exercise(
        "5.4",
        "a bug in a training loop",
        "This loop should fit W ≈ B A by gradient descent on ½‖W − B A‖², with the gradients written out. Autograd\n"
        "takes another course. One thing is wrong:\n\n"
        "    losses = []\n"
        "    for _ in range(steps):\n"
        "        E = B @ A - W\n"
        "        losses.append(E.square().sum().item() / 2)\n"
        "        B = B - eta * E @ A.T\n"
        "        A = A - eta * B.T @ E\n"
        "    return torch.tensor(losses)\n\n"
        "Write fit(B, A, W, eta, steps): the same loop without the bug (about 8 lines). Return the losses, one per "
        "step.",
        fit,
        "All gradients of a step belong to one point. The gradient of A has to use the B from before the step. No "
        "error tells you, and the loss falls all the same.",
        (
            Mistake(lambda B, A, W, eta, steps: _descend(B, A, W, eta, steps, new_B=True),
                "the loop still has the bug. At which B is the gradient of A taken, and at which the one of B?"),
            Mistake(lambda B, A, W, eta, steps: _descend(B, A, W, eta, steps, new_residual=True),
                "E is computed again between the two updates. Then A takes a step from another point than B."),
            Mistake(lambda B, A, W, eta, steps: _descend(B, A, W, eta, steps, factor=2.0),
                "the steps are twice as long as asked. The gradient of ½‖W − B A‖² has no factor 2."),
            Mistake(lambda B, A, W, eta, steps: _descend(B, A, W, eta, steps, factor=-1.0),
                "the sign is wrong: this climbs. Subtract the gradient."),
            Mistake(lambda B, A, W, eta, steps: _descend(B, A, W, eta, steps, only_B=True),
                "A does not move. Both factors are trained."),
            Mistake(lambda B, A, W, eta, steps: 2 * fit(B, A, W, eta, steps),
                "the losses are twice as large. The loss has a factor ½."),
            Mistake(lambda B, A, W, eta, steps: fit(B, A, W, eta, steps + 1)[1:],
                "the losses are those after the updates. Record each loss before its update."),
            Mistake(lambda B, A, W, eta, steps: fit(B, A, W, eta, steps)[-1],
                "that is the last loss. Return all of them, one per step."),
        ),
        inputs=_factor_fits,
        level="build",
    ),
    Exercise(
        "5.5",
        "rank or luck",
        "NLoRA was trained at several ranks, with several numberings of the neurons at each. How much of the spread\n"
        "do the ranks explain? Write explained(draws): 1 minus the squared deviations from the mean of the own rank,\n"
        "summed over all runs, divided by the squared deviations from the mean of all runs (about 3 lines). draws\n"
        "maps each rank to its accuracies.",
        explained,
        "What is left is the luck of the numbering, and of everything else that differs between runs of one rank.",
        (
            Mistake(lambda draws: 1 - explained(draws),
                "that is the share inside the ranks: the luck. The ranks explain the rest."),
            Mistake(lambda draws: explained(draws) / (1 - explained(draws)),
                "that is the part between the ranks over the part inside them. Divide by both together."),
            Mistake(lambda draws: _squares(_means(draws)) / _squares(_all(draws)),
                "each mean counts once here. It has to count as often as its rank has runs."),
            Mistake(lambda draws: math.sqrt(explained(draws)),
                "that is a correlation. The share of the squares is its square."),
            Mistake(lambda draws: 100 * explained(draws),
                "that is in percent. Return a share, from 0 to 1."),
        ),
        inputs=_draws,
        level="understand",
    ),
)
# fmt: on

QUESTIONS: tuple[Question, ...] = (
    Question(
        "5.Q1",
        "The final loss, or the accuracy, of both methods against the learning rate, with several seeds per rate.\n"
        "The rates have to reach beyond the bottom of both valleys.",
    ),
    Question(
        "5.Q2",
        "It is not one number. The best rate belongs to a method together with the size of its factors, its rank\n"
        "and its model. Balanced factors move it by more than a factor of ten, and nothing else about the start\n"
        "changes.",
    ),
    Question(
        "5.Q3",
        "Only you know. Two predictions are often wrong here: that the winner at one rate is the better method,\n"
        "and that more rank is always better. Both treat the learning rate as a neutral setting.",
    ),
)
