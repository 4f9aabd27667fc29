"""What guesses are worth: tokens a pass and cycles, on texts that repeat and on texts that do not.

    python -m bench.guesses [--replay]

Two tables. *Made*: the demo model makes every text twice on golden, without guesses and with them; it must be the same. It is too small to copy, so its only copy-like work is what it has said before.
Cycles of the `tiny` machine are by the plan, pass by pass; so is the last column, which charges the same passes to BitNet 0.73B on the KV260 (128 keys).
*Replayed* (`--replay`: this one alone): the texts of host/talk/work.py go through scheduler and guesses as if a model wrote them, in tokens of the demo's tokenizer, which are shorter than a
large model's; each pass costs what the plan says for the model's shape on the KV260 with the given keys.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bench.serving import KEYS as SERVED
from bench.serving import Plan
from tellme.golden.config import KV260, TINY
from tellme.golden.shapes import BITNET_07B, SHAPES
from tellme.host.image.model import Model, demo_folder
from tellme.host.machine.backends import GoldenBackend
from tellme.host.machine.costs import Costs
from tellme.host.machine.passes import Pass, PassResult
from tellme.host.machine.simulation import memory_timing
from tellme.host.talk.engine import Engine
from tellme.host.talk.generate import Generation, Report
from tellme.host.talk.replay import Replay, replay
from tellme.host.talk.work import WORK
from tellme.hw.plan import predict, steps
from tellme.sim.stream import SustainedMemory

MADE = {
    "story": ["Once upon a time"],
    "another story": ["One day, a small fox"],
    "the same again": ["Once upon a time", "Once upon a time"],
    "another beginning": ["Once upon a time, in a valley, there lived", "One evening, in a valley, there lived"],
    "a prompt that repeats itself": ["Anna was kind. Anna was brave. Anna was kind. Anna was brave. Anna was kind."],
}
"""Requests, one after the other; the last is measured."""
TOKENS = 100
KEYS = 128


class Noting(GoldenBackend):
    """Remembers its decode passes."""

    def __init__(self, model: Model):
        super().__init__(model.weights(), TINY)
        self.passes: list[Pass] = []

    def _pass(self, given: Pass) -> PassResult:
        self.passes.append(given)
        return super()._pass(given)


def run(model: Model, requests: list[str], *, speculate: bool) -> tuple[Report, list[Pass]]:
    """The last request's report and decode passes."""
    backend = Noting(model)
    engine = Engine(backend, whole_prompts=True)
    for text in requests:
        backend.passes.clear()
        made = Generation(
            engine,
            model.tokenizer,
            model.tokenizer.encode(text),
            max_new_tokens=TOKENS,
            eos_ids=model.eos_ids,
            speculate=speculate,
        )
        list(made)
    return made.report, backend.passes


def replayed_by(name: str, keys: int, text: tuple[Sequence[int], Sequence[int]]) -> tuple[Replay, float]:
    """The passes of an answer to a prompt, and how many times as fast it is as without guesses, each pass at `keys` keys."""
    plan, costs = Plan(SHAPES[name], KV260, "kv260"), Costs(SHAPES[name], KV260)

    def cost(firsts: Sequence[int], lanes: Sequence[int], heads: int, more: Sequence[int]) -> list[float]:
        return costs.cycles([keys], lanes, heads, more)

    def cycles(lanes: int) -> int:
        return plan.exact(range(keys, keys + lanes), [0] * lanes, lanes)

    found = replay([text], KV260, plan.spec.heads // plan.spec.kv_heads, cost)
    return found, found.tokens * cycles(1) / sum(cycles(n) * times for (n,), times in found.passes.items())


def replayed() -> None:
    """Prints the second table."""
    print(
        "| work | tokens | model | guessed | right | tokens a pass | faster, `kv260` |\n|---|---|---|---|---|---|---|"
    )
    with Model.open(demo_folder(), TINY) as model:
        encode = model.tokenizer
        for w in WORK:
            text = encode.encode(w.prompt), encode.encode_more(w.answer)
            for name, keys in SERVED.items():
                found, faster = replayed_by(name, keys, text)
                assert faster >= (1.8 if w.copies else 0.98), (w.name, name, faster)
                print(
                    f"| {w.name} | {found.tokens} | {name} | {found.drafted} | {found.accepted} | {found.tokens_per_pass:.2f} | {faster:.2f} |",
                    flush=True,
                )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--replay", action="store_true")
    if not parser.parse_args().replay:
        made()
        print()
    replayed()


def made() -> None:
    """Prints the first table."""
    memory = SustainedMemory(memory_timing("kv260", None))
    large = {
        n: predict(steps(BITNET_07B, KV260, range(KEYS, KEYS + n), [0] * n, n), KV260, memory).cycles
        for n in range(1, TINY.lanes + 1)
    }
    print(
        "| work | tokens | guessed | right | tokens a pass | faster, `tiny` | faster, 0.73B on `kv260` |\n|---|---|---|---|---|---|---|"
    )
    with Model.open(demo_folder(), TINY) as model:

        def cycles(passes: list[Pass]) -> int:
            return sum(
                predict(steps(model.spec, TINY, p.positions, p.slots, p.head[1]), TINY, memory).cycles for p in passes
            )

        for name, requests in MADE.items():
            (plain, without), (fast, with_guesses) = (run(model, requests, speculate=s) for s in (False, True))
            assert fast.new_ids == plain.new_ids and fast.text == plain.text
            tiny = cycles(without) / cycles(with_guesses)
            kv260 = sum(large[p.lanes] for p in without) / sum(large[p.lanes] for p in with_guesses)
            print(
                f"| {name} | {len(fast.new_ids)} | {fast.drafted} | {fast.accepted} | {fast.tokens_per_pass:.2f} | {tiny:.2f} | {kv260:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
