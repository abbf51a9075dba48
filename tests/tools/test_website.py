"""The sources of the site are assembled with links that hold, and its checks find what is broken.

Sphinx itself runs with ``make site`` only.
"""

from __future__ import annotations

import json
import os
import re
import runpy

import pytest
from docutils.utils.math import MathError
from factories import ROOT

from tools.browser import why_no_browser
from tools.website import reference, sources
from tools.website.checks import broken_links, loads_from_elsewhere, missing_names, pictures_without_text, read_site
from tools.website.mathml import to_mathml
from tools.website.width import wider_than_a_phone

SETTINGS = ROOT / "docs" / "site" / "conf.py"


@pytest.fixture(scope="module")
def assembled(tmp_path_factory):
    target = tmp_path_factory.mktemp("site") / "sources"
    sources.assemble(target)
    return target


def test_every_document_and_notebook_is_a_page_in_the_side_bar(assembled):
    side_bar = (assembled / "index.md").read_text().partition("```{toctree}")[2]
    pages = {
        p.relative_to(assembled).with_suffix("").as_posix()
        for p in assembled.rglob("*")
        if p.suffix in {".md", ".ipynb"}
    }
    assert len([p for p in pages if p.startswith("notebooks/")]) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    assert {"docs/install", "docs/methods", "data/results/README", "labs"} <= pages
    assert {page for page in pages - {"index"} if f"\n{page}\n" not in side_bar} == set()


def test_a_page_loads_no_picture_from_the_network_and_every_picture_has_a_text(assembled):
    pictures = 0
    for path in assembled.rglob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            assert "![" not in "".join(cell["source"]), path.name
            shown = [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
            pictures += len(shown)
            assert not shown or len(cell["metadata"]["mystnb"]["image"]["alt"]) > 10
    assert pictures >= 20


def test_links_hold_on_the_site():
    page, inside = ROOT / "docs" / "lab.md", {ROOT / "docs" / "inside.md", ROOT / "data" / "results" / "README.md"}

    def mended(text):
        return sources.mend_links(text, page, inside)

    for text in (
        "[a](inside.md#b)",
        "[a](https://example.org)",
        "[a](#here)",
        "`[a](nothing.md)`",
        "```\n[a](no.md)\n```",
    ):
        assert mended(text) == text
    assert mended("[a](../README.md)") == "[a](../index.md)"
    assert mended("[a](../data/results)") == "[a](../data/results/README.md)"
    assert mended("[a](../Makefile#x)") == f"[a]({sources.BLOB}Makefile#x)"
    assert mended("[![Open in Colab](https://x/badge.svg)](https://y)") == "[Open in Colab](https://y)"
    with pytest.raises(FileNotFoundError, match=r"docs/lab\.md: the link nothing\.md leads to nothing"):
        mended("[a](nothing.md)")


def test_a_notebook_with_an_error_or_a_silent_picture_is_refused():
    def notebook(output):
        return {"cells": [{"cell_type": "code", "metadata": {}, "source": "", "outputs": [output]}]}

    place = ROOT / "notebooks" / "x.ipynb"
    with pytest.raises(ValueError, match="a cell ends in NameError"):
        sources.prepare_notebook(notebook({"output_type": "error", "ename": "NameError"}), place, set())
    with pytest.raises(ValueError, match="no line of text"):
        sources.prepare_notebook(notebook({"output_type": "display_data", "data": {"image/png": ""}}), place, set())


def test_every_public_name_is_documented_and_has_an_entry(tmp_path):
    names = reference.public_names()
    assert len(names) >= 150
    assert reference.undocumented() == []
    reference.write_reference(tmp_path)
    text = "".join(path.read_text() for path in tmp_path.glob("*.md"))
    homes = reference.entries()
    assert homes.keys() == names.keys()
    assert homes["nlora_lab.nystrom"] == homes["nlora_lab.lowrank.nystrom"] == "nlora_lab.lowrank.nystrom"
    constants = {f"{module}.{short}" for short, module in re.findall(r":: (\w+)\n   :module: ([\w.]+)", text)}
    assert [name for name in homes.values() if f":: {name}\n" not in text and name not in constants] == []


def test_an_undocumented_name_is_found(monkeypatch):
    names = {"a": len, "b": lambda: None, "nlora_lab.methods.METHODS": {}}
    monkeypatch.setattr(reference, "public_names", lambda: names)
    assert reference.undocumented() == ["b"]
    assert reference.documentation("nlora_lab.tasks.TASKS", {}) == "The generated tasks by name."


GOOD = (
    '<a id="here" href="#here">x</a><img src="a.png" alt="a line">'
    '<script src="s.js"></script><iframe title="t" src="b.html">'
)


def site(tmp_path, text, style=""):
    for name in ("a.png", "s.js"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b.html").write_text('<p id="there">')
    (tmp_path / "s.css").write_text(style)
    (tmp_path / "a.html").write_text(text)
    pages = read_site(tmp_path)
    return broken_links(tmp_path, pages), loads_from_elsewhere(tmp_path, pages), pictures_without_text(tmp_path, pages)


def test_a_site_without_faults_passes(tmp_path):
    assert site(tmp_path, GOOD + '<a href="b.html#there">y</a><a href="https://example.org">z</a>') == ([], [], [])


@pytest.mark.parametrize(
    ("text", "style", "check", "line"),
    [
        ('<a href="c.html">', "", 0, "a.html: c.html is not on the site"),
        ('<a href="b.html#no">', "", 0, "a.html: b.html#no has no such place"),
        ('<a href="#no">', "", 0, "a.html: #no has no such place"),
        ('<img alt="x" src="no.png">', "", 0, "a.html: no.png is not on the site"),
        ('<script src="https://cdn.example.org/x.js">', "", 1, "a.html: loads https://cdn"),
        ('<link href="//fonts.example.org/f.css" rel="stylesheet">', "", 1, "a.html: loads //fonts"),
        ("", "@font-face { src: url(https://fonts.example.org/f) }", 1, "s.css: loads from the network"),
        ('<img src="a.png" alt=" ">', "", 2, "a.html: a.png has no alternative text"),
        ('<img src="a.png">', "", 2, "a.html: a.png has no alternative text"),
        ('<iframe src="b.html">', "", 2, "a.html: b.html has no alternative text"),
    ],
)
def test_every_fault_of_a_site_is_found(tmp_path, text, style, check, line):
    found = site(tmp_path, GOOD + text, style)
    assert [len(lines) for lines in found] == [int(i == check) for i in range(3)]
    assert found[check][0].startswith(line)


@pytest.mark.skipif(why_no_browser() is not None and os.environ.get("CI") != "true", reason=str(why_no_browser()))
def test_a_page_that_is_wider_than_a_phone_is_found(tmp_path):
    pages = {
        "fits": "<p>" + "word " * 400 + "</p>",
        "scrolls": '<div style="overflow-x: auto"><pre>' + "x" * 200 + "</pre></div>",
        "wide": '<p>text</p><table class="data"><td>' + "x" * 200 + "</table>",
    }
    for name, text in pages.items():
        (tmp_path / f"{name}.html").write_text(f'<meta name="viewport" content="width=device-width">{text}')
    (line,) = wider_than_a_phone(tmp_path, sorted(tmp_path.glob("*.html")))
    assert line.startswith("wide.html: ")
    assert line.endswith("because of td")


def test_a_name_without_an_entry_is_found(tmp_path):
    (tmp_path / "api.html").write_text('<dt id="nlora_lab.lowrank.nystrom">')
    pages = read_site(tmp_path)
    assert missing_names(pages, ["nlora_lab.lowrank.nystrom"]) == []
    assert missing_names(pages, ["nlora_lab.lowrank.svd"]) == ["nlora_lab.lowrank.svd is not in the reference"]


def test_the_settings_execute_nothing_and_load_nothing():
    settings = runpy.run_path(str(SETTINGS))
    assert settings["nb_execution_mode"] == "off"
    assert settings["nb_ipywidgets_js"] == {}
    assert settings["html_math_renderer"] == "mathml"
    assert all((SETTINGS.parent / "static" / name).is_file() for name in settings["html_css_files"])


def test_formulas_become_elements_that_need_no_script():
    element = to_mathml(r"W \approx C\,A^{+} R", block=True)
    assert element.startswith('<math alttext="W \\approx C\\,A^{+} R"')
    assert "<mi>W</mi>" in element


def formulas(text):
    """Yield the formulas of a Markdown text that Sphinx would find, outside code."""
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    for block, inline in re.findall(r"\$\$(.+?)\$\$|(?<![\\$])\$(?!\s)([^$]+?)(?<!\s)\$(?!\d)", text, flags=re.DOTALL):
        yield block or inline


def test_every_formula_can_be_converted(assembled):
    texts = {path: path.read_text(encoding="utf-8") for path in assembled.rglob("*.md")}
    for path in assembled.rglob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts[path] = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    found = {(path.relative_to(assembled), formula) for path, text in texts.items() for formula in formulas(text)}
    assert len(found) > 300
    for name, formula in sorted(found):
        try:
            to_mathml(formula, block=False)
        except MathError as error:
            pytest.fail(f"{name}: {formula}: {error}")
