"""The rows of a split: a ``datasets.Dataset``, or a small table where that library is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]


def make_rows(rows: Sequence[Row]) -> Dataset:
    """Make the rows of a split.

    Args:
        rows: one dictionary per row, all with the same keys.

    Returns:
        A ``datasets.Dataset``. Without that library, as on a bare GPU node, a ``RowTable``.
    """
    try:
        from datasets import Dataset
    except ModuleNotFoundError as error:
        if error.name != "datasets":  # the library is there, and something that it needs is not
            raise
        return RowTable(rows)
    return Dataset.from_list(rows)


class RowTable:
    """Rows with the part of the interface of ``datasets.Dataset`` that this package uses.

    Args:
        rows: one dictionary per row, all with the same keys.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = list(rows)

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        return list(self._rows[0]) if self._rows else []

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(map(dict, self._rows))

    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    @overload
    def __getitem__(self, key: slice) -> dict[str, list[Any]]: ...
    def __getitem__(self, key: int | str | slice) -> Row | list[Any] | dict[str, list[Any]]:
        """Return a row by its number, a column by its name, or the columns of a slice of rows."""
        if isinstance(key, str):
            return [row[key] for row in self._rows]
        if isinstance(key, slice):
            return {name: [row[name] for row in self._rows[key]] for name in self.column_names}
        return dict(self._rows[key])

    def select(self, numbers: Iterable[int]) -> RowTable:
        """Return the rows with these numbers, in this order."""
        return RowTable([self._rows[number] for number in numbers])
