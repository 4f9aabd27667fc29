"""Packed ternary weights to table indices."""

from __future__ import annotations

from functools import cache

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tellme.golden.config import AcceleratorConfig
from tellme.golden.formats.grouped_ternary import SCALE, TRIT_BYTES, UNIT_BYTES
from tellme.golden.formats.packed_ternary import TRITS_PER_BYTE
from tellme.golden.ternary import LARGEST_SCALE
from tellme.hw.pipeline import delay_line, register

CODES = 3**TRITS_PER_BYTE
"""Codes of a byte that stand for weights; the others are errors."""


def grouping(beat_bytes: int, group_size: int) -> list[tuple[int, ...]]:
    """Which columns of a K tile share a lookup table.

    A table may sum any `group_size` columns. First come, byte by byte, the groups that lie inside one byte (its highest
    trits), because their index is a function of eight bits; then the trits left over, in order. The last may be short.

    Returns
    -------
    Column numbers (5 * byte + trit) of each group, lowest index digit first; config.groups of them, every column once.
    """
    left = TRITS_PER_BYTE % group_size
    groups = [
        tuple(TRITS_PER_BYTE * byte + first + j for j in range(group_size))
        for byte in range(beat_bytes)
        for first in range(left, TRITS_PER_BYTE, group_size)
    ]
    rest = [TRITS_PER_BYTE * byte + j for byte in range(beat_bytes) for j in range(left)]
    groups += [tuple(rest[i : i + group_size]) for i in range(0, len(rest), group_size)]
    return groups


def unit_bytes(config: AcceleratorConfig) -> list[range]:
    """Bytes of a beat that hold weights, by units: those of a group of weights with a scale of their own, or all."""
    if not config.packing.group:
        return [range(config.beat_bytes)]
    return [range(at, at + TRIT_BYTES) for at in range(0, config.beat_bytes, UNIT_BYTES)]


def table_columns(config: AcceleratorConfig) -> list[tuple[int, ...]]:
    """Columns of a K tile that share each lookup table, as `grouping`; in a unit, from its first column on.

    The last trit of a unit of the format `grouped` has no column: its table sums one activation less.
    """
    group = config.packing.group
    if not group:
        return grouping(config.beat_bytes, config.group_size)
    inside = [tuple(c for c in g if c < group) for g in grouping(TRIT_BYTES, config.group_size)]
    return [tuple(group * u + c for c in g) for u in range(len(unit_bytes(config))) for g in inside]


def entries(group_size: int) -> int:
    """Entries of a symmetric table: the zero sum, and one of each pair of opposite sums."""
    return (3**group_size + 1) // 2


def index_bits(group_size: int) -> int:
    """Bits of a table index."""
    return ceil_log2(entries(group_size))


def index_of(weights: tuple[int, ...]) -> tuple[int, int]:
    """(index, negate) of a group's weights, lowest digit first: index = |sum w_j 3^j|, negate when it is negative."""
    v = sum(w * 3**j for j, w in enumerate(weights))
    return abs(v), int(v < 0)


@cache
def _trits(byte: int) -> tuple[int, ...]:
    return tuple(byte // 3**j % 3 for j in range(TRITS_PER_BYTE))


class ByteDecoder(wiring.Component):
    """One byte to the indices of the groups inside it and the trits that are left over. Combinational.

    Parameters
    ----------
    group_size : weights of a group, 2..5.

    Interface attributes
    --------------------
    byte : the packed byte.
    index, negate : one per group inside the byte.
    rest : left-over trits, 0, 1, 2 for the weights -1, 0, 1.
    bad : the byte is no code (above 242); the other outputs then say weight zero.
    """

    def __init__(self, *, group_size: int) -> None:
        self._size = group_size
        self._inside = TRITS_PER_BYTE // group_size
        self._left = TRITS_PER_BYTE - self._inside * group_size
        members = {
            "byte": In(8),
            "index": Out(index_bits(group_size)).array(self._inside),
            "negate": Out(1).array(self._inside),
            "bad": Out(1),
        }
        if self._left:
            members["rest"] = Out(2).array(self._left)
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        fields = [s for i in range(self._inside) for s in (self.index[i], self.negate[i])]
        fields += list(self.rest) if self._left else []
        fields.append(self.bad)
        # Functions of six bits (one LUT each), chosen from by the other two: 33 LUT with groups of three, the highest
        # trits in a group and the lowest bits choosing, against 61 for one case over the byte (Yosys, xcup).
        width = sum(len(f) for f in fields)
        quarter = Signal(4 * width)
        with m.Switch(self.byte[2:]):
            for high in range(64):
                with m.Case(high):
                    m.d.comb += quarter.eq(sum(self._result(4 * high + low) << low * width for low in range(4)))
        m.d.comb += Cat(*fields).eq(quarter.word_select(self.byte[:2], width))
        return m

    def _result(self, byte: int) -> int:
        bad = int(byte >= CODES)
        trits = _trits(byte) if not bad else (1,) * TRITS_PER_BYTE
        value, lsb = 0, 0
        bits = index_bits(self._size)
        for first in range(self._left, TRITS_PER_BYTE, self._size):
            index, negate = index_of(tuple(t - 1 for t in trits[first : first + self._size]))
            value |= (index | negate << bits) << lsb
            lsb += bits + 1
        for t in trits[: self._left]:
            value |= t << lsb
            lsb += 2
        return value | bad << lsb


class GroupIndexer(wiring.Component):
    """Trits of one group to its index. Combinational.

    Interface attributes
    --------------------
    trits : `count` of 0, 1, 2; 3 does not occur.
    index, negate : the table entry, and whether to subtract it.
    """

    def __init__(self, *, group_size: int, count: int) -> None:
        self._count = count
        super().__init__(
            {"trits": In(2).array(count), "index": Out(index_bits(group_size)), "negate": Out(1)},
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        result = Signal(len(self.index) + 1)
        with m.Switch(Cat(*self.trits)):
            for code in range(3**self._count):
                trits = [code // 3**j % 3 for j in range(self._count)]
                index, negate = index_of(tuple(t - 1 for t in trits))
                with m.Case(sum(t << 2 * j for j, t in enumerate(trits))):
                    m.d.comb += result.eq(index | negate << len(self.index))
        m.d.comb += Cat(self.index, self.negate).eq(result)
        return m


class Unpacker(wiring.Component):
    """A beat to the index of every group; `delay` = 2 cycles.

    Parameters
    ----------
    config : beat size and group size.

    Interface attributes
    --------------------
    beat : packed weights, 8 * beat_bytes bits; byte b in bits [8b, 8b+8).
    index, negate : one per group of `table_columns`, `delay` cycles later.
    scale : of each unit of the format `grouped`, likewise.
    bad : some byte is no code, `delay` cycles later.
    """

    delay = 2

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        members = {
            "beat": In(8 * config.beat_bytes),
            "index": Out(index_bits(config.group_size)).array(config.groups),
            "negate": Out(1).array(config.groups),
            "bad": Out(1),
        }
        if config.packing.group:
            members["scale"] = Out(range(LARGEST_SCALE + 1)).array(len(unit_bytes(config)))
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        found: list[tuple[Value, Value]] = []
        bad: list[Value] = []
        for unit, numbers in enumerate(unit_bytes(self._config)):
            found += self._unit(m, unit, numbers, bad)
        assert len(found) == self._config.groups
        for g, (index, negate) in enumerate(found):
            m.d.comb += [
                self.index[g].eq(register(m, index, f"index_{g}")),
                self.negate[g].eq(register(m, negate, f"negate_{g}")),
            ]
        m.d.comb += self.bad.eq(register(m, Cat(*bad).any(), "flag"))
        if self._config.packing.group:
            for unit, scale in enumerate(self.scale):
                first = UNIT_BYTES * unit + SCALE.start
                m.d.comb += scale.eq(
                    delay_line(m, self.beat[8 * first : 8 * first + len(scale)], self.delay, f"scale_{unit}")
                )
        return m

    def _unit(self, m: Module, unit: int, numbers: range, bad: list[Value]) -> list[tuple[Value, Value]]:
        """(index, negate) of the groups of a unit, after one register; its bytes that are no codes go to `bad`."""
        size = self._config.group_size
        # The register between bytes and groups also keeps synthesis from merging the two into functions of many bits.
        found: list[tuple[Value, Value]] = []
        rest = []
        for b in numbers:
            decoder = ByteDecoder(group_size=size)
            m.submodules[f"byte_{b}"] = decoder
            m.d.comb += decoder.byte.eq(self.beat[8 * b : 8 * b + 8])
            for i, (index, negate) in enumerate(zip(decoder.index, decoder.negate, strict=True)):
                found.append((register(m, index, f"inside_{b}_{i}"), register(m, negate, f"inside_negate_{b}_{i}")))
            bad.append(register(m, decoder.bad, f"bad_{b}"))
            if TRITS_PER_BYTE % size:
                rest += [register(m, t, f"rest_{b}_{j}") for j, t in enumerate(decoder.rest)]
        for i in range(0, len(rest), size):
            trits = rest[i : i + size]
            indexer = GroupIndexer(group_size=size, count=len(trits))
            m.submodules[f"across_{unit}_{i // size}"] = indexer
            m.d.comb += [p.eq(t) for p, t in zip(indexer.trits, trits, strict=True)]
            found.append((indexer.index, indexer.negate))
        return found
