"""The names of the rules that choose rows and columns, and of the cores. This module imports no torch."""

from __future__ import annotations

from typing import Literal

PivotRule = Literal["leading", "random", "cross", "qr"]
PIVOTS: tuple[PivotRule, ...] = ("leading", "random", "cross", "qr")
"""The ways to choose rows and columns: the first ones, random ones, complete pivoting, and pivoted QR."""

Core = Literal["pinv", "optimal", "block"]
CORES: tuple[Core, ...] = ("pinv", "optimal", "block")
"""The ways to join the chosen columns and rows: pseudo-inverse of the block, the best core, the block itself."""
