"""Tables in files, and runs for a tracker."""

from __future__ import annotations

import json
import math
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from factories import some_run

from nlora_lab.core.errors import InputError
from nlora_lab.core.tables import save_table
from nlora_lab.runs.trackers import track

FRAME = pd.DataFrame(
    {"accuracy": [0.123456789, math.nan], "note": ["50 % & more_", None], "seeds": [5, 3]}, index=["lora", "nlora"]
)


def test_csv_json_and_parquet_hold_every_digit_and_the_names(tmp_path):
    for ending, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet), (".json", pd.read_json)):
        back = read(save_table(FRAME, tmp_path / "deep" / f"t{ending}"))
        assert back["group"].tolist() == ["lora", "nlora"]
        assert back["accuracy"][0] == pytest.approx(0.123456789, rel=1e-14)
        assert math.isnan(back["accuracy"][1])
        assert back["seeds"].tolist() == [5, 3]
    assert [p.name for p in (tmp_path / "deep").iterdir() if "part" in p.name] == []


def test_latex_is_a_booktabs_table_with_its_signs_escaped(tmp_path):
    text = save_table(FRAME, tmp_path / "t.tex").read_text()
    assert r"\begin{tabular}{lrlr}" in text
    assert r"lora & 0.123 & 50 \% \& more\_ & 5 \\" in text
    assert r"nlora & -- & -- & 3 \\" in text


def test_a_plain_numbering_is_no_column_and_digits_round(tmp_path):
    plain = FRAME.reset_index(drop=True)
    assert save_table(plain, tmp_path / "t.csv", digits=2).read_text().splitlines()[:2] == [
        "accuracy,note,seeds", "0.12,50 % & more_,5",
    ]  # fmt: skip


def test_bad_places_are_named(tmp_path):
    with pytest.raises(InputError, match=r"ending='\.xls'"):
        save_table(FRAME, tmp_path / "t.xls")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_table(FRAME, tmp_path / "file" / "t.csv")
    with pytest.raises(InputError, match="digits=0"):
        save_table(FRAME, tmp_path / "t.csv", digits=0)


def test_json_is_exact_and_null_where_there_is_no_number(tmp_path):
    numbers = [1.2345678901234567e-20, 0.1 + 0.2, 1e300, math.inf, math.nan]
    frame = pd.DataFrame({"x": numbers, "n": np.arange(5), "any": [None, pd.NA, np.float64(1e-20), [math.nan], "é"]})
    rows = json.loads(save_table(frame, tmp_path / "t.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert [row["x"] for row in rows] == [*numbers[:3], None, None]
    assert [row["n"] for row in rows] == list(range(5))
    assert [row["any"] for row in rows] == [None, None, 1e-20, [None], "é"]
    assert json.loads(save_table(frame[:0], tmp_path / "t.json").read_text()) == []


def test_row_names_of_several_levels_become_columns(tmp_path):
    frame = pd.DataFrame({"task": ["a", "b"], "rate": [8, 8], "x": [1.0, 2.0]}).set_index(["task", "rate"])
    for ending in (".csv", ".json", ".parquet", ".tex"):
        save_table(frame, tmp_path / f"t{ending}")
    assert (tmp_path / "t.csv").read_text().splitlines() == ["task,rate,x", "a,8,1.0", "b,8,2.0"]
    unnamed = frame.rename_axis([None, "rate"])
    assert save_table(unnamed, tmp_path / "t.csv").read_text().startswith("group 1,rate,x\n")


def test_what_is_no_table_or_has_no_place_is_named(tmp_path):
    for bad in ([1, 2], None, FRAME["seeds"]):
        with pytest.raises(InputError, match="not a table; give a pandas DataFrame"):
            save_table(bad, tmp_path / "t.csv")
    with pytest.raises(InputError, match="two columns called 'group'"):
        save_table(FRAME.assign(group=1), tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"path='~nosuchuser/t\.csv' cannot be found"):
        save_table(FRAME, "~nosuchuser/t.csv")
    assert not list(tmp_path.iterdir())


class Tracker(ModuleType):
    """Records its calls, and is as strict about the order of steps as the real ones."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = object()
        self.runs, self.open = [], None

    def init(self, **settings):
        assert self.open is None
        self.open = {**settings, "logged": []}

    def log(self, numbers, step):
        assert not self.open["logged"] or step > self.open["logged"][-1][0]
        json.dumps(numbers, allow_nan=False)
        self.open["logged"].append((step, numbers))

    def finish(self):
        self.runs.append(self.open)
        self.open = None


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_gets_every_step_and_the_metrics(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, tracker := Tracker(name))
    run = some_run()
    assert track([run, run], "course", name, mode="offline") == 2
    first = tracker.runs[0]
    assert (first["project"], first["mode"], first["config"]["method"]) == ("course", "offline", run.config.method)
    assert len(first["logged"]) == len(run.steps) + 1
    assert first["logged"][0][1]["loss"] == run.steps[0].loss
    assert first["logged"][-1][1]["accuracy"] == run.accuracy
    assert tracker.open is None


def test_a_missing_tracker_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr("nlora_lab.runs.trackers.find_spec", lambda name: None)
    with pytest.raises(InputError, match="trackio and wandb are not installed; try: pip install trackio"):
        track(some_run(), "course")
    with pytest.raises(InputError, match="wandb is not installed; try: pip install wandb"):
        track(some_run(), "course", "wandb")
    with pytest.raises(InputError, match="to='mlflow'"):
        track(some_run(), "course", "mlflow")
    with pytest.raises(InputError, match="project=''"):
        track(some_run(), "")
