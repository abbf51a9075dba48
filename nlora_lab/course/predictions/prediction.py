"""A prediction: a question, a guess, and a measurement that stays hidden until the guess is committed."""

from __future__ import annotations

from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.validation import check_text
from nlora_lab.course.predictions.kinds import Kind

OPEN, PENDING = "open", "not measured yet"


class Prediction:
    """A question whose measurement is shown after a guess.

    Args:
        key: a short name, for example "0.1".
        question: what is to be predicted, in one sentence.
        answer: the measurement, or a function without arguments that returns it. The function is called after the
            guess, and again later if it raised an exception.
        kind: the kind of the prediction.

    Attributes:
        key: the short name.
        question: the text.
        kind: the kind.
        guess: the committed guess, or ``None``.
        measured: the measurement, or ``None`` while it is hidden or not there yet.
        missing: why the measurement is not there yet, or nothing.

    Raises:
        InputError: the key or the question is blank, or a given answer does not fit the kind.
    """

    def __init__(self, key: str, question: str, answer: Any, kind: Kind) -> None:
        self.key, self.question, self.kind = check_text("key", key), check_text("question", question), kind
        self._answer = answer if callable(answer) else kind.measurement(answer)
        self.guess: Any = None
        self.measured: Any = None
        self.missing = ""

    def commit(self, guess: Any) -> None:
        """Commit a guess, and measure. A committed guess stays.

        Args:
            guess: one of the choices, a number, or one number per point of the curve.

        Raises:
            InputError: the guess does not fit, or another guess is committed.
        """
        value = self.kind.guess(guess)
        if self.guess is not None and value != self.guess:
            raise InputError(
                f"prediction {self.key} has the guess {self.kind.text(self.guess)}, which stays; "
                "restart the kernel to predict again"
            )
        self.guess = value
        self.measure()

    def measure(self) -> bool:
        """Get the measurement, if a guess is committed.

        Returns:
            ``True`` if the measurement is there. If not, ``missing`` says why.
        """
        if self.guess is None:
            return False
        if self.measured is None:
            try:
                answer = self._answer() if callable(self._answer) else self._answer
                self.measured, self.missing = self.kind.measurement(answer), ""
            except Exception as error:  # usually a NameError: the cell that measures has not run
                self.missing = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return self.measured is not None

    def row(self) -> dict[str, str]:
        """Return key, question, guess, measurement and distance as text, for a table."""
        you = measured = apart = ""
        if self.guess is None:
            you = OPEN
        else:
            you = self.kind.text(self.guess)
            measured = self.kind.text(self.measured) if self.measure() else PENDING
            apart = self.kind.compare(self.guess, self.measured) if self.measured is not None else ""
        return {"prediction": self.key, "question": self.question, "you": you, "measured": measured, "apart": apart}

    def __repr__(self) -> str:
        row = self.row()
        if self.guess is None:
            return f"Prediction {self.key}, {OPEN}: {self.question} ({self.kind.range()})"
        apart = f" ({row['apart']})" if row["apart"] else ""
        return f"Prediction {self.key}: {self.question}\nyou: {row['you']}\nmeasured: {row['measured']}{apart}"
