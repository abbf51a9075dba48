"""What a page is given, and that a page is one file that needs nothing else."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from factories import recorded_run as run

import nlora_lab as nl
from nlora_lab.cli import main as cli
from nlora_lab.labs import fine_tuning
from nlora_lab.pages import opening as opening_module
from nlora_lab.pages.opening import digest_of, shipped_opening
from nlora_lab.pages.page import Lab, page_html, write_page
from nlora_lab.pages.recorded import CURVE_POINTS, NO_LOSS, recorded_data
from nlora_lab.pages.scripts import FINE_TUNING, NYSTROM, SPECTRUM, STATIC, module
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.shipped import recorded_runs

BAD = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def shipped():
    return recorded_runs()


def test_the_data_hold_every_recorded_point(shipped):
    data, curves = recorded_data(shipped)
    json.dumps(data, allow_nan=False)
    points = [
        (c["steps"], c["task"], c["method"], c["rank"], c["init"], lr, loss)
        for c in data["cells"]
        for lr, loss in zip(c["lr"], c["loss"], strict=True)
    ]
    indices = {steps: shipped.at_steps(steps) for steps in shipped.budgets}
    expected = [
        (steps, *place, p.lr, p.loss)
        for steps, index in indices.items()
        for place in index.places()
        for p in index.valley(*place)
    ]
    assert len(points) == len(expected) >= 400
    for (*place, loss), (*there, spread) in zip(points, expected, strict=True):
        assert place == there
        assert [math.inf if v == "inf" else v for v in loss] == [spread.middle, spread.low, spread.high]
    assert len(curves) == 6 * sum(len(data["grids"][g]) for c in data["cells"] for g in c["grid"])


def test_every_method_is_listed_under_its_family(shipped):
    families = {m["name"]: m["family"] for m in recorded_data(shipped)[0]["methods"]}
    assert [name for name, family in families.items() if family == "all weights"] == ["full"]
    nystrom = {"nlora", "nlora-pivoted", "nlora-core", "nlora-balanced", "nlora-released", "inttune"}
    assert {name for name, family in families.items() if family == "Nyström"} == nystrom


def test_a_curve_is_thinned_and_within_a_ten_thousandth(shipped):
    data, curves = recorded_data(shipped)
    index, first = shipped.at_steps(shipped.budgets[0]), data["cells"][0]
    curve = index.curve(index.valley(*index.places()[0])[0])
    grid = data["grids"][first["grid"][0]]
    assert grid[0] == curve.steps[0]
    assert grid[-1] == curve.steps[-1]
    assert len(grid) <= CURVE_POINTS + 1
    low, high = data["curve_range"]
    codes = np.frombuffer(curves, "<u2")[: len(grid)].astype(float)
    read = low * (high / low) ** (codes / (NO_LOSS - 1))
    assert read == pytest.approx([dict(zip(curve.steps, curve.middle, strict=True))[s] for s in grid], rel=1.2e-4)


def test_a_third_measure_is_there_only_where_it_was_recorded():
    from dataclasses import replace

    plain = run(1e-3, loss=0.1)
    measured = replace(plain, metrics={**plain.metrics, "test_loss": 0.7})
    assert "test_loss" not in recorded_data(RecordedRuns([plain]))[0]["cells"][0]
    data, _ = recorded_data(RecordedRuns([measured]))
    assert data["cells"][0]["test_loss"] == [[0.7, 0.7, 0.7]]
    assert data["cells"][0]["steps"] == plain.config.steps


@pytest.mark.parametrize("names", [FINE_TUNING, NYSTROM, SPECTRUM])
def test_a_module_needs_no_other_and_writes_no_html(names):
    text = module(names)
    assert not re.search(
        r"^import |\bimport\(|innerHTML|insertAdjacentHTML|document\.write|\beval\(|fetch\(", text, re.M
    )
    assert text.count("export default { render };") == 1
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)


def test_scripts_can_be_read_in_one_sitting():
    assert {p.name for p in STATIC.glob("*.js") if len(p.read_text().splitlines()) > 400} == set()


def test_nothing_in_a_page_can_end_its_script():
    text = page_html(BAD, [Lab(BAD, BAD, SPECTRUM, {"name": BAD, "deep": [{"bytes": b"\x00\xff"}], "comment": "<!--"})])
    assert "<img" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)
    state = re.search(r'id="lab1-state">(.*?)</script>', text, re.S)[1]
    assert json.loads(state) == {"name": BAD, "deep": [{"bytes": {"base64": "AP8="}}], "comment": "<!--"}


def test_the_command_writes_one_file_below_a_megabyte_and_a_half(tmp_path, capsys):
    assert cli.main(["page", str(tmp_path / "labs.html")]) == 0
    out = capsys.readouterr().out.strip()
    assert out == str(tmp_path / "labs.html")
    text = (tmp_path / "labs.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 1_500_000
    assert text.count("<section>") == 3
    assert "default-src 'none'" in text
    assert not re.search(r"(src|href)=\"?(https?:)?//", text)


def test_a_page_of_a_store_of_ones_own(tmp_path, capsys):
    store = nl.RunStore(tmp_path / "mine")
    store.add(run(1e-3, loss=0.1))
    assert cli.main(["page", str(tmp_path / "mine.html"), "--recorded", str(tmp_path / "mine")]) == 0
    lab = nl.FineTuneLab("lora", recorded=tmp_path / "mine")
    lab.lr.value = 1e-3
    assert lab.save_page(tmp_path / "lab.html") == tmp_path / "lab.html"
    state = json.loads(re.search(r'id="lab1-state">(.*?)</script>', (tmp_path / "lab.html").read_text(), re.S)[1])
    assert (state["lr"], state["methods"], state["kernel"]) == (1e-3, ["lora"], False)
    assert [c["method"] for c in state["recorded"]["cells"]] == ["lora"]


def test_a_page_of_the_larger_model_that_ships(tmp_path):
    assert cli.main(["page", str(tmp_path / "larger.html"), "--model", "larger"]) == 0
    text = (tmp_path / "larger.html").read_text()
    data = json.loads(re.search(r'id="lab1-state">(.*?)</script>', text, re.S)[1])["recorded"]
    assert {c["method"] for c in data["cells"]} == {
        "lora",
        "slora",
        "nlora",
        "nlora-released",
        "nlora-balanced",
        "pissa",
    }
    assert len(text) < 1_500_000


def test_what_cannot_be_written_is_named(tmp_path, capsys):
    with pytest.raises(nl.InputError, match="is a folder; name a file in it"):
        write_page(tmp_path, "x", [])
    for arguments, words in (
        (["page", " "], "names no file"),
        (["page", "x.html", "--model", "m"], "needs --recorded"),
    ):
        assert cli.main(arguments) == 2
        assert words in capsys.readouterr().err


def test_what_the_lab_opens_with_is_made_from_the_shipped_runs(shipped):
    """If this fails, run ``python -m tools.lab_opening``."""
    opening, lab = shipped_opening(), nl.FineTuneLab()
    assert opening is not None
    data, curves = recorded_data(shipped)
    assert (opening.data, opening.curves) == (json.loads(json.dumps(data)), curves)
    assert opening.settings == json.loads(json.dumps(asdict(lab._view.settings)))
    assert opening.figure == digest_of(lab.drawing().figure())
    assert opening.picture == lab.picture()


def test_the_lab_opens_without_reading_a_record(monkeypatch):
    monkeypatch.setattr(fine_tuning, "recorded_runs", lambda *_: pytest.fail("the records were read"))
    lab = nl.FineTuneLab()
    assert base64.b64decode(lab._repr_mimebundle_()["image/png"]) == lab._opening.picture
    lab.rank.value, lab.lr.value = 16, 1e-2  # the page looks these up by itself
    with pytest.raises(pytest.fail.Exception, match="the records were read"):
        lab.picture()


def test_what_was_made_from_other_records_is_not_used(monkeypatch, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(opening_module.shipped_folder("data") / "results", results)
    monkeypatch.setattr(opening_module, "shipped_folder", lambda _: tmp_path)
    assert shipped_opening() is not None
    with next(results.glob("**/*.jsonl")).open("a") as file:
        file.write("\n")
    assert shipped_opening() is None
