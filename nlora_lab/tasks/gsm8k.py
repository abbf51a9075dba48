"""GSM8K and MetaMathQA: school problems in words, worked out in text, the final answer marked.

Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021; Yu et al., "MetaMath: Bootstrap Your Own
Mathematical Questions for Large Language Models", 2023.
"""

from __future__ import annotations

from nlora_lab.core.errors import InputError
from nlora_lab.tasks.files import Part
from nlora_lab.tasks.final_answers import marked_answer, without_notes

GSM8K, METAMATH = "openai/gsm8k", "meta-math/MetaMathQA"


def gsm8k_rows(part: Part) -> list[dict[str, str]]:
    """``prompt``, ``target`` and ``answer`` from the columns ``question`` and ``answer``."""
    return _rows(part, "question", "answer", "#### N")


def metamath_rows(part: Part) -> list[dict[str, str]]:
    """The same from the columns ``query`` and ``response``."""
    return _rows(part, "query", "response", "The answer is: N")


def metamath_groups(part: Part) -> list[str]:
    """The problem that each row is about: MetaMathQA tells each one in several wordings."""
    return part.texts("original_question" if "original_question" in part.columns else "query")


def _rows(part: Part, question: str, answer: str, mark: str) -> list[dict[str, str]]:
    """The target is the whole worked answer, without the calculator notes: a model has no calculator to read them."""
    rows = []
    pairs = zip(part.texts(question), part.texts(answer), strict=True)
    for row, (asked, worked) in enumerate(pairs, start=1):
        worked = without_notes(worked.strip())
        final = marked_answer(worked)
        if final is None:
            raise InputError(f"{part.where}, row {row}: {answer!r} has no final answer; end it with {mark!r}")
        rows.append({"prompt": f"Question: {asked.strip()}\nAnswer:", "target": f" {worked}", "answer": final})
    return rows
