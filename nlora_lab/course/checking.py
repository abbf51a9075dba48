"""Questions to the learner, and answers that explain themselves.

``exercise("2.3")`` asks, ``check("2.3", answer)`` judges, ``solution("2.3")`` is for teachers. A function is
judged by calling it on fresh inputs, made from a fixed seed. A wrong answer that agrees with a known
mistake on the first input where it is wrong raises that mistake's hint; any other one, the numbers.
The questions themselves stand in :mod:`nlora_lab.course.solutions`, :mod:`nlora_lab.course.solutions_adapters`,
:mod:`nlora_lab.course.solutions_lab`, :mod:`nlora_lab.course.solutions_rates`, :mod:`nlora_lab.course.solutions_paper` and
:mod:`nlora_lab.course.solutions_real`.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from nlora_lab.core.errors import InputError
from nlora_lab.course import (
    solutions,
    solutions_adapters,
    solutions_lab,
    solutions_paper,
    solutions_rates,
    solutions_real,
)
from nlora_lab.course.solutions import Exercise

TOLERANCE = 1e-4  # relative: the float32 of a learner's own conversions passes, no known mistake does
TABLES = (
    solutions.TABLE, solutions_adapters.TABLE, solutions_lab.TABLE, solutions_rates.TABLE, solutions_paper.TABLE,
    solutions_real.TABLE,
)  # fmt: skip
EXERCISES: dict[str, Exercise] = {asked.number: asked for table in TABLES for asked in table}


class WrongAnswer(InputError):
    """An answer that is not right yet; the message is a hint at why."""


class Text(str):
    """Text that a notebook shows line by line, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def exercise(number: str) -> Text:
    """The question called ``number``, and how its answer is compared.

    Raises :class:`InputError` for a number that no exercise has.
    """
    asked = _find(number)
    wanted = _name(asked) if asked.inputs else "your number"
    return Text(
        f"Exercise {asked.number}: {asked.title}\n\n{asked.question}\n\n"
        f'Then: check("{asked.number}", {wanted}). Numbers are compared to a relative error of {TOLERANCE:g}.'
    )


def solution(number: str) -> Text:
    """The solution of exercise ``number``: a function's source, or a number with its reason.

    Raises :class:`InputError` for a number that no exercise has.
    """
    asked = _find(number)
    if asked.inputs is None:
        return Text(f"{asked.solution:g}\n{asked.reason}")
    return Text(inspect.getsource(asked.solution))


def check(number: str, answer: Any) -> bool:
    """Judge ``answer``, a number or the function asked for; ``True`` and a "well done" if it is right.

    ``...``, a function that returns ``...`` and one that still computes with ``...`` are unanswered: that prints
    a nudge and returns ``False``. Numbers may be of Python, numpy or torch, matrices of numpy or torch.
    Raises :class:`WrongAnswer` with a hint for anything else, an answer of the wrong type and a
    function that raises included; :class:`InputError` for a number that no exercise has.
    """
    asked = _find(number)
    if answer is ...:
        return _nudge(asked)
    if asked.inputs is not None and not callable(answer):
        raise _wrong(asked, f"it asks for the function {_name(asked)} itself, and got {_kind(answer)}. {_bare(asked)}")
    for trial in range(len(asked.inputs()) if asked.inputs else 1):
        got = _outcome(asked, answer, trial)
        if _unanswered(got):
            return _nudge(asked)
        want = _outcome(asked, asked.solution, trial)
        if not agree(got, want):
            raise _wrong(asked, _hint(asked, trial, got, want)) from (got.error if isinstance(got, Raised) else None)
    _say(f"Exercise {asked.number}: well done. {asked.means}")
    return True


# --- the exercise and what it is given ---


@dataclass(frozen=True)
class Raised:
    """What a function did instead of returning."""

    error: Exception


def _find(number: str) -> Exercise:
    asked = EXERCISES.get(str(number))
    if asked is None:
        raise InputError(f"exercise {number!r} is not known; choose one of: {', '.join(EXERCISES)}")
    return asked


def _outcome(asked: Exercise, answer: Any, trial: int) -> Any:
    """What ``answer`` gives in this trial; its arguments are its own, it may write on them."""
    if asked.inputs is None:
        return answer
    try:
        return answer(*asked.inputs()[trial])
    except Exception as error:  # whatever a learner's function raises
        return Raised(error)


def _unanswered(got: Any) -> bool:
    """``...`` came out, or something was computed with it ("unsupported operand …: 'ellipsis' and 'Tensor'")."""
    if isinstance(got, Raised):
        return isinstance(got.error, TypeError | AttributeError) and "ellipsis" in str(got.error)
    return got is ...


def _name(asked: Exercise) -> str:
    return str(asked.solution.__name__)


def _bare(asked: Exercise) -> str:
    return f'Hand it over without calling it: check("{asked.number}", {_name(asked)}).'


def _nudge(asked: Exercise) -> bool:
    _say(f"Exercise {asked.number} ({asked.title}) waits for your answer: put it where the ... is.")
    return False


def _wrong(asked: Exercise, hint: str) -> WrongAnswer:
    return WrongAnswer(f"Exercise {asked.number}: {hint}")


def _say(text: str) -> None:
    print(text)  # noqa: T201  # what a learner reads under the cell


# --- comparing ---


def agree(got: Any, want: Any) -> bool:
    """Whether two outcomes are the same: value for value within ``TOLERANCE``, or the same exception."""
    if isinstance(want, Raised):
        return isinstance(got, Raised) and (type(got.error), str(got.error)) == (type(want.error), str(want.error))
    given, asked = plain(got), plain(want)
    if isinstance(asked, Tensor):
        if not isinstance(given, Tensor) or given.shape != asked.shape:
            return False
        return _norm(given - asked) <= TOLERANCE * _norm(asked)  # False where NaN or infinity is in it
    if isinstance(asked, float):
        return isinstance(given, float) and abs(given - asked) <= TOLERANCE * max(abs(asked), TOLERANCE)
    return isinstance(given, list) and isinstance(asked, list) and sorted(given) == sorted(asked)


def plain(value: Any) -> Tensor | float | list[str] | None:
    """``value`` as one of the three things an answer can be; ``None`` if it is none of them.

    A number becomes a float, an array or tensor a float64 tensor on the CPU, a list (set, tuple, column or table)
    the text of each of its items, with numpy's numbers turned into Python's.
    """
    try:
        if hasattr(value, "to_frame") or hasattr(value, "itertuples"):  # pandas, not imported here
            return [repr(_item(row)) for row in _rows(value)]
        number = _number(value)
        if number is not None:
            return number
        if isinstance(value, Tensor) or (hasattr(value, "tolist") and hasattr(value, "ndim")):
            return _tensor(value)
        if isinstance(value, list | tuple | set | frozenset):
            return [repr(_item(item)) for item in value]
    except Exception:  # an object that does not even keep to its own protocol is no answer
        return None
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) or hasattr(value, "ndim"):
        if math.prod(value.shape) != 1:
            return None
        value = value.item()
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None


def _tensor(value: Any) -> Tensor | list[str]:
    if not isinstance(value, Tensor):
        if getattr(value.dtype, "kind", "O") in "OSUT":  # an array of words or of pairs
            return [repr(_item(item)) for item in value.tolist()]
        value = torch.tensor(value.tolist())
    if value.is_complex() or value.ndim == 0:
        raise TypeError("complex numbers and single truth values are no answer to any exercise")
    dense: Tensor = value.detach() if value.layout == torch.strided else value.detach().to_dense()
    return dense.to("cpu", torch.float64)


def _rows(table: Any) -> list[Any]:
    return list(table.itertuples(index=False, name=None)) if hasattr(table, "itertuples") else list(table)


def _item(item: Any) -> Any:
    if isinstance(item, tuple | list):
        return tuple(_item(part) for part in item)
    return item.item() if hasattr(item, "item") else item


def _norm(X: Tensor) -> float:
    return float(torch.linalg.vector_norm(X))


# --- what to say ---


def _hint(asked: Exercise, trial: int, got: Any, want: Any) -> str:
    """The hint of the mistake that gives what the learner's answer gave, or the numbers."""
    for mistake in asked.mistakes:
        if agree(got, _outcome(asked, mistake.answer, trial)):
            return mistake.hint
    if asked.inputs is None:
        return _about_number(asked, got)
    given = _arguments(asked, trial)
    if isinstance(got, Raised):
        return f"called with {given}, your function raised {_error(got.error)}"
    if got is None:
        return f"called with {given}, your function returned None. Does it end in return?"
    return f"called with {given}, your function {_difference(plain(got), plain(want), got)}"


def _about_number(asked: Exercise, got: Any) -> str:
    value = plain(got)
    if not isinstance(value, float):
        return f"it asks for one number, and got {_kind(got)}. Give the number itself."
    if not math.isfinite(value):
        return f"it asks for a finite number, and got {value}."
    return f"{value:g} is not it. Try it out: {asked.gives(value)}." if asked.gives else f"{value:g} is not it."


def _difference(given: Any, asked: Any, raw: Any) -> str:
    """The end of the sentence "your function …"."""
    if isinstance(asked, Tensor):
        shape = tuple(asked.shape)
        if not isinstance(given, Tensor):
            return f"returned {_kind(raw)}; return one matrix, a tensor of shape {shape}."
        if given.shape != asked.shape:
            return f"returned a tensor of shape {tuple(given.shape)}; the shape asked for is {shape}."
        if not bool(given.isfinite().all()):
            return "returned a matrix with NaN or infinity in it; look for a division by zero."
        off = _norm(given - asked) / _norm(asked)
        return (
            f"returned a matrix of norm {_norm(given):.3g}; the one asked for has norm {_norm(asked):.3g}, "
            f"and yours is off by {off:.2g} of that. Write the formula out with the shape of each factor beside it."
        )
    if isinstance(asked, float):
        if not isinstance(given, float):
            return f"returned {_kind(raw)}; return one number."
        return f"returned {given:.6g}; {asked:.6g} was asked for. Go through the formula factor by factor."
    if not isinstance(given, list):
        return f"returned {_kind(raw)}; return a list."
    missing, extra = set(asked) - set(given), set(given) - set(asked)
    words = [f"returned a list of {len(given)}; one of {len(asked)} was asked for"]
    words += [f"missing: {min(missing)}"] if missing else []
    words += [f"not asked for: {min(extra)[:80]}"] if extra else []
    return "; ".join(words) + "."


def _arguments(asked: Exercise, trial: int) -> str:
    assert asked.inputs is not None
    names = inspect.signature(asked.solution).parameters
    return ", ".join(f"{name} {_brief(value)}" for name, value in zip(names, asked.inputs()[trial], strict=True))


def _brief(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"= {value.tolist()}" if value.ndim == 1 else f"of shape {tuple(value.shape)}"
    return f"of {len(value)} rows" if hasattr(value, "iloc") else f"= {value!r}"


def _kind(value: Any) -> str:
    """A type in words: ``None``, a function, a str."""
    if value is None:
        return "None"
    if isinstance(value, str):
        return "text"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _error(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
