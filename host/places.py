"""Places that commands write to: looked at before the work, written whole or not at all, and by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tellme.host.errors import UserError


def _refused(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror or error})")


def check_new_file(path: Path) -> None:
    """Refuses a place where no file can be written, by trying it.

    Raises
    ------
    UserError : it is a folder or a device, its folder does not exist, or nothing can be written there.
    """
    try:
        target = path.resolve()
        if target.is_dir():
            raise UserError(f"{path}: is a folder; give the name of a file")
        if target.exists() and not stat.S_ISREG(target.stat().st_mode):
            raise UserError(f"{path}: is not a regular file; give the name of a file")
        if not target.parent.is_dir():
            raise UserError(f"{path}: its folder does not exist")
        # What permissions say is not the whole truth: /proc, a read-only mount, a name that is too long.
        with tempfile.NamedTemporaryFile(prefix=target.name + ".", suffix=".part", dir=target.parent):
            pass
    except OSError as e:
        raise _refused(path, e) from e


def check_new_folder(path: Path) -> None:
    """Refuses a place where no folder can be made, or in which nothing can be written. Leaves nothing there.

    Raises
    ------
    UserError : as said.
    """
    try:
        target = path.resolve()
        there = target
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            why = "is a file; give a folder" if there == target else f"cannot be written ({there} is a file)"
            raise UserError(f"{path}: {why}")
        with tempfile.TemporaryDirectory(prefix=".tellme-", dir=there) as trial:
            if there != target:
                (Path(trial) / target.name).mkdir()
    except OSError as e:
        raise _refused(path, e) from e


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which then takes its name; if that fails, `path` is as it was.

    Raises
    ------
    UserError : it cannot be written.
    """
    target = path.resolve()
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=target.name + ".", suffix=".part", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, target)
    except OSError as e:
        raise _refused(path, e) from e
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[str] | None]:
    """The lock file, locked and empty; None if another process has it."""
    while True:
        with open(path, "a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            try:
                same = os.fstat(lock.fileno()).st_ino == path.stat().st_ino
            except FileNotFoundError:
                same = False
            if not same:  # whoever had it has removed it since we opened it
                continue
            lock.truncate(0)
            yield lock
            return


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds a folder that may not exist yet, by a lock file beside it, which goes in the end.

    Raises
    ------
    UserError : another process holds it, or no file can be written beside it.
    """
    target = folder.resolve()
    made: list[Path] = []
    held = False
    try:
        parent = target.parent
        missing = [p for p in (parent, *parent.parents) if not p.exists()]
        for p in reversed(missing):
            p.mkdir(exist_ok=True)
            made.append(p)
        path = parent / f".{target.name}.lock"
        with _locked(path) as lock:
            if lock is None:
                who = path.read_text().strip() or "another process"
                raise UserError(f"{folder}: is being built by {who}; wait for it, or give another folder")
            lock.write(f"process {os.getpid()} since {time.strftime('%H:%M:%S')}")
            lock.flush()
            held = True
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    except OSError as e:
        if held:  # of the work, not of the lock
            raise
        raise _refused(folder, e) from e
    finally:
        for p in reversed(made):
            with contextlib.suppress(OSError):  # what was built is in it
                p.rmdir()
