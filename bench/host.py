"""What the host does for a pass beside the accelerator: scheduling, guesses, sampling. Processor time of one core here, and its share of a pass on the KV260.

    python -m bench.host [--slower N]

A Cortex-A53 at 1.3 GHz is taken to be SLOWER times as slow as a core here (an assumption: no board is at hand, and
`--slower` takes another number). One of the four cores is counted, as the engine's thread is one; the others are the server's. Passes are as long as the plan says.
Histories hold as many ended tokens as are remembered at most.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from bench.serving import KEYS, Plan
from tellme.golden.config import KV260
from tellme.golden.shapes import SHAPES
from tellme.host.machine.costs import Costs
from tellme.host.talk.drafts import MEMORY, Drafts
from tellme.host.talk.scheduler import Conversation, Scheduler
from tellme.host.text.sampling import Sampler, Sampling

SLOWER = 10.0
TIMES = 40
WAYS = {
    "top-k 40, top-p 0.95": Sampling(temperature=0.8, top_k=40, top_p=0.95),
    "top-p 0.95": Sampling(temperature=0.8, top_p=0.95),
    "temperature alone": Sampling(temperature=0.8),
}
CANDIDATES = 256


def took(function: Callable[[], object]) -> float:
    """Processor seconds of one call, the median of many."""
    out = []
    for _ in range(TIMES):
        began = time.thread_time()
        function()
        out.append(time.thread_time() - began)
    return float(np.median(out))


def scheduling(name: str, count: int, speculate: bool) -> float:
    """Seconds of planning and completing a pass, with looking for guesses and learning from them."""
    spec, keys = SHAPES[name], KEYS[name]
    rng = np.random.default_rng(3)
    scheduler = Scheduler(KV260, spec.heads // spec.kv_heads, 2 * keys + 64, count, cost=Costs(spec, KV260).cycles)
    drafts = Drafts()
    words = [rng.integers(0, 2000, 40).tolist() for _ in range(200)]

    def text(n: int) -> list[int]:
        return [t for _ in range(n // 40 + 1) for t in words[rng.integers(200)]][:n]

    for key in range(10_000, 10_000 + MEMORY // 1024):
        drafts.extend(key, text(1024))
        drafts.end(key)
    for _ in range(count):
        c = scheduler.submit(text(keys), keys + 60)
        drafts.extend(c.key, c.tokens)
    list(scheduler.admit())
    while not all(c.decoding for c in scheduler.active):
        planned = scheduler.plan()
        assert planned is not None
        scheduler.complete(planned, {p.conversation: [1] for p in planned.parts if p.chooses})

    def step() -> None:
        planned = scheduler.plan((lambda c, most: drafts.guess(c.key, most)) if speculate else None)
        assert planned is not None
        new: dict[Conversation, Sequence[int]] = {}
        for part in planned.parts:
            new[part.conversation] = text(1)
            if part.drafted:
                drafts.learn(part.draft, part.drafted, 1, 0)
            if speculate:
                drafts.extend(part.conversation.key, new[part.conversation])
        scheduler.complete(planned, new)

    return took(step)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slower", type=float, default=SLOWER)
    slower = parser.parse_args().slower
    if not slower > 0:
        parser.error("--slower must be a positive number")
    print("| model | conversations | what | here, ms a pass | share of a pass on the KV260 |\n|---|---|---|---|---|")
    for name, keys in KEYS.items():
        spec = SHAPES[name]
        plan = Plan(spec, KV260, "kv260")
        # A hundred tokens that may come, and all others far below.
        rng = np.random.default_rng(1)
        logits = rng.normal(0, 2, spec.vocab).astype(np.float32)
        logits[rng.integers(0, spec.vocab, 100)] += rng.uniform(5, 20, 100).astype(np.float32)
        for count in (1, 8):
            seconds = plan.exact([keys] * count, list(range(count)), count) / KV260.clock_hz
            plain, guessed = (scheduling(name, count, s) for s in (False, True))
            rows = {"scheduling": plain, "scheduling and guesses": guessed}
            for way, sampling in WAYS.items():
                rows[f"drawing, {way}"] = count * took(partial(Sampler(sampling), logits))
            few = partial(Sampler(WAYS["top-k 40, top-p 0.95"]), logits[:CANDIDATES])
            rows[f"drawing from {CANDIDATES} candidates"] = count * took(few)
            for what, t in rows.items():
                print(f"| {name} | {count} | {what} | {1e3 * t:.3f} | {t * slower / seconds:.1%} |", flush=True)


if __name__ == "__main__":
    main()
