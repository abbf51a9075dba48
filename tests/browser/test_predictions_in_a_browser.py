"""A prediction in JupyterLab: the measurement is not on the page until the button is pressed."""

from __future__ import annotations

ASK = """import nlora_lab as nl
number = nl.predict("0.1", "How many of 200?", lambda: measured, low=0, high=200, unit="problems")
number"""
SKETCH = """curve = nl.predict("1.4", "The error at each rank", [0.91, 0.52, 0.23], at=[1, 8, 32], low=0, high=1)
curve"""


def test_a_guess_is_committed_with_the_keyboard_and_the_measurement_appears(open_notebook):
    notebook = open_notebook("measured = 173", ASK, SKETCH)
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".widget-slider")
    assert page.get_by_text("173 problems").count() == 0
    notebook.move("problems", times=3)
    page.locator("button.widget-button", has_text="Commit my prediction").first.focus()
    page.keyboard.press("Enter")
    page.get_by_text("173 problems").wait_for()
    assert notebook.run("print(number.guess, number.measured)") == "103.0 173.0"

    notebook.move("at 1", times=5)
    page.get_by_text("0.55").wait_for()  # the keys of a busy page arrive late
    notebook.press("Commit my prediction")
    page.get_by_text("apart on average").wait_for()
    page.get_by_text("0.55, 0.5, 0.5").wait_for()  # the last move may arrive after the button
    assert notebook.run("print(curve.guess, curve.measured)") == "[0.55, 0.5, 0.5] [0.91, 0.52, 0.23]"
    notebook.screenshot("predictions", 900)
