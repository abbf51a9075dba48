"""The JSON record of a run: its format, and the one check of every value in it.

A record may have been edited by hand, cut short, or written by a newer version.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from nlora_lab.core.errors import InputError

FORMAT = 2
"""The format number. It rises whenever a field changes its meaning. Since 2, the history may leave out step and lr."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    # None stands for NaN and infinity, which JSON lacks; an integer of any size would not fit into a float
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or _is_count(value) or (isinstance(value, int) and _is_count(-value))


def _list_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


Kind = tuple[str, Callable[[Any], bool]]
"""What a value must be: in words, and as a test."""

TEXT: Kind = ("text", _is_text)
TEXTS: Kind = ("a list of texts", _list_of(_is_text))
TEXTS_BY_NAME: Kind = ("texts by name", lambda value: isinstance(value, dict) and all(map(_is_text, value.values())))
FLAG: Kind = ("true or false", lambda value: isinstance(value, bool))
COUNT: Kind = ("a whole number of at least 0", _is_count)
COUNTS: Kind = ("a list of whole numbers", _list_of(_is_count))
NUMBERS_BY_NAME: Kind = (
    "lists of numbers and nulls by name, equally long",
    lambda value: (
        isinstance(value, dict) and all(map(NUMBERS[1], value.values())) and len(set(map(len, value.values()))) < 2
    ),
)
SECONDS: Kind = ("a number of at least 0", lambda value: value is not None and _is_number(value) and value >= 0)
NUMBER: Kind = ("a number or null", _is_number)
NUMBERS: Kind = ("a list of numbers and nulls", _list_of(_is_number))
LOSSES: Kind = (
    "a list of numbers of at least 0 and nulls", _list_of(lambda value: _is_number(value) and (value or 0) >= 0)
)  # fmt: skip
SHARE: Kind = ("a number from 0 to 1, or null", lambda value: _is_number(value) and 0 <= (value or 0) <= 1)
SHARES = ("accuracy", "f1")
"""The metrics that are parts of a whole."""

FIELDS = {
    "trainable": COUNT, "seconds": SECONDS, "peak_memory": COUNT, "diverged": FLAG, "stopped": FLAG, "device": TEXT,
    "versions": TEXTS_BY_NAME,
}  # fmt: skip
"""The fields of ``Run`` that every record has under their own names."""

LATER_FIELDS = {"answers": TEXTS, "together": COUNT, "error": TEXT, "revision": TEXT}
"""The fields of ``Run`` that the first records lack."""

LABELS = "labels"
"""The names of the classes. The record of a run without a classification head lacks it."""

HELD_OUT = "held_out"
"""The field with the measurements on the way. A record without any lacks it."""


def check_record(record: Any) -> None:
    """Check every value of a record except its config, which ``RunConfig`` checks.

    Args:
        record: the JSON value that was read.

    Raises:
        InputError: a value is not what its field holds, or the format is newer. The message names the field.
        KeyError: a field is missing.
        TypeError: the record is not made of objects as a record is.
        AttributeError: likewise.
    """
    if not _is_count(record["format"]):
        raise InputError(f"format={record['format']!r} in the record must be a whole number; make the run again")
    if record["format"] > FORMAT:
        raise InputError(f"the record has format {record['format']}, newer than {FORMAT}; update nlora-lab")
    for name, value, (words, is_right) in _values(record):
        if not is_right(value):
            raise InputError(
                f"{name}={repr(value)[:80]} in the record must be {words}; correct it, or make the run again"
            )
    _check_steps(record)


def _check_steps(record: Any) -> None:
    """Check that a run has its steps in order, and all that its config asks for, unless it says that it ended early."""
    history, wanted = record["history"], record["config"]["steps"]
    count = len(history["loss"])
    numbers = history.get("step", [])
    if len(numbers) == count and numbers != list(range(1, count + 1)):  # a shorter list is found later
        raise InputError("history.step in the record must be 1, 2, 3 and so on; correct it, or make the run again")
    if count > wanted or (count < wanted and not (record["diverged"] or record["stopped"] or record.get("error"))):
        raise InputError(
            f"the record of a run of {wanted} steps has {count} in its history; correct it, or make the run again"
        )


def _values(record: Any) -> Iterator[tuple[str, Any, Kind]]:
    """Yield the name, the value and the kind of every value to check."""
    yield "config.model", record["config"]["model"], TEXT
    for name, kind in FIELDS.items():
        yield name, record[name], kind
    for name, kind in LATER_FIELDS.items():
        if name in record:
            yield name, record[name], kind
    for name, value in record["metrics"].items():
        yield f"metrics.{name}", value, SHARE if name in SHARES else NUMBER
    yield LABELS, record.get(LABELS, []), TEXTS
    yield HELD_OUT, record.get(HELD_OUT, {}), NUMBERS_BY_NAME
    for name, column in record["history"].items():
        yield f"history.{name}", column, COUNTS if name == "step" else LOSSES if name == "loss" else NUMBERS


def number_or_null(value: float) -> float | None:
    """Return ``value``, or ``None`` for NaN and infinity, which JSON lacks."""
    return value if math.isfinite(value) else None


def number_or_nan(value: float | None) -> float:
    """Return ``value``, or NaN for ``None``, which stands for it in JSON."""
    return math.nan if value is None else value
