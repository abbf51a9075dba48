"""Editions of the notebooks. The student edition is the master. Solutions and slides are made from it."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.files import check_writable, shipped_folder, write_atomically
from nlora_lab.core.validation import check_choice
from nlora_lab.course.registry import find_exercise

EDITIONS = ("students", "solutions", "slides")
CHECK = re.compile(r'nl\.check\(\s*"([^"]+)"')

Notebook = dict[str, Any]
Cell = dict[str, Any]


def write_editions(folder: Path, edition: str = "students") -> list[Path]:
    """Write an edition of every notebook into a folder.

    Args:
        folder: the folder. It is created if it is missing.
        edition: "students" (the notebooks as they ship, exercises open), "solutions" (every exercise solved, for
            teachers) or "slides" (one HTML file per notebook, to be shown in a browser).

    Returns:
        The files.

    Raises:
        InputError: the edition is not known, the folder holds the notebooks themselves or cannot be written, a file
            of a student would be replaced, or nbconvert is missing or failed.
    """
    check_choice("edition", edition, EDITIONS)
    source = shipped_folder("notebooks")
    if folder.resolve() == source.resolve():
        raise InputError(f"{str(folder)!r} holds the notebooks themselves; choose another folder")
    check_writable(folder, str(folder))
    written = []
    for path in sorted(source.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if edition == "students":
            written.append(_write_new(folder / path.name, notebook))
        elif edition == "solutions":
            written.append(_write(folder / f"{path.stem}_solutions.ipynb", solve(notebook)))
        else:
            prepared = _write(folder / f"{path.stem}.ipynb", mark_slides(notebook))
            written.append(_convert(prepared))
            prepared.unlink()
    return written


def solve(notebook: Notebook) -> Notebook:
    """Return a notebook with a solution in the place of every ``...`` that an exercise leaves open.

    Args:
        notebook: the notebook, as JSON.

    Returns:
        A new notebook. The cells that changed, and their checks, have no outputs.
    """
    solved = deepcopy(notebook)
    code = [cell for cell in solved["cells"] if cell["cell_type"] == "code"]
    for before, cell in zip([None, *code], code, strict=False):
        for number in CHECK.findall(_source(cell)):
            solution = find_exercise(number).solution
            stub = next(c for c in (cell, before) if c is not None and "..." in _source(c))
            text = solution_cell(solution) if callable(solution) else re.sub(r"\.\.\.", repr(solution), _source(stub))
            if stub is cell and callable(solution):  # stub and check in one cell
                text += "\n\n" + "\n".join(line for line in _source(cell).splitlines() if CHECK.search(line))
            stub["source"] = text
            for changed in (stub, cell):
                changed["outputs"], changed["execution_count"] = [], None
    return solved


def solution_cell(solution: Any) -> str:
    """Return the source of a solution with everything of its module that it needs, so that it runs in any notebook.

    Args:
        solution: a function or a class of one of the modules of solutions.

    Returns:
        The lines of import, the definitions that the solution uses, and the solution.
    """
    module = inspect.getmodule(solution)
    assert module is not None
    text = inspect.getsource(module)
    places = _places(ast.parse(text))
    imports: list[str] = []
    definitions: list[str] = []
    _collect(solution.__name__, places, text, imports, definitions, set())
    spaced = "\n\n\n".join(definitions)
    return "\n".join(sorted(set(imports))) + ("\n\n\n" if imports else "") + spaced


def mark_slides(notebook: Notebook) -> Notebook:
    """Return a notebook whose cells say how they are shown as slides.

    A heading begins a new slide. After a prediction the next code cell waits for a key, so that the room can vote
    first. Cells of exercises are left out.

    Args:
        notebook: the notebook, as JSON.

    Returns:
        A new notebook.
    """
    marked = deepcopy(notebook)
    predicting = False
    for cell in marked["cells"]:
        text = _source(cell)
        kind = "-"
        if cell["cell_type"] == "markdown":
            kind = "slide" if text.startswith(("# ", "## ", "### ")) else "subslide"
            predicting = bool(re.search(r"\*\*Predict", text))
        elif re.search(r"nl\.(exercise|check)\(|return \.\.\.", text) or "%pip" in text:
            kind = "skip"
        elif predicting:
            kind, predicting = "fragment", False
        cell.setdefault("metadata", {})["slideshow"] = {"slide_type": kind}
    return marked


def _places(tree: ast.Module) -> dict[str, ast.stmt]:
    """The statement at the top of a module that defines each name."""
    places: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            places.update({(a.asname or a.name).split(".")[0]: node for a in node.names})
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            places[node.name] = node
        elif isinstance(node, ast.Assign):
            places.update({t.id: node for t in node.targets if isinstance(t, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            places[node.target.id] = node
    return places


def _collect(
    name: str, places: dict[str, ast.stmt], text: str, imports: list[str], definitions: list[str], seen: set[str]
) -> None:
    """Add what defines a name, after what that needs itself."""
    if name in seen or name not in places:
        return
    seen.add(name)
    node = places[name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        alias = next(a for a in node.names if (a.asname or a.name).split(".")[0] == name)
        one = type(node)(**{**{f: getattr(node, f) for f in node._fields}, "names": [alias]})
        imports.append(ast.unparse(one))
        return
    for used in ast.walk(node):
        if isinstance(used, ast.Name):
            _collect(used.id, places, text, imports, definitions, seen)
    definitions.append(ast.get_source_segment(text, node) or "")


def _source(cell: Cell) -> str:
    return "".join(cell["source"])


def _write(path: Path, notebook: Notebook) -> Path:
    return write_atomically(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def _write_new(path: Path, notebook: Notebook) -> Path:
    """Write a notebook, but never over one with somebody's answers."""
    if path.exists():
        raise InputError(f"{str(path)!r} exists, and may hold somebody's answers; choose an empty folder")
    return _write(path, notebook)


def _convert(path: Path) -> Path:
    """Make slides of a marked notebook with nbconvert, pictures inside."""
    if find_spec("nbconvert") is None:
        raise InputError("slides need nbconvert; run: pip install 'nlora-lab[lab]'")
    command = [sys.executable, "-m", "nbconvert", "--to", "slides", "--SlidesExporter.reveal_scroll=True"]
    done = subprocess.run([*command, "--log-level=ERROR", str(path)], capture_output=True, text=True, check=False)
    slides = path.with_suffix(".slides.html")
    if done.returncode or not slides.is_file():
        raise InputError(f"nbconvert could not make {slides.name} ({' '.join(done.stderr.split())[-300:]})")
    return slides
