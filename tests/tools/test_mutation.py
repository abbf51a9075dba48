"""The mutants of a module: each has one change, and none changes a type, a message or an import."""

from __future__ import annotations

import ast

from tools.mutation import ROOT, TARGETS, all_mutants, changes, mutate

SOURCE = '''
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    MOST = 3

def f(x: int = 2, *, flag: bool = True) -> "3 < 4":
    """Text 5 < 6."""
    if not x < 1 and flag:
        raise ValueError(f"{x + 1}")
    return -x
'''
TREE = ast.parse(SOURCE)


def test_each_mutant_differs_in_one_place():
    texts = [mutate(TREE, number) for number in range(len(list(changes(TREE))))]
    assert [change for _, change, _ in texts] == [
        "2  ->  3",
        "True  ->  False",
        "if not x < 1 and flag:  ->  if not (not x < 1 and flag):",
        "not x < 1 and flag  ->  not x < 1 or flag",
        "not x < 1  ->  not not x < 1",
        "x < 1  ->  x <= 1",
        "1  ->  2",
        "-x  ->  +x",
    ]
    unchanged = ast.unparse(TREE).splitlines()
    for text, _, _ in texts:
        lines = text.splitlines()
        assert sum(a != b for a, b in zip(lines, unchanged, strict=True)) == 1


def test_every_target_has_mutants_and_tests():
    for target, (_, tests) in TARGETS.items():
        assert len(all_mutants(target)) > 50
        assert all((ROOT / test).exists() for test in tests)
