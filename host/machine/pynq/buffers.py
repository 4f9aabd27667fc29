"""Memory that board and accelerator share: what the kernel has of it, and the buffers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden.arith import ceil_div
from tellme.golden.boards import BOARDS, PAGE, PHASE_PERIOD, buffer_bytes, place, region_bytes
from tellme.golden.config import AcceleratorConfig
from tellme.host.errors import DeviceError
from tellme.host.machine.pynq.ip import line, pynq
from tellme.host.machine.pynq.network import read_text

MEMINFO = "/proc/meminfo"
CHUNK = 2 << 20
"""Bytes of a message to a board over the network."""


# ---- the kernel's contiguous memory ----------------------------------------------------------------------------------


def contiguous_memory(device: Any) -> tuple[int, int] | None:
    """Total and free bytes of the kernel's contiguous memory; None if the kernel does not say."""
    try:
        lines = read_text(device, MEMINFO).splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith("Cma")}
    if "CmaTotal" not in sizes or "CmaFree" not in sizes:
        return None
    return sizes["CmaTotal"], sizes["CmaFree"]


def check_memory(device: Any, config: AcceleratorConfig, needed: int) -> str:
    """Checks that the kernel's contiguous memory can hold a buffer of `needed` bytes; says what there is.

    The size decides, not what is free: the kernel keeps file caches there too, and moves them away for a buffer.

    Raises
    ------
    DeviceError : it cannot; how to get more.
    """
    found = contiguous_memory(device)
    if found is None:
        raise DeviceError(
            f"the kernel has no contiguous memory (no CmaTotal in {MEMINFO}); a buffer of {_mib(needed)} is needed: "
            + _kernel_argument(config, needed)
        )
    total, free = found
    if not total:
        raise DeviceError(
            f"the kernel reserves no contiguous memory, the model needs {_mib(needed)}: either cma= in /proc/cmdline asks "
            "for more than there is in one piece, which is dropped without a word (ask for less), or nobody asked; "
            + _kernel_argument(config, needed)
        )
    if total < needed:
        raise DeviceError(
            f"the kernel reserves {_mib(total)} of contiguous memory, the model needs {_mib(needed)}; "
            + _kernel_argument(config, needed)
        )
    return f"{_mib(free)} free of {_mib(total)}, {_mib(needed)} needed"


def no_buffer(device: Any, config: AcceleratorConfig, needed: int, e: Exception) -> DeviceError:
    """Why a buffer that should fit cannot be had."""
    total, free = contiguous_memory(device) or (0, 0)
    return DeviceError(
        f"a buffer of {_mib(needed)} cannot be allocated ({line(e)}), {_mib(free)} of {_mib(total)} contiguous memory "
        "are free; end the programs that hold the rest (other notebooks too), or "
        + _kernel_argument(config, needed + max(total - free, 0))
    )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


def _kernel_argument(config: AcceleratorConfig, needed: int) -> str:
    # A quarter more: the region fragments.
    size = ceil_div(needed * 5, 4 << 20) // 100 * 100 + 100
    board = BOARDS.get(config.name)
    if board is not None and needed > board.ddr_bytes * 3 // 4:
        return (
            f"the board's {_mib(board.ddr_bytes)} of memory are too little; take a smaller context, fewer slots or a "
            "smaller model"
        )
    return (
        f"boot with the kernel argument cma={size}M (Ubuntu: add it to LINUX_KERNEL_CMDLINE in "
        "/etc/default/flash-kernel, run flash-kernel, reboot; the last cma= in /proc/cmdline counts; PetaLinux and PYNQ images: add it to bootargs in "
        "system-user.dtsi or with setenv bootargs in U-Boot), or take a smaller context"
    )


# ---- buffers ---------------------------------------------------------------------------------------------------------


class LocalBuffer:
    """The shared buffer on the board itself.

    Parameters
    ----------
    beats : beats of a region, whole pages.
    phases : of the ports' regions; () : one behind the other.
    """

    def __init__(self, device: Any, config: AcceleratorConfig, beats: int, phases: Sequence[int]):
        size = self.size(config, beats, phases)
        self._buffer: Any = pynq.allocate((size,), np.uint8, target=device, cacheable=1)
        base = int(self._buffer.device_address)
        region = region_bytes(config, beats)
        self.port_bases = place(base, region, config.ports, phases)
        self._starts = [b - base for b in self.port_bases]
        self._width = config.port_bytes
        # Plain views: PynqBuffer's own views are no cheaper, and each would hold the buffer object too.
        plain = self._buffer.view(np.ndarray)
        self.memory: tuple[NDArray[np.uint8], ...] = tuple(
            plain[start : start + region].reshape(-1, self._width) for start in self._starts
        )

    @staticmethod
    def size(config: AcceleratorConfig, beats: int, phases: Sequence[int]) -> int:
        """Bytes that are allocated."""
        return buffer_bytes(config, beats, phases)

    def sync(self, to_device: bool, start: int, beats: int) -> None:
        """Cleans (or invalidates) the caches for some beats of every region."""
        for region in self._starts:
            self._sync(to_device, region + start * self._width, beats * self._width)

    def _sync(self, to_device: bool, begin: int, size: int) -> None:
        bo = self._buffer.bo
        if hasattr(bo, "sync"):  # XRT's buffer object, PYNQ 4: PynqBuffer would sync the whole
            from pynq.pl_server import xrt_device

            direction = xrt_device.pyxrt.xclBOSyncDirection
            bo.sync(
                direction.XCL_BO_SYNC_BO_TO_DEVICE if to_device else direction.XCL_BO_SYNC_BO_FROM_DEVICE, size, begin
            )
        else:  # PYNQ 3: a view syncs its own range
            view = self._buffer[begin : begin + size]
            view.flush() if to_device else view.invalidate()

    def free(self) -> None:
        """Gives the memory back. Nobody may use `memory` after this."""
        buffer, self._buffer = self._buffer, None
        self.memory = ()
        if buffer is not None:
            buffer.freebuffer()


class RemoteBuffers:
    """A buffer for each port on a board over the network, and a copy of them here.

    The service moves the first n bytes of a buffer in either direction. A transfer therefore starts at beat 0; what
    lies before `start` is sent as it is here, so the host must be the only one to write it. The memory map has it that
    way: everything that the host writes comes first (host/machine/program.py).
    """

    def __init__(self, device: Any, config: AcceleratorConfig, beats: int, phases: Sequence[int]):
        from pynq.remote import buffer_pb2

        self._messages = buffer_pb2
        self._buffers: list[Any] = []
        # The copies are of whole buffers, so that what lies before a region is sent with it.
        self._copies: list[NDArray[np.uint8]] = []
        self._starts: list[int] = []
        self._width = config.port_bytes
        region = region_bytes(config, beats)
        size = self.size(config, beats, phases) // config.ports
        bases: list[int] = []
        try:
            for port in range(config.ports):
                buffer = device.allocate((size,), np.uint8)
                if not buffer.buffer_id:
                    raise RuntimeError("the board could not allocate a buffer")
                self._buffers.append(buffer)
                address = int(buffer.physical_address)
                bases += place(address, region, 1, phases[port : port + 1])
                self._starts.append(bases[-1] - address)
                self._copies.append(np.zeros(size, np.uint8))
        except BaseException:
            self.free()
            raise
        self.port_bases = tuple(bases)
        self.memory: tuple[NDArray[np.uint8], ...] = tuple(
            copy[start : start + region].reshape(-1, self._width)
            for copy, start in zip(self._copies, self._starts, strict=True)
        )

    @staticmethod
    def size(config: AcceleratorConfig, beats: int, phases: Sequence[int]) -> int:
        """Bytes that are allocated, of all ports."""
        return config.ports * (region_bytes(config, beats) + (PHASE_PERIOD - PAGE if phases else 0))

    def sync(self, to_device: bool, start: int, beats: int) -> None:
        for buffer, copy, region in zip(self._buffers, self._copies, self._starts, strict=True):
            begin = region + start * self._width
            end = begin + beats * self._width
            if to_device:
                self._send(buffer, copy[:end])
            else:
                self._fetch(buffer, copy, begin, end)

    def _send(self, buffer: Any, data: NDArray[np.uint8]) -> None:
        request = self._messages.BufferWriteRequest
        chunks = (data[i : i + CHUNK].tobytes() for i in range(0, len(data), CHUNK))
        self._check(buffer.stub.write(request(buffer_id=buffer.buffer_id, data=chunk) for chunk in chunks))
        self._check(buffer.stub.flush(self._messages.FlushRequest(buffer_id=buffer.buffer_id)))

    def _fetch(self, buffer: Any, flat: NDArray[np.uint8], start: int, end: int) -> None:
        self._check(buffer.stub.invalidate(self._messages.InvalidateRequest(buffer_id=buffer.buffer_id)))
        at = 0
        answers = buffer.stub.read(self._messages.BufferReadRequest(buffer_id=buffer.buffer_id))
        for answer in answers:
            self._check(answer)
            data = np.frombuffer(answer.data, np.uint8)
            first, last = max(at, start), min(at + len(data), end)
            if first < last:
                flat[first:last] = data[first - at : last - at]
            at += len(data)
            if at >= end:
                answers.cancel()
                return
        raise DeviceError(f"the board sent {at:,} of {end:,} bytes of a buffer")

    @staticmethod
    def _check(answer: Any) -> None:
        if answer.msg:
            raise DeviceError(f"the board refuses: {line(RuntimeError(answer.msg))}")

    def free(self) -> None:
        buffers, self._buffers, self._copies = self._buffers, [], []
        self.memory = ()
        for buffer in buffers:
            with contextlib.suppress(Exception):  # a board that has gone has nothing to free
                buffer.freebuffer()
