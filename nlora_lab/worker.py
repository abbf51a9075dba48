"""A process of its own that makes runs of a store: ``python -m nlora_lab.worker``, started by :mod:`nlora_lab.sweeps`.

One line of JSON on stdin says what to do; events go to stdout, one a line. When stdin ends, so does the worker: it
outlives no parent, however that one died.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from typing import Any, TextIO


def main(stdin: TextIO, stdout: TextIO) -> None:
    """Make what the first line asks for."""
    order = json.loads(stdin.readline())
    threading.Thread(target=_end_with_parent, args=(stdin,), daemon=True).start()

    import torch

    from nlora_lab.records import RunConfig
    from nlora_lab.store import RunStore

    torch.set_num_threads(order["threads"])
    store = RunStore(order["store"])
    configs = [RunConfig(**config) for config in order["configs"]]

    def tell(**event: Any) -> None:
        stdout.write(json.dumps(event) + "\n")
        stdout.flush()

    while waiting := [cfg for cfg in configs if cfg not in store]:
        if not any(_make(cfg, store, tell) for cfg in waiting):
            time.sleep(1.0)  # all that is left is being made by somebody else, who may die


def _make(cfg: Any, store: Any, tell: Any) -> bool:
    """Make one run unless somebody else does; whether there was something to do."""
    from nlora_lab.store import run_key
    from nlora_lab.training import fine_tune

    with store.claim(cfg) as mine:
        if not mine:
            return False
        key, told = run_key(cfg), time.monotonic()
        tell(event="start", key=key)

        def on_step(step: Any) -> None:
            nonlocal told
            if time.monotonic() - told > 1.0:
                told = time.monotonic()
                tell(event="step", key=key, step=step.step, loss=step.loss)

        try:
            run = fine_tune(cfg, on_step)
            if run.stopped:  # an interrupt: not a result
                sys.exit(130)
            store.add(run)
        except Exception:
            tell(event="error", key=key, text=traceback.format_exc())
            sys.exit(1)
        tell(event="done", key=key, steps=cfg.steps)
        return True


def _end_with_parent(stdin: TextIO) -> None:
    stdin.read()
    os._exit(3)


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
