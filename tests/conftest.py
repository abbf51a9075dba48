from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from factories import ARCHITECTURES, ROOT

SLOW = (
    "browser",
    "integration",
    "sweeps",
    "labs",
    "training",
    "gpu",
    "adapters/test_adapter_libraries.py",
    "adapters/test_contract.py",
    "adapters/test_export.py",
    "analysis/test_curvature.py",
    "cli",
    "evaluation/test_saved.py",
    "evaluation/test_scoring.py",
    "models/test_hub.py",
    "paper",
    "project/test_card.py",
    "project/test_linear_algebra_benchmark.py",
    "project/test_wheel.py",
    "runs/test_shipped.py",
)
"""Start other processes, or train for long. Left out by ``make quick``."""

FIRST = (
    "browser",
    "integration",
    "labs",
    "sweeps",
    "training",
    "notebooks",
    "cli/test_signals.py",
    "adapters",
    "project/test_card.py",
    "project/test_wheel.py",
    "models/test_hub.py",
    "analysis/test_curvature.py",
    "paper",
)
"""What takes longest runs first, so that both processes are busy until the end."""


def _place(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT).as_posix().removeprefix("tests/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _place(item).startswith(SLOW):
            item.add_marker("slow")
    items.sort(key=lambda item: _rank(_place(item)))


def _rank(place: str) -> int:
    return next((number for number, first in enumerate(FIRST) if place.startswith(first)), len(FIRST))


@pytest.fixture(params=list(ARCHITECTURES))
def make_model(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Builds the same tiny random model every time it is called."""

    def build() -> Any:
        torch.manual_seed(7)
        return ARCHITECTURES[request.param]().eval()

    return build


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    return torch.randint(0, 97, (3, 11), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def embedded() -> tuple[Any, Any]:
    from nlora_lab.models.loading import load_model

    return load_model()
