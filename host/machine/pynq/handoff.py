"""What the files of a bitstream say: its header, and the hardware hand-off beside it. Nothing here touches a chip."""

from __future__ import annotations

import os
import re
import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellme.golden.boards import BOARDS, VLNV, ZYNQ7000, ZYNQMP, build_name, clock_floor
from tellme.golden.config import CLOCK_HZ, AcceleratorConfig
from tellme.host.errors import DeviceError, UserError

CLOCK_TOLERANCE = 0.01
"""Share by which a clock may be off."""


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
    used = board.memory_ports[: config.ports] if board is not None else tuple(widths)
    if len(used) < config.ports or any(widths.get(name) != bits for name in used):
        raise DeviceError(
            f"{path}: the design uses the memory ports {said} (bits), the accelerator needs {config.ports} of {bits}; "
            f"build it with tellme build --board {config.name}"
        )
    return f"{said} bits"
