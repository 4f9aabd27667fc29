"""The sum over all groups of a beat, for every lane."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

LEVELS = 2
"""Adder levels between registers."""

_CHUNK = 6
"""Sign bits that one LUT6 level counts."""


class _Node:
    """A partial sum of one lane or, for `signs`, of the sign bits: see AdderTree."""

    def __init__(self, values: list[Value], width: int, sign: Value, first: int) -> None:
        self.values, self.width, self.sign, self.first = values, width, sign, first


class AdderTree(wiring.Component):
    """Sum over groups of +-value, per lane: `sums[l] = sum_g (-1)^negate[g] * (value[g][l] - 2^(width-1))`.

    The sign bits are shared by all lanes, so what they cost is moved out of the lanes. Values are unsigned with an offset; a
    subtraction is the addition of the complement without a carry, and a node adds or subtracts its right child
    relative to the left and leaves the left child's sign to its parent. Then a lane's adder of w-bit values is w LUTs: no sign
    extension, no carry in, no separate negation. Each shortcut is off by a constant when a certain sign bit is set; the sum of these
    is one number for all lanes, computed beside the tree and added at its root.

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
    delay : cycles, 2 + ceil(log2(groups)) / LEVELS rounded up (the first register holds the entries).
    width : of a sum.
    """

    def __init__(self, *, groups: int, lanes: int, width: int) -> None:
        self._groups, self._lanes, self._entry = groups, lanes, width
        self.delay = 2 + -(-ceil_log2(groups) // LEVELS)
        self.width = width + ceil_log2(groups)
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
        serial = 0

        def registered(value: Value, name: str) -> Signal:
            nonlocal serial
            serial += 1
            r = Signal(value.shape(), name=f"{name}_{serial}", reset_less=True)
            m.d.sync += r.eq(value)
            return r

        nodes = [
            _Node(
                [registered(self.value[g][lane], "leaf") for lane in range(self._lanes)],
                self._entry,
                registered(self.negate[g], "sign"),
                g,
            )
            for g in range(self._groups)
        ]
        signs = [n.sign for n in nodes]
        # The sum is root ^ sign + correction; the correction is a constant plus these multiples of the sign bits.
        weight = [1] * self._groups
        stages = 1
        level = 0
        while len(nodes) > 1:
            for _ in range(LEVELS):
                level += 1
                above: list[_Node] = []
                for a, b in zip(nodes[::2], nodes[1::2], strict=False):
                    width = max(a.width, b.width) + 1
                    differ = Signal(name=f"differ_{level}_{a.first}")
                    m.d.comb += differ.eq(a.sign ^ b.sign)
                    sums = []
                    for lane, (x, y) in enumerate(zip(a.values, b.values, strict=True)):
                        s = Signal(width, name=f"sum_{level}_{a.first}_{lane}")
                        m.d.comb += s.eq(x + (y ^ differ.replicate(b.width)))
                        sums.append(s)
                    # ~(x + y') = (~x + y) + 2^width - 2^wa - 2^wb + 1: what the parent gets wrong when a.sign is set.
                    weight[a.first] -= (1 << width) - (1 << a.width) - (1 << b.width) + 1
                    above.append(_Node(sums, width, a.sign, a.first))
                if len(nodes) % 2:
                    above.append(nodes[-1])
                nodes = above
            for n in nodes:
                n.values = [registered(v, "part") for v in n.values]
                n.sign = registered(n.sign, "sign")
            stages += 1
        root = nodes[0]
        correction, late = self._correction(m, signs, weight, registered)
        while late < stages:
            correction, late = registered(correction, "correction"), late + 1
        while stages < late:
            root.values = [registered(v, "part") for v in root.values]
            root.sign = registered(root.sign, "sign")
            stages += 1
        for lane, value in enumerate(root.values):
            total = Signal(signed(self.width), name=f"total_{lane}", reset_less=True)
            m.d.sync += total.eq((value ^ root.sign.replicate(root.width)) + correction)
            with m.If(~self.active[lane]):
                m.d.sync += total.eq(0)
            m.d.comb += self.sums[lane].eq(total)
        stages += 1
        assert stages == self.delay, f"the tree has {stages} register stages, not {self.delay}"
        return m

    def _correction(self, m: Module, signs: list[Signal], weight: list[int], registered) -> tuple[Value, int]:
        """Sum of weight * sign minus the offsets, modulo 2^width; and the register stages it took (leaf stage included)."""
        modulus = 1 << self.width
        offset = Const(-self._groups << (self._entry - 1), signed(self.width + 1))
        parts: list[Value] = []
        classes: dict[int, list[Signal]] = {}
        for s, w in zip(signs, weight, strict=True):
            if w:
                classes.setdefault(w, []).append(s)
        for w, members in classes.items():
            for i in range(0, len(members), _CHUNK):
                chunk = members[i : i + _CHUNK]
                count: Value = chunk[0]
                for s in chunk[1:]:
                    count = count + s
                parts.append(registered((registered_width(count, len(chunk)) * w), "count"))
        stages = 2
        parts.append(offset)
        while len(parts) > 1:
            parts = [
                registered(sum(parts[i + 1 : i + 1 << LEVELS], parts[i]), "correction")
                for i in range(0, len(parts), 1 << LEVELS)
            ]
            stages += 1
        del modulus
        return parts[0], stages
