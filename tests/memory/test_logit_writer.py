"""Logits and candidates at their places: every address, byte and strobe, at the rate that is promised, with writes that nobody takes for a while."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from amaranth.sim import Simulator

from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.hw.memory.logit_writer import STEPS, LogitWriter

SEED = 5
CONFIGS = {
    "kv260": KV260,
    "one lane": replace(TINY, lanes=1, ternary_head=False),
    "ternary head": TINY,
    "ternary head, wide": replace(TINY, ports=4, lanes=16, ternary_head=True),
}


class Beat(NamedTuple):
    """What is handed over: a beat of logits, or a candidate (`both`: sixteen bytes of it)."""

    lane: int
    place: int
    data: bytes
    candidate: bool = False
    both: bool = False


def beats(config: AcceleratorConfig, rng: random.Random, count: int) -> list[Beat]:
    out = [Beat(config.lanes - 1, 0xFFFF_FFFF, rng.randbytes(config.beat_bytes))]
    for n in range(count):
        lane = rng.randrange(config.lanes)
        if rng.random() < 0.4:
            place = rng.choice((0, 1, rng.getrandbits(32)))
            out.append(Beat(lane, place, rng.randbytes(config.beat_bytes)))
            continue
        both = config.ternary_head and n % 2 == 0
        number = rng.getrandbits(8) & (~1 if both else ~0)
        out.append(Beat(lane, number, rng.randbytes(16 if both else 8), True, both))
    return out


def written(config: AcceleratorConfig, b: Beat, address: int, stride: int) -> tuple[int, int, dict[int, int]]:
    """Beat address, strobe, and the bytes that the strobe names."""
    size = config.beat_bytes
    at, first = divmod(8 * b.place, size) if b.candidate else (b.place, 0)
    strobe = ((1 << len(b.data)) - 1) << first
    return (address + b.lane * stride + at) % 2**32, strobe, {first + i: x for i, x in enumerate(b.data)}


@pytest.mark.parametrize("take", [1.0, 0.3])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_candidates_find_their_places(name: str, take: float) -> None:
    config, rng = CONFIGS[name], random.Random(SEED)
    dut = LogitWriter(config)
    given = beats(config, rng, 120)
    address, stride = rng.getrandbits(32), rng.getrandbits(32)
    found: list[tuple[int, int, dict[int, int]]] = []
    times: list[int] = []

    def offer(ctx: Any, b: Beat | None) -> Any:
        """Shows a beat to the stream that it goes through, and anything to the other; its `ready`."""
        port = dut.candidates if b is not None and b.candidate else dut.logits
        ctx.set(dut.logits.valid, int(b is not None and not b.candidate))
        ctx.set(dut.candidates.valid, int(b is not None and b.candidate))
        for p in (dut.logits.payload, dut.candidates.payload):
            ctx.set(p.as_value(), rng.getrandbits(len(p.as_value())))
        if b is None:
            return port
        ctx.set(port.payload.lane, b.lane)
        if not b.candidate:
            ctx.set(port.payload.beat, b.place)
            ctx.set(port.payload.data, int.from_bytes(b.data, "little"))
            return port
        ctx.set(port.payload.number, b.place)
        ctx.set(port.payload.candidate.as_value(), int.from_bytes(b.data[:8], "little"))
        if config.ternary_head:
            ctx.set(port.payload.second.as_value(), int.from_bytes(b.data[-8:], "little"))
            ctx.set(port.payload.both, int(b.both))
        return port

    async def bench(ctx: Any) -> None:
        ctx.set(dut.address, address)
        ctx.set(dut.stride, stride)
        todo, held, accepted = list(reversed(given)), False, 0
        for cycle in range(100 * len(given)):
            offered = todo[-1] if todo and (take == 1.0 or rng.random() < 0.8) else None
            port = offer(ctx, offered)
            ready = int(rng.random() < take)
            ctx.set(dut.writes.ready, ready)
            assert ctx.get(dut.holding) == held
            assert ctx.get(dut.busy) == (held or offered is not None)
            assert ctx.get(dut.logits.ready) == ctx.get(dut.candidates.ready) == (not held)
            valid = ctx.get(dut.writes.valid)
            assert not valid or (held and cycle - accepted > STEPS)
            taken = offered is not None and ctx.get(port.ready)
            if valid and ready:
                p = dut.writes.payload
                strobe, data = ctx.get(p.strobe), ctx.get(p.data).to_bytes(config.beat_bytes, "little")
                named = {i: data[i] for i in range(config.beat_bytes) if strobe >> i & 1}
                found.append((ctx.get(p.address), strobe, named))
                times.append(cycle)
                held = False
            if taken:
                todo.pop()
                held, accepted = True, cycle
            await ctx.tick()
            if not todo and not held:
                break

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert found == [written(config, b, address, stride) for b in given]
    if take == 1.0:
        steps = {b - a for a, b in zip(times, times[1:], strict=False)}
        assert steps == {times[0] + 1} == {STEPS + 2}, "a beat in so many cycles"
