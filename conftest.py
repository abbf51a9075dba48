"""Settings of all tests, those of the notebooks included: on the CPU, offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("NLORA_LAB_DEVICE", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent / "tests"))


def pytest_configure() -> None:
    import notebook_output

    notebook_output.install()
