"""Runs in a folder: one file a run while they are made, packed files where they are kept.

A record is written whole or not at all, and no two workers do one run: whoever makes a run holds its *claim*, a
file beside the records that says who it is. The claim of a process that has died is worth nothing, so nothing has
to be cleaned up after a crash, and the folder may be shared by several processes and machines.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from nlora_lab.errors import InputError
from nlora_lab.files import check_writable, write_whole
from nlora_lab.records import Run, RunConfig, table

if TYPE_CHECKING:
    import pandas as pd

BEAT = 10.0  # seconds between two signs of life of a claim
SILENCE = 60.0  # a claim of another machine without one for this long is given up
DIGITS = 5  # of the history's numbers in a packed record


def run_key(cfg: RunConfig) -> str:
    """A file name for what ``cfg`` asks for, wherever it is run: readable, and different for any other config."""
    asked = {k: v for k, v in asdict(cfg).items() if k != "device"}
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    init = f"-{cfg.init}" if cfg.init else ""
    return f"{cfg.task}-{cfg.method}-r{cfg.rank}{init}-lr{cfg.lr:g}-seed{cfg.seed}-{digest}"


class RunStore:
    """The finished runs of a folder, as ``Run`` objects; ``len()`` counts them, :meth:`table` lists them.

    The folder need not exist before the first :meth:`add`. Files that are no whole record are left out, with a
    warning that names them.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._read: dict[Path, tuple[tuple[int, int], list[Run]]] = {}  # by file: its state when read, its runs
        self._lock = threading.Lock()

    # --- reading ---

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs())

    def __len__(self) -> int:
        return len(self._runs())

    def __contains__(self, cfg: object) -> bool:
        """Whether there is a finished run of ``cfg``."""
        if not isinstance(cfg, RunConfig):
            return False
        key = run_key(cfg)
        there = [*self._packed(), *(run for file in self._places(key) for run in self._load(file))]
        return any(run_key(run.config) == key for run in there)

    def keys(self) -> set[str]:
        """:func:`run_key` of every finished run."""
        return {run_key(run.config) for run in self._runs()}

    def table(self) -> pd.DataFrame:
        """One row a run."""
        return table(self)

    def __repr__(self) -> str:
        count = len(self)
        return f"RunStore: {count:,} run{'s' * (count != 1)}"

    def _runs(self) -> list[Run]:
        found = self._packed()
        for file in sorted(self.path.glob("*.json")):
            found += self._load(file)
        unique = {(run_key(r.config), r.device, r.seconds): r for r in found}  # a crash while packing leaves two of one
        return list(unique.values())

    def _packed(self) -> list[Run]:
        return [run for file in sorted(self.path.glob("**/*.jsonl")) for run in self._load(file)]

    def _load(self, file: Path) -> list[Run]:
        """The runs of one file, read again only if it has changed."""
        try:
            stat = file.stat()
            state = (stat.st_mtime_ns, stat.st_size)
            with self._lock:
                if file in self._read and self._read[file][0] == state:
                    return self._read[file][1]
            lines = file.read_text(encoding="utf-8").split("\n")
        except FileNotFoundError:  # packed by somebody else just now
            return []
        except (OSError, ValueError) as error:
            warnings.warn(f"{file} cannot be read ({error}); it is left out", stacklevel=2)
            return []
        runs = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                runs.append(Run.from_json(line))
            except InputError as error:
                warnings.warn(f"{file}, line {number}: {error}; it is left out", stacklevel=2)
        runs = [run for run in runs if not run.stopped]
        with self._lock:
            self._read[file] = (state, runs)
        return runs

    # --- writing ---

    def _place(self, key: str) -> Path:
        return self.path / f"{key}.json"

    def _places(self, key: str) -> list[Path]:
        """Where single records of this key stand: the first, and those beside it."""
        return [self._place(key), *self.path.glob(f"{key}~*.json")]

    def check_writable(self) -> None:
        """Raise :class:`nlora_lab.InputError` if nothing can be kept here."""
        check_writable(self.path, f"store={str(self.path)!r}")

    def add(self, run: Run) -> Path:
        """Keep ``run``, whole or not at all, and return its file; a second run of one config stands beside the first.

        Raises :class:`nlora_lab.InputError` for a stopped run, which would count as done, and where the folder
        cannot be written.
        """
        if run.stopped:
            raise InputError(f"{run_key(run.config)} was stopped at step {len(run.steps)}; only finished runs are kept")
        key, copy = run_key(run.config), 1
        place = self._place(key)
        while place.exists() and self._load(place):  # an unreadable one is replaced
            copy += 1
            place = self._place(f"{key}~{copy}")
        return run.save(place)

    def pack(self) -> int:
        """Move the single records into one file a task and method, with the history rounded; how many were moved.

        Safe at any moment: the packed file is replaced as a whole, and only then do the single ones go. Lines that
        this version cannot read stay as they are. While somebody else packs, nothing is done.
        """
        claim = Claim(self.path, "pack")
        if not claim.take():
            return 0
        try:
            return self._pack()
        finally:
            claim.release()

    def _pack(self) -> int:
        loose = {file: self._load(file) for file in sorted(self.path.glob("*.json"))}
        homes: dict[Path, list[Path]] = {}
        for file, runs in loose.items():
            for run in runs:
                homes.setdefault(self.path / run.config.task / f"{run.config.method}.jsonl", []).append(file)
        for home, files in homes.items():
            known = {(run_key(r.config), r.device, r.seconds): r for r in self._load(home)}
            for run in (run for file in files for run in loose[file]):
                known.setdefault((run_key(run.config), run.device, run.seconds), run)
            ordered = sorted(
                known.values(), key=lambda r: (r.config.rank, r.config.init or "", r.config.lr, r.config.seed)
            )
            write_whole(home, "".join([*(run.to_json(DIGITS) for run in ordered), *_unreadable(home)]))
            for file in files:
                file.unlink(missing_ok=True)
        return sum(map(len, homes.values()))

    # --- who makes what ---

    @contextmanager
    def claim(self, cfg: RunConfig) -> Iterator[bool]:
        """Whether the caller may make this run now; the claim is held, and shown to be alive, until the block ends.

        False where somebody else is making it, or it is there already.
        """
        claim = Claim(self.path, run_key(cfg))
        if not claim.take():
            yield False
            return
        try:
            yield cfg not in self  # it may have been finished between the caller's look and the claim
        finally:
            claim.release()

    def tidy(self) -> None:
        """Take away the claims of the dead on runs that are finished: nobody will ask for those again."""
        finished = self.keys()
        for key in {file.name.removesuffix(".claim").rpartition(".")[0] for file in self.path.glob("*.claim")}:
            if key in finished:
                Claim(self.path, key).clear()


class Claim:
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
            out = _create(mine)
            if out is None:
                return False
            with out:
                out.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}))
        except OSError as error:
            raise InputError(f"{mine} cannot be written ({error}); make room, or choose another store") from error
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
            if holder["host"] == socket.gethostname():
                return bool(_born(holder["pid"]) == holder["born"])
        except OSError:
            return False
        except (ValueError, KeyError, TypeError):
            pass  # just being written, or cut short by a full disk: its age decides
        return age < SILENCE

    def _beat(self, mine: Path) -> None:
        while not self._done.wait(BEAT):
            with suppress(OSError):
                os.utime(mine)


def _create(file: Path) -> TextIO | None:
    """``file``, opened for writing; ``None`` if there is one already."""
    try:
        return file.open("x", encoding="utf-8")
    except FileExistsError:
        return None


def _born(pid: int) -> float:
    """When the process started (its number may be used again); 0 if there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return 0.0


def _now(folder: Path) -> float:
    """The time by the clock of the file system, which need not be this machine's."""
    probe = folder / f".{uuid.uuid4().hex}.clock"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        probe.unlink(missing_ok=True)


def _unreadable(file: Path) -> list[str]:
    """The lines of a packed file that this version cannot read: somebody else's may."""
    kept = []
    for line in file.read_text(encoding="utf-8").split("\n") if file.exists() else ():
        try:
            if line.strip():
                Run.from_json(line)
        except InputError:
            kept.append(line + "\n")
    return kept


def existing(wanted: RunStore | str | Path | None) -> RunStore | None:
    """The store of a folder that is there; a store and ``None`` as they are. :class:`InputError` for another folder."""
    if wanted is None or isinstance(wanted, RunStore):
        return wanted
    if not isinstance(wanted, str | Path) or not str(wanted).strip() or not Path(wanted).is_dir():
        raise InputError(f"the store {str(wanted)!r} is no folder; give one that holds runs, or leave it out")
    return RunStore(wanted)


def gather(stores: Iterable[RunStore], into: RunStore) -> int:
    """Copy every run of ``stores`` that ``into`` lacks into it, one machine's beside another's; how many."""
    known = {(run_key(r.config), r.device, r.seconds) for r in into}
    copied = 0
    for run in (run for store in stores for run in store):
        if (run_key(run.config), run.device, run.seconds) not in known:
            into.add(run)
            known.add((run_key(run.config), run.device, run.seconds))
            copied += 1
    return copied
