"""Reading the final answer from a text."""

from __future__ import annotations

import time

import pytest

from nlora_lab.tasks.final_answers import final_number, marked_answer, plain_number, without_notes


def test_the_final_number_is_read_from_the_answer_sentence_only():
    assert final_number(" 7+5=12. The answer is 12.") == "12"
    assert final_number(" 7+5=12.") is None
    assert final_number(" The answer is 12") is None
    assert final_number(" The answer is 8. The answer is 9.") == "8"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so 5\n#### 72", "72"),
        ("#### 72.0", "72"),
        ("#### $1,234.50", "1234.5"),
        ("#### -$5", "-5"),
        ("#### -1,000", "-1000"),
        ("#### 0.0", "0"),
        ("#### -0", "0"),
        ("#### 007", "7"),
        ("#### .5", "0.5"),
        ("#### 18 dollars", "18"),
        ("#### **42**", "42"),
        ("#### 12.", "12"),
        ("#### 50%", "50"),
        ("#### 3\nThe answer is: 4", "4"),
        ("The answer is: 4\n#### 3", "3"),
        ("The answer is 9.", "9"),
        ("the final answer is: 6", "6"),
        ("The answer is: \\frac{1}{2}", "\\frac{1}{2}"),
        ("The answer is: 1/2", "1/2"),
        ("The answer is: 3x+2.", "3x+2"),
        ("#### 3\n\nQuestion: more?\nAnswer: 5\n#### 5", "3"),
        ("the result is 42", None),
        ("####", None),
        ("", None),
    ],
)
def test_the_marked_answer_is_the_last_one_in_one_form(text, answer):
    assert marked_answer(text) == answer


def test_formulas_and_words_are_not_numbers():
    assert [plain_number(text) for text in ("x", "3x+2", "1/2", "2^3", "12:30")] == [None] * 5


def test_only_calculator_notes_are_removed():
    assert without_notes("48/2 = <<48/2=24>>24 < 30 << x") == "48/2 = 24 < 30 << x"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("the answer is 20+5=25 #### 25", "25"), ("The answer is: 18. #### 18", "18"), ("#### 5 #### 6", "6"),
        ("#### 18$", "18"), ("#### 10km", "10"), ("#### 12 (dozen)", "12"), (r"#### \boxed{18}", "18"),
        ("#### −5", "-5"), ("The answer is: 5 x + 2", "5 x + 2"), ("#### 3x+2", "3x+2"), ("#### 1/2", "1/2"),
        (r"#### \$18", "18"), ("#### 18?", "18"), ("#### 18;", "18"), ("#### 18:", "18"), ("#### 18,", "18"),
        ("#### €5", "5"), ("#### -€5", "-5"), ("#### £1,200.50", "1200.5"), ("#### 5 €", "5"), ("#### ¥5", "5"),
        ("#### 5 m", "5"), ("#### 5 m.", "5"), ("#### 2.5 L", "2.5"), (r"#### 18\%", "18"), ("#### 18 %", "18"),
        (r"The answer is: \$18.", "18"), (r"#### \$1,234", "1234"), ("#### **€5**", "5"), ("#### 10km;", "10"),
        ("#### 5 x", "5 x"), ("#### 5x", "5x"), ("#### 3:2", "3:2"), ("#### 5!", "5!"), ("#### 2\\pi", "2\\pi"),
        ("#### 3 m + 2", "3 m + 2"), (r"#### 18\text{ cm}", "18"), ("#### m", "m"), (r"#### 5\sqrt{2}", r"5\sqrt{2}"),
    ],
)  # fmt: skip
def test_the_marked_answer_is_read_in_many_notations(text, answer):
    assert marked_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### **18** dollars", "18"), ("#### `18`", "18"), ('#### "18".', "18"), ("#### (18)", "18"),
        ("#### _18_", "18"),
        ("#### +5", "5"), ("#### = 5", "5"), ("#### ~5", "5"), ("#### –5", "-5"), ("#### — $5", "-5"),
        ("#### - 5", "-5"),
        ("#### 18°", "18"), ("#### -3 °C.", "-3"), ("#### 18 m²", "18"), ("#### 18 m/s", "18"), ("#### 18 km/h", "18"),
        ("#### ₹18", "18"), ("#### 18₹", "18"), ("#### 18 ¢", "18"), ("#### US$18", "18"), ("#### USD 18", "18"),
        ("#### 12 000", "12000"), ("#### 1\u202f234 567.50", "1234567.5"), ("#### 1'000", "1000"),
        ("#### 1{,}000", "1000"),
        (r"#### 1\,000\,dollars", "1000"), ("#### 5 million", "5000000"), ("#### $1.5 million dollars", "1500000"),
        ("#### 2 hundred", "200"), (r"The answer is: \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"The answer is: \boxed{\text{Eve}}.", "Eve"), ("#### 12 00", "12 00"), ("#### 18, 19", "18, 19"),
        ("#### 5 millions", "5000000"), ("#### usual", "usual"), ("#### (3, 4)", "(3, 4)"), ("#### 5 - 6", "5 - 6"),
        ("#### x = 5", "x = 5"), ("#### 2 - x", "2 - x"), ("#### 2–3", "2-3"), ("#### USDA 18", "USDA 18"),
    ],
)  # fmt: skip
def test_signs_around_a_number_do_not_hide_it(text, answer):
    assert marked_answer(text) == answer


@pytest.mark.parametrize("part", ["$", " ", "*", "\\", "$ ", "(", r"\boxed{", "1 ", "1,", "−"])
def test_a_model_that_repeats_itself_is_read_at_once(part):
    """A thousand tokens of one sign: a pattern that tries every way to divide them would take minutes."""
    began = time.perf_counter()
    for text in (part * 5000, part * 5000 + "5x", "5" + part * 5000 + "x"):
        marked_answer("#### " + text)
    assert time.perf_counter() - began < 5
