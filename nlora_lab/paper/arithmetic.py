"""What follows from the printed numbers alone: no run, no model, nothing but counting and a normal curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, Any

from nlora_lab.core.errors import InputError
from nlora_lab.core.statistics import check_confidence, standard_error, two_shares
from nlora_lab.paper.printed import FIGURE_4, FIGURE_RANKS, GSM8K, GSM8K_ITEMS, INTTUNE, LLAMA_RANK, READING, SURPASSING

if TYPE_CHECKING:
    import pandas as pd


def points(ours: float, theirs: float) -> float:
    """By how many percentage points ``ours`` is above ``theirs``, both in percent."""
    return ours - theirs


def relative(ours: float, theirs: float) -> float:
    """By how many percent *of theirs* ``ours`` is above it."""
    return 100 * (ours - theirs) / theirs


def mean_of_relative(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The mean over tasks of the relative changes: each task counts the same, however little is reached on it."""
    return fmean(relative(a, b) for a, b in zip(ours, theirs, strict=True))


def relative_of_means(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The relative change of the mean over tasks: each point counts the same."""
    return relative(fmean(ours), fmean(theirs))


def headline() -> pd.DataFrame:
    """SLoRA and NLoRA beside LoRA on GSM8K, from the printed percentages alone; one row a method."""
    import pandas as pd

    lora = GSM8K.rows["lora"][0]
    rows = {}
    for name, said in SURPASSING.items():
        ours = GSM8K.rows[name][0]
        apart = difference(ours, lora)
        rows[name] = {
            "accuracy": ours,
            "LoRA": lora,
            "said": said,
            "relative": relative(ours, lora),
            "points": apart.points,
            "questions": apart.questions,
            "z": apart.z,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


@dataclass(frozen=True)
class Difference:
    """How far apart two accuracies on one test set are, and what chance makes of that.

    ``points``: the difference. ``questions``: as right answers. ``error``: one standard error of each accuracy, in
    points. ``z`` and ``p``: see :func:`~nlora_lab.core.statistics.two_shares`.
    """

    points: float
    questions: int
    error: float
    z: float
    p: float


def difference(first: float, second: float, items: int = GSM8K_ITEMS) -> Difference:
    """``first`` less ``second``, two printed percentages of right answers to ``items`` questions.

    The results are taken for independent, of one run each: the answers themselves are not printed.
    """
    right = _right(first, items), _right(second, items)
    z, p = two_shares(*right, of=items)
    error = 100 * standard_error(sum(right) / (2 * items), items)
    return Difference(points(first, second), right[0] - right[1], error, z, p)


def _right(percent: float, items: int) -> int:
    if not 0 <= percent <= 100:
        raise InputError(f"{percent!r} must be a percentage, from 0 to 100")
    return round(percent * items / 100)


def questions_needed(first: float, second: float, power: float = 0.8, confidence: float = 0.95) -> int:
    """How many test questions tell two accuracies (percent) apart with this ``power``, were they the true ones.

    For two independent results. Compared answer by answer, fewer questions do; how many fewer depends on how alike the
    two models' mistakes are, and no percentage says that.
    """
    check_confidence(confidence)
    check_confidence(power)
    shares = [percent / 100 for percent in (first, second)]
    if not all(0 < share < 1 for share in shares) or first == second:
        raise InputError(f"{first!r} and {second!r} must be two different percentages between 0 and 100")
    needed = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(power)
    scatter = sum(share * (1 - share) for share in shares)
    return math.ceil(scatter * (needed / (shares[0] - shares[1])) ** 2)


def cells() -> pd.DataFrame:
    """Figure 4 cell by cell: SLoRA (N random) beside NLoRA (all three from W), one row a task and rank.

    Columns: slora, nlora, difference, ``at_least`` (whether SLoRA has at least as much) and ``clear`` (whether they are
    further apart than two bars can be misread).
    """
    import pandas as pd

    rows = [
        {"task": task, "rank": rank, "slora": slora, "nlora": nlora, "difference": round(slora - nlora, 6)}
        for task, bars in FIGURE_4.items()
        for rank, slora, nlora in zip(FIGURE_RANKS, bars.rows["slora"], bars.rows["nlora"], strict=True)
    ]
    frame = pd.DataFrame(rows).set_index(["task", "rank"])
    frame["at_least"] = frame["difference"] >= 0
    frame["clear"] = frame["difference"].abs() > 2 * READING
    return frame


def llama_2_7b() -> Any:
    """The shape of LLaMA-2-7B (Touvron et al. 2023), for counting: a config, no weights."""
    from transformers import LlamaConfig

    return LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)


@cache
def _counted(rank: int) -> dict[str, int]:
    from nlora_lab.methods.parameters import parameter_table

    found = parameter_table(llama_2_7b(), rank=rank, methods=["lora", "slora", "nlora", "inttune"])
    return dict(zip(found["method"], found["trainable"], strict=True))


def parameters(rank: int = LLAMA_RANK) -> pd.DataFrame:
    """What the methods train in LLaMA-2-7B, counted; ``beyond``: more than LoRA's; ``share``: of LoRA's, in percent."""
    import pandas as pd

    counts = pd.Series(_counted(rank))
    return pd.DataFrame(
        {"trainable": counts, "beyond": counts - counts["lora"], "share": 100 * counts / counts["lora"]}
    )


def averages() -> pd.DataFrame:
    """IntTune beside LoRA over the five tasks of its table, averaged in two ways; one row a rank."""
    import pandas as pd

    lora = INTTUNE.rows["lora"]
    rows = {
        name: {
            "mean of relative changes": mean_of_relative(ours, lora),
            "relative change of means": relative_of_means(ours, lora),
            "tasks above LoRA": sum(a > b for a, b in zip(ours, lora, strict=True)),
        }
        for name, ours in INTTUNE.rows.items()
        if name != "lora"
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def scales(rank: int = LLAMA_RANK) -> dict[str, float]:
    """The standard deviation of N's entries: Kaiming-uniform with a = √5, and a Gaussian of 1 / r.

    The second stands in the released code as a comment.
    """
    return {"kaiming": 1 / math.sqrt(3 * rank), "gaussian": 1 / rank}
