"""The solution edition passes every check, and slides hold back what is to be predicted."""

from __future__ import annotations

import json

import nbformat
import pytest
from factories import ROOT

from nlora_lab.core.errors import InputError
from nlora_lab.course.registry import ALL_EXERCISES
from nlora_lab.course.teaching import editions
from nlora_lab.course.teaching.editions import CHECK, mark_slides, solve, write_editions

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def sources(notebook):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_in_the_solution_edition_every_check_says_well_done(path, capsys):
    cells = sources(solve(read(path)))
    numbers = [n for cell in cells for n in CHECK.findall(cell)]
    assert set(numbers) == {n for n in ALL_EXERCISES if n.split(".")[0] == path.name[:2].lstrip("0")}
    names = {}
    exec("import torch\nimport nlora_lab as nl", names)
    for before, cell in zip(["", *cells], cells, strict=False):
        if CHECK.search(cell):
            # the definition stands in the cell before, if the check has no answer of its own
            exec(before if "=" not in cell.partition("nl.check")[0] else "", names)
            exec(cell, names)
    said = capsys.readouterr().out
    assert [f"Exercise {n}: well done" in said for n in numbers] == [True] * len(numbers)


def test_solving_changes_only_the_cells_of_exercises():
    notebook = read(NOTEBOOKS[1])
    changed = [
        (a, b) for a, b in zip(notebook["cells"], solve(notebook)["cells"], strict=True) if a != b
    ]  # fmt: skip
    assert len(changed) >= 4
    assert all("..." in "".join(a["source"]) or "nl.check" in "".join(a["source"]) for a, _ in changed)
    assert all(b["outputs"] == [] for _, b in changed)


def test_slides_hold_back_what_is_to_be_predicted_and_leave_out_exercises():
    marked = mark_slides(read(NOTEBOOKS[1]))["cells"]
    kinds = [cell["metadata"]["slideshow"]["slide_type"] for cell in marked]
    texts = ["".join(cell["source"]) for cell in marked]
    assert kinds[0] == "slide"
    predicted = [i for i, text in enumerate(texts) if "**Predict" in text]
    assert len(predicted) >= 3
    for i in predicted:
        later = next(j for j in range(i + 1, len(marked)) if marked[j]["cell_type"] == "code" and kinds[j] != "skip")
        assert kinds[later] == "fragment"
    assert all(kinds[i] == "skip" for i, text in enumerate(texts) if "nl.check(" in text)
    assert kinds.count("slide") == sum(text.startswith(("# ", "## ", "### ")) for text in texts)


def test_the_student_edition_is_the_master_and_never_replaces_answers(tmp_path):
    written = write_editions(tmp_path / "class")
    assert [p.name for p in written] == [p.name for p in NOTEBOOKS]
    assert read(written[3]) == read(NOTEBOOKS[3])
    with pytest.raises(InputError, match="may hold somebody's answers"):
        write_editions(tmp_path / "class")


def test_the_solution_edition_has_its_own_file_names(tmp_path):
    assert [p.name for p in write_editions(tmp_path, "solutions")] == [f"{p.stem}_solutions.ipynb" for p in NOTEBOOKS]
    write_editions(tmp_path, "solutions")  # nothing of a student is lost, so it may be written again


@pytest.mark.parametrize(("edition", "message"), [("teachers", "choose one of"), ("solutions", "notebooks themselves")])
def test_bad_input_is_refused(edition, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_editions(tmp_path if edition == "teachers" else ROOT / "notebooks", edition)


def test_slides_are_written_with_what_waits_for_a_key(tmp_path, monkeypatch):
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# A title\n\n**Predict.** How many?"),
            nbformat.v4.new_code_cell("print(173)", outputs=[nbformat.v4.new_output("stream", text="173\n")]),
            nbformat.v4.new_code_cell('nl.check("1.1", best)'),
        ]
    )
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "01_short.ipynb")
    monkeypatch.setattr(editions, "shipped_folder", lambda name: tmp_path / name)
    (slides,) = write_editions(tmp_path / "talk", "slides")
    assert [p.name for p in (tmp_path / "talk").iterdir()] == [slides.name] == ["01_short.slides.html"]
    text = slides.read_text(encoding="utf-8")
    assert text.index("A title") < text.index('class="fragment"') < text.index("173")
    assert "nl.check" not in text
