"""Faults in passes by the thousand (`make faults`), and tokens by the thousand (`make soak`), on the simulated machine.

`python -m bench.faults`: injections of tests/machine/campaign.py, shared over the farm; each machine's results are a line of docs/measurements/faults.jsonl, and what has one is
not run again. `python -m bench.faults --soak`: conversations at random places of random lengths under random stalls of memory, every logit compared with golden.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.workers import add_options, workers
from tellme.golden import schedule, screen
from tellme.golden.config import TINY
from tellme.golden.registers import ErrorCode
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.passes import Pass
from tellme.host.machine.program import compile_program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.sim.timing import timing
from tests.machine.campaign import KINDS, ODD, Campaign, Injection, lost_answer, odd_answer

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "measurements"
OUTCOMES = ("detected", "harmless", "data", "hung", "wrong")


# Of ten blocks: what each is for. "lost" and "odd" have a twentieth of the others' injections, each on a machine of its own.
BLOCKS = ("plain", "screened", "random start", "plain", "bus", "plain", "screened", "lost", "plain", "odd")
Task = tuple[int, str, int]
"""Seed, kind of block, injections."""


def block(task: Task) -> list[dict[str, object]]:
    """The injections of a seed, on one simulator."""
    seed, what, count = task
    out: list[dict[str, object]] = []

    def add(number: int, injection: Injection, exact: bool) -> None:
        out.append(asdict(injection) | {"number": number, "exact": exact, "seed": seed, "block": what})

    with (
        tempfile.TemporaryDirectory(prefix="tellme-faults-") as folder,
        Model.open(image(Path(folder), screened=what == "screened"), TINY) as model,
    ):
        if what in ("lost", "odd"):
            for number in range(count):
                add(number, (lost_answer if what == "lost" else odd_answer)(model, seed, number), True)
            return out
        rate = 1 / 3000 if what == "bus" else 0.0
        with Campaign(
            model, seed, error_rate=rate, screened=what == "screened", random_start=what == "random start"
        ) as campaign:
            for number in range(count):
                injection, exact = campaign.inject(number)
                add(number, injection, exact)
                if injection.outcome == "hung" or not exact:
                    break  # the machine is in a state of its own: the next block has another
    return out


def tasks(seed: int, count: int, size: int) -> Iterator[Task]:
    """Blocks of a campaign."""
    done, n = 0, 0
    while done < count:
        what = BLOCKS[n % len(BLOCKS)]
        injections = max(1, size // 20) if what in ("lost", "odd") else size
        injections = min(injections, count - done)
        yield seed + n, what, injections
        done += injections
        n += 1


def image(folder: Path, *, screened: bool) -> Path:
    """The demo model for the tiny preset, or the same with one plane of a screened head."""
    checkpoint = read_checkpoint(demo_folder())
    if screened:
        planes = screen.quantise(*checkpoint.weights.head_rows, 1)
        checkpoint = replace(checkpoint, weights=replace(checkpoint.weights, screen=planes))
    convert(checkpoint, folder / "demo.tlm", TINY)
    return folder / "demo.tlm"


def summary(part: list[dict[str, object]], commit: str) -> dict[str, object]:
    """A block's line in the results: how many of each kind had which outcome, and all of those that went wrong. The others can be had again by the seed."""
    counts = Counter((str(r["kind"]), str(r["outcome"])) for r in part)
    return {
        "seed": part[0]["seed"], "block": part[0]["block"], "commit": commit, "injections": len(part), "exact": sum(bool(r["exact"]) for r in part),
        "outcomes": {kind: {o: n for (k, o), n in counts.items() if k == kind} for kind in dict.fromkeys(str(r["kind"]) for r in part)},
        "codes": dict(sorted(Counter(str(r["code"]) for r in part if r["code"]).items())),
        "bad": [r for r in part if r["outcome"] in ("hung", "wrong") or not r["exact"]],
    }  # fmt: skip


def table(blocks: list[dict[str, Any]]) -> str:
    """Outcomes of each kind of fault; of error codes; of blocks."""
    out = ["| fault | injected | " + " | ".join(OUTCOMES) + " |", "|---|---|" + "---|" * len(OUTCOMES)]
    kinds = [*KINDS, "lost answer", *(f"odd answer, {what}" for what in ODD)]
    counts = {k: Counter[str]() for k in kinds}
    codes: Counter[str] = Counter()
    for b in blocks:
        codes.update(b["codes"])
        for kind, outcomes in b["outcomes"].items():
            counts[kind].update(outcomes)
    for kind, c in [*counts.items(), ("all", sum(counts.values(), Counter[str]()))]:
        out.append(f"| {kind} | {sum(c.values()):,} | " + " | ".join(f"{c[o]:,}" for o in OUTCOMES) + " |")
    exact, injections = (sum(b[n] for b in blocks) for n in ("exact", "injections"))
    told = ", ".join(f"{ErrorCode(int(code)).name} {n:,}" for code, n in sorted(codes.items(), key=lambda x: int(x[0])))
    machines = Counter(b["block"] for b in blocks)
    commits = ", ".join(sorted({b["commit"] for b in blocks}))
    return "\n".join(out) + (
        f"\n\nThe next pass was exact behind {exact:,} of {injections:,}. Codes told: {told}. Machines: "
        + ", ".join(f"{n} {what}" for what, n in machines.items())
        + f". Commits: {commits}.\n"
    )


HEADER = """# Faults

`make faults` ([bench/faults.py](../../bench/faults.py)) puts faults into passes of the simulated machine (`tiny`, the demo model): prefill, decode, lanes of three conversations, several
tokens of one conversation with logits of each; with the full head and (*screened*) with candidates. What the kinds are, and what *detected*, *harmless*, *data*, *hung* and *wrong* mean, is said in
[tests/machine/campaign.py](../../tests/machine/campaign.py). Behind each injection memory and registers are as they were, and a pass must be exact, bit for bit. Behind a bus error the next
pass may meet one, too: it is an injection of its own. Behind a lost or a superfluous answer there is no next pass: the bitstream must be loaded again, and the message says so. *data*: bytes
without redundancy were changed, and the logits with them; nothing can tell (see [security](../security.md)). *random start*: registers and memories, but for those that are only read, hold
random bits before the first reset. *odd answer*: the interconnect breaks AXI4. Another ID is harmless, because the accelerator looks at none; a last beat that comes twice ends in a time-out that only
a new bitstream ends; two answers that are swapped cannot be told from right ones. Each line of [faults.jsonl](faults.jsonl) is a machine with its seed, which gives the same faults again.

"""


def commit() -> str:
    """The sources that are tried."""
    said = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=FOLDER, capture_output=True, text=True)
    return said.stdout.strip() or "unknown"


def faults(a: argparse.Namespace) -> None:
    """Runs the campaign from where it was left, and writes its table."""
    results = FOLDER / "faults.jsonl"
    blocks = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    have = {b["seed"] for b in blocks}
    begin, sources = time.monotonic(), commit()
    todo = {f"seed {t[0]}, {t[1]}": t for t in tasks(a.seed, a.count, a.block) if t[0] not in have}
    with workers(a, "machines") as run, results.open("a") as out:
        for _, part in run(block, todo):
            blocks.append(summary(part, sources))
            out.write(json.dumps(blocks[-1]) + "\n")
            out.flush()
            (FOLDER / "faults.md").write_text(HEADER + table(blocks))
            print(f"{sum(b['injections'] for b in blocks):,} injections", *blocks[-1]["bad"], sep="\n  ", flush=True)
            if time.monotonic() - begin > a.seconds:
                break
    print(table(blocks))
    bad = [r for b in blocks for r in b["bad"]]
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
    add_options(parser)
    parser.add_argument("--block", type=int, default=200, help="injections that a simulator lives for")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="wall clock after which nothing new is begun"
    )
    a = parser.parse_args()
    (soak if a.soak else faults)(a)


if __name__ == "__main__":
    from bench.faults import main as run  # workers find the functions of a module, not of a program

    run()
