"""The quick proofs; `make formal` has all of them. And that a proof can fail."""

from __future__ import annotations

import inspect
from types import ModuleType
from unittest import mock

import pytest
from amaranth import Module, Signal

from tellme.hw.control import check, execute, fetch, sequence
from tellme.hw.tlmm import tables, unpack
from tellme.hw.tlmm.tables import gray_walk
from tellme.hw.tlmm.unpack import index_of
from tests.formal import progress
from tests.formal.control import RegisterBench, SupervisorBench
from tests.formal.memory import ReaderBench, WriterBench
from tests.formal.progress import CheckBench, ExecutorBench, FetcherBench, SequencerBench
from tests.formal.prover import Bench, Monitor, Result, prove
from tests.formal.queues import QueueBench
from tests.formal.tlmm import TableBench, UnpackerBench

QUICK = [
    QueueBench("Queue", 2),
    QueueBench("RegisterSlice", 2),
    QueueBench("DeepFifo", 2),
    QueueBench("ShortQueue", 4),
    QueueBench("ReservedQueue", 4),
    SupervisorBench(0),
    SupervisorBench(3),
    RegisterBench("timeout", live=True),
    RegisterBench("lanes", live=False),
    ExecutorBench(),
    FetcherBench(attends=False),
]
PORT_CYCLES = 12
"""A burst after an error, which may come in the sixth cycle, is among them."""


@pytest.mark.parametrize("bench", QUICK, ids=lambda b: b.name)
def test_every_claim_is_proved_without_bound(bench: Bench) -> None:
    r = prove(bench, seconds=300)
    assert r.proved and not r.bounded, r


@pytest.mark.parametrize("bench", [WriterBench(), ReaderBench()], ids=lambda b: b.name)
def test_memory_ports_keep_every_claim_for_the_first_cycles(bench: Bench) -> None:
    """`make formal` goes further, and most of them without bound."""
    r = prove(bench, seconds=300, depth=PORT_CYCLES)
    assert r.proved and r.depth == PORT_CYCLES, r


def test_the_phases_of_an_attention_come_in_the_first_cycles() -> None:
    """`make formal` goes further, and most of the claims without bound."""
    bench = SequencerBench()
    r = prove(bench, seconds=300, depth=bench.depth)
    assert r.proved and r.depth == bench.depth, r


def mistaken(module: ModuleType, old: str, new: str) -> ModuleType:
    """A module of the sources with one place changed."""
    text = inspect.getsource(module)
    assert text.count(old) == 1
    made = ModuleType(module.__name__)
    made.__dict__["__file__"] = module.__file__
    exec(compile(text.replace(old, new), str(module.__file__), "exec"), made.__dict__)  # noqa: S102
    return made


@pytest.mark.parametrize(
    ("name", "module", "old", "new", "claim"),
    [
        ("PhaseSequencer", sequence, "with m.If(block == 0):", "with m.If(block == 1):", "the final one is the last of them"),
        ("PhaseSequencer", sequence, 'm.next = "Measure"', 'm.next = "Part"', "the next phase comes in time"),
        ("Fetcher", fetch, "with m.If(self.program_ready):", "with m.If(1):", "no descriptor is asked for before the program has come"),
        ("Executor", execute, 'm.next = "Attention-Wait"', 'm.next = "Attention-Stream"', "it goes on"),
        ("Executor", execute, "hold.eq(self.kv_writer_busy & in_the_way)", "hold.eq(0)", "kv_writer is not started while it works"),
        ("ProgramCheck", check, "with m.If(last):", "with m.If(0):", "and asks for none beyond"),
        ("Executor", execute, "lanes_left.eq(lanes_left - self.sweep_count)", "lanes_left.eq(lanes_left)", "and has lanes, no more than there are"),
    ],
)  # fmt: skip
def test_a_walk_that_stands_still_or_goes_astray_is_found(
    name: str, module: ModuleType, old: str, new: str, claim: str
) -> None:
    benches: tuple[Bench, ...] = (SequencerBench(), FetcherBench(attends=False), ExecutorBench(), CheckBench())
    bench = {b.name.split(",")[0]: b for b in benches}[name]
    with mock.patch.object(progress, name, getattr(mistaken(module, old, new), name)):
        r = prove(bench, seconds=300, depth=40)
    assert not r.proved and not r.undecided, r
    assert r.broken == claim, r


@pytest.mark.parametrize("bench", [UnpackerBench(3), TableBench(2), TableBench(3, 2)], ids=lambda b: b.name)
def test_indices_and_tables_are_what_golden_says(bench: UnpackerBench | TableBench) -> None:
    """`make formal` has the other group sizes."""
    r = prove(bench, seconds=300, depth=bench.cycles)
    assert r.proved and r.depth == bench.cycles, r


def test_one_wrong_index_of_a_byte_is_found() -> None:
    def wrong(weights: tuple[int, ...]) -> tuple[int, int]:
        index, negate = index_of(weights)
        return index, negate ^ (weights == (-1, 1, -1))

    with mock.patch.object(unpack, "index_of", wrong):
        r = prove(UnpackerBench(3), seconds=300, depth=5)
    assert not r.proved and "an index is its weights" in r.broken, r


@pytest.mark.parametrize("mistake", ["sign", "entry"])
def test_one_wrong_step_of_a_table_is_found(mistake: str) -> None:
    walk = gray_walk(3)
    at = 8
    weights, digit, by = walk[at]
    walk[at] = (weights, digit, -by) if mistake == "sign" else (walk[at - 1][0], digit, by)
    with mock.patch.object(tables, "gray_walk", lambda size: walk):
        r = prove(TableBench(3, 2), seconds=300, depth=19)
    assert not r.proved and not r.undecided, r
    assert "an entry" in r.broken or "none is left out" in r.broken, r


class Reaching(Bench):
    """A memory port among its surroundings, with the opposite of what it should be able to do as its claims."""

    def __init__(self, of: WriterBench | ReaderBench, what: str):
        super().__init__()
        self.of, self.what, self.name = of, what, what

    def build(self, m: Module, monitor: Monitor) -> None:
        self.of._inputs = self._inputs
        inner = Monitor(m)
        self.of.build(m, inner)
        for condition in inner.assumed:
            monitor.assume(condition)
        monitor.claim(self.what, ~self.of.reached[self.what])


@pytest.mark.parametrize("what", [0, 1, 2])
@pytest.mark.parametrize("kind", [WriterBench, ReaderBench])
def test_what_is_assumed_of_memory_lets_everything_happen(
    kind: type[WriterBench] | type[ReaderBench], what: int
) -> None:
    """A claim about what cannot happen would be proved, too."""
    bench = kind()
    bench.rtlil()
    name = list(bench.reached)[what]
    r = prove(Reaching(bench, name), seconds=120, depth=20)
    assert (r.proved, r.broken) == (False, name) and r.cycle > 0, r


class Counter(Bench):
    """Counts to 12 while it is let; `claimed` is what it never is, `allowed` when it is let at all."""

    name = "counter"

    def __init__(self, claimed: int, allowed: bool = True, *, arbitrary: bool = False):
        super().__init__(arbitrary=arbitrary)
        self.claimed, self.allowed = claimed, allowed

    def build(self, m: Module, monitor: Monitor) -> None:
        go, count = self.free(1, "go"), Signal(4)
        with m.If(go & (count != 12)):
            m.d.sync += count.eq(count + 1)
        if not self.allowed:
            monitor.assume(~go)
        monitor.claim("it is small", count <= 12 if not self.arbitrary else count <= 15)
        monitor.claim("it never is that", count != self.claimed)


def test_a_false_claim_is_broken_in_the_first_cycle_that_it_can_be() -> None:
    for depth in (None, 20):
        r = prove(Counter(9), depth=depth, seconds=60)
        assert not r.proved and (r.broken, r.cycle) == ("it never is that", 9), r


def test_a_bounded_proof_says_how_far_it_looked_and_no_further() -> None:
    r = prove(Counter(9), depth=9, seconds=60)
    assert r.proved and r.bounded and r.depth == 9, r
    assert not prove(Counter(9), depth=10, seconds=60).proved
    looked_at = Result(False, True, 17, 1.0)
    assert looked_at.undecided and not prove(Counter(9), seconds=60).undecided


def test_what_is_assumed_holds_and_what_is_never_reached_is_proved() -> None:
    assert prove(Counter(13), seconds=60).proved
    assert prove(Counter(9, allowed=False), seconds=60).proved
    r = prove(Counter(0), seconds=60)
    assert (r.proved, r.undecided, r.broken, r.cycle) == (False, False, "it never is that", 0), r


def test_registers_may_begin_with_anything_before_the_reset() -> None:
    assert prove(Counter(13, arbitrary=True), seconds=60).proved
    assert not prove(Counter(9, arbitrary=True), seconds=60).proved
