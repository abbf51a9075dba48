"""Each quantity has one printed form."""

from __future__ import annotations

import pytest

from nlora_lab.core.formatting import format_bytes, format_duration, format_rate


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (512, "512 bytes"), (12 * 2**10, "12.0 KiB"), (1.5 * 2**20, "1.5 MiB"), (4.6 * 2**30, "4.6 GiB"),
     (16 * 2**30, "16.0 GiB"), (140 * 2**30, "140 GiB"), (3 * 2**40, "3.0 TiB"), (5000 * 2**40, "5,000 TiB")],
)  # fmt: skip
def test_bytes(size, text):
    assert format_bytes(size) == text


def test_durations():
    assert [format_duration(s) for s in (-1, 0.4, 59.6, 200, 7500)] == [
        "0 s", "0 s", "1 min 0 s", "3 min 20 s", "2 h 5 min",
    ]  # fmt: skip


def test_rates():
    assert [format_rate(r) for r in (2e-4, 1.6e-2, 1.0, 0.00316228)] == ["2e-4", "1.6e-2", "1e0", "3.2e-3"]
