"""What is built once for a user: simulators, syntheses. One folder, safe for several processes at once.

Entries are made in a folder beside their place and renamed into it, so that one is whole or not there; an advisory lock
(flock) of each lets one process build while others wait, and keeps an entry while a process uses it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import platformdirs

VARIABLE = "TELLME_BUILD"
"""Environment variable that names another folder."""

DONE = "done"
"""File in an entry that is whole; its time is that of the last use."""

_LOCKS = "locks"
_NOTES = "configurations"
_SYNTHESES = "synth"
_SIMULATOR = re.compile(r"\.?[0-9a-f]{16}")
_SYNTHESIS = re.compile(r".+-[0-9a-f]{24}\.(il|json|v)|[\w.]+-\w{8}")
"""Names of what is ours: $TELLME_BUILD may name a folder that holds other things."""
_held: dict[Path, IO[str]] = {}


class CacheError(RuntimeError):
    """The cache cannot be used; the message says where and what to do."""


def root() -> Path:
    """The cache's folder: $TELLME_BUILD, or the user's cache folder as the system has it (~/.cache/tellme on Linux)."""
    named = os.environ.get(VARIABLE)
    return Path(os.path.abspath(named)) if named else platformdirs.user_cache_path("tellme", appauthor=False)


def notes() -> Path:
    """Folder of notes: which entry belongs to which configuration, under a hash of the sources."""
    return root() / _NOTES


def syntheses() -> Path:
    """Folder of netlists and reports, under hashes of what they were made from."""
    return root() / _SYNTHESES


def refusal(where: Path, error: OSError) -> CacheError:
    """What to say when the cache cannot be written."""
    return CacheError(
        f"{where}: the cache of built simulators cannot be written ({error.strerror or error}); "
        f"set {VARIABLE} to a folder that can"
    )


def prepare() -> Path:
    """Makes the cache's folder and tries to write in it, before long work is done for it. Returns it.

    Raises
    ------
    CacheError : it cannot be written.
    """
    where = root()
    try:
        (where / _LOCKS).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=where) as f:
            f.write(bytes(4096))
            f.flush()
    except OSError as e:
        raise refusal(where, e) from e
    return where


def entry(key: str, make: Callable[[Path], None]) -> Path:
    """Folder of the entry `key`. If there is none, `make` fills an empty folder, which is then put into its place.

    The entry is kept as it is until this process ends: `clear` in another leaves it.

    Raises
    ------
    CacheError : the cache cannot be written.
    What `make` raises; nothing is left then.
    """
    folder = root() / key
    if folder in _held and (folder / DONE).is_file():
        return folder
    prepare()
    try:
        lock = open(root() / _LOCKS / key, "a")  # noqa: SIM115 - kept open as long as the entry is used
        fcntl.flock(lock, fcntl.LOCK_SH)
    except OSError as e:
        raise refusal(root() / _LOCKS, e) from e
    try:
        while not (folder / DONE).is_file():
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / DONE).is_file():
                _make(folder, make)
            # Between the two locks another may clear it.
            fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):
            os.utime(folder / DONE)
    except BaseException:
        lock.close()
        raise
    _held[folder] = lock
    return folder


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    stage = folder.with_name(f".{folder.name}")
    try:
        for left in (stage, folder):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        stage.mkdir()
        make(stage)
        (stage / DONE).touch()
        stage.rename(folder)
    except OSError as e:
        raise refusal(folder, e) from e
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@dataclass(frozen=True)
class Entry:
    """A part of the cache. used: seconds since the epoch of its last use; busy: a process holds it."""

    path: Path
    kind: str
    bytes: int
    used: float
    busy: bool = False


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _first_line(note: Path) -> str:
    try:
        return note.read_text().split("\n")[0] or "?"
    except (OSError, UnicodeDecodeError):
        return "?"


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    return sum(p.lstat().st_size for p in path.rglob("*") if not p.is_dir())


def _try(key: str) -> IO[str] | None:
    """The entry's lock, for this process alone; None if another has it."""
    lock = open(root() / _LOCKS / key, "a")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def entries() -> list[Entry]:
    """Everything in the cache, the latest used first."""
    found: list[Entry] = []
    where = root()
    of = {_first_line(note): f" of {note.name.rsplit('-', 1)[0]}" for note in _files(notes())}
    for path in where.iterdir() if where.is_dir() else ():
        if not _SIMULATOR.fullmatch(path.name) or not path.is_dir():
            continue
        with contextlib.suppress(FileNotFoundError):
            done = path / DONE
            busy = False
            if (lock := _try(path.name.removeprefix("."))) is None:
                busy = True
            else:
                lock.close()
            kind = f"simulator{of.get(path.name, '')}" if done.is_file() else "unfinished"
            found.append(Entry(path, kind, _size(path), (done if done.is_file() else path).stat().st_mtime, busy))
    for path in _files(syntheses()):
        if not _SYNTHESIS.fullmatch(path.name):
            continue
        with contextlib.suppress(FileNotFoundError):
            found.append(Entry(path, "synthesis", _size(path), path.stat().st_mtime))
    return sorted(found, key=lambda e: -e.used)


def clear(unused_days: float = 0) -> tuple[list[Entry], list[Entry]]:
    """Removes entries that were not used for so many days. Returns what was removed, and what is in use and stays.

    Raises
    ------
    CacheError : something cannot be removed.
    """
    before = time.time() - 86400 * unused_days
    gone: list[Entry] = []
    kept: list[Entry] = []
    try:
        for e in entries():
            if unused_days and not e.used <= before:
                continue
            if e.kind == "synthesis":
                shutil.rmtree(e.path) if e.path.is_dir() else e.path.unlink(missing_ok=True)
                gone.append(e)
                continue
            if (lock := _try(e.path.name.removeprefix("."))) is None:
                kept.append(e)
                continue
            with lock:
                shutil.rmtree(e.path)
            gone.append(e)
        for note in _files(notes()):
            if not (root() / _first_line(note)).is_dir():
                note.unlink(missing_ok=True)
    except OSError as e:
        raise CacheError(f"{e.filename or root()}: cannot be removed ({e.strerror})") from e
    return gone, kept
