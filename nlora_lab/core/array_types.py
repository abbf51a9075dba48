"""jaxtyping's annotations of tensors with a shape: ``Float[Tensor, "m n"]``.

Without jaxtyping, as on a bare GPU node, ``Float[Tensor, "m n"]`` is ``Tensor``. The tests check shapes at run time,
so they need jaxtyping.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Float64, Int64, Num, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Float32, Float64, Int64, Num, Shaped
    except ImportError:

        class Shaped:
            """An annotation that names only the type of the array."""

            def __class_getitem__(cls, type_and_shape: tuple[Any, str]) -> Any:
                """Return the type."""
                return type_and_shape[0]

        Bool = Float = Float32 = Float64 = Int64 = Num = Shaped

__all__ = ["Bool", "Float", "Float32", "Float64", "Int64", "Num", "Shaped"]
