"""What walks through a pass stands still only while somebody keeps it waiting: sequencer, fetcher, executor and the check of programs.

Memory, units and takers are fair: they answer sometime. A cycle counts only if none of them owes the design anything. Sizes are scaled down.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import TINY, AcceleratorConfig, clog2
from tellme.golden.program import DESCRIPTOR_BYTES, FIELDS, Kind, Opcode
from tellme.hw.control.check import ProgramCheck
from tellme.hw.control.execute import STARTS, UNITS, Executor
from tellme.hw.control.fetch import Fetcher
from tellme.hw.control.sequence import PhaseSequencer
from tests.formal.prover import Bench, Monitor

DESCRIPTOR_GAIN = next(f.start for f in FIELDS[Opcode.LOAD] if f.name == "gain_beats")
"""Lowest bit of the beats of gain."""

SCALED = replace(TINY, lanes=2, attention_lanes=1, key_tile=16, narrow_cache=False)
"""Two lanes of a pass, whose head takes two sweeps; blocks of 16 keys."""


def past(m: Module, value: object, width: int = 1) -> Signal:
    """The value of the cycle before."""
    signal = Signal(width)
    m.d.sync += signal.eq(value)
    return signal


def chosen(bench: Bench, m: Module, width: int, name: str) -> Signal:
    """A number that may be anything and stays what it is from the first cycle on."""
    given, kept, begun = bench.free(width, name), Signal(width, name=f"{name}_kept"), Signal(name=f"{name}_begun")
    out = Signal(width, name=f"{name}_chosen")
    m.d.sync += [begun.eq(1), kept.eq(out)]
    m.d.comb += out.eq(Mux(begun, kept, given))
    return out


def patience(m: Module, waits: Value, moves: Value, most: int) -> Value:
    """Whether in fewer than `most` cycles one after the other nothing `moves`, of those in which it waits for nobody."""
    count = Signal(range(most + 1))
    with m.If(moves):
        m.d.sync += count.eq(0)
    with m.Elif(~waits & (count != most)):
        m.d.sync += count.eq(count + 1)
    return count < most


def lanes_of_a_pass(
    bench: Bench, m: Module, monitor: Monitor, parameters: Any, config: AcceleratorConfig
) -> tuple[Value, list[Signal], Value]:
    """Any lanes at any positions in the first three blocks. Returns (lanes, positions, whether two neighbours share a slot)."""
    lanes, same = chosen(bench, m, clog2(config.lanes) + 1, "lanes"), chosen(bench, m, config.lanes, "same_slot")
    positions = [chosen(bench, m, 6, f"position_{i}") for i in range(config.lanes)]
    monitor.assume((lanes != 0) & (lanes <= config.lanes))
    for p in positions:
        monitor.assume(p <= 2 * config.key_block + 1)
    m.d.comb += [parameters.lanes.eq(lanes), parameters.same_slot.eq(same)]
    m.d.comb += [parameters.position[i].eq(p) for i, p in enumerate(positions)]
    m.d.comb += [parameters.slot[i].eq(i) for i in range(config.lanes)]
    return lanes, positions, same


class SequencerBench(Bench):
    """Any lanes, one or two KV heads, any taker: all phases of an attention come, and then no more."""

    name = "PhaseSequencer, 2 lanes"
    depth = 24
    """Cycles that a bounded proof should look at: the longest pause is 12."""

    def build(self, m: Module, monitor: Monitor) -> None:
        c = SCALED
        m.submodules.sequencer = s = PhaseSequencer(c)
        lanes, positions, same = lanes_of_a_pass(self, m, monitor, s.parameters, c)
        heads = chosen(self, m, 2, "kv_heads")
        monitor.assume((heads == 1) | (heads == 2))
        start, ready = self.free(1, "start"), self.free(1, "ready")
        monitor.assume(~(start & s.busy))
        begun = Signal(2)
        m.d.sync += begun.eq(Mux(begun == 3, 3, begun + 1))
        monitor.assume(~start | (begun == 3))  # lanes are known before
        m.d.comb += [s.kv_heads.eq(heads), s.phases.ready.eq(ready), s.start.eq(start)]

        # Golden: K and V of each group of lanes and KV head are its own keys, then blocks of the cache.
        blocks = [Signal(3, name=f"blocks_{i}") for i in range(c.lanes)]
        m.d.comb += [b.eq((p + (c.key_block - 1)) >> 4) for b, p in zip(blocks, positions, strict=True)]
        assert c.key_block == 16 and c.lanes == 2
        second = (lanes == 2) & ~same[0]
        of_a_head = Signal(6)
        m.d.comb += of_a_head.eq((blocks[0] + 1 + Mux(second, blocks[1] + 1, 0)) << 1)
        expected, taken, working = Signal(7), Signal(7), Signal()
        m.d.comb += expected.eq(Mux(heads == 2, of_a_head << 1, of_a_head))
        phase = s.phases.payload
        moves = s.phases.valid & ready
        with m.If(start):
            m.d.sync += [working.eq(1), taken.eq(0)]
        with m.Elif(moves):
            m.d.sync += taken.eq(taken + 1)
            with m.If(phase.final):
                m.d.sync += working.eq(0)
        monitor.claim("it is busy as long as phases are to come", ~working | s.busy)
        monitor.claim("a phase comes only of an attention that was asked for", ~s.phases.valid | working)
        monitor.claim("there are no more phases than of all groups", ~s.phases.valid | (taken < expected))
        monitor.claim("the final one is the last of them", ~s.phases.valid | (phase.final == (taken + 1 == expected)))
        waits = past(m, s.phases.valid & ~ready)
        monitor.claim("a phase that waits stays", ~waits | s.phases.valid)
        monitor.claim(
            "the next phase comes in time", patience(m, s.phases.valid, moves | start | ~working, 8 + 2 * c.lanes)
        )
        monitor.claim("and then the end", patience(m, Const(0), working | start | ~s.busy, 3))


def _descriptor(bench: Bench, m: Module, widths: dict[str, int]) -> Signal:
    """A descriptor of any opcode whose fields have so many free bits; the others are 0."""
    raw, opcode = Signal(8 * DESCRIPTOR_BYTES), bench.free(3, "opcode")
    values = {name: bench.free(width, name) for name, width in widths.items()}
    with m.Switch(opcode):
        for code, fields in FIELDS.items():
            with m.Case(code):
                for f in fields:
                    if f.name in values:
                        value = values[f.name]
                        m.d.comb += raw[f.start : f.start + f.width].eq(
                            Cat(Const(0, 5), value) if f.name == "head_dim" else value
                        )
        with m.Default():
            pass
    m.d.comb += raw[:3].eq(opcode)
    return raw


class FetcherBench(Bench):
    """Any program, lanes and memory: segments and descriptors follow one another until END.

    Parameters
    ----------
    attends : programs have attention, too; then more happens between two segments, and a proof must look at more cycles.
    """

    WIDTHS = {"gain_beats": 1, "x_beats": 1, "rope_beats": 1, "tiles": 1, "rows": 1, "blocks": 1, "kv_heads": 1, "head_dim": 2, "inputs": 1, "planes": 1}  # fmt: skip

    def __init__(self, attends: bool = True, *, arbitrary: bool = False):
        super().__init__(arbitrary=arbitrary)
        self.attends = attends
        self.name = "Fetcher, 2 lanes" + ("" if attends else ", without attention")
        self.depth = 64 if attends else 40

    def build(self, m: Module, monitor: Monitor) -> None:
        c = SCALED
        m.submodules.fetcher = f = Fetcher(c)
        lanes, _, _ = lanes_of_a_pass(self, m, monitor, f.parameters, c)
        raw = _descriptor(self, m, self.WIDTHS)
        start, ready, valid, loaded = (self.free(1, n) for n in ("start", "ready", "valid", "loaded"))
        count, wanted = chosen(self, m, 2, "head_count"), chosen(self, m, 1, "candidates")
        chosen_valid, chosen_row, chosen_last = (self.free(1, n) for n in ("chosen", "row", "last"))
        monitor.assume(count <= c.lanes)
        monitor.assume(~valid | f.request)
        monitor.assume(~(start & f.busy))
        # What the check of programs sees to: heads of an attention have dimensions, and there are some.
        attention = raw[:3] == Opcode.ATTENTION
        dims = self._inputs["head_dim"]
        monitor.assume(~(valid & attention) | (((dims == 1) | (dims == 2)) & self._inputs["kv_heads"]))
        m.d.comb += [
            f.start.eq(start), f.segments.ready.eq(ready), f.valid.eq(valid), f.descriptor.as_value().eq(raw), f.program_ready.eq(loaded), f.program_length.eq(1),
            f.head_count.eq(count), f.candidates.eq(wanted << 4), f.chosen.valid.eq(chosen_valid), f.chosen.payload.row.eq(chosen_row), f.chosen.payload.last.eq(chosen_last),
        ]  # fmt: skip
        sent = f.segments.valid & ready
        given = f.chosen.valid & f.chosen.ready
        waits = (f.segments.valid & ~ready) | (f.request & ~valid) | (f.chosen.ready & ~f.chosen.valid)
        # Before the first descriptor it waits for the program, whose segment it has sent.
        asked, read = Signal(), Signal()
        with m.If(start):
            m.d.sync += [asked.eq(0), read.eq(0)]
        with m.Else():
            with m.If(sent):
                m.d.sync += asked.eq(1)
            with m.If(f.request):
                m.d.sync += read.eq(1)
        waits = waits | (asked & ~read & ~loaded)
        moves = sent | (f.request & valid) | given | start | ~f.busy
        monitor.claim("the program's segment comes first", ~f.request | asked)
        monitor.claim("no descriptor is asked for before the program has come", ~(f.request & ~read) | past(m, loaded))
        monitor.claim("a segment has beats", ~f.segments.valid | (f.segments.payload.beats != 0))
        held = past(m, f.segments.valid & ~ready)
        payload = f.segments.payload.as_value()
        monitor.claim(
            "a segment that waits stays", ~held | (f.segments.valid & (payload == past(m, payload, len(payload))))
        )
        if not self.attends:
            monitor.assume(~(valid & attention))
        # A LOAD may read nothing of two lanes; an attention at position 0 neither, but has phases of own keys for two of them, twice.
        monitor.claim("it goes on", patience(m, waits, moves, 48 if self.attends else 28))

        # As many segments as golden has of a LOAD, a LINEAR, a HEAD.
        def given_bit(name: str) -> Value:
            return self._inputs[name][0]

        segments, due, counted = Signal(4), Signal(4), Signal()
        with m.If(f.request & valid):
            m.d.sync += [segments.eq(0), counted.eq(0), due.eq(0)]
            with m.Switch(raw[:3]):
                with m.Case(Opcode.LOAD):
                    m.d.sync += [
                        counted.eq(1),
                        due.eq(given_bit("gain_beats") + given_bit("x_beats") + Mux(given_bit("rope_beats"), lanes, 0)),
                    ]
                with m.Case(Opcode.LINEAR):
                    m.d.sync += [
                        counted.eq(1),
                        due.eq(given_bit("gain_beats") + (given_bit("tiles") & given_bit("rows"))),
                    ]
                with m.Case(Opcode.HEAD):
                    m.d.sync += [counted.eq(1), due.eq(Mux(given_bit("blocks") & ~wanted, count, 0))]
        with m.Elif(start):
            m.d.sync += counted.eq(0)
        with m.Elif(sent):
            m.d.sync += segments.eq(segments + 1)
        monitor.claim("a LOAD, a LINEAR, a HEAD have their segments", ~(counted & f.request) | (segments == due))
        ended = Signal()
        with m.If(start):
            m.d.sync += ended.eq(0)
        with m.Elif(f.request & valid & (raw[:3] == Opcode.END)):
            m.d.sync += ended.eq(1)
        monitor.claim("nothing is asked for after END", ~ended | (~f.segments.valid & ~f.request & ~f.chosen.ready))
        monitor.claim("END ends it", ~past(m, ended & ~start) | ~ended | ~f.busy)


class _Checked(wiring.Component):
    """A check of programs that ends when it likes, as it likes: `CheckBench` is about when the design's does."""

    def __init__(self, config: AcceleratorConfig):
        made = ProgramCheck(config)
        made._MustUse__silence = True  # only its ports are wanted
        super().__init__(
            {
                **{name: made.signature.members[name] for name in made.signature.members},
                "ends": In(1),
                "refuses": In(1),
                "asks": In(1),
                "working": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        with m.If(self.start):
            m.d.sync += self.working.eq(1)
        with m.Elif(self.ends):
            m.d.sync += [self.working.eq(0), self.bad.eq(self.refuses)]
        m.d.comb += [self.busy.eq(self.working), self.request.eq(self.working & self.asks)]
        return m


class ExecutorBench(Bench):
    """Any program; units that are busy for any time, and any check. Nothing is started twice, and the executor waits only for what is busy."""

    name = "Executor, 2 lanes, sweeps of 1"

    def build(self, m: Module, monitor: Monitor) -> None:
        c = SCALED
        made: list[_Checked] = []

        def check(config: AcceleratorConfig) -> _Checked:
            made.append(_Checked(config))
            return made[-1]

        m.submodules.executor = e = Executor(c)
        with mock.patch.dict(Executor.elaborate.__globals__, ProgramCheck=check):
            inner = e.elaborate(None)
        e.elaborate = lambda platform: inner  # type: ignore[method-assign]
        looked = made[0]
        m.d.comb += [
            looked.ends.eq(self.free(1, "check_ends")),
            looked.refuses.eq(self.free(1, "refuses")),
            looked.asks.eq(self.free(1, "check_asks")),
        ]
        start, beat, valid, ready = (self.free(1, n) for n in ("start", "beat", "valid", "ready"))
        first, count, wanted = (
            chosen(self, m, 1, "head_first"),
            chosen(self, m, 2, "head_count"),
            chosen(self, m, 1, "candidates"),
        )
        monitor.assume(first + count <= c.lanes)
        monitor.assume(~(start & e.busy))
        monitor.assume(~valid | e.request)
        raw = _descriptor(self, m, {"kind": 2, "gain_beats": 1, "blocks": 2})
        monitor.assume(~valid | looked.working | (raw[:3] <= max(Opcode)))  # others are refused
        monitor.assume(~(valid & (raw[:3] == Opcode.HEAD)) | (self._inputs["blocks"] != 0))
        m.d.comb += [
            e.start.eq(start), e.program_length.eq(1), e.beat_taken.eq(beat & e.loading), e.valid.eq(valid), e.read_descriptor.as_value().eq(raw), e.head_phases.ready.eq(ready),
            e.head_first.eq(first), e.head_count.eq(count), e.candidates.eq(wanted << 4),
        ]  # fmt: skip
        busy: dict[str, Value] = {}
        for unit in UNITS:
            ends = self.free(1, f"{unit}_ends")
            busy[unit] = Signal(name=f"{unit}_works")
            m.d.comb += getattr(e, f"{unit}_busy").eq(busy[unit])
            with m.If(ends):
                m.d.sync += busy[unit].eq(0)
            begins = self.free(1, "written") if unit == "writer" else getattr(e, f"start_{unit}")
            with m.If(begins):
                m.d.sync += busy[unit].eq(1)
            if unit != "writer":
                monitor.claim(f"{unit} is not started while it works", ~(begins & busy[unit]))
        # The head's phases are taken only while attention works.
        monitor.assume(~ready | busy["attention"])
        starts = Cat(getattr(e, f"start_{u}") for u in UNITS if u != "writer").any()
        works = Cat(busy.values()).any()
        running, ran = Signal(), Signal()
        refused = past(m, looked.working & looked.ends & looked.refuses)
        with m.If(start):
            m.d.sync += running.eq(1)
        with m.Elif(e.done | refused):
            m.d.sync += running.eq(0)
        m.d.sync += ran.eq(running)
        waits = works | looked.working | (e.loading & ~beat) | (e.request & ~valid) | (e.head_phases.valid & ~ready)
        moves = (
            starts | (e.loading & beat) | (e.request & valid) | (e.head_phases.valid & ready) | e.done | start | ~e.busy
        )
        monitor.claim("it goes on", patience(m, waits, moves, 8))
        monitor.claim("what was started is busy", ~(running & ~e.bad_descriptor) | e.busy)
        monitor.claim("done is when nothing works any more", ~e.done | ~works)
        monitor.claim("nothing is started before the program was found good", ~starts | (e.program_ready & running))
        monitor.claim("a program that was refused is not run", ~(e.bad_descriptor & (starts | e.program_ready)))
        monitor.claim(
            "own keys and values stay until the cache is written",
            ~busy["kv_writer"] | ~(e.start_collect | e.start_kv_writer),
        )
        d = e.descriptor
        overwrites = e.start_epilogue & (d.shared.opcode == Opcode.LINEAR) & (d.linear.kind == Kind.QKV)
        monitor.claim("nor does a QKV overwrite them", ~busy["kv_writer"] | ~overwrites)
        # Every descriptor starts its units, and no others.
        begun, wanted_units, some = Signal(len(STARTS)), Signal(len(STARTS)), Signal()
        heads = count != 0
        gain = raw[DESCRIPTOR_GAIN] & (raw[:3] != Opcode.HEAD) & (raw[:3] != Opcode.SCREEN)
        units = {
            Opcode.END: {}, Opcode.LOAD: {"gain": gain, "x": 1, "rope": 1}, Opcode.LINEAR: {"gain": gain, "quantise": 1, "epilogue": 1, "tlmm": 1},
            Opcode.ATTENTION: {"gain": gain, "kv_writer": 1, "collect": 1, "attention": 1, "sequence": 1}, Opcode.HEAD: {"quantise": heads & ~wanted, "attention": heads & ~wanted},
            Opcode.SCREEN: {"quantise": heads & wanted, "tlmm": heads & wanted, "screen": heads & wanted},
        }  # fmt: skip
        now = Cat(getattr(e, f"start_{u}") for u in STARTS)
        with m.If(e.request & valid & ~looked.working):
            m.d.sync += [begun.eq(0), some.eq(1)]
            with m.Switch(raw[:3]):
                for opcode, of in units.items():
                    with m.Case(opcode):
                        m.d.sync += wanted_units.eq(Cat(of.get(u, Const(0)) for u in STARTS))
        with m.Else():
            m.d.sync += begun.eq(begun | now)
        with m.If(start):
            m.d.sync += some.eq(0)
        monitor.claim("a descriptor starts no unit that is another's", ~some | ((now & ~wanted_units) == 0))
        monitor.claim("and all of its own", ~(some & running & (e.request | e.done)) | (begun == wanted_units))
        # Lanes of the head: all, each once, in order.
        swept, in_head = Signal(3), Signal()
        sweep = e.start_attention & e.head_mode
        with m.If(e.request & valid & ~looked.working):
            m.d.sync += [swept.eq(0), in_head.eq(raw[:3] == Opcode.HEAD)]
        with m.If(sweep):
            m.d.sync += swept.eq(swept + e.sweep_count)
        monitor.claim(
            "a sweep of the head begins where the one before ended", ~sweep | (e.sweep_first == (first + swept)[:1])
        )
        monitor.claim(
            "and has lanes, no more than there are",
            ~sweep | ((e.sweep_count != 0) & (e.sweep_count <= c.attention_lanes) & (swept + e.sweep_count <= count)),
        )
        monitor.claim(
            "all lanes of a head are swept", ~(e.request & in_head & running) | (swept == Mux(wanted, 0, count))
        )


class CheckBench(Bench):
    """Any program of any descriptors: its check reads on, and ends."""

    name = "ProgramCheck"
    depth = 60

    def build(self, m: Module, monitor: Monitor) -> None:
        c = SCALED
        m.submodules.check = check = ProgramCheck(c)
        start, valid = self.free(1, "start"), self.free(1, "valid")
        monitor.assume(~(start & check.busy))
        monitor.assume(~valid | check.request)
        length = chosen(self, m, 2, "length")
        monitor.assume(length != 0)  # a pass of none is refused
        opcode = self.free(3, "opcode")
        m.d.comb += [
            check.start.eq(start),
            check.valid.eq(valid),
            check.length.eq(length),
            check.context.eq(c.max_context),
            check.slots.eq(2),
        ]
        m.d.comb += check.descriptor.as_value().eq(Cat(opcode, self.free(8 * DESCRIPTOR_BYTES - 3, "fields")))
        read = Signal(3)
        with m.If(start):
            m.d.sync += read.eq(0)
        with m.Elif(check.request & valid):
            m.d.sync += read.eq(read + 1)
        moves = start | (check.request & valid) | ~check.busy
        # An attention's three products take a cycle a bit of their factors.
        most = (
            ProgramCheck.expected_cycles(c, descriptors=1, attentions=1, kv_heads=255, context=c.max_context, slots=2)
            + 8
        )
        monitor.claim("it goes on", patience(m, check.request & ~valid, moves, most))
        monitor.claim("it reads no more descriptors than the program has", read <= length)
        monitor.claim("and asks for none beyond", ~check.request | (read < length))
