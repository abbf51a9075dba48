"""Leases: who makes which run in a folder that several processes and machines share. And scratch files there.

Both carry the name of their process, so what dead processes have left can be told from what living ones are using.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from nlora_lab.core.errors import StoreError

BEAT = 10.0  # seconds between two signs of life of a lease
SILENCE = 60.0  # seconds without a sign of life after which a lease ends whose holder cannot be looked up
DRIFT = 5.0  # seconds by which the start of a process may seem to move, because the clock of the machine may be set
SCRATCH_LIFE = 600.0  # seconds after which a scratch file is left over, whoever wrote it: they live milliseconds
SUFFIX = ".lease"


class Lease:
    """The right to make one run, held by at most one living process. Its files are ``<key>.<generation>.lease``.

    The file of a dead holder is never moved away, because another process may have moved it just before. The next
    holder is the process that creates the next generation, which only one can.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._mine: Path | None = None
        self._done = threading.Event()

    def take(self) -> bool:
        """Take the lease if no living process holds it.

        Returns:
            Whether this process holds it now.

        Raises:
            StoreError: the folder cannot be written.
        """
        files = self._files()
        if any(self._is_alive(file) for file in files.values()):
            return False
        mine = self.folder / f"{self.key}.{max(files, default=0) + 1}{SUFFIX}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            out = _create_new(mine)
            if out is None:
                return False
            with out:
                out.write(json.dumps({"host": _host(), "pid": os.getpid(), "born": _born(os.getpid())}))
        except OSError as error:
            raise StoreError(f"{mine} cannot be written ({error}); make room, or choose another store") from error
        self._mine = mine
        if any(self._is_alive(file) for file in self._files().values() if file != mine):
            self.release()  # another process started again while this one looked at the earlier files
            return False
        threading.Thread(target=self._beat, args=(mine,), daemon=True, name="nlora-lab-lease").start()
        return True

    def release(self) -> None:
        """Give the lease back, and remove the files of dead holders."""
        self._done.set()
        if self._mine is None:
            return
        self.clear()
        self._mine.unlink(missing_ok=True)
        self._mine = None

    def clear(self) -> None:
        """Remove the files of dead holders. A process that takes the lease at this moment looks again afterwards."""
        for file in self._files().values():
            if not self._is_alive(file):
                file.unlink(missing_ok=True)

    def drop(self) -> None:
        """Remove all files of the lease, even of a living holder: nobody has to make this run any more."""
        for file in self._files().values():
            file.unlink(missing_ok=True)

    def alive(self) -> bool:
        """Return whether a living process holds the lease."""
        return any(self._is_alive(file) for file in self._files().values())

    def _files(self) -> dict[int, Path]:
        files = (
            (file.name.removesuffix(SUFFIX).rpartition(".")[2], file)
            for file in self.folder.glob(f"{self.key}.*{SUFFIX}")
        )
        return {int(generation): file for generation, file in files if generation.isdigit()}

    def _is_alive(self, file: Path) -> bool:
        """Judge a holder by its process if it is on this machine, and by its signs of life if it is on another."""
        try:
            age = _now(self.folder) - file.stat().st_mtime
            holder = json.loads(file.read_text(encoding="utf-8"))
            if holder["host"] == _host():
                born = _born(holder["pid"])
                if born == 0.0 or abs(born - holder["born"]) < DRIFT:
                    return born != 0.0
                # its number is used again, or the clock was set by more than DRIFT: its signs of life decide
        except OSError:
            return False
        except (ValueError, KeyError, TypeError):
            pass  # being written just now, or cut short by a full disk: its age decides
        return age < SILENCE

    def _beat(self, mine: Path) -> None:
        while not self._done.wait(BEAT):
            with suppress(OSError):
                os.utime(mine)


def scratch(folder: Path, suffix: str) -> Path:
    """Return a path in ``folder`` for a file of this process that lives for a moment."""
    return folder / f".{_host()}.{os.getpid()}.{uuid.uuid4().hex}{suffix}"


def clear_scratch(folder: Path) -> None:
    """Remove the scratch files in ``folder`` of processes that died while they had one."""
    for file in [*folder.glob(".*.part"), *folder.glob(".*.clock")]:
        with suppress(OSError):
            if _left_behind(file):
                file.unlink(missing_ok=True)


def _left_behind(file: Path) -> bool:
    host, _, pid = file.name.removeprefix(".").rpartition(".")[0].rpartition(".")[0].partition(".")
    if host == _host() and pid.isdigit() and _born(int(pid)) == 0.0:
        return True
    return _now(file.parent) - file.stat().st_mtime > SCRATCH_LIFE


@lru_cache
def _host() -> str:
    """Return a word without dots for the place where process numbers mean the same.

    Machines and containers may share a name. They do not share this start of the kernel and its process namespace.
    """
    names = [socket.gethostname()]
    with suppress(OSError):  # not Linux: the name alone
        names += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]


def _create_new(file: Path) -> TextIO | None:
    """Open a new file for writing. Returns ``None`` if it exists already."""
    try:
        return file.open("x", encoding="utf-8")
    except FileExistsError:
        return None


def _born(pid: int) -> float:
    """Return when a process started, as its number may be used again. 0: there is none. -1: access is denied."""
    import psutil

    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return 0.0
    except psutil.Error:
        return -1.0


def _now(folder: Path) -> float:
    """Return the time by the clock of the file system, which may differ from this machine's."""
    probe = scratch(folder, ".clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        probe.unlink(missing_ok=True)
