from __future__ import annotations

from collections.abc import Iterator

import pytest
from factories import few_rows


@pytest.fixture(scope="module", autouse=True)
def less_to_read() -> Iterator[None]:
    with few_rows(train=64, validation=16, test=20):
        yield
