"""What the host does between two passes: the engine, with scheduling, guesses and draws, on an accelerator that says prepared texts. Its share of a pass on the KV260.

    python -m bench.host [--slower N] [--threads N] [--likely N]
    python -m bench.host --qemu qemu-aarch64 --root ROOT --numpy FOLDER [--compiler COMMAND] [--cycles N] [--threads N] [--likely N]
    python -m bench.host --clock

Without a board there are two ways to say how long that is on a Cortex-A53 at 1.3 GHz. The first takes processor time here, on one core, and an A53 for SLOWER times as slow. The
second counts the instructions of the same work, done by Python and NumPy for AArch64 under QEMU, and takes an A53 to need CYCLES cycles for one; so it does not depend on this machine nor on who else
uses it. ROOT holds Debian's arm64 packages libc6, libffi8, libpython3.11-minimal, libpython3.11-stdlib, python3.11-minimal, libgcc-s1, libstdc++6, zlib1g and libexpat1, unpacked (`dpkg -x`), FOLDER NumPy's wheel for
manylinux2014_aarch64; a C compiler makes the plugin that counts. COMMAND, `aarch64-linux-gnu-gcc`, compiles draws for AArch64, for which ROOT needs libpython3.11-dev, too; without it NumPy
makes them, as where tellme was installed without a compiler.

NumPy uses vectors of 128 bits here, as there, and no exponential in vectors, which it has not for the A53. Counted is the engine's thread, which is one of four cores;
the threads that look through logits with it are on the others, which are the server's. What waking them costs is in neither; --clock has it, of this machine.
Passes are as long as the plan says, those with guesses too. Histories hold as many ended tokens as are remembered at most.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "NPY_DISABLE_CPU_FEATURES", "AVX F16C FMA3 AVX2 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
)

import argparse
import ctypes
import gc
import importlib
import math
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellme.golden.arith import ceil_div
from tellme.golden.config import KV260
from tellme.golden.shapes import SHAPES
from tellme.host import text
from tellme.host.machine.passes import Backend, Pass, PassResult
from tellme.host.machine.screening import FULL, HeadChoice
from tellme.host.talk.drafts import MEMORY, STEP
from tellme.host.talk.engine import Engine
from tellme.host.text import sampling
from tellme.host.text.sampling import Sampler, Sampling, draw

SLOWER = 10.0
CYCLES = 1.25
CLOCK_HZ = 1.3e9
TIMES = 60
WARM = Sampling(temperature=0.8)
TOP_P = Sampling(temperature=0.8, top_p=0.95)
TOP_K_P = Sampling(temperature=0.8, top_k=40, top_p=0.95)
THREADS = 4
"""That look through logits, on a board with so many cores."""
MOST_THREADS = 64
"""That are counted under QEMU."""
CANDIDATES = 256
LIKELY = 100
"""Tokens that may come; all others are far below."""
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


class Said(Backend):
    """Says prepared texts: the next token of each is drawn nine times of ten. What it does itself is not counted.

    Parameters
    ----------
    name : the model. keys, count : tokens of each prompt; conversations.
    screened : candidates are what is given, not every logit.
    likely : tokens that may come.
    passed : called where the accelerator begins, and where it has ended.
    behind : called before what is done meanwhile, and behind it.
    """

    def __init__(
        self,
        name: str,
        keys: int,
        count: int,
        screened: bool,
        likely: int,
        passed: Callable[[], object],
        behind: Callable[[], object],
    ):
        self.config, self.spec, self.slots = KV260, SHAPES[name], count
        self.group, self.vocab = self.spec.heads // self.spec.kv_heads, self.spec.vocab
        self.context = keys + 2 * TIMES * KV260.lanes
        self.head, self.can_screen = HeadChoice(mode="auto") if screened else FULL, screened
        self._rng = np.random.default_rng(3)
        self._words = [self._rng.integers(0, 2000, 40).tolist() for _ in range(200)]
        self._texts = [self.text(self.context + 1) for _ in range(count)]
        self.prompts = [text[:keys] for text in self._texts]
        self._passed, self._behind = passed, behind
        logits = some_may_come(name, likely)
        self._logits = np.stack([logits] * KV260.lanes)
        self._likeliest = math.log(9 * np.exp(logits.astype(np.float64)).sum())
        self._chosen = np.argpartition(logits, -CANDIDATES)[-CANDIDATES:]

    def text(self, n: int) -> list[int]:
        """Words that were said before, and some that were not: guesses are found, come true, and end."""
        return [t for _ in range(n // 40 + 1) for t in self._words[self._rng.integers(200)]][:n]

    def _with(self, token: int) -> NDArray[np.int64]:
        """Candidates of which this is one."""
        others = self._chosen[self._chosen != token]
        return np.sort(np.append(others[: CANDIDATES - 1], token))

    def _pass(self, given: Pass) -> PassResult:
        self._passed()
        self._behind()
        self.meanwhile()
        self._behind()
        first, count = given.head
        lanes = list(zip(given.slots, given.positions, strict=True))[first : first + count]
        best = [self._texts[slot][position + 1] for slot, position in lanes]
        logits = candidates = None
        if given.write_logits:
            logits = self._logits[:count].copy()
            logits[range(count), best] = self._likeliest
        if given.write_logits and given.candidates:
            assert logits is not None
            candidates = np.array([self._with(b) for b in best])
            logits = np.take_along_axis(logits, candidates, axis=1)
        result = PassResult(
            head_first=first,
            head_count=count,
            best_index=tuple(best),
            best_value=(np.float32(self._likeliest),) * count,
            logits=logits,
            candidates=candidates,
            bound=(np.float32(0),) * count if given.candidates else None,
            cycles=4_000_000,
        )
        self._passed()
        return result


@dataclass(frozen=True)
class Way:
    """How conversations go on."""

    what: str
    sampling: Sampling = Sampling()
    guesses: bool = False
    screened: bool = False
    meanwhile: bool = False
    """What is done while the pass runs is counted, and not the rest."""


WAYS = (
    Way("greedy"),
    Way("top-k 40, top-p 0.95", TOP_K_P),
    Way("top-p 0.95", TOP_P),
    Way("temperature alone", WARM),
    Way(f"top-k 40, top-p 0.95, from {CANDIDATES} candidates", TOP_K_P, screened=True),
    Way("greedy, with guesses", guesses=True),
    Way("temperature alone, with guesses", WARM, guesses=True),
    Way("top-p 0.95, with guesses", TOP_P, guesses=True),
    Way(f"top-k 40, top-p 0.95, from {CANDIDATES} candidates, with guesses", TOP_K_P, guesses=True, screened=True),
    Way("while the pass runs, with guesses", guesses=True, meanwhile=True),
)


@dataclass(frozen=True)
class Done:
    """What was measured, and of each of its passes the lanes; `tokens` came of all."""

    model: str
    conversations: int
    what: str
    lanes: tuple[int, ...]
    tokens: int


class Marks:
    """Calls `mark` where it is switched on."""

    def __init__(self, mark: Callable[[], object]):
        self._mark, self.on = mark, False

    def __call__(self) -> None:
        if self.on:
            self._mark()


def passes(
    keys: dict[str, int], memory: int, likely: int, mark: Callable[[], object], begin: Callable[[], object]
) -> Iterator[Done]:
    """Runs every way: `begin`, then TIMES passes, with `mark` before and behind all that is counted.

    memory : tokens of ended conversations. likely : tokens that may come.
    """
    for name, k in keys.items():
        for count in (1, 8):
            for way in WAYS:
                passed, behind = Marks(mark), Marks(mark)
                backend = Said(name, k, count, way.screened, likely, passed, behind)
                engine = Engine(backend)
                for key in range(10_000, 10_000 + memory // 1024):
                    engine.drafts.extend(key, backend.text(1024))
                    engine.drafts.end(key)
                for _ in range(8 * memory // STEP):  # until nothing is left to do
                    engine.drafts.remember()
                for i, prompt in enumerate(backend.prompts):
                    sampling = replace(way.sampling, seed=i)
                    engine.submit(prompt, max_new_tokens=backend.context, sampling=sampling, speculate=way.guesses)
                for _ in range(2 * count * ceil_div(k, KV260.lanes)):
                    engine.step()
                gc.collect()
                gc.freeze()  # as the server does
                before = engine.counts.tokens
                lanes = []
                begin()
                passed.on, behind.on = not way.meanwhile, way.meanwhile
                for _ in range(TIMES):
                    passed()
                    engine.step()
                    passed()
                    assert engine.last is not None
                    lanes.append(engine.last.given.lanes)
                passed.on = behind.on = False
                yield Done(name, count, way.what, tuple(lanes), engine.counts.tokens - before)


def drawing(sampling: Sampling, logits: NDArray[np.float32], count: int) -> Callable[[], object]:
    """Draws the next token of so many sequences."""
    samplers = [Sampler(replace(sampling, seed=i)) for i in range(count)]
    rows, largest = np.stack([logits] * count), [float(logits.max())] * count

    def once() -> None:
        draw(rows, samplers, largest)
        for sampler in samplers:
            sampler.take()

    once()
    return once


def some_may_come(name: str, likely: int) -> NDArray[np.float32]:
    """Logits float32[vocab]: so many tokens that may come, and all others far below."""
    vocab = SHAPES[name].vocab
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, vocab).astype(np.float32)
    logits[rng.integers(0, vocab, likely)] += rng.uniform(5, 20, likely).astype(np.float32)
    return logits


def by_the_clock(names: Sequence[str]) -> None:
    """Prints what eight and sixteen draws by temperature alone take with one thread and with two, in turn: the least."""
    print("| model | draws | one thread, ms | two threads, ms |")
    print("|---|---|---|---|")
    for name in names:
        for count in (8, 16):
            once = drawing(WARM, some_may_come(name, LIKELY), count)
            least = {1: math.inf, 2: math.inf}
            for threads in [1, 2] * 5 * TIMES:
                sampling.THREADS = threads
                began = time.perf_counter()
                once()
                least[threads] = min(least[threads], time.perf_counter() - began)
            print(f"| {name} | {count} | {1e3 * least[1]:.3f} | {1e3 * least[2]:.3f} |", flush=True)


def marked(keys: dict[str, int], likely: int) -> None:
    """Under QEMU: says what was counted between marks."""
    getppid = ctypes.CDLL(None).getppid

    def said(*words: object) -> None:
        print(*words, sep="\t", file=sys.stderr, flush=True)

    for done in passes(keys, MEMORY, likely, getppid, lambda: said("begin")):
        said("done", done.model, done.conversations, done.what, ",".join(map(str, done.lanes)), done.tokens)


def compiled(compiler: str, root: Path, folder: Path) -> None:
    """Compiles draws for AArch64, as pyproject.toml has them compiled."""
    [module] = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    flags = [*module["extra-compile-args"], f"-I{root / 'usr/include/python3.11'}", f"-I{root / 'usr/include'}"]
    out = folder / (module["name"].rpartition(".")[2] + ".so")
    command = [*shlex.split(compiler), "-shared", "-fPIC", *flags, *module["sources"], "-lm", "-o", str(out)]
    subprocess.run(command, check=True)


def counted(
    qemu: str, root: Path, numpy: Path, compiler: str | None, keys: dict[str, int], likely: int, threads: int
) -> Iterator[tuple[Done, float, float]]:
    """Instructions a pass, of the engine's thread and of the busiest of the others."""
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
        if compiler:
            compiled(compiler, root, Path(folder))
        command = [
            *shlex.split(qemu), "-cpu", "cortex-a53", "-plugin", str(plugin), "-L", str(root),
            "-E", f"PYTHONPATH={numpy}:{Path.cwd()}", "-E", "PYTHONDONTWRITEBYTECODE=1",
            "-E", "LD_LIBRARY_PATH=/lib/aarch64-linux-gnu:/usr/lib/aarch64-linux-gnu",
            str(root / "usr/bin/python3.11"), "-m", "bench.host", "--marks",
            ",".join(f"{name}={k}" for name, k in keys.items()), "--threads", str(threads), "--likely", str(likely),
            *(["--compiled", folder] if compiler else []),
        ]  # fmt: skip
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit("\n".join(line for line in done.stderr.splitlines() if not line.startswith("count ")))
    counts: list[list[int]] = []
    for line in done.stderr.splitlines():
        kind, *words = line.split("\t")
        if kind == "begin":
            counts.clear()
        elif kind == "done":
            model, conversations, what, lanes, tokens = words
            one, *others = np.diff(np.reshape(counts, (-1, 2, MOST_THREADS)), axis=1).sum(axis=(0, 1)) / TIMES
            yield (
                Done(model, int(conversations), what, tuple(map(int, lanes.split(","))), int(tokens)),
                float(one),
                float(max(others)),
            )
        elif line.startswith("count "):
            counts.append([int(n) for n in line.split()[1:]])


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slower", type=float, default=SLOWER)
    parser.add_argument("--cycles", type=float, default=CYCLES)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--likely", type=int, default=LIKELY, help="tokens that may come")
    parser.add_argument("--clock", action="store_true", help="draws with one thread and with two, by the clock")
    parser.add_argument("--qemu")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--numpy", type=Path)
    parser.add_argument("--compiler", metavar="COMMAND", help="for AArch64: with compiled draws")
    parser.add_argument("--marks", help=argparse.SUPPRESS)
    parser.add_argument("--compiled", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not 1 <= options.threads < MOST_THREADS:
        parser.error(f"--threads must be from 1 to {MOST_THREADS - 1}")
    sampling.THREADS = options.threads
    if options.compiled:
        text.__path__.append(options.compiled)
        sampling._sampling = importlib.import_module("tellme.host.text._sampling")
    if options.marks:
        marked({name: int(k) for name, k in (part.split("=") for part in options.marks.split(","))}, options.likely)
        return
    if options.likely < 1:
        parser.error("--likely must be at least 1")
    if not (options.slower > 0 and options.cycles > 0):
        parser.error("--slower and --cycles must be positive numbers")
    if options.qemu and not (options.root and options.numpy):
        parser.error("--qemu needs --root and --numpy")

    from bench.serving import KEYS, Plan

    if options.clock:
        by_the_clock(list(KEYS))
        return

    plans = {name: Plan(SHAPES[name], KV260, "kv260") for name in KEYS}

    def seconds(done: Done) -> float:
        """Of a pass, its lanes spread evenly."""
        name, count = done.model, done.conversations
        cycles = 0
        for lanes in done.lanes:
            of = [lanes // count + (i < lanes % count) for i in range(count)]
            positions = [KEYS[name] + k for n in of for k in range(n)]
            cycles += plans[name].exact(positions, [i for i, n in enumerate(of) for _ in range(n)], lanes)
        return cycles / len(done.lanes) / KV260.clock_hz

    def row(done: Done, cells: str, of_a_pass: float) -> None:
        lanes, tokens = (n / TIMES for n in (sum(done.lanes), done.tokens))
        share = of_a_pass / seconds(done)
        what = f"{done.model} | {done.conversations} | {done.what} | {lanes:.1f} | {tokens:.1f}"
        print(f"| {what} | {cells} | {share:.2%} |", flush=True)

    head = "| model | conversations | how | lanes | tokens | {} | share of a pass on the KV260 |"
    if options.qemu:
        print(
            head.format("instructions, thousands | of the busiest other thread") + "\n|---|---|---|---|---|---|---|---|"
        )
        for done, n, other in counted(
            options.qemu, options.root, options.numpy, options.compiler, KEYS, options.likely, options.threads
        ):
            row(done, f"{n / 1e3:,.0f} | {other / 1e3:,.0f}", n * options.cycles / CLOCK_HZ)
        return
    print(head.format("here, ms a pass") + "\n|---|---|---|---|---|---|---|")
    times: list[float] = []
    for done in passes(KEYS, MEMORY, options.likely, lambda: times.append(time.thread_time()), times.clear):
        t = float(np.median(np.diff(np.reshape(times, (TIMES, -1, 2))).sum(axis=(1, 2))))
        row(done, f"{1e3 * t:.3f}", t * options.slower)


if __name__ == "__main__":
    main()
