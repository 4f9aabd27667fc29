"""All proofs, claim by claim, and their table: `make formal`. Writes docs/measurements/formal.md."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

from bench.workers import add_options, workers
from tests.formal.control import RegisterBench, SupervisorBench
from tests.formal.memory import ReaderBench, WriterBench, scaled
from tests.formal.progress import CheckBench, ExecutorBench, FetcherBench, SequencerBench
from tests.formal.prover import Bench, Result, prove
from tests.formal.queues import QueueBench
from tests.formal.tlmm import TableBench, UnpackerBench

OUT = Path(__file__).resolve().parents[1] / "docs" / "measurements" / "formal.md"
DEPTH = 24
"""Cycles of a bounded proof."""

HEADER = f"""# Proofs

`make formal` ([bench/formal.py](../../bench/formal.py)) proves what the benches in [tests/formal](../../tests/formal) claim: Amaranth to RTLIL, Yosys to AIGER, then ABC of
the pyosys package, `pdr` without bound and `bmc3` for the first {DEPTH} cycles (or what is named) where `pdr` comes to no end in the time it is given. No design has an assertion in it: claims are written
beside it, about its ports alone. `make test` proves the quick ones. A claim that breaks is named, with the cycle in which it first can.

## What is assumed

- **Queues**: entries of one bit (order and loss do not depend on more); whoever writes keeps the account that the queue's docstring asks for.
- **Register bus**: a master that keeps to AXI4-Lite (payload stable while it waits); every address, every strobe, two bits of data; the lock of a pass comes and goes.
- **Supervisor**: nothing. Every input may have any value in every cycle; time-outs of 0 and 3 cycles.
- **Sequencer, fetcher, executor and the check of programs**: two lanes anywhere in the first blocks of the cache, one or two KV heads, any program of descriptors that the check lets pass (for the check: of any bits). Whoever
  takes, answers or works does so sometime; "it goes on" counts cycles in which nobody keeps it waiting. The executor is proved with any check of programs, the check apart from it. Whether the
  beats that are asked for are those that the units wait for is no claim here: the simulations of whole machines see that.
- **Memory ports**: one port of 16 bytes, bursts of at most 2 beats, 2 in flight, a FIFO of 4 beats, queues of 2; addresses on both sides of a 4 KiB boundary and of the window's end. Memory keeps to
  AXI4: it answers what it owes, in order (each master uses one ID), with any response and as late as it likes. "In time" counts cycles in which memory keeps nobody waiting. `clear` is free.
- **Indices and tables**: any beats, the indices of groups of every size, inside bytes, across them and short, of a beat of 5 bytes (of the format `grouped` 16); whole tiles of two words of five
  activations of the bits that are named, taken at any time that the docstring allows. The proofs of so many cycles are of all: nothing is left of a beat or a tile after the cycles that it takes.
- Registers begin as a bitstream leaves them (zeros, and what is initialised); *reset* in the table: with any contents, before one cycle of reset.

## What is proved

"without bound": in every cycle that can ever be reached. Otherwise the cycles from the start that were looked at.

"""


HEAD = ("| design | claim | proved | registers | s |", "|---|---|---|---|---|")


def benches() -> list[tuple[Bench, bool]]:
    """Every bench, and whether all its claims are proved at once (they are quick so)."""
    queues = [
        QueueBench(kind, depth)
        for kind, depth in (("Queue", 2), ("Queue", 4), ("RegisterSlice", 2), ("DeepFifo", 2), ("DeepFifo", 4))
    ]
    queues += [QueueBench("ShortQueue", 4), QueueBench("ReservedQueue", 4)]
    control: list[Bench] = [
        SupervisorBench(0),
        SupervisorBench(3),
        RegisterBench("timeout", live=True),
        RegisterBench("lanes", live=False),
    ]
    control += [
        SupervisorBench(3, arbitrary=True),
        RegisterBench("timeout", live=True, arbitrary=True),
        QueueBench("Queue", 2, arbitrary=True),
    ]
    control += [ExecutorBench(), FetcherBench(attends=False)]
    walks: list[Bench] = [SequencerBench(), FetcherBench(), CheckBench(), TableBench(4, 2), TableBench(5, 2)]
    ports: list[Bench] = [
        WriterBench(clears=False),
        WriterBench(),
        ReaderBench(clears=False),
        ReaderBench(),
        ReaderBench(scaled(burst_beats=4, fifo_beats=8)),
    ]
    products: list[Bench] = [UnpackerBench(size) for size in (2, 3, 4, 5)]
    products += [UnpackerBench(size, "grouped") for size in (2, 3, 4, 5)]
    products += [TableBench(2, 8), TableBench(3, 3)]
    return [(b, True) for b in [*queues, *control, *products]] + [(b, False) for b in [*walks, *ports]]


Task = tuple[int, str | None, float, bool]
"""Which of `benches`, which of its claims (None: all at once), seconds for a proof, and whether it is to be one of so many cycles."""
GIVEN_UP = " (given up)"


def _title(bench: Bench) -> str:
    """Its name in the table."""
    return f"{bench.name}{' (reset)' if bench.arbitrary else ''}"


def tasks(only: str, seconds: float, given_up: bool) -> dict[str, Task]:
    """The proofs of benches whose name begins with `only`, or of those the claims that the table says were given up."""
    out: dict[str, Task] = {}
    table = OUT.read_text()
    for i, (bench, whole) in enumerate(benches()):
        if bench.name.startswith(only):
            for name in [None] if whole else bench.rtlil()[1]:
                row = re.escape(f"| {_title(bench)} | {name} | ")
                if not given_up or re.search(rf"^{row}\d+ cycles{re.escape(GIVEN_UP)}", table, re.MULTILINE):
                    out[f"{_title(bench)}: {name or 'all claims'}"] = (i, name, seconds, given_up)
    return out


def attempt(task: Task) -> tuple[str, Result]:
    """In a worker: the claim, or how many, and what became of it."""
    i, name, seconds, bounded = task
    bench, _ = benches()[i]
    if name is None:
        count = len(bench.rtlil()[1])
        return f"all {count} claims", prove(bench, seconds=seconds, depth=getattr(bench, "cycles", None))
    r = None if bounded else prove(bench, seconds=seconds, only=[name])
    if r is None or r.undecided:
        depth = getattr(bench, "depth", getattr(bench, "cycles", DEPTH))
        r = prove(bench, seconds=seconds, depth=depth, only=[name])
    return name, r


def said(r: Result) -> str:
    """A result in words."""
    if r.proved:
        return f"{r.depth} cycles" if r.bounded else "without bound"
    if r.undecided:
        return f"{r.depth} cycles{GIVEN_UP}"
    return f"**broken in cycle {r.cycle}: {r.broken}**"


def merged(rows: list[str]) -> str:
    """The table as it is, with claims that were proved anew in the place of what it has of them, or behind the others of the kind."""
    text = OUT.read_text()
    begin = text.index("| design |")
    end = text.index("\n\n", begin)

    def key(row: str) -> tuple[str, str]:
        design, claim = row.split(" | ")[:2]
        return design, re.sub(r"^all \d+ claims$", "all", claim)  # there may be more of them by now

    ran = [key(row) for row in rows]
    old = [row for row in text[begin:end].split("\n")[2:] if key(row) not in ran]
    every = [*old, *rows]
    order = {bench.name: i for i, (bench, _) in enumerate(benches())}
    every.sort(key=lambda row: order.get(key(row)[0].removeprefix("| ").removesuffix(" (reset)"), len(order)))
    return "\n".join([*HEAD, *every]) + text[end:]


def main() -> None:
    """Runs the proofs, prints and writes their table; ends with an error if a claim breaks."""
    parser = argparse.ArgumentParser(description="Proves what the benches in tests/formal claim.")
    parser.add_argument("--seconds", type=float, default=120, help="for each proof")
    parser.add_argument(
        "--only", default="", help="benches whose name begins so; the table keeps the rows of the others"
    )
    parser.add_argument(
        "--given-up", action="store_true", help="claims that the table says were given up, for so many cycles only"
    )
    add_options(parser)
    a = parser.parse_args()
    todo, found, begin = tasks(a.only, a.seconds, a.given_up), dict[str, str](), time.monotonic()
    broken, every = [], benches()
    with workers(a, "proofs") as run:
        for name, (claim, r) in run(attempt, todo):
            title = _title(every[todo[name][0]][0])
            found[name] = f"| {title} | {claim} | {said(r)} | {r.registers} | {r.seconds:.0f} |"
            print(found[name], flush=True)
            OUT.write_text(HEADER + merged([found[name] for name in todo if name in found]))
            broken += [] if r.proved or r.undecided else [f"{title}: {r.broken}"]
    rows = [found[name] for name in todo]
    if not (a.only or a.given_up):
        minutes = (time.monotonic() - begin) / 60
        said_of = f"All of it took {minutes:.0f} minutes, {a.seconds:g} seconds at most for a proof of a claim, on two cores with other work."
        OUT.write_text(HEADER + "\n".join([*HEAD, *rows]) + f"\n\n{said_of}\n")
    if broken:
        raise SystemExit("broken: " + "; ".join(broken))


if __name__ == "__main__":
    from bench.formal import main as run_all  # workers find the functions of a module, not of a program

    run_all()
