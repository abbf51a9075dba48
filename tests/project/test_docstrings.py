"""Every public name has a docstring in one form: what it does, Args, Returns and Raises where they apply."""

from __future__ import annotations

import ast
import importlib
import inspect
import re

import pytest
from factories import ROOT

STUBS = sorted((ROOT / "nlora_lab").glob("*/__init__.pyi"))
FOREIGN = {"adapters": "nlora_lab.adapters"}  # eager, so it has no stub


def exported(package: str) -> list[str]:
    return list(importlib.import_module(f"nlora_lab.{package}").__all__)


PACKAGES = [stub.parent.name for stub in STUBS] + list(FOREIGN)
NAMES = [(package, name) for package in PACKAGES for name in exported(package)]


def sections(doc: str | None) -> set[str]:
    return set(re.findall(r"^\s*(Args|Returns|Raises|Yields|Attributes):$", doc or "", flags=re.M))


def parameters(function: object) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls", "args", "kwargs")]


def problems(name: str, function: object) -> list[str]:
    """What is missing in the docstring of a function or method."""
    doc = inspect.getdoc(function)
    if not doc:
        return [f"{name} has no docstring"]
    missing, signature = [], inspect.signature(function)
    if parameters(function) and "Args" not in sections(doc):
        missing.append(f"{name} has no Args section")
    is_silent = str(signature.return_annotation) in ("None", "<class 'inspect._empty'>")
    says_so = doc.startswith("Return") or sections(doc) & {"Returns", "Yields"}
    if parameters(function) and not is_silent and not says_so:
        missing.append(f"{name} has no Returns section")
    return missing


def test_all_packages_are_looked_at():
    assert len(PACKAGES) >= 16
    assert len(NAMES) >= 100


@pytest.mark.parametrize(("package", "name"), NAMES, ids=[f"{package}.{name}" for package, name in NAMES])
def test_a_public_name_is_documented(package, name):
    value = getattr(importlib.import_module(f"nlora_lab.{package}"), name)
    if inspect.isfunction(value):
        assert problems(name, value) == []
    elif inspect.isclass(value):
        assert inspect.getdoc(value), name
        own = {n: m for n, m in vars(value).items() if inspect.isfunction(m) and not n.startswith("_")}
        assert [p for n, method in own.items() for p in problems(f"{name}.{n}", method)] == []


def test_nothing_raises_an_input_error_in_prose():
    """Errors of public functions are in a Raises section, which a reader and the API reference find."""
    public = list((ROOT / "nlora_lab").rglob("*.py"))
    assert len(public) >= 100
    prose = {}
    for path in public:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                doc = ast.get_docstring(node) or ""
                if re.search(r"Raises :class:", doc):
                    prose[f"{path.name}:{node.name}"] = doc
    assert prose == {}
