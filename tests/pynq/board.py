"""A board for tests: the simulated accelerator behind the real `pynq` package, on the board or over the network.

`Board` is the hardware: PS registers, contiguous memory, a chip that a bitstream configures with the RTL of its preset.
Processor and DRAM hold separate copies of every buffer, and only a sync of the caches moves bytes between them; so a
forgotten flush or invalidate gives wrong answers, as on the board. `LocalDevice` is PYNQ's own `EmbeddedDevice` with
the edges to Linux and XRT replaced, of PYNQ 4.0 (XRT's `pyxrt`) or 3.0.1 (XRT's C library), whichever is installed;
`serve` answers PYNQ.remote's calls, which 4.0 has.

In a process of its own: `python -c "from tests.pynq.board import plug; plug(); from tellme.host.cli import main; main()"`.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import json
import os
import pty
import shutil
import struct
import tempfile
import threading
import tty
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pynq
import pynq.buffer
import pynq.interrupt
from numpy.typing import NDArray
from pynq import ps
from pynq.pl_server import embedded_device, xrt_device

from tellme.golden.config import PRESETS, AcceleratorConfig
from tellme.golden.registers import offset, pack, unpack
from tests.host.support import WORD
from tests.pynq.files import REGISTERS

OLD = pynq.__version__.startswith("3.0")
"""PYNQ 3.0, whose devices know no architecture and whose XRT is the C library."""
CONFIGS = {**PRESETS, WORD.name: WORD}
FOLDER = "TELLME_TEST_ACCELERATOR"
"""Environment variable: where the built simulation is, for processes that tests start."""
ENGINE = "TELLME_TEST_ENGINE"
"""Environment variable: `reference` for boards with an interpreter in place of the RTL, where no simulator is installed."""
TAG = "TELLME_TEST_TAG"
"""Environment variable: name of the board, for processes that are to share its lock."""
BEATS = 1 << 18
"""Beats of the memory of the simulation; the demo model on tiny needs fewer."""
LINE = 64
"""Bytes of a cache line."""
STEP = 20_000
"""Cycles that go by between two looks at the status register."""
LOOKS = 1
"""Looks at the status register that a pass takes where no cycles are simulated."""
_CONTROL, _STATUS = offset("control"), offset("status")
_CRL = 0xFF5E_0000
_PL0 = _CRL + 0xC0
MIB = 1 << 20


@cache
def simulation(name: str) -> Path:
    """The built simulation of a preset."""
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    from tellme.sim.device import built

    return built(CONFIGS[name])


def rtl(config: AcceleratorConfig) -> Any:
    """The accelerator as RTL under Verilator."""
    from tellme.sim.device import SimDevice

    return SimDevice(config, BEATS, accelerator=simulation(config.name), memory_timing="ideal")


def reference(config: AcceleratorConfig) -> Any:
    """The accelerator as an interpreter in NumPy: no Verilator, any number of ports."""
    from tests.host.machine.reference_machine import ReferenceMachine

    return ReferenceMachine(config, BEATS)


class Bo:
    """A buffer: `cpu` is what the processor sees through its caches, `dram` what the memory ports see.

    Both start with other random bytes, and the caches with clean lines of everything.
    """

    def __init__(self, board: Board, size: int):
        self.board, self._size = board, size
        rng = np.random.default_rng(size)
        self.cpu: NDArray[np.uint8] = rng.integers(0, 256, size, np.uint8)
        self._clean = self.cpu.copy()
        self.dram: NDArray[np.uint8] = rng.integers(0, 256, size, np.uint8)
        self._address = board.take(self.dram)

    def address(self) -> int:
        return self._address

    def size(self) -> int:
        return self._size

    def map(self) -> memoryview:
        return memoryview(self.cpu)

    def sync(self, direction: str, size: int | None = None, offset: int = 0) -> None:
        size = self._size if size is None else size
        assert 0 <= offset <= offset + size <= self._size
        self.board.synced.append((direction, offset, size))
        # Whole lines, as caches do. An invalidated line at the edge is written back first if it is dirty.
        first, last = offset // LINE * LINE, min(-(-(offset + size) // LINE) * LINE, self._size)
        if direction == "to":
            self._write_back(first, last)
        else:
            for edge in {first, max(first, last - LINE)}:
                self._write_back(edge, min(edge + LINE, last))
            self.cpu[first:last] = self.dram[first:last]
        self._clean[first:last] = self.cpu[first:last]

    def _write_back(self, first: int, last: int) -> None:
        """Dirty lines go to the DRAM, clean ones do not."""
        if last == first:
            return
        starts = np.arange(0, last - first, LINE)
        dirty = np.logical_or.reduceat(self.cpu[first:last] != self._clean[first:last], starts)
        bytes_ = np.repeat(dirty, LINE)[: last - first]
        self.dram[first:last][bytes_] = self.cpu[first:last][bytes_]

    def release(self) -> None:
        """The kernel takes the memory back."""
        if self.board.buffers.pop(self._address, None) is not None and self.board.busy():
            self.board.violations.append("a buffer was freed while the accelerator worked on it")


class _XrtBo(Bo):
    """As `pyxrt.bo`: freed when nobody holds it any more."""

    flags = SimpleNamespace(normal=0, cacheable=1)

    def __init__(self, handle: Any, size: int, flags: int, group: int):
        if handle.board.allocation_fails or size > handle.board.free:
            raise RuntimeError("bad_alloc")
        super().__init__(handle.board, size)
        handle.board.allocated += 1

    def __del__(self) -> None:
        if hasattr(self, "_address"):
            self.release()


PYXRT = SimpleNamespace(
    bo=_XrtBo,
    xclBOSyncDirection=SimpleNamespace(XCL_BO_SYNC_BO_TO_DEVICE="to", XCL_BO_SYNC_BO_FROM_DEVICE="from"),
)


class _Function:
    """A function of a C library as `ctypes` has it: refuses arguments that do not fit the declared types."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function
        self.restype: Any = None
        self.argtypes: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self.argtypes is not None:
            assert len(arguments) == len(self.argtypes)
            for kind, argument in zip(self.argtypes, arguments, strict=True):
                kind.from_param(argument)
        return self._function(*arguments)


class LibXrt:
    """XRT's C library (`libxrt_core.so`, xrt.h) as PYNQ 3.0.1 calls it, before a board. Buffers are handles."""

    def __init__(self, board: Board):
        self._board = board
        self._buffers: dict[int, Bo] = {}
        self._names = count(1)
        for name in dir(self):
            if name.startswith("_xcl"):
                setattr(self, name[1:], _Function(getattr(self, name)))

    def _xclOpen(self, index: int, log: Any, level: int) -> int:
        return 1

    def _xclClose(self, handle: Any) -> None:
        pass

    def _xclGetDeviceInfo2(self, handle: Any, info: Any) -> int:
        info.mName = b"simulated"
        return 0

    def _xclLockDevice(self, handle: Any) -> int:
        return 0

    def _xclUnlockDevice(self, handle: Any) -> int:
        return 0

    def _xclLoadXclBin(self, handle: Any, data: bytes) -> int:
        return 0 if data[:8] == b"xclbin2\0" else -22

    def _xclAllocBO(self, handle: Any, size: int, domain: int, flags: int) -> int:
        if self._board.allocation_fails or size > self._board.free:
            return 0xFFFF_FFFF
        name = next(self._names)
        self._buffers[name] = Bo(self._board, size)
        self._board.allocated += 1
        return name

    def _xclMapBO(self, handle: Any, name: int, write: bool) -> Any:
        return ctypes.cast(self._buffers[name].cpu.ctypes.data, self.xclMapBO.restype)  # type: ignore[attr-defined]

    def _xclGetBOProperties(self, handle: Any, name: int, properties: Any) -> int:
        properties.size, properties.paddr = self._buffers[name].size(), self._buffers[name].address()
        return 0

    def _xclSyncBO(self, handle: Any, name: int, direction: int, size: int, offset: int) -> int:
        self._buffers[name].sync(("to", "from")[direction], size, offset)
        return 0

    def _xclFreeBO(self, handle: Any, name: int) -> None:
        self._buffers.pop(name).release()


class Board:
    """The hardware.

    Parameters
    ----------
    engine : makes the accelerator of a configuration; the RTL if None.
    cma, free : contiguous memory, bytes.
    mhz : what the PL clock is left at.
    clock_stuck : the clock cannot be changed.
    uio : the kernel has a UIO device for the interrupt.

    Attributes
    ----------
    buffers : DRAM of each allocated buffer by its physical address.
    synced : every cache maintenance: direction, offset, size.
    violations : what no driver may do to a board, in words.
    loads : configurations so far.
    files : of the board's file system, over the network.
    fail_load : the next configuration fails.
    on_status : called at every read of the status register.
    """

    def __init__(
        self,
        *,
        engine: Callable[[AcceleratorConfig], Any] | None = None,
        cma: int = 512 * MIB,
        free: int | None = None,
        mhz: int = 100,
        clock_stuck: bool = False,
        uio: bool = False,
    ):
        self._make = engine or (reference if os.environ.get(ENGINE) == "reference" else rtl)
        self._engine: Any = None
        self.config: AcceleratorConfig | None = None
        self.cma, self._free = cma, cma if free is None else free
        self.clock_stuck = clock_stuck
        self.buffers: dict[int, NDArray[np.uint8]] = {}
        self.synced: list[tuple[str, int, int]] = []
        self.allocated = 0
        self.allocation_fails = False
        self.violations: list[str] = []
        self.loads = 0
        self.files: dict[str, bytes] = {}
        self.fail_load: Exception | None = None
        self.on_status: Callable[[], None] | None = None
        self.override: dict[str, int] = {}
        self.lock = threading.RLock()
        self.interrupts = 0
        self.mask_interrupt = False
        self._bases: dict[int, int] = {}
        self._running = False
        self._looks = 0
        # I/O PLL: 33.333 MHz * 90 / 2, DIVISOR0 15 or so, DIVISOR1 1.
        self.registers = {_CRL + 0x20: 90 << 8 | 1 << 16, _PL0: 1 << 24 | 1 << 16 | round(1500 / mhz) << 8}
        self.folder = Path(tempfile.mkdtemp(prefix="tellme-board-"))
        self.uio_path = self._open_uio() if uio else None

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- memory ------------------------------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        return self._free - sum(b.size for b in self.buffers.values())

    def meminfo(self) -> str:
        return f"MemTotal: 4000000 kB\nCmaTotal: {self.cma >> 10} kB\nCmaFree: {self.free >> 10} kB\n"

    def take(self, dram: NDArray[np.uint8]) -> int:
        """Physical address of a new buffer: above 4 GiB, so that truncated addresses are found; pages apart."""
        last = max((a + b.size for a, b in self.buffers.items()), default=0x8_0000_0000)
        address = -(-last // 4096) * 4096 + 4096
        self.buffers[address] = dram
        return address

    def _region(self, port: int) -> tuple[NDArray[np.uint8], int]:
        base = self._bases.get(offset("base_low", port), 0) | self._bases.get(offset("base_high", port), 0) << 32
        for address, dram in self.buffers.items():
            if address <= base < address + dram.size:
                return dram, base - address
        self.violations.append(f"port {port} was pointed at {base:#x}, where no buffer is")
        raise AssertionError(self.violations[-1])

    def _move(self, to_engine: bool) -> None:
        """Between the DRAM and the accelerator's memory, for the window of each port."""
        assert self.config is not None
        for port in range(self.config.ports):
            dram, at = self._region(port)
            size = min(self._engine.read(offset("window_beats")) * self.config.port_bytes, dram.size - at)
            memory = self._engine.memory[port].reshape(-1)
            if to_engine:
                memory[:size] = dram[at : at + size]
            else:
                dram[at : at + size] = memory[:size]

    # ---- chip --------------------------------------------------------------------------------------------------------

    def configure(self, binary: bytes) -> None:
        """What the FPGA manager does with a `.bin`."""
        if self.fail_load is not None:
            error, self.fail_load = self.fail_load, None
            raise error
        self._running = False
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        payload = json.loads(np.frombuffer(binary, "<i4").byteswap().tobytes())
        self.config = CONFIGS[payload["preset"]]
        self.override = payload.get("registers", {})
        self._engine = self._make(self.config)
        self.loads += 1

    def busy(self) -> bool:
        with self.lock:
            if not self._running or self._engine is None:
                return False
            return bool(unpack("status", self._engine.read(_STATUS))["busy"]) or not hasattr(self._engine, "run")

    def advance(self, cycles: int = STEP) -> bool:
        """Lets time go by; whether the interrupt is on."""
        with self.lock:
            if not self._running or self._engine is None:
                return False
            if hasattr(self._engine, "run"):
                done = self._engine.run(cycles) or unpack("status", self._engine.read(_STATUS))["done"]
            else:  # an interpreter is done at once; as if it took a while
                self._looks -= 1
                done = self._looks < 0
            if done:
                self._running = False
                self._move(False)
                return True
            return False

    def read32(self, address: int) -> int:
        with self.lock:
            if not REGISTERS <= address < REGISTERS + 4096:
                return self.registers.get(address, 0)
            assert self._engine is not None, "the chip is not configured: this read would hang the board"
            where = address - REGISTERS
            for name, value in self.override.items():
                if where == offset(name):
                    return value
            if where == _STATUS:
                if self.on_status is not None:
                    self.on_status()
                self.advance()
                if self._running and not hasattr(self._engine, "run"):
                    return pack("status", busy=1)
            return int(self._engine.read(where))

    def write32(self, address: int, value: int) -> None:
        with self.lock:
            if not REGISTERS <= address < REGISTERS + 4096:
                if not (address == _PL0 and self.clock_stuck):
                    self.registers[address] = value
                return
            where = address - REGISTERS
            assert self._engine is not None and self.config is not None
            for name in ("base_low", "base_high"):
                for port in range(self.config.ports):
                    if where == offset(name, port):
                        self._bases[where] = value
                        mine = self._engine.port_bases[port]
                        value = mine & 0xFFFF_FFFF if name == "base_low" else mine >> 32
            if where == _CONTROL and unpack("control", value)["start"]:
                self._move(True)
                self._running = True
                self._looks = LOOKS
            if where == _CONTROL and unpack("control", value)["soft_reset"]:
                self._running = False
            self._engine.write(where, value)
            if where == _CONTROL and unpack("control", value)["soft_reset"] and hasattr(self._engine, "run"):
                self._engine.run(2000)

    @property
    def clock_mhz(self) -> float:
        value = self.registers[_PL0]
        return 1500 / ((value >> 8 & 63) * (value >> 16 & 63))

    # ---- interrupt ---------------------------------------------------------------------------------------------------

    def _open_uio(self) -> str:
        """A file that behaves as /dev/uio0: writing 1 enables, reading gives the count when the interrupt has come."""
        master, slave = pty.openpty()
        tty.setraw(slave)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while os.read(master, 4):
                    if self.mask_interrupt:
                        continue
                    while not self.advance():
                        pass
                    self.interrupts += 1
                    os.write(master, struct.pack("<I", self.interrupts))

        threading.Thread(target=serve, daemon=True).start()
        return os.ttyname(slave)


# ---- on the board ----------------------------------------------------------------------------------------------------


class LocalDevice(embedded_device.EmbeddedDevice):
    """PYNQ's device of Zynq boards, with Linux and XRT replaced by the simulated board."""

    def __init__(self, board: Board):
        self.board = board
        super().__init__()
        # Test suites may run beside each other; processes of one share the board's lock.
        self.tag = os.environ.get(TAG, f"simulated-{os.getpid()}")
        self.capabilities = {"REGISTER_RW": True}
        if not OLD:
            self.arch = "aarch64"

    def _get_handle(self) -> None:
        if OLD:
            super()._get_handle()
        else:
            self.handle = SimpleNamespace(board=self.board, load_xclbin=lambda path: Path(path).read_bytes()[:8])

    def _find_sysfs(self) -> None:
        self.sysfs_path = None

    @property
    def device_info(self) -> Any:
        return super().device_info if OLD else SimpleNamespace(name="simulated")

    def read_registers(self, address: int, length: int) -> bytes:
        return b"".join(struct.pack("<I", self.board.read32(address + i)) for i in range(0, length, 4))

    def write_registers(self, address: int, data: bytes) -> None:
        for i in range(0, len(data), 4):
            self.board.write32(address + i, struct.unpack_from("<I", data, i)[0])

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> Any:
        # xclbinutil comes with XRT; what it would make lies in the package for this case.
        source = Path(embedded_device.__file__).with_name("default.xclbin")
        made = Path(bitfile_name).with_suffix(".xclbin")
        shutil.copyfile(source, made)
        try:
            return super().get_bitfile_metadata(bitfile_name, partial)
        finally:
            made.unlink()

    def shutdown(self) -> None:
        pass

    def gen_cache(self, bitstream: Any, parser: Any = None) -> None:
        if OLD:  # an environment that only tests have
            super().gen_cache(bitstream, parser)

    def download(self, bitstream: Any, parser: Any = None) -> None:
        (self.board.folder / "firmware").write_bytes(parser.bin_data)
        bitstream.binfile_name = "firmware"
        super().download(bitstream, parser)

    def write_fpga_manager(self, attribute: str, value: str) -> int:
        if attribute == self.BS_FPGA_MAN:
            self.board.configure((self.board.folder / value).read_bytes())
        return len(value)

    def open(self, path: Any, *mode: str) -> Any:
        """`open` of PYNQ 3.0.1's device, which writes to the FPGA manager itself."""
        if path in (self.BS_FPGA_MAN, self.BS_FPGA_MAN_FLAGS):
            return contextlib.nullcontext(SimpleNamespace(write=lambda value: self.write_fpga_manager(path, value)))
        return builtins.open(path, *mode)


@contextlib.contextmanager
def plugged(board: Board) -> Iterator[LocalDevice]:
    """PYNQ finds this board, and nothing else, until the context ends."""
    from tellme.host.machine.pynq import buffers, network

    places: list[tuple[Any, str, Any]] = [
        (pynq.buffer, "libc", SimpleNamespace(munmap=lambda *a: 0)),
        (pynq.buffer, "ctypes", ctypes),
        (pynq.interrupt, "get_uio_irq", lambda irq: board.uio_path if irq == 121 else None),
        (buffers, "read_text", _reader(network.read_text, board)),
        (network, "platform", SimpleNamespace(machine=lambda: "aarch64")),
        # The clocks of the process's first device are kept for good.
        (type(pynq.Clocks), "_instance", property(lambda cls: clocks(cls))),
    ]
    if OLD:
        from pynq._3rdparty import xrt

        places += [
            (xrt, "libc", LibXrt(board)),
            (xrt_device, "libc", SimpleNamespace(munmap=lambda *a: 0)),
            (embedded_device, "open", lambda path, *mode: pynq.Device.active_device.open(path, *mode)),
        ]
    else:
        places.append((xrt_device, "pyxrt", PYXRT))

    def clocks(cls: Any) -> Any:
        return ps._ClocksUltrascale() if OLD else ps._ClocksUltrascale(device=cls.device)

    missing = object()
    before = [(where, name, getattr(where, name, missing)) for where, name, _ in places]
    for where, name, value in places:
        setattr(where, name, value)
    network.ensure_event_loop()
    device = LocalDevice(board)
    active = pynq.Device.__dict__.get("_active_device")
    pynq.Device.active_device = device
    try:
        yield device
    finally:
        for where, name, value in before:
            if value is missing:
                delattr(where, name)
            else:
                setattr(where, name, value)
        pynq.Device._active_device = active


def _reader(original: Callable[[Any, str], str], board: Board) -> Callable[[Any, str], str]:
    def read(device: Any, path: str) -> str:
        if path == "/proc/meminfo" and isinstance(device, LocalDevice):
            return board.meminfo()
        return original(device, path)

    return read


def plug(**settings: Any) -> Board:
    """Plugs a board in for the rest of the process."""
    board = Board(**settings)
    context = plugged(board)
    context.__enter__()
    _forever.append(context)
    return board


_forever: list[Any] = []
