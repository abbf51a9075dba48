"""Questions to the learner, and checks that explain a wrong answer.

``exercise("2.3")`` shows a question. ``check("2.3", answer)`` checks an answer. ``solution("2.3")`` shows the solution,
for teachers. A function is checked on new inputs from a fixed seed. On the first input where the answer is wrong, it is
compared with the known mistakes. If one of them gives the same, its hint is raised, otherwise the numbers.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.course.comparison import TOLERANCE, Raised, agree, comparable, norm
from nlora_lab.course.exercises import Exercise
from nlora_lab.course.registry import find_exercise


class WrongAnswer(InputError):
    """An answer that is not right yet. The message is a hint at the mistake."""


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
    return Text(
        f"Exercise {entry.number}: {entry.title}\n\n{entry.question}\n\n"
        f'Then: check("{entry.number}", {argument}). Numbers are compared to a relative error of {TOLERANCE:g}.'
    )


def solution(number: str) -> Text:
    """Show the solution of an exercise.

    Args:
        number: the number of the exercise, for example "2.3".

    Returns:
        The source of a function, or a number with its reason.

    Raises:
        InputError: no exercise has this number.
    """
    entry = find_exercise(number)
    if entry.inputs is None:
        return Text(f"{entry.solution:g}\n{entry.reason}")
    return Text(inspect.getsource(entry.solution))


def check(number: str, answer: Any) -> bool:
    """Check an answer, and print "well done" if it is right.

    ``...``, a function that returns ``...`` and a function that still computes with ``...`` are unanswered.

    Args:
        number: the number of the exercise, for example "2.3".
        answer: a number, or the function that the exercise asks for. Numbers may be of Python, numpy or torch, matrices
            of numpy or torch.

    Returns:
        ``True`` for a right answer. ``False`` for an unanswered exercise, after a reminder is printed.

    Raises:
        WrongAnswer: the answer is wrong or has the wrong type, or the function raised an exception. The message is a
            hint.
        InputError: no exercise has this number.
    """
    entry = find_exercise(number)
    if answer is ...:
        return _remind(entry)
    if entry.inputs is not None and not callable(answer):
        name = _function_name(entry)
        raise _wrong(
            entry,
            f"it asks for the function {name} itself, and got {_kind(answer)}. "
            f'Pass the function without calling it: check("{entry.number}", {name}).',
        )
    for trial in range(len(entry.inputs()) if entry.inputs else 1):
        outcome = _outcome(entry, answer, trial)
        if _is_unanswered(outcome):
            return _remind(entry)
        target = _outcome(entry, entry.solution, trial)
        if not agree(outcome, target):
            cause = outcome.error if isinstance(outcome, Raised) else None
            raise _wrong(entry, _hint(entry, trial, outcome, target)) from cause
    _print(f"Exercise {entry.number}: well done. {entry.means}")
    return True


def _outcome(entry: Exercise, answer: Any, trial: int) -> Any:
    """What the answer gives in this trial. The arguments are new, so that it may write on them."""
    if entry.inputs is None:
        return answer
    try:
        return answer(*entry.inputs()[trial])
    except Exception as error:  # whatever a learner's function raises
        return Raised(error)


def _is_unanswered(outcome: Any) -> bool:
    """Whether the answer is ``...`` or an error from computing with it ("unsupported operand …: 'ellipsis'")."""
    if isinstance(outcome, Raised):
        return isinstance(outcome.error, TypeError | AttributeError) and "ellipsis" in str(outcome.error)
    return outcome is ...


def _function_name(entry: Exercise) -> str:
    return str(entry.solution.__name__)


def _remind(entry: Exercise) -> bool:
    _print(f"Exercise {entry.number} ({entry.title}) waits for your answer: put it where the ... is.")
    return False


def _wrong(entry: Exercise, hint: str) -> WrongAnswer:
    return WrongAnswer(f"Exercise {entry.number}: {hint}")


def _print(text: str) -> None:
    print(text)  # noqa: T201  # the learner reads it under the cell


# --- hints ---


def _hint(entry: Exercise, trial: int, outcome: Any, target: Any) -> str:
    """The hint of the mistake that gives the same outcome, or the numbers."""
    for mistake in entry.mistakes:
        if agree(outcome, _outcome(entry, mistake.answer, trial)):
            return mistake.hint
    if entry.inputs is None:
        return _about_number(entry, outcome)
    arguments = _describe_arguments(entry, trial)
    if isinstance(outcome, Raised):
        return f"called with {arguments}, your function raised {_describe_error(outcome.error)}"
    if outcome is None:
        return f"called with {arguments}, your function returned None. Does it end in return?"
    return f"called with {arguments}, your function {_difference(outcome, comparable(target))}"


def _about_number(entry: Exercise, answer: Any) -> str:
    value = comparable(answer)
    if not isinstance(value, float):
        return f"it asks for one number, and got {_kind(answer)}. Give the number itself."
    if not math.isfinite(value):
        return f"it asks for a finite number, and got {value}."
    return f"{value:g} is not right. Try it: {entry.gives(value)}." if entry.gives else f"{value:g} is not right."


def _difference(outcome: Any, target: Any) -> str:
    """The end of the sentence "your function …"."""
    value = comparable(outcome)
    if isinstance(target, Tensor):
        return _matrix_difference(value, target, outcome)
    if isinstance(target, float):
        if not isinstance(value, float):
            return f"returned {_kind(outcome)}; return one number."
        return f"returned {value:.6g} instead of {target:.6g}. Go through the formula factor by factor."
    if not isinstance(value, list):
        return f"returned {_kind(outcome)}; return a list."
    missing, extra = set(target) - set(value), set(value) - set(target)
    parts = [f"returned a list of length {len(value)} instead of {len(target)}"]
    parts += [f"missing: {min(missing)}"] if missing else []
    parts += [f"too many: {min(extra)[:80]}"] if extra else []
    return "; ".join(parts) + "."


def _matrix_difference(value: Any, target: Tensor, outcome: Any) -> str:
    shape = tuple(target.shape)
    if not isinstance(value, Tensor):
        return f"returned {_kind(outcome)}; return one matrix, a tensor of shape {shape}."
    if value.shape != target.shape:
        return f"returned a tensor of shape {tuple(value.shape)}; the right shape is {shape}."
    if not bool(value.isfinite().all()):
        return "returned a matrix that holds NaN or infinity; look for a division by zero."
    error = norm(value - target) / norm(target)
    return (
        f"returned a matrix of norm {norm(value):.3g}. The right matrix has norm {norm(target):.3g}, "
        f"and the relative error of yours is {error:.2g}. Write down the formula with the shape of each factor."
    )


def _describe_arguments(entry: Exercise, trial: int) -> str:
    assert entry.inputs is not None
    names = inspect.signature(entry.solution).parameters
    return ", ".join(
        f"{name} {_describe_value(value)}" for name, value in zip(names, entry.inputs()[trial], strict=True)
    )


def _describe_value(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"= {value.tolist()}" if value.ndim == 1 else f"of shape {tuple(value.shape)}"
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
