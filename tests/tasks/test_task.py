"""Rows without the library datasets give what its tables give."""

from __future__ import annotations

import sys

import pytest

from nlora_lab.tasks.task import RowTable, make_rows

ROWS = [{"prompt": f"p{i}", "target": f"t{i}", "answer": str(i)} for i in range(5)]


def test_rows_are_a_dataset_where_the_library_is_installed():
    assert type(make_rows(ROWS)).__name__ == "Dataset"


def test_without_the_library_rows_are_a_table(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError):
        import datasets  # noqa: F401
    assert isinstance(make_rows(ROWS), RowTable)


def test_a_table_gives_what_a_dataset_gives():
    table, dataset = RowTable(ROWS), make_rows(ROWS)
    assert len(table) == len(dataset)
    assert list(table) == list(dataset)
    assert table[1] == dataset[1]
    assert table[-1] == dataset[-1]
    assert table[1:3] == dataset[1:3]
    assert list(table["target"]) == list(dataset["target"])
    assert list(table.select([3, 0])) == list(dataset.select([3, 0]))
    assert table.column_names == dataset.column_names
