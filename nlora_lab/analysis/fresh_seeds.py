"""The comparisons on fresh seeds, declared before their runs: rates chosen on some seeds, compared on others.

The plans are in ``tools/study.py`` (embedded model) and ``tools/larger_model.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from nlora_lab.analysis.selection import Methods, Runs, at_best
from nlora_lab.core.validation import check_choice
from nlora_lab.models.names import EMBEDDED, LARGER
from nlora_lab.runs.run import Run

TASK = "word-problems"


@dataclass(frozen=True)
class Declared:
    """A declared comparison.

    Attributes:
        steps: the number of optimiser steps.
        chosen_on: the seeds on which the rates are chosen, by validation loss.
        fresh: the seeds that are compared.
    """

    steps: int
    chosen_on: range
    fresh: range


DECLARED = {EMBEDDED: Declared(500, range(3), range(5, 25)), LARGER: Declared(250, range(2), range(2, 7))}
"""The declared comparisons by model, at rank 8 on word-problems, by ``log_test_loss``.

On the embedded model the seeds 15 to 24 were added by a plan of their own, after the seeds 5 to 14 had been read.
"""


def fresh_groups(methods: Methods = None, runs: Runs = None, *, model: str = EMBEDDED) -> dict[str, tuple[Run, ...]]:
    """Choose the runs of a declared comparison on fresh seeds, for ``nl.compare(..., metric="log_test_loss")``.

    Args:
        methods: the names of the methods. Default: all.
        runs: a store, its folder, or runs. Default: the runs that ship with the package.
        model: "embedded" (500 steps, seeds 5 to 24) or "larger" (250 steps, seeds 2 to 6).

    Returns:
        The runs by method. Methods without such runs are left out.

    Raises:
        InputError: a name is unknown, or no method has runs.
    """
    check_choice("model", model, DECLARED)
    plan = DECLARED[model]
    return at_best(runs, TASK, methods, model=model, steps=plan.steps, fresh=plan.fresh, chosen_on=plan.chosen_on)
