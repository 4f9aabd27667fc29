"""What the host does for a pass beside the accelerator: scheduling, guesses, sampling. Processor time of one core here, and its share of a pass on the KV260.

    python -m bench.host [--slower N]

A Cortex-A53 at 1.3 GHz is taken to be SLOWER times as slow as a core here (an assumption: no board is at hand, and
`--slower` takes another number). NumPy uses vectors of 128 bits here, as there, and no exponential in vectors, which it has not for the A53. One of the four cores is counted, as the engine's thread is one; the others are the server's.
Passes are as long as the plan says, those with guesses too. Histories hold as many ended tokens as are remembered at most.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "NPY_DISABLE_CPU_FEATURES", "AVX F16C FMA3 AVX2 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
)

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bench.serving import KEYS, Plan
from tellme.golden.config import KV260
from tellme.golden.shapes import SHAPES
from tellme.host.machine.costs import Costs
from tellme.host.talk.drafts import MEMORY, Drafts
from tellme.host.talk.scheduler import Conversation, Scheduler
from tellme.host.text.sampling import Sampler, Sampling, draw

SLOWER = 10.0
TIMES = 60
WAYS = {
    "top-k 40, top-p 0.95": Sampling(temperature=0.8, top_k=40, top_p=0.95),
    "top-p 0.95": Sampling(temperature=0.8, top_p=0.95),
    "temperature alone": Sampling(temperature=0.8),
}
CANDIDATES = 256


def took(function: Callable[[], object], percentile: float = 10) -> float:
    """Processor seconds of one call, the lowest decile of many that are alike: the machine is shared, and caches with it."""
    out = []
    for _ in range(TIMES):
        began = time.thread_time()
        function()
        out.append(time.thread_time() - began)
    return float(np.percentile(out, percentile))


def scheduling(name: str, count: int, speculate: bool) -> tuple[float, float]:
    """Seconds of planning and completing a pass, with looking for guesses and learning from them; and guesses a pass."""
    spec, keys = SHAPES[name], KEYS[name]
    rng = np.random.default_rng(3)
    costs = Costs(spec, KV260)
    context = keys + 10 * TIMES * KV260.lanes
    scheduler = Scheduler(KV260, spec.heads // spec.kv_heads, context, count, cost=costs.cycles)
    drafts = Drafts()
    words = [rng.integers(0, 2000, 40).tolist() for _ in range(200)]

    def text(n: int) -> list[int]:
        return [t for _ in range(n // 40 + 1) for t in words[rng.integers(200)]][:n]

    for key in range(10_000, 10_000 + MEMORY // 1024):
        drafts.extend(key, text(1024))
        drafts.end(key)
    for _ in range(count):
        c = scheduler.submit(text(keys), context)
        drafts.extend(c.key, c.tokens)
    list(scheduler.admit())
    while not all(c.decoding for c in scheduler.active):
        planned = scheduler.plan()
        assert planned is not None
        scheduler.complete(planned, {p.conversation: [1] for p in planned.parts if p.chooses})

    # What each says next, of words that were said before: guesses are found, come true, and end.
    following = {c: iter(text(8 * TIMES * KV260.lanes)) for c in scheduler.active}

    def step() -> None:
        planned = scheduler.plan((lambda c, most: drafts.guess(c.key, most)) if speculate else None)
        assert planned is not None
        new: dict[Conversation, Sequence[int]] = {}
        for part in planned.parts:
            said = [next(following[part.conversation])]
            for guessed in part.draft.tokens[: part.drafted]:
                if said[-1] != guessed:
                    break
                said.append(next(following[part.conversation]))
            if part.drafted:
                right = len(said) - 1
                drafts.learn(part.draft, part.drafted, min(right + 1, part.drafted), right)
            if speculate:
                drafts.extend(part.conversation.key, said)
            new[part.conversation] = said
        scheduler.complete(planned, new)
        given = planned.given
        costs.measured(given.positions, given.slots, given.head[1], 4_000_000)

    seconds = took(step, 50)  # with guesses, passes differ
    return seconds, drafts.drafted / TIMES


def drawing(sampling: Sampling, logits: NDArray[np.float32], count: int) -> float:
    """Seconds of drawing the next token of so many sequences."""
    samplers = [Sampler(replace(sampling, seed=i)) for i in range(count)]
    rows, largest = np.stack([logits] * count), [float(logits.max())] * count
    draw(rows, samplers, largest)
    return took(lambda: draw(rows, samplers, largest))


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
            (plain, _), (guessed, sent) = (scheduling(name, count, s) for s in (False, True))
            lanes = [i % count for i in range(count + round(sent))]
            longer = plan.exact(
                [keys + lanes[:i].count(s) for i, s in sorted(enumerate(lanes), key=lambda x: x[1])],
                sorted(lanes),
                len(lanes),
            )
            rows = {"scheduling": (plain, seconds)}
            rows[f"scheduling and {sent:.1f} guesses"] = guessed, longer / KV260.clock_hz
            for way, sampling in WAYS.items():
                rows[f"drawing, {way}"] = drawing(sampling, logits, count), seconds
            few = drawing(WAYS["top-k 40, top-p 0.95"], np.partition(logits, -CANDIDATES)[-CANDIDATES:], count)
            rows[f"drawing from {CANDIDATES} candidates"] = few, seconds
            for what, (t, of) in rows.items():
                print(f"| {name} | {count} | {what} | {1e3 * t:.3f} | {t * slower / of:.1%} |", flush=True)


if __name__ == "__main__":
    main()
