"""Record the small grid on the larger model that ships: does what holds on the embedded model hold there, too?

    python -m tools.larger_model --show    # print how much of the grid is recorded
    python -m tools.larger_model           # make the missing runs

Fixed before the first of these runs: the methods are LoRA and the five of the planned comparisons, on word-problems, at
rank 8, for 250 steps of 16. A method is tried at the middle of its ladder on the embedded model (``tools.study``) and
at half of it, on the seeds 0 and 1. As long as the rate with the lowest validation loss is at an edge of those tried,
one further rate beyond this edge is tried, twice as high or half as high, up to six rates. The best rate then gets five
fresh seeds, 2 to 6. They are compared by ``log_test_loss`` with the test of ``nl.compare`` (Welch, unpaired, in the
family of the planned comparisons).

Added while these runs came in: all six methods at the shared rate of 2e-4, three seeds each, so that the lab shows
there what one rate for all says. These runs take no part in the choice of a rate, except where 2e-4 is on the ladder.

You can interrupt the command at any time. Run it again to resume.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence

from nlora_lab.analysis.comparison import PLANNED
from nlora_lab.analysis.fresh_seeds import DECLARED
from nlora_lab.models.names import LARGER
from nlora_lab.runs.config import SHARED_RATE, RunConfig
from nlora_lab.runs.rate_points import RatePoint, validation_loss
from nlora_lab.runs.shipped import RANK, STEPS, recorded_runs
from nlora_lab.runs.store import RunStore, run_key
from nlora_lab.sweeps.grid import coverage
from tools.study import MIDDLE, TASK, config, record

COMPARED = ("lora", *PLANNED)
CHOOSING_SEEDS, FRESH_SEEDS = DECLARED[LARGER].chosen_on, DECLARED[LARGER].fresh
SHARED_SEEDS = range(3)
MOST_RATES = 6


def next_rates(method: str, losses: Mapping[float, float]) -> list[float]:
    """Return the rates of a method that have to be tried next.

    Args:
        method: the name of the method.
        losses: the validation loss at each rate tried so far.

    Returns:
        The first two rates if none was tried, one rate beyond the edge if the best one is at an edge, or none.
    """
    if not losses:
        return [_rounded(MIDDLE[method] / 2), MIDDLE[method]]
    tried, best = sorted(losses), min(losses, key=lambda rate: losses[rate])
    if len(tried) == MOST_RATES or best not in (tried[0], tried[-1]):
        return []
    return [_rounded(best / 2 if best == tried[0] else best * 2)]


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def grid(store: RunStore) -> list[RunConfig]:
    """Return the runs that are known to be needed, as far as those in ``store`` determine them, seed by seed."""
    configs = [cfg for method in COMPARED for cfg in _of_method(store, method)]
    configs += [_config(method, SHARED_RATE, seed) for method in COMPARED for seed in SHARED_SEEDS]
    return sorted(dict.fromkeys(configs), key=lambda cfg: cfg.seed)


def _of_method(store: RunStore, method: str) -> list[RunConfig]:
    choosing = recorded_runs(store, LARGER).of_seeds(CHOOSING_SEEDS.__contains__, STEPS)
    points = [point for point in choosing.valley(TASK, method, RANK) if _complete(point) and _is_rung(method, point.lr)]
    losses = {point.lr: validation_loss(point) for point in points}
    asked = next_rates(method, losses)
    configs = [_config(method, rate, seed) for seed in CHOOSING_SEEDS for rate in [*losses, *asked]]
    if not asked:
        best = min(losses, key=lambda rate: losses[rate])
        configs += [_config(method, best, seed) for seed in FRESH_SEEDS]
    return configs


def _is_rung(method: str, rate: float) -> bool:
    """Whether a rate is on the ladder of a method. The shared rate need not be, and then it chooses nothing."""
    rungs = math.log2(rate / MIDDLE[method])
    return abs(rungs - round(rungs)) < 0.05


def _complete(point: RatePoint) -> bool:
    return {run.config.seed for run in point.runs} >= set(CHOOSING_SEEDS)


def _config(method: str, rate: float, seed: int) -> RunConfig:
    return config(method, rate, seed, STEPS, model=LARGER)


def missing(store: RunStore) -> Iterator[list[RunConfig]]:
    """Yield the runs that the store lacks, until the runs made meanwhile ask for no further ones."""
    while True:
        finished = store.keys()  # once: it reads every record
        configs = [cfg for cfg in grid(store) if run_key(cfg) not in finished]
        if not configs:
            return
        yield configs


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing runs of the grid, and return the exit code."""
    return record("larger_model", lambda store: print(coverage(grid(store), store)), missing, argv)


if __name__ == "__main__":
    sys.exit(main())
