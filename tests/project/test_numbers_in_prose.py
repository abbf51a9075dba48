"""A number in the prose of a notebook stands in its outputs or its code, or has another source here."""

from __future__ import annotations

import json
import math
import re

import pytest
from factories import ROOT

import nlora_lab as nl

NOTEBOOKS = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
NUMBER = r"(?<![\w.])(\d[\d,]*\.\d+|\d[\d,]*(?= (?:%|points|percent|times)))"
ELSEWHERE = {
    ("00", "0.37"): "e⁻¹", ("00", "50"): "0.01 / 0.0002", ("01", "10.5"): "the number of a theorem",
    ("02", "0.37"): "in the picture above it", ("03", "1.3"): "the test below", ("04", "2.4"): "8 · log₁₀ 2",
    ("04", "22"): "figure 4 of the paper", ("04", "46"): "figure 4 of the paper", ("04", "3.67"): "the paper",
    ("06", "2.8"): "√8", ("07", "3.67"): "the paper", ("09", "9.6"): "a section", ("09", "9.7"): "a section",
    ("09", "9.8"): "a section",
}  # fmt: skip


def prose(source: str) -> str:
    """The text of a cell without quotations, code, formulas, links, headings and stated times."""
    for pattern in (r"(?m)^>.*$", r"(?s)```.*?```", r"`[^`]*`", r"\$[^$]*\$", r"\]\([^)]*\)", r"(?m)^#.*$"):
        source = re.sub(pattern, " ", source)
    return re.sub(r"(?s)\*\*Time\.\*\*.*?\n\n", " ", source)


def shown(notebook: dict) -> list[float]:
    """All numbers in the code and in the text outputs of a notebook."""
    texts = []
    for cell in (c for c in notebook["cells"] if c["cell_type"] == "code"):
        texts.append("".join(cell["source"]))
        for output in cell["outputs"]:
            texts.append("".join(output.get("text", "")))
            texts += ["".join(v) for kind, v in output.get("data", {}).items() if kind.startswith("text/")]
    found = re.findall(r"(?<![\w.])\d[\d,]*\.?\d*(?:e-?\d+)?", "\n".join(texts))
    return [float(number.replace(",", "")) for number in found]


def unsupported(notebook: dict) -> list[tuple[str, str]]:
    """The numbers in prose that no output has to the same digits, as they are or as a share, with the words around."""
    known, missing = shown(notebook), []
    for cell in (c for c in notebook["cells"] if c["cell_type"] == "markdown"):
        text = prose("".join(cell["source"]))
        for found in re.finditer(NUMBER, text):
            digits = len(found[1].partition(".")[2])
            value, within = float(found[1].replace(",", "")), 0.5 * 10**-digits + 1e-9
            if not any(abs(x - value) <= within or abs(100 * x - value) <= within for x in known):
                missing.append((found[1], text[max(0, found.start() - 30) : found.end() + 20]))
    return missing


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_number_in_prose_is_in_an_output(name):
    notebook = json.loads((ROOT / "notebooks" / name).read_text(encoding="utf-8"))
    assert [row for row in unsupported(notebook) if (name[:2], row[0]) not in ELSEWHERE] == []


def test_a_number_that_nothing_shows_is_found():
    def cell(kind, text, outputs=()):
        return {"cell_type": kind, "source": text, "outputs": [{"text": o} for o in outputs]}

    code = cell("code", "f(3)", ["0.905 of 12"])
    right = cell("markdown", "It is 90.5 %, or 0.91. > not `4.44` and $5.55$\n\n> 6.66 % were reported")
    wrong = cell("markdown", "It is 20 points, not 12.5 %.")
    assert unsupported({"cells": [code, right]}) == []
    assert [number for number, _ in unsupported({"cells": [code, wrong]})] == ["20", "12.5"]


def test_the_numbers_that_are_computed_elsewhere():
    embedding = next(w for w in nl.models.list_weights("embedded") if "embed" in w.name).read()
    s = nl.singular_values(embedding)
    assert float(s.square().sum() / s[0] ** 2) == pytest.approx(1.3, abs=0.05)
    assert (math.exp(-1), 0.01 / 2e-4, 8 * math.log10(2), math.sqrt(8)) == pytest.approx((0.37, 50, 2.4, 2.8), rel=0.02)
