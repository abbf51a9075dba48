"""How many tokens the rows of each task have, and how many rows: what an estimate takes before any data is there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nlora_lab.models.names import EMBEDDED

if TYPE_CHECKING:
    from nlora_lab.runs.config import RunConfig


@dataclass(frozen=True)
class Seen:
    """Of a task: tokens of a padded prompt, of a padded row in the mean, of the longest row, of an answer; and rows."""

    prompt: int
    padded: int
    longest: int
    answer: int
    test: int
    validation: int


COUNTED = {
    ("word-problems", "easy"): Seen(37, 61, 64, 36, 200, 200),
    ("word-problems", "medium"): Seen(44, 76, 82, 46, 200, 200),
    ("word-problems", "hard"): Seen(51, 93, 98, 56, 200, 200),
    **{("entailment", level): Seen(31, 33, 33, 0, 200, 200) for level in ("easy", "medium", "hard")},
}
"""Counted with the embedded tokenizer, padded rows in batches of 16."""
ASSUMED = {
    "gsm8k": Seen(200, 270, 450, 320, 1319, 374),
    "metamath": Seen(200, 400, 1000, 320, 1319, 500),
    "sst2": Seen(0, 45, 70, 0, 872, 500),
    "cola": Seen(0, 25, 50, 0, 1043, 428),
    "mrpc": Seen(0, 85, 110, 0, 408, 183),
    "qnli": Seen(0, 110, 512, 0, 5463, 500),
    "rte": Seen(0, 170, 290, 0, 277, 124),
    "stsb": Seen(0, 60, 140, 0, 1500, 287),
    "qqp": Seen(0, 80, 330, 0, 40430, 500),
    "mnli": Seen(0, 90, 430, 0, 9815, 500),
    "wnli": Seen(0, 70, 110, 0, 71, 31),
}
"""Tokens are assumptions of the right size, which ``max_length`` can bound; rows are those of the data on the hub."""
UNKNOWN = Seen(256, 512, 512, 256, 1000, 500)


def row_lengths(cfg: RunConfig) -> tuple[Seen, str]:
    """Those of the task of ``cfg``, and in words where they are from."""
    level = (cfg.task, cfg.difficulty or "medium")
    if cfg.data is None and level in COUNTED:
        return COUNTED[level], "counted" if cfg.model == EMBEDDED else "counted with the embedded tokenizer"
    if cfg.data is None and cfg.task in ASSUMED:
        return ASSUMED[cfg.task], "assumed for the task"
    longest = cfg.max_length or UNKNOWN.longest
    return replace(UNKNOWN, longest=longest, padded=longest), "nothing is known about the data"
