"""What the host does for a pass beside the accelerator: scheduling, guesses, sampling. Its share of a pass on the KV260.

    python -m bench.host [--slower N] [--threads N]
    python -m bench.host --qemu qemu-aarch64 --root ROOT --numpy FOLDER [--cycles N] [--threads N]
    python -m bench.host --clock

Without a board there are two ways to say how long that is on a Cortex-A53 at 1.3 GHz. The first takes processor time here, on one core, and an A53 for SLOWER times as slow. The
second counts the instructions of the same work, done by Python and NumPy for AArch64 under QEMU, and takes an A53 to need CYCLES cycles for one; so it does not depend on this machine nor on who else
uses it. ROOT holds Debian's arm64 packages libc6, libffi8, libpython3.11-minimal, libpython3.11-stdlib, python3.11-minimal, libgcc-s1, libstdc++6, zlib1g and libexpat1, unpacked (`dpkg -x`), FOLDER NumPy's wheel for
manylinux2014_aarch64; a C compiler makes the plugin that counts.

NumPy uses vectors of 128 bits here, as there, and no exponential in vectors, which it has not for the A53. Counted is the engine's thread, which is one of four cores;
the threads that look through logits with it are on the others, which are the server's. What waking them costs is in neither; --clock has it, of this machine.
Passes are as long as the plan says, those with guesses too. Histories hold as many ended tokens as are remembered at most (under QEMU an eighth).
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "NPY_DISABLE_CPU_FEATURES", "AVX F16C FMA3 AVX2 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
)

import argparse
import ctypes
import math
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellme.golden.config import KV260
from tellme.golden.shapes import SHAPES
from tellme.host.machine.costs import Costs
from tellme.host.talk.drafts import MEMORY, Drafts
from tellme.host.talk.scheduler import Conversation, Scheduler
from tellme.host.text import sampling
from tellme.host.text.sampling import Sampler, Sampling, draw

SLOWER = 10.0
CYCLES = 1.25
CLOCK_HZ = 1.3e9
TIMES = 60
WAYS = {
    "top-k 40, top-p 0.95": Sampling(temperature=0.8, top_k=40, top_p=0.95),
    "top-p 0.95": Sampling(temperature=0.8, top_p=0.95),
    "temperature alone": Sampling(temperature=0.8),
}
THREADS = 4
"""That look through logits, on a board with so many cores."""
MOST_THREADS = 64
"""That are counted under QEMU."""
CANDIDATES = 256
GUESSES = 8
MARK = 173
"""Number of AArch64's getppid, which marks a place in the count."""
PLUGIN = r"""
#include <stdint.h>
#include <stdio.h>
/* The part of QEMU's plugin interface, version 1, that is used here; see its qemu-plugin.h. */
typedef uint64_t id_t_;
struct qemu_plugin_tb;
extern void qemu_plugin_register_vcpu_tb_trans_cb(id_t_, void (*)(id_t_, struct qemu_plugin_tb *));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
extern void qemu_plugin_register_vcpu_syscall_cb(id_t_, void (*)(id_t_, unsigned, int64_t, uint64_t, uint64_t,
    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
int qemu_plugin_version = 1;
static uint64_t count[THREADS];
static void ran(unsigned cpu, void *n) { count[cpu] += (uint64_t)n; }
static void block(id_t_ id, struct qemu_plugin_tb *tb) {
    qemu_plugin_register_vcpu_tb_exec_cb(tb, ran, 0, (void *)(uint64_t)qemu_plugin_tb_n_insns(tb));
}
static void call(id_t_ id, unsigned cpu, int64_t n, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
    uint64_t f, uint64_t g, uint64_t h) {
    if (n != MARK) return;
    fprintf(stderr, "count");
    for (int i = 0; i < THREADS; i++) fprintf(stderr, " %llu", (unsigned long long)count[i]);
    fprintf(stderr, "\n");
}
int qemu_plugin_install(id_t_ id, const void *info, int argc, char **argv) {
    qemu_plugin_register_vcpu_tb_trans_cb(id, block);
    qemu_plugin_register_vcpu_syscall_cb(id, call);
    return 0;
}
"""


@dataclass
class Work:
    """Something that is done for a pass.

    Attributes
    ----------
    do : does it once. lanes : of that pass, asked for when it is done.
    before : done before each, and not counted.
    """

    what: str
    do: Callable[[], object]
    lanes: Callable[[], int]
    before: Callable[[], object] = lambda: None


def scheduling(name: str, keys: int, count: int, speculate: bool, memory: int) -> tuple[Callable[[], None], Drafts]:
    """Plans and completes a pass, with looking for guesses and learning from them."""
    spec = SHAPES[name]
    rng = np.random.default_rng(3)
    costs = Costs(spec, KV260)
    context = keys + 20 * TIMES * KV260.lanes
    scheduler = Scheduler(KV260, spec.heads // spec.kv_heads, context, count, cost=costs.cycles)
    drafts = Drafts()
    words = [rng.integers(0, 2000, 40).tolist() for _ in range(200)]

    def text(n: int) -> list[int]:
        return [t for _ in range(n // 40 + 1) for t in words[rng.integers(200)]][:n]

    for key in range(10_000, 10_000 + memory // 1024):
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
    following = {c: iter(text(15 * TIMES * KV260.lanes)) for c in scheduler.active}

    def step() -> None:
        planned = scheduler.plan((lambda c, most: drafts.guess(c.key, most)) if speculate else None)
        assert planned is not None
        lanes = planned.lanes
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
        costs.measured(*lanes, 4_000_000)

    drafts.remember()
    return step, drafts


def drawing(sampling: Sampling, logits: NDArray[np.float32], count: int, guesses: int = 0) -> Callable[[], object]:
    """Draws the next token of so many sequences, and those behind so many guesses of theirs in all, every one of which is kept."""
    samplers = [Sampler(replace(sampling, seed=i)) for i in range(count)]
    lanes = sorted(i % count for i in range(count + guesses))
    ahead = [lanes[:i].count(lane) for i, lane in enumerate(lanes)]
    rows, largest = np.stack([logits] * len(lanes)), [float(logits.max())] * len(lanes)
    of = [samplers[i] for i in lanes]

    def once() -> None:
        draw(rows, of, largest, ahead)
        for sampler in of:
            sampler.take()

    once()
    return once


def a_hundred_may_come(name: str) -> NDArray[np.float32]:
    """Logits float32[vocab]: a hundred tokens that may come, and all others far below."""
    vocab = SHAPES[name].vocab
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, vocab).astype(np.float32)
    logits[rng.integers(0, vocab, 100)] += rng.uniform(5, 20, 100).astype(np.float32)
    return logits


def by_the_clock(names: Sequence[str]) -> None:
    """Prints what eight and sixteen draws by temperature alone take with one thread and with two, in turn: the least."""
    print("| model | draws | one thread, ms | two threads, ms |")
    print("|---|---|---|---|")
    for name in names:
        for count in (8, 16):
            once = drawing(WAYS["temperature alone"], a_hundred_may_come(name), count)
            least = {1: math.inf, 2: math.inf}
            for threads in [1, 2] * 5 * TIMES:
                sampling.THREADS = threads
                began = time.perf_counter()
                once()
                least[threads] = min(least[threads], time.perf_counter() - began)
            print(f"| {name} | {count} | {1e3 * least[1]:.3f} | {1e3 * least[2]:.3f} |", flush=True)


def works(name: str, keys: int, count: int, memory: int = MEMORY) -> list[Work]:
    """All that is measured."""
    logits = a_hundred_may_come(name)
    plain, _ = scheduling(name, keys, count, False, memory)
    guessing, drafts = scheduling(name, keys, count, True, memory)
    passes = [0]

    def guess() -> None:
        passes[0] += 1
        guessing()

    def guessed() -> int:
        return count + round(drafts.drafted / passes[0])

    few = np.partition(logits, -CANDIDATES)[-CANDIDATES:]
    return [
        Work("scheduling", plain, lambda: count),
        Work("scheduling and guesses", guess, guessed, drafts.remember),
        Work("remembering for guesses, while the pass runs", drafts.remember, guessed, guess),
        *(Work(f"drawing, {way}", drawing(s, logits, count), lambda: count) for way, s in WAYS.items()),
        Work(
            f"drawing with {GUESSES} guesses, temperature alone",
            drawing(WAYS["temperature alone"], logits, count, GUESSES),
            lambda: count + GUESSES,
        ),
        Work(
            f"drawing from {CANDIDATES} candidates",
            drawing(WAYS["top-k 40, top-p 0.95"], few, count),
            lambda: count,
        ),
    ]


def took(work: Work) -> float:
    """Processor seconds of doing it once, the median of many."""
    out = []
    for _ in range(TIMES):
        work.before()
        began = time.thread_time()
        work.do()
        out.append(time.thread_time() - began)
    return float(np.median(out))


def marked(keys: dict[str, int]) -> None:
    """Under QEMU: does everything between two marks, TIMES times, and says what it was."""
    getppid = ctypes.CDLL(None).getppid
    for name, k in keys.items():
        for count in (1, 8):
            for work in works(name, k, count, MEMORY // 8):
                for _ in range(3):
                    work.before()
                    work.do()
                for _ in range(TIMES):
                    work.before()
                    getppid()
                    work.do()
                    getppid()
                print("work", name, count, work.lanes(), work.what, sep="\t", file=sys.stderr, flush=True)


def counted(
    qemu: str, root: Path, numpy: Path, keys: dict[str, int], threads: int
) -> list[tuple[str, int, int, str, float, float]]:
    """Model, conversations, lanes, what, and instructions a pass, of the engine's thread and of the busiest of the others."""
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder) / "count.so"
        subprocess.run(
            [
                "cc",
                "-shared",
                "-fPIC",
                "-O2",
                f"-DMARK={MARK}",
                f"-DTHREADS={MOST_THREADS}",
                "-x",
                "c",
                "-",
                "-o",
                str(plugin),
            ],
            input=PLUGIN,
            text=True,
            check=True,
        )
        command = [
            *shlex.split(qemu), "-cpu", "cortex-a53", "-plugin", str(plugin), "-L", str(root),
            "-E", f"PYTHONPATH={numpy}:{Path.cwd()}", "-E", "PYTHONDONTWRITEBYTECODE=1",
            "-E", "LD_LIBRARY_PATH=/lib/aarch64-linux-gnu:/usr/lib/aarch64-linux-gnu",
            str(root / "usr/bin/python3.11"), "-m", "bench.host", "--marks",
            ",".join(f"{name}={k}" for name, k in keys.items()), "--threads", str(threads),
        ]  # fmt: skip
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    out = []
    counts: list[list[int]] = []
    for line in done.stderr.splitlines():
        if line.startswith("count "):
            counts.append([int(n) for n in line.split()[1:]])
        elif line.startswith("work\t"):
            _, name, count, lanes, what = line.split("\t")
            one, *others = np.diff(np.reshape(counts, (TIMES, 2, -1)), axis=1).mean(axis=(0, 1)).tolist()
            counts.clear()
            out.append((name, int(count), int(lanes), what, one, max(others)))
    return out


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slower", type=float, default=SLOWER)
    parser.add_argument("--cycles", type=float, default=CYCLES)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--clock", action="store_true", help="draws with one thread and with two, by the clock")
    parser.add_argument("--qemu")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--numpy", type=Path)
    parser.add_argument("--marks", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not 1 <= options.threads < MOST_THREADS:
        parser.error(f"--threads must be from 1 to {MOST_THREADS - 1}")
    sampling.THREADS = options.threads
    if options.marks:
        marked({name: int(k) for name, k in (part.split("=") for part in options.marks.split(","))})
        return
    if not (options.slower > 0 and options.cycles > 0):
        parser.error("--slower and --cycles must be positive numbers")
    if options.qemu and not (options.root and options.numpy):
        parser.error("--qemu needs --root and --numpy")

    from bench.serving import KEYS, Plan

    if options.clock:
        by_the_clock(list(KEYS))
        return

    plans = {name: Plan(SHAPES[name], KV260, "kv260") for name in KEYS}

    def seconds(name: str, count: int, lanes: int) -> float:
        """Of a pass with so many lanes, spread evenly."""
        of = [lanes // count + (i < lanes % count) for i in range(count)]
        positions = [KEYS[name] + k for n in of for k in range(n)]
        return plans[name].exact(positions, [i for i, n in enumerate(of) for _ in range(n)], lanes) / KV260.clock_hz

    if options.qemu:
        print(
            "| model | conversations | lanes | what | instructions, thousands | of the busiest other thread | share of a pass on the KV260 |"
        )
        print("|---|---|---|---|---|---|---|")
        found = counted(options.qemu, options.root, options.numpy, KEYS, options.threads)
        for name, count, lanes, what, n, other in found:
            share = n * options.cycles / CLOCK_HZ / seconds(name, count, lanes)
            print(f"| {name} | {count} | {lanes} | {what} | {n / 1e3:,.0f} | {other / 1e3:,.0f} | {share:.2%} |")
        return
    print("| model | conversations | lanes | what | here, ms a pass | share of a pass on the KV260 |")
    print("|---|---|---|---|---|---|")
    for name, keys in KEYS.items():
        for count in (1, 8):
            for work in works(name, keys, count):
                t = took(work)
                lanes = work.lanes()
                share = t * options.slower / seconds(name, count, lanes)
                print(f"| {name} | {count} | {lanes} | {work.what} | {1e3 * t:.3f} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
