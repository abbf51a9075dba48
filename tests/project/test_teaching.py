"""What docs/teaching.md says about the notebooks is in the notebooks."""

from __future__ import annotations

import json
import re

import pytest
from factories import ROOT

GUIDE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
PLACES = re.findall(r"\[(\d\d) · ([^\]]+)\]\(\.\./notebooks/([\w.]+)\)", GUIDE)
ROWS = [line for line in GUIDE.splitlines() if line.startswith("| [") and line.count("|") == 5]


def cells(name):
    return json.loads((ROOT / "notebooks" / name).read_text(encoding="utf-8"))["cells"]


def headings(name):
    text = "\n".join("".join(c["source"]) for c in cells(name) if c["cell_type"] == "markdown")
    return re.findall(r"^#+ (.*)$", text, flags=re.M)


def outputs(name):
    texts = []
    for cell in cells(name):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts += ["".join(output.get("text", "")), *("".join(data.get(kind, "")) for kind in ("text/plain",))]
    return "\n".join(texts)


def test_every_part_that_is_named_exists():
    assert len(PLACES) >= 25
    assert {f"{number} · {heading}" for number, heading, name in PLACES if heading not in headings(name)} == set()
    assert all(name.startswith(number) for number, _, name in PLACES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[3:40])
def test_what_the_notebook_shows_is_in_its_outputs(row):
    (name,) = re.findall(r"\.\./notebooks/([\w.]+)", row)
    shown = row.split("|")[3]
    quoted = re.findall(r"`([^`]+)`", shown)
    assert quoted or "the figure" in shown
    assert [text for text in quoted if text not in outputs(name)] == []


def test_there_are_rows_to_look_at():
    assert len(ROWS) >= 14


def test_every_notebook_of_the_course_is_used():
    assert {name[:2] for _, _, name in PLACES} >= {"00", "01", "02", "03", "04", "05", "06", "07", "09"}


def test_the_rubric_of_the_audit_is_that_of_the_capstone():
    rubric = [line for line in GUIDE.splitlines() if re.match(r"\| the (claim|prediction|comparison|verdict) \|", line)]
    notebook = "".join("".join(c["source"]) for c in cells("09_capstone.ipynb"))
    assert len(rubric) == 4
    assert [line for line in rubric if line not in notebook] == []


@pytest.mark.parametrize(("route", "total"), [("A: 90 minutes", 90), ("B: half a day", 220)])
def test_the_minutes_of_a_route_add_up(route, total):
    part = GUIDE.partition(f"## Route {route}\n")[2].partition("\n## ")[0]
    minutes = [int(m) for m in re.findall(r"^\| (\d+) \|", part, flags=re.M)]
    assert sum(minutes) == total


def test_the_commands_of_the_guide_are_valid(capsys):
    from nlora_lab.cli import main as cli

    commands = re.findall(r"^ *(nlora-lab (?!doctor)[^#\n]+?)(?: {2,}#.*)?$", GUIDE, flags=re.M)
    commands += re.findall(r"`(nlora-lab [^`]+)`", GUIDE)
    assert len(commands) >= 6
    for command in commands:
        options, rest = cli._parser().parse_known_args(command.split()[1:])
        assert callable(options.command)
        assert rest == []
