"""The overlay: a bitstream as PYNQ reads it, and onto the chip."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tellme.host.errors import DeviceError, TellmeError
from tellme.host.machine.pynq.handoff import Bitstream
from tellme.host.machine.pynq.ip import line, pynq


@contextlib.contextmanager
def loading(path: Path) -> Iterator[None]:
    """PYNQ's troubles in one line; in a folder of its own, because XRT's loader leaves a file where it stands."""
    here = os.getcwd()
    folder = tempfile.mkdtemp(prefix="tellme-")
    try:
        os.chdir(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except TellmeError:
        raise
    except Exception as e:  # pynq raises whatever comes: RuntimeError, OSError, KeyError, XRT's own
        raise DeviceError(
            f"{path}: the overlay cannot be loaded ({type(e).__name__}: {line(e)}); try tellme doctor, and if the "
            "board does not recover power it off and on"
        ) from e
    finally:
        os.chdir(here)
        shutil.rmtree(folder, ignore_errors=True)


def _forget(folder: Path) -> None:
    """Removes what PYNQ keeps of bitstreams that were loaded before, where it would be wrong.

    The parsed hand-off of the last bitstream, which it finds again by the .bit alone; and the state of the chip if it
    names a bitstream that is gone: PYNQ 3.0.1 reads that file again whenever it looks at the state, and fails.
    """
    for path in folder.glob("_current_metadata*"):
        path.unlink(missing_ok=True)
    for path in folder.glob("global_pl_state*.json"):
        try:
            gone = not Path(json.loads(path.read_text())["bitfile_name"]).is_file()
        except (OSError, ValueError, LookupError, TypeError):
            gone = True
        if gone:
            path.unlink(missing_ok=True)


def open_overlay(bitstream: Bitstream, device: Any) -> Any:
    """Reads the design of a bitstream; the chip is not touched.

    Raises
    ------
    DeviceError : PYNQ cannot.
    """
    with loading(bitstream.path):
        _forget(Path(pynq.pl_server.__file__).parent)
        return pynq.Overlay(str(bitstream.path), download=False, device=device)


def download(overlay: Any, bitstream: Bitstream) -> None:
    """Configures the chip.

    Raises
    ------
    DeviceError : PYNQ or the kernel refuse.
    """
    with loading(bitstream.path):
        if overlay.device.has_capability("REMOTE"):
            # A file of that name on the board is taken for this one and not sent again.
            digest = hashlib.sha256(bitstream.path.read_bytes()).hexdigest()[:8]
            overlay.binfile_name = f"{bitstream.path.stem}-{digest}.bin"
        overlay.download()
