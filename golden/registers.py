"""The register map: the one description that makes the HDL, the driver's accessors and the documentation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import IntEnum

from tellme.golden.config import AcceleratorConfig

IDENTITY = 0x546C_4D65
"""'TlMe'."""
VERSION = 2
"""Of the register map, the descriptors and the memory formats together."""

MAX_SLOTS = 256
"""Cache slots that the hardware can tell apart: it keeps 8 bits of a slot's number."""

PORT_ADDRESS_BITS = 40
"""Of a byte address of a memory port: the physical memory of a Zynq UltraScale+."""

BASE_ALIGNMENT = 4096
"""Of a port's base, bytes: no burst of an aligned base crosses a 4 KiB boundary, which AXI forbids."""


class ErrorCode(IntEnum):
    """Why a pass stopped (STATUS.error)."""

    NONE = 0
    READ_WINDOW = 1
    WRITE_WINDOW = 2
    READ_SLVERR = 3
    READ_DECERR = 4
    WRITE_SLVERR = 5
    WRITE_DECERR = 6
    TIMEOUT = 7
    BAD_DESCRIPTOR = 8
    BAD_WEIGHT = 9
    BAD_LANES = 10


@dataclass(frozen=True)
class Register:
    """A 32-bit register (or `count` of them, 4 bytes apart) at byte `offset`.

    access: 'ro' or 'rw'. live: writes count while a pass runs, too; those to other registers are ignored then.
    """

    name: str
    offset: int
    access: str
    doc: str
    count: int = 1
    live: bool = False


STALLS = ("memory", "control", "elementwise", "attention", "epilogue", "drain")
"""Causes to which a cycle without a beat is put down, in counter order."""

BUSY = ("reader", "tlmm", "epilogue", "quantiser", "attention", "writer")
"""Units whose busy cycles are counted, in counter order."""

REGISTERS: tuple[Register, ...] = (
    Register("identity", 0x000, "ro", "IDENTITY"),
    Register("version", 0x004, "ro", "VERSION"),
    Register("build", 0x008, "ro", "first 32 bits of the build hash (configuration and version)"),
    Register("geometry", 0x00C, "ro", "ports [7:0], port_bytes [15:8], lanes [23:16], attention_lanes [31:24]"),
    Register("control", 0x010, "rw", "bit 0: start a pass; bit 1: soft reset; both clear themselves", live=True),
    Register(
        "status",
        0x014,
        "ro",
        "bit 0: busy; bit 1: done (cleared by start); bit 2: stopped, and waiting for what memory owes (owed); "
        "[15:8]: ErrorCode",
    ),
    Register("irq_enable", 0x018, "rw", "bit 0: interrupt while done", live=True),
    Register("lanes", 0x01C, "rw", "lanes of the pass, 1..lanes"),
    Register("head_lanes", 0x020, "rw", "[7:0]: first lane whose logits are computed; [15:8]: how many, 0: no head"),
    Register("write_logits", 0x024, "rw", "bit 0: write every logit to memory"),
    Register("program_address", 0x028, "rw", "beat address of the program"),
    Register("program_length", 0x02C, "rw", "descriptors of the program"),
    Register("window_beats", 0x030, "rw", "beats of the buffer; any access at or beyond it is an error"),
    Register("timeout", 0x034, "rw", "cycles without progress after which a pass stops, 0: never", live=True),
    Register(
        "error_address",
        0x038,
        "ro",
        "beat address (window, bus), or index of the descriptor (time-out, others) of the error",
    ),
    Register(
        "context",
        0x03C,
        "rw",
        "positions of a cache slot, 1..max_context; every position is below it (reset: max_context)",
    ),
    Register(
        "base_low",
        0x040,
        "rw",
        f"byte address of each port's region, low half; a multiple of {BASE_ALIGNMENT}, its low 12 bits count as 0",
        8,
    ),
    Register(
        "base_high",
        0x060,
        "rw",
        f"byte address of each port's region, high half; address bits from {PORT_ADDRESS_BITS} on are ignored",
        8,
    ),
    Register("slots", 0x080, "rw", f"cache slots, 1..{MAX_SLOTS}; every slot is below it (reset: {MAX_SLOTS})"),
    Register("position", 0x100, "rw", "position of each lane, below context", 32),
    Register(
        "slot",
        0x180,
        "rw",
        "cache slot of each lane, below slots; lanes of a slot are neighbours, each a position behind the one before",
        32,
    ),
    Register("best_index", 0x200, "ro", "arg-max token of each head lane", 32),
    Register("best_value", 0x280, "ro", "its logit, binary32", 32),
    Register("cycles", 0x300, "ro", "cycles of the last pass"),
    Register("beats", 0x304, "ro", "beats consumed by the last pass"),
    Register("writes", 0x308, "ro", "beats (or parts) written by the last pass"),
    Register("stall", 0x320, "ro", "cycles without a beat, by cause (STALLS)", 8),
    Register("busy", 0x340, "ro", "busy cycles by unit (BUSY)", 8),
    Register(
        "owed", 0x360, "ro", "what memory owes each port: [15:0] read bursts, [31:16] write responses; 0 when idle", 8
    ),
    Register("port_beats", 0x380, "ro", "beats that came to each port in the last pass", 8),
    Register("port_stalls", 0x3A0, "ro", "cycles in which a read was under way at each port and no beat came", 8),
)

ADDRESS_BITS = 12


def offset(name: str, index: int = 0) -> int:
    """Byte offset of a register."""
    for r in REGISTERS:
        if r.name == name:
            if not 0 <= index < r.count:
                raise IndexError(f"register {name} has {r.count} entries, not {index + 1}")
            return r.offset + 4 * index
    raise KeyError(f"no register named {name!r}")


def geometry(config: AcceleratorConfig) -> int:
    """Value of the geometry register."""
    return config.ports | config.port_bytes << 8 | config.lanes << 16 | config.attention_lanes << 24


def build_hash(config: AcceleratorConfig) -> int:
    """Value of the build register: 32 bits of a SHA-256 of the configuration and VERSION. The clock is not in it: a build runs
    at what it routed at, and that is the hand-off's to say."""
    text = json.dumps([VERSION, {k: v for k, v in asdict(config).items() if k != "clock_hz"}], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
