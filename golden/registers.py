"""The register map: the one description that makes the HDL, the driver's accessors and the documentation."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from enum import IntEnum

from tellme.golden import fields
from tellme.golden.config import AcceleratorConfig
from tellme.golden.fields import Field

IDENTITY = 0x546C_4D65
"""'TlMe'."""
VERSION = 4
"""Of the register map, the descriptors, the memory formats and the arithmetic together: what makes bitstreams and programs of one version unfit for
others."""

MAX_SLOTS = 256
"""Cache slots that the hardware can tell apart: it keeps 8 bits of a slot's number."""

POSITION_BITS = 16
"""Of the position of a lane that the hardware keeps."""

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
    fields : what the word consists of; () if it is one number. most : the largest such number that any accelerator takes.
    """

    name: str
    offset: int
    access: str
    doc: str
    count: int = 1
    live: bool = False
    fields: tuple[Field, ...] = ()
    most: int = (1 << 32) - 1


STALLS = ("memory", "control", "elementwise", "attention", "epilogue", "drain")
"""Causes to which a cycle without a beat is put down, in counter order."""

BUSY = ("reader", "tlmm", "epilogue", "quantiser", "attention", "writer")
"""Units whose busy cycles are counted, in counter order."""

REGISTERS: tuple[Register, ...] = (
    Register("identity", 0x000, "ro", "IDENTITY"),
    Register("version", 0x004, "ro", "VERSION"),
    Register("build", 0x008, "ro", "first 32 bits of the build hash (configuration and version)"),
    Register(
        "geometry",
        0x00C,
        "ro",
        "what was built",
        fields=(
            Field("ports", 0, 8, "AXI masters"),
            Field("port_bytes", 8, 8, "bytes of a beat of a port"),
            Field("lanes", 16, 8, "lanes of a pass"),
            Field("attention_lanes", 24, 8, "queries that share a beat"),
        ),
    ),
    Register(
        "control",
        0x010,
        "rw",
        "pulses; the bits clear themselves",
        live=True,
        fields=(Field("start", 0, 1, "start a pass"), Field("soft_reset", 1, 1, "stop, and forget errors")),
    ),
    Register(
        "status",
        0x014,
        "ro",
        "what the accelerator does",
        fields=(
            Field("busy", 0, 1, "a pass is under way"),
            Field("done", 1, 1, "the pass has ended (cleared by start)"),
            Field("stopped", 2, 1, "stopped, and waiting for what memory owes (owed)"),
            Field("error", 8, 8, "ErrorCode"),
        ),
    ),
    Register("irq_enable", 0x018, "rw", "interrupts", live=True, fields=(Field("done", 0, 1, "interrupt while done"),)),
    Register("lanes", 0x01C, "rw", "lanes of the pass, 1..lanes", most=32),
    Register(
        "head_lanes",
        0x020,
        "rw",
        "lanes whose logits are computed",
        fields=(Field("first", 0, 8, "the first"), Field("count", 8, 8, "how many, 0: no head")),
    ),
    Register(
        "write_logits",
        0x024,
        "rw",
        "what is written to memory",
        fields=(Field("every", 0, 1, "write every logit to memory"),),
    ),
    Register("program_address", 0x028, "rw", "beat address of the program"),
    Register("program_length", 0x02C, "rw", "descriptors of the program", most=(1 << 16) - 1),
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
        "positions of a cache slot, from 1 to the most there can be (max_context, or narrow_context with narrow_cache), which is "
        "the reset value; every position is below it",
        most=1 << POSITION_BITS,
    ),
    Register(
        "base_low",
        0x040,
        "rw",
        f"byte address of each port's region, low half; a multiple of {BASE_ALIGNMENT}, its low 12 bits count as 0",
        8,
        fields=(Field("page", 12, 20, f"bits 31:12 of the address: the {BASE_ALIGNMENT}-byte page"),),
    ),
    Register(
        "base_high",
        0x060,
        "rw",
        f"byte address of each port's region, high half; address bits from {PORT_ADDRESS_BITS} on are ignored",
        8,
        fields=(Field("high", 0, PORT_ADDRESS_BITS - 32, f"bits {PORT_ADDRESS_BITS - 1}:32 of the address"),),
    ),
    Register(
        "slots",
        0x080,
        "rw",
        f"cache slots, 1..{MAX_SLOTS}; every slot is below it (reset: {MAX_SLOTS})",
        most=MAX_SLOTS,
    ),
    Register(
        "port_lead",
        0x084,
        "rw",
        "how far ports run ahead of one another",
        fields=(Field("free", 0, 1, "as far as their queues go, for measurements; else a burst or two"),),
    ),
    Register(
        "candidates",
        0x088,
        "rw",
        "rows of the head that are scored exactly for each head lane, chosen by the SCREEN descriptor; 0: the HEAD descriptor's, all",
        most=1024,
    ),
    Register("position", 0x100, "rw", "position of each lane, below context", 32, most=(1 << POSITION_BITS) - 1),
    Register(
        "slot",
        0x180,
        "rw",
        "cache slot of each lane, below slots; lanes of a slot are neighbours, each a position behind the one before",
        32,
        most=MAX_SLOTS - 1,
    ),
    Register("best_index", 0x200, "ro", "arg-max token of each head lane", 32),
    Register("best_value", 0x280, "ro", "its logit, binary32", 32),
    Register("cycles", 0x300, "ro", "cycles of the last pass"),
    Register("beats", 0x304, "ro", "beats consumed by the last pass"),
    Register("writes", 0x308, "ro", "beats (or parts) written by the last pass"),
    Register("stall", 0x320, "ro", "cycles without a beat, by cause (STALLS)", 8),
    Register("busy", 0x340, "ro", "busy cycles by unit (BUSY)", 8),
    Register(
        "owed",
        0x360,
        "ro",
        "what memory owes each port; 0 when idle",
        8,
        fields=(Field("reads", 0, 16, "read bursts"), Field("writes", 16, 16, "write responses")),
    ),
    Register("port_beats", 0x380, "ro", "beats that came to each port in the last pass", 8),
    Register("port_stalls", 0x3A0, "ro", "cycles in which a read was under way at each port and no beat came", 8),
    Register("bound", 0x400, "ro", "smallest score of a candidate of each head lane, as a logit, binary32", 32),
)

ADDRESS_BITS = 12


def register(name: str) -> Register:
    """A register by name."""
    for r in REGISTERS:
        if r.name == name:
            return r
    raise KeyError(f"no register named {name!r}")


def offset(name: str, index: int = 0) -> int:
    """Byte offset of a register."""
    r = register(name)
    if not 0 <= index < r.count:
        raise IndexError(f"register {name} has {r.count} entries, not {index + 1}")
    return r.offset + 4 * index


def pack(name: str, value: int | None = None, /, **values: int) -> int:
    """The word of a register that is one number (`value`), or that has fields (by name; unnamed ones are 0).

    Raises
    ------
    ValueError : a value that the register or its field cannot hold, a number for one with fields, or the reverse.
    """
    r = register(name)
    if r.fields:
        if value is not None:
            raise ValueError(f"register {name} has fields: {', '.join(f.name for f in r.fields)}")
        return fields.pack(f"register {name}", r.fields, values)
    if values or value is None:
        raise ValueError(f"register {name} is one number, without fields")
    return fields.whole(f"register {name}", value, r.most)


def unpack(name: str, word: int) -> dict[str, int]:
    """The fields of a register's word, by name."""
    return {key: int(value) for key, value in fields.unpack(register(name).fields, word).items()}


def geometry(config: AcceleratorConfig) -> int:
    """Value of the geometry register."""
    return pack("geometry", **{f.name: getattr(config, f.name) for f in register("geometry").fields})


_LATER = ("ternary_head",)
"""Parameters that count in a build's hash only where they are on: builds without them keep their names."""


def build_hash(config: AcceleratorConfig) -> int:
    """Value of the build register: 32 bits of a SHA-256 of the configuration and VERSION. The clock is not in it: a build runs
    at what it routed at, and that is the hand-off's to say."""
    told = {k: v for k, v in asdict(config).items() if k != "clock_hz" and (k not in _LATER or v)}
    text = json.dumps([VERSION, told], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
