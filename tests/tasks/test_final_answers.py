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
        ("#### 18 W", "18"), ("#### 5h", "5"), ("#### 5 d", "5"), ("#### 18/hour", "18"), ("#### 5 ℃", "5"),
        ("#### ￥5", "5"), ("#### 18元", "18"),
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


@pytest.mark.parametrize(
    "text",
    [
        "1,5", "1,23", "1,00", "1,000,00", "1,2,3", "1000,000", "1,2345", "1,5 kg", "$1,5",
        "5 plus 3", "5 minus x", "5 divided by 6", "5 over 6", "5 times 6", "5 out of 6", "1 in 4", "18 or 19",
        "18 or nineteen", "18 to 20", "18 and 20", "18% of 20", "18 apples and 3 pears", "18 each, 36 total",
        "2 hundred thousand", "5 thousand and 3", "2 hundred and one", "5 Million", "2 trillion", "2 dozen", "5 dozens",
        "3 lakh", "3 k", "$3 mil", "3bn", "18 grand", "18 tens", "5 hundredths", "1 tenth", "2 thirds", "5 halves",
        "1 half", "6 quarters", "2 and a half", "2 and ¾", r"2 and \frac{1}{2}", "2 and a third", "5 pi", "5 sqrt(2)",
        "5 squared", "18 below zero", "18 dollars and 50 cents", "18 dollars and fifty cents", "$18 and 50 cents",
        "2 hours 30 minutes", "2 hours and 30 minutes", "5 ft 6 in", "5 ft. 6 in.", "5 100 gram bags",
        "3 250 ml bottles", "$5m", "$5 m", "5t", "5c", "1 500 is 3 times", "2 million-dollar houses",
    ],
)  # fmt: skip
def test_a_text_is_not_read_as_a_number_that_it_does_not_mean(text):
    assert plain_number(text) is None
    assert marked_answer(f"#### {text}") == text.removesuffix(".")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,000,000", "1000000"), ("12,34,567", "1234567"), ("1,00,000", "100000"), ("1,000, as said", "1000"),
        ("18 apples", "18"), ("18 dollars per hour", "18"), ("50% of the students", "50"), ("12 (dozen)", "12"),
        ("18 apples (6 * 3)", "18"), ("18. She buys 3 and 15.", "18"), ("18 apples. She buys 3.", "18"),
        ("**18 apples.** She buys 3.", "18"), ("18 because 6*3 = 18", "18"), ("18 days since 6*3 = 18", "18"),
        ("18 in one day", "18"), ("18 times", "18"), ("18 left over", "18"), ("18 seconds", "18"), ("5 pairs", "5"),
        ("18 cm2", "18"), ("18 cm^2", "18"), ("18 cm^{2}", "18"), ("10 000 apples", "10000"),
        ("12 500 dollars per month", "12500"), ("5 050 gram bags", "5050"), ("18th", "18"), ("18 tenants", "18"),
        ("18 pies", "18"), ("18 kids", "18"), ("18 pints", "18"), ("18 millimetres", "18"), ("18 thirsty men", "18"),
        ("2 hundred dollars", "200"),
        ("18!", "18"), ("**18!**", "18"), ("18.5!", "18.5"), ("18 million!", "18000000"), ("18!!", "18"), ("5!", None),
        ("5!!", None), ("10!/5!", None), ("10! ways", None), ("18…", "18"), ("18 …", "18"), ("18…20", None),
        ("18 apples…", "18"), ("5m", "5"), ("5m.", "5"), ("5g", "5"), ("2.5L", "2.5"), ("5m²", "5"), ("5m/s", "5"),
        ("5m+2", None), ("5k", None), ("<18>", "18"), ("<$18>", "18"), ("<18", None), ("18 < 20", None),
        ("18\u200b", "18"), ("\u200e18", "18"), ("\u202a18\u202c", "18"), ("\ufeff-\u200e18", "-18"),
        ("1\u200b8", "18"), ("CHF 18", "18"), ("CAD 18", "18"), ("C$18", "18"), ("R$ 18", "18"), (r"R\$ 18", "18"),
        ("A$18", "18"), ("C 18", None), ("CHF18", None), ("R18", None),
    ],
)  # fmt: skip
def test_what_stands_beside_a_number_does_not_change_it(text, number):
    assert plain_number(text) == number


@pytest.mark.parametrize(
    "part",
    [
        "$", " ", "*", "\\", "$ ", "(", r"\boxed{", "1 ", "1,", "−", "<", "!", "!*", ".", ". ", "…", " (", ",000",
        " 000", "A", "\u200b", "^",
    ],
)  # fmt: skip
def test_a_model_that_repeats_itself_is_read_at_once(part):
    """A thousand tokens of one sign: a pattern that tries every way to divide them would take minutes."""
    began = time.perf_counter()
    for text in (part * 5000, part * 5000 + "5x", "5" + part * 5000 + "x", "5 kg" + part * 5000 + "x"):
        marked_answer("#### " + text)
    assert time.perf_counter() - began < 5
