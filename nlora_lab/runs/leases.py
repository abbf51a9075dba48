"""Who is at work on what in a folder that several processes and machines share: claims, and scratch files.

Both carry the name of their process, so that what the dead have left behind is known from what the living are using.
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

BEAT = 10.0  # seconds between two signs of life of a claim
SILENCE = 60.0  # a claim whose holder cannot be looked up is given up after this long without one
DRIFT = 5.0  # seconds by which the birth of a process may seem to move: it is counted from the clock, which gets set
FORGOTTEN = 600.0  # seconds after which a scratch file is litter, whoever wrote it: the longest lives milliseconds


class Lease:
    """Files that say who is making a run: ``<key>.<generation>.claim``. Exactly one living process holds it.

    A dead holder's file is never moved away, for somebody else may have moved it just before: the next holder is
    whoever creates the next generation, which only one can.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._mine: Path | None = None
        self._done = threading.Event()

    def take(self) -> bool:
        """Take it if nobody alive holds it."""
        there = self._files()
        if any(self._lives(file) for file in there.values()):
            return False
        mine = self.folder / f"{self.key}.{max(there, default=0) + 1}.claim"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            out = create_new(mine)
            if out is None:
                return False
            with out:
                out.write(json.dumps({"host": _host(), "pid": os.getpid(), "born": _born(os.getpid())}))
        except OSError as error:
            raise StoreError(f"{mine} cannot be written ({error}); make room, or choose another store") from error
        self._mine = mine
        if any(self._lives(file) for file in self._files().values() if file != mine):
            self.release()  # somebody began anew while we looked at what was there before
            return False
        threading.Thread(target=self._beat, args=(mine,), daemon=True, name="nlora-lab-claim").start()
        return True

    def release(self) -> None:
        """Give it back, and take the files of dead holders away."""
        self._done.set()
        if self._mine is None:
            return
        self.clear()
        self._mine.unlink(missing_ok=True)
        self._mine = None

    def clear(self) -> None:
        """Take the files of dead holders away. Who takes the claim at this moment looks again after it has."""
        for file in self._files().values():
            if not self._lives(file):
                file.unlink(missing_ok=True)

    def drop(self) -> None:
        """Take all its files away, of the living too: for what nobody needs to make any more."""
        for file in self._files().values():
            file.unlink(missing_ok=True)

    def alive(self) -> bool:
        """Whether a living process holds it."""
        return any(self._lives(file) for file in self._files().values())

    def _files(self) -> dict[int, Path]:
        found = (
            (file.name.removesuffix(".claim").rpartition(".")[2], file)
            for file in self.folder.glob(f"{self.key}.*.claim")
        )
        return {int(generation): file for generation, file in found if generation.isdigit()}

    def _lives(self, file: Path) -> bool:
        """By its process on this machine, by its signs of life on another."""
        try:
            age = _now(self.folder) - file.stat().st_mtime
            holder = json.loads(file.read_text(encoding="utf-8"))
            if holder["host"] == _host():
                born = _born(holder["pid"])
                if born == 0.0 or abs(born - holder["born"]) < DRIFT:
                    return born != 0.0
                # its number is used again, or the clock was set by more than that: its signs of life decide
        except OSError:
            return False
        except (ValueError, KeyError, TypeError):
            pass  # just being written, or cut short by a full disk: its age decides
        return age < SILENCE

    def _beat(self, mine: Path) -> None:
        while not self._done.wait(BEAT):
            with suppress(OSError):
                os.utime(mine)


def scratch(folder: Path, suffix: str) -> Path:
    """A name in ``folder`` for a file of this process that is gone in a moment."""
    return folder / f".{_host()}.{os.getpid()}.{uuid.uuid4().hex}{suffix}"


def clear_scratch(folder: Path) -> None:
    """Take away the scratch files in ``folder`` of processes that died while they had one."""
    for file in [*folder.glob(".*.part"), *folder.glob(".*.clock")]:
        with suppress(OSError):
            if _left_behind(file):
                file.unlink(missing_ok=True)


def _left_behind(file: Path) -> bool:
    host, _, pid = file.name.removeprefix(".").rpartition(".")[0].rpartition(".")[0].partition(".")
    if host == _host() and pid.isdigit() and _born(int(pid)) == 0.0:
        return True
    return _now(file.parent) - file.stat().st_mtime > FORGOTTEN


@lru_cache
def _host() -> str:
    """Where process numbers mean the same, as a word without dots.

    Machines and containers may share a name; this start of the kernel, and the names its processes have, they do not.
    """
    known = [socket.gethostname()]
    with suppress(OSError):  # not Linux: the name alone
        known += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256(" ".join(known).encode()).hexdigest()[:8]


def create_new(file: Path) -> TextIO | None:
    """``file``, opened for writing; ``None`` if there is one already."""
    try:
        return file.open("x", encoding="utf-8")
    except FileExistsError:
        return None


def _born(pid: int) -> float:
    """When the process started (its number may be used again); 0 if there is none, -1 if that is kept secret."""
    import psutil

    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return 0.0
    except psutil.Error:
        return -1.0


def _now(folder: Path) -> float:
    """The time by the clock of the file system, which need not be this machine's."""
    probe = scratch(folder, ".clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        probe.unlink(missing_ok=True)
