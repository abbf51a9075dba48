"""The initialisations of N in SLoRA: their names, and why zero is not one of them."""

from __future__ import annotations

from nlora_lab.errors import InputError, one_of

CORE_INITS = ("kaiming", "xavier", "orthogonal", "identity", "normal")


def check_core_init(init: str) -> None:
    """Raise :class:`InputError` unless ``init`` is one of :data:`CORE_INITS`."""
    if init == "zeros":
        raise InputError(
            "init='zeros': with N = 0 and B = 0 no factor ever gets a gradient, so nothing can learn; "
            f"choose one of: {', '.join(CORE_INITS)}"
        )
    one_of("init", init, CORE_INITS)
