"""The lab before anything is trained, and what can be done with its runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from factories import recorded_run as run

import nlora_lab as nl
from nlora_lab.labs.fine_tuning import FineTuneLab
from nlora_lab.labs.tabs import InsidePanel, is_right
from nlora_lab.labs.view import TABS
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.store import RunStore
from nlora_lab.training import export as exports
from nlora_lab.training import setup
from nlora_lab.training.recorder import InsideRecorder

ALIKE = {"steps": 40, "batch_size": 16}


@pytest.fixture
def store(tmp_path):
    """Two methods with valleys of their own, one more rank, one more init, two seeds."""
    recorded = RunStore(tmp_path / "recorded")
    heights = {1e-3: 0.5, 2e-3: 0.2, 5e-3: 0.1, 1e-2: 0.9}
    for lr, loss in heights.items():
        for seed in (0, 1):
            recorded.add(run(lr, seed, loss + 0.01 * seed, accuracy=1 - loss, **ALIKE))
        recorded.add(run(lr / 10, 0, loss, method="nlora", **ALIKE))
        recorded.add(run(lr, 0, loss * 2, rank=4, **ALIKE))
        recorded.add(run(lr, 0, loss * 3, method="slora", init="identity", **ALIKE))
    recorded.pack()
    return recorded


@pytest.fixture
def lab(store):
    return FineTuneLab(("lora", "nlora"), recorded=store, figures="plotly")


def curves(lab):
    """What the figure shows on the left: the names of recorded curves, and where each ends."""
    return {line.name: line.curve.middle[-1] for line in lab.drawing().recorded if line.curve}


def test_moving_the_rate_redraws_at_once(lab):
    lab.lr.value = 2e-3
    assert curves(lab) == {"LoRA": pytest.approx(0.205)}
    lab.lr.value = 5e-4
    assert curves(lab) == {"NLoRA": pytest.approx(0.1)}
    cursors = [t for t in lab.drawing().plotly()[0] if t.get("name") == "the slider's rate"]
    assert [list(t["x"]) for t in cursors] == [[5e-4, 5e-4]] * 2
    assert lab.recorded("lora") is None


def test_rank_and_init_choose_other_recordings(lab):
    lab.lr.value, lab.rank.value = 2e-3, 4
    assert curves(lab) == {"LoRA": pytest.approx(0.4)}
    lab.rank.value = 5  # nothing was recorded at 5: 4 stands for it, and says so
    assert curves(lab) == {"LoRA · r 4": pytest.approx(0.4)}
    lab.rank.value = 8
    lab.method.value = "slora"
    assert curves(lab) == {}
    lab.init.value = "identity"
    assert curves(lab) == {"SLoRA, N identity": pytest.approx(0.6)}
    lab.task.value = "entailment"
    assert curves(lab) == {}
    assert any("press Run" in a["text"] for a in lab.drawing().plotly()[1]["annotations"])


def test_after_every_change_the_page_has_what_python_set(lab):
    changes = (
        ("lr", 5e-4),
        ("own_rates", True),
        ("rank", 4),
        ("init", "identity"),
        ("task", "entailment"),
        ("seed", 7),
    )
    widget = lab._controls.widget
    for control, value in changes:
        getattr(lab, control).value = value
        assert getattr(widget, control) == value
    lab.method.value = ("slora", "lora")
    assert widget.methods == ["lora", "slora"]
    widget.lr, widget.methods = 1e-2, ["nlora", "full"]  # what a page sends
    assert (lab.lr.value, lab.method.value) == (1e-2, ("full", "nlora"))
    assert {c.lr for c in lab.configs()} == {1e-2} or lab.own_rates.value


@pytest.mark.parametrize(
    ("control", "value", "taken"),
    [("lr", 7.0, 1.0), ("lr", 0, 1e-5), ("rank", 500, 128), ("steps", 0, 1), ("seed", -3, 0), ("rank", np.int64(5), 5)],
)
def test_a_value_beyond_a_slider_is_moved_into_its_limits(lab, control, value, taken):
    getattr(lab, control).value = value
    assert getattr(lab, control).value == taken


@pytest.mark.parametrize(
    ("control", "value"),
    [("lr", "fast"), ("lr", math.nan), ("rank", True), ("task", "poetry"), ("init", "zeros"), ("method", "lorra")],
)
def test_a_value_that_a_control_cannot_take_is_named(lab, control, value):
    before = getattr(lab, control).value
    with pytest.raises(nl.InputError, match=f"{control}="):
        getattr(lab, control).value = value
    assert getattr(lab, control).value == before


def test_each_at_its_own_best_rate(lab):
    lab.own_rates.value = True
    assert [(c.method, c.lr) for c in lab.configs()] == [("lora", 5e-3), ("nlora", 5e-4)]
    assert set(curves(lab)) == {"LoRA · 5e-3", "NLoRA · 5e-4"}
    lab.method.value = "pissa"  # nothing recorded to choose by
    assert [c.lr for c in lab.configs()] == [2e-4]


def test_what_is_trained_is_what_the_slider_reads(lab):
    lab.lr.value = 10**-3.7
    assert {c.lr for c in lab.configs()} == {2e-4}


def test_answers_before_and_now(lab):
    lab._tabs.selected_index = TABS.index("answers")
    lab.task.value = "word-problems"
    assert "before tuning" in lab._tabs.answers.value
    assert "So she has 10." in lab._tabs.answers.value
    assert lab._tabs.answers.value.count("right: ") == 3


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        (" 2+2=4. The answer is 4.", "4", True),
        (" The answer is 14.", "4", False),
        (" yes", "yes", True),
        ("", "no", False),
    ],
)
def test_an_answer_is_marked(text, answer, right):
    assert is_right(text, {"answer": answer}) is right


def trained(lab, *methods, steps=3):
    lab.method.value = methods
    lab.steps.value, lab.task.value = steps, "entailment"
    lab.run.click()
    return lab.wait()


@pytest.fixture(scope="module")
def busy():
    """A lab with three runs of different methods: trained once, read by several tests."""
    lab = FineTuneLab(figures="plotly", recorded=RunStore("no such folder"))
    trained(lab, "lora", "nlora", "pissa")
    return lab


def test_what_happens_inside_was_recorded(busy):
    busy._tabs.selected_index = TABS.index("inside")
    assert [e.inside.snapshots[-1].step for e in busy._list.entries] == [3, 3, 3]
    figure = busy.inside._figure.widget
    assert len(figure.data) >= 8
    busy.inside.layer.value = busy.inside.layer.options[1]
    busy.inside.view.value = "distance"
    assert busy.inside.layer.disabled
    assert busy.inside._figure.widget.data[0].type == "heatmap"
    busy.inside.view.value = ""
    assert busy.inside.run.options[0][0] == busy._list.entries[-1].name


def test_a_run_is_named_hidden_pinned_and_deleted(busy):
    lab = FineTuneLab(figures="plotly", recorded=RunStore("no such folder"))
    lab._list.entries = [replace(entry) for entry in busy._list.entries]
    lab.task.value = busy.task.value  # runs of another task are not drawn
    lab._update()
    drawn = lambda: [c["name"] for c in lab._controls.widget.live]  # noqa: E731
    count = len(drawn())
    row = lab._tabs.rows.children[0]
    row.children[2].value = "my first"
    assert "my first" in drawn()
    assert "<b>my first</b>" in [a["text"] for a in lab.drawing().plotly()[1]["annotations"]]
    lab.hide(0)
    assert len(drawn()) == count - 1
    assert lab._tabs.rows.children[0].children[4].value is True
    lab.hide(0, False)
    assert len(drawn()) == count
    lab.rename(2, "the last")
    lab.pin(2)
    assert lab._tabs.rows.children[0].children[2].value == "the last"  # pinned ones come first
    lab.delete(0)
    assert [e.name for e in lab._list.entries] == [lab._list.entries[0].name, "the last"]
    lab.clear.click()
    assert [e.name for e in lab._list.entries] == ["the last"]
    assert lab.clear.disabled
    with pytest.raises(nl.InputError, match="number=7 is not a run of this lab, which has 1 runs; choose from 0 to 0"):
        lab.rename(7, "x")


def test_nothing_can_be_deleted_while_something_trains(busy, monkeypatch):
    lab = FineTuneLab(figures="image", recorded=RunStore("no such folder"))
    lab._list.entries = [replace(entry) for entry in busy._list.entries]
    monkeypatch.setattr(lab._race, "running", True)
    lab._update()
    lab.hide(0)
    lab.pin(1)
    lab.rename(2, "the last")
    assert [row.children[-1].disabled for row in lab._tabs.rows.children] == [True] * 3
    monkeypatch.setattr(lab._race, "running", False)
    lab._update()
    assert [row.children[-1].disabled for row in lab._tabs.rows.children] == [False] * 3


def test_the_store_of_recorded_runs_must_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for wrong in ("recodred", tmp_path / "none", tmp_path / "file", "", 3):
        with pytest.raises(nl.InputError, match=r"store='.*' is not a folder"):
            FineTuneLab(figures="image", recorded=wrong)
    assert len(FineTuneLab(figures="image", recorded=tmp_path).recordings) == 0


def test_the_panel_shows_why_a_recording_ended(busy):
    panel = InsidePanel("image")
    good, bad = busy._list.entries[0], replace(busy._list.entries[1], inside=InsideRecorder())
    bad.inside._taken, bad.inside.failed = list(good.inside.snapshots), "after 7 updates: Error: <no memory>"
    panel.show([good, bad])
    assert panel.run.value == id(bad.run)
    assert "ended after 7 updates: Error: &lt;no memory&gt;" in panel._failed.value
    assert panel._failed in panel.widget.children
    panel.run.value = id(good.run)
    assert panel._failed.value == ""
    bad.inside._taken = []  # nothing at all to draw
    panel.show([bad])
    assert "ended after 7 updates" in panel._failed.value
    assert panel._failed in panel.widget.children


def test_runs_are_compared_side_by_side(busy):
    assert busy.compare(np.int64(0), np.int32(2)).equals(busy.compare(0, 2))
    for wrong in (np.int64(3), np.bool_(True), True, 0.0, "0"):
        with pytest.raises(nl.InputError, match="is not a run of this lab, which has 3 runs"):
            busy.compare(wrong)
    frame = busy.compare(0, 2)
    assert list(frame.columns) == ["LoRA", "NLoRA"]
    assert list(frame.loc["trainable"]) == [78_848, 80_640]
    busy._tabs.selected_index = TABS.index("runs")
    assert "Tick two or more" in busy._tabs.comparison.value
    for row in (busy._tabs.rows.children[0], busy._tabs.rows.children[2]):
        row.children[0].value = True
    assert "method" in busy._tabs.comparison.value
    assert "80,640" in busy._tabs.comparison.value
    assert "seed<" not in busy._tabs.comparison.value  # the same in both
    for row in busy._tabs.rows.children:
        row.children[0].value = False


def test_losses_and_records_are_exported(busy, tmp_path):
    (csv,) = busy.export("csv", tmp_path / "a" / "losses.csv")
    table = pd.read_csv(csv)
    assert len(table) == 9
    assert list(table.columns)[:3] == ["run", "base_lr", "method"]
    assert set(table["run"]) == {"LoRA", "NLoRA", "PiSSA"}
    (file,) = busy.export("json", tmp_path / "runs.json", 1)
    (record,) = json.loads(file.read_text())
    assert nl.Run.from_json(json.dumps(record)).config == busy.runs[1].config
    assert list(busy.runs[0].history.columns) == ["step", "loss", "lr", "grad_norm"]


def test_a_record_keeps_the_name_given_in_the_lab_and_stays_a_record(busy, tmp_path):
    name = busy._list.entries[1].name
    busy.rename(1, "wide")
    (file,) = busy.export("json", tmp_path / "runs.json")
    busy.rename(1, name)
    records = json.loads(file.read_text())
    assert [r["name"] for r in records] == [busy._list.entries[0].name, "wide", busy._list.entries[2].name]
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert [r.config for r in RunStore(tmp_path / "store")] == [r.config for r in busy.runs]


@pytest.mark.parametrize("kind", ["csv", "json", "peft"])
def test_a_tilde_is_the_home_folder(busy, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (path,) = busy.export(kind, "~/mine", 0)
    assert path.relative_to(tmp_path / "mine") is not None
    assert path.exists()
    with pytest.raises(nl.InputError, match="path='~nobody-of-this-name/mine' cannot be found"):
        busy.export(kind, "~nobody-of-this-name/mine", 0)


@pytest.mark.parametrize("form", ["peft", "lora"])
def test_exported_adapters_are_the_tuned_model(busy, tmp_path, form):
    from peft import PeftModel

    ids = torch.arange(5, 45)[None]
    for number, folder in enumerate(busy.export(form, tmp_path)):
        tuned, _ = exports.tuned_model(busy.runs[number])
        loaded = PeftModel.from_pretrained(nl.load_model()[0], str(folder)).eval()
        with torch.no_grad():
            expected, logits, base = tuned(ids).logits, loaded(ids).logits, nl.load_model()[0](ids).logits
        moved = (expected - base).norm() / base.norm()
        assert moved > 1e-4
        assert (logits - expected).norm() / base.norm() < 0.02 * moved
        if form == "lora":
            assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_full_fine_tuning_is_exported_as_a_model_and_has_no_lora(tmp_path):
    (only,) = trained(FineTuneLab(figures="image"), "full", steps=1)
    folder = exports.save_adapter(only, tmp_path / "full")
    model, _ = nl.load_model(str(folder))
    tuned, _ = exports.tuned_model(only)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tuned.parameters(), strict=True))
    with pytest.raises(nl.InputError, match="cannot be written as a plain LoRA"):
        exports.save_adapter(only, tmp_path / "x", "lora")


def test_what_cannot_be_exported_is_named(busy, tmp_path):
    with pytest.raises(nl.InputError, match="only the record of this run is available, not its trained weights"):
        exports.save_adapter(run(), tmp_path)
    with pytest.raises(nl.InputError, match="kind='xml'"):
        busy.export("xml", tmp_path)
    with pytest.raises(nl.InputError, match="no run to export"):
        FineTuneLab(figures="image").export("csv", tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(nl.InputError, match="cannot be written"):
        busy.export("csv", tmp_path / "file" / "x.csv")
    row = busy._tabs.export_row
    row.kind.value, row.place.value = "csv", str(tmp_path / "file")
    row.write.click()
    assert "cannot be written" in busy.status


# --- faults ---


def test_finished_runs_are_kept_on_disk_too(tmp_path):
    lab = FineTuneLab(figures="image", store=tmp_path / "mine")
    trained(lab, "lora", "slora")
    assert {r.config.method for r in RunStore(tmp_path / "mine")} == {"lora", "slora"}


def test_a_store_that_cannot_be_written_costs_a_message_and_no_run(tmp_path):
    lab = FineTuneLab(figures="image", store=tmp_path / "file")
    (tmp_path / "file").write_text("")  # since then
    assert len(trained(lab, "lora")) == 1
    assert "Not kept on disk" in lab.status
    assert "cannot be written" in lab.status


def test_nan_in_the_first_step_is_a_result(monkeypatch):
    from nlora_lab.training.batched import trainer

    real, calls = trainer.mean_losses, []

    def broken(logits, labels, adapters):
        losses = real(logits, labels, adapters)
        bad = [1.0 if calls else math.nan, *[1.0] * (adapters - 1)]  # the first adapter's first loss
        calls.append(adapters)
        return losses * torch.tensor(bad)

    monkeypatch.setattr(trainer, "mean_losses", broken)
    lab = FineTuneLab(figures="plotly")
    runs = trained(lab, "lora", "slora")
    assert sorted(r.diverged for r in runs) == [False, True]
    gone = next(r for r in runs if r.diverged)
    assert len(gone.steps) == 1
    assert f"{gone.config.label} diverged" in lab.status


def test_out_of_memory_comes_with_a_remedy_and_loses_nothing(monkeypatch):
    lab = FineTuneLab(figures="image")
    trained(lab, "lora")

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(setup, "build", full)
    runs = trained(lab, "slora")
    assert [bool(r.error) for r in runs] == [False, True]
    assert "out of memory on CPU" in lab.status
    assert "batch_size=8" in lab.status
    monkeypatch.undo()
    assert not trained(lab, "nlora")[-1].error


def test_stop_before_the_first_step_starts_nothing_more(monkeypatch):
    lab = FineTuneLab(figures="image")
    real = setup.build

    def stop_then_build(*args):
        lab.stop.click()
        return real(*args)

    monkeypatch.setattr(setup, "build", stop_then_build)
    runs = trained(lab, "lora", "slora", steps=50)
    assert all(r.stopped and len(r.steps) <= 1 for r in runs)
    assert "Stopped" in lab.status
    assert not lab.running


def test_an_entry_added_to_the_methods_is_in_the_lab(monkeypatch):
    from nlora_lab.methods.table import variant

    mine = variant("nlora", "mine", "My start", pivots="qr", balance=True)
    monkeypatch.setitem(METHODS, "mine", mine)
    lab = FineTuneLab(figures="image")
    (only,) = trained(lab, "mine")
    assert only.config.method == "mine"
    assert only.metrics["step0_change"] == 0.0
    assert lab.recorded("mine") is None
