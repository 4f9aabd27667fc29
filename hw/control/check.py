"""Looks at every descriptor of a program before the first is executed."""

from __future__ import annotations

from functools import reduce
from operator import add

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.check import HEAD_DIM_MULTIPLE, max_kv_heads
from tellme.golden.config import CHUNK, MAX_GROUP, AcceleratorConfig, clog2
from tellme.golden.kv import KvGeometry
from tellme.golden.layout import ROW_MULTIPLE
from tellme.golden.program import DESCRIPTOR_BYTES, Kind, Opcode
from tellme.golden.registers import MAX_SLOTS
from tellme.hw.control.descriptor import field


def _log2(n: int) -> int:
    return n.bit_length() - 1


def _times(a: Value, b: Value) -> Value:
    """Product with a short factor, in logic: a multiplication would take a DSP."""
    terms = [Cat(Const(0, i), a & bit.replicate(len(a))) if i else a & bit.replicate(len(a)) for i, bit in enumerate(b)]
    return reduce(add, terms)


class ProgramCheck(wiring.Component):
    """Finds the first descriptor that cannot be executed. Golden: `golden.check.problem`, which has the rules.

    A descriptor takes 7 cycles with its read; an ATTENTION 9 more, and a cycle for every significant bit of the blocks
    of a slot, of kv_heads and of `slots` (`expected_cycles`).

    Interface attributes
    --------------------
    start : pulse; `length`, `context`, `slots` stay stable until `busy` falls. context : positions of a slot, at least 1.
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
                "context": In(clog2(config.max_context + 1)),
                "slots": In(clog2(MAX_SLOTS + 1)),
                "busy": Out(1),
                "bad": Out(1),
                "index": Out(range(config.max_descriptors + 1)),
                "request": Out(1),
                "valid": In(1),
                "descriptor": In(8 * DESCRIPTOR_BYTES),
            }
        )

    @staticmethod
    def expected_cycles(
        config: AcceleratorConfig, *, descriptors: int, attentions: int, kv_heads: int, context: int, slots: int
    ) -> int:
        """Cycles of `busy` for so many descriptors, some of them ATTENTION; a read may take a cycle more or less."""
        factors = (-(-context // config.key_block), kv_heads, slots)
        return 7 * descriptors + attentions * (9 + sum(f.bit_length() for f in factors))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        d = Signal(8 * DESCRIPTOR_BYTES, reset_less=True)

        def f(opcode: Opcode, name: str) -> Value:
            return field(d, opcode, name)

        # ---- first cycle: what kind it is, and numbers made of fields ----------------------------
        # Sums and products are of as many bits as a field within its limits has: beyond, its own rule refuses.
        is_end, load, linear, attend, head, known = (
            Signal(name=n) for n in "end load linear attend head known".split()
        )
        qkv, residual, gate = (Signal(name=n) for n in ("qkv", "residual", "gate"))
        opcode, kind = f(Opcode.LOAD, "opcode"), f(Opcode.LINEAR, "kind")
        m.d.sync += [
            is_end.eq(opcode == Opcode.END),
            load.eq(opcode == Opcode.LOAD),
            linear.eq(opcode == Opcode.LINEAR),
            attend.eq(opcode == Opcode.ATTENTION),
            head.eq(opcode == Opcode.HEAD),
            known.eq(opcode <= max(Opcode)),
            qkv.eq((opcode == Opcode.LINEAR) & (kind == Kind.QKV)),
            residual.eq((opcode == Opcode.LINEAR) & (kind == Kind.RESIDUAL)),
            gate.eq((opcode == Opcode.LINEAR) & (kind != Kind.QKV) & (kind != Kind.RESIDUAL)),
        ]
        inputs, rows = f(Opcode.LINEAR, "inputs"), f(Opcode.LINEAR, "rows")
        head_dim, heads, kv_heads = (f(Opcode.ATTENTION, n) for n in ("head_dim", "heads", "kv_heads"))
        tiles = Signal(16)
        m.d.sync += tiles.eq(Mux(opcode == Opcode.HEAD, f(Opcode.HEAD, "tiles"), f(Opcode.LINEAR, "tiles")))
        units = _log2(HEAD_DIM_MULTIPLE)
        dims = Signal(range(c.max_head_dim // HEAD_DIM_MULTIPLE + 1))  # of a head, in units of 32
        few_heads = heads[: clog2(c.max_heads + 1)]
        few_kv_heads = kv_heads[: clog2(max_kv_heads(c) + 1)]
        group = f(Opcode.ATTENTION, "group")
        grouped = Signal(len(few_kv_heads) + clog2(MAX_GROUP + 1))
        m.d.comb += dims.eq(head_dim[units:])
        m.d.sync += grouped.eq(_times(few_kv_heads, group[: clog2(MAX_GROUP + 1)]))
        q_dims, kv_dims = Signal(len(few_heads) + len(dims)), Signal(len(few_kv_heads) + len(dims))
        word_bits = _log2(c.word)
        x_need, inputs_end = Signal(17), Signal(17)
        m.d.sync += [
            q_dims.eq(_times(few_heads, dims)),
            kv_dims.eq(_times(few_kv_heads, dims)),
            x_need.eq((inputs + (c.word - 1)) >> word_bits),
            inputs_end.eq(inputs + c.beat_weights),
        ]

        # ---- second cycle ------------------------------------------------------------------------
        chosen = Signal(17)  # features that the gain is for
        outputs, need, nothing = Signal.like(chosen), Signal.like(chosen), Signal()
        qkv_dims = Signal(17 - units)
        per_byte = c.weight_format.weights_per_byte
        tile_inputs = Signal(14 + per_byte.bit_length())  # of all tiles, in units of beat_bytes
        m.d.sync += [
            qkv_dims.eq(q_dims + (kv_dims << 1)),
            tile_inputs.eq(_times(tiles[:14], Const(per_byte))),
            outputs.eq(chosen),
            need.eq((chosen + (c.word - 1)) >> word_bits),
            nothing.eq(chosen == 0),
        ]
        with m.If(load):
            m.d.comb += chosen.eq(inputs)
        with m.If(residual):
            m.d.comb += chosen.eq(rows)
        with m.If(gate):
            m.d.comb += chosen.eq(rows[1:])
        with m.If(attend):
            m.d.comb += chosen.eq(q_dims << units)

        # ---- third cycle: the rules --------------------------------------------------------------
        rules: list[Value] = []

        def refuse(when: Value, condition: Value) -> None:
            flag = Signal(name=f"rule_{len(rules)}")
            m.d.sync += flag.eq(when & condition)
            rules.append(flag)

        def refuse_unless_multiple(when: Value, value: Value, multiple: int, most: int) -> None:
            refuse(when, (value[: _log2(multiple)] != 0) | (value == 0))
            if most < (1 << len(value)) - 1:
                refuse(when, value > most)

        features, hidden = Signal(16), Signal(16)  # what earlier descriptors left, 0: nothing
        rope = Signal(16)
        layer_heads = Signal(32)  # word of head_dim, heads, kv_heads of the QKV layer before, 0: none
        word = Cat(head_dim, heads, kv_heads)

        refuse(Const(1), ~known)
        # the gain
        gain, gain_beats = f(Opcode.LOAD, "gain_out"), f(Opcode.LOAD, "gain_beats")
        none = Signal()  # no gain is asked for, or none can be
        m.d.comb += none.eq(~gain | nothing)
        refuse(~is_end, none & (gain | (gain_beats != 0)))
        refuse(~is_end & ~none, gain_beats != need)
        # LOAD
        refuse_unless_multiple(load, inputs, CHUNK, c.max_hidden)
        refuse(load, f(Opcode.LOAD, "x_beats") != x_need)
        refuse(load, f(Opcode.LOAD, "rope_beats") != head_dim >> word_bits)
        with_heads = Signal()
        m.d.comb += with_heads.eq(qkv | attend)
        refuse_unless_multiple(load | with_heads, head_dim, HEAD_DIM_MULTIPLE, c.max_head_dim)
        # LINEAR, and the inputs of HEAD
        quantised = Signal()
        m.d.comb += quantised.eq(linear | head)
        width_bits = _log2(c.beat_bytes)
        refuse(quantised, (inputs == 0) | (inputs != features))
        refuse(quantised, (tile_inputs << width_bits) < inputs)
        refuse(quantised, (tile_inputs << width_bits) >= inputs_end)
        refuse(quantised, tiles > c.max_features // c.beat_weights)
        refuse(qkv, tiles > c.query_offset // c.beat_weights)
        refuse_unless_multiple(linear, rows, ROW_MULTIPLE, (1 << 16) - 1)
        refuse_unless_multiple(linear, f(Opcode.LINEAR, "block_rows"), ROW_MULTIPLE, c.block_rows)
        refuse(residual, rows != hidden)
        if c.max_features < 1 << 15:
            refuse(gate, rows[1:] > c.max_features)
        # heads
        refuse(with_heads, (heads == 0) | (heads > c.max_heads))
        refuse(with_heads, (kv_heads == 0) | (kv_heads > max_kv_heads(c)))
        refuse(with_heads, q_dims > c.query_offset >> units)
        refuse(with_heads, kv_dims > c.max_kv_dim >> units)
        refuse(qkv, rows != qkv_dims << units)
        if c.max_features < 1 << 16:
            refuse(qkv, rows > c.max_features)
        refuse(qkv, head_dim != rope)
        # ATTENTION
        refuse(attend, (group == 0) | (group > MAX_GROUP))
        refuse(attend, grouped != heads)
        refuse(attend, word != layer_heads)
        # HEAD
        blocks, vocabulary = f(Opcode.HEAD, "blocks"), f(Opcode.HEAD, "rows")
        stride = f(Opcode.HEAD, "logits_stride")
        refuse(head, (blocks == 0) | (vocabulary == 0))
        refuse(head, vocabulary > blocks << _log2(c.key_block))
        refuse(head, (inputs[: _log2(c.cell)] != 0) | (inputs > c.max_hidden))
        refuse(head, stride < blocks << _log2(c.key_block // c.word))
        logits_end = Signal(33 + _log2(c.lanes))
        m.d.sync += logits_end.eq(f(Opcode.HEAD, "logits_address") + (stride << _log2(c.lanes)))
        refuse(head, self._beyond(logits_end))

        # ---- products of an ATTENTION, a bit of a factor a cycle ---------------------------------
        cells = head_dim[_log2(c.cell) :][: clog2(c.max_head_dim // c.cell + 1)]
        block_beats, slot_blocks = Signal(16), Signal(range(c.max_context // c.key_block + 1))
        m.d.sync += [
            block_beats.eq(KvGeometry(c).block_stride(cells)),
            slot_blocks.eq((self.context + (c.key_block - 1)) >> _log2(c.key_block)),
        ]
        head_stride, slot_stride = f(Opcode.ATTENTION, "head_stride"), f(Opcode.ATTENTION, "slot_stride")
        wide = 32 + max(len(self.slots), len(few_kv_heads)) + 1
        total, term, factor = (
            Signal(wide),
            Signal(wide),
            Signal(max(len(self.slots), len(few_kv_heads), len(slot_blocks))),
        )

        def product(name: str, start: Value | int, a: Value, b: Value, wrong: Value, then: str) -> None:
            """States that work out start + a * b and go on, unless `wrong`, of `total`, holds then."""
            outside = Signal(name=f"{name.lower().replace('-', '_')}_outside")
            m.d.sync += outside.eq(wrong)  # of the total a cycle ago
            with m.State(name):
                m.d.sync += [total.eq(start), term.eq(a), factor.eq(b)]
                m.next = f"{name}-Multiply"
            with m.State(f"{name}-Multiply"):
                m.d.sync += [term.eq(term << 1), factor.eq(factor >> 1)]
                with m.If(factor[0]):
                    m.d.sync += total.eq(total + term)
                with m.If(factor == 0):
                    m.next = f"{name}-Judge"
            with m.State(f"{name}-Judge"):
                m.next = then
                with m.If(outside):
                    m.d.sync += self.bad.eq(1)
                    m.next = "Idle"

        any_rule, last = Signal(), Signal()
        m.d.sync += last.eq(self.index + 1 == self.length)
        with m.FSM() as fsm:
            with m.State("Idle"):
                with m.If(self.start):
                    m.d.sync += [
                        self.index.eq(0),
                        self.bad.eq(0),
                        *(s.eq(0) for s in (features, hidden, rope, layer_heads)),
                    ]
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
                m.d.comb += any_rule.eq(Cat(rules).any())
                m.next = "Next"
                with m.If(attend):
                    m.next = "Head-Stride"
                with m.If(is_end):
                    m.next = "Idle"
                with m.If(any_rule):
                    m.d.sync += self.bad.eq(1)
                    m.next = "Idle"
            product("Head-Stride", 0, block_beats, slot_blocks, total > head_stride, "Slot-Stride")
            product("Slot-Stride", 0, head_stride, few_kv_heads, total > slot_stride, "Slots")
            address = f(Opcode.ATTENTION, "kv_address")
            product("Slots", address, slot_stride, self.slots, self._beyond(total), "Next")
            with m.State("Next"):
                with m.If(load):
                    m.d.sync += [hidden.eq(inputs), rope.eq(head_dim)]
                m.d.sync += [features.eq(outputs), layer_heads.eq(Mux(qkv, word, 0)), self.index.eq(self.index + 1)]
                m.next = "Read"
                with m.If(last):
                    m.d.sync += self.bad.eq(1)
                    m.next = "Idle"
        m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))
        return m

    @staticmethod
    def _beyond(end: Value) -> Value:
        """Whether beats up to `end` go beyond what 32-bit addresses name."""
        return (end[33:] != 0) | (end[32] & (end[:32] != 0))
