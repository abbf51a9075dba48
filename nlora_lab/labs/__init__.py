"""Panels of widgets, each fully drivable from Python as well."""

from __future__ import annotations

from nlora_lab.labs.fine_tune import FineTuneLab

__all__ = ["FineTuneLab"]
