"""Random requests by the thousand: is each text the one that the request gets alone?

    python -m bench.requests --backend golden --count 2000
    python -m bench.requests --backend sim --count 200

Blocks of requests come and go at random on one engine: prompts that share beginnings or not, greedy or drawn, with penalties, log probabilities, stop strings and end
tokens, cancelled at some token, guesses on or off, full, screened or falling-back head, few or many slots. Each text is held against that of the same request on an
engine of its own without guesses, on golden. Every block is a line of docs/measurements/requests.jsonl, and one that is there is not run again. The model is
the demo (`--model demo`) or a small one with random weights, which is quicker, both with a calibrated ternary head; the simulated machine is `tiny`, and its memory
stalls at random.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tellme.golden.arith import ceil_div
from tellme.golden.config import TINY
from tellme.golden.spec import ModelSpec
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.checkpoints.synthetic import random_weights
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.image.screening import with_screen
from tellme.host.machine.backends import GoldenBackend
from tellme.host.machine.passes import Backend
from tellme.host.machine.program import compile_program
from tellme.host.machine.screening import FULL, HeadChoice
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.host.talk.engine import Engine, Ticket
from tellme.host.talk.generate import TextStream
from tellme.host.talk.scheduler import singly
from tellme.host.text.sampling import Sampling
from tellme.host.text.tokenizer import Tokenizer
from tellme.sim.timing import timing

FILE = Path(__file__).resolve().parents[1] / "docs" / "measurements" / "requests.jsonl"
BLOCK = 20
CONTEXT = 96
SMALL = ModelSpec(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=32, ffn=96, vocab=1024, max_context=CONTEXT)
STARTS = ("Once upon a time", "One day, a small fox", "There was a kind girl named Mia. She", "The mouse said")
WORDS = "the a fox mouse girl boy tree house river day ran said saw was happy sad big small and to in with".split()


def requests(model: Model, tokenizer: Tokenizer | None, seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Of a block."""
    rng = random.Random(seed)
    vocab = model.spec.vocab
    bases = [rng.choices(range(vocab), k=40) for _ in range(3)]
    said: list[list[int]] = []
    for _ in range(count):
        if tokenizer is not None:
            prompt = tokenizer.encode(" ".join([rng.choice(STARTS), *rng.choices(WORDS, k=rng.randint(0, 12))]))
        else:
            prompt = [*bases[rng.randrange(3)][: rng.randint(1, 40)], *rng.choices(range(vocab), k=rng.randint(0, 8))]
        if said and rng.random() < 0.4:  # the same again, or its beginning
            prompt = rng.choice(said)
            prompt = prompt[: rng.randint(1, len(prompt))] if rng.random() < 0.5 else prompt
        prompt = prompt[: CONTEXT - 2]
        said.append(prompt)
        seeded = rng.randrange(1 << 20)
        yield {
            "prompt": prompt,
            "most": rng.randint(1, 24),
            "sampling": rng.choice(
                [
                    Sampling(),
                    Sampling(),
                    Sampling(temperature=0.8, top_k=rng.choice([0, 5]), top_p=0.9, seed=seeded),
                    Sampling(temperature=0.3, min_p=0.1, seed=seeded),
                    Sampling(temperature=1.1, seed=seeded),
                    Sampling(repetition_penalty=1.3),
                ]
            ),
            "ends": [*model.eos_ids, rng.randrange(model.spec.vocab)],
            "stops": rng.choice([(), (), (".", "1 2"), (" the", "He", "33"), ("a time", "\n", " 5")]),
            "speculate": rng.random() < 0.6,
            "logprobs": rng.random() < 0.1,
            "cancel": rng.randint(0, 20) if rng.random() < 0.2 else None,
        }


class Reader:
    """A request in an engine, and the text that its client sees."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer | None, request: dict[str, Any], *, speculate: bool):
        self.engine, self.request = engine, request
        ends = frozenset(request["ends"])
        self.stream = TextStream(tokenizer, request["prompt"], ends, request["stops"])
        self.text = ""
        self.why = ""
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.ticket = engine.submit(
            request["prompt"], max_new_tokens=request["most"], sampling=request["sampling"], end_ids=ends,
            speculate=speculate, logprobs=request["logprobs"],
        )  # fmt: skip

    def take(self, made: dict[Ticket, list[Any]], cancel: int | None) -> None:
        """What a pass made of it."""
        for chosen in made.get(self.ticket, ()):
            self.tokens.append(chosen.token)
            if chosen.logprobs is not None:
                self.logprobs.append(float(chosen.logprobs[chosen.token]))
            self.text += self.stream.push(chosen.token)
            if self.stream.found:
                self.why = "stop"
                break
        if not self.why and self.ticket.ended:
            self.why = self.ticket.stop
            self.text += self.stream.finish()
        if not self.why and cancel is not None and len(self.tokens) >= cancel:
            self.why = "cancelled"
        if self.why:
            self.engine.cancel(self.ticket)


def alone(backend: Backend, tokenizer: Tokenizer | None, request: dict[str, Any]) -> Reader:
    """The request when nobody else is there."""
    reader = Reader(Engine(backend), tokenizer, request, speculate=False)
    while not reader.why:
        reader.take(dict(reader.engine.step()), None)
    return reader


def same(got: Reader, want: Reader) -> bool:
    """Whether a text is the single run's; of one that was cancelled, what came."""
    n = len(got.tokens)
    if got.why == "cancelled":
        return got.tokens == want.tokens[:n] and want.text.startswith(got.text) and got.logprobs == want.logprobs[:n]
    return (got.tokens, got.text, got.why, got.logprobs) == (want.tokens, want.text, want.why, want.logprobs)


def block(model: Model, name: str, backend_name: str, seed: int, count: int) -> dict[str, Any]:
    """Plays a block; its line."""
    rng = random.Random(seed)
    tokenizer = model.tokenizer if name == "demo" else None
    slots = rng.randint(1, 6)
    facts = model.screen_facts
    assert facts is not None
    head = rng.choice(
        [FULL, HeadChoice(mode="screened", candidates=64), HeadChoice(mode="auto", candidates=128, margin=float(facts.margin)),
         HeadChoice(mode="auto", candidates=32, margin=3 * float(facts.margin))]
    )  # fmt: skip
    weights = model.weights()
    golden = GoldenBackend(weights, TINY, slots=slots, context=CONTEXT)
    backend: Backend = golden
    if backend_name == "sim":
        program = compile_program(model, TINY, slots=slots, context=CONTEXT)
        backend = SimulatedAccelerator(model, program, timing=timing("stress", seed=seed))
    backend.head = head
    single = GoldenBackend(weights, TINY, slots=1, context=CONTEXT)
    single.head = head
    began = time.monotonic()
    engine = Engine(backend, queue=8)
    if rng.random() < 0.5:
        engine.scheduler.cost = singly(lambda firsts, lanes, heads: 1.0)  # guess whatever may be
    pending = list(requests(model, tokenizer, seed, count))
    live: list[Reader] = []
    ended: list[Reader] = []
    while pending or live:
        while pending and len(engine.scheduler.waiting) < 8 and rng.random() < 0.25:
            request = pending.pop(0)
            live.append(Reader(engine, tokenizer, request, speculate=request["speculate"]))
        made = dict(engine.step())
        for reader in list(live):
            reader.take(made, reader.request["cancel"])
            if reader.why:
                live.remove(reader)
                ended.append(reader)
    backend.close()
    wrong = [i for i, r in enumerate(ended) if not same(r, alone(single, tokenizer, r.request))]
    return {
        "model": name, "backend": backend_name, "seed": seed, "requests": count, "slots": slots, "head": head.mode, "candidates": head.candidates if head.mode != "full" else None,
        "passes": engine.counts.passes, "tokens": engine.counts.tokens, "drafted": engine.drafts.drafted, "accepted": engine.drafts.accepted,
        "fallbacks": backend.fallbacks, "ended": dict(Counter(r.why for r in ended)), "lost": count - len(ended),
        "held": sum(s.holder is not None for s in engine.scheduler.slots), "wrong": wrong, "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def main() -> None:
    """Runs what is missing and prints sums."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", choices=("golden", "sim"), default="golden")
    parser.add_argument("--model", choices=("small", "demo"), default="small")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--file", type=Path, default=FILE)
    o = parser.parse_args()
    if not 1 <= o.count <= 1_000_000 or o.seed < 0:
        parser.error("--count must be from 1 to 1,000,000 and --seed at least 0")
    done: dict[tuple[str, str, int], dict[str, Any]] = {}
    if o.file.exists():
        done = {(r["model"], r["backend"], r["seed"]): r for r in map(json.loads, o.file.read_text().splitlines())}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.tlm"
        checkpoint = read_checkpoint(demo_folder())
        if o.model == "small":
            checkpoint = replace(checkpoint, weights=random_weights(SMALL, 3))
        convert(with_screen(checkpoint, TINY)[0], path, TINY)
        with Model.open(path, TINY) as model:
            lines = []
            for n in range(ceil_div(o.count, BLOCK)):
                key = (o.model, o.backend, 10_000 * o.seed + n)
                if key not in done:
                    done[key] = block(model, *key, BLOCK)
                    with o.file.open("a") as file:
                        file.write(json.dumps(done[key]) + "\n")
                lines.append(done[key])
                print(json.dumps(done[key]), flush=True)
    total = {k: int(np.sum([r[k] for r in lines])) for k in ("requests", "passes", "tokens", "drafted", "accepted", "fallbacks", "lost", "held")}  # fmt: skip
    ended: Counter[str] = Counter()
    for r in lines:
        ended.update(r["ended"])
    wrong = sum(len(r["wrong"]) for r in lines)
    print(json.dumps({**total, "ended": ended, "wrong": wrong}))
    if wrong or total["lost"] or total["held"]:
        raise SystemExit("some texts are not what they are alone")


if __name__ == "__main__":
    main()
