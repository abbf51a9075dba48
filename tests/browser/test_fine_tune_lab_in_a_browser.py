"""FineTuneLab as a student uses it: Run, Stop and the sliders by keyboard, a reloaded page, a restarted kernel."""

from __future__ import annotations

import pytest

FEW, MANY = 150, 900  # steps: a run that ends soon, and one that does not end before it is stopped
HOSTILE = "<img src=x onerror=window.hacked=1>"


@pytest.fixture
def open_lab(open_notebook):
    def opens(steps, methods='"lora"'):
        notebook = open_notebook(
            "import nlora_lab as nl", f"lab = nl.FineTuneLab({methods})\nlab.steps.value = {steps}\nlab"
        )
        notebook.run_all()
        notebook.wait_for_lab()
        return notebook

    return opens


def press(notebook, name, key="Enter"):
    from playwright.sync_api import expect

    button = notebook.wait_for_lab().get_by_role("button", name=name)
    expect(button).to_be_enabled(timeout=30_000)
    button.focus()
    notebook.page.keyboard.press(key)


def run_until_it_grows(notebook, key="Enter", times=3):
    """Press Run, and wait until the figure has changed several times."""
    press(notebook, "▶ Run", key)
    shown = []

    def grown():
        now = notebook.drawn()[-1]
        if not shown or now != shown[-1]:
            shown.append(now)
        return len(shown) > times

    notebook.until(grown, 60, "a curve grows")


def until_stopped(notebook):
    notebook.until(lambda: notebook.run("print(lab.running)") == "False", 20, "the run ends")


def kept_steps(notebook):
    """The number of steps of every run, and whether it was stopped. Waits for the last run."""
    return notebook.run("print(*[(len(r.steps), r.stopped) for r in lab.wait()])", 120)


def test_run_by_keyboard_draws_while_other_cells_run(open_lab):
    notebook = open_lab(FEW)
    notebook.screenshot("before")
    notebook.screenshot("before", width=900)
    run_until_it_grows(notebook)
    notebook.screenshot("during")
    assert notebook.run("print(6 * 7, lab.running)") == "42 True"
    assert kept_steps(notebook) == f"({FEW}, False)"
    notebook.screenshot("after")


def test_stop_by_keyboard_keeps_what_was_trained_and_a_moved_slider_does_not_disturb_it(open_lab):
    notebook = open_lab(MANY)
    run_until_it_grows(notebook, key="Space")
    notebook.wait_for_lab().get_by_label("learning rate", exact=True).focus()
    for _ in range(5):
        notebook.page.keyboard.press("ArrowRight")
    rate = "print(lab.running, f'{lab.lr.value:.1e}')"  # a kernel that trains reads the five keys one after the other
    notebook.until(lambda: notebook.run(rate) == "True 6.3e-04", 20, "Python follows the slider")
    press(notebook, "■ Stop", "Space")
    until_stopped(notebook)
    assert notebook.run("r = lab.runs[-1]; print(r.stopped, 0 < len(r.steps) < 900, r.config.lr)") == "True True 0.0002"
    run_until_it_grows(notebook)  # and it can be started again
    press(notebook, "■ Stop")
    until_stopped(notebook)
    assert notebook.run("print([r.stopped for r in lab.runs])") == "[True, True]"


def test_page_and_python_show_the_same_in_every_view(open_lab):
    notebook = open_lab(FEW, methods='("lora", "nlora")')
    notebook.run("lab", keep=True)
    notebook.until(lambda: len(notebook.drawn()) == 2, 30, "a second view")
    before = notebook.drawn()
    slider = notebook.wait_for_lab().get_by_label("learning rate", exact=True)
    slider.focus()
    notebook.page.keyboard.press("ArrowRight")
    notebook.until(lambda: all(a != b for a, b in zip(notebook.drawn(), before, strict=True)), 20, "both views follow")
    assert slider.get_attribute("aria-valuetext") == "2.5e-4"
    assert notebook.run("print(f'{lab.lr.value:.1e}')") == "2.5e-04"
    notebook.run('lab.method.value, lab.task.value = ("slora", "full"), "entailment"')
    ticked = ".chip input:checked"
    notebook.until(lambda: notebook.page.locator(ticked).count() == 4, 20, "both views follow Python")
    box = notebook.wait_for_lab().get_by_role("checkbox", name="LoRA", exact=True)
    box.focus()
    notebook.page.keyboard.press("Space")
    notebook.until(lambda: "lora" in notebook.run("print(*lab.method.value)").split(), 20, "Python follows a tick")


def test_names_are_text_and_the_tabs_open(open_lab):
    notebook = open_lab(3)
    press(notebook, "▶ Run")
    notebook.run("runs = lab.wait()", 60)
    notebook.run(f"lab.rename(0, {HOSTILE!r})")
    notebook.until(lambda: any(HOSTILE in text for text in notebook.drawn()[-1]), 20, "the name is shown")
    for tab in ("answers", "inside", "runs"):
        notebook.page.locator(".lm-TabBar-tabLabel", has_text=tab).last.click()
        notebook.until(lambda tab=tab: notebook.run("print(lab._view.tab)") == tab, 20, "the tab opens")
    notebook.page.wait_for_timeout(1000)
    assert notebook.page.evaluate("() => window.hacked ?? null") is None


def test_the_lab_is_seen_in_one_look(open_lab):
    notebook = open_lab(FEW)
    notebook.page.set_viewport_size({"width": 1366, "height": 768})
    notebook.page.wait_for_timeout(500)
    box = notebook.page.evaluate(
        """() => { const lab = document.querySelector('.nlora-lab'), all = lab.getBoundingClientRect();
          return {height: all.height, wide: lab.scrollWidth - lab.clientWidth,
                  figure: lab.querySelector('.figure').getBoundingClientRect().bottom - all.top}; }"""
    )
    assert box["figure"] <= 520
    assert box["height"] <= 620
    assert box["wide"] <= 0


def test_runs_outlive_their_page(open_lab):
    notebook = open_lab(FEW)
    run_until_it_grows(notebook)
    notebook.reload()
    assert kept_steps(notebook) == f"({FEW}, False)"
    notebook.run("lab", keep=True)
    run_until_it_grows(notebook)
    notebook.close()
    notebook.open()
    assert kept_steps(notebook) == f"({FEW}, False) ({FEW}, False)"
    notebook.run("lab", keep=True)
    run_until_it_grows(notebook)
    press(notebook, "■ Stop")
    until_stopped(notebook)
    assert notebook.run("print([r.stopped for r in lab.runs])") == "[False, False, True]"


def test_after_a_kernel_restart_in_mid_run_everything_works_again(open_lab):
    notebook = open_lab(MANY)
    run_until_it_grows(notebook)
    notebook.restart_kernel()
    assert notebook.run("print('lab' in globals())") == "False"
    notebook.run_all()
    run_until_it_grows(notebook)
    press(notebook, "■ Stop")
    until_stopped(notebook)
    assert notebook.run("print([r.stopped for r in lab.runs])") == "[True]"
