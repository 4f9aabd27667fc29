"""Queues: order kept at every pace, nothing lost or doubled, the latencies that their docstrings state, an entry a cycle."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from amaranth.lib import data
from amaranth.sim import Simulator

from tellme.hw.queues import DeepFifo, Queue, RegisterSlice, ReservedQueue, ShortQueue

SEED = 3
DEPTH = 8
PAIR = data.StructLayout({"low": 40, "high": 24})
QUEUES: dict[str, tuple[Callable[[], Any], int, int]] = {
    "Queue": (lambda: Queue(width=64, depth=DEPTH), 1, DEPTH),
    "RegisterSlice": (lambda: RegisterSlice(width=64), 1, 2),
    "DeepFifo": (lambda: DeepFifo(width=64, depth=DEPTH), 3, DEPTH + 2),
    "ShortQueue": (lambda: ShortQueue(64, DEPTH), 2, DEPTH + 1),
    "ShortQueue of a struct": (lambda: ShortQueue(PAIR, DEPTH), 2, DEPTH + 1),
    "ReservedQueue": (lambda: ReservedQueue(64, DEPTH), ReservedQueue.delay, DEPTH),
}
"""How to make one, cycles from an entry to its way out, entries that it may hold."""


class Writer:
    """Writes as each queue wants it: with a handshake, by `room`, or by its own account of the room."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        self.free = DEPTH
        self.out = queue.o if hasattr(queue, "o") else queue.out

    def value(self, ctx: Any) -> int:
        payload = self.out.payload
        return int(ctx.get(payload.as_value() if isinstance(payload, data.View) else payload))

    def write(self, ctx: Any, wanted: bool, value: int) -> bool:
        """Sets the inputs; whether the entry goes in at the coming edge."""
        queue = self.queue
        if isinstance(queue, (Queue, RegisterSlice)):
            ctx.set(queue.i.valid, wanted)
            ctx.set(queue.i.payload, value)
            return wanted and bool(ctx.get(queue.i.ready))
        if isinstance(queue, DeepFifo):
            goes = wanted and self.free > 0
            self.free += ctx.get(queue.taken) - goes
            ctx.set(queue.w_en, goes)
            ctx.set(queue.w_data, value)
            return goes
        goes = wanted and bool(ctx.get(queue.room))
        if isinstance(queue, ReservedQueue):
            ctx.set(queue.reserve, goes)
        ctx.set(queue.write, goes)
        payload = queue.payload
        ctx.set(payload.as_value() if isinstance(payload, data.View) else payload, value)
        return goes


def run(queue: Any, cycles: int, gives: Callable[[int], bool], takes: Callable[[int], bool]) -> Any:
    """(entries in, entries out), each with its cycle."""
    writer = Writer(queue)
    rng = random.Random(SEED)
    given: list[tuple[int, int]] = []
    taken: list[tuple[int, int]] = []

    async def bench(ctx: Any) -> None:
        await ctx.tick().repeat(2)
        for t in range(cycles):
            ctx.set(writer.out.ready, takes(t))
            value = rng.randrange(1 << 64)
            if writer.write(ctx, gives(t), value):
                given.append((t, value))
            if takes(t) and ctx.get(writer.out.valid):
                taken.append((t, writer.value(ctx)))
            await ctx.tick()

    simulator = Simulator(queue)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return given, taken


@pytest.mark.parametrize("name", QUEUES)
@pytest.mark.parametrize("pace", ((0.9, 0.3), (0.3, 0.9), (0.7, 0.7)))
def test_order_is_kept_and_nothing_lost(name: str, pace: tuple[float, float]) -> None:
    make, _, most = QUEUES[name]
    rng = random.Random(SEED)
    chance = [(rng.random() < pace[0], rng.random() < pace[1]) for _ in range(600)]
    given, taken = run(make(), 640, lambda t: t < 600 and chance[t][0], lambda t: t >= 600 or chance[t][1])
    assert len(given) > 100
    assert [v for _, v in taken] == [v for _, v in given]
    held = [sum(t <= now for t, _ in given) - sum(t <= now for t, _ in taken) for now in range(0, 600, 5)]
    assert max(held) <= most
    if pace[0] > pace[1]:
        assert max(held) >= most - 1


@pytest.mark.parametrize("name", QUEUES)
def test_an_entry_comes_out_after_the_stated_cycles_and_then_one_a_cycle(name: str) -> None:
    make, latency, _ = QUEUES[name]
    given, taken = run(make(), 60, lambda t: t < 40, lambda t: True)
    assert [t for t, _ in given] == list(range(40))
    assert [t for t, _ in taken] == [t + latency for t, _ in given]


@pytest.mark.parametrize("name", ("Queue", "RegisterSlice", "DeepFifo"))
def test_clear_wins_over_both_sides(name: str) -> None:
    queue = QUEUES[name][0]()
    writer = Writer(queue)

    async def bench(ctx: Any) -> None:
        for n in range(6):
            writer.write(ctx, True, n)
            await ctx.tick()
        ctx.set(queue.clear, 1)
        ctx.set(writer.out.ready, 1)
        writer.write(ctx, True, 99)
        await ctx.tick()
        ctx.set(queue.clear, 0)
        writer.write(ctx, False, 0)
        for _ in range(5):
            assert not ctx.get(writer.out.valid)
            await ctx.tick()
        assert not hasattr(queue, "level") or ctx.get(queue.level) == 0

    simulator = Simulator(queue)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("make", (lambda d: Queue(width=8, depth=d), lambda d: DeepFifo(width=64, depth=d)))
@pytest.mark.parametrize("depth", (0, 1, 3, 12))
def test_depths_that_are_no_powers_of_two_are_refused(make: Callable[[int], Any], depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth must be a power of two of at least 2, not {depth}"):
        make(depth)
    make(2)
