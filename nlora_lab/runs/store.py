"""Stores: runs in a folder, one file per run while they are made, and packed files where they are kept.

A record is written completely or not at all, and never over another one. Several processes and machines may write into
one folder. Packing, which replaces files, takes a lock.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from nlora_lab.core.documents import read_text
from nlora_lab.core.errors import InputError, StoreError
from nlora_lab.core.files import check_writable, expand_path, part_of, remove_parts, write_atomically
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.config import RunConfig
from nlora_lab.runs.run import Run, run_table

if TYPE_CHECKING:
    import pandas as pd

PART_LIFE = 3600.0  # seconds after which a half-written file is left over: it lives milliseconds, but clocks differ
DIGITS = 5  # of the losses in a packed record; gradient norms have two fewer


def run_key(cfg: RunConfig) -> str:
    """Return the name of a run for files: readable, and different for every other config.

    Args:
        cfg: the config of the run.

    Returns:
        The name. It is the same for configs that ask for the same (see ``RunConfig.identity``).
    """
    identity = cfg.identity()
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    init = f"-{identity['init']}" if identity["init"] else ""
    return f"{cfg.task}-{cfg.method}-r{cfg.rank}{init}-lr{cfg.lr:g}-seed{cfg.seed}-{digest}"


class RunStore:
    """The finished runs of a folder, as ``Run`` objects. ``len()`` counts them, and ``table()`` lists them.

    The folder need not exist before the first ``add``. Files that do not hold a complete record are left out, with a
    warning that names them.

    Args:
        path: the folder.

    Attributes:
        path: the folder, with ``~`` replaced by the home folder.

    Raises:
        InputError: ``path`` is not a path, or is there and is not a folder.
    """

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"store={path!r} must be a folder; give its path")
        self.path = expand_path(path, "store")
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise StoreError(f"store={str(self.path)!r} is not a folder; give a folder, or remove the file")
        self._read: dict[
            Path, tuple[tuple[object, ...], list[Run]]
        ] = {}  # by file: its state when it was read, and its runs
        self._lock = threading.Lock()

    # --- reading ---

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs())

    def __len__(self) -> int:
        return len(self._runs())

    def __contains__(self, cfg: object) -> bool:
        """Return whether there is a finished run of this config."""
        return isinstance(cfg, RunConfig) and run_key(cfg) in self.keys()

    def keys(self) -> set[str]:
        """Return the ``run_key`` of every finished run."""
        return {run_key(run.config) for run in self._runs()}

    def failed(self) -> set[str]:
        """Return the ``run_key`` of every config that has been tried and has no run without an error."""
        runs = self._runs()
        return {run_key(r.config) for r in runs if r.error} - {run_key(r.config) for r in runs if not r.error}

    def table(self) -> pd.DataFrame:
        """Make a table of the runs.

        Returns:
            A frame with one row per run and the columns of ``Run.summary``.
        """
        return run_table(self)

    def __repr__(self) -> str:
        count = len(self)
        return f"RunStore: {count:,} run{'s' * (count != 1)}"

    def _runs(self) -> list[Run]:
        # single files first: a run that is packed meanwhile is in the packed file before its single file goes
        loose = [run for file in sorted(self.path.glob("*.json")) for run in self._load(file)]
        packed = [run for file in sorted(self.path.glob("**/*.jsonl")) for run in self._load(file)]
        return list({_identity(run): run for run in [*packed, *loose]}.values())

    def _load(self, file: Path) -> list[Run]:
        """Read the runs of one file again only if the file or the table of methods has changed."""
        try:
            stat = file.stat()
        except OSError:  # packed by another process just now, or for read_records to name
            return (read_records(file) or ([], []))[0]
        state = (stat.st_mtime_ns, stat.st_size, stat.st_ino, *METHODS)
        with self._lock:
            if file in self._read and self._read[file][0] == state:
                return self._read[file][1]
        parsed = read_records(file)
        if parsed is not None:
            with self._lock:
                self._read[file] = (state, parsed[0])
        return parsed[0] if parsed else []

    # --- writing ---

    def check_writable(self) -> None:
        """Check that runs can be written into the folder.

        Raises:
            InputError: they cannot.
        """
        check_writable(self.path, f"store={str(self.path)!r}")

    def add(self, run: Run) -> Path:
        """Write a run into a file of its own, completely or not at all.

        A second run of one config gets a file beside the first.

        Args:
            run: the run.

        Returns:
            Its file.

        Raises:
            InputError: the run was stopped, and would count as finished. Or the folder cannot be written.
        """
        if run.stopped:
            raise InputError(f"{run_key(run.config)} was stopped at step {len(run.steps)}; add finished runs only")
        key, copy = run_key(run.config), 1
        place = self.path / f"{key}.json"
        part = part_of(place)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            part.write_text(run.to_json(), encoding="utf-8", newline="\n")
            while not _publish(
                part, place
            ):  # never replace a file, even an unreadable one: it may be a newer version's
                copy += 1
                place = self.path / f"{key}~{copy}.json"
        except (OSError, ValueError) as error:
            raise StoreError(f"{place} cannot be written ({error}); make room, or choose another store") from error
        finally:
            with suppress(OSError, ValueError):
                part.unlink(missing_ok=True)
        return place

    def pack(self) -> int:
        """Move the single records into one file per task and method.

        The losses of the steps are rounded to five digits, and the gradient norms to three.
        This is safe at any moment: the packed file is replaced completely before the single files are removed. Lines
        that this version cannot read stay as they are. Nothing is done while another process packs.

        Returns:
            How many records were moved.
        """
        try:
            with self._locked(wait=False):
                return self._pack()
        except Timeout:
            return 0

    def _pack(self) -> int:
        packed_files: dict[Path, dict[Path, Run]] = {}
        for file in sorted(self.path.glob("*.json")):
            runs, others = read_records(file) or ([], [])
            if len(runs) == 1 and not others:
                cfg = runs[0].config
                packed_files.setdefault(self.path / cfg.task / f"{cfg.method}.jsonl", {})[file] = runs[0]
        moved = 0
        for packed_file, loose in packed_files.items():
            parsed = read_records(packed_file)  # read once: a line that two readings judge differently would be lost
            if parsed is None:
                continue
            known = {_identity(run): run for run in parsed[0]}
            for run in loose.values():
                known.setdefault(_identity(run), run)
            write_packed(packed_file, known.values(), parsed[1])
            for file in loose:
                file.unlink(missing_ok=True)
            moved += len(loose)
        return moved

    def drop_failed(self, keys: set[str]) -> None:
        """Remove the failed records of those runs that have no other record, so that they can be made again.

        Args:
            keys: the ``run_key`` of the runs.

        Raises:
            InputError: a file cannot be written.
        """
        if not self.failed() & keys:
            return
        with self._locked():
            dropped = self.failed() & keys  # read under the lock: another process may have added runs
            for file in [*self.path.glob("*.json"), *self.path.glob("**/*.jsonl")]:
                runs, others = read_records(file) or ([], [])
                remaining = [run for run in runs if not (run.error and run_key(run.config) in dropped)]
                if len(remaining) == len(runs):
                    continue
                if remaining or others:
                    write_packed(file, remaining, others)
                else:
                    file.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove the half-written files of processes that were killed while they wrote a record."""
        remove_parts(self.path)
        for file in self.path.glob(".*.part"):
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > PART_LIFE:
                    file.unlink()

    @contextmanager
    def _locked(self, wait: bool = True) -> Iterator[None]:
        """Let no other process replace files here meanwhile. Without ``wait``, raise ``Timeout`` if one does."""
        lock = FileLock(self.path / ".lock", timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            raise
        except (OSError, NotImplementedError) as error:
            raise StoreError(f"{self.path} cannot be locked ({error}); choose another store") from error
        try:
            yield
        finally:
            lock.release()


def _publish(part: Path, place: Path) -> bool:
    """Give the file ``part`` the second name ``place`` in one operation. Returns whether that name was free."""
    try:
        os.link(part, place)
    except FileExistsError:
        return False
    except OSError:  # a file system without links, or one that cannot be written, for which rename raises again
        try:
            place.touch(exist_ok=False)  # one process gets the name; until the next line the file is empty
        except FileExistsError:
            return False
        part.replace(place)
    return True


def _identity(run: Run) -> tuple[str, str, float]:
    """Return what two records of one run share, rounded or not. A crash while packing leaves both."""
    return run_key(run.config), run.device, run.seconds


def read_records(file: Path) -> tuple[list[Run], list[str]] | None:
    """Read the records of a file.

    Args:
        file: a file with one record per line. It need not exist.

    Returns:
        The finished runs, and all other lines, which may be a newer version's. A warning names each line that cannot be
        read. ``None`` if the file cannot be read.
    """
    try:
        lines = read_text(file).split("\n")
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError) as error:
        warnings.warn(f"{file} cannot be read ({error}); it is left out", stacklevel=3)
        return None
    runs: list[Run] = []
    others: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            run = Run.from_json(line)
        except InputError as error:
            warnings.warn(f"{file}, line {number}: {error}; it is left out", stacklevel=3)
            others.append(line)
        else:
            others.append(line) if run.stopped else runs.append(run)
    return runs, others


def write_packed(file: Path, runs: Iterable[Run], others: Iterable[str]) -> None:
    """Write a packed file: the runs in a fixed order, rounded as ``RunStore.pack`` says, then the other lines.

    Args:
        file: the file.
        runs: the runs.
        others: the lines that ``read_records`` could not read, each without its line break.

    Raises:
        InputError: the file cannot be written.
    """
    ordered = sorted(runs, key=lambda r: (r.config.rank, r.config.init or "", r.config.lr, r.config.seed))
    write_atomically(file, "".join([*(run.to_json(DIGITS) for run in ordered), *(line + "\n" for line in others)]))


def open_store(store: RunStore | str | Path | None) -> RunStore | None:
    """Open a store that must exist.

    Args:
        store: a folder, or a store or ``None``, which are returned unchanged.

    Returns:
        The store.

    Raises:
        InputError: the folder does not exist.
    """
    if store is None or isinstance(store, RunStore):
        return store
    if not isinstance(store, str | Path) or not str(store).strip() or not expand_path(store).is_dir():
        raise InputError(f"store={str(store)!r} is not a folder; give one that holds runs, or leave it out")
    return RunStore(store)


def gather(stores: Iterable[RunStore], into: RunStore) -> int:
    """Copy runs from several stores into one. Runs of one config from different machines are kept side by side.

    Args:
        stores: the stores to copy from.
        into: the store to copy into.

    Returns:
        How many runs were copied: those that ``into`` lacked.

    Raises:
        InputError: a run cannot be written.
    """
    known = set(map(_identity, into))
    copied = 0
    for run in (run for store in stores for run in store):
        if _identity(run) not in known:
            into.add(run)
            known.add(_identity(run))
            copied += 1
    return copied
