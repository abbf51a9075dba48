"""The ledger: every claim, what is found when one looks, and the verdict that follows by rule."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nlora_lab.analysis.selection import Runs, known
from nlora_lab.core.validation import check_choice
from nlora_lab.runs.index import RecordedRuns

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("printed", "runs", "elsewhere")
COLUMNS = ("claim", "says", "source", "found", "verdict", "command")


@dataclass(frozen=True)
class Finding:
    """What a check found, the verdict that follows by rule, and the command that shows a reader the same."""

    measured: str
    verdict: str
    command: str


@dataclass(frozen=True)
class Claim:
    """One thing that is said, by whom, and how it is looked into.

    ``kind``: "printed" (what the printed numbers themselves allow to say), "runs" (what can be measured here, most of
    it on our recorded runs) or "elsewhere" (what only the paper's own models and tasks can tell). ``says`` paraphrases;
    the paper's own words stand in quotation marks.
    """

    name: str
    kind: str
    says: str
    source: str
    check: Callable[[RecordedRuns], Finding]


def ledger(runs: Runs = None, kind: str | None = None) -> pd.DataFrame:
    """Every claim with what was found: one row a claim, the columns claim, says, source, found, verdict, command.

    ``runs``: a store, its folder, or recordings; by default those that ship. ``kind``: one of "printed", "runs" and
    "elsewhere", by default all. Verdicts on runs are about the embedded model. Those that compare are at 95 %
    confidence, each in its row: p is adjusted for all that is compared there, the intervals are not. "Rank by rank"
    counts medians, and "cheap" is a timing.
    """
    import pandas as pd

    from nlora_lab.paper.checks import claims

    if kind is not None:
        check_choice("kind", kind, KINDS)
    recordings, rows = known(runs), []
    for claim in claims():
        if kind in (None, claim.kind):
            found = claim.check(recordings)
            rows.append((claim.name, claim.says, claim.source, found.measured, found.verdict, found.command))
    return pd.DataFrame(rows, columns=list(COLUMNS))


class Sheet(str):
    """A table of sentences in Markdown: a notebook breaks its lines, anything else shows the text."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return str(self)


def sheet(frame: pd.DataFrame, columns: Sequence[str] = ("claim", "found", "verdict")) -> Sheet:
    """Some columns of a :func:`ledger`, to be read."""
    for name in columns:
        check_choice("column", name, [str(c) for c in frame.columns])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for _, row in frame.iterrows():
        lines.append("| " + " | ".join(_cell(str(row[name]), name) for name in columns) + " |")
    return Sheet("\n".join(lines))


def _cell(text: str, column: str) -> str:
    plain = " ".join(text.split()).replace("|", "\\|")
    return f"`{plain}`" if column == "command" else html.escape(plain, quote=False)
