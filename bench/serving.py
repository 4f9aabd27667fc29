"""Many conversations at once on the KV260, by the plan: the scheduler's passes, each as long as hw.plan says.

    python -m bench.serving [--json] [--requests N [--trace]]
    python -m bench.serving --rtl N

Three kinds of figures, for each model: tokens/s in all with N conversations that decode side by side; what a new request costs the
others, and they it; and times of a random trace of requests. Nothing is simulated but with `--rtl`: a short trace of N requests to the demo model, on the RTL of the small machine as the engine runs it, and by
the plan. Results are in docs/measurements/serving.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np

from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.schedule import groups
from tellme.golden.shapes import SHAPES
from tellme.golden.spec import ModelSpec
from tellme.host.image.model import Model, demo_folder
from tellme.host.machine.costs import Costs
from tellme.host.machine.placement import in_use
from tellme.host.machine.program import compile_program, usable_context
from tellme.host.machine.simulation import SimulatedAccelerator, memory_timing
from tellme.host.talk.engine import Engine, Ticket
from tellme.host.talk.scheduler import RISE, Conversation, Scheduler
from tellme.hw.plan import predict, steps
from tellme.sim.stream import SustainedMemory

KEYS = {"bitnet-0.7b": 128, "bitnet-2b": 250}
PROMPTS = (9, 16, 64, 128, 512)
FIRST = 1.6
"""What the time to a first token is to stay within, of that alone."""
SEED = 11


@dataclass(frozen=True)
class Request:
    """Arrives at a cycle, has a prompt, and wants so many tokens."""

    at: int
    prompt: int
    new: int


@dataclass
class Served:
    """When the tokens of a request came, in cycles."""

    request: Request
    times: list[int] = field(default_factory=list)

    @property
    def first(self) -> int:
        return self.times[0] - self.request.at

    @property
    def between(self) -> list[int]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


Who = TypeVar("Who", bound=Hashable)


def play(
    requests: Sequence[Request],
    submit: Callable[[int, Request], Who],
    step: Callable[[], tuple[int, list[tuple[Who, bool]]]],
) -> list[Served]:
    """Requests in the order of arrival; who has come when a pass ends is in the next one.

    Parameters
    ----------
    submit : hands in a request by its number; who it is from then on.
    step : runs a pass; its cycles, and who has a token by it, and whether that was the last.
    """
    out = [Served(r) for r in requests]
    live: dict[Who, Served] = {}
    now, following = 0, 0
    while following < len(out) or live:
        if not live:
            now = max(now, out[following].request.at)
        while following < len(out) and out[following].request.at <= now:
            live[submit(following, out[following].request)] = out[following]
            following += 1
        took, said = step()
        now += took
        for who, ended in said:
            live[who].times.append(now)
            if ended:
                del live[who]
    return out


class Plan:
    """Cycles of passes of a model on a configuration. candidates: of the screened head, for each lane with logits; 0: the full head."""

    def __init__(
        self, spec: ModelSpec, config: AcceleratorConfig, timing: str, rise: float = RISE, candidates: int = 0
    ):
        self.spec, self.config, self.rise, self.candidates = spec, config, rise, candidates
        self.memory = SustainedMemory(memory_timing(timing, None), in_use(config, "sim").phases or None)
        self.most = usable_context(spec, config) - 1
        self._of = lru_cache(maxsize=None)(self._cycles)

    def exact(self, positions: Sequence[int], slots: Sequence[int], heads: int) -> int:
        """Of a pass with these lanes."""
        return self._of(tuple(positions), tuple(slots), heads)

    def _cycles(self, positions: tuple[int, ...], slots: tuple[int, ...], heads: int) -> int:
        candidates = self.candidates if heads else 0
        todo = steps(self.spec, self.config, positions, slots, heads, candidates)
        return predict(todo, self.config, self.memory).cycles

    def __call__(self, positions: Sequence[int], slots: Sequence[int], heads: int) -> int:
        # Positions to the middle of 32: a key more or less is some cycles of a million.
        rounded: list[int] = []
        for first, last in groups(slots):
            start = positions[first]
            at = start if start < 32 else min(start // 32 * 32 + 16, self.most - (last - first))
            rounded += range(at, at + last - first + 1)
        return self._of(tuple(rounded), tuple(slots), heads)

    def serve(self, requests: Sequence[Request], slots: int) -> list[Served]:
        """Plays a trace: requests in the order of arrival."""
        group = self.spec.heads // self.spec.kv_heads
        costs = Costs(self.spec, self.config)
        context = usable_context(self.spec, self.config)
        scheduler = Scheduler(
            self.config, group, context, slots, queue=len(requests), cost=costs.cycles, rise=self.rise
        )

        def submit(number: int, request: Request) -> Conversation:
            # No two prompts share anything.
            return scheduler.submit([-1 - number] * request.prompt, request.new)

        def step() -> tuple[int, list[tuple[Conversation, bool]]]:
            list(scheduler.admit())
            planned = scheduler.plan()
            assert planned is not None
            given = planned.given
            took = self(given.positions, given.slots, given.head[1])
            costs.measured(*planned.lanes, took)  # as the engine does
            chosen = {p.conversation: [0] for p in planned.parts if p.chooses}
            scheduler.complete(planned, chosen)
            ended = {c: len(c.tokens) == c.limit for c in chosen}
            for conversation in (c for c, last in ended.items() if last):
                scheduler.end(conversation)
            return took, list(ended.items())

        return play(requests, submit, step)


def side_by_side(plan: Plan, keys: int, count: int) -> float:
    """Tokens/s in all of conversations with so many keys each."""
    return count * plan.config.clock_hz / plan.exact([keys] * count, list(range(count)), count)


def newcomer(plan: Plan, keys: int, prompt: int, others: int = 7) -> dict[str, float]:
    """A request of `prompt` tokens that comes at the beginning of a pass while others decode.

    Returns
    -------
    dict : first_token, its time to the first token against that alone; between_mean and between_longest, of the others' times between tokens
        that overlap with it, against the mean without it; second, the same mean over the tokens of the second after its arrival.
    """
    alone = plan.serve([Request(0, prompt, 1)], others + 1)[0].first
    # Their prompts come first; they are at `keys` or a little more when the new one comes.
    trace = [Request(0, keys - 12, 400) for _ in range(others)]
    before = plan.serve([Request(r.at, r.prompt, 24) for r in trace], others + 1)
    start = max(s.times[6] for s in before)
    served = plan.serve([*trace, Request(start, prompt, 1)], others + 1)
    new = served[-1]
    first = new.times[0]
    spans = [(a, b) for s in served[:-1] for a, b in zip(s.times, s.times[1:], strict=False)]
    usual = np.mean([b - a for a, b in sorted(spans) if a >= first][: 10 * others])
    meanwhile = [b - a for a, b in spans if a < first and b > start]
    second = [b - a for a, b in spans if start <= a < start + plan.config.clock_hz]
    return {
        "alone_s": alone / plan.config.clock_hz,
        "first_token": new.first / alone,
        "between_mean": float(np.mean(meanwhile) / usual),
        "between_longest": float(np.max(meanwhile) / usual),
        "second": float(np.mean(second) / usual),
    }


def bound(plan: Plan, keys: int, prompt: int, others: int = 7) -> tuple[float, float]:
    """What no rule can pass, from what passes cost: the least first token (against alone) while the others' time between tokens rises to `RISE` times, and the least
    rise while the first token comes within `FIRST` times its time alone.

    Between two tokens of the others there is one pass with a lane of each, its other lanes full of prompt, and some with nothing but prompt: more lanes a cycle
    there are not. Parts of passes count as parts, so that short prompts are better off here than they can be.
    """
    lanes = plan.config.lanes
    starts = range(0, prompt, lanes)
    chunk = [(at, min(lanes, prompt - at)) for at in starts]
    alone = sum(plan.exact(range(at, at + n), [0] * n, int(at + n == prompt)) for at, n in chunk)
    only = sum(plan.exact(range(at, at + n), [0] * n, 0) for at, n in chunk) / prompt  # a token
    slots = list(range(others))
    usual = plan.exact([keys] * others, slots, others)
    room, at = lanes - others, max(0, prompt // 2 - 8)
    mixed = plan.exact([*range(at, at + room), *[keys] * others], [others] * room + slots, others)
    # A pass with the others, and x tokens in passes of their own: mixed + x only cycles for room + x tokens.
    x = max(0.0, (RISE * usual - mixed) / only)
    first = prompt / (room + x) * (mixed + x * only) / alone
    pace = FIRST * alone / prompt
    x = max(0.0, (mixed - room * pace) / (pace - only)) if pace > only else float("inf")
    return first, (mixed + x * only) / usual


def trace(plan: Plan, requests: int, per_s: float, slots: int = 8) -> dict[str, float]:
    """A random trace: arrivals of a Poisson process, prompts of 20 to 300 tokens, answers of 20 to 120."""
    rng = np.random.default_rng(SEED)
    at = np.cumsum(rng.exponential(plan.config.clock_hz / per_s, requests)).astype(int)
    todo = [Request(int(t), int(rng.integers(20, 300)), int(rng.integers(20, 120))) for t in at]
    clock = plan.config.clock_hz
    found = summary(plan.serve(todo, slots))
    times = {f"{name}_s": found[name] / clock for name in ("first_p50", "first_p95", "between_p50", "between_p95")}
    return {"requests_per_s": per_s, **times, "tokens_per_s": clock / found["per_token"]}


def on_rtl(requests: int, slots: int = 4) -> tuple[list[Served], list[Served]]:
    """A short trace on the RTL of `tiny`, and the same by the plan. Clock: cycles of the passes, one after the other; who has arrived when one ends is served in the next."""
    rng = np.random.default_rng(SEED)
    with Model.open(demo_folder(), TINY) as model:
        # As often as eight tokens of one take.
        plan = Plan(model.spec, TINY, "kv260")
        at = np.cumsum(rng.exponential(8 * plan.exact([60], [0], 1), requests)).astype(int)
        todo = [Request(int(t), int(rng.integers(4, 40)), int(rng.integers(6, 20))) for t in at]
        expected = plan.serve(todo, slots)
        program = compile_program(model, TINY, slots=slots)
        with SimulatedAccelerator(model, program, timing=memory_timing("kv260", None)) as machine:
            engine = Engine(machine, queue=requests)

            def submit(number: int, request: Request) -> Ticket:
                prompt = [(7 * number + 13 * i) % model.spec.vocab for i in range(request.prompt)]
                return engine.submit(prompt, max_new_tokens=request.new)

            def step() -> tuple[int, list[tuple[Ticket, bool]]]:
                before = engine.counts.cycles
                made = engine.step()
                return engine.counts.cycles - before, [(ticket, ticket.ended) for ticket, _ in made]

            out = play(todo, submit, step)
    return out, expected


def summary(served: Sequence[Served]) -> dict[str, float]:
    """Cycles: times to the first token and between tokens, median and 95th percentile, and of all together for a token."""
    first = [s.first for s in served]
    between = [b for s in served for b in s.between]
    span = max(s.times[-1] for s in served) - served[0].request.at
    return {
        "first_p50": float(np.percentile(first, 50)),
        "first_p95": float(np.percentile(first, 95)),
        "between_p50": float(np.percentile(between, 50)),
        "between_p95": float(np.percentile(between, 95)),
        "per_token": span / sum(len(s.times) for s in served),
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--requests", type=int, default=0, help="requests of the random trace; 0: none")
    parser.add_argument("--trace", action="store_true", help="nothing but the traces")
    parser.add_argument("--model", choices=tuple(KEYS), help="this one alone")
    parser.add_argument("--timing", default="kv260")
    parser.add_argument("--candidates", type=int, default=0, help="of the screened head; 0: the full head")
    parser.add_argument("--rise", type=float, default=RISE, help="of the scheduler")
    parser.add_argument(
        "--rtl", type=int, default=0, metavar="N", help="a trace of N requests on the RTL, and nothing else"
    )
    options = parser.parse_args()
    if options.rtl:
        measured, by_plan = (summary(served) for served in on_rtl(options.rtl))
        for name, rtl in measured.items():
            planned = by_plan[name]
            print(f"{name}: {rtl:,.0f} cycles on the RTL, {planned:,.0f} by the plan: {planned / rtl - 1:+.1%}")
        return
    for name, keys in KEYS.items():
        if options.model not in (None, name):
            continue
        plan = Plan(SHAPES[name], KV260, options.timing, options.rise, options.candidates)
        rates = (0.5, 1.0, 2.0) if name == "bitnet-0.7b" else (0.1, 0.25, 0.5)
        if options.trace:
            for rate in rates:
                print(json.dumps({"model": name} | trace(plan, options.requests or 200, rate)), flush=True)
            continue
        speeds = {n: side_by_side(plan, keys, n) for n in (1, 2, 4, 8, 16)}
        one = plan.exact([keys], [0], 1)
        guesses = {n: plan.exact(range(keys, keys + n), [0] * n, n) / one for n in (1, 2, 4, 8, 16)}
        new = {n: newcomer(plan, keys, n) for n in PROMPTS}
        bounds = {n: bound(plan, keys, n) for n in PROMPTS}
        traces = [trace(plan, options.requests, r) for r in rates] if options.requests else []
        if options.json:
            found = {
                "model": name,
                "keys": keys,
                "tokens_per_s": speeds,
                "guesses": guesses,
                "newcomer": new,
                "bounds": bounds,
                "trace": traces,
            }
            print(json.dumps(found), flush=True)
            continue
        print(f"{name}, {keys} keys, estimated, timing {options.timing}")
        print("  conversations: tokens/s in all", {n: round(v, 1) for n, v in speeds.items()})
        print("  lanes of one conversation, all with logits: passes", {n: round(v, 3) for n, v in guesses.items()})
        for n, times in new.items():
            print(f"  a new request of {n} tokens while 7 decode", {k: round(v, 3) for k, v in times.items()})
            first, rise = bounds[n]
            print(
                f"    between {RISE} times: first token {first:.2f} at least; first token {FIRST}: between {rise:.2f} at least",
                flush=True,
            )
        for t in traces:
            print("  trace", {k: round(v, 3) for k, v in t.items()}, flush=True)


if __name__ == "__main__":
    main()
