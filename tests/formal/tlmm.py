"""What a packed byte becomes, and what a table holds: for every weight and every activation, by what golden says of them.

An index stands for the weights of its balanced ternary digits, the lowest first, the highest that is not zero +1: `balanced`. Nothing of the
design's own tables is used.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from amaranth import Array, Cat, Const, Module, Mux, Signal, Value

from tellme.golden.config import TINY, AcceleratorConfig
from tellme.golden.formats import TERNARY
from tellme.hw.tlmm.tables import TableBuilder
from tellme.hw.tlmm.unpack import Unpacker, table_columns, unit_bytes
from tests.formal.prover import Bench, Monitor

TRITS = 5


def balanced(value: int, digits: int) -> list[int]:
    """Digits -1, 0, 1 of an integer, the lowest first."""
    out = []
    for _ in range(digits):
        digit = (value + 1) % 3 - 1
        out.append(digit)
        value = (value - digit) // 3
    assert value == 0
    return out


def sums(size: int) -> int:
    """Values that `size` digits have, of each pair of opposite ones the positive one."""
    return len({abs(v) for v in range(-(3**size // 2), 3**size // 2 + 1)})


def past(m: Module, value: object, width: int = 1) -> Signal:
    """The value of the cycle before."""
    signal = Signal(width)
    m.d.sync += signal.eq(value)
    return signal


def scaled(group_size: int, beat_bytes: int, weight_format: str = "ternary") -> AcceleratorConfig:
    """A beat of so many bytes, whose activations come in words of five (of the format `grouped` four); smaller than any accelerator's."""
    config = replace(TINY, group_size=group_size, weight_format=weight_format)
    for derived in set(vars(config)) - {f.name for f in fields(config)}:
        del vars(config)[derived]
    vars(config).update(beat_bytes=beat_bytes, word=4 if config.packing.group else TRITS)
    return config


class UnpackerBench(Bench):
    """Any beats, one after the other: the indices of a beat say the weights that golden unpacks from its bytes, two cycles later.

    cycles : of a proof that is one of all, as nothing of a beat is left behind the `delay` cycles that it takes.
    """

    cycles = 2 * Unpacker.delay + 1

    def __init__(self, group_size: int, weight_format: str = "ternary", *, arbitrary: bool = False):
        super().__init__(arbitrary=arbitrary)
        self.size = group_size
        # Groups that lie in a byte, across bytes, and one that is short.
        self.config = scaled(group_size, 16 if weight_format == "grouped" else 5, weight_format)
        self.name = f"Unpacker, {weight_format}, groups of {group_size}"

    def build(self, m: Module, monitor: Monitor) -> None:
        c = self.config
        m.submodules.unpacker = u = Unpacker(c)
        beat = self.free(8 * c.beat_bytes, "beat")
        m.d.comb += u.beat.eq(beat)
        age = Signal(2)
        m.d.sync += age.eq(Mux(age == 3, 3, age + 1))
        known = age >= u.delay
        codes = np.arange(243, dtype=np.uint8)
        trits = TERNARY.unpack(codes[:, None])
        groups = table_columns(c)
        group = c.packing.group
        units = unit_bytes(c)
        columns = sorted(column for g in groups for column in g)
        assert columns == list(range(c.beat_weights)), "a column is in no table, or in two"
        refused, signs = [], []
        for b in (b for unit in units for b in unit):
            byte = past(m, past(m, beat[8 * b : 8 * b + 8], 8), 8)
            # +1 and -1 of each of the byte's weights; a byte that is no weights has neither.
            weights = Signal(2 * TRITS, name=f"weights_{b}")
            with m.Switch(byte):
                for code in codes.tolist():
                    with m.Case(code):
                        m.d.comb += weights.eq(sum((int(w) & 3) << 2 * j for j, w in enumerate(trits[code])))
            refused.append(byte >= len(codes))
            signs.append([(w == 1, w[1]) for w in (weights[2 * j : 2 * j + 2] for j in range(TRITS))])
        place = [
            (n, j)
            for first, unit in zip(np.cumsum([0, *(len(u) for u in units)]), units, strict=False)
            for n in range(first, first + len(unit))
            for j in range(TRITS)
            if not group or (n - first) * TRITS + j < group
        ]
        assert len(place) == c.beat_weights
        for g, members in enumerate(groups):
            found = Array(Const(sum((d & 3) << 2 * j for j, d in enumerate(balanced(i, self.size))), 2 * self.size) for i in range(sums(self.size)))  # fmt: skip
            said = Signal(2 * self.size, name=f"said_{g}")
            m.d.comb += said.eq(found[u.index[g]])
            agrees = []
            for j in range(self.size):
                digit = said[2 * j : 2 * j + 2]
                plus, minus = Mux(u.negate[g], digit[1], digit == 1), Mux(u.negate[g], digit == 1, digit[1])
                if j < len(members):
                    n, t = place[members[j]]
                    p, q = signs[n][t]
                    agrees.append((plus == p) & (minus == q))
                elif not group:  # there, the highest trit of a unit meets an activation of 0
                    agrees.append(~plus & ~minus)
            monitor.claim(f"table {g}: an index is its weights", ~known | Cat(agrees).all())
            monitor.claim(f"table {g}: no index is beyond its entries", ~known | (u.index[g] < sums(self.size)))
        monitor.claim("a byte that is no weights is told, and no other", ~known | (u.bad == Cat(refused).any()))
        if group:
            for n, scale in enumerate(u.scale):
                first = 8 * (16 * n + 13)
                was = past(m, past(m, beat[first : first + 15], 15), 15)
                monitor.claim(f"unit {n}: a scale is its own", ~known | (scale == was))


class TableBench(Bench):
    """Any tiles, of activations of `bits` bits: while a table is built, each of its entries is written once, with the sum that its index stands for.

    cycles : of a proof of two words, a whole table and the beginning of the next, which finds nothing of the one before: `take` sets every register.
    """

    def __init__(self, group_size: int, bits: int = 8, *, arbitrary: bool = False):
        super().__init__(arbitrary=arbitrary)
        self.size, self.bits = group_size, bits
        self.config = scaled(group_size, 2)
        self.cycles = 2 + sums(group_size) + 3
        self.name = f"TableBuilder, groups of {group_size}, activations of {bits} bits"

    def build(self, m: Module, monitor: Monitor) -> None:
        c, size, bits = self.config, self.size, self.bits
        m.submodules.builder = b = TableBuilder(c)
        shift, take = self.free(1, "shift"), self.free(1, "take")
        numbers = [self.free(bits, f"activation_{i}") for i in range(c.word)]
        word = Cat(Cat(n[: bits - 1], n[-1].replicate(9 - bits)) for n in numbers)
        m.d.comb += [b.word.eq(word), b.shift.eq(shift), b.take.eq(take)]

        # The surroundings: a whole tile is in place before it is taken, and nothing is taken while a table is built but with its last entry.
        columns = c.beat_weights
        words = columns // c.word
        arrived = Signal(range(words + 1))
        with m.If(shift):
            m.d.sync += arrived.eq(Mux(arrived == words, words, arrived + 1))
        building, left = Signal(), Signal(range(sums(size) + 1))
        monitor.assume(~take | ((arrived == words) & (~building | (left == 1))))
        with m.If(take):
            m.d.sync += [building.eq(1), left.eq(sums(size))]
        with m.Elif(building):
            m.d.sync += [left.eq(left - 1), building.eq(left != 1)]
        arriving = [Signal(8, name=f"arriving_{i}") for i in range(columns)]
        tile = [Signal(8, name=f"own_tile_{i}") for i in range(columns)]
        with m.If(shift):
            m.d.sync += [a.eq(n) for a, n in zip(arriving, [*arriving[c.word :], *_bytes(word)], strict=True)]
        with m.If(take):
            m.d.sync += [t.eq(a) for t, a in zip(tile, arriving, strict=True)]

        monitor.claim("entries are written for as many cycles as there are", b.building == building)
        monitor.claim("the last of them is told", b.last == (building & (left == 1)))
        monitor.claim("no entry is written that no index stands for", ~building | (b.entry < sums(size)))
        # Each of them: one that is chosen at the start.
        watched, chosen, started, seen = self.free(len(b.entry), "watched"), Signal(len(b.entry)), Signal(), Signal()
        m.d.sync += started.eq(1)
        with m.If(~started):
            m.d.sync += chosen.eq(watched)
        hit = building & (b.entry == chosen)
        with m.If(take):
            m.d.sync += seen.eq(0)
        with m.Elif(hit):
            m.d.sync += seen.eq(1)
        monitor.claim("an entry is written once", ~(hit & seen))
        monitor.claim("and none is left out", ~(building & (left == 1) & started & (chosen < sums(size))) | seen | hit)
        for g, members in enumerate(table_columns(c)):
            total = Signal(16, name=f"total_{g}")
            with m.Switch(b.entry):
                for entry in range(sums(size)):
                    terms = [Const(1 << len(b.value[g]) - 1, 16)]
                    for digit, column in zip(balanced(entry, size), members, strict=False):
                        if digit:
                            value = tile[column].as_signed()
                            terms.append(value if digit > 0 else -value)
                    with m.Case(entry):
                        m.d.comb += total.eq(sum(terms[1:], terms[0]))
            monitor.claim(f"table {g}: an entry is its sum", ~building | (total == b.value[g]))


def _bytes(word: Value) -> list[Value]:
    return [word[i : i + 8] for i in range(0, len(word), 8)]
