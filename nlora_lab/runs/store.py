"""Runs in a folder: one file a run while they are made, packed files where they are kept.

A record is written whole or not at all, and no two workers do one run: whoever makes a run holds its *claim*, a
file beside the records that says who it is. The claim of a process that has died is worth nothing, so nothing has
to be cleaned up after a crash, and the folder may be shared by several processes and machines.
"""

from __future__ import annotations



import hashlib
import json
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from nlora_lab.runs.leases import Lease, clear_scratch, scratch
from nlora_lab.runs.config import RunConfig
from nlora_lab.core.errors import InputError, StoreError
from nlora_lab.core.files import check_writable, expand_path, write_atomically
from nlora_lab.methods.table import METHODS
from nlora_lab.runs.run import Run, run_table

if TYPE_CHECKING:
    import pandas as pd

DIGITS = 5  # of the history's numbers in a packed record


def run_key(cfg: RunConfig) -> str:
    """A file name for what ``cfg`` asks for (:meth:`RunConfig.asked`): readable, and different for any other config."""
    asked = cfg.identity()
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    init = f"-{asked['init']}" if asked["init"] else ""
    return f"{cfg.task}-{cfg.method}-r{cfg.rank}{init}-lr{cfg.lr:g}-seed{cfg.seed}-{digest}"


class RunStore:
    """The finished runs of a folder, as ``Run`` objects; ``len()`` counts them, :meth:`run_table` lists them.

    The folder need not exist before the first :meth:`add`. Files that are no whole record are left out, with a
    warning that names them.
    """

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"store={path!r} must be a folder; give its path")
        self.path = expand_path(path)
        self._read: dict[Path, tuple[tuple[object, ...], list[Run]]] = {}  # by file: its state when read, its runs
        self._lock = threading.Lock()

    # --- reading ---

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs())

    def __len__(self) -> int:
        return len(self._runs())

    def __contains__(self, cfg: object) -> bool:
        """Whether there is a finished run of ``cfg``."""
        return isinstance(cfg, RunConfig) and run_key(cfg) in self.keys()

    def keys(self) -> set[str]:
        """:func:`run_key` of every finished run."""
        return {run_key(run.config) for run in self._runs()}

    def failed(self) -> set[str]:
        """:func:`run_key` of what has been tried, and has no run without an error."""
        runs = self._runs()
        return {run_key(r.config) for r in runs if r.error} - {run_key(r.config) for r in runs if not r.error}

    def run_table(self) -> pd.DataFrame:
        """One row a run."""
        return run_table(self)

    def __repr__(self) -> str:
        count = len(self)
        return f"RunStore: {count:,} run{'s' * (count != 1)}"

    def _runs(self) -> list[Run]:
        # the loose ones first: a run that is packed meanwhile is in the packed file before its own goes
        loose = [run for file in sorted(self.path.glob("*.json")) for run in self._load(file)]
        packed = [run for file in sorted(self.path.glob("**/*.jsonl")) for run in self._load(file)]
        return list({_identity(run): run for run in [*packed, *loose]}.values())

    def _load(self, file: Path) -> list[Run]:
        """The runs of one file, read again only if it has changed, or the methods have that make a line readable."""
        try:
            stat = file.stat()
        except OSError:  # packed by somebody else just now, or for parse to name
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
        place, part = self.path / f"{key}.json", scratch(self.path, ".part")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            part.write_text(run.to_json(), encoding="utf-8", newline="\n")
            while not _publish(part, place):  # never over another file, readable or not: it may be a newer version's
                copy += 1
                place = self.path / f"{key}~{copy}.json"
        except (OSError, ValueError) as error:
            raise StoreError(f"{place} cannot be written ({error}); make room, or choose another store") from error
        finally:
            with suppress(OSError, ValueError):
                part.unlink(missing_ok=True)
        return place

    def pack(self) -> int:
        """Move the single records into one file a task and method, with the history rounded; how many were moved.

        Safe at any moment: the packed file is replaced as a whole, and only then do the single ones go. Lines that
        this version cannot read stay as they are. While somebody else packs, nothing is done.
        """
        claim = Lease(self.path, "pack")
        if not claim.take():
            return 0
        try:
            return self._pack()
        finally:
            claim.release()

    def _pack(self) -> int:
        homes: dict[Path, dict[Path, Run]] = {}
        for file in sorted(self.path.glob("*.json")):
            runs, others = read_records(file) or ([], [])
            if len(runs) == 1 and not others:
                cfg = runs[0].config
                homes.setdefault(self.path / cfg.task / f"{cfg.method}.jsonl", {})[file] = runs[0]
        moved = 0
        for home, loose in homes.items():
            parsed = read_records(home)  # once and afresh: what one reading took and another refused would be lost
            if parsed is None:
                continue
            known = {_identity(run): run for run in parsed[0]}
            for run in loose.values():
                known.setdefault(_identity(run), run)
            write_packed(home, known.values(), parsed[1])
            for file in loose:
                file.unlink(missing_ok=True)
            moved += len(loose)
        return moved

    # --- who makes what ---

    @contextmanager
    def claim(self, cfg: RunConfig) -> Iterator[bool]:
        """Whether the caller may make this run now; the claim is held, and shown to be alive, until the block ends.

        False where somebody else is making it, or it is there already.
        """
        claim = Lease(self.path, run_key(cfg))
        if not claim.take():
            yield False
            return
        try:
            yield cfg not in self  # it may have been finished between the caller's look and the claim
        finally:
            claim.release()

    def tidy(self) -> None:
        """Take away what the dead have left: half-written files, and claims on runs that are finished.

        Such a claim is worth nothing whoever holds it, and one that was cut short does not say who does.
        """
        clear_scratch(self.path)
        finished = self.keys()
        for key in {file.name.removesuffix(".claim").rpartition(".")[0] for file in self.path.glob("*.claim")}:
            if key in finished:
                Lease(self.path, key).drop()


def _publish(part: Path, place: Path) -> bool:
    """Give the file ``part`` the second name ``place``, whole at once; False if there is such a file already."""
    try:
        os.link(part, place)
    except FileExistsError:
        return False
    except OSError:  # a file system without links, or one that cannot be written, which the next lines find out
        if place.exists():
            return False
        part.rename(place)  # whoever makes this run holds its claim, so nobody writes it at this moment
    return True


def _identity(run: Run) -> tuple[str, str, float]:
    """Equal for two records of one run, as a crash while packing leaves them; rounded or not."""
    return run_key(run.config), run.device, run.seconds


def read_records(file: Path) -> tuple[list[Run], list[str]] | None:
    """The finished runs of a file, and its other lines, each named in a warning: they may be a newer version's.

    Nothing of a file that is not there; ``None`` for one that cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
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
    """The runs in their order, with the history rounded; then the lines that are none, as they stood."""
    ordered = sorted(runs, key=lambda r: (r.config.rank, r.config.init or "", r.config.lr, r.config.seed))
    write_atomically(file, "".join([*(run.to_json(DIGITS) for run in ordered), *(line + "\n" for line in others)]))


def open_store(wanted: RunStore | str | Path | None) -> RunStore | None:
    """The store of a folder that is there; a store and ``None`` as they are. :class:`InputError` for another folder."""
    if wanted is None or isinstance(wanted, RunStore):
        return wanted
    if not isinstance(wanted, str | Path) or not str(wanted).strip() or not expand_path(wanted).is_dir():
        raise InputError(f"the store {str(wanted)!r} is no folder; give one that holds runs, or leave it out")
    return RunStore(wanted)


def gather(stores: Iterable[RunStore], into: RunStore) -> int:
    """Copy every run of ``stores`` that ``into`` lacks into it, one machine's beside another's; how many."""
    known = set(map(_identity, into))
    copied = 0
    for run in (run for store in stores for run in store):
        if _identity(run) not in known:
            into.add(run)
            known.add(_identity(run))
            copied += 1
    return copied
