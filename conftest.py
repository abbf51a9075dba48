"""Settings of all tests, those of the notebooks included: on the CPU, offline, with shapes checked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("NLORA_LAB_DEVICE", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two single-threaded processes do twice the work of one with two threads
sys.path.insert(0, str(Path(__file__).parent / "tests"))

try:
    import shape_checks
except ImportError:  # a bare GPU node runs tests/gpu alone, without shapes checked
    pass
else:
    # now, not in pytest_configure: that runs after tests/conftest.py, which already imports these packages
    shape_checks.install()


def pytest_configure() -> None:
    try:
        from hypothesis import settings
    except ImportError:  # a bare GPU node
        pass
    else:
        # the same examples every time; --hypothesis-profile=default looks for new ones
        settings.register_profile("steady", derandomize=True)
        settings.load_profile("steady")
    import notebook_output

    notebook_output.install()
