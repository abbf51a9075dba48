"""What a worker of a sweep does: it makes runs and returns their records. It writes no files."""

from __future__ import annotations

import hashlib
import threading
import traceback
from collections import ChainMap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from nlora_lab.core.errors import InputError
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.store import run_key

Made = tuple[list[str], dict[str, str]]
"""The records of the runs that ended, as JSON, and by key the tracebacks of the runs that raised."""

_ONE_AT_A_TIME = threading.Lock()  # some executors call from several threads of one process


def make_runs(settings: Sequence[Mapping[str, Any]], sources: str) -> Made:
    """Make runs in this process, in one race.

    Args:
        settings: the fields of each config. Plain values reach a worker whatever version it has.
        sources: ``source_digest()`` of the process that asks.

    Returns:
        The records and the tracebacks. A run that diverged or ran out of memory has a record.

    Raises:
        InputError: this worker has other code than the process that asks.
    """
    if sources != source_digest():
        raise InputError(
            "a worker has another version of nlora-lab; install the same one on every machine, and sweep again if the "
            "code was changed meanwhile"
        )
    with _ONE_AT_A_TIME:
        return _race([RunConfig(**values) for values in settings])


def _race(configs: Sequence[RunConfig]) -> Made:
    from nlora_lab.training.races import race

    try:
        runs = race(configs)
        stopped = {run_key(run.config): "it was stopped from outside" for run in runs if run.stopped}
        return [run.to_json() for run in runs if not run.stopped], stopped
    except Exception:
        if len(configs) == 1:
            return [], {run_key(configs[0]): traceback.format_exc()}
    alone = [_race([cfg]) for cfg in configs]  # one run ended the race for all: this shows which
    records = [record for made, _ in alone for record in made]
    return records, dict(ChainMap(*(errors for _, errors in alone)))


@cache
def source_digest() -> str:
    """Return the SHA-256 of the package's source files. Equal version numbers do not mean equal code."""
    package, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()
