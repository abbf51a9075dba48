from __future__ import annotations

from collections.abc import Iterator

import pytest
from factories import few_rows


@pytest.fixture(scope="module", autouse=True)
def less_to_read() -> Iterator[None]:
    with few_rows(train=256, validation=64, test=100):
        yield
