"""Lookup tables of a K tile: the builder that fills them, and the memories that hold them."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from amaranth.hdl import Array, C, Cat, ClockSignal, Instance, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tellme.golden.config import AcceleratorConfig
from tellme.hw.primitives import UltraScalePlus
from tellme.hw.tlmm.unpack import entries, index_bits, index_of, table_columns


def sum_width(group_size: int) -> int:
    """Bits of a table entry: sums with a leading +1 lie in [-128*group_size, 128*group_size - 1]."""
    return 8 + ceil_log2(group_size)


def gray_walk(group_size: int) -> list[tuple[tuple[int, ...], int, int]]:
    """An order of the entries in which neighbours differ by one activation, so that one adder makes each from the last.

    Returns
    -------
    For each entry after the zero sum: (weights, lowest digit first; the digit that changed; by +1 or -1). The leading
    non-zero weight is always +1: the opposite sums are not stored.
    """
    walk: list[tuple[tuple[int, ...], int, int]] = []
    now = [0] * group_size

    def move(digit: int, by: int) -> None:
        now[digit] += by
        walk.append((tuple(now), digit, by))

    def sweep(below: int) -> None:
        # All other values of the digits under `below`, from a corner to a corner.
        if below == 0:
            return
        digit = below - 1
        by = -1 if now[digit] > 0 else 1
        sweep(digit)
        for _ in range(2):
            move(digit, by)
            sweep(digit)

    for digit in range(group_size):
        move(digit, 1)
        sweep(digit)
    return walk


class TableBuilder(wiring.Component):
    """Makes the table entries of one lane and tile for all groups at once, one entry a cycle.

    Words of a tile are shifted in while the previous lane's entries are made. `take` copies a complete tile (the word
    shifted in last must be in place: earliest one cycle after its `shift`) and starts; the entries follow in the next
    `entries(group_size)` cycles, in Gray order, the zero sum first. The next `take` may come with the last of them.

    Entries are stored with an offset of half the range, so that they are unsigned and adders need no sign extension.

    Interface attributes
    --------------------
    word, shift : int8 activations, config.word of them, first word of the tile first.
    take : start on the tile shifted in.
    last : the last entry is being written.
    building : entries are being written (`enable`, `entry`, `value` are valid).
    entry : table address without the bank.
    value : one per group, sum + 2^(width-1).
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        size = config.group_size
        super().__init__(
            {
                "word": In(8 * config.word),
                "shift": In(1),
                "take": In(1),
                "last": Out(1),
                "building": Out(1),
                "entry": Out(index_bits(size)),
                "value": Out(sum_width(size)).array(config.groups),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        size = self._config.group_size
        width = sum_width(size)
        columns = self._config.beat_weights
        walk = gray_walk(size)
        count = len(walk) + 1
        assert count == entries(size)

        arriving = Signal(8 * columns, reset_less=True)
        tile = [Signal(8, name=f"tile_{c}", reset_less=True) for c in range(columns)]
        with m.If(self.shift):
            m.d.sync += arriving.eq(Cat(arriving[8 * self._config.word :], self.word))
        with m.If(self.take):
            m.d.sync += [t.eq(arriving[8 * c : 8 * c + 8]) for c, t in enumerate(tile)]

        step = Signal(range(count))
        building = Signal()
        m.d.comb += self.building.eq(building)
        m.d.sync += self.last.eq(building & (step == count - 2))
        with m.If(self.take):
            m.d.sync += [step.eq(0), building.eq(1)]
        with m.Elif(self.last):
            m.d.sync += building.eq(0)
        with m.Else():
            m.d.sync += step.eq(step + 1)

        # What to add for the entry after `step`; registered, so that the digit multiplexers stay one LUT a bit.
        digit, subtract = Signal(range(size)), Signal()
        moves = [(d, int(by < 0)) for _, d, by in walk]
        with m.Switch(step):
            for k, weights in enumerate([(0,) * size, *(w for w, _, _ in walk)]):
                with m.Case(k):
                    m.d.comb += self.entry.eq(index_of(weights)[0])
                    if k + 1 < len(moves):
                        m.d.sync += Cat(digit, subtract).eq(moves[k + 1][0] | moves[k + 1][1] << len(digit))
        with m.If(self.take):
            m.d.sync += Cat(digit, subtract).eq(moves[0][0] | moves[0][1] << len(digit))

        for g, group in enumerate(table_columns(self._config)):
            # A short group has no activation behind its missing digits; they count as 0.
            members = [tile[c] for c in group] + [C(0, 8)] * (size - len(group))
            chosen = Signal(8, name=f"chosen_{g}")
            value = Signal(width, name=f"value_{g}", reset_less=True)
            m.d.comb += chosen.eq(Array(members)[digit] ^ subtract.replicate(8))
            # One adder: the lowest bit feeds the carry that completes a subtraction.
            added = Signal(width + 1, name=f"added_{g}")
            m.d.comb += added.eq(Cat(subtract, value) + Cat(subtract, chosen, chosen[7].replicate(width - 8)))
            m.d.sync += value.eq(Mux(self.take, 1 << (width - 1), added[1:]))
            m.d.comb += self.value[g].eq(value)
        return m


class TableMemory(wiring.Component):
    """The tables of all groups and lanes, in two banks. Reads are combinational (distributed RAM).

    Parameters
    ----------
    config : groups, lanes, group size.

    On UltraScalePlus, with group_size 2 or 3, the tables are RAM32M16. Inferred, a lane's table of a group takes one
    alone, of which 4 of 14 bits stay unused; but its seven ports read at seven addresses, so that tables of several
    groups can share one: 616 instead of 856 LUT a lane at 107 groups.

    Interface attributes
    --------------------
    write_bank, write_entry, write_value, write_lane : an entry of all groups; `write_lane` has a bit per lane.
    read_bank, index : read port; an index per group, shared by the lanes.
    value : [group][lane], in the same cycle.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        bits, width = index_bits(config.group_size), sum_width(config.group_size)
        self._config = config
        super().__init__(
            {
                "write_bank": In(1),
                "write_entry": In(bits),
                "write_value": In(width).array(config.groups),
                "write_lane": In(config.lanes),
                "read_bank": In(1),
                "index": In(bits).array(config.groups),
                "value": Out(width).array(config.groups, config.lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        write_address = Cat(self.write_entry, self.write_bank)
        if isinstance(platform, UltraScalePlus) and len(write_address) <= 5:
            for lane in range(self._config.lanes):
                self._packed(m, lane, write_address)
            return m
        for g in range(self._config.groups):
            memory = Memory(
                shape=data.ArrayLayout(self.write_value[g].shape(), self._config.lanes),
                depth=1 << len(write_address),
                init=[],
                attrs={"ram_style": "distributed"},
            )
            m.submodules[f"table_{g}"] = memory
            write, read = memory.write_port(granularity=1), memory.read_port(domain="comb")
            m.d.comb += [
                write.addr.eq(write_address),
                write.en.eq(self.write_lane),
                read.addr.eq(Cat(self.index[g], self.read_bank)),
            ]
            for lane in range(self._config.lanes):
                m.d.comb += [write.data[lane].eq(self.write_value[g]), self.value[g][lane].eq(read.data[lane])]
        return m

    def _packed(self, m: Module, lane: int, write_address: Value) -> None:
        """A lane in RAM32M16: 2-bit columns of all tables, seven to a primitive (UG974; port H only writes)."""
        columns = [
            (self.index[g], v[low : low + 2], self.value[g][lane][low : low + 2])
            for g, v in enumerate(self.write_value)
            for low in range(0, len(v), 2)
        ]

        def address(a: Value) -> Value:
            return Cat(a, C(0, 5 - len(a)))

        for n, first in enumerate(range(0, len(columns), 7)):
            ports: dict[str, Any] = {
                "i_WCLK": ClockSignal(),
                "i_WE": self.write_lane[lane],
                "i_ADDRH": address(write_address),
                "i_DIH": C(0, 2),
                "o_DOH": Signal(2, name=f"unused_{n}"),
            }
            for letter, column in zip_longest("ABCDEFG", columns[first : first + 7]):
                index, data, value = column or (self.index[0], C(0, 2), None)
                out = Signal(2, name=f"out_{n}{letter}")
                ports |= {
                    f"i_ADDR{letter}": address(Cat(index, self.read_bank)),
                    f"i_DI{letter}": Cat(data, C(0, 2))[:2],
                    f"o_DO{letter}": out,
                }
                if value is not None:
                    m.d.comb += value.eq(out)
            m.submodules[f"ram_{lane}_{n}"] = Instance("RAM32M16", **ports)
