"""The API reference: one page per package with every public name."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from itertools import pairwise
from pathlib import Path

import nlora_lab as nl


def packages() -> list[str]:
    """Return the packages with public names, in alphabetical order."""
    root = Path(nl.__file__).parent
    names = (path.parent.name for path in root.glob("*/__init__.py"))
    return sorted(n for n in names if getattr(importlib.import_module(f"nlora_lab.{n}"), "__all__", []))


def public_names() -> dict[str, object]:
    """Return every public value by its full name, first those at the top (``nlora_lab.check``), then the packages'."""
    found: dict[str, object] = {}
    for name in importlib.import_module("nlora_lab").__all__:
        if not inspect.ismodule(value := getattr(nl, name)):
            found[f"nlora_lab.{name}"] = value
    for package in packages():
        module = importlib.import_module(f"nlora_lab.{package}")
        found.update({f"nlora_lab.{package}.{name}": getattr(module, name) for name in module.__all__})
    return found


def entries() -> dict[str, str]:
    """Return where each public name has its entry: a name at the top has that of its package, if it is there too."""
    everything = public_names()
    home = {id(value): name for name, value in everything.items() if name.count(".") == 2}
    return {name: home.get(id(value), name) if name.count(".") == 1 else name for name, value in everything.items()}


def undocumented() -> list[str]:
    """Return the public names without a docstring of their own."""
    return [name for name, value in public_names().items() if not documentation(name, value)]


def documentation(name: str, value: object) -> str:
    """Return the docstring of a public name. That of a constant is the text below its assignment.

    Args:
        name: the full name, such as ``nlora_lab.methods.METHODS``.
        value: the function, class or constant.

    Returns:
        The text, or nothing.
    """
    if inspect.isclass(value) or inspect.isroutine(value):
        return (inspect.getdoc(value) or "").strip()
    package, _, short = name.rpartition(".")
    stub = Path(importlib.import_module(package).__file__ or "").with_suffix(".pyi")
    (module,) = (
        node.module
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module and node.names[0].asname == short
    )
    source = Path(importlib.import_module(f"{package}.{module}").__file__ or "").read_text(encoding="utf-8")
    body = ast.parse(source).body
    for node, after in pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if is_text and any(isinstance(target, ast.Name) and target.id == short for target in targets):
            return inspect.cleandoc(str(after.value.value))  # type: ignore[attr-defined]
    return ""


def write_reference(folder: Path) -> None:
    """Write the pages of the reference.

    Args:
        folder: the folder of the pages. ``index.md`` links to all of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    everything = public_names()
    home = entries()
    top = [name for name in everything if name.count(".") == 1]
    rows = [_row(name, everything[name], home[name]) for name in top]
    alone = [name for name in top if home[name] == name]
    pages = packages()
    lines = ["# API reference", "", "`import nlora_lab as nl` gives the names that most people need:", ""]
    lines += ["| name | what it is |", "|---|---|", *rows, ""]
    lines += [_directive(name, everything[name]) for name in alone]
    lines += ["All other names are in their package, for example `nl.plots.valleys`.", ""]
    lines += ["```{toctree}", ":maxdepth: 1", *pages, "```", ""]
    (folder / "index.md").write_text("\n".join(lines), encoding="utf-8")
    for package in pages:
        module = importlib.import_module(f"nlora_lab.{package}")
        names = [name for name in everything if name.startswith(f"nlora_lab.{package}.")]
        about = ["```{eval-rst}", f".. automodule:: {module.__name__}", "   :no-members:", "```", ""]
        body = [f"# nl.{package}", "", *about]
        body += [_directive(name, everything[name]) for name in names]
        (folder / f"{package}.md").write_text("\n".join(body), encoding="utf-8")


def _row(name: str, value: object, target: str) -> str:
    first = documentation(name, value).split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    return f"| {{py:obj}}`nl.{name.split('.')[-1]} <{target}>` | {first.replace('``', '`')} |"


def _directive(name: str, value: object) -> str:
    if inspect.isclass(value):
        lines = [f".. autoclass:: {name}", "   :members:"]
    elif inspect.isroutine(value):
        lines = [f".. autofunction:: {name}"]
    else:
        module, _, short = name.rpartition(".")
        lines = [
            f".. py:data:: {short}",
            f"   :module: {module}",
            "",
            textwrap.indent(documentation(name, value), "   "),
        ]
    return "\n".join(["```{eval-rst}", *lines, "```", ""])
