"""Reading the final answer from a text, as each task writes it. Without torch, so that it loads at once."""

from __future__ import annotations

import re
from decimal import Decimal

ANSWER = re.compile(r"The answer is (-?\d+)\.")
MARKED = re.compile(
    r"(?:####|[Tt]he (?:final )?answer is:?)[ \t]*([^\n]+?)[ \t]*(?=####|[Tt]he (?:final )?answer is|$)", re.MULTILINE
)
WRAPPED = re.compile(r"\\(?:boxed|text)\{([^{}]*)\}")
NUMBER = re.compile(
    r"[\s$*]*(-?)[\s$]*(\d[\d,]*(?:\.\d+)?|\.\d+)"
    # the end, perhaps with a remark in brackets; or a unit, which is longer than the x of a formula
    r"(?=[\s.*$]*(?:\([^()]*\))?[\s.]*$|%|\.?\s+[A-Za-z]{2,}|[A-Za-z]{2,}[\s.]*$)"
)
NOTE = re.compile(r"<<[^<>]*>>")
NEXT_QUESTION = "\nQuestion:"


def final_number(text: str) -> str | None:
    """N of the first "The answer is N.", or None; ``"012"`` is not read as 12."""
    found = ANSWER.search(text)
    return found.group(1) if found else None


def marked_answer(text: str) -> str | None:
    """What the last "#### N" or "The answer is: N" says, as GSM8K and MetaMathQA write it; None where there is neither.

    Numbers come in one form (:func:`plain_number`): "$1,200.0" is "1200". Other answers, such as MetaMathQA's formulas,
    come as they are. A text that goes on with another "Question:" ends there: base models invent one.
    """
    found = MARKED.findall(text.split(NEXT_QUESTION)[0])
    if not found:
        return None
    said = WRAPPED.sub(r"\1", found[-1].replace("−", "-")).strip()
    return plain_number(said) or said.removesuffix(".").strip() or None


def plain_number(text: str) -> str | None:
    """The number that ``text`` begins with, without "$", "," and idle zeros: "-$1,200.50 each" is "-1200.5".

    None for what is no number or a longer formula: "x", "3x+2", "1/2".
    """
    found = NUMBER.match(text)
    if found is None:
        return None
    value = Decimal(found.group(2).replace(",", ""))
    digits = f"{value:f}"
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    digits = digits.lstrip("0") or "0"
    digits = f"0{digits}" if digits.startswith(".") else digits
    return digits if digits == "0" else found.group(1) + digits


def full_answer(text: str) -> str | None:
    """All of the text without the space around it, upper and lower case kept; None where there is none."""
    return text.strip() or None


def without_notes(text: str) -> str:
    """``text`` without GSM8K's calculator notes: "48/2 = <<48/2=24>>24" is "48/2 = 24"."""
    return NOTE.sub("", text)
