"""``predict`` and ``prediction_table``: the predictions of this kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.course.predictions.kinds import Choice, Curve, Kind, Number
from nlora_lab.course.predictions.panel import PredictionPanel
from nlora_lab.course.predictions.prediction import Prediction

if TYPE_CHECKING:
    import pandas as pd

ASKED: dict[str, Prediction] = {}
"""The predictions of this kernel, by key, in the order in which they were asked."""

COLUMNS = ["prediction", "question", "you", "measured", "apart"]


def predict(
    key: str, question: str, answer: Any, *, choices: Sequence[str] | None = None, at: Sequence[float] | None = None,
    low: float | None = None, high: float | None = None, log: bool = False, unit: str = "", guess: Any = None,
    show: Any = None,
) -> Prediction:  # fmt: skip
    """Ask for a prediction, and show the measurement once the guess is committed.

    In a notebook this is a small widget: radio buttons, a slider or one slider per point, and a button that commits
    the guess. Without widgets, pass ``guess=`` or call ``commit`` of the result. A committed guess stays until the
    kernel restarts, also if the cell runs again.

    Examples:
        A choice, a number, and a curve at three ranks. Names in a ``lambda`` may be defined in a later cell::

            nl.predict("0.2", "Which method learns most?", lambda: winner, choices=["LoRA", "SLoRA", "NLoRA"])
            nl.predict("0.1", "How many of 200 problems are right?", lambda: right, low=0, high=200)
            curve = lambda: nl.error_curve(W, 32)[[0, 7, 31]]
            nl.predict("1.4", "The relative error at each rank", curve, at=[1, 8, 32], low=0, high=1)

            nl.predict("0.1", "How many of 200 problems are right?", 0, low=0, high=200, guess=20)  # without widgets
            nl.prediction_table()  # at the end: you and the measurement

    Args:
        key: a short name, for example "0.1". It names the prediction in tables and in files.
        question: what is to be predicted, in one sentence.
        answer: the measurement, or a function without arguments that returns it. The function is called only after
            the guess. If it raises an exception, for example because a later cell has not run, the guess is kept and
            the measurement can be shown later. Numbers may be of Python, numpy or torch.
        choices: 2 to 12 texts: the prediction is one of them.
        at: 2 to 12 positions in rising order: the prediction is a curve, one number per position.
        low: the smallest guess. A curve has 0 if both ends are left out. A number then has no limits.
        high: the largest guess. A curve has 1 if both ends are left out.
        log: a logarithmic slider. Guess and measurement are compared by their factor.
        unit: what stands behind a number, for example "%".
        guess: commit this guess at once.
        show: what is displayed below the measurement, for example a lab whose recorded curves would give the answer
            away.

    Returns:
        The prediction. Its ``guess`` and ``measured`` are ``None`` until they are known.

    Raises:
        InputError: the arguments do not go together, or a guess or an answer does not fit.
    """
    prediction = PredictionPanel(key, question, answer, _kind(choices, at, low, high, log, unit), show)
    before = ASKED.get(prediction.key)
    if before is not None and (before.question, before.kind) == (prediction.question, prediction.kind):
        prediction.guess = before.guess
    ASKED[prediction.key] = prediction
    if guess is not None:
        prediction.commit(guess)
    return prediction


def prediction_table() -> pd.DataFrame:
    """Return the predictions of this kernel: you and the measurement.

    A measurement stays hidden while its prediction is open.

    Returns:
        One row per prediction, all texts. Columns: prediction, question, you, measured, apart.
    """
    import pandas as pd

    return pd.DataFrame([prediction.row() for prediction in ASKED.values()], columns=COLUMNS)


def _kind(
    choices: Sequence[str] | None, at: Sequence[float] | None, low: float | None, high: float | None, log: bool,
    unit: str,
) -> Kind:  # fmt: skip
    if choices is not None:
        if isinstance(choices, str):
            raise InputError(f"choices={choices!r} must be a list of texts, for example ['yes', 'no']")
        if at is not None or low is not None or high is not None or log or unit:
            raise InputError("choices= goes without at=, low=, high=, log= and unit=; leave those out")
        return Choice(tuple(choices))
    if at is None:
        return Number(low, high, log, unit)
    places = at.tolist() if hasattr(at, "tolist") else at
    if isinstance(places, str) or not isinstance(places, Sequence):
        raise InputError(f"at={at!r} must be a list of numbers, for example [1, 2, 4, 8]")
    if low is None and high is None:
        low, high = (1e-3 if log else 0.0), 1.0
    return Curve(tuple(places), low, high, log, unit)  # type: ignore[arg-type]  # one end alone is refused there
