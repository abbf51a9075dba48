"""Make the table of results in the README from the recorded runs that ship.

``python -m tools.results_table`` prints the table. With ``--write`` it also replaces the text between the markers in
README.md and in the pages of docs/ that carry them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nlora_lab.analysis.comparison import PLANNED, compare
from nlora_lab.analysis.fresh_seeds import DECLARED, fresh_groups
from nlora_lab.core.formatting import format_rate
from nlora_lab.methods.table import METHODS
from nlora_lab.models.names import EMBEDDED, LARGER
from nlora_lab.runs.config import SHARED_RATE
from nlora_lab.runs.index import RecordedRuns
from nlora_lab.runs.rate_points import RatePoint
from nlora_lab.runs.shipped import BATCH, RANK, STEPS, recorded_runs
from nlora_lab.tasks.generated import SIZES
from tools.study import CHOSEN

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results -->", "<!-- /results -->"
TASK = "word-problems"
SHOWN = ("lora", "slora", "nlora", "nlora-released", "pissa", "full")
CAPTION = (
    f"Task `{TASK}`, rank {RANK}, {STEPS} steps of {BATCH} examples. Accuracy is on {SIZES['test']} test items, in "
    "percent: median (range) over seeds. The best rate of a method is the recorded rate with the lowest median "
    'validation loss. "Against LoRA there" is the verdict of `nl.compare` at the best rates, with the smallest '
    "difference that it would have found in 8 of 10 cases. The last column has the same rate and "
    f"{2 * STEPS} steps, where such runs were made."
)
AT_SHARED = f"accuracy at {format_rate(SHARED_RATE)}"
COLUMNS = (
    "method",
    "trained parameters",
    AT_SHARED,
    "best rate",
    "accuracy at the best rate",
    "against LoRA there",
    f"after {2 * STEPS} steps",
)

FRESH_CAPTIONS = {
    EMBEDDED: (
        f"The same task with {DECLARED[EMBEDDED].steps} steps, on seeds that took no part in the choice of the rate. "
        "Each method has the best of three rates, by validation loss on three other seeds. Compared is the loss of the "
        "right answers to the test items, in nats per token, as a factor with its 95 % interval. Methods, measure and "
        "test were fixed before these runs. The second ten seeds were added by a plan of their own, after the first "
        "ten had been read, and NLoRA balanced was added, too."
    ),
    LARGER: (
        f"The same on the [larger model](data/larger/README.md), after {DECLARED[LARGER].steps} steps. Each rate "
        "is the best of a ladder of factors of two, by validation loss on two other seeds. Methods, rule, measure and "
        "test were fixed before these runs."
    ),
}
ON_FRESH_SEEDS = {EMBEDDED: (*CHOSEN, "nlora-balanced"), LARGER: ("lora", *PLANNED)}
FRESH_COLUMNS = ("method", "rate", "seeds", "loss, median", "times LoRA's", "against LoRA")


def results_table(recorded: RecordedRuns) -> str:
    """Return the table in Markdown, with a caption above it. Each method has a row if it has runs at both rates."""
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([CAPTION, "", *head, *_rows(recorded)])


def _rows(recorded: RecordedRuns) -> Iterator[str]:
    usual = recorded.at_steps(STEPS)
    best = {name: point for name in SHOWN if (point := usual.best(TASK, name, RANK)) is not None}
    rows = compare({name: point.runs for name, point in best.items()}) if "lora" in best else None
    for name, point in best.items():
        shared = usual.at(TASK, name, RANK, SHARED_RATE)
        if shared is not None:
            longer = recorded.at_steps(2 * STEPS).at(TASK, name, RANK, point.lr)
            cells = [
                *(METHODS[name].label, f"{shared.runs[0].trainable:,}", _accuracy(shared), format_rate(point.lr)),
                *(_accuracy(point), "–" if rows is None else _verdict(rows["verdict"][name], rows["detectable"][name])),
                _accuracy(longer) if longer is not None and longer.lr == point.lr else "–",
            ]
            yield f"| {' | '.join(cells)} |"


def fresh_table(recorded: RecordedRuns, model: str = EMBEDDED) -> str:
    """Return the comparison on fresh seeds in Markdown, with a caption above it: see ``nl.analysis.fresh_groups``."""
    names = ON_FRESH_SEEDS[model]
    rows = compare(fresh_groups(names, recorded, model=model), metric="log_test_loss")
    head = [f"| {' | '.join(FRESH_COLUMNS)} |", "|" + "---|" * len(FRESH_COLUMNS)]
    lines = []
    for name in names:
        row: Any = rows.loc[name]
        ends = [f"{10 ** row[column]:.2g}" for column in ("difference", "difference_low", "difference_high")]
        words = str(row["verdict"]).partition(":")[0].removesuffix(" from LoRA").removesuffix(" than LoRA")
        seen = f" (a factor of {10 ** row['detectable']:.2g} would have been seen)" if words.startswith("not") else ""
        times = "1" if name == "lora" else f"{ends[0]} ({ends[1]} to {ends[2]})"
        cells = [METHODS[name].label, format_rate(row["rate"]), str(row["seeds"]), f"{10 ** row['median']:.2g}", times]
        lines.append(f"| {' | '.join([*cells, words + seen])} |")
    return "\n".join([FRESH_CAPTIONS[model], "", *head, *lines])


def _verdict(verdict: str, detectable: float) -> str:
    """The verdict of a row of ``nl.compare``, without its numbers."""
    words = verdict.partition(":")[0].removesuffix(" from LoRA").removesuffix(" than LoRA")
    if words != "not distinguishable" or math.isnan(detectable):
        return words
    return f"{words} (detectable: {100 * detectable:.0f} points)"


def _accuracy(point: RatePoint) -> str:
    median, low, high = (100 * value for value in (point.accuracy.middle, point.accuracy.low, point.accuracy.high))
    return f"{median:.1f} ({low:.1f}–{high:.1f}), {point.seeds} seeds"


def block_of(text: str, place: object = "the text") -> str:
    """Return what stands between the markers of a text. ``place`` names the text in the error message."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{place} must hold {BEGIN} once, and {END} once after it")
    return text.partition(BEGIN)[2].partition(END)[0].strip("\n")


def marked_files(root: Path) -> list[Path]:
    """Return the README and those pages of ``docs`` that carry a marker."""
    files = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return [file for file in files if BEGIN in (text := file.read_text(encoding="utf-8")) or END in text]


def write_table(root: Path, table: str) -> list[Path]:
    """Replace what stands between the markers in every marked file, and return these files."""
    files = marked_files(root)
    for file in files:
        text = file.read_text(encoding="utf-8")
        block_of(text, file)  # both markers are there
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        file.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8", newline="\n")
    return files


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and with ``--write`` replace it in the files. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.results_table", description="Print the table of results, from the recorded runs."
    )
    parser.add_argument("--write", action="store_true", help="replace the table in the Markdown files that carry it")
    options = parser.parse_args(argv)
    recorded, larger = recorded_runs(), recorded_runs(model=LARGER)
    table = "\n\n".join([results_table(recorded), fresh_table(recorded), fresh_table(larger, LARGER)])
    print(table)
    if options.write:
        files = write_table(ROOT, table)
        names = ", ".join(str(file.relative_to(ROOT)) for file in files)
        print(f"wrote {names}" if files else f"no file holds {BEGIN}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
