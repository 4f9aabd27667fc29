"""The board, here or over the network: finding it, its files, one program at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
import platform
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tellme.golden.project import advice
from tellme.host.errors import DeviceError, UserError
from tellme.host.machine.pynq.ip import line, pynq


def ensure_event_loop() -> None:
    """Gives this thread an event loop where it has none, as after `asyncio.run`: PYNQ's devices take one when made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns where it makes one itself
        try:
            asyncio.get_event_loop()
        except RuntimeError:
            asyncio.set_event_loop(asyncio.new_event_loop())


def find_device(device: Any = None) -> Any:
    """The PYNQ device to use.

    Raises
    ------
    DeviceError : there is none, or a board over the network does not answer.
    UserError : this user may not use it, or this PYNQ knows no boards over the network.
    """
    if device is None:
        ensure_event_loop()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                device = pynq.Device.active_device
        except Exception as e:  # pynq raises RuntimeError, gRPC its own
            remote = os.environ.get("PYNQ_REMOTE_DEVICES")
            if remote and find_spec("pynq.pl_server.remote_device") is None:
                raise UserError(
                    f"PYNQ_REMOTE_DEVICES is set, but pynq {pynq.__version__} knows no boards over the network; install "
                    f"pynq 4 ({advice('pynq')} 'pynq>=4'), or unset it on the board itself"
                ) from e
            if remote:
                raise DeviceError(
                    f"the board at {remote} does not answer ({line(e)}); check PYNQ_REMOTE_DEVICES, the network, and "
                    "that the board runs the PYNQ.remote image"
                ) from e
            raise DeviceError(
                "no board was found here; run on the board, in PYNQ's environment (sudo -s; source "
                "/etc/profile.d/pynq_venv.sh), or set PYNQ_REMOTE_DEVICES to its address"
            ) from e
    if device.has_capability("MEMORY_MAPPED") and os.geteuid() != 0:
        raise UserError('registers and memory of the board need root; run with: sudo -E env PATH="$PATH" tellme ...')
    return device


def architecture(device: Any) -> str:
    """Processor of the board, `aarch64` or `armv7l`. Devices know it since PYNQ 3.1; before, the board is this machine."""
    return str(getattr(device, "arch", None) or platform.machine())


def read_text(device: Any, path: str) -> str:
    """A small text file of the board, wherever that is.

    Raises
    ------
    OSError : it is not there.
    """
    if device.has_capability("REMOTE"):
        if not device.exists_file(path).exists:
            raise OSError(f"{path}: not on the board")
        return bytes(device.read_file(path)).decode(errors="replace")
    return Path(path).read_text()


class Lock:
    """One program at a time uses a board. It goes with the process, however that ends.

    Raises
    ------
    DeviceError : another process has it.
    UserError : the lock's file is not ours to open.
    """

    def __init__(self, device: Any):
        name = f"{device.tag}-{getattr(device, 'ip_addr', 'local')}".replace("/", "_")
        path = Path(tempfile.gettempdir()) / f"tellme-{name}.lock"
        try:
            # Another user's link must not make root write elsewhere.
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as e:
            raise UserError(f"{path}: cannot be opened as the board's lock ({e.strerror}); remove it") from e
        self._file: Any = os.fdopen(handle, "r+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            other = self._file.read().strip() or "?"
            self._file.close()
            raise DeviceError(
                f"the board is in use by process {other}; end it first (other notebooks too: shut their kernel down)"
            ) from e
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """May be called again."""
        self._file.close()
