"""Looks at every descriptor of a program before the first is executed."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.arith import ceil_div
from tellme.golden.check import HEAD_DIM_MULTIPLE, max_kv_heads
from tellme.golden.config import CHUNK, MAX_GROUP, AcceleratorConfig, clog2
from tellme.golden.kv import KvGeometry
from tellme.golden.layout import ROW_MULTIPLE
from tellme.golden.program import Kind, Opcode
from tellme.golden.registers import MAX_SLOTS
from tellme.golden.screen import MAX_CANDIDATES, MAX_PLANES, MAX_ROWS, MULTIPLE
from tellme.hw.control.descriptor import DESCRIPTOR


def _times(a: Value, b: Value) -> Value:
    """Product with a short factor, in logic: a multiplication would take a DSP."""
    terms = [Cat(Const(0, i), a & bit.replicate(len(a))) if i else a & bit.replicate(len(a)) for i, bit in enumerate(b)]
    return reduce(add, terms)


def _beyond(end: Value) -> Value:
    """Whether beats up to `end` go beyond what 32-bit addresses name."""
    return (end[33:] != 0) | (end[32] & (end[:32] != 0))


class _Kinds:
    """First cycle: what kind a descriptor is."""

    def __init__(self, m: Module, d: data.View[data.Layout]):
        self.is_end, self.load, self.linear, self.attend, self.head, self.screen, self.known = (
            Signal(name=n) for n in "end load linear attend head screen known".split()
        )
        self.qkv, self.residual, self.gate = (Signal(name=n) for n in ("qkv", "residual", "gate"))
        opcode, kind = d.shared.opcode, d.linear.kind
        m.d.sync += [
            self.is_end.eq(opcode == Opcode.END),
            self.load.eq(opcode == Opcode.LOAD),
            self.linear.eq(opcode == Opcode.LINEAR),
            self.attend.eq(opcode == Opcode.ATTENTION),
            self.head.eq(opcode == Opcode.HEAD),
            self.screen.eq(opcode == Opcode.SCREEN),
            self.known.eq(opcode <= max(Opcode)),
            self.qkv.eq((opcode == Opcode.LINEAR) & (kind == Kind.QKV)),
            self.residual.eq((opcode == Opcode.LINEAR) & (kind == Kind.RESIDUAL)),
            self.gate.eq((opcode == Opcode.LINEAR) & (kind != Kind.QKV) & (kind != Kind.RESIDUAL)),
        ]
        self.with_heads, self.quantised = Signal(name="with_heads"), Signal(name="quantised")
        m.d.comb += [
            self.with_heads.eq(self.qkv | self.attend),
            self.quantised.eq(self.linear | self.head | self.screen),
        ]


class _Sizes:
    """First and second cycle: numbers made of fields.

    Sums and products are of as many bits as a field within its limits has: beyond, its own rule refuses. Heads' dimensions are
    in units of HEAD_DIM_MULTIPLE, the tiles' inputs in units of beat_bytes.
    """

    unit_bits = exact_log2(HEAD_DIM_MULTIPLE)

    def __init__(self, m: Module, c: AcceleratorConfig, d: data.View[data.Layout], kinds: _Kinds):
        inputs, rows, heads = d.shared.inputs, d.linear.rows, d.shared.heads
        self.tiles = Signal(16)
        m.d.sync += self.tiles.eq(Mux(d.shared.opcode == Opcode.HEAD, d.head.tiles, d.linear.tiles))
        head_units = Signal(range(c.max_head_dim // HEAD_DIM_MULTIPLE + 1))
        few_heads = heads[: clog2(c.max_heads + 1)]
        self.few_kv_heads = few_kv_heads = d.shared.kv_heads[: clog2(max_kv_heads(c) + 1)]
        self.grouped = Signal(len(few_kv_heads) + clog2(MAX_GROUP + 1))
        m.d.comb += head_units.eq(d.shared.head_dim[self.unit_bits :])
        m.d.sync += self.grouped.eq(_times(few_kv_heads, d.attention.group[: clog2(MAX_GROUP + 1)]))
        self.q_dims = Signal(len(few_heads) + len(head_units))
        self.kv_dims = Signal(len(few_kv_heads) + len(head_units))
        word_bits, beat_bits = exact_log2(c.word), exact_log2(c.beat_bytes)
        self.x_need, self.least_inputs, self.most_inputs = Signal(17), Signal(17 - beat_bits), Signal(17 - beat_bits)
        m.d.sync += [
            self.q_dims.eq(_times(few_heads, head_units)),
            self.kv_dims.eq(_times(few_kv_heads, head_units)),
            self.x_need.eq((inputs + (c.word - 1)) >> word_bits),
            self.least_inputs.eq((inputs + (c.beat_bytes - 1)) >> beat_bits),
            self.most_inputs.eq((inputs + (c.beat_weights - 1)) >> beat_bits),
        ]

        chosen = Signal(17)  # features that the gain is for
        self.outputs, self.gain_need, self.nothing = Signal(17), Signal(17), Signal()
        self.qkv_dims = Signal(17 - self.unit_bits)
        per_byte = c.packing.weights_per_byte
        few_tiles = self.tiles[: clog2(ceil_div(c.max_features, c.beat_weights) + 1)]
        self.tile_inputs = Signal(len(few_tiles) + per_byte.bit_length())
        m.d.sync += [
            self.qkv_dims.eq(self.q_dims + (self.kv_dims << 1)),
            self.tile_inputs.eq(_times(few_tiles, Const(per_byte))),
            self.outputs.eq(Mux(kinds.qkv, 0, chosen)),
            self.gain_need.eq((chosen + (c.word - 1)) >> word_bits),
            self.nothing.eq(chosen == 0),
        ]
        with m.If(kinds.load):
            m.d.comb += chosen.eq(inputs)
        with m.If(kinds.residual):
            m.d.comb += chosen.eq(rows)
        with m.If(kinds.qkv):
            m.d.comb += chosen.eq(d.shared.head_dim << 1)  # gains of a query and of a key; its features are attention's
        with m.If(kinds.gate):
            m.d.comb += chosen.eq(rows[1:])
        with m.If(kinds.attend):
            m.d.comb += chosen.eq(self.q_dims << self.unit_bits)
        with m.If(kinds.screen):
            m.d.comb += chosen.eq(inputs)  # which it leaves as they were


class _Left:
    """What descriptors leave for later ones, 0: nothing."""

    def __init__(self) -> None:
        self.features, self.hidden, self.rope = Signal(16), Signal(16), Signal(16)
        self.heads = Signal(34)  # head_dim, heads, kv_heads, k_narrow, v_narrow of the QKV layer before
        self.screens = Signal()  # there was a SCREEN

    def forget(self) -> list[Any]:
        return [s.eq(0) for s in (self.features, self.hidden, self.rope, self.heads, self.screens)]


class _Rules:
    """Third cycle: a flag for every rule."""

    def __init__(self, m: Module):
        self._m = m
        self.flags: list[Value] = []

    def refuse(self, when: Value, condition: Value) -> None:
        flag = Signal(name=f"rule_{len(self.flags)}")
        self._m.d.sync += flag.eq(when & condition)
        self.flags.append(flag)

    def refuse_unless_multiple(self, when: Value, value: Value, multiple: int, most: int) -> None:
        self.refuse(when, (value[: exact_log2(multiple)] != 0) | (value == 0))
        if most < (1 << len(value)) - 1:
            self.refuse(when, value > most)


class _Product:
    """Products of an ATTENTION, a bit of a factor a cycle; `total` is start + a * b at the end.

    Parameters
    ----------
    width : bits of the total. factor_width : of the longest factor.
    bad : set when a total is wrong.
    """

    def __init__(self, m: Module, width: int, factor_width: int, bad: Signal):
        self._m, self._bad = m, bad
        self.total, self._term, self._factor = Signal(width), Signal(width), Signal(factor_width)

    def states(self, name: str, start: Value | int, a: Value, b: Value, wrong: Value, then: str) -> None:
        """States that work out start + a * b and go on, unless `wrong`, of `total`, holds then."""
        m = self._m
        outside = Signal(name=f"{name.lower().replace('-', '_')}_outside")
        m.d.sync += outside.eq(wrong)  # of the total a cycle ago
        with m.State(name):
            m.d.sync += [self.total.eq(start), self._term.eq(a), self._factor.eq(b)]
            m.next = f"{name}-Multiply"
        with m.State(f"{name}-Multiply"):
            m.d.sync += [self._term.eq(self._term << 1), self._factor.eq(self._factor >> 1)]
            with m.If(self._factor[0]):
                m.d.sync += self.total.eq(self.total + self._term)
            with m.If(self._factor == 0):
                m.next = f"{name}-Judge"
        with m.State(f"{name}-Judge"):
            m.next = then
            with m.If(outside):
                m.d.sync += self._bad.eq(1)
                m.next = "Idle"


class ProgramCheck(wiring.Component):
    """Finds the first descriptor that cannot be executed. Golden: `golden.check.problem`, which has the rules.

    A descriptor takes 7 cycles with its read; an ATTENTION 9 more, and a cycle for every significant bit of the blocks
    of a slot, of kv_heads and of `slots` (`expected_cycles`).

    Interface attributes
    --------------------
    start : pulse; `length`, `context`, `slots`, `candidates`, `head_count` stay stable until `busy` falls. context : positions of a slot, at least 1.
    busy : from the cycle after `start` on; `bad` is valid when it has fallen.
    bad : the program cannot run. index : the descriptor it is about, `length` when there is no END.
    request, valid, descriptor : a reader's port of `ProgramMemory`, with the low bits of `index`.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "length": In(16),
                "context": In(clog2(config.most_context + 1)),
                "slots": In(clog2(MAX_SLOTS + 1)),
                "candidates": In(clog2(MAX_CANDIDATES + 1)),
                "head_count": In(clog2(config.lanes) + 1),
                "busy": Out(1),
                "bad": Out(1),
                "index": Out(range(config.max_descriptors + 1)),
                "request": Out(1),
                "valid": In(1),
                "descriptor": In(DESCRIPTOR),
            }
        )

    @staticmethod
    def expected_cycles(
        config: AcceleratorConfig, *, descriptors: int, attentions: int, kv_heads: int, context: int, slots: int
    ) -> int:
        """Cycles of `busy` for so many descriptors, some of them ATTENTION; a read may take a cycle more or less."""
        factors = (ceil_div(context, config.key_block), kv_heads, slots)
        return 7 * descriptors + attentions * (9 + sum(f.bit_length() for f in factors))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        d = Signal(DESCRIPTOR, reset_less=True)
        kinds = _Kinds(m, d)
        sizes = _Sizes(m, self.config, d, kinds)
        left = _Left()
        rules = _Rules(m)
        rules.refuse(Const(1), ~kinds.known)
        wanted = Signal()
        m.d.sync += wanted.eq((self.candidates != 0) & (self.head_count != 0))
        rules.refuse(kinds.is_end, wanted & ~left.screens)
        self._check_gain(m, rules, d, kinds, sizes)
        self._check_load(rules, d, kinds, sizes)
        self._check_linear(rules, d, kinds, sizes, left)
        self._check_heads(rules, d, kinds, sizes, left)
        self._check_head(m, rules, d, kinds)
        self._check_screen(m, rules, d, kinds)
        self._run(m, d, kinds, sizes, left, rules)
        return m

    def _check_gain(self, m: Module, rules: _Rules, d: Any, kinds: _Kinds, sizes: _Sizes) -> None:
        gain, gain_beats = d.shared.gain_out, d.shared.gain_beats
        none = Signal()  # no gain is asked for, or none can be
        m.d.comb += none.eq(~gain | sizes.nothing)
        rules.refuse(~kinds.is_end & ~kinds.screen, none & (gain | (gain_beats != 0)))
        rules.refuse(~kinds.is_end & ~kinds.screen & ~none, gain_beats != sizes.gain_need)

    def _check_load(self, rules: _Rules, d: Any, kinds: _Kinds, sizes: _Sizes) -> None:
        c = self.config
        rules.refuse_unless_multiple(kinds.load, d.load.inputs, CHUNK, c.max_hidden)
        rules.refuse(kinds.load, d.load.x_beats != sizes.x_need)
        rules.refuse(kinds.load, d.load.rope_beats != d.load.head_dim >> exact_log2(c.word))
        rules.refuse_unless_multiple(
            kinds.load | kinds.with_heads, d.shared.head_dim, HEAD_DIM_MULTIPLE, c.max_head_dim
        )

    def _check_linear(self, rules: _Rules, d: Any, kinds: _Kinds, sizes: _Sizes, left: _Left) -> None:
        """LINEAR, and the inputs of HEAD."""
        c = self.config
        inputs, rows = d.shared.inputs, d.linear.rows
        rules.refuse(kinds.quantised, (inputs == 0) | (inputs != left.features))
        rules.refuse(kinds.quantised, sizes.tile_inputs < sizes.least_inputs)
        rules.refuse(kinds.quantised, sizes.tile_inputs > sizes.most_inputs)
        rules.refuse(kinds.quantised, sizes.tiles > ceil_div(c.max_features, c.beat_weights))
        rules.refuse(kinds.qkv, sizes.tiles > ceil_div(c.query_offset, c.beat_weights))
        rules.refuse_unless_multiple(kinds.linear, rows, ROW_MULTIPLE, (1 << 16) - 1)
        rules.refuse_unless_multiple(kinds.linear, d.linear.block_rows, ROW_MULTIPLE, c.block_rows)
        rules.refuse(kinds.residual, rows != left.hidden)
        if c.max_features < 1 << 15:
            rules.refuse(kinds.gate, rows[1:] > c.max_features)

    def _check_heads(self, rules: _Rules, d: Any, kinds: _Kinds, sizes: _Sizes, left: _Left) -> None:
        """Query and KV heads of a QKV layer and of ATTENTION."""
        c, units = self.config, sizes.unit_bits
        heads, kv_heads, rows, group = d.shared.heads, d.shared.kv_heads, d.linear.rows, d.attention.group
        rules.refuse(kinds.with_heads, (heads == 0) | (heads > c.max_heads))
        rules.refuse(kinds.with_heads, (kv_heads == 0) | (kv_heads > max_kv_heads(c)))
        rules.refuse(kinds.with_heads, sizes.q_dims > c.query_offset >> units)
        rules.refuse(kinds.with_heads, sizes.kv_dims > c.max_kv_dim >> units)
        rules.refuse(kinds.qkv, rows != sizes.qkv_dims << units)
        if c.max_features < 1 << 16:
            rules.refuse(kinds.qkv, rows > c.max_features)
        rules.refuse(kinds.qkv, d.linear.head_dim != left.rope)
        if not c.hadamard:
            rules.refuse(kinds.qkv, d.linear.hadamard)
        rules.refuse(kinds.attend, (group == 0) | (group > MAX_GROUP))
        rules.refuse(kinds.attend, sizes.grouped != heads)
        rules.refuse(kinds.attend, self._heads_word(d) != left.heads)
        k_narrow, v_narrow = d.shared.k_narrow, d.shared.v_narrow
        if c.narrow_cache:
            rules.refuse(kinds.with_heads, k_narrow & ~v_narrow)
            rules.refuse(kinds.attend, ~v_narrow & (self.context > c.max_context))
        else:
            rules.refuse(kinds.with_heads, k_narrow | v_narrow)

    def _check_head(self, m: Module, rules: _Rules, d: Any, kinds: _Kinds) -> None:
        """The output head."""
        c, blocks, stride, heads = self.config, d.head.blocks, d.head.logits_stride, kinds.head | kinds.screen
        inputs, vocabulary = d.head.inputs, d.head.rows
        rules.refuse(kinds.head, (blocks == 0) | (vocabulary == 0))
        rules.refuse(kinds.head, vocabulary > blocks << exact_log2(c.key_block))
        rules.refuse(heads, (inputs[: exact_log2(c.cell)] != 0) | (inputs > c.max_hidden))
        rules.refuse(kinds.head, stride < blocks << exact_log2(c.key_block // c.word))
        logits_end = Signal(33 + exact_log2(c.lanes))
        m.d.sync += logits_end.eq(d.head.logits_address + (stride << exact_log2(c.lanes)))
        rules.refuse(heads, _beyond(logits_end))

    def _check_screen(self, m: Module, rules: _Rules, d: Any, kinds: _Kinds) -> None:
        """The screened head, and the candidates that are wanted of it."""
        c, screen, count = self.config, d.screen, self.candidates
        if c.ternary_head:  # some are kept though none are wanted
            count = Mux(screen.exact & (count == 0), MULTIPLE, count)
            rules.refuse(kinds.screen, screen.exact & (screen.planes != 1))
        else:
            rules.refuse(kinds.screen, screen.exact)
        rules.refuse(kinds.screen, d.shared.gain_out | (d.shared.gain_beats != 0))
        rules.refuse(kinds.screen, (screen.planes == 0) | (screen.planes > MAX_PLANES))
        rules.refuse(kinds.screen, (screen.rows == 0) | (screen.rows > MAX_ROWS))
        bad_count, few_rows, short = Signal(), Signal(), Signal()
        held = Signal(len(count) + len(self.head_count))
        m.d.sync += [
            bad_count.eq((count[: exact_log2(MULTIPLE)] != 0) | (count > MAX_CANDIDATES)),
            few_rows.eq((count << 1) > screen.rows),
            short.eq(screen.logits_stride << exact_log2(c.word) < screen.rows),
            held.eq(_times(count, self.head_count)),
        ]
        rules.refuse(kinds.screen, short)
        rules.refuse(kinds.screen & (count != 0), bad_count | few_rows | (held > c.screen_entries))

    @staticmethod
    def _heads_word(d: Any) -> Value:
        return Cat(d.shared.head_dim, d.shared.heads, d.shared.kv_heads, d.shared.k_narrow, d.shared.v_narrow)

    def _run(self, m: Module, d: Any, kinds: _Kinds, sizes: _Sizes, left: _Left, rules: _Rules) -> None:
        """A descriptor after the other: the three cycles, and the products of an ATTENTION."""
        c, attention = self.config, d.attention
        kv = KvGeometry(c)
        cells = kv.cells(attention.head_dim)[: clog2(kv.cells(c.max_head_dim) + 1)]
        block_beats, slot_blocks = Signal(16), Signal(range(c.most_context // c.key_block + 1))
        m.d.sync += [
            block_beats.eq(kv.block_stride(cells, attention.k_narrow, attention.v_narrow)),
            slot_blocks.eq((self.context + (c.key_block - 1)) >> exact_log2(c.key_block)),
        ]
        longest = max(len(self.slots), len(sizes.few_kv_heads))
        product = _Product(m, 32 + longest + 1, max(longest, len(slot_blocks)), self.bad)
        total = product.total

        any_rule, last, last_index = Signal(), Signal(), Signal(16)
        m.d.sync += [last_index.eq(self.length - 1), last.eq(self.index == last_index)]
        with m.FSM() as fsm:
            with m.State("Idle"):
                with m.If(self.start):
                    m.d.sync += [self.index.eq(0), self.bad.eq(0), *left.forget()]
                    m.next = "Read"
            with m.State("Read"):
                m.d.comb += self.request.eq(1)
                with m.If(self.valid):
                    m.d.sync += d.eq(self.descriptor)
                    m.next = "Kind"
            with m.State("Kind"):
                m.next = "Sizes"
            with m.State("Sizes"):
                m.next = "Rules"
            with m.State("Rules"):
                m.next = "Judge"
            with m.State("Judge"):
                m.d.comb += any_rule.eq(Cat(rules.flags).any())
                m.next = "Next"
                with m.If(kinds.attend):
                    m.next = "Head-Stride"
                with m.If(kinds.is_end):
                    m.next = "Idle"
                with m.If(any_rule):
                    m.d.sync += self.bad.eq(1)
                    m.next = "Idle"
            head_stride, slot_stride = attention.head_stride, attention.slot_stride
            product.states("Head-Stride", 0, block_beats, slot_blocks, total > head_stride, "Slot-Stride")
            product.states("Slot-Stride", 0, head_stride, sizes.few_kv_heads, total > slot_stride, "Slots")
            product.states("Slots", attention.kv_address, slot_stride, self.slots, _beyond(total), "Next")
            with m.State("Next"):
                with m.If(kinds.load):
                    m.d.sync += [left.hidden.eq(d.load.inputs), left.rope.eq(d.load.head_dim)]
                m.d.sync += [
                    left.features.eq(sizes.outputs),
                    left.screens.eq(left.screens | kinds.screen),
                    left.heads.eq(Mux(kinds.qkv, self._heads_word(d), 0)),
                    self.index.eq(self.index + 1),
                ]
                m.next = "Read"
                with m.If(last):
                    m.d.sync += self.bad.eq(1)
                    m.next = "Idle"
        m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))
