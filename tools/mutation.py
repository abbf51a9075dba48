"""Change the code in small ways, one at a time, and see whether the tests notice.

    python -m tools.mutation lowrank --sample 60         # draw 60 mutants of a package, and test those that are new
    python -m tools.mutation --report                    # the shares so far, and the survivors

A mutant is a copy of the package with one change: another comparison, operator, number or truth value, or a condition
turned round. It is killed if a test of its own package fails, or takes ten times as long as without a change. The
results are lines of a JSON file, so a run that was interrupted resumes. Each test run is a copy of this process
(``os.fork``), which has imported the large libraries already, so it needs Linux or macOS. It is not in the checks.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {
    "lowrank": ("nlora_lab/lowrank/*.py", ["tests/lowrank"]),
    "adapters": ("nlora_lab/adapters/*.py", ["tests/adapters"]),
    "methods": (
        "nlora_lab/methods/*.py",
        ["tests/methods", "tests/adapters/test_contract.py", "tests/training/test_run_export.py"],
    ),
    "comparison": ("nlora_lab/analysis/comparison.py", ["tests/analysis/test_comparison.py"]),
    "store": ("nlora_lab/runs/store.py", ["tests/runs/test_store.py"]),
}
SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.MatMult: ast.Add, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
HEAVY = "torch transformers peft pandas scipy.stats sklearn.metrics safetensors.torch".split()


def changes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the places that can be changed, in a fixed order. Types, messages and what only types need are left out."""
    if isinstance(tree, ast.Raise | ast.JoinedStr) or getattr(getattr(tree, "test", None), "id", "") == "TYPE_CHECKING":
        return
    if isinstance(tree, ast.AnnAssign):
        parts: list[ast.AST] = [tree.value] if tree.value else []
    elif isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
        parts = [*tree.decorator_list, *tree.args.defaults, *filter(None, tree.args.kw_defaults), *tree.body]
    else:
        parts = list(ast.iter_child_nodes(tree))
    is_number = isinstance(tree, ast.Constant) and isinstance(tree.value, int | float)  # True and False too
    is_operator = isinstance(tree, ast.Compare | ast.BinOp | ast.BoolOp | ast.AugAssign)
    is_condition = isinstance(tree, ast.If | ast.IfExp | ast.While) or (
        isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not | ast.USub)
    )
    if is_number or is_condition or (is_operator and type(_operator(tree)) in SWAPS):
        yield tree
    for part in parts:
        yield from changes(part)


def _operator(node: ast.AST) -> ast.AST:
    return node.ops[0] if isinstance(node, ast.Compare) else node.op  # type: ignore[attr-defined]


def mutate(tree: ast.Module, number: int) -> tuple[str, str, int]:
    """Return the text of a module with one of its ``changes``, what was changed, and its line."""
    tree = copy.deepcopy(tree)
    node = list(changes(tree))[number]
    before = _first_line(node)
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int | float)
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.Compare):
        node.ops[0] = SWAPS[type(node.ops[0])]()
    else:
        node.op = SWAPS[type(node.op)]()  # type: ignore[attr-defined]
    line = node.lineno  # type: ignore[attr-defined]
    return ast.unparse(ast.fix_missing_locations(tree)), f"{before}  ->  {_first_line(node)}", line


def _first_line(node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0][:110]


def all_mutants(target: str) -> list[tuple[str, int]]:
    """Return the file and the number of each mutant of a target."""
    files = sorted(file for file in ROOT.glob(TARGETS[target][0]) if file.name != "__init__.py")
    counts = {str(f.relative_to(ROOT)): len(list(changes(ast.parse(f.read_text(encoding="utf-8"))))) for f in files}
    return [(file, number) for file, count in counts.items() for number in range(count)]


def make_copy(place: Path) -> Path:
    """Copy what the tests need, and return the copy."""
    for name in ("nlora_lab", "tests", "data", "notebooks", "docs", "tools", "benchmarks"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "site"))
    for file in ROOT.glob("*.*"):
        if file.is_file():
            shutil.copy(file, place)
    return place


def passes(home: Path, tests: list[str], seconds: float) -> bool:
    """Whether the tests pass on a copy of the package, within a time."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            os.chdir(home)
            os.environ["PYTHONPATH"] = str(home)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            sys.dont_write_bytecode = True
            sys.path.insert(0, str(home))
            for name in [name for name in sys.modules if name.split(".")[0] in ("nlora_lab", "tools")]:
                del sys.modules[name]
            import pytest

            code = int(pytest.main(["-x", "-q", "--assert=plain", "-p", "no:cacheprovider", *tests]))
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def try_mutants(target: str, sample: int, seed: int, results: Path) -> None:
    """Test a sample of the mutants of a target, and add a line for each to the results."""
    import importlib

    for name in HEAVY:
        importlib.import_module(name)
    known = {(row["file"], row["number"]) for row in read(results)}
    drawn = random.Random(seed).sample(all_mutants(target), min(sample, len(all_mutants(target))))
    tests = TARGETS[target][1]
    with tempfile.TemporaryDirectory(prefix="nlora-mutation-") as name:
        home, began = make_copy(Path(name)), time.monotonic()
        if not passes(home, tests, 3600):
            sys.exit(f"the tests {tests} fail without any change")
        limit = 10 * (time.monotonic() - began) + 10
        for file, number in (mutant for mutant in drawn if mutant not in known):
            source = (ROOT / file).read_text(encoding="utf-8")
            text, change, line = mutate(ast.parse(source), number)
            (home / file).write_text(text, encoding="utf-8")
            killed = not passes(home, tests, limit)
            (home / file).write_text(source, encoding="utf-8")
            row = {"target": target, "file": file, "number": number, "line": line, "change": change, "killed": killed}
            with results.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
            print("killed  " if killed else "SURVIVED", f"{file}:{line}  {change}", flush=True)


def read(results: Path) -> list[dict[str, object]]:
    """Read the results so far."""
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()] if results.exists() else []


def main() -> None:
    """Test mutants, or print what is known about them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--sample", type=int, default=40, help="mutants of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "mutants.jsonl")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for target in options.targets:
        try_mutants(target, options.sample, options.seed, options.results)
    rows = read(options.results)
    for row in rows if options.report else []:
        if not row["killed"]:
            print(f"survived: {row['file']}:{row['line']}  {row['change']}")
    for target in TARGETS:
        own = [row for row in rows if row["target"] == target]
        killed = sum(bool(row["killed"]) for row in own)
        print(f"{target}: {killed} of {len(own)} killed, of {len(all_mutants(target))} mutants in all")


if __name__ == "__main__":
    main()
