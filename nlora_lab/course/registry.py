"""All exercises of the course by number."""

from __future__ import annotations

from nlora_lab.core.validation import check_choice
from nlora_lab.course import (
    solutions_01_low_rank,
    solutions_02_nystrom,
    solutions_03_spectra_of_a_transformer,
    solutions_04_adapters_from_scratch,
    solutions_05_fine_tuning_lab,
    solutions_06_learning_rate_and_init,
    solutions_07_reading_the_paper,
    solutions_08_real_models,
)
from nlora_lab.course.exercises import Exercise

NOTEBOOKS = (
    solutions_01_low_rank, solutions_02_nystrom, solutions_03_spectra_of_a_transformer,
    solutions_04_adapters_from_scratch, solutions_05_fine_tuning_lab, solutions_06_learning_rate_and_init,
    solutions_07_reading_the_paper, solutions_08_real_models,
)  # fmt: skip
ALL_EXERCISES: dict[str, Exercise] = {entry.number: entry for notebook in NOTEBOOKS for entry in notebook.EXERCISES}


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
