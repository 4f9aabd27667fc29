"""Connections have names and shapes; the top is made of them; those who share a port get what is theirs."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Module, Shape
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

import tellme.hw.top
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.program import FIELDS, Opcode
from tellme.golden.schedule import Phase
from tellme.hw import interfaces
from tellme.hw.attention.unit import AttentionUnit
from tellme.hw.control.fetch import Fetcher
from tellme.hw.control.parameters import PassRegisters
from tellme.hw.control.route import BeatRouter, Route, StreamChoice, StreamSwitch
from tellme.hw.control.sequence import PhaseSequencer
from tellme.hw.elementwise.elementwise import Elementwise
from tellme.hw.memory.kv_writer import KvWriter
from tellme.hw.memory.share import Int8Sharing, OwnSharing
from tellme.hw.tlmm.engine import TlmmEngine
from tellme.hw.tlmm.loader import TileLoader
from tellme.hw.top import Accelerator, Blocks

# ---- join


class Giver(wiring.Component):
    a: Out(3)
    b: Out(data.ArrayLayout(4, 2))
    answer: In(1)


class Taker(wiring.Component):
    a: In(3)
    c: In(data.ArrayLayout(4, 2))
    wide: In(5)
    answer: Out(1)
    started: In(3, init=1)


def joined(*args: Any, **renamed: str) -> tuple[Module, Giver, Taker]:
    m, giver, taker = Module(), Giver(), Taker()
    interfaces.join(m, giver, taker, *args, **renamed)
    return m, giver, taker


def test_join_connects_members_of_both_directions_by_their_names() -> None:
    m, giver, taker = joined("a answer", b="c")

    async def check(context: Any) -> None:
        context.set(giver.a, 5)
        context.set(giver.b, [9, 3])
        context.set(taker.answer, 1)
        assert context.get(taker.a) == 5 and context.get(giver.answer) == 1
        assert [context.get(taker.c[i]) for i in range(2)] == [9, 3]

    simulator = Simulator(m)
    simulator.add_testbench(check)
    simulator.run()


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (lambda: joined("nothing"), wiring.SignatureError),
        (lambda: joined("a", b="nothing"), wiring.SignatureError),
        (lambda: joined(), wiring.SignatureError),  # all of the giver's, of which the taker lacks one
        (lambda: joined(a="wide"), wiring.ConnectionError),
        (lambda: joined(a="started"), wiring.ConnectionError),
        (lambda: joined(answer="a"), wiring.ConnectionError),
    ],
)
def test_join_refuses_what_does_not_fit(how: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        how()


# ---- who has which


def unflipped(component: wiring.Component, name: str) -> wiring.Signature:
    """Signature of a member as it is defined."""
    member = component.signature.members[name]
    return member.signature if member.flow is Out else member.signature.flip()


@pytest.mark.parametrize("config", [TINY, KV260], ids=lambda c: c.name)
def test_components_share_one_signature_for_each_connection(config: AcceleratorConfig) -> None:
    own, scales = interfaces.OwnReadPort(config), interfaces.OwnScalePort(config)
    for signature, ports in (
        (
            interfaces.Int8ReadPort(config),
            ((TlmmEngine, "int8"), (TileLoader, "int8"), (AttentionUnit, "int8"), (Elementwise, "int8"),
             (Int8Sharing, "tables"), (Int8Sharing, "attention"), (Int8Sharing, "buffer")),
        ),
        (own, ((AttentionUnit, "own"), (KvWriter, "own"), (Elementwise, "own"), (OwnSharing, "writer"))),
        (scales, ((AttentionUnit, "own_scales"), (KvWriter, "own_scales"), (Elementwise, "own_scales"))),
        (interfaces.AttentionChunks(config), ((AttentionUnit, "chunks"), (Elementwise, "chunks"))),
        (
            interfaces.PassParameters(config),
            ((PassRegisters, "parameters"), (Fetcher, "parameters"), (PhaseSequencer, "parameters"),
             (KvWriter, "parameters")),
        ),
    ):  # fmt: skip
        for component, name in ports:
            found = unflipped(component(config), name)
            assert type(found) is type(signature) and found.members == signature.members, (component, name)


@pytest.mark.parametrize("config", [TINY, KV260], ids=lambda c: c.name)
def test_a_phase_in_hardware_has_the_fields_of_the_schedules(config: AcceleratorConfig) -> None:
    layout = interfaces.phase_layout(config)
    assert {name for name, _ in layout} == set(Phase.__dataclass_fields__)
    for component, name in (
        (PhaseSequencer(config), "phases"),
        (AttentionUnit(config), "blocks"),
    ):
        assert unflipped(component, name) == stream.Signature(layout)


def test_the_top_connects_and_does_little_else() -> None:
    source = Path(tellme.hw.top.__file__).read_text()
    tree = ast.parse(source)
    assert source.count(".eq(") < 40
    copies = []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "eq":
            value, target = call.args[0], call.func.value
            plain = isinstance(value, ast.Attribute) and isinstance(target, ast.Attribute)
            if plain:
                copies.append(ast.unparse(call))
    # The index of a descriptor is narrower than what is reported.
    assert copies == ["supervisor.descriptor_index.eq(executor.index)"]


def test_every_block_is_a_submodule_of_the_top() -> None:
    module = Accelerator(TINY).elaborate(None)
    assert list(module._named_submodules) == list(vars(Blocks(TINY)))


# ---- sharing and routes


def settle(component: Any, check: Callable[[Any], None]) -> None:
    async def bench(context: Any) -> None:
        check(context)

    simulator = Simulator(component)
    simulator.add_testbench(bench)
    simulator.run()


def test_attention_reads_the_int8_buffer_while_it_runs_and_the_tables_otherwise() -> None:
    share = Int8Sharing(TINY)

    def check(context: Any) -> None:
        for port, lane, word in ((share.tables, 1, 5), (share.attention, 2, 9)):
            context.set(port.lane, lane)
            context.set(port.word, word)
        for attending, want in ((0, (1, 5)), (1, (2, 9))):
            context.set(share.attending, attending)
            assert (context.get(share.buffer.lane), context.get(share.buffer.word)) == want
        for tables, attention in ((0, 0), (0, 1), (1, 0)):
            context.set(share.tables.en, tables)
            context.set(share.attention.en, attention)
            assert context.get(share.buffer.en) == tables | attention
        context.set(share.buffer.data, 77)
        assert context.get(share.tables.data) == context.get(share.attention.data) == 77

    settle(share, check)


@pytest.mark.parametrize("kind", ["", "_scales"])
def test_the_cache_writer_reads_own_keys_when_attention_does_not(kind: str) -> None:
    share = OwnSharing(TINY)
    first, second, buffer = (getattr(share, f"{name}{kind}") for name in ("attention", "writer", "buffer"))
    names = [n for n in buffer.signature.members if n not in ("en", "grant", "data")]

    def check(context: Any) -> None:
        for name in names:
            context.set(getattr(first, name), 1)
            context.set(getattr(second, name), 0)
        for granted in (0, 1):
            context.set(buffer.grant, granted)
            for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
                context.set(first.en, a)
                context.set(second.en, b)
                assert context.get(buffer.en) == a | b
                assert (context.get(first.grant), context.get(second.grant)) == (granted, granted & (1 - a))
                assert all(context.get(getattr(buffer, n)) == a for n in names)
        context.set(buffer.data, 41)
        assert context.get(first.data) == context.get(second.data) == 41

    settle(share, check)


@pytest.mark.parametrize("loading", [0, 1])
@pytest.mark.parametrize("route", list(Route))
def test_beats_go_to_the_unit_whose_turn_it_is(route: Route, loading: int) -> None:
    router = BeatRouter(TINY)
    units = {Route.LOAD: router.load, Route.TLMM: router.tlmm, Route.ATTENTION: router.attention}

    def check(context: Any) -> None:
        context.set(router.route, route)
        context.set(router.loading, loading)
        context.set(router.beats.payload, 123)
        for ready in (0, 1):
            for valid in (0, 1):
                for r, unit in units.items():
                    context.set(unit.ready, ready if r == route else 1 - ready)
                context.set(router.beats.valid, valid)
                taking = loading or (ready if route in units else 0)
                assert context.get(router.beats.ready) == taking
                assert context.get(router.taken) == (taking and valid)
                assert context.get(router.waiting) == (taking and not valid)
                assert context.get(router.program_write) == (loading and valid)
                assert {r: context.get(u.valid) for r, u in units.items()} == {r: valid and r == route for r in units}
        assert all(context.get(u.payload) == 123 for u in units.values()) and context.get(router.program) == 123

    settle(router, check)


@pytest.mark.parametrize("second", [0, 1])
def test_one_of_two_streams_comes_out_and_the_other_waits(second: int) -> None:
    choice = StreamChoice(data.StructLayout({"x": 8}))

    def check(context: Any) -> None:
        context.set(choice.second, second)
        context.set(choice.out.ready, 1)
        for i, source in enumerate(choice.sources):
            context.set(source.payload, {"x": 10 + i})
        for valid in range(4):
            for i, source in enumerate(choice.sources):
                context.set(source.valid, valid >> i & 1)
            assert context.get(choice.out.valid) == valid >> second & 1
        assert context.get(choice.out.payload.x) == 10 + second
        assert [context.get(s.ready) for s in choice.sources] == [1 - second, second]

    settle(choice, check)


@pytest.mark.parametrize("second", [0, 1])
def test_a_stream_goes_to_one_of_two_takers_and_the_other_gets_nothing(second: int) -> None:
    switch = StreamSwitch(data.StructLayout({"x": 8}))

    def check(context: Any) -> None:
        context.set(switch.second, second)
        context.set(switch.source.payload, {"x": 17})
        for valid in range(2):
            for ready in range(4):
                context.set(switch.source.valid, valid)
                for i, taker in enumerate(switch.takers):
                    context.set(taker.ready, ready >> i & 1)
                assert [context.get(t.valid) for t in switch.takers] == [valid * (1 - second), valid * second]
                assert context.get(switch.source.ready) == ready >> second & 1
        assert [context.get(t.payload.x) for t in switch.takers] == [17, 17]

    settle(switch, check)


@pytest.mark.parametrize(("length", "bad"), [(0, 1), (1, 0), (TINY.max_descriptors, 0), (TINY.max_descriptors + 1, 1)])
def test_the_registers_of_a_pass_are_cut_and_compared(length: int, bad: int) -> None:
    registers = PassRegisters(TINY)
    slots = [3, 3, 7, 7]

    async def check(context: Any) -> None:
        context.set(registers.lanes, 4)
        context.set(registers.program_length, length)
        for i, slot in enumerate(slots):
            context.set(registers.position[i], 20 + i)
            context.set(registers.slot[i], slot)
        await context.tick()
        p = registers.parameters
        assert context.get(registers.bad_program) == bad and context.get(registers.length) == length
        assert context.get(p.lanes) == 4 and context.get(p.same_slot) == 0b101
        assert [context.get(p.position[i]) for i in range(4)] == [20, 21, 22, 23]
        assert [context.get(p.slot[i]) for i in range(4)] == slots
        assert context.get(registers.max_context) == TINY.most_context and context.get(registers.max_slots) == 256

    simulator = Simulator(registers)
    simulator.add_clock(1e-6)
    simulator.add_testbench(check)
    simulator.run()


def test_jobs_are_as_wide_as_the_descriptors_fields() -> None:
    opcodes = (Opcode.LOAD, Opcode.ATTENTION, Opcode.LINEAR)
    widths = {f.name: f.width for opcode in opcodes for f in FIELDS[opcode]}
    for job, made in (
        (interfaces.ElementwiseJob(TINY), {"lanes"}),
        (interfaces.CacheJob(), {"cells"}),
        (
            interfaces.AttentionJob(TINY),
            {"cells", "head_mode", "head_first", "head_count", "vocabulary", "write_logits"},
        ),
    ):
        taken = {name: Shape.cast(member.shape).width for name, member in job.members.items() if name not in made}
        assert taken == {name: widths[name] for name in taken}
