"""Registers and descriptors: their fields do not overlap, come back as they were packed, and are where they always were."""

from __future__ import annotations

import random
import struct

import pytest

from tellme.golden import registers
from tellme.golden.fields import Field
from tellme.golden.program import DESCRIPTOR_BYTES, FIELDS, SHARED, Kind, Opcode, decode, encode
from tellme.golden.registers import REGISTERS, ErrorCode

WORDS = [
    ("geometry", {"ports": 4, "port_bytes": 16, "lanes": 16, "attention_lanes": 8}, 0x0810_1004),
    ("control", {"start": 1}, 1),
    ("control", {"soft_reset": 1}, 2),
    ("status", {"busy": 1}, 1),
    ("status", {"done": 1, "error": ErrorCode.TIMEOUT}, 0x702),
    ("status", {"stopped": 1}, 4),
    ("irq_enable", {"done": 1}, 1),
    ("head_lanes", {"first": 3, "count": 5}, 0x503),
    ("write_logits", {"every": 1}, 1),
    ("port_lead", {"free": 1}, 1),
    ("base_low", {"page": 0xABCDE}, 0xABCD_E000),
    ("base_high", {"high": 0xFF}, 0xFF),
    ("owed", {"reads": 2, "writes": 3}, 0x3_0002),
]
"""Bits of version 2 of the map, written out."""


@pytest.mark.parametrize(("name", "values", "word"), WORDS)
def test_fields_are_where_they_always_were(name: str, values: dict[str, int], word: int) -> None:
    assert registers.pack(name, **values) == word
    assert {k: v for k, v in registers.unpack(name, word).items() if v} == values


@pytest.mark.parametrize("register", [r for r in REGISTERS if not r.fields], ids=lambda r: r.name)
def test_a_number_fits_its_word(register: registers.Register) -> None:
    assert registers.pack(register.name, register.most) == register.most < 1 << 32
    for value in (-1, register.most + 1, 1 << 32):
        with pytest.raises(ValueError, match=register.name):
            registers.pack(register.name, value)


def test_a_time_out_may_be_any_number_of_a_word() -> None:
    assert registers.pack("timeout", (1 << 32) - 1) == (1 << 32) - 1


def test_every_register_with_fields_is_written_out_above() -> None:
    assert {name for name, _, _ in WORDS} == {r.name for r in REGISTERS if r.fields}


@pytest.mark.parametrize(
    ("fields", "bits"),
    [pytest.param(r.fields, 32, id=r.name) for r in REGISTERS]
    + [pytest.param(own, 8 * DESCRIPTOR_BYTES, id=op.name) for op, own in FIELDS.items()]
    + [pytest.param(SHARED, 8 * DESCRIPTOR_BYTES, id="shared")],
)
def test_fields_do_not_overlap_nor_leave_their_word(fields: tuple[Field, ...], bits: int) -> None:
    taken: set[int] = set()
    for f in fields:
        own = set(range(f.start, f.start + f.width))
        assert not own & taken and f.start + f.width <= bits
        assert f.lsb + f.width <= 32, "within a word"
        taken |= own


@pytest.mark.parametrize("opcode", Opcode)
def test_descriptors_come_back_field_by_field_and_are_where_the_words_say(opcode: Opcode) -> None:
    rng = random.Random(1)
    for _ in range(50):
        values = {
            f.name: struct.unpack("<f", struct.pack("<f", rng.uniform(-9, 9)))[0]
            if f.is_float
            else rng.randint(0, f.top)
            for f in FIELDS[opcode]
            if f.name != "opcode"
        }
        code = encode(opcode, **values)
        assert decode(code) == (opcode, {"opcode": opcode, **values})
        words = struct.unpack("<16I", code)
        for f in FIELDS[opcode]:
            raw = words[f.word] >> f.lsb & (1 << f.width) - 1
            want = {"opcode": opcode, **values}[f.name]
            assert raw == (struct.unpack("<I", struct.pack("<f", want))[0] if f.is_float else want)


def test_shared_fields_are_at_one_place_in_every_opcode_that_has_them() -> None:
    names = {f.name for f in SHARED}
    assert {"opcode", "kind", "gain_beats", "inputs", "heads", "eps"} <= names
    assert not {"tiles", "rows", "x_beats"} & names, "elsewhere in other opcodes, or in one alone"
    for f in SHARED:
        places = {(o.start, o.width) for own in FIELDS.values() for o in own if o.name == f.name}
        assert places == {(f.start, f.width)}


@pytest.mark.parametrize(
    ("opcode", "values", "message"),
    [
        (Opcode.LINEAR, {"rows": 1 << 16}, "LINEAR.rows must be from 0 to 65535, not 65536"),
        (Opcode.LINEAR, {"rows": 8.5}, "LINEAR.rows must be from 0 to 65535, not 8.5"),
        (Opcode.LINEAR, {"kind": 4}, "LINEAR.kind must be from 0 to 3, not 4"),
        (Opcode.LINEAR, {"scale0": 1e39}, "LINEAR.scale0 must be a binary32, at most 3.4e38, not 1e+39"),
        (Opcode.ATTENTION, {"heads": 256}, "ATTENTION.heads must be from 0 to 255, not 256"),
        (Opcode.ATTENTION, {"kv_address": -1}, "ATTENTION.kv_address must be from 0 to 4294967295, not -1"),
        (Opcode.HEAD, {"x_beats": 1}, "HEAD has no field 'x_beats'"),
    ],
)
def test_what_a_field_cannot_hold_is_refused(opcode: Opcode, values: dict[str, int | float], message: str) -> None:
    with pytest.raises(ValueError) as e:
        encode(opcode, **values)
    assert str(e.value) == message


def test_kinds_fit_their_field() -> None:
    assert decode(encode(Opcode.LINEAR, kind=max(Kind), gain_out=True))[1]["kind"] == max(Kind)
