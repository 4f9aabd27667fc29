"""The accelerator on a board, through PYNQ: on the board itself, or over the network with PYNQ.remote.

One contiguous buffer holds the regions of all memory ports; over the network each region is a buffer of its own, because
there only the first bytes of a buffer can be sent. Either is larger than its regions, so that each begins at its phase
(golden/boards.py) whatever address the allocator gave. Buffers are cached by the processor and
not coherent with the memory ports, so `flush` and `invalidate` matter, and are limited to what changed: PYNQ 4.0's own
`PynqBuffer.flush` maintains the caches for the whole buffer, hundreds of megabytes for every token.

Sources: PYNQ 3.0.1 and 4.0 (`pynq.Overlay`, `pynq.buffer`, `pynq.pl_server`), XRT's `pyxrt.bo`, UG1085 for interrupts
and AXI ports. Every call here is run by the tests on both versions; where they differ, the call says so.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tellme.golden.boards import check_phases
from tellme.golden.boards import phases as board_phases
from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import offset, pack, unpack
from tellme.host.errors import DeviceError, TellmeError
from tellme.host.machine.pynq.buffers import LocalBuffer, RemoteBuffers, check_memory, no_buffer
from tellme.host.machine.pynq.clocks import set_clock
from tellme.host.machine.pynq.handoff import accelerator_name, check_clock, check_widths, open_bitstream
from tellme.host.machine.pynq.interrupts import open_interrupt, wait_interrupt
from tellme.host.machine.pynq.network import Lock, find_device
from tellme.host.machine.pynq.overlay import download, loading, open_overlay

POLL_S = 100e-6
"""Between two looks at the status register where there is no interrupt; a pass takes milliseconds."""
IRQ_WAIT_S = 0.25
"""Longest wait for an interrupt before the status register is looked at anyway."""
IRQ_LATE_S = 0.05
"""Longest that an interrupt may come after its cause."""
RESET_S = 1.0
"""Seconds within which a soft reset ends a pass; it takes microseconds."""

_CONTROL, _STATUS = offset("control"), offset("status")


class PynqDevice:
    """An accelerator on a board; a `host.machine.device.Device`.

    Parameters
    ----------
    bitfile : the bitstream, its hardware hand-off beside it.
    config : what it was built from.
    beats : size of the shared buffer.
    device : a `pynq.Device`; PYNQ's active one if None.
    phases : where the ports' regions begin, bytes modulo golden.boards.PHASE_PERIOD; those in use for the board if None.

    Attributes
    ----------
    memory : uint8[beats, port_bytes] of each port; a port's region is a whole number of pages.
    port_bases : byte address of each port's region.
    clock : what the PL clock is.
    interrupts : whether the end of a pass is waited for by interrupt.

    Raises
    ------
    UserError, DeviceError : at the first thing that is not as it must be. The chip is touched last, and nothing is kept.
    """

    def __init__(
        self,
        bitfile: Path,
        config: AcceleratorConfig,
        beats: int,
        *,
        device: Any = None,
        phases: Sequence[int] | None = None,
    ):
        self.config = config
        self._buffer: LocalBuffer | RemoteBuffers | None = None
        self._uio: BinaryIO | None = None
        self._lock: Lock | None = None
        self._ip: Any = None
        self._running = False
        bitstream = open_bitstream(bitfile, config)
        device = find_device(device)
        phases = board_phases(config) if phases is None else phases
        if phases:
            check_phases(phases, config.ports)
        kind = RemoteBuffers if device.has_capability("REMOTE") else LocalBuffer
        needed = kind.size(config, beats, phases)
        self._lock = Lock(device)
        try:
            self._bitstream = bitstream
            self._overlay = open_overlay(bitstream, device)
            name = accelerator_name(self._overlay, bitstream.path)
            check_widths(self._overlay, config, bitstream.path)
            mhz = check_clock(self._overlay, config, bitstream.path)
            check_memory(device, config, needed)
            download(self._overlay, bitstream)
            self.clock = set_clock(mhz)
            self.config = config = replace(config, clock_hz=round(mhz * 1e6))
            with loading(bitstream.path):
                self._ip = self._overlay
                for part in name.split("/"):  # hierarchies of the block design
                    self._ip = getattr(self._ip, part)
            self._uio = open_interrupt(device, self._overlay)
            try:
                self._buffer = kind(device, config, beats, phases)
            except TellmeError:
                raise
            except Exception as e:  # XRT: RuntimeError, gRPC: its own
                raise no_buffer(device, config, needed, e) from e
        except BaseException:
            self.close()
            raise

    @property
    def memory(self) -> tuple[NDArray[np.uint8], ...]:
        return self._open().memory

    @property
    def port_bases(self) -> tuple[int, ...]:
        return self._open().port_bases

    @property
    def interrupts(self) -> bool:
        return self._uio is not None

    def _open(self) -> LocalBuffer | RemoteBuffers:
        if self._buffer is None:
            raise DeviceError("the board was closed; open it again")
        return self._buffer

    def read(self, offset: int) -> int:
        """Value of the 32-bit register at byte `offset`."""
        self._open()
        return int(self._ip.read(offset))

    def write(self, offset: int, value: int) -> None:
        """Writes the 32-bit register at byte `offset`."""
        self._open()
        if not 0 <= value < 1 << 32:
            raise ValueError(f"a register takes 0 to 0xffffffff, not {value}")
        if offset == _CONTROL and unpack("control", value)["start"]:
            self._running = True
        self._ip.write(offset, int(value))

    def flush(self, start: int, beats: int) -> None:
        """Makes what the host wrote to beats [start, start + beats) visible to the accelerator."""
        self._sync(True, start, beats)

    def invalidate(self, start: int, beats: int) -> None:
        """Makes what the accelerator wrote to beats [start, start + beats) visible to the host."""
        self._sync(False, start, beats)

    def _sync(self, to_device: bool, start: int, beats: int) -> None:
        buffer = self._open()
        size = len(buffer.memory[0])
        if start < 0 or beats < 0 or start + beats > size:
            raise ValueError(f"beats [{start}, {start + beats}) are not in the buffer of {size}")
        if beats:
            buffer.sync(to_device, start, beats)

    def wait_done(self, timeout_s: float) -> bool:
        """Waits until STATUS.done is set, by interrupt where there is one; False after `timeout_s` seconds without."""
        end = time.monotonic() + timeout_s
        while not unpack("status", self.read(_STATUS))["done"]:
            left = end - time.monotonic()
            if left <= 0:
                return False
            if self._uio is None:
                time.sleep(POLL_S)
            elif not wait_interrupt(self._uio, min(left, IRQ_WAIT_S)) and unpack("status", self.read(_STATUS))["done"]:
                if not select.select([self._uio], [], [], IRQ_LATE_S)[0]:
                    # Done without an interrupt: the line is not ours, or is masked. Polling always works.
                    self._uio.close()
                    self._uio = None
                else:
                    self._uio.read(4)
        self._running = False
        return True

    def close(self) -> None:
        """Stops the accelerator, then gives buffer, interrupt and board back. May be called again."""
        try:
            if self._running and self._buffer is not None:
                self._stop()
        finally:
            self._running = False
            uio, self._uio = self._uio, None
            if uio is not None:
                uio.close()
            buffer, self._buffer = self._buffer, None
            if buffer is not None:
                buffer.free()
            lock, self._lock = self._lock, None
            if lock is not None:
                lock.release()

    def _stop(self) -> None:
        """Ends a pass in progress: its memory must not be given back while it is written."""
        with contextlib.suppress(Exception):
            self._ip.write(_CONTROL, pack("control", soft_reset=1))
            end = time.monotonic() + RESET_S
            while unpack("status", self._ip.read(_STATUS))["busy"]:
                if time.monotonic() > end:
                    raise DeviceError("still busy")
            return
        with contextlib.suppress(Exception):  # a configuration stops whatever runs
            download(self._overlay, self._bitstream)

    def __enter__(self) -> PynqDevice:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:
            with contextlib.suppress(Exception):
                self.close()
