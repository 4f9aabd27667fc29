"""Faults in passes by the thousand (`make faults`), and tokens by the thousand (`make soak`), on the simulated machine.

`python -m bench.faults`: injections of tests/machine/campaign.py, shared by several workers; each result is a line of docs/measurements/faults.jsonl, and what has one is
not run again. `python -m bench.faults --soak`: conversations at random places of random lengths under random stalls of memory, every logit compared with golden.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tellme.golden import schedule
from tellme.golden.config import TINY
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.passes import Pass
from tellme.host.machine.program import compile_program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.sim.timing import timing
from tests.machine.campaign import KINDS, Campaign, lost_answer

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "measurements"
OUTCOMES = ("detected", "harmless", "data", "hung", "wrong")


def block(task: tuple[int, int, int, float, str]) -> list[dict[str, object]]:
    """Injections [begin, end) of a seed, on one simulator."""
    seed, begin, end, rate, image = task
    out: list[dict[str, object]] = []
    with Model.open(Path(image), TINY) as model:
        if rate < 0:
            return [
                asdict(lost_answer(model, seed, n)) | {"number": n, "exact": True, "seed": seed}
                for n in range(begin, end)
            ]
        with Campaign(model, seed, error_rate=rate) as campaign:
            for number in range(begin, end):
                injection, exact = campaign.inject(number)
                out.append(asdict(injection) | {"number": number, "exact": exact, "seed": seed})
                if injection.outcome == "hung" or not exact:
                    break  # the machine is in a state of its own: the next block has another
    return out


def tasks(seed: int, count: int, size: int, image: str) -> Iterator[tuple[int, int, int, float, str]]:
    """Blocks of a campaign: of ten, eight with faults of all kinds, one with bus errors, and a twentieth of one with lost answers."""
    done, n = 0, 0
    while done < count:
        rate = 1 / 3000 if n % 10 == 4 else -1.0 if n % 10 == 7 else 0.0
        injections = max(1, size // 20) if rate < 0 else size
        yield seed + n, 0, min(injections, count - done), rate, image
        done += injections
        n += 1


def table(rows: list[dict[str, object]]) -> str:
    """Outcomes of each kind of fault."""
    out = [
        "| fault | injected | " + " | ".join(OUTCOMES) + " | next pass exact |",
        "|---|---|" + "---|" * (len(OUTCOMES) + 1),
    ]
    for kind in [*KINDS, "lost answer", None]:
        mine = [r for r in rows if kind is None or r["kind"] == kind]
        counts = Counter(str(r["outcome"]) for r in mine)
        exact = sum(bool(r["exact"]) for r in mine)
        out.append(
            f"| {kind or 'all'} | {len(mine)} | " + " | ".join(str(counts[o]) for o in OUTCOMES) + f" | {exact} |"
        )
    return "\n".join(out)


HEADER = """# Faults

`make faults` ([bench/faults.py](../../bench/faults.py)) puts faults into passes of the simulated machine (`tiny`, the demo model): prefill, decode, lanes of three conversations, several
tokens of one conversation with logits of each. What the kinds are, and what *detected*, *harmless*, *data*, *hung* and *wrong* mean, is said in
[tests/machine/campaign.py](../../tests/machine/campaign.py). Behind each injection memory and registers are as they were, and a pass must be exact, bit for bit. Behind a bus error the next
pass may meet one, too: it is an injection of its own. Behind a lost answer there is no next pass: the bitstream must be loaded again, and the message says so. *data*: bytes without redundancy
were changed, and the logits with them; nothing can tell (see [security](../security.md)). Not injected, because the simulated memory does not make them: answers twice, out of order
or with another ID; a reset of the whole device in the middle of a burst.

"""


def faults(a: argparse.Namespace) -> None:
    """Runs the campaign from where it was left, and writes its table."""
    results = FOLDER / "faults.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    have = Counter((r["seed"]) for r in rows)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tellme-faults-") as folder:
        image = Path(folder) / "demo.tlm"
        convert(read_checkpoint(demo_folder()), image, TINY)
        todo = [t for t in tasks(a.seed, a.count, a.block, str(image)) if not have[t[0]]]
        with multiprocessing.get_context("spawn").Pool(a.workers) as pool, results.open("a") as out:
            for part in pool.imap_unordered(block, todo):
                rows += part
                out.write("".join(json.dumps(r) + "\n" for r in part))
                out.flush()
                bad = [r for r in part if r["outcome"] in ("hung", "wrong") or not r["exact"]]
                print(
                    f"{len(rows)} injections, {dict(Counter(str(r['outcome']) for r in rows))}",
                    *bad,
                    sep="\n  ",
                    flush=True,
                )
                if time.monotonic() - begin > a.seconds:
                    pool.terminate()
                    break
    (FOLDER / "faults.md").write_text(HEADER + table(rows) + "\n")
    print(table(rows))
    bad = [r for r in rows if r["outcome"] in ("hung", "wrong") or not r["exact"]]
    if bad:
        raise SystemExit(f"{len(bad)} faults went wrong: {bad[:3]}")


def soak(a: argparse.Namespace) -> None:
    """Tokens of many conversations under stress: every logit is golden's, counters add up, nothing is owed."""
    begin, slots = time.monotonic(), 6
    rng = random.Random(a.seed)
    done = passes = logits = stalled = cycles = conversations = 0
    with tempfile.TemporaryDirectory(prefix="tellme-soak-") as folder:
        image = Path(folder) / "demo.tlm"
        convert(read_checkpoint(demo_folder()), image, TINY)
        with Model.open(image, TINY) as model:
            program = compile_program(model, TINY, slots=slots)
            weights = model.weights()
            while done < a.count and time.monotonic() - begin < a.seconds:
                how = rng.choice(("stress", "stress", "kv260", "ideal"))
                machine = SimulatedAccelerator(model, program, timing=timing(how, seed=rng.getrandbits(16)))
                both = CheckedBackend(machine, GoldenBackend(weights, TINY, slots=slots))
                with both:
                    at = [0] * slots
                    for _ in range(100):
                        positions: list[int] = []
                        of: list[int] = []
                        for slot in rng.sample(range(slots), slots):
                            n = rng.randint(0, TINY.lanes - len(of))
                            if at[slot] + n > program.context or rng.random() < 0.01:
                                at[slot] = 0
                                conversations += 1
                            positions += range(at[slot], at[slot] + n)
                            of += [slot] * n
                            at[slot] += n
                        if not of:
                            continue
                        lanes = len(of)
                        first = rng.randrange(lanes)
                        given = Pass.of(
                            [rng.randrange(model.spec.vocab) for _ in of],
                            positions,
                            of,
                            head=(first, rng.randint(0, lanes - first)),
                        )
                        r = both.run_pass(given)
                        read = schedule.segments(TINY, program.code, program.program_address, positions, of, lanes)
                        assert r.cycles is not None and r.beats == sum(s.beats for s in read), (given, r)
                        assert abs(r.cycles - r.beats - sum(r.stalls.values())) <= 1, (given, r)
                        assert machine.read("owed") == 0 and not machine.read_fields("status")["busy"]
                        done, passes, cycles = done + lanes, passes + 1, cycles + r.cycles
                        stalled += r.stalls["memory"]
                        if done >= a.count or time.monotonic() - begin > a.seconds:
                            break
                    logits += both.logits
                print(
                    f"{done} tokens in {passes} passes, {conversations} conversations, {logits} logits equal",
                    flush=True,
                )
    text = (
        "# Soak\n\n`make soak` ([bench/faults.py](../../bench/faults.py)): tokens of six conversations at a time on the simulated machine (`tiny`, the demo model), lanes at random, memory "
        "under random stalls (*stress*), as a KV260's, or ideal. Every logit is golden's bit for bit; each pass reads just the beats of the schedule, its cycles are its beats and its "
        f"stalls, and nothing is owed behind it.\n\n| tokens | passes | conversations begun | logits compared | cycles | of these waiting for memory |\n|---|---|---|---|---|---|\n"
        f"| {done:,} | {passes:,} | {conversations + slots:,} | {logits:,} | {cycles:,} | {stalled:,} |\n"
    )
    (FOLDER / "soak.md").write_text(text)
    print(text)


def main() -> None:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(description="Faults and endurance of the simulated machine.")
    parser.add_argument("--soak", action="store_true", help="tokens instead of faults")
    parser.add_argument("--count", type=int, default=10_000, help="injections or tokens")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--block", type=int, default=200, help="injections that a simulator lives for")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="wall clock after which nothing new is begun"
    )
    a = parser.parse_args()
    (soak if a.soak else faults)(a)


if __name__ == "__main__":
    main()
