"""Program descriptors: the one description that the host packs, the hardware decodes and the documents print.

A program is a list of 64-byte descriptors in memory. Addresses and lengths are in beats: beat n is, for each
port i, the port_bytes at base_i + n * port_bytes.
"""

from __future__ import annotations

from enum import IntEnum

from tellme.golden import fields
from tellme.golden.fields import Field

DESCRIPTOR_BYTES = 64


class Opcode(IntEnum):
    END = 0
    LOAD = 1
    LINEAR = 2
    ATTENTION = 3
    HEAD = 4
    SCREEN = 5


class Kind(IntEnum):
    """Epilogue of a linear layer."""

    QKV = 0
    RESIDUAL = 1
    GATE_RELU2 = 2
    GATE_SILU = 3


def _field(name: str, word: int, lsb: int, width: int, doc: str, is_float: bool = False) -> Field:
    return Field(name, 32 * word + lsb, width, doc, is_float)


_COMMON = (
    _field("opcode", 0, 0, 8, "Opcode"),
    _field("kind", 0, 8, 2, "Kind of a LINEAR"),
    _field("norm_in", 0, 10, 1, "inputs are normalised by their root mean square before quantisation"),
    _field(
        "gain_out",
        0,
        11,
        1,
        "outputs are multiplied by the gain (the next norm's weight) before the absolute maximum; of a QKV: queries and keys "
        "are normalised head by head, and the gain is of a head of each",
    ),
    _field("address", 1, 0, 32, "beat address of the gain followed by the data"),
    _field("gain_beats", 2, 0, 16, "beats of gain, 0 if none"),
)
_NARROW = (
    _field("k_narrow", 0, 12, 1, "keys of the cache are of 4 bits; only with v_narrow"),
    _field("v_narrow", 0, 13, 1, "values of the cache are of 4 bits"),
)
_HADAMARD = _field(
    "hadamard",
    0,
    14,
    1,
    "QKV: queries and keys are turned by a Hadamard matrix before they are quantised; q_scale is over 32",
)
_HEADS = (
    _field("head_dim", 11, 0, 16, "dimensions of a head"),
    _field("heads", 11, 16, 8, "query heads"),
    _field("kv_heads", 11, 24, 8, "key-value heads"),
)
_NORM = (
    _field("inputs", 4, 0, 16, "input features n"),
    _field("inv_n", 5, 0, 32, "1/n", True),
    _field("eps", 6, 0, 32, "norm epsilon", True),
)

FIELDS: dict[Opcode, tuple[Field, ...]] = {
    Opcode.END: (_field("opcode", 0, 0, 8, "Opcode"),),
    Opcode.LOAD: _COMMON
    + (
        _field("x_address", 3, 0, 32, "beat address of lane 0's input features (float32)"),
        _field("inputs", 4, 0, 16, "features of a lane"),
        _field("x_beats", 4, 16, 16, "beats of a lane's features, and their stride"),
        _field("rope_address", 5, 0, 32, "beat address of the rotary table, position 0"),
        _field("rope_beats", 6, 0, 16, "beats of a position: head_dim/2 pairs (cos, sin) of float32"),
        _field("head_dim", 11, 0, 16, "dimensions of a head"),
    ),
    Opcode.LINEAR: _COMMON
    + (
        _field("tiles", 3, 0, 16, "K tiles"),
        _field("rows", 3, 16, 16, "matrix rows, a multiple of 8"),
    )
    + _NORM
    + (
        _field("block_rows", 4, 16, 16, "rows of a row block (the last may have fewer)"),
        _field("scale0", 7, 0, 32, "weight scale of Q, of gate, or of the whole matrix", True),
        _field("scale1", 8, 0, 32, "weight scale of K, or of up", True),
        _field("scale2", 9, 0, 32, "weight scale of V", True),
        _field("q_scale", 12, 0, 32, "QKV: log2(e)/sqrt(head_dim), multiplied into the scale of the queries", True),
    )
    + _NARROW
    + (_HADAMARD,)
    + _HEADS,
    Opcode.ATTENTION: _COMMON
    + _NARROW
    + (
        _field("kv_address", 3, 0, 32, "beat address of this layer's cache, slot 0, KV head 0, block 0"),
        _field("slot_stride", 4, 0, 32, "beats from slot to slot"),
        _field("head_stride", 5, 0, 32, "beats from KV head to KV head"),
        _field("group", 6, 0, 8, "query heads of a KV head: heads / kv_heads"),
    )
    + _HEADS,
    Opcode.HEAD: _COMMON
    + (
        _field("blocks", 3, 0, 16, "blocks of key_block rows"),
        _field("tiles", 3, 16, 16, "K tiles that hold the inputs (whole tiles are quantised)"),
    )
    + _NORM
    + (
        _field("logits_address", 7, 0, 32, "beat address of lane 0's logits (float32)"),
        _field("logits_stride", 8, 0, 32, "beats from lane to lane"),
        _field("rows", 9, 0, 32, "vocabulary; rows behind it are padding"),
    ),
    Opcode.SCREEN: _COMMON
    + (
        _field("tiles", 3, 0, 16, "K tiles"),
        _field("planes", 3, 16, 2, "ternary planes of a row, 1 or 2"),
        _field(
            "exact",
            3,
            18,
            1,
            "the head is ternary: its scores are its logits; it runs without candidates, too, and writes every logit then",
        ),
    )
    + _NORM
    + (
        _field("logits_address", 7, 0, 32, "beat address of lane 0's candidates: pairs (logit, float32; row, uint32)"),
        _field("logits_stride", 8, 0, 32, "beats from lane to lane"),
        _field("rows", 9, 0, 32, "vocabulary"),
        _field("row_address", 10, 0, 32, "beat address of the int8 rows that candidates are scored with"),
        _field(
            "bound_unit",
            12,
            0,
            32,
            "what a bound (if exact, a logit) is a multiple of, besides the activations' scale",
            True,
        ),
    ),
}


def _shared() -> tuple[Field, ...]:
    every = [f for own in FIELDS.values() for f in own]
    places = {f.name: {(o.start, o.width) for o in every if o.name == f.name} for f in every}
    first = {f.name: f for f in reversed(every)}
    counts = {name: sum(f.name == name for f in every) for name in first}
    return tuple(f for name, f in first.items() if counts[name] > 1 and len(places[name]) == 1)


SHARED: tuple[Field, ...] = _shared()
"""Fields of several opcodes that are at the same place in all of them: they may be read before the opcode is known."""


def encode(opcode: Opcode, **values: int | float) -> bytes:
    """One descriptor, little endian, 64 bytes. Unnamed fields are 0.

    Raises
    ------
    ValueError : unknown field, or a value that its field cannot hold.
    """
    raw = fields.pack(opcode.name, FIELDS[opcode], {"opcode": opcode, **values})
    return raw.to_bytes(DESCRIPTOR_BYTES, "little")


def decode(data: bytes) -> tuple[Opcode, dict[str, int | float]]:
    """Inverse of `encode`: opcode and every field of it."""
    opcode = Opcode(data[0])
    return opcode, fields.unpack(FIELDS[opcode], int.from_bytes(data, "little"))
