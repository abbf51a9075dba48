"""Questions to the learner, and checks that explain a wrong answer.

``exercise("2.3")`` shows a question. ``check("2.3", answer)`` checks an answer. ``solution("2.3")`` shows the solution,
and ``solution("2.Q1")`` answers a question at the end of a notebook. A function is checked on new inputs from a fixed
seed. A wrong answer is compared with the known mistakes. If one of them gives the same on every input, the learner
reads its hint, otherwise the numbers. A check never raises for a wrong answer, so it never stops a notebook that runs
from top to bottom.
"""

from __future__ import annotations

import inspect
import linecache
import math
import traceback
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nlora_lab.course.comparison import TOLERANCE, Raised, agree, comparable, norm
from nlora_lab.course.exercises import LEVELS, Exercise, Question
from nlora_lab.course.registry import find_exercise, find_solution

FEW = 6  # entries of a vector that a message shows


class Text(str):
    """Text that a notebook shows line by line, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def exercise(number: str) -> Text:
    """Show an exercise and how its answer is compared.

    Args:
        number: the number of the exercise, for example "2.3".

    Returns:
        The question as text.

    Raises:
        InputError: no exercise has this number.
    """
    entry = find_exercise(number)
    argument = _function_name(entry) if entry.inputs else "your number"
    level = f" ({entry.level}, {LEVELS[entry.level]})" if entry.level else ""
    return Text(
        f"Exercise {entry.number}: {entry.title}{level}\n\n{entry.question}\n\n"
        f'Then: check("{entry.number}", {argument}). {_how_compared(entry)}'
    )


def solution(number: str) -> Text:
    """Show the solution of an exercise, or an answer to a question at the end of a notebook.

    Args:
        number: the number of the exercise, for example "2.3", or of the question, for example "2.Q1".

    Returns:
        The source of a function, a number with its reason, or an answer in words.

    Raises:
        InputError: nothing has this number.
    """
    entry = find_solution(number)
    if isinstance(entry, Question):
        return Text(entry.answer)
    if entry.inputs is None:
        shown = f"{entry.solution:g}" if isinstance(entry.solution, float) else str(entry.solution)
        return Text(f"{shown}\n{entry.reason}")
    return Text(inspect.getsource(entry.solution))


def check(number: str, answer: Any) -> bool:
    """Check an answer, and print "well done" or, in at most three lines, what is wrong.

    ``...``, a function that returns ``...`` and a function that still computes with ``...`` are unanswered.

    Args:
        number: the number of the exercise, for example "2.3".
        answer: a number, or the function that the exercise asks for. Numbers may be of Python, numpy or torch, matrices
            of numpy or torch.

    Returns:
        ``True`` for a right answer. ``False`` for a wrong one, after a hint is printed, and for an unanswered exercise,
        after a reminder is printed.

    Raises:
        InputError: no exercise has this number.
    """
    entry = find_exercise(number)
    if answer is ...:
        return _remind(entry)
    if entry.inputs is not None and not callable(answer):
        name = _function_name(entry)
        return _not_yet(
            entry,
            f"it asks for {name} itself, and got {_kind(answer)}.",
            f'Pass it without calling it: check("{entry.number}", {name}).',
        )
    trials = range(len(entry.inputs()) if entry.inputs else 1)
    outcomes = [_outcome(entry, answer, trial) for trial in trials]
    if any(map(_is_unanswered, outcomes)):
        return _remind(entry)
    targets = [_outcome(entry, entry.solution, trial) for trial in trials]
    wrong = [i for i in trials if not agree(outcomes[i], targets[i], entry.digits)]
    if wrong:
        return _not_yet(entry, *_explain(entry, answer, outcomes, wrong[0], targets[wrong[0]]))
    _print(f"Exercise {entry.number}: well done. {entry.means}")
    return True


def _outcome(entry: Exercise, answer: Any, trial: int) -> Any:
    """What the answer gives in this trial."""
    if entry.inputs is None:
        return answer
    try:
        return entry.call(answer, trial)
    except Exception as error:  # whatever a learner's function raises
        return Raised(error)


def _is_unanswered(outcome: Any) -> bool:
    """Whether the answer is ``...`` or an error from computing with it ("unsupported operand …: 'ellipsis'")."""
    if isinstance(outcome, Raised):
        return isinstance(outcome.error, TypeError | AttributeError) and "ellipsis" in str(outcome.error)
    return outcome is ...


def _function_name(entry: Exercise) -> str:
    return str(entry.solution.__name__)


def _how_compared(entry: Exercise) -> str:
    if entry.digits:
        return f"{entry.digits} significant digits are enough."
    if isinstance(entry.solution, int) and entry.solution * TOLERANCE > 0.5:
        return "A whole number has to be exact."
    return f"Numbers are compared to a relative error of {TOLERANCE:g}."


def _remind(entry: Exercise) -> bool:
    _print(f"Exercise {entry.number} ({entry.title}) waits for your answer: put it where the ... is.")
    return False


def _not_yet(entry: Exercise, hint: str, numbers: str) -> bool:
    """Print the hint, then the numbers behind it, then the way on: at most three lines."""
    way_on = f'Change your answer and run the cell again. nl.solution("{entry.number}") shows a solution.'
    _print("\n".join(line for line in (f"Exercise {entry.number}, not yet: {hint}", numbers, way_on) if line))
    return False


def _print(text: str) -> None:
    print(text)  # noqa: T201  # the learner reads it under the cell


# --- hints ---


def _explain(entry: Exercise, answer: Any, outcomes: Sequence[Any], trial: int, target: Any) -> tuple[str, str]:
    """The hint of the mistake that gives the same in every trial, or a general one; and the numbers of one trial."""
    hint = _known_mistake(entry, outcomes)
    if entry.inputs is None:
        about, numbers = _about_number(entry, outcomes[0], target)
        return hint or about, numbers
    called, outcome = f"Called with {_describe_arguments(entry, trial)}, your function", outcomes[trial]
    if isinstance(outcome, Raised):
        raised = f"it stops with {_describe_error(outcome.error)}"
        return hint or raised, f"{called} raised {type(outcome.error).__name__}{_line_of(outcome.error, answer)}."
    if outcome is None:
        return hint or "the function returns None. Does it end in return?", f"{called} returned None."
    if entry.probe is not None and isinstance(outcome, list):
        asked, found = (sorted(set(a) - set(b)) for a, b in ((target, outcome), (outcome, target)))
        hint = hint or "something about the class is not as asked."
        return hint, f"Made with {_describe_arguments(entry, trial)}: asked {asked}, yours {found}."
    general, numbers = _difference(outcome, comparable(target))
    return hint or general, f"{called} {numbers}"


def _known_mistake(entry: Exercise, outcomes: Sequence[Any]) -> str:
    for mistake in entry.mistakes:
        if all(agree(o, _outcome(entry, mistake.answer, i), entry.digits) for i, o in enumerate(outcomes)):
            return mistake.hint
    return ""


def _about_number(entry: Exercise, answer: Any, target: Any) -> tuple[str, str]:
    value = comparable(answer)
    if not isinstance(value, float):
        return f"it asks for one number, and got {_kind(answer)}. Give the number itself.", ""
    if not math.isfinite(value):
        return f"it asks for a finite number, and got {value}.", ""
    numbers = f"Try it: {text}." if entry.gives and (text := entry.gives(value)) else ""
    if agree(value, float(target), (entry.digits or 4) - 1):
        wanted = f"{entry.digits} significant digits" if entry.digits else "every digit"
        return f"{value:,.10g} is near. The exercise asks for {wanted}.", numbers
    return f"{value:,.10g} is not right.", numbers


def _difference(outcome: Any, target: Any) -> tuple[str, str]:
    """A general hint, and the end of the sentence "your function …"."""
    value = comparable(outcome)
    if isinstance(target, Tensor):
        return _matrix_difference(value, target, outcome)
    if isinstance(target, float):
        if isinstance(outcome, complex):
            return "the result is complex. Do you take the root of a negative number?", f"returned {outcome:.3g}."
        if not isinstance(value, float):
            return "return one number.", f"returned {_kind(outcome)}."
        return "go through your function step by step.", f"returned {value:.6g} instead of {target:.6g}."
    if not isinstance(value, list):
        return "return a list.", f"returned {_kind(outcome)}."
    missing, extra = set(target) - set(value), set(value) - set(target)
    parts = [f"returned a list of length {len(value)} instead of {len(target)}"]
    parts += [f"missing: {min(missing)}"] if missing else []
    parts += [f"too many: {min(extra)[:80]}"] if extra else []
    return "the list does not hold the right items.", "; ".join(parts) + "."


def _matrix_difference(value: Any, target: Tensor, outcome: Any) -> tuple[str, str]:
    shape = tuple(target.shape)
    if not isinstance(value, Tensor):
        return f"return one matrix, a tensor of shape {shape}.", f"returned {_kind(outcome)}."
    if value.shape != target.shape:
        hint = f"the shape is not right. Here it has to be {shape}."
        return hint, f"returned a tensor of shape {tuple(value.shape)}."
    if not bool(value.isfinite().all()):
        return "look for a division by zero.", "returned a matrix that holds NaN or infinity."
    error = norm(value - target) / norm(target)
    return (
        "write down the formula with the shape of each factor.",
        f"returned a matrix of norm {norm(value):.3g}. The right matrix has norm {norm(target):.3g}, and the relative "
        f"error of yours is {error:.2g}.",
    )


def _describe_arguments(entry: Exercise, trial: int) -> str:
    assert entry.inputs is not None
    names = inspect.signature(entry.solution).parameters
    return ", ".join(
        f"{name} {_describe_value(value)}" for name, value in zip(names, entry.inputs()[trial], strict=True)
    )


def _describe_value(value: Any) -> str:
    if isinstance(value, Tensor):
        few = value.ndim == 1 and len(value) <= FEW
        return f"= {value.tolist()}" if few else f"of shape {tuple(value.shape)}"
    return f"of {len(value)} rows" if hasattr(value, "iloc") else f"= {value!r}"


def _kind(value: Any) -> str:
    """A type in words: "None", "a function", "text"."""
    if value is None:
        return "None"
    if isinstance(value, str):
        return "text"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _line_of(error: Exception, answer: Any) -> str:
    """The line of the learner's own function that raised, if its source is known."""
    code = getattr(answer, "__code__", None)
    lines = [
        linecache.getline(frame.filename, frame.lineno or 0).strip()
        for frame in traceback.extract_tb(error.__traceback__)
        if code is not None and frame.filename == code.co_filename
    ]
    return f" in the line: {lines[-1]}" if lines and lines[-1] else ""
