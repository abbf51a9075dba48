"""The executor of a sweep on one machine: one process per core or card, which is replaced if it dies."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

MAX_DEATHS = 2  # processes that a call may end before it counts as the cause


SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""Keeps the working directory off ``sys.path``: a student's random.py there is not the module of that name."""


class _SafePath:
    """Sets ``SAFE_PATH`` for the processes that this one starts meanwhile, in one thread at a time.

    loky copies ``sys.path`` into its processes. The working directory, which a notebook has there first, comes last,
    unless PYTHONPATH names it.
    """

    def __init__(self) -> None:
        self._lock, self._former = threading.Lock(), dict[str, str | None]()
        self._path: list[str] = []

    def __enter__(self) -> None:
        self._lock.acquire()
        self._former = {name: os.environ.get(name) for name in SAFE_PATH}
        os.environ.update(SAFE_PATH)
        here, self._path = os.path.realpath("."), list(sys.path)
        if here not in map(os.path.realpath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))):
            sys.path.sort(key=lambda place: os.path.realpath(place or here) == here)  # the others keep their order

    def __exit__(self, *_: object) -> None:
        for name, value in self._former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        sys.path[:] = self._path
        self._lock.release()


_SAFE_PATH = _SafePath()


class CallKilled(RuntimeError):
    """A call has ended its process, and the process that replaced it."""


class LocalExecutor(ThreadPoolExecutor):
    """Runs each call in one of several processes of loky.

    Each process is a pool of its own, so it is known which call ended it. The processes end when this one does.

    Args:
        environments: for each process, the environment variables in which it differs from this one.
    """

    def __init__(self, environments: Sequence[Mapping[str, str]]) -> None:
        super().__init__(len(environments))
        self._closed, self._pools = False, set[Any]()
        self._free: SimpleQueue[tuple[Mapping[str, str], Any]] = SimpleQueue()
        for environment in environments:
            self._free.put((environment, None))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Schedule ``fn(*args, **kwargs)``. Its future raises ``CallKilled`` if the call ends two processes."""
        return super().submit(self._call, fn, *args, **kwargs)

    def _call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        environment, pool = self._free.get()
        reason = ""
        try:
            for _ in range(MAX_DEATHS):
                pool = pool or self._start(environment)
                try:
                    return pool.submit(fn, *args, **kwargs).result()
                except BrokenExecutor as error:
                    pool, reason = None, " ".join(re.findall(r"[A-Z]+\(-?\d+\)", str(error))) or str(error)
                    if self._closed:
                        raise CancelledError from None
            raise CallKilled(f"its process ended {MAX_DEATHS} times ({reason})")
        finally:
            self._free.put((environment, pool))

    def _start(self, environment: Mapping[str, str]) -> Any:
        from loky import ProcessPoolExecutor

        with _SAFE_PATH:  # loky's own helper process too would import from the folder that it starts in
            pool = ProcessPoolExecutor(1, env={**environment, **SAFE_PATH})
            self._pools.add(pool)
            if self._closed:  # while this process was started: nobody else would end it
                pool.shutdown(wait=False, kill_workers=True)
                raise CancelledError
            begun = pool.submit(_begin, os.getpid())
        begun.result()  # raises BrokenExecutor if a process cannot even begin
        return pool

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End all processes at once. Calls that have not finished are lost."""
        self._closed = True
        for pool in list(self._pools):
            pool.shutdown(wait=False, kill_workers=True)
        super().shutdown(wait, cancel_futures=True)


def _begin(parent: int) -> None:
    """Let this process end with its parent, leave signals of the terminal to it, and keep its stdout clean."""
    import psutil
    from loky import process_executor

    process_executor._USE_PSUTIL = False  # loky takes a model for a leak, and starts another process after each run

    def end_with_parent() -> None:
        psutil.Process(parent).wait()
        os._exit(3)

    threading.Thread(target=end_with_parent, daemon=True).start()
    for name in ("SIGINT", "SIGHUP"):  # which a terminal sends to all its processes
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.dup2(2, 1)
