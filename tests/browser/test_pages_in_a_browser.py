"""The labs as pages: one file, the network cut off. What they show equals what Python computes."""

from __future__ import annotations

import itertools
import math
import random
import warnings

import pytest
import torch

import nlora_lab as nl
from nlora_lab.core.formatting import format_rate
from nlora_lab.lowrank.factors import relative_error
from nlora_lab.pages.scripts import NYSTROM, module
from nlora_lab.pages.sections import write_lab, write_labs
from nlora_lab.runs.shipped import recorded_runs

# Sets the controls of the first lab as a reader does, waits for the frame, and returns the table.
SET = """
async settings => {
  const lab = document.querySelector('.nlora-lab');
  const label = text => [...lab.querySelectorAll('label')].find(l => l.textContent === text);
  for (const chip of lab.querySelectorAll('.chip')) {
    if (chip.querySelector('input').checked !== settings.methods.includes(chip.textContent)) chip.click();
  }
  const own = label('each at its own best rate').firstChild;
  if (own.checked !== settings.own) own.click();
  const set = (text, value, event) => {
    const control = document.getElementById(label(text).htmlFor);
    control.value = value;
    control.dispatchEvent(new Event(event));
  };
  set('rank r', settings.rank, 'input');
  set('learning rate', settings.exponent, 'input');
  set('task', settings.task, 'change');
  set('N in SLoRA', settings.init, 'change');
  set('recorded steps', settings.steps, 'change');
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  return [...lab.querySelectorAll('tbody tr')].map(row => [...row.children].map(cell => cell.textContent));
}
"""


@pytest.fixture
def open_page(context):
    """Opens a file in a browser without a network. At the end no script may have failed."""
    opened, errors = [], []
    offline = context.browser.new_context(viewport={"width": 1000, "height": 620}, offline=True)

    def opens(path):
        page = offline.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(path.as_uri())
        page.wait_for_selector(".nlora-lab tbody td")
        opened.append(page)
        return page

    yield opens
    offline.close()
    assert errors == []


def shown(value, form):
    return "–" if math.isnan(value) else "diverged" if math.isinf(value) else format(value, form)


def rows(lab):
    """The rows that the page must show, from ``lab.numbers()``."""
    texts = []
    for n in lab.numbers().to_dict("records"):
        point = lab.recorded(n["method"])
        rate = nl.core.formatting.format_rate
        accuracy, there = (shown(100 * n[k], ".1f") for k in ("accuracy", "accuracy_there"))
        texts.append(
            [
                "–" if point is None else f"{n['parameters']:,.0f}",
                "not recorded" if point is None else rate(n["rate"]),
                shown(n["final_loss"], ".3f"),
                accuracy,
                str(n["seeds"]) if point else "–",
                "–" if math.isnan(n["own_rate"]) else rate(n["own_rate"]),
                there,
                shown(n["test_loss"], ".3f"),
            ]
        )
    return texts


def middles(row):
    """The cells of a row of the page, without ranges and units."""
    return [cell.split(" (")[0].removesuffix(" %") for cell in row[1:]]


def test_what_a_page_shows_equals_the_numbers_of_the_lab(open_page, tmp_path):
    page, lab, draw = open_page(write_lab(tmp_path / "lab.html", recorded_runs())), nl.FineTuneLab(), random.Random(0)
    seen = set()
    for _ in range(200):
        methods = draw.sample(list(nl.METHODS), draw.randint(1, 4))
        settings = {
            "rank": draw.choice([1, 2, 3, 4, 6, 8, 8, 8, 12, 16, 32, 100]), "exponent": draw.randint(-50, 0) / 10,
            "own": draw.random() < 0.3, "task": draw.choice(["word-problems", "word-problems", "entailment"]),
            "init": draw.choice(["kaiming", "kaiming", "identity", "orthogonal"]),
            "steps": draw.choice(lab.recordings.budgets),
        }  # fmt: skip
        lab.method.value, lab.rank.value, lab.lr.value = methods, settings["rank"], 10 ** settings["exponent"]
        lab.own_rates.value, lab.task.value, lab.init.value = settings["own"], settings["task"], settings["init"]
        lab.steps.value = settings["steps"]
        table = page.evaluate(SET, {**settings, "methods": [nl.METHODS[m].label for m in methods]})
        assert [middles(row) for row in table] == rows(lab), settings
        assert [row[0] for row in table] == [m.label for m in lab._view.methods], settings
        seen |= {row[2] for row in table}
    assert len(seen) > 10


def random_cases(count):
    """Matrices and options of ``nl.nystrom``, in turn. No tolerance is a ratio of 1/k: rounding would decide a tie."""
    generator = torch.Generator().manual_seed(1)
    options = itertools.product(("pinv", "optimal", "block"), ("leading", "random", "cross", "qr"), (None, 0.15, 1e-3))
    for i, (core, pivots, rtol) in zip(range(count), itertools.cycle(options), strict=False):
        m, n = torch.randint(6, 128 if i % 10 == 0 else 50, (2,), generator=generator).tolist()
        W = torch.randn(m, n, generator=generator, dtype=torch.float64)
        if i % 3 == 1:
            U, S, Vh = torch.linalg.svd(W, full_matrices=False)
            W = U @ torch.diag(1 / torch.arange(1, len(S) + 1, dtype=W.dtype)) @ Vh
        extra = 0 if core == "block" else i % 2 * (i % 5)
        rank = max(1, min(m - extra, n, m // 2))
        yield W, rank, {"core": core, "pivots": pivots, "rtol": rtol, "oversample": extra}


def test_the_page_computes_what_nystrom_computes_on_a_hundred_matrices(open_page, tmp_path):
    page = open_page(write_lab(tmp_path / "lab.html", recorded_runs()))
    script = module(NYSTROM).replace("export default { render };", "")
    compute = (
        "({m, n, a, rank, options}) => { const x = new Nystrom({m, n, a: Float64Array.from(a)}, options);"
        " return [x.error(rank), x.error(Math.ceil(rank / 2)), [...x.product(rank).a]]; }"
    )
    page.evaluate(f"() => {{ window.compute = (() => {{ {script}; return {compute}; }})(); }}")
    for W, rank, options in random_cases(100):
        draw = torch.Generator().manual_seed(0)
        order = [torch.randperm(size, generator=draw).tolist() for size in W.shape]
        asked = {**options, "rtol": options["rtol"] or 0, "maxRank": rank, "random": order}
        case = {"m": W.shape[0], "n": W.shape[1], "a": W.flatten().tolist(), "rank": rank, "options": asked}
        here, half, product = page.evaluate("given => compute(given)", case)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected, lower = (
                nl.nystrom(W, r, **options, generator=torch.Generator().manual_seed(0)) for r in (rank, -(-rank // 2))
            )
        assert here == pytest.approx(float(relative_error(W, expected)), rel=1e-5, abs=1e-9), options
        assert half == pytest.approx(float(relative_error(W, lower)), rel=1e-5, abs=1e-9), options
        difference = torch.tensor(product, dtype=W.dtype).reshape(W.shape) - expected.product()
        assert difference.norm() <= 1e-5 * max(W.norm(), expected.product().norm()), options


def test_all_three_labs_answer_to_the_keyboard(open_page, tmp_path):
    page = open_page(write_labs(tmp_path / "labs.html"))
    for number, label in ((0, "learning rate"), (1, "rank r"), (2, "rank r")):
        lab = page.locator(".nlora-lab").nth(number)
        texts = lab.inner_text()
        lab.get_by_label(label, exact=True).focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(300)
        assert lab.inner_text() != texts, label
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, select, button')].filter(c =>
            !(c.labels?.length || c.textContent.trim() || c.getAttribute('aria-label'))).map(c => c.outerHTML)"""
    )
    assert unnamed == []
    words = page.evaluate("() => document.querySelector('.nlora-lab .unseen').textContent")
    assert words.startswith("LoRA at rate 2e-4: final loss")  # 2.5e-4 on the slider: 2e-4 is the recorded rate near it
    page.locator(".cell").nth(5).click()
    page.locator(".cell").nth(5).and_(page.locator("[aria-pressed=true]")).wait_for()  # drawn in the next frame


def heard(page):
    """What a screen reader is given: the role, name, description and value of every node that it reads."""
    session = page.context.new_cdp_session(page)
    nodes = [node for node in session.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    session.detach()
    parts = ("role", "name", "description", "value")
    return [tuple(str(node.get(part, {}).get("value", "")) for part in parts) for node in nodes]


def test_a_screen_reader_is_given_names_values_and_what_the_figures_show(open_page, tmp_path):
    page = open_page(write_labs(tmp_path / "labs.html"))
    controls = {"slider", "checkbox", "combobox", "button", "spinbutton", "radio", "image"}
    before = heard(page)
    assert [node for node in before if node[0] in controls and not node[1].strip()] == []
    sliders = [value for role, _, _, value in before if role == "slider"]
    assert len(sliders) >= 5
    assert all(sliders)
    for number, label in ((0, "learning rate"), (1, "rank r"), (2, "rank r")):
        page.locator(".nlora-lab").nth(number).get_by_label(label, exact=True).press("End")
    page.wait_for_timeout(300)
    after = heard(page)
    for figure in ("loss over steps", "error at every rank"):  # their descriptions are the numbers
        was, now = (next(n for n in nodes if n[0] == "image" and n[1].startswith(figure)) for nodes in (before, after))
        assert was[2] != now[2], figure
        assert any(c.isdigit() for c in now[2]), figure
    cell = next(i for i, node in enumerate(before) if "relative error" in node[1] and node[0] == "button")
    assert before[cell][1] != after[cell][1]  # the cells of the map hold the numbers of its figure
    assert [node[3] for node in after if node[0] == "slider"] != sliders


# Every text and picture beyond the edge of its lab, and every pair of neighbours that cover each other.
MISPLACED = """
() => [...document.querySelectorAll('.nlora-lab')].flatMap(lab => {
  const box = node => node.getBoundingClientRect();
  const edge = box(lab).right;
  const shown = [...lab.querySelectorAll('svg text, canvas, select, .figure')].filter(e => !e.closest('.wide-table'));
  const beyond = shown.filter(e => box(e).right > edge + 2).map(e => `beyond the edge: ${e.textContent || e.tagName}`);
  const parts = [...lab.querySelectorAll('.maps > *, .figure')].filter(e => !e.querySelector('.figure'));
  const meet = (a, b) => a.left < b.right - 2 && b.left < a.right - 2 && a.top < b.bottom - 2 && b.top < a.bottom - 2;
  const covered = parts.flatMap((a, i) =>
    parts.slice(i + 1).filter(b => meet(box(a), box(b))).map(b => `a ${a.className} on a ${b.className}`));
  const wide = [...lab.querySelectorAll('.maps > *')].filter(e => e.scrollWidth > e.clientWidth + 2
    && getComputedStyle(e).overflowX === 'visible').map(e => `wider than its place: ${e.textContent.slice(0, 40)}`);
  return [...beyond, ...covered, ...wide];
})
"""


@pytest.mark.parametrize("width", [360, 390, 560, 760, 1240])
def test_on_a_phone_and_on_a_desk_nothing_is_cut_off_or_covered(open_page, tmp_path, width):
    page = open_page(write_labs(tmp_path / "labs.html"))
    page.set_viewport_size({"width": width, "height": 844})
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(MISPLACED) == []


def test_a_second_number_of_steps_and_a_third_measure_get_a_switch(open_page, tmp_path):
    known = recorded_runs()
    best = known.at_steps(500).best("word-problems", "lora", 8)
    page = open_page(write_lab(tmp_path / "lab.html", known))
    page.get_by_label("measure").select_option("test_loss")
    page.get_by_label("recorded steps").select_option("500")
    page.get_by_label("each at its own best rate", exact=True).check()
    page.wait_for_timeout(200)
    figure = page.locator(".figure svg").text_content()
    assert "NLL of the right answers" in figure
    assert best is not None
    assert f"LoRA · {format_rate(best.lr)}" in figure
    page.get_by_label("task").select_option("entailment")
    page.wait_for_timeout(200)
    assert "LoRA · 1e-2 · 250 steps" in page.locator(".figure svg").text_content()  # entailment has no run of 500 steps


def test_a_burst_of_events_is_drawn_once_per_frame_so_that_a_drag_leaves_no_backlog(open_page, tmp_path):
    """Fifty moves of the slider in one task: nothing is drawn before the frame, and the frame shows the last one."""
    page = open_page(write_lab(tmp_path / "lab.html", recorded_runs(), {"methods": list(nl.METHODS)}))
    seen = page.evaluate(
        """async () => {
          const [slider, figure] = [document.querySelector('input[type=range]'), document.querySelector('.figure svg')];
          const [ask, asked, drawn] = [window.requestAnimationFrame, [], []];
          window.requestAnimationFrame = (draw) => asked.push(draw) && ask(draw);
          const observer = new MutationObserver((records) => drawn.push(records.length));
          observer.observe(figure, {subtree: true, childList: true, attributes: true, characterData: true});
          for (let i = 50; i >= 0; i -= 1) {
            slider.value = -i / 10;
            slider.dispatchEvent(new Event('input'));
          }
          const early = observer.takeRecords().length;
          window.requestAnimationFrame = ask;
          for (let frame = 0; frame < 3; frame += 1) await new Promise((next) => ask(next));
          return {asked: asked.length, early, draws: drawn.length, shown: slider.getAttribute('aria-valuetext')};
        }"""
    )
    assert seen == {"asked": 1, "early": 0, "draws": 1, "shown": "1.0e0"}
