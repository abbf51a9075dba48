"""Checks shapes and dtypes of tensors against jaxtyping's annotations while the tests run.

A call that raises is left alone: refusing a bad tensor is what the function is for. After a call that returns, every
annotated argument and the result must be what the annotations say, with one size for each letter.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import AbstractArray

PACKAGES = ["nlora_lab.lowrank", "nlora_lab.spectra", "nlora_lab.adapters"]


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """jaxtyping's type checker. It is given stubs: one for the arguments before a call, one for all of it after."""
    signature = inspect.signature(function)
    if signature.return_annotation is Any:  # the stub that jaxtyping calls before the function itself
        return lambda *args, **kwargs: None

    def checked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        named = [(name, value, signature.parameters[name].annotation) for name, value in given.items()]
        for name, value, hint in [*named, ("the result", result, signature.return_annotation)]:
            if not fits(value, hint):
                found = (tuple(value.shape), value.dtype) if hasattr(value, "shape") else type(value)
                raise TypeError(f"{name} of {function.__qualname__} is {found}, which is not {hint}")
        return result

    return checked


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is what ``hint`` says, as far as that speaks of tensors."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return isinstance(value, hint)
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        tensors = [h for h in inside if isinstance(h, type) and issubclass(h, AbstractArray)]
        return not tensors or not hasattr(value, "dtype") or any(fits(value, h) for h in tensors)
    if origin is tuple and isinstance(value, tuple) and len(inside) == len(value) and Ellipsis not in inside:
        return all(fits(v, h) for v, h in zip(value, inside, strict=True))
    if origin in (list, Sequence) and isinstance(value, list) and inside:
        return all(fits(v, inside[0]) for v in value)
    return True
