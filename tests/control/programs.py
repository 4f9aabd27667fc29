"""Programs and damage to them, for the tests of what is looked at before a pass."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import EIGHT, CacheFormat
from tellme.golden.model import ModelSpec
from tellme.golden.program import DESCRIPTOR_BYTES, FIELDS, Field, Opcode, decode
from tellme.host.machine.program import Program, compile_sections, planned_sections


def compiled(
    spec: ModelSpec,
    config: AcceleratorConfig,
    *,
    slots: int = 3,
    context: int | None = None,
    planes: int = 0,
    kv: CacheFormat = EIGHT,
) -> Program:
    """The program of a model of this shape, whose head is screened with so many ternary planes (0: it is not)."""
    sections = planned_sections(spec, config, planes)
    return compile_sections("test", spec, sections, config, slots=slots, context=context, kv=kv)


def split(code: bytes) -> list[bytes]:
    return [code[i : i + DESCRIPTOR_BYTES] for i in range(0, len(code), DESCRIPTOR_BYTES)]


def with_field(descriptor: bytes, field: Field, value: int) -> bytes:
    """The descriptor with the bits of a field replaced."""
    word = int.from_bytes(descriptor[4 * field.word : 4 * field.word + 4], "little")
    mask = (1 << field.width) - 1
    word = word & ~(mask << field.lsb) | (value & mask) << field.lsb
    return descriptor[: 4 * field.word] + word.to_bytes(4, "little") + descriptor[4 * field.word + 4 :]


def value_of(descriptor: bytes, field: Field) -> int:
    word = int.from_bytes(descriptor[4 * field.word : 4 * field.word + 4], "little")
    return word >> field.lsb & (1 << field.width) - 1


def damaged(code: bytes) -> Iterator[tuple[str, bytes]]:
    """(what was done, program): every whole-number field of the first of each kind, at 0, its neighbours, and its ends."""
    parts = split(code)
    seen = set()
    for i, part in enumerate(parts):
        opcode, values = decode(part)
        kind = (opcode, values.get("kind"))
        if kind in seen:
            continue
        seen.add(kind)
        for field in FIELDS[opcode]:
            if field.is_float:
                continue
            old, top = value_of(part, field), (1 << field.width) - 1
            near = {0, 1, 2, old - 1, old + 1, old + 8, old + 32, old // 2, 2 * old, top, top - 7, top // 2 + 1}
            for value in sorted(v for v in near if 0 <= v <= top and v != old):
                changed = [*parts[:i], with_field(part, field, value), *parts[i + 1 :]]
                yield f"{i} {opcode.name}.{field.name}: {old} -> {value}", b"".join(changed)
    for i in range(len(parts)):
        yield f"without {i}", b"".join(parts[:i] + parts[i + 1 :])
        yield f"{i} twice", b"".join(parts[: i + 1] + parts[i:])
    for i in range(1, len(parts) - 1):
        yield f"{i - 1} and {i} exchanged", b"".join(parts[: i - 1] + [parts[i], parts[i - 1]] + parts[i + 1 :])


def mutation(code: bytes, rng: random.Random) -> bytes:
    """One to three changes: a field, a bit, a word, a descriptor of random bits."""
    parts = split(code)
    for _ in range(rng.choice((1, 1, 2, 3))):
        i = rng.randrange(len(parts))
        choice = rng.randrange(6)
        if choice <= 2:
            field = rng.choice(FIELDS.get(Opcode(min(parts[i][0], max(Opcode))), FIELDS[Opcode.END]))
            value = rng.choice(
                (0, 1, value_of(parts[i], field) + rng.choice((-8, -1, 1, 8)), rng.getrandbits(field.width))
            )
            parts[i] = with_field(parts[i], field, value)
        elif choice == 3:
            at = rng.randrange(8 * DESCRIPTOR_BYTES)
            parts[i] = (int.from_bytes(parts[i], "little") ^ 1 << at).to_bytes(DESCRIPTOR_BYTES, "little")
        elif choice == 4:
            at = 4 * rng.randrange(DESCRIPTOR_BYTES // 4)
            parts[i] = parts[i][:at] + rng.randbytes(4) + parts[i][at + 4 :]
        else:
            parts[i] = bytes([rng.randrange(8)]) + rng.randbytes(DESCRIPTOR_BYTES - 1)
    return b"".join(parts)
