from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from factories import ARCHITECTURES


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
