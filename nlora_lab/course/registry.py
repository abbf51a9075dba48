"""All exercises and closing questions of the course by number."""

from __future__ import annotations

from nlora_lab.core.validation import check_choice
from nlora_lab.course.exercises import Exercise, Question
from nlora_lab.course.solutions import (
    notebook_00,
    notebook_01,
    notebook_02,
    notebook_03,
    notebook_04,
    notebook_05,
    notebook_06,
    notebook_07,
    notebook_08,
    notebook_09,
)

NOTEBOOKS = (
    notebook_01, notebook_02, notebook_03, notebook_04, notebook_05, notebook_06, notebook_07, notebook_08,
    notebook_09,
)  # fmt: skip
ALL_EXERCISES: dict[str, Exercise] = {entry.number: entry for notebook in NOTEBOOKS for entry in notebook.EXERCISES}
ALL_QUESTIONS: dict[str, Question] = {
    entry.number: entry for notebook in (notebook_00, *NOTEBOOKS) for entry in notebook.QUESTIONS
}


def find_exercise(number: str) -> Exercise:
    """Return the exercise with a number.

    Args:
        number: for example "2.3".

    Returns:
        The exercise.

    Raises:
        InputError: no exercise has this number.
    """
    check_choice("exercise", str(number), ALL_EXERCISES)
    return ALL_EXERCISES[str(number)]


def find_solution(number: str) -> Exercise | Question:
    """Return the exercise or the closing question with a number.

    Args:
        number: for example "2.3" or "2.Q1".

    Returns:
        The exercise or the question.

    Raises:
        InputError: nothing has this number.
    """
    every: dict[str, Exercise | Question] = {**ALL_EXERCISES, **ALL_QUESTIONS}
    check_choice("exercise", str(number), every)
    return every[str(number)]
