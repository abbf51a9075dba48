"""How many tokens and rows each task has, which an estimate needs before any data are loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nlora_lab.estimates.shapes import Architecture
from nlora_lab.models.names import SHIPPED
from nlora_lab.runs.config import RunConfig
from nlora_lab.tasks.generated import DEFAULT_DIFFICULTY


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task.

    Attributes:
        prompt: tokens of a padded prompt.
        padded: tokens of a padded row, on average.
        longest: tokens of the longest row.
        answer: tokens of an answer, or 0 if the task generates none.
        test: the number of test rows.
        validation: the number of validation rows.
        source: where these numbers come from, in words.
    """

    prompt: int
    padded: int
    longest: int
    answer: int
    test: int
    validation: int
    source: str = "assumed for the task"


COUNTED = {
    ("word-problems", "easy"): TaskRows(37, 61, 64, 36, 200, 200),
    ("word-problems", "medium"): TaskRows(44, 76, 82, 46, 200, 200),
    ("word-problems", "hard"): TaskRows(51, 93, 98, 56, 200, 200),
    **{("entailment", level): TaskRows(31, 33, 33, 0, 200, 200) for level in ("easy", "medium", "hard")},
}
"""Tasks of this package by name and difficulty: counted with the embedded tokenizer, padded in batches of 16."""

ASSUMED = {
    "gsm8k": TaskRows(200, 270, 450, 320, 1319, 374),
    "metamath": TaskRows(200, 400, 1000, 320, 1319, 500),
    "sst2": TaskRows(0, 45, 70, 0, 872, 500),
    "cola": TaskRows(0, 25, 50, 0, 1043, 428),
    "mrpc": TaskRows(0, 85, 110, 0, 408, 183),
    "qnli": TaskRows(0, 110, 512, 0, 5463, 500),
    "rte": TaskRows(0, 170, 290, 0, 277, 124),
    "stsb": TaskRows(0, 60, 140, 0, 1500, 287),
    "qqp": TaskRows(0, 80, 330, 0, 40430, 500),
    "mnli": TaskRows(0, 90, 430, 0, 9815, 500),
    "wnli": TaskRows(0, 70, 110, 0, 71, 31),
}
"""Public tasks by name. Rows are those of the data on the hub. Tokens are assumed, and ``max_length`` bounds them."""

UNKNOWN = TaskRows(256, 512, 512, 256, 1000, 500, "nothing is known about the data")


@dataclass(frozen=True)
class RowLengths:
    """The tokens of a run's rows, within the limits of the run and of its model.

    Attributes:
        longest: tokens of the longest row, which decides memory.
        padded: tokens of a padded row on average, which decides time.
        prompt: tokens of a padded prompt.
        answer: tokens of an answer, or 0 if none is generated.
        description: these numbers and their source, in words.
    """

    longest: int
    padded: int
    prompt: int
    answer: int
    description: str = ""


def task_rows(cfg: RunConfig) -> TaskRows:
    """Look up the rows of a run's task.

    Args:
        cfg: the config of the run.

    Returns:
        Counted numbers for the tasks of this package, assumed ones for public tasks. For data of your own every row
        has ``max_length`` tokens, or 512.
    """
    level = (cfg.task, cfg.difficulty or DEFAULT_DIFFICULTY)
    if cfg.data is None and level in COUNTED:
        source = "counted" if cfg.model in SHIPPED else "counted with the embedded tokenizer"
        return replace(COUNTED[level], source=source)
    if cfg.data is None and cfg.task in ASSUMED:
        return ASSUMED[cfg.task]
    longest = cfg.max_length or UNKNOWN.longest
    return replace(UNKNOWN, longest=longest, padded=longest)


def run_lengths(arch: Architecture, cfg: RunConfig) -> RowLengths:
    """Bound the rows of a task by the limits of a run.

    Args:
        arch: the architecture of the model, whose positions are a limit.
        cfg: the config of the run, whose ``max_length`` is another.

    Returns:
        The lengths, in tokens.
    """
    rows = task_rows(cfg)
    limit = min((n for n in (cfg.max_length, arch.positions) if n), default=rows.longest)
    longest, padded = min(rows.longest, limit), min(rows.padded, limit)
    if cfg.batching == "packed" and cfg.max_length:
        longest = padded = cfg.max_length
    description = f"rows of {padded} tokens on average with padding, and of at most {longest} ({rows.source})"
    return RowLengths(longest, padded, min(rows.prompt, limit), rows.answer, description)
