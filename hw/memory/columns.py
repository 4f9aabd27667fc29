"""A memory whose columns are written separately, cut so that each piece is what an UltraRAM or block RAM can do."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Value, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.arith import ceil_div
from tellme.golden.config import clog2
from tellme.hw.primitives import deep_ram

WORD = 72
"""Bits of a word of an UltraRAM, or of a block RAM in simple dual-port mode."""

BYTE = 8
"""Bits of a write enable inside a word (8 or 9, UG573; columns of a multiple of these map to them, UG901)."""

BYTES = WORD // 9 * BYTE
"""Bits of a word that is written in bytes: its parity bits stay unused."""


class ColumnMemory(wiring.Component):
    """One write port with an enable for each column, one read port of all columns; deep, so in UltraRAM if there is any.

    A column's whole words have a memory each, without enables. The rests of several columns share a memory of bytes, as
    long as they fit a word: no column is cut inside a byte or across two RAMs, so that what is counted is what maps.

    Parameters
    ----------
    depth : words of all columns.
    columns, width : number of columns, and bits of each.

    Interface attributes
    --------------------
    write_addr, write_en, write_data : In. `write_en` has a bit for each column; column 0 in the low bits.
    read_addr : In.
    read_data : Out, one cycle later. The old word when it is written in the same cycle.

    Raises
    ------
    ValueError : less than 2 words, or less than 1 column or bit.
    """

    def __init__(self, *, depth: int, columns: int, width: int) -> None:
        for name, value, least in (("depth", depth, 2), ("columns", columns, 1), ("width", width, 1)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value!r}")
        self._depth = depth
        self._columns = columns
        self._width = width
        super().__init__(
            {
                "write_addr": In(clog2(depth)),
                "write_en": In(columns),
                "write_data": In(columns * width),
                "read_addr": In(clog2(depth)),
                "read_data": Out(columns * width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        words, rest = divmod(self._width, WORD)
        padded = ceil_div(rest, BYTE) * BYTE
        together = max(1, BYTES // padded) if rest else 1
        parts: list[list[Value]] = [[] for _ in range(self._columns)]
        for column in range(self._columns):
            for word in range(words):
                low = column * self._width + word * WORD
                parts[column] += self._piece(m, platform, f"column{column}_word{word}", [(column, low, WORD)], WORD)
        for first in range(0, self._columns if rest else 0, together):
            chosen = range(first, min(first + together, self._columns))
            pieces = [(column, column * self._width + words * WORD, rest) for column in chosen]
            # Alone, it needs no bytes.
            size = padded if len(pieces) > 1 else rest
            for column, value in zip(chosen, self._piece(m, platform, f"rest{first}", pieces, size), strict=True):
                parts[column].append(value)
        m.d.comb += self.read_data.eq(Cat(*(value for column in parts for value in column)))
        return m

    def _piece(
        self, m: Module, platform: object, name: str, pieces: list[tuple[int, int, int]], size: int
    ) -> list[Value]:
        """A memory of pieces (column, lowest bit in the word, bits), each in `size` bits; what is read of each."""
        ram = memory.Memory(shape=unsigned(size * len(pieces)), depth=self._depth, init=[], attrs=deep_ram(platform))
        m.submodules[name] = ram
        write, read = ram.write_port(granularity=size), ram.read_port()
        m.d.comb += [
            write.addr.eq(self.write_addr),
            write.en.eq(Cat(self.write_en[column] for column, _, _ in pieces)),
            read.addr.eq(self.read_addr),
        ]
        for i, (_, low, bits) in enumerate(pieces):
            m.d.comb += write.data.word_select(i, size).eq(self.write_data[low : low + bits])
        return [read.data.word_select(i, size)[:bits] for i, (_, _, bits) in enumerate(pieces)]
