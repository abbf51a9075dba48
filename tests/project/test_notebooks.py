"""What every committed notebook must be, so that `pytest --nbval` really compares something."""

from __future__ import annotations

import json
import re
import tomllib

import nbformat
import pytest
from factories import ROOT
from notebook_output import Printed, same_printed

from nlora_lab.course.registry import ALL_EXERCISES, ALL_QUESTIONS
from tools.still_pictures import WIDGET, keep_pictures

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [p.name for p in NOTEBOOKS]
IGNORED = ("# NBVAL_IGNORE_OUTPUT", "nbval-ignore-output")


def test_the_course_is_complete():
    assert NAMES == [
        "00_start_here.ipynb",
        "01_low_rank.ipynb",
        "02_nystrom.ipynb",
        "03_spectra_of_a_transformer.ipynb",
        "04_adapters_from_scratch.ipynb",
        "05_fine_tuning_lab.ipynb",
        "06_learning_rate_and_init.ipynb",
        "07_reading_the_paper.ipynb",
        "08_real_models.ipynb",
        "09_capstone.ipynb",
    ]


@pytest.fixture(params=NOTEBOOKS, ids=NAMES)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def test_it_is_valid_and_was_run_once_from_top_to_bottom(notebook):
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert len(cells) >= 5
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))


def test_it_says_what_it_needs_what_was_learned_and_where_to_read_on(notebook):
    texts = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    for part in ("**Goal", "**You need.**", "**Time.**"):
        assert part in texts[0], part
    (learned,) = [text for text in texts if "## What you learned" in text]
    points = re.findall(r"^- ", learned.partition("## What you learned")[2].partition("**Further")[0], re.MULTILINE)
    assert 4 <= len(points) <= 5
    assert "**Further reading.**" in learned


def test_no_widget_state_no_error_no_stderr_no_machine(notebook):
    assert "widgets" not in notebook.metadata
    outputs = [o for c in code_cells(notebook) for o in c.outputs]
    assert outputs
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in outputs)
    assert not re.search(r"/(?:home|root|tmp|Users|work)/", json.dumps(outputs))
    assert set(notebook.metadata.kernelspec) == {"display_name", "language", "name"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_it_is_small(path):
    assert path.stat().st_size < 500_000


def test_at_most_half_of_the_cells_with_output_are_not_compared(notebook):
    shown = [c for c in code_cells(notebook) if c.outputs]
    ignored = [c for c in shown if c.source.startswith(IGNORED[0]) or IGNORED[1] in c.metadata.get("tags", [])]
    assert len(ignored) <= len(shown) / 2


def test_every_live_panel_has_a_picture_or_a_line_beside_it(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            if WIDGET in data or re.match(r"\w+Lab: ", data.get("text/plain", "")):
                nothing_yet = data["text/plain"].endswith(": 0 runs")
                assert nothing_yet or "image/png" in data
    pictures = [o for c in code_cells(notebook) for o in c.outputs if "image/png" in o.get("data", {})]
    assert pictures


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_no_stored_widget_hides_its_picture(path):
    assert WIDGET not in path.read_text()


def test_widgets_are_removed_and_their_pictures_are_kept(tmp_path):
    cell = nbformat.v4.new_code_cell("lab")
    bundle = {WIDGET: {"model_id": "1"}, "image/png": "AAAA", "text/plain": "FineTuneLab: 1 run"}
    cell.outputs = [nbformat.v4.new_output("execute_result", data=bundle, execution_count=1)]
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    assert keep_pictures(path) == 1
    (output,) = nbformat.read(path, as_version=4).cells[0].outputs
    assert set(output.data) == {"image/png", "text/plain"}
    assert keep_pictures(path) == 0


def test_code_cells_are_short(notebook):
    lengths = sorted(len(c.source.splitlines()) for c in code_cells(notebook))
    assert lengths[len(lengths) // 2] <= 4
    assert lengths[-1] <= 12


def test_it_states_its_goals_and_its_time_and_asks_for_predictions(notebook):
    first = notebook.cells[0].source
    assert re.search(r"\*\*Goals?\.\*\*", first)
    assert re.search(r"\*\*Time\.\*\*.*minutes", first, flags=re.S)
    prose = "".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert len(re.findall(r"redict|guess", prose)) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=NAMES[1:])
def test_its_exercises_are_asked_and_left_open(path):
    """Two at least; each is asked by its number, its stub is a nudge, and it is one of this notebook's."""
    cells = code_cells(nbformat.read(path, as_version=4))
    asked = [n for c in cells for n in re.findall(r'nl\.exercise\("([\d.]+)"\)', c.source)]
    # the stub stands in the cell itself, or, where it is a function, in the one before
    pairs = list(zip([cells[0], *cells], cells, strict=False))
    checked = {n: (a, c) for a, c in pairs for n in re.findall(r'nl\.check\("([\d.]+)"', c.source)}
    chapter = path.name[:2].lstrip("0")
    assert len(asked) >= 2
    assert set(asked) == set(checked) == {n for n in ALL_EXERCISES if n.split(".")[0] == chapter}
    for number, (before, cell) in checked.items():
        assert "..." in cell.source or before.source.endswith("return ...")
        printed = "".join(o.text for o in cell.outputs if o.output_type == "stream")
        assert f"Exercise {number} " in printed
        assert "waits for your answer" in printed


def test_it_opens_in_colab(notebook):
    assert "colab.research.google.com/github/nlora-lab/nlora-lab/blob/main/notebooks/" in notebook.cells[0].source
    assert "%pip install" in code_cells(notebook)[0].source


INSTALL = """\
try:
    import nlora_lab as nl
except ModuleNotFoundError as missing:
    if missing.name != "nlora_lab":
        raise  # the package is there, and something that it needs is not
    %pip install -q "nlora-lab @ git+{home}@v{version}"
    import nlora_lab as nl
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_the_first_cell_installs_this_version_if_the_package_itself_is_missing(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    first = code_cells(nbformat.read(path, as_version=4))[0].source
    assert f"{first}\n".startswith(INSTALL.format(home=project["urls"]["Homepage"], version=project["version"]))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_its_links_lead_somewhere_in_colab_too(path):
    text = path.read_text()
    assert "](../" not in text
    linked = set(re.findall(r"github\.com/nlora-lab/nlora-lab/blob/main/([\w./-]+\.md)(?:#([\w-]+))?", text))
    assert ("docs/notation.md", "") in linked
    for name, anchor in linked:
        headings = re.findall(r"^#+ (.+)$", (ROOT / name).read_text(), flags=re.M)
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, anchor


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_its_closing_questions_have_answers(path):
    last = nbformat.read(path, as_version=4).cells[-1].source
    chapter = int(path.name[:2])
    answers = [number for number in ALL_QUESTIONS if number.startswith(f"{chapter}.")]
    asked = set(re.findall(r"^(\d)\. |\((\d)\) ", last, flags=re.M))
    assert len(answers) == max(len(asked), 1)
    assert f'nl.solution("{chapter}.Q1")' in last


def test_a_card_is_asked_for_where_one_helps():
    assert nbformat.read(NOTEBOOKS[8], as_version=4).metadata["accelerator"] == "GPU"


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("loss 0.123", "loss 0.124", True),
        ("loss 0.123", "loss 0.125", False),
        ("loss 0.123", "loss 0.1230", False),
        ("3 runs", "4 runs", False),
        ("1.2e-03", "1.3e-03", True),
        ("1.2e-03", "1.2e-04", False),
        ("a 1.5 b", "a 1.5 c", False),
        ("-0.01", "0.01", False),
        ("no number", "no number", True),
    ],
)
def test_printed_decimals_may_differ_by_one_in_the_last_digit(a, b, same):
    assert same_printed(a, b) is same
    assert (Printed(a) == b) is same
    assert (Printed(a) != b) is not same
