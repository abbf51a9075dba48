"""What an exercise consists of.

The exercises themselves stand in ``solutions_01_low_rank.py`` and the files after it, one file per notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mistake:
    """A typical wrong answer with its hint.

    A function is run on the same inputs as the learner's function. Where the two agree, the learner reads the hint.
    A mistake may also raise an exception: the learner reads the hint if the learner's function raises the same one.

    Attributes:
        answer: a number, or a function with the parameters of the learner's function.
        hint: what the learner reads.
    """

    answer: Any
    hint: str


@dataclass(frozen=True)
class Exercise:
    """A question with its solution, and with hints for typical mistakes.

    Attributes:
        number: the number of the notebook and of the exercise in it, for example "2.3".
        title: a few words.
        question: the full text. It says how long a solution is.
        solution: the right number, or a function that solves the exercise.
        means: what a right answer shows. The learner reads it after "well done".
        mistakes: the typical mistakes.
        inputs: for a question that asks for a function: returns new lists of arguments, equal at every call.
            ``None`` for a question that asks for a number.
        gives: for a question that asks for a number: says in words what follows from a wrong number, without naming
            the right one.
        reason: why the right number is right.
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


def normal_matrix(m: int, n: int, seed: int) -> Tensor:
    """Return an (m, n) float64 matrix of standard normal numbers that depends on the seed only."""
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tall_wide_and_square() -> list[tuple[Any, ...]]:
    """Return three matrices, each with a rank. Their leading blocks are far from singular."""
    return [(normal_matrix(9, 7, 1), 3), (normal_matrix(6, 10, 2), 2), (normal_matrix(8, 8, 3), 5)]
