"""Named fields of words: the one way in which registers and descriptors are packed and unpacked."""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """`width` bits from bit `start` on of a little endian row of 32-bit words; `is_float` marks a binary32."""

    name: str
    start: int
    width: int
    doc: str
    is_float: bool = False

    @property
    def word(self) -> int:
        """The 32-bit word it is in."""
        return self.start // 32

    @property
    def lsb(self) -> int:
        """Its lowest bit within that word."""
        return self.start % 32

    @property
    def top(self) -> int:
        """Largest raw value."""
        return (1 << self.width) - 1


def whole(where: str, value: int | float, most: int) -> int:
    """`value` as a whole number.

    Raises
    ------
    ValueError : it is none from 0 to `most`; names `where` and the limit.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number <= most:
        raise ValueError(f"{where} must be from 0 to {most}, not {value}")
    return number


def pack(owner: str, fields: Iterable[Field], values: Mapping[str, int | float]) -> int:
    """Bits of fields by name; unnamed fields are 0.

    Raises
    ------
    ValueError : unknown field, or a value that its field cannot hold; names `owner`, the field and the limit.
    """
    known = {f.name: f for f in fields}
    raw = 0
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{owner} has no field {name!r}")
        f = known[name]
        if f.is_float:
            try:
                bits = int.from_bytes(struct.pack("<f", value), "little")
            except (OverflowError, struct.error):
                raise ValueError(f"{owner}.{name} must be a binary32, at most 3.4e38, not {value}") from None
        else:
            bits = whole(f"{owner}.{name}", value, f.top)
        raw |= bits << f.start
    return raw


def unpack(fields: Iterable[Field], raw: int) -> dict[str, int | float]:
    """Inverse of `pack`: every field by name."""
    out: dict[str, int | float] = {}
    for f in fields:
        bits = raw >> f.start & f.top
        out[f.name] = struct.unpack("<f", struct.pack("<I", bits))[0] if f.is_float else bits
    return out
