"""Everything that a card must show, in one command: see ``__main__``."""

import os
import sys
from pathlib import Path

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # looking for a card must not forbid to fork

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other benchmarks are scripts beside this folder
