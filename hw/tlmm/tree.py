"""The sum over all groups of a beat, for every lane."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from tellme.golden.arith import ceil_div
from tellme.hw.pipeline import delay_line, register

FAN = 4
"""Terms of the shared correction that are added between registers."""

_CHUNK = 6
"""Sign bits that one LUT6 level counts."""


def _width(groups: int, width: int) -> int:
    """Bits of a sum: it may be as large as groups * 2^(width-1)."""
    return width + bits_for(groups)


def _errors(groups: int, width: int) -> tuple[list[int], int]:
    """How much the root is off: sum = (root ^ root's sign) + sum over groups of weight * sign + constant."""
    # The complement of an entry is one less than its opposite, and an entry has an offset of half its range.
    weights, constant = [1] * groups, -groups << (width - 1)
    nodes = [(g, width) for g in range(groups)]
    while len(nodes) > 1:
        above = []
        for (a, wide), (_, narrow) in zip(nodes[::2], nodes[1::2], strict=False):
            # Nothing is wrong when the left sign is set: both complements cancel. Else the node is too large by this.
            excess = (1 << wide) - (1 << narrow) + 1
            weights[a] += excess
            constant -= excess
            above.append((a, wide + 1))
        nodes = above + nodes[len(above) * 2 :]
    # The root subtracts a complement, too; it may be a bit narrower than the sum.
    return weights, constant - 1 + (1 << nodes[0][1]) % (1 << _width(groups, width))


def _chunks(groups: int, width: int) -> list[tuple[int, list[int]]]:
    """Sign bits of equal weight that are counted together: (weight, groups)."""
    classes: dict[int, list[int]] = {}
    for g, w in enumerate(_errors(groups, width)[0]):
        if w:
            classes.setdefault(w, []).append(g)
    return [(w, c[i : i + _CHUNK]) for w, c in classes.items() for i in range(0, len(c), _CHUNK)]


def _stages(groups: int, width: int) -> tuple[int, int]:
    """Registers in the lanes' trees and in the correction, before they meet."""
    correction = 1
    parts = len(_chunks(groups, width))
    while parts > 1:
        parts = ceil_div(parts, FAN)
        correction += 1
    return ceil_log2(groups), correction


def tree_delay(groups: int, width: int) -> int:
    """Cycles from the entries of a beat to their sums: usually 1 + ceil(log2(groups))."""
    return 1 + max(_stages(groups, width))


class _Node:
    """A partial sum of one lane or, for `signs`, of the sign bits: see AdderTree."""

    def __init__(self, values: list[Value], width: int, sign: Value, first: int) -> None:
        self.values, self.width, self.sign, self.first = values, width, sign, first


class AdderTree(wiring.Component):
    """Sum over groups of +-value, per lane: `sums[l] = sum_g (-1)^negate[g] * (value[g][l] - 2^(width-1))`.

    The sign bits are shared by all lanes, so what they cost is moved out of the lanes. Values are unsigned with an
    offset; a subtraction is the addition of the complement without a carry, and a node adds or subtracts its right
    child relative to the left and leaves the left child's sign to its parent. Then a lane's adder of w-bit values is w
    LUTs: no sign extension, no carry in, no separate negation. Each shortcut is off by a constant when a certain sign
    bit is set; the sum of these is one number for all lanes, computed beside the tree and added at its root.

    Parameters
    ----------
    groups, lanes, width : number of tables, lanes, bits of a table entry.

    Interface attributes
    --------------------
    value : [group][lane], unsigned entry.
    negate : [group].
    active : lanes whose sum counts, with the timing of `sums` minus one cycle; the others give 0.
    sums : [lane], signed, `delay` cycles after value and negate.

    Attributes
    ----------
    delay : tree_delay(groups, width).
    width : of a sum.
    """

    def __init__(self, *, groups: int, lanes: int, width: int) -> None:
        self._groups, self._lanes, self._entry = groups, lanes, width
        self.width = _width(groups, width)
        self.delay = tree_delay(groups, width)
        super().__init__(
            {
                "value": In(width).array(groups, lanes),
                "negate": In(1).array(groups),
                "active": In(lanes),
                "sums": Out(signed(self.width)).array(lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        nodes = [
            _Node([self.value[g][lane] for lane in range(self._lanes)], self._entry, self.negate[g], g)
            for g in range(self._groups)
        ]
        signs = [n.sign for n in nodes]
        while len(nodes) > 1:
            # A register behind every adder: it costs no LUT, and keeps synthesis from merging adders into compressors.
            above: list[_Node] = []
            for a, b in zip(nodes[::2], nodes[1::2], strict=False):
                same = Signal(name=f"same_{a.first}_{a.width}")
                m.d.comb += same.eq(~(a.sign ^ b.sign))
                # x +- y as x - ~(-+y): a subtraction, because synthesis may swap the operands of an addition, and the
                # operand that feeds the carry chain directly must be the one without the exclusive or. The leading one
                # keeps the difference positive.
                sums = [
                    Cat(x, C(1, 1)) - (y ^ same.replicate(b.width)) for x, y in zip(a.values, b.values, strict=True)
                ]
                sums = [s[: a.width + 1] for s in sums]
                above.append(_Node(sums, a.width + 1, a.sign, a.first))
            nodes = above + nodes[len(above) * 2 :]
            for n in nodes:
                n.values = [register(m, v, "part") for v in n.values]
                n.sign = register(m, n.sign, "sign")
        root = nodes[0]
        tree_stages, correction_stages = _stages(self._groups, self._entry)
        correction = self._correction(m, signs)
        correction = delay_line(m, correction, self.delay - 1 - correction_stages, "correction_late")
        waits = self.delay - 1 - tree_stages
        sign = delay_line(m, root.sign, waits, "sign_late")
        for lane, value in enumerate(root.values):
            value = delay_line(m, value, waits, f"part_late_{lane}")
            total = Signal(signed(self.width), name=f"total_{lane}", reset_less=True)
            m.d.sync += total.eq(correction - (value ^ (~sign).replicate(root.width)))
            with m.If(~self.active[lane]):
                m.d.sync += total.eq(0)
            m.d.comb += self.sums[lane].eq(total)
        return m

    def _correction(self, m: Module, signs: list[Signal]) -> Value:
        """Sum of weight * sign and of the offsets, after the registers that `_stages` counts."""
        _, offset = _errors(self._groups, self._entry)
        parts: list[Value] = []
        for w, members in _chunks(self._groups, self._entry):
            # A function of six bits, written as one: as a count and a product it is adders, or even a DSP multiplier.
            base = 0 if parts else offset
            values = [base + w * code.bit_count() for code in range(1 << len(members))]
            count = Signal(range(min(values), max(values) + 1), name=f"weighted_{members[0]}")
            with m.Switch(Cat(signs[g] for g in members)):
                for code, value in enumerate(values):
                    with m.Case(code):
                        m.d.comb += count.eq(value)
            parts.append(register(m, count, "count"))
        while len(parts) > 1:
            parts = [
                register(m, sum(parts[i + 1 : i + FAN], parts[i]), "correction") for i in range(0, len(parts), FAN)
            ]
        return parts[0]
