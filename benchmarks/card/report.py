"""The report of the command: card.md, made from the records alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nlora_lab.core.formatting import format_bytes

from .engine import MEASURED, Part, read_part

INTRODUCTION = """# What a card shows

`python -m benchmarks.card` measures this on a card and writes the records. `python -m benchmarks.card --report` makes
this file from them. [roofline.md](roofline.md) says what is expected, and why.
"""

NOTHING = "not measured"
Rows = dict[str, dict[str, Any]]


def report(out: Path, parts: Sequence[Part]) -> str:
    """The report as Markdown.

    Args:
        out: the folder of the records. It may be empty or missing.
        parts: the parts of the command.
    """
    records = {part.name: read_part(out, part.name) for part in parts}
    name, is_card, is_tiny = (value(records["machine"], "device", key) for key in ("name", "memory", "tiny"))
    sizes, judged = (", tiny sizes" if is_tiny else ""), (records if is_card and not is_tiny else {})
    lines = [INTRODUCTION, f"Device: {name or NOTHING}{sizes}.", "", *targets(judged)]
    for part in parts:
        if part.name != "machine":
            lines += ["", f"## {part.title[0].upper()}{part.title[1:]}", "", *table(part.name, records[part.name])]
    return "\n".join(lines) + "\n"


def value(rows: Rows, case: str, *keys: str) -> Any:
    """A figure of a case, or ``None`` if the case is not measured."""
    found: Any = rows.get(case, {})
    if found.get("status") != MEASURED:
        return None
    for key in keys:
        found = found[key]
    return found


# --- the targets ---


def divided(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None or b == 0 else a / b


def targets(records: dict[str, Rows]) -> list[str]:
    """The table of the targets, which are those of a card: measured, and whether they are reached."""
    race, steps, starts, tests = (records.get(name, {}) for name in ("race", "steps", "starts", "tests"))

    def step(method: str) -> float | None:
        return divided(value(steps, method, "seconds"), value(steps, "lora", "seconds"))

    nlora_start, pissa_start = value(starts, "nlora", "seconds"), value(starts, "pissa", "seconds")
    rows: list[tuple[str, str, float | None, Callable[[float], bool]]] = [
        ("tests marked gpu that fail", "0", failures(tests), lambda x: x == 0),
        (
            "race of 8, relative to 8 runs",
            "≤ 0.35",
            value(race, "batch 16", "ratio", "median"),
            at_most(0.35),
        ),
        ("step of SLoRA, relative to PEFT's LoRA", "≤ 1.02", step("slora"), at_most(1.02)),
        ("step of NLoRA", "≤ 1.06", step("nlora"), at_most(1.06)),
        ("step of IntTune", "≤ 0.95", step("inttune"), at_most(0.95)),
        ("start of NLoRA on 7B shapes, seconds", "≤ 2", nlora_start, at_most(2)),
        ("start of `pissa`, relative to NLoRA", "≥ 50", divided(pissa_start, nlora_start), lambda x: x >= 50),
        ("peak of NLoRA, relative to LoRA's, its own factors and 1 layer", "≤ 1", memory_ratio(steps), at_most(1)),
    ]
    lines = ["| what | target | measured | reached |", "|---|---|---|---|"]
    for what, bound, figure, reached in rows:
        measured = NOTHING if figure is None else f"{figure:.3g}"
        verdict = "–" if figure is None else "yes" if reached(figure) else "**no**"
        lines.append(f"| {what} | {bound} | {measured} | {verdict} |")
    return lines


def at_most(bound: float) -> Callable[[float], bool]:
    return lambda x: x <= bound


def failures(tests: Rows) -> float | None:
    """How many of the tests failed. ``None`` if none ran: without a card all are skipped."""
    if value(tests, "pytest", "passed") == 0 and value(tests, "pytest", "failed") == 0:
        return None
    counts = [value(tests, "pytest", word) for word in ("failed", "error")]
    return None if None in counts else float(sum(counts))


def memory_ratio(steps: Rows) -> float | None:
    """NLoRA's peak over what it may need: LoRA's, the layer, and its factors with gradients and AdamW's means."""
    ours, lora = steps.get("nlora", {}), steps.get("lora", {})
    if value(steps, "nlora", "peak_memory") is None or value(steps, "lora", "peak_memory") is None:
        return None
    factors = 4 * ours["frozen_factors"] + 16 * (ours["trained"] - lora["trained"])
    return float(ours["peak_memory"]) / (lora["peak_memory"] + factors + ours["largest_layer_bytes"])


# --- the parts ---


def seconds(x: Any) -> str:
    return f"{x * 1e3:,.3g} ms" if x < 1 else f"{x:,.3g} s"


def number(x: Any) -> str:
    return f"{x:.3g}" if isinstance(x, float) else str(x)


def ratio(rows: Rows, row: dict[str, Any]) -> str:
    base = value(rows, "lora", "seconds")
    return "–" if base is None else f"{row['seconds'] / base:.3f}"


Column = Callable[[Rows, dict[str, Any]], str]


def key(*path: str, show: Callable[[Any], str] = number) -> Column:
    """A column that shows one figure."""

    def cell(rows: Rows, row: dict[str, Any]) -> str:
        found: Any = row
        for name in path:
            found = found[name]
        return show(found)

    return cell


COLUMNS: dict[str, dict[str, Column]] = {
    "tests": {"passed": key("passed"), "failed": key("failed")},
    "race": {
        "race": key("race", "median", show=seconds),
        "one by one": key("one by one", "median", show=seconds),
        "race / one by one": key("ratio", "median"),
    },
    "steps": {
        "step": key("seconds", show=seconds),
        "relative to LoRA": ratio,
        "peak memory": key("peak_memory", show=format_bytes),
    },
    "starts": {
        "all layers": key("seconds", show=seconds),
        "floor": key("floor_seconds", show=seconds),
        "in floors": lambda _, row: f"{row['seconds'] / row['floor_seconds']:,.3g}",
    },
    "repeats": {
        "bitwise": lambda _, row: "yes" if row["bitwise"] else "no",
        "first loss": key("first_loss"),
        "losses": key("loss"),
        "weights": key("weights"),
    },
    "estimates": {
        "memory, estimated": key("memory", "estimated", show=format_bytes),
        "measured": key("memory", "measured", show=format_bytes),
        "ratio": lambda _, row: f"{row['memory']['estimated'] / row['memory']['measured']:.2f}",
        "step, estimated": key("seconds", "estimated", show=seconds),
        "H100 as published": key("seconds", "estimated, H100 as published", show=seconds),
        "measured ": key("seconds", "measured", show=seconds),
        "ratio ": lambda _, row: f"{row['seconds']['estimated'] / row['seconds']['measured']:.2f}",
    },
    "path": {"figures": lambda _, row: ", ".join(f"{k} {number(v)}" for k, v in row.items() if k not in KEPT)},
    "grid": {"seconds": key("seconds", show=seconds), "all of the grid": key("seconds_for_the_grid", show=seconds)},
    "scan": {
        "seconds": key("seconds", show=seconds),
        "checkpoint": key("bytes", show=format_bytes),
        "resident": key("resident", show=format_bytes),
        "on the card": key("on_card", show=format_bytes),
        "largest tensor": key("largest_tensor_in_float32", show=format_bytes),
    },
}
"""By part, what its table shows of each case."""

KEPT = ("status", "wall_seconds")  # not figures


def table(name: str, rows: Rows) -> list[str]:
    """The table of a part. A case that is not measured says why."""
    if not rows:
        return [f"{NOTHING[0].upper()}{NOTHING[1:]}."]
    columns = COLUMNS[name]
    lines = [f"| | {' | '.join(column.strip() for column in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for case, row in rows.items():
        if row["status"] == MEASURED:
            cells = [column(rows, row) for column in columns.values()]
        else:
            why = " ".join(row.get("why", row.get("error", "")).split()).replace("|", "/")
            cells = [f"{row['status']}: {why}", *[""] * (len(columns) - 1)]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return lines
