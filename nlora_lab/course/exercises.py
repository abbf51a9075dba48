"""What an exercise and a closing question consist of.

The exercises themselves stand in ``solutions/``, one file per notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LEVELS = {"warm-up": "2 minutes", "understand": "5 to 10 minutes", "build": "15 to 30 minutes"}
"""The levels of the exercises, with the time that they take."""


@dataclass(frozen=True)
class Mistake:
    """A typical wrong answer with its hint.

    A function is run on the same inputs as the learner's function. The learner reads the hint if the two agree on every
    input. One input is not enough: two different mistakes can agree there. A mistake may also raise an exception: it
    agrees with a function that raises the same one.

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
        digits: how many significant digits of a number have to be right. 0: the relative tolerance of the comparison.
        level: one of ``LEVELS``, or nothing.
        probe: for a class: called with the class and the arguments. It returns what is compared, for example a list of
            facts about an object of the class. By default the answer itself is called with the arguments.
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
    digits: int = 0
    level: str = ""
    probe: Callable[..., Any] | None = None

    def call(self, answer: Any, trial: int) -> Any:
        """Call an answer, or probe it, with new arguments, so that it may write on them."""
        assert self.inputs is not None
        arguments = self.inputs()[trial]
        return answer(*arguments) if self.probe is None else self.probe(answer, *arguments)


@dataclass(frozen=True)
class Question:
    """A question at the end of a notebook. It is for thinking and talking, so nothing is checked.

    Attributes:
        number: the number of the notebook and of the question, for example "2.Q1".
        answer: a good answer. Others may be as good.
    """

    number: str
    answer: str


def normal_matrix(m: int, n: int, seed: int) -> Tensor:
    """Return an (m, n) float64 matrix of standard normal numbers that depends on the seed only."""
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tall_wide_and_square() -> list[tuple[Any, ...]]:
    """Return three matrices, each with a rank. Their leading blocks are far from singular."""
    return [(normal_matrix(9, 7, 1), 3), (normal_matrix(6, 10, 2), 2), (normal_matrix(8, 8, 3), 5)]
