"""Checks shapes and dtypes of tensors against jaxtyping's annotations while the tests run.

A call that raises is left alone: refusing a bad tensor is what the function is for. After a call that returns, every
annotated argument and the result must be what the annotations say, with one size for each letter.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jaxtyping
from jaxtyping import AbstractArray
from torch import Tensor

PACKAGES = ["nlora_lab.lowrank", "nlora_lab.spectra", "nlora_lab.adapters"]

one_size_for_each_letter = jaxtyping.jaxtyped  # with "context": what isinstance found holds until the block ends


def install() -> None:
    """Have the functions and dataclasses of ``PACKAGES`` checked when they are imported."""
    # its own decorator binds the arguments of every function, and checks them twice: half the time of a training run
    jaxtyping.jaxtyped = lambda *, typechecker: typechecker
    jaxtyping.install_import_hook(PACKAGES, "shape_checks.check_shapes")


def check_shapes(checked: Any) -> Any:
    """The decorator that the import hook puts on every function and class."""
    if not isinstance(checked, type):
        return _check_function(checked)
    if dataclasses.is_dataclass(checked):
        checked.__init__ = _check_fields(checked, checked.__init__)
    return checked


def _check_function(function: Callable[..., Any]) -> Callable[..., Any]:
    if not any("[" in str(hint) or str(hint)[:1].isupper() for hint in function.__annotations__.values()):
        return function
    names = function.__code__.co_varnames[: function.__code__.co_argcount]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if hints := array_hints(function):
            given = dict(zip(names, args, strict=False)) | kwargs | {"return": result}
            _check(function.__qualname__, hints, given)
        return result

    return call


def _check_fields(kind: type, init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if hints := array_hints(kind):
            _check(kind.__qualname__, hints, vars(self))

    return call


_HINTS: dict[Any, dict[str, Any]] = {}
_CHECKED: set[Any] = set()


def array_hints(owner: Any) -> dict[str, Any]:
    """The annotations of a function or dataclass that speak of tensors. Read when it is first called, and kept."""
    key = getattr(owner, "__code__", owner)  # one for a nested function, however often it is made
    if key not in _HINTS:
        names = owner.__globals__ if hasattr(owner, "__globals__") else vars(sys.modules[owner.__module__])
        hints = {name: _evaluated(hint, names) for name, hint in owner.__annotations__.items()}
        _HINTS[key] = {name: hint for name, hint in hints.items() if any(map(_is_array, _parts(hint)))}
    return _HINTS[key]


def _evaluated(hint: Any, names: dict[str, Any]) -> Any:
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, names)
    except NameError:  # imported for the type checker alone
        return Any


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in typing.get_args(hint):
        yield from _parts(part)


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def _form(value: Any) -> Any:
    """All that a check looks at."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    return tuple(map(_form, value)) if isinstance(value, (tuple, list)) else type(value)


def _check(name: str, hints: dict[str, Any], given: dict[str, Any]) -> None:
    """Check what was given, unless the same shapes and dtypes were found right before."""
    form = (id(hints), *(_form(given.get(key)) for key in hints))
    if form in _CHECKED:
        return
    with one_size_for_each_letter("context"):
        for key, hint in hints.items():
            if key in given and not fits(given[key], hint):
                value, what = given[key], "the result" if key == "return" else key
                found = (tuple(value.shape), value.dtype) if hasattr(value, "shape") else type(value)
                raise TypeError(f"{what} of {name} is {found}, which is not {hint}")
    _CHECKED.add(form)


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is what ``hint`` says, as far as that speaks of tensors."""
    if _is_array(hint):
        return isinstance(value, hint)
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        tensors = [h for h in inside if _is_array(h)]
        return not tensors or not hasattr(value, "dtype") or any(fits(value, h) for h in tensors)
    if origin is tuple and isinstance(value, tuple) and len(inside) == len(value) and Ellipsis not in inside:
        return all(fits(v, h) for v, h in zip(value, inside, strict=True))
    if origin in (list, Sequence) and isinstance(value, list) and inside:
        return all(fits(v, inside[0]) for v in value)
    return True
