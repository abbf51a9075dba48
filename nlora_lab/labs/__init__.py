"""Panels of widgets, each fully drivable from Python as well."""

from __future__ import annotations

from nlora_lab.labs.fine_tune import FineTuneLab
from nlora_lab.labs.memory import MemoryLab
from nlora_lab.labs.nystrom import NystromLab
from nlora_lab.labs.spectrum import SpectrumLab
from nlora_lab.labs.svd import SvdLab

__all__ = ["FineTuneLab", "MemoryLab", "NystromLab", "SpectrumLab", "SvdLab"]
