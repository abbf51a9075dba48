"""Measure what averaging the weights over the last steps of a run changes.

    python -m tools.weight_averaging          # make the missing runs, and write data/results/averaging.csv

Each run is measured three times: with its last weights, and with their means over the last quarter and the last half of
its steps. So the three rows of a run share its course, and their difference has no noise of training. Methods, rates,
seeds and shares were fixed before the first run. You can interrupt the command and run it again.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.resolution import resolve
from nlora_lab.runs.run import Step
from nlora_lab.training.loop import train
from nlora_lab.training.measurement import measure_result
from nlora_lab.training.session import RunState, TrainingSession
from nlora_lab.training.setup import set_up
from tools.study import LADDER_SEEDS, MIDDLE, STORE, config, ladder

FILE = STORE / "averaging.csv"
METHODS, STEPS = ("lora", "slora", "nlora"), 250
SHARES = (0.0, 0.25, 0.5)  # of the steps, at the end; 0 is the last step alone
COLUMNS = ("method", "rate", "seed", "share", "accuracy", "validation_loss", "test_loss")
Weights = dict[str, torch.Tensor]


@dataclass
class Averages:
    """A callback that adds up the trained weights over the last steps.

    Attributes:
        sums: the sum and the number of its terms, by share.
    """

    sums: dict[float, tuple[Weights, int]] = field(default_factory=dict)

    def on_gradients(self, session: TrainingSession, updates: int) -> None:
        """Do nothing: the weights change after the gradients."""

    def on_update(self, session: TrainingSession, step: Step, ends: bool) -> None:
        """Add the weights to the sums that they belong to."""
        now = trained(session)
        for share in SHARES:
            if step.step > min(STEPS * (1 - share), STEPS - 1):
                before, count = self.sums.get(share, ({}, 0))
                self.sums[share] = {k: before.get(k, 0) + v.double() for k, v in now.items()}, count + 1


def trained(session: TrainingSession) -> Weights:
    """Return the trained parameters by name."""
    return {k: p.detach().clone() for k, p in session.model.named_parameters() if p.requires_grad}


def configs() -> list[RunConfig]:
    """Return the runs: the best rate of each method at 250 steps, and the next one of its ladder."""
    return [
        config(method, lr, seed, STEPS, measure_every=None)
        for seed in LADDER_SEEDS
        for method in METHODS
        for lr in (MIDDLE[method], ladder(method)[3])
    ]


def rows_of(cfg: RunConfig) -> Iterator[dict[str, Any]]:
    """Make a run, and yield a row per share."""
    state = RunState()
    session = set_up(resolve(cfg), state)
    averages = Averages()
    session.callbacks = (averages, *session.callbacks)
    train(session)
    session.stop_clock()
    for share in SHARES:
        total, count = averages.sums[share]
        with torch.no_grad():
            for name, parameter in session.model.named_parameters():
                if name in total:
                    parameter.copy_(total[name] / count)
        measure_result(state, session.model, session.data, session.observed)
        measured = {name: state.metrics[name] for name in COLUMNS[4:]}
        yield {"method": cfg.method, "rate": cfg.lr, "seed": cfg.seed, "share": share, **measured}


def main() -> None:
    """Make the missing runs."""
    text = FILE.read_text(encoding="utf-8") if FILE.exists() else ""
    known = list(csv.DictReader(text.splitlines()))
    done = {(row["method"], float(row["rate"]), int(row["seed"])) for row in known}
    with FILE.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not known:
            writer.writeheader()
        for cfg in configs():
            if (cfg.method, cfg.lr, cfg.seed) not in done:
                writer.writerows(list(rows_of(cfg)))
                file.flush()


if __name__ == "__main__":
    main()
