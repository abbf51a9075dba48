"""The exercises of notebook 05, with their solutions and with hints for typical mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlora_lab.course.exercises import Exercise, Mistake, Question

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
