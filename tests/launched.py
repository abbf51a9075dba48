"""Runs on each process of a launch: the configs of a JSON file, their records written by the first process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nlora_lab.runs.config import RunConfig
from nlora_lab.training.distributed import is_main
from nlora_lab.training.loop import fine_tune

asked, out = Path(sys.argv[1]), Path(sys.argv[2])
for number, config in enumerate(json.loads(asked.read_text())):
    options = config.pop("options", {})
    stop = options.pop("stop", None)
    run = fine_tune(RunConfig(**config), (lambda step: step.step == stop) if stop else None, **options)  # noqa: B023
    if is_main():
        run.save(out / f"{number}.json")
