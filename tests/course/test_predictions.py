"""A measurement stays hidden until the guess is committed, and files of a class are read with care."""

from __future__ import annotations

import json

import pytest
import torch

from nlora_lab.core.errors import InputError
from nlora_lab.course.predictions import asking
from nlora_lab.course.predictions.asking import predict, prediction_table
from nlora_lab.course.predictions.files import class_predictions, save_predictions
from nlora_lab.course.predictions.panel import PredictionPanel

RIGHT = 173  # a number that stands in no other text here
CURVE = {"at": [1, 8, 32], "low": 0.0, "high": 1.0}


@pytest.fixture(autouse=True)
def a_new_kernel(monkeypatch):
    monkeypatch.setattr(asking, "ASKED", {})
    monkeypatch.setattr("nlora_lab.course.predictions.files.ASKED", asking.ASKED)


def widgets_of(prediction: PredictionPanel) -> list:
    prediction._repr_mimebundle_()
    return list(prediction._panel.children)


def shown(prediction: PredictionPanel) -> str:
    """Every text of the panel, and its plain text."""
    plain = prediction._repr_mimebundle_()["text/plain"]
    texts = [str(getattr(w, "value", "")) + getattr(w, "description", "") for w in widgets_of(prediction)]
    return "\n".join([plain, *texts])


# --- hidden, then shown ---


@pytest.mark.parametrize("answer", [RIGHT, lambda: RIGHT], ids=["value", "function"])
def test_the_measurement_is_hidden_until_the_guess_is_committed(answer):
    prediction = predict("0.1", "How many are right?", answer, low=0, high=200)
    assert str(RIGHT) not in shown(prediction) + repr(prediction) + prediction_table().to_string()
    assert prediction.measured is None
    prediction.commit(20)
    assert f"measured: {RIGHT} (153 too low)" in repr(prediction)
    assert f"<b>Measured:</b> {RIGHT}" in shown(prediction)


def test_the_function_is_called_only_after_the_guess():
    calls = []
    prediction = predict("0.1", "How many?", lambda: calls.append(1) or 5)
    repr(prediction), shown(prediction), prediction_table()
    assert calls == []
    prediction.commit(4)
    assert calls == [1]


def test_an_open_prediction_is_the_same_text_at_every_run():
    """Or ``pytest --nbval`` would find a difference in a notebook whose predictions are open."""
    first = predict("0.2", "Which?", "LoRA", choices=["LoRA", "NLoRA"])._repr_mimebundle_()["text/plain"]
    again = predict("0.2", "Which?", "NLoRA", choices=["LoRA", "NLoRA"])._repr_mimebundle_()["text/plain"]
    assert first == again == "Prediction 0.2, open: Which? (choose one of: LoRA, NLoRA)"
    assert prediction_table()[["you", "measured", "apart"]].to_numpy().tolist() == [["open", "", ""]]


def test_a_measurement_may_come_later_than_the_guess():
    measured = {}
    prediction = predict("0.1", "How many?", lambda: measured["right"], low=0, high=200, guess=7)
    assert "not there yet (KeyError" in shown(prediction)
    assert prediction_table().measured.tolist() == ["not measured yet"]
    measured["right"] = 9
    assert prediction_table()[["you", "measured", "apart"]].to_numpy().tolist() == [["7", "9", "2 too low"]]
    assert "<b>Measured:</b> 9" in shown(prediction)


def test_a_committed_guess_stays_also_if_the_cell_runs_again():
    predict("0.1", "How many?", 5, low=0, high=10, guess=3)
    again = predict("0.1", "How many?", 5, low=0, high=10)
    assert again.guess == 3
    with pytest.raises(InputError, match="has the guess 3, which stays"):
        again.commit(5)
    assert predict("0.1", "How few?", 5, low=0, high=10).guess is None  # another question


def test_the_button_commits_what_the_controls_say_and_locks_them():
    prediction = predict("0.1", "How many?", 0, low=0, high=200)
    _, slider, button, *_ = widgets_of(prediction)
    slider.value = 42
    button.click()
    assert (prediction.guess, slider.disabled, button.layout.display) == (42, True, "none")


def test_a_move_that_a_page_sends_after_the_press_still_counts(monkeypatch):
    """Pages send a button's press before the moves of a slider that wait in a queue."""
    prediction = predict("0.1", "How many?", 0, low=0, high=200)
    _, slider, button, line, _ = widgets_of(prediction)
    slider.value = 42
    button.click()
    slider.value = 44
    assert prediction.guess == 44
    assert "<b>You:</b> 44" in line.value
    monkeypatch.setattr("nlora_lab.course.predictions.panel.LATE", 0.0)
    slider.value = 0
    assert prediction.guess == 44


def test_the_button_without_a_choice_asks_for_one():
    prediction = predict("0.2", "Which?", "LoRA", choices=["LoRA", "NLoRA"])
    _, radio, button, line, _ = widgets_of(prediction)
    button.click()
    assert prediction.guess is None
    assert "choose one of: LoRA, NLoRA" in line.value
    radio.value = "NLoRA"
    button.click()
    assert "not as you said" in line.value


def test_a_curve_is_sketched_by_sliders_and_drawn_beside_the_measurement():
    prediction = predict("1.4", "The error", lambda: torch.tensor([1.0, 0.5, 0.2]), **CURVE)
    _, sketch, *sliders, button, _, _ = widgets_of(prediction)
    assert [s.description for s in sliders] == ["at 1", "at 8", "at 32"]
    before = bytes(sketch.value)
    sliders[0].value = 1.0
    sketched = bytes(sketch.value)
    button.click()
    assert prediction.guess == [1.0, 0.5, 0.5]
    assert prediction.kind.compare(prediction.guess, prediction.measured) == "0.1 apart on average"
    assert before.startswith(b"\x89PNG")
    assert len({before, sketched, bytes(sketch.value)}) == 3


def test_what_would_give_the_answer_away_is_shown_after_the_guess():
    prediction = predict("0.2", "Which?", "LoRA", choices=["LoRA", "NLoRA"], show={"recorded": "LoRA"})
    *_, output = widgets_of(prediction)
    assert output.outputs == ()
    prediction.commit("LoRA")
    assert len(output.outputs) == 1
    shown(prediction)  # displayed again
    assert len(output.outputs) == 1


@pytest.mark.parametrize(
    ("settings", "guess", "answer", "apart"),
    [
        ({}, 3, 3, "as you said"),
        ({"low": 1e-4, "high": 1e2, "log": True}, 1e-3, 4e-3, "4 times too low"),
        ({"unit": "%"}, 50, torch.tensor(20.0), "30 too high"),
        ({}, 2, float("inf"), "inf too low"),
        ({"choices": ["yes", "no"]}, "no", "no", "as you said"),
        ({"at": [1, 2], "low": 0.1, "high": 10.0, "log": True}, [1, 1], [2, 2], "a factor of 2 apart on average"),
    ],
)
def test_a_guess_is_compared_in_words(settings, guess, answer, apart):
    predict("1", "What?", answer, **settings, guess=guess)
    assert prediction_table().apart.tolist() == [apart]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choices": "yes"}, "must be a list of texts"),
        ({"choices": ["yes"]}, "2 to 12 different texts"),
        ({"choices": ["yes", "no"], "at": [1, 2]}, "choices= goes without"),
        ({"at": [2, 1]}, "in rising order"),
        ({"at": "12"}, "must be a list of numbers"),
        ({"low": 3, "high": 1}, "the smaller one first"),
        ({"low": 0, "high": 1, "log": True}, "above 0"),
        ({"high": 1}, "the smaller one first"),
        ({"low": 0, "high": 1, "guess": 2}, "from 0 to 1"),
        ({"guess": "many"}, "must be a number"),
        ({"at": [1, 2], "guess": [1]}, "one at each of 1, 2"),
        ({"choices": ["1", "2"]}, "answer=1 is not known"),
    ],
)
def test_bad_input_is_refused_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        predict("1", "What?", 1, **settings)
    assert "\n" not in str(caught.value)


# --- files ---


def hand_in(path, guess, measured=8):
    asking.ASKED.clear()
    predict("0.1", "How many?", measured, low=0, high=200, guess=guess)
    predict("0.2", "Which?", "LoRA", choices=["LoRA", "NLoRA"], guess="NLoRA" if guess > 10 else "LoRA")
    predict("0.3", "The error", [1.0, 0.5, 0.2], **CURVE, guess=[1, 0.9, guess / 200])
    predict("0.4", "Left open", 1)
    return save_predictions(path)


def test_the_predictions_of_a_class_are_pooled(tmp_path):
    for name, guess in {"ana": 4, "bo": 20, "cy": 60}.items():
        hand_in(tmp_path / f"{name}.json", guess)
    table = class_predictions(tmp_path).set_index("prediction")
    assert list(table.index) == ["0.1", "0.2", "0.3"]
    assert table.guesses.tolist() == [3, 3, 3]
    assert table["the class"].tolist() == ["20 (4 to 60)", "NLoRA: 2, LoRA: 1", "1, 0.9, 0.1"]
    assert table.measured.tolist() == ["8", "LoRA: 3", "1, 0.5, 0.2"]


def test_a_diverged_loss_survives_the_file(tmp_path):
    hand_in(tmp_path / "a.json", 4, measured=float("inf"))
    assert class_predictions(tmp_path).measured[0] == "inf"


GOOD = {"key": "0.1", "question": "?", "kind": "number", "guess": 1, "measured": None}
BAD = {
    "not json": "{",
    "twice a key": '{"format": 1, "format": 1}',
    "nested": "[" * 100_000,
    "another format": json.dumps({"format": 2, "predictions": []}),
    "a list": "[]",
    "no list": json.dumps({"format": 1, "predictions": {}}),
    "too many": json.dumps({"format": 1, "predictions": [GOOD] * 1001}),
    "asked twice": json.dumps({"format": 1, "predictions": [GOOD, GOOD]}),
    "not an object": json.dumps({"format": 1, "predictions": [1]}),
    "long": json.dumps({"format": 1, "predictions": [GOOD | {"question": "?" * 501}]}),
    "unknown kind": json.dumps({"format": 1, "predictions": [GOOD | {"kind": ["number"]}]}),
    "no guess": json.dumps({"format": 1, "predictions": [GOOD | {"guess": None}]}),
    "huge": json.dumps({"format": 1, "predictions": [GOOD | {"measured": 10**400}]}),
    "nan": json.dumps({"format": 1, "predictions": [GOOD | {"measured": float("nan")}]}),
    "log is text": json.dumps({"format": 1, "predictions": [GOOD | {"log": "yes"}]}),
    "unit is a list": json.dumps({"format": 1, "predictions": [GOOD | {"unit": []}]}),
    "curve without points": json.dumps({"format": 1, "predictions": [GOOD | {"kind": "curve"}]}),
    "choices of numbers": json.dumps({"format": 1, "predictions": [GOOD | {"kind": "choice", "choices": [1, 2]}]}),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_bad_file_is_left_out_with_a_warning_and_the_others_count(tmp_path, text):
    hand_in(tmp_path / "good.json", 4)
    (tmp_path / "bad.json").write_text(text)
    with pytest.warns(UserWarning, match=r"left out: bad\.json is not a file of predictions") as caught:
        table = class_predictions(tmp_path)
    assert table.guesses.tolist() == [1, 1, 1]
    assert "\n" not in str(caught[0].message)


@pytest.mark.filterwarnings("ignore:left out")
def test_nothing_to_pool_and_nothing_to_save_are_said(tmp_path):
    with pytest.raises(InputError, match="no prediction is committed"):
        save_predictions(tmp_path / "mine.json")
    with pytest.raises(InputError, match="no file that ends in"):
        class_predictions(tmp_path)
    with pytest.raises(InputError, match="none of 1 files could be read"):
        class_predictions(tmp_path / "missing.json")
    with pytest.raises(InputError, match="the list of files is empty"):
        class_predictions([])
