"""GSM8K and MetaMathQA: school problems with worked answers, the final answer marked.

Sources: Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021. Yu et al., "MetaMath: Bootstrap Your Own
Mathematical Questions for Large Language Models", 2023.
"""

from __future__ import annotations

from nlora_lab.core.errors import InputError
from nlora_lab.tasks.final_answers import marked_answer, without_notes
from nlora_lab.tasks.sources import Part

GSM8K_ID, METAMATH_ID = "openai/gsm8k", "meta-math/MetaMathQA"


def gsm8k_rows(part: Part) -> list[dict[str, str]]:
    """Make rows of ``prompt``, ``target`` and ``answer`` from the columns ``question`` and ``answer``."""
    return _rows(part, "question", "answer", "#### N")


def metamath_rows(part: Part) -> list[dict[str, str]]:
    """Make rows of ``prompt``, ``target`` and ``answer`` from the columns ``query`` and ``response``."""
    return _rows(part, "query", "response", "The answer is: N")


def metamath_groups(part: Part) -> list[str]:
    """Return the original problem of each row. MetaMathQA has several wordings of the same problem."""
    return part.texts("original_question" if "original_question" in part.columns else "query")


def _rows(part: Part, question: str, answer: str, mark: str) -> list[dict[str, str]]:
    """Use the worked answer as the target, without calculator notes: a model has no calculator that reads them."""
    rows = []
    pairs = zip(part.texts(question), part.texts(answer), strict=True)
    for row, (problem, worked) in enumerate(pairs, start=1):
        worked = without_notes(worked.strip())
        final = marked_answer(worked)
        if final is None:
            raise InputError(f"{part.where}, row {row}: {answer!r} has no final answer; end it with {mark!r}")
        rows.append({"prompt": f"Question: {problem.strip()}\nAnswer:", "target": f" {worked}", "answer": final})
    return rows
