"""What follows from the reported figures alone. It needs no run and no model, only counting and a normal curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, Any

from nlora_lab.analysis.statistics import check_confidence, standard_error, two_shares
from nlora_lab.core.errors import InputError
from nlora_lab.paper.reported_figures import (
    BAR_ERROR,
    FIGURE_4,
    FIGURE_RANKS,
    GSM8K,
    GSM8K_ITEMS,
    INTTUNE,
    PAPER_RANK,
    RELATIVE_GAINS,
)

if TYPE_CHECKING:
    import pandas as pd


def points(ours: float, theirs: float) -> float:
    """Return a difference in percentage points.

    Args:
        ours: a result in percent.
        theirs: the result to compare with, in percent.

    Returns:
        ``ours`` minus ``theirs``, in percentage points.
    """
    return ours - theirs


def relative(ours: float, theirs: float) -> float:
    """Return a difference as a share of the result that it is compared with.

    Args:
        ours: a result in any unit.
        theirs: the result to compare with, in the same unit.

    Returns:
        The difference, in percent of ``theirs``.
    """
    return 100 * (ours - theirs) / theirs


def mean_of_relative(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the mean of the relative changes over several tasks.

    Each task has the same weight. A task with low results can therefore dominate the mean.

    Args:
        ours: one result per task.
        theirs: the results to compare with, in the same order.

    Returns:
        The mean relative change, in percent.
    """
    return fmean(relative(a, b) for a, b in zip(ours, theirs, strict=True))


def relative_of_means(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the relative change of the mean over several tasks.

    Each percentage point has the same weight.

    Args:
        ours: one result per task.
        theirs: the results to compare with.

    Returns:
        The relative change of the mean, in percent.
    """
    return relative(fmean(ours), fmean(theirs))


def headline() -> pd.DataFrame:
    """Compare SLoRA and NLoRA with LoRA on GSM8K, from the reported percentages alone.

    Returns:
        One row per method. Columns: accuracy and LoRA (percent), reported (the gain in the abstract, percent), relative
        (percent) and points (the same gain, computed in both ways), questions (the gain in right answers) and z (the
        gain in standard errors).
    """
    import pandas as pd

    lora = GSM8K.rows["lora"][0]
    rows = {}
    for name, gain in RELATIVE_GAINS.items():
        accuracy = GSM8K.rows[name][0]
        apart = difference(accuracy, lora)
        rows[name] = {
            "accuracy": accuracy,
            "LoRA": lora,
            "reported": gain,
            "relative": relative(accuracy, lora),
            "points": apart.points,
            "questions": apart.questions,
            "z": apart.z,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


@dataclass(frozen=True)
class Difference:
    """How far apart two accuracies on one test set are, and whether chance alone could explain it.

    Attributes:
        points: the difference in percentage points.
        questions: the difference in right answers.
        error: one standard error of either accuracy, in percentage points.
        z: the difference in standard errors.
        p: the two-sided p-value of ``z``.
        detectable: the smallest true difference that this test would have found in 8 of 10 cases, in points.
    """

    points: float
    questions: int
    error: float
    z: float
    p: float
    detectable: float


def difference(first: float, second: float, items: int = GSM8K_ITEMS) -> Difference:
    """Compare two reported percentages of right answers.

    The test treats the results as independent, with one run each, because the paper does not print the answers.

    Args:
        first: the first accuracy, in percent.
        second: the second accuracy, in percent.
        items: the number of test questions. The default is that of GSM8K.

    Returns:
        ``first`` minus ``second``, with z and p of the pooled test of two shares.

    Raises:
        InputError: a percentage is not from 0 to 100.
    """
    right = _right_answers("first", first, items), _right_answers("second", second, items)
    z, p = two_shares(*right, of=items)
    error = 100 * standard_error(sum(right) / (2 * items), items)
    normal = NormalDist()
    detectable = (normal.inv_cdf(0.975) + normal.inv_cdf(0.8)) * math.sqrt(2) * error
    return Difference(points(first, second), right[0] - right[1], error, z, p, detectable)


def _right_answers(name: str, percent: float, items: int) -> int:
    if not 0 <= percent <= 100:
        raise InputError(f"{name}={percent!r} must be a percentage from 0 to 100")
    return round(percent * items / 100)


def questions_needed(first: float, second: float, power: float = 0.8, confidence: float = 0.95) -> int:
    """Return the number of test questions that can tell two accuracies apart.

    The number is for two independent results. Comparing answer by answer needs fewer questions. How many fewer depends
    on how similar the mistakes of the two models are, and a percentage does not tell that.

    Args:
        first: the true accuracy of the first model, in percent.
        second: the true accuracy of the second model, in percent.
        power: the probability that the test finds the difference.
        confidence: the confidence level of the two-sided test.

    Returns:
        The number of questions.

    Raises:
        InputError: the accuracies are equal or not between 0 and 100, or a probability is not between 0 and 1.
    """
    check_confidence(confidence)
    check_confidence(power)
    shares = [percent / 100 for percent in (first, second)]
    if not all(0 < share < 1 for share in shares) or first == second:
        raise InputError(f"first={first!r} and second={second!r} must be two different percentages between 0 and 100")
    errors = NormalDist().inv_cdf((1 + confidence) / 2) + NormalDist().inv_cdf(power)
    variance = sum(share * (1 - share) for share in shares)
    return math.ceil(variance * (errors / (shares[0] - shares[1])) ** 2)


def cells() -> pd.DataFrame:
    """Compare SLoRA (random N) with NLoRA (all factors from W) in every cell of figure 4.

    Returns:
        One row per task and rank. Columns: slora and nlora (percent), difference (points), ``at_least`` (whether SLoRA
        is at least as high) and ``clear`` (whether the difference exceeds what two bars can be misread by).
    """
    import pandas as pd

    rows = [
        {"task": task, "rank": rank, "slora": slora, "nlora": nlora, "difference": round(slora - nlora, 6)}
        for task, bars in FIGURE_4.items()
        for rank, slora, nlora in zip(FIGURE_RANKS, bars.rows["slora"], bars.rows["nlora"], strict=True)
    ]
    frame = pd.DataFrame(rows).set_index(["task", "rank"])
    frame["at_least"] = frame["difference"] >= 0
    frame["clear"] = frame["difference"].abs() > 2 * BAR_ERROR
    return frame


def llama_2_7b() -> Any:
    """Return the shape of LLaMA-2-7B (Touvron et al. 2023), for counting parameters.

    Returns:
        A transformers config without weights.
    """
    from transformers import LlamaConfig

    return LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)


@cache
def _trainable(rank: int) -> dict[str, int]:
    from nlora_lab.methods.parameters import parameter_table

    table = parameter_table(llama_2_7b(), rank=rank, methods=["lora", "slora", "nlora", "inttune"])
    return dict(zip(table["method"], table["trainable"], strict=True))


def parameters(rank: int = PAPER_RANK) -> pd.DataFrame:
    """Count what the methods train in LLaMA-2-7B.

    Args:
        rank: the rank of the adapters.

    Returns:
        One row per method. Columns: trainable (parameters), ``beyond`` (how many more than LoRA) and ``share`` (percent
        of LoRA's number).
    """
    import pandas as pd

    counts = pd.Series(_trainable(rank))
    return pd.DataFrame(
        {"trainable": counts, "beyond": counts - counts["lora"], "share": 100 * counts / counts["lora"]}
    )


def averages() -> pd.DataFrame:
    """Compare IntTune with LoRA over the five tasks of the paper's table, averaged in two ways.

    Returns:
        One row per rank. Columns: "mean of relative changes" and "relative change of means" (percent), and "tasks above
        LoRA" (how many of the five).
    """
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


def scales(rank: int = PAPER_RANK) -> dict[str, float]:
    """Return the standard deviation of the entries of N at the start, for two initialisations.

    Args:
        rank: the rank r of the adapter.

    Returns:
        "kaiming": that of Kaiming-uniform with a = √5. "gaussian": 1 / r, as in a comment of the released code.
    """
    return {"kaiming": 1 / math.sqrt(3 * rank), "gaussian": 1 / rank}
