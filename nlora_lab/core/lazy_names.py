"""Packages whose names load when they are first used, so that ``import nlora_lab`` loads no large library."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the names of a package's stub available without importing their modules.

    Use it in an ``__init__.py``: ``__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)``. The library
    lazy_loader does the same. Few lines of our own spare a bare GPU node the package.

    Args:
        package: the ``__name__`` of the package.
        file: its ``__file__``. The ``.pyi`` file beside it has a line ``from .module import name as name`` or
            ``from . import module as module`` for each name.

    Returns:
        ``__getattr__``, ``__dir__`` and ``__all__`` of the package.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    places = {alias.asname or alias.name: (node.module, alias.name) for node in imports for alias in node.names}

    def load(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = places[name]
        if module is None:
            return import_module(f"{package}.{attribute}")  # the import itself sets the attribute
        value = getattr(import_module(f"{package}.{module}"), attribute)
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted(places), sorted(places)
