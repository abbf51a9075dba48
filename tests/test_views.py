"""What is seen of a layer is what is there: for every method, against dense matrices."""

from __future__ import annotations

import pytest
import torch
from adapter_kit import step_once
from support import tiny_gpt2, tiny_llama
