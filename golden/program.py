"""Program descriptors: the one description that the host packs, the hardware decodes and the documents print.

A program is a list of 64-byte descriptors in memory. Addresses and lengths are in beats: beat n is, for each
port i, the port_bytes at base_i + n * port_bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

DESCRIPTOR_WORDS = 16
DESCRIPTOR_BYTES = 64


class Opcode(IntEnum):
    END = 0
    LOAD = 1
    LINEAR = 2
    ATTENTION = 3
    HEAD = 4


class Kind(IntEnum):
    """Epilogue of a linear layer."""

    QKV = 0
    RESIDUAL = 1
    GATE_RELU2 = 2
    GATE_SILU = 3


@dataclass(frozen=True)
class Field:
    """`width` bits at bit `lsb` of 32-bit word `word`; `is_float` marks a binary32."""

    name: str
    word: int
    lsb: int
    width: int
    doc: str
    is_float: bool = False


_COMMON = (
    Field("opcode", 0, 0, 8, "Opcode"),
    Field("kind", 0, 8, 2, "Kind of a LINEAR"),
    Field("norm_in", 0, 10, 1, "inputs are normalised by their root mean square before quantisation"),
    Field(
        "gain_out", 0, 11, 1, "outputs are multiplied by the gain (the next norm's weight) before the absolute maximum"
    ),
    Field("address", 1, 0, 32, "beat address of the gain followed by the data"),
    Field("gain_beats", 2, 0, 16, "beats of gain, 0 if none"),
)
_HEADS = (
    Field("head_dim", 11, 0, 16, "dimensions of a head"),
    Field("heads", 11, 16, 8, "query heads"),
    Field("kv_heads", 11, 24, 8, "key-value heads"),
)
_NORM = (
    Field("inputs", 4, 0, 16, "input features n"),
    Field("inv_n", 5, 0, 32, "1/n", True),
    Field("eps", 6, 0, 32, "norm epsilon", True),
)

FIELDS: dict[Opcode, tuple[Field, ...]] = {
    Opcode.END: (Field("opcode", 0, 0, 8, "Opcode"),),
    Opcode.LOAD: _COMMON
    + (
        Field("x_address", 3, 0, 32, "beat address of lane 0's input features (float32)"),
        Field("inputs", 4, 0, 16, "features of a lane"),
        Field("x_beats", 4, 16, 16, "beats of a lane's features, and their stride"),
        Field("rope_address", 5, 0, 32, "beat address of the rotary table, position 0"),
        Field("rope_beats", 6, 0, 16, "beats of a position: head_dim/2 pairs (cos, sin) of float32"),
        Field("head_dim", 11, 0, 16, "dimensions of a head"),
    ),
    Opcode.LINEAR: _COMMON
    + (
        Field("tiles", 3, 0, 16, "K tiles"),
        Field("rows", 3, 16, 16, "matrix rows, a multiple of 8"),
    )
    + _NORM
    + (
        Field("block_rows", 4, 16, 16, "rows of a row block (the last may have fewer)"),
        Field("scale0", 7, 0, 32, "weight scale of Q, of gate, or of the whole matrix", True),
        Field("scale1", 8, 0, 32, "weight scale of K, or of up", True),
        Field("scale2", 9, 0, 32, "weight scale of V", True),
        Field("q_scale", 12, 0, 32, "QKV: log2(e)/sqrt(head_dim), multiplied into the scale of the queries", True),
    )
    + _HEADS,
    Opcode.ATTENTION: _COMMON
    + (
        Field("kv_address", 3, 0, 32, "beat address of this layer's cache, slot 0, KV head 0, block 0"),
        Field("slot_stride", 4, 0, 32, "beats from slot to slot"),
        Field("head_stride", 5, 0, 32, "beats from KV head to KV head"),
        Field("group", 6, 0, 8, "query heads of a KV head: heads / kv_heads"),
    )
    + _HEADS,
    Opcode.HEAD: _COMMON
    + (
        Field("blocks", 3, 0, 16, "blocks of key_block rows"),
        Field("tiles", 3, 16, 16, "K tiles that hold the inputs (whole tiles are quantised)"),
    )
    + _NORM
    + (
        Field("logits_address", 7, 0, 32, "beat address of lane 0's logits (float32)"),
        Field("logits_stride", 8, 0, 32, "beats from lane to lane"),
        Field("rows", 9, 0, 32, "vocabulary; rows behind it are padding"),
    ),
}


def encode(opcode: Opcode, **values: int | float) -> bytes:
    """One descriptor, little endian, 64 bytes. Unnamed fields are 0.

    Raises
    ------
    ValueError : unknown field, or a value that its field cannot hold.
    """
    words = [0] * DESCRIPTOR_WORDS
    fields = {f.name: f for f in FIELDS[opcode]}
    for name, value in {"opcode": int(opcode), **values}.items():
        if name not in fields:
            raise ValueError(f"{opcode.name} descriptors have no field {name!r}")
        f = fields[name]
        raw = struct.unpack("<I", struct.pack("<f", value))[0] if f.is_float else int(value)
        if not 0 <= raw < 1 << f.width:
            raise ValueError(f"{opcode.name}.{name} must be from 0 to {(1 << f.width) - 1}, not {value}")
        words[f.word] |= raw << f.lsb
    return struct.pack("<16I", *words)


def decode(data: bytes) -> tuple[Opcode, dict[str, int | float]]:
    """Inverse of `encode`: opcode and every field of it."""
    words = struct.unpack("<16I", data)
    opcode = Opcode(words[0] & 0xFF)
    out: dict[str, int | float] = {}
    for f in FIELDS[opcode]:
        raw = words[f.word] >> f.lsb & (1 << f.width) - 1
        out[f.name] = struct.unpack("<f", struct.pack("<I", raw))[0] if f.is_float else raw
    return opcode, out
