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
import fcntl
import hashlib
import json
import os
import platform
import re
import select
import shutil
import struct
import tempfile
import time
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tellme.golden.arith import ceil_div
from tellme.golden.boards import (
    BOARDS,
    PAGE,
    PHASE_PERIOD,
    VLNV,
    ZYNQ7000,
    ZYNQMP,
    buffer_bytes,
    build_name,
    check_phases,
    clock_floor,
    place,
    region_bytes,
)
from tellme.golden.boards import phases as board_phases
from tellme.golden.config import CLOCK_HZ, AcceleratorConfig
from tellme.golden.project import advice
from tellme.golden.registers import offset
from tellme.host.errors import DeviceError, TellmeError, UserError

try:
    import pynq
    from pynq.overlay import DefaultIP
except ImportError as e:
    raise UserError(
        f"pynq cannot be loaded ({e}); on a board run in PYNQ's own environment (source /etc/profile.d/pynq_venv.sh), "
        f"elsewhere: {advice('pynq')}"
    ) from e

MEMINFO = "/proc/meminfo"
POLL_S = 100e-6
"""Between two looks at the status register where there is no interrupt; a pass takes milliseconds."""
IRQ_WAIT_S = 0.25
"""Longest wait for an interrupt before the status register is looked at anyway."""
IRQ_LATE_S = 0.05
"""Longest that an interrupt may come after its cause."""
RESET_S = 1.0
"""Seconds within which a soft reset ends a pass; it takes microseconds."""
CHUNK = 2 << 20
"""Bytes of a message to a board over the network."""
IRQ = {"aarch64": 121, "armv7l": 61}
"""Interrupt line of the first PL interrupt as /proc/interrupts counts it: pl_ps_irq0[0], IRQ_F2P[0]."""
CLOCK_TOLERANCE = 0.01

_CONTROL, _STATUS = offset("control"), offset("status")
_START, _RESET = 1, 2
_BUSY, _DONE = 1, 2


class Accelerator(DefaultIP):
    """What `overlay.tellme_0` is; PYNQ binds it by the type in the hardware hand-off."""

    bindto = [VLNV]


# ---- what can be checked before the chip is touched ------------------------------------------------------------------


@dataclass(frozen=True)
class Bitstream:
    """A bitstream and its hardware hand-off.

    Attributes
    ----------
    path : the `.bit` file.
    part : of the bitstream's header, as Vivado writes it there (`xck26-sfvc784-2LV-c`, `7z020clg400`); '' if it has none.
    device, package : of the chip in the hand-off, as `golden.boards` spells them (`xc7z020`, `clg400`); '' if not there.
    """

    path: Path
    part: str
    device: str
    package: str


def bit_part(path: Path) -> str:
    """Part in the header of a `.bit` file.

    Header: a field of 9 bytes, the number 1, then fields 'a' to 'd' (design, part, date, time), each with a 16-bit
    big-endian length, and 'e' with a 32-bit one, the configuration data.

    Raises
    ------
    UserError : the file is not a bitstream, or is cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            (length,) = struct.unpack(">H", f.read(2))
            f.seek(length + 2, os.SEEK_CUR)
            part = ""
            while (key := f.read(1)) in (b"a", b"b", b"c", b"d"):
                (length,) = struct.unpack(">H", f.read(2))
                text = f.read(length)
                if key == b"b":
                    part = text.rstrip(b"\0").decode("ascii")
            if key != b"e":
                raise ValueError
            (length,) = struct.unpack(">I", f.read(4))
            if f.tell() + length != size:
                raise UserError(
                    f"{path}: is cut short: {size - f.tell():,} of {length:,} bytes of configuration; copy it again"
                )
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except (ValueError, struct.error) as e:
        raise UserError(f"{path}: is not a bitstream (.bit) of Vivado") from e
    return part


def device_name(name: str) -> str:
    """A chip's name as `golden.boards` spells it: Vivado leaves `xc` out for the 7 series (`7z020`), case varies."""
    name = name.strip().lower()
    return f"xc{name}" if re.match(r"7[a-z]", name) else name


def open_bitstream(path: Path, config: AcceleratorConfig) -> Bitstream:
    """Checks the files of a bitstream: both there, of the right build, for the board's chip.

    Raises
    ------
    UserError : which file, and what to do.
    """
    path = path.absolute()
    wanted = build_name(config)
    if not path.is_file():
        raise UserError(
            f"{path}: no such bitstream; copy {wanted}.bit and .hwh from the build folder "
            f"(tellme build --board {config.name}), or give --bitstream"
        )
    if path.suffix != ".bit":
        raise UserError(f"{path}: a bitstream's name ends in .bit")
    if path.stem != wanted and path.stem.startswith("tellme-"):
        raise UserError(
            f"{path}: was built as {path.stem}, this version of the host needs {wanted}; build the bitstream again "
            f"(tellme build --board {config.name}) or take the version of tellme it was built with"
        )
    hand_off = path.with_suffix(".hwh")
    if not hand_off.is_file():
        raise UserError(
            f"{hand_off}: is missing; the hardware hand-off must lie beside the bitstream under the same name"
        )
    try:
        system = ElementTree.parse(hand_off).getroot().find("SYSTEMINFO")
    except (OSError, LookupError, ValueError, ElementTree.ParseError) as e:
        raise UserError(f"{hand_off}: cannot be read as a hardware hand-off ({e}); copy it again") from e
    if system is None:
        raise UserError(f"{hand_off}: is not a hardware hand-off of Vivado (it has no SYSTEMINFO)")
    device, package = device_name(system.get("DEVICE", "")), system.get("PACKAGE", "").strip().lower()
    out = Bitstream(path, bit_part(path), device, package)
    board = BOARDS.get(config.name)
    if not (device and package) and board is not None:
        raise UserError(
            f"{hand_off}: does not say which chip it is for (SYSTEMINFO has DEVICE {device!r}, PACKAGE {package!r}); "
            f"take the .hwh that tellme build --board {config.name} made"
        )
    if out.part and not device_name(out.part).replace("-", "").startswith(device + package):
        raise UserError(
            f"{path}: is for {out.part}, but {hand_off.name} is for {device}-{package}; copy both from the same build"
        )
    if board is not None and (device, package) != (board.device, board.package):
        raise UserError(
            f"{path}: is for {device}-{package}, board {config.name!r} has {board.device}-{board.package}; "
            f"build for this board (tellme build --board {config.name})"
        )
    return out


def find_device(device: Any = None) -> Any:
    """The PYNQ device to use.

    Raises
    ------
    DeviceError : there is none, or a board over the network does not answer.
    UserError : this user may not use it, or this PYNQ knows no boards over the network.
    """
    if device is None:
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
                    f"the board at {remote} does not answer ({_line(e)}); check PYNQ_REMOTE_DEVICES, the network, and "
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


def _no_buffer(device: Any, config: AcceleratorConfig, needed: int, e: Exception) -> DeviceError:
    """Why a buffer that should fit cannot be had."""
    total, free = contiguous_memory(device) or (0, 0)
    return DeviceError(
        f"a buffer of {_mib(needed)} cannot be allocated ({_line(e)}), {_mib(free)} of {_mib(total)} contiguous memory "
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


def _line(e: BaseException) -> str:
    return " ".join(str(e).split())[:300] or type(e).__name__


# ---- the overlay -----------------------------------------------------------------------------------------------------


def accelerator_name(overlay: Any, path: Path) -> str:
    """Name of the accelerator in an overlay.

    Raises
    ------
    DeviceError : the design has none, or several.
    """
    names = [name for name, ip in overlay.ip_dict.items() if ip.get("type") == VLNV]
    if len(names) != 1:
        others = ", ".join(sorted(str(ip.get("type")) for ip in overlay.ip_dict.values())) or "nothing"
        raise DeviceError(
            f"{path}: the design has {len(names)} accelerators ({VLNV}), it must have one; it holds {others}; load a "
            "bitstream of tellme build"
        )
    return names[0]


_ZYNQMP_SLAVES = {
    **{f"S_AXI_HPC{i}_FPD": i for i in range(2)},
    **{f"S_AXI_HP{i}_FPD": i + 2 for i in range(4)},
}


def _processing_system(overlay: Any) -> tuple[str, dict[str, str]]:
    """Kind of the processing system in a design, and its parameters; ('', {}) if there is none."""
    for ip in overlay.ip_dict.values():
        for kind in (ZYNQMP, ZYNQ7000):
            if f":{kind}:" in ip.get("type", ""):
                return kind, ip.get("parameters", {})
    return "", {}


def port_widths(overlay: Any) -> dict[str, int]:
    """Width in bits of each memory port of the processing system that the design uses, by the port's name; 0 if the
    hand-off does not say."""
    kind, parameters = _processing_system(overlay)
    if kind == ZYNQMP:
        slaves = {name: (f"PSU__USE__S_AXI_GP{i}", f"PSU__SAXIGP{i}__DATA_WIDTH") for name, i in _ZYNQMP_SLAVES.items()}
    elif kind == ZYNQ7000:
        slaves = {f"S_AXI_HP{i}": (f"PCW_USE_S_AXI_HP{i}", f"PCW_S_AXI_HP{i}_DATA_WIDTH") for i in range(4)}
    else:
        return {}
    return {name: int(parameters.get(width, 0)) for name, (use, width) in slaves.items() if parameters.get(use) == "1"}


def design_mhz(overlay: Any) -> float:
    """Frequency that a design's PL clock was constrained to, MHz: what Vivado made of what was asked for; 0 if the
    hand-off does not say."""
    kind, parameters = _processing_system(overlay)
    names = {
        ZYNQMP: ("PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ", "PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ"),
        ZYNQ7000: ("PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ", "PCW_FPGA0_PERIPHERAL_FREQMHZ"),
    }.get(kind, ())
    return next((float(parameters[name]) for name in names if name in parameters), 0.0)


def check_clock(overlay: Any, config: AcceleratorConfig, path: Path) -> float:
    """The clock that the design has to run at, MHz: what its hand-off says it was timed for; the preset's if it says nothing.

    Raises
    ------
    DeviceError : that is below the floor, or no clock at all.
    """
    timed = design_mhz(overlay)
    least, most = clock_floor(config) / 1e6, CLOCK_HZ[1] / 1e6
    if timed and not (1 - CLOCK_TOLERANCE) * least <= timed <= most:
        raise DeviceError(
            f"{path}: the design was timed for {timed:g} MHz, the accelerator runs at {least:g} MHz at least; build it again "
            f"with tellme build --board {config.name}"
        )
    return timed or config.clock_hz / 1e6


def check_widths(overlay: Any, config: AcceleratorConfig, path: Path) -> str:
    """Checks the processing system's memory ports; says what there is.

    Raises
    ------
    DeviceError : too few ports, or a width that is not the accelerator's.
    """
    board = BOARDS.get(config.name)
    widths = port_widths(overlay)
    bits = 8 * config.port_bytes
    said = ", ".join(f"{name} {width}" for name, width in widths.items()) or "none"
    used = board.memory_ports if board is not None else tuple(widths)
    if len(used) < config.ports or any(widths.get(name) != bits for name in used):
        raise DeviceError(
            f"{path}: the design uses the memory ports {said} (bits), the accelerator needs {config.ports} of {bits}; "
            f"build it with tellme build --board {config.name}"
        )
    return f"{said} bits"


def clock_mhz() -> float:
    """Frequency of the PL clock that drives the accelerator, MHz."""
    return float(pynq.Clocks.fclk0_mhz)


def set_clock(wanted: float) -> str:
    """Sets the PL clock to what the accelerator was timed for, MHz, if it is not; says what it is.

    Raises
    ------
    DeviceError : it cannot be set: the answers would be right and too slow, or the chip would run beyond its timing.
    """
    try:
        before = clock_mhz()
        if abs(before - wanted) <= CLOCK_TOLERANCE * wanted:
            return f"{before:g} MHz"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pynq.Clocks.fclk0_mhz = wanted
        after = clock_mhz()
    except Exception as e:  # PYNQ computes with what the registers say: ValueError, ZeroDivisionError, AttributeError
        raise DeviceError(
            f"the PL clock's registers make no sense ({type(e).__name__}: {_line(e)}), so {wanted:g} MHz cannot be set; "
            "power the board off and on, load only this overlay"
        ) from e
    if abs(after - wanted) > CLOCK_TOLERANCE * wanted:
        raise DeviceError(
            f"the PL clock is {after:g} MHz and cannot be set to the {wanted:g} MHz that the accelerator was built "
            "for; another program may hold the clocks: power the board off and on, load only this overlay"
        )
    return f"{after:g} MHz (was {before:g})"


@contextlib.contextmanager
def _loading(path: Path) -> Iterator[None]:
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
            f"{path}: the overlay cannot be loaded ({type(e).__name__}: {_line(e)}); try tellme doctor, and if the "
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
    with _loading(bitstream.path):
        _forget(Path(pynq.pl_server.__file__).parent)
        return pynq.Overlay(str(bitstream.path), download=False, device=device)


def download(overlay: Any, bitstream: Bitstream) -> None:
    """Configures the chip.

    Raises
    ------
    DeviceError : PYNQ or the kernel refuse.
    """
    with _loading(bitstream.path):
        if overlay.device.has_capability("REMOTE"):
            # A file of that name on the board is taken for this one and not sent again.
            digest = hashlib.sha256(bitstream.path.read_bytes()).hexdigest()[:8]
            overlay.binfile_name = f"{bitstream.path.stem}-{digest}.bin"
        overlay.download()


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


# ---- buffers ---------------------------------------------------------------------------------------------------------


class _LocalBuffer:
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


class _RemoteBuffers:
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
            raise DeviceError(f"the board refuses: {_line(RuntimeError(answer.msg))}")

    def free(self) -> None:
        buffers, self._buffers, self._copies = self._buffers, [], []
        self.memory = ()
        for buffer in buffers:
            with contextlib.suppress(Exception):  # a board that has gone has nothing to free
                buffer.freebuffer()


# ---- the device ------------------------------------------------------------------------------------------------------


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
        self._buffer: _LocalBuffer | _RemoteBuffers | None = None
        self._uio: BinaryIO | None = None
        self._lock: Lock | None = None
        self._ip: Any = None
        self._running = False
        bitstream = open_bitstream(bitfile, config)
        device = find_device(device)
        phases = board_phases(config) if phases is None else phases
        if phases:
            check_phases(phases, config.ports)
        kind = _RemoteBuffers if device.has_capability("REMOTE") else _LocalBuffer
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
            with _loading(bitstream.path):
                self._ip = self._overlay
                for part in name.split("/"):  # hierarchies of the block design
                    self._ip = getattr(self._ip, part)
            self._uio = open_interrupt(device, self._overlay)
            try:
                self._buffer = kind(device, config, beats, phases)
            except TellmeError:
                raise
            except Exception as e:  # XRT: RuntimeError, gRPC: its own
                raise _no_buffer(device, config, needed, e) from e
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

    def _open(self) -> _LocalBuffer | _RemoteBuffers:
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
        if offset == _CONTROL and value & _START:
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
        while not self.read(_STATUS) & _DONE:
            left = end - time.monotonic()
            if left <= 0:
                return False
            if self._uio is None:
                time.sleep(POLL_S)
            elif not _wait_interrupt(self._uio, min(left, IRQ_WAIT_S)) and self.read(_STATUS) & _DONE:
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
            self._ip.write(_CONTROL, _RESET)
            end = time.monotonic() + RESET_S
            while self._ip.read(_STATUS) & _BUSY:
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


# ---- interrupts ------------------------------------------------------------------------------------------------------


def open_interrupt(device: Any, overlay: Any) -> BinaryIO | None:
    """The UIO device of the first PL interrupt, which is the accelerator's; None where it must be polled.

    PYNQ's own Interrupt needs an interrupt controller in the design, and an event loop that does not run already, as a
    notebook's does.
    """
    if device.has_capability("REMOTE") or getattr(overlay, "interrupt_controllers", None):
        return None
    try:
        from pynq import interrupt

        path = interrupt.get_uio_irq(IRQ.get(architecture(device), 0))
        return None if path is None else open(path, "r+b", buffering=0)
    except OSError:
        return None


def _wait_interrupt(uio: BinaryIO, timeout_s: float) -> bool:
    """Enables the interrupt and waits for it; False when it did not come. The kernel masks it when it comes."""
    uio.write(struct.pack("<I", 1))
    if not select.select([uio], [], [], timeout_s)[0]:
        return False
    uio.read(4)
    return True
