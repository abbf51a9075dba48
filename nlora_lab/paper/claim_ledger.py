"""The ledger: every claim with the evidence for or against it, and the verdict that follows by a rule."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nlora_lab.analysis.selection import Runs, recorded_index
from nlora_lab.core.validation import check_choice
from nlora_lab.paper.measured_claims import measured_claims
from nlora_lab.paper.reported_claims import claims_elsewhere, reported_claims
from nlora_lab.paper.verdicts import KINDS, Claim

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("claim", "says", "source", "tested", "evidence", "verdict", "command")
SHOWN = ("claim", "tested", "evidence", "verdict")


def claims() -> list[Claim]:
    """Return the claims of the ledger.

    Returns:
        The claims in the order of the ledger.
    """
    return [*reported_claims(), *measured_claims(), *claims_elsewhere()]


def ledger(runs: Runs = None, kind: str | None = None, entries: Iterable[Claim] | None = None) -> pd.DataFrame:
    """Check every claim and return the results.

    Verdicts on runs are about the embedded model. Verdicts that compare methods are at 95 % confidence, each in its own
    row: p is adjusted for all comparisons made together, the intervals are not. "Rank by rank" counts medians, and
    "cheap" is a timing on this machine.

    Args:
        runs: a store, its folder, or recorded runs. ``None`` takes the runs that ship.
        kind: "printed" (claims that the reported figures can support), "runs" (claims that are measured here) or
            "elsewhere" (claims that cannot be tested here). ``None`` takes all.
        entries: claims of your own, for example of another paper. ``None`` takes those of the NLoRA paper.

    Returns:
        One row per claim. Columns: claim (its name), says, source, tested (how), evidence (with "detectable", the
        smallest true difference that the test would have found in 8 of 10 cases), verdict, and command (a shell command
        that shows the same numbers).

    Raises:
        InputError: ``kind`` is unknown, or ``runs`` cannot be read.
    """
    import pandas as pd

    if kind is not None:
        check_choice("kind", kind, KINDS)
    recorded, rows = recorded_index(runs), []
    for claim in claims() if entries is None else entries:
        if kind in (None, claim.kind):
            finding = claim.check(recorded)
            statement = (claim.name, claim.says, claim.source, claim.tested)
            rows.append((*statement, finding.evidence, finding.verdict, finding.command))
    return pd.DataFrame(rows, columns=list(COLUMNS))


class MarkdownTable(str):
    """A Markdown table as text. A notebook renders it with line breaks in the cells."""

    __slots__ = ()

    def _repr_markdown_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return str(self)


def to_markdown(
    frame: pd.DataFrame, columns: Sequence[str] = ("claim", "tested", "evidence", "verdict")
) -> MarkdownTable:
    """Format some columns of a ledger as a Markdown table.

    Args:
        frame: a table of texts, as ``ledger`` returns it.
        columns: the columns to show. "command" is shown as code.

    Returns:
        The table. It is a ``str`` that a notebook renders.

    Raises:
        InputError: the table lacks one of the columns.
    """
    for name in columns:
        check_choice("column", name, [str(c) for c in frame.columns])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for _, row in frame.iterrows():
        lines.append("| " + " | ".join(_cell(str(row[name]), name) for name in columns) + " |")
    return MarkdownTable("\n".join(lines))


def _cell(text: str, column: str) -> str:
    one_line = " ".join(text.split()).replace("|", "\\|")
    return f"`{one_line}`" if column == "command" else html.escape(one_line, quote=False)
