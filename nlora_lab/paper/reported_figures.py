"""The figures that the paper reports, as data with their sources. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ABSTRACT = "abstract"
INTTUNE_TABLE = "the paper's table of IntTune"
FIGURE_4_BARS = "figure 4, its bars read by eye, give or take 0.3"
RELEASED_CODE = "released code, github.com/TracyGuo2001/NLoRA"
SECOND_HAND = "attributed to the paper; we have not read it there"


@dataclass(frozen=True)
class ReportedTable:
    """Figures as the paper prints them.

    Attributes:
        source: where in the paper the figures stand.
        columns: the name of each column, a task or a rank.
        rows: by method, one figure per column.
    """

    source: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float, ...]]

    def table(self) -> pd.DataFrame:
        """Return the figures as a table.

        Returns:
            One row per method, one column per task or rank.
        """
        import pandas as pd

        return pd.DataFrame.from_dict(dict(self.rows), orient="index", columns=list(self.columns))


# All figures are for LLaMA-2-7B at this rank, unless they name another rank; alpha equals the rank.
PAPER_RANK = 128

GSM8K_ITEMS = 1319  # questions in the test set (Cobbe et al. 2021)
GSM8K = ReportedTable(
    "abstract; LoRA's from the table of IntTune", ("GSM8K",), {"lora": (42.30,), "slora": (56.48,), "nlora": (57.70,)}
)
"""The accuracies on GSM8K in the abstract of the NLoRA paper, in percent."""
RELATIVE_GAINS = {"slora": 33.52, "nlora": 36.41}  # abstract: "surpassing LoRA by 33.52% and 36.41%"
ADDED_PARAMETERS = 3.67e6  # abstract: "only 3.67M additional trainable parameters"

INTTUNE_SHARE = 1.25  # abstract: "only 1.25% of its parameters"
INTTUNE_GAIN = 7.45  # abstract: "boosts average NLG performance over LoRA by 7.45%"
INTTUNE = ReportedTable(
    INTTUNE_TABLE,
    ("GSM8K", "MATH", "HumanEval", "MBPP", "MT-Bench"),  # percent, except MT-Bench: a mark out of 10
    {
        "lora": (42.30, 5.50, 18.29, 35.34, 4.58),
        "inttune, r = 256": (49.51, 6.62, 21.30, 33.90, 3.59),
        "inttune, r = 128": (44.28, 6.86, 20.70, 34.40, 4.46),
        "inttune, r = 64": (37.98, 5.56, 14.60, 34.70, 4.55),
    },
)
"""The paper's table of IntTune: LoRA, and IntTune at three ranks, on five tasks."""

BAR_ERROR = 0.3  # percentage points by which a bar of figure 4 may be misread
FIGURE_RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
"""The ranks of the paper's figure 4."""
FIGURE_4 = {
    "GSM8K": ReportedTable(
        FIGURE_4_BARS,
        tuple(map(str, FIGURE_RANKS)),
        {
            "lora": (22, 26, 28, 30, 32, 36, 39, 42.3),
            "slora": (46, 46, 43, 52.7, 48.6, 55.2, 52.5, 56.4),
            "nlora": (40, 38, 41.3, 46.6, 50.6, 54, 55.6, 57.6),
            "pissa": (28, 29, 32, 35.5, 37.5, 43, 48, 53),
        },
    ),
    "MATH": ReportedTable(
        FIGURE_4_BARS,
        tuple(map(str, FIGURE_RANKS)),
        {
            "lora": (3.5, 4.0, 4.1, 4.6, 4.9, 5.3, 5.3, 5.5),
            "slora": (6.4, 6.1, 6.9, 7.5, 8.3, 8.9, 9.6, 10.6),
            "nlora": (5.4, 5.4, 5.9, 6.6, 7.9, 8.3, 9.1, 9.9),
            "pissa": (3.8, 4.4, 5.0, 5.1, 5.6, 5.9, 6.4, 7.4),
        },
    ),
}
"""The bars of the paper's figure 4 by task, read by eye: percent at each of ``FIGURE_RANKS``, give or take 0.3."""
