"""Fuzzing of every reader, guided by the lines that an input reaches: `make fuzz`. Writes docs/measurements/fuzz.md.

The inputs, readers and rules are those of tests/fuzz: a case ends well or in a UserError of one line, soon, in little memory. Here atheris (libFuzzer) chooses what
to change: each target runs in a process of its own, whose corpus begins with the target's valid files, and grows by what reaches something new. It is kept under
build/fuzz/corpus, and every run goes on from there, so that a campaign may be stopped at any time; results are lines of docs/measurements/fuzz.jsonl, one a run of a
target. atheris has no wheel for every Python, so it is no dependency: give a Python that has it and the development dependencies. `--random` runs the driver of
tests/fuzz instead, which needs none, over the targets of `--only`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.driver import Target

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "measurements" / "fuzz.jsonl"
TABLE = RESULTS.with_suffix(".md")
KEPT = ROOT / "build" / "fuzz"
"""Corpora, and inputs that went wrong: each of these is to become a test of its reader."""

EACH = 5000
"""Executions of a process: atheris keeps up to 400 KiB of a read for good (the same reads without it keep nothing)."""

HEADER = """# Fuzzing

An execution reads one damaged input of [tests/fuzz/targets.py](../../tests/fuzz/targets.py) or [tests/fuzz/families.py](../../tests/fuzz/families.py). It must end well or in one line of words, without a
warning, within 20 s and without a gigabyte more. A file that has a header is damaged as a whole, in the header's bytes, and in what the header says (with the right lengths and checksums).

## Guided by coverage

`make fuzz` ([bench/fuzzing.py](../../bench/fuzzing.py)): atheris changes the inputs, guided by the lines of this project (and of the parser of templates) that they reach. Each reader has a number of executions and a time, whichever
ends first, so that slow readers have fewer. What went wrong was mended and is a case of its reader's tests; a reader's later executions are of the mended one. *Reached*: branches of libFuzzer's count, at the end; *corpus*: inputs that reached something new; seconds are of a shared machine.

| reader | executions | reached | corpus | seconds | went wrong |
|---|---|---|---|---|---|
"""
RANDOM = """
## At random: types of weights and architectures of the ternary models that people run

`{command}`: {total:,} files.

| reader | files | read | refused in words | seconds | went wrong |
|---|---|---|---|---|---|
"""


def child(name: str, runs: int, seconds: int, folder: Path, corpus: Path, seed: int) -> None:
    """Runs one target, and never returns."""
    import warnings

    import atheris

    with atheris.instrument_imports(
        include=["tellme.host", "tellme.golden", "jinja2.parser", "jinja2.compiler"], enable_loader_override=False
    ):
        from tellme.host.errors import UserError
        from tests.fuzz.driver import bound_memory, mutate_part, put
        from tests.fuzz.targets import targets

    target = next(t for t in targets() if t.name == name)
    place, corpus = folder / "files", corpus.resolve()
    place.mkdir()
    corpus.mkdir(parents=True, exist_ok=True)
    names = target.damaged or tuple(target.files)
    for file, data in target.files.items():
        put(place / file, data)
    # An input: which file, which of its parts (0: the whole file), contents.
    for i, file in enumerate(names):
        if not target.notation:
            put(corpus / f"whole-{i}", bytes([i, 0]) + target.files[file])
        for j, part in enumerate(target.parts.get(file, ())):
            put(corpus / f"part-{i}-{j}", bytes([i, j + 1]) + part.split(target.files[file])[0])
    joins = {file: [p.split(target.files[file])[1] for p in target.parts.get(file, ())] for file in names}

    def part_of(data: bytes) -> tuple[str, int]:
        """File, and which part of it; -1: the whole."""
        file = names[data[0] % len(names)]
        return file, data[1] % (1 + len(joins[file])) - 1

    def one(data: bytes) -> None:
        if len(data) < 2:
            return
        file, i = part_of(data)
        contents = data[2:]
        if i < 0 and target.notation:
            return
        if i >= 0:
            try:
                if target.parts[file][i].kind == "tree":
                    json.loads(contents)
                contents = joins[file][i](contents)
            except (
                ValueError,
                RecursionError,
                AttributeError,
                TypeError,
            ):  # two trees put together: no file stands for it
                return
        put(place / file, contents)
        bound_memory()  # of this execution; atheris itself grows
        try:
            target.read(place)
        except UserError as e:
            assert str(e) and str(e).isprintable(), f"message {str(e)!r}"
        finally:
            put(place / file, target.files[file])

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        """Half of the changes are of JSON's tree, all of them where JSON is only our notation."""
        rng = random.Random(seed)
        if len(data) > 2:
            file, i = part_of(data)
            kind = target.parts[file][i].kind if i >= 0 else "bytes"
            if kind == "tree" or (kind == "json" and rng.random() < 0.5):
                try:
                    made = data[:2] + mutate_part(target.parts[file][i], data[2:], rng)
                    if len(made) <= most:
                        return made
                except (ValueError, RecursionError, AttributeError):
                    pass
                if kind == "tree":
                    return data
        return bytes(atheris.Mutate(data, most))

    sizes = [p.stat().st_size for p in corpus.iterdir()]
    options = [
        f"-runs={runs}", f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={max(sizes) + 4096}", "-timeout=20", "-rss_limit_mb=6000",
        "-print_final_stats=1", "-reload=0", f"-artifact_prefix={folder}/",
    ]  # fmt: skip
    warnings.simplefilter("error")  # lines that nobody asked for
    atheris.Setup([sys.argv[0], str(corpus), *options], one, custom_mutator=mutated)
    atheris.Fuzz()


def slug(name: str) -> str:
    """A target's name as a file's."""
    return name.replace(" ", "_")


def run_child(name: str, runs: int, seconds: int, seed: int) -> dict[str, Any]:
    """One process of a target; what it said."""
    begin = time.monotonic()
    corpus = KEPT / "corpus" / slug(name)
    with tempfile.TemporaryDirectory(prefix="tellme-fuzz-") as at:
        command = [
            sys.executable, "-m", "bench.fuzzing", "--child", name, "--runs", str(runs), "--seconds", str(seconds), "--seed", str(seed), "--folder", at,
            "--corpus", str(corpus),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", env=dict(os.environ))
        wrong = sorted(p for p in Path(at).iterdir() if p.name.startswith(("crash-", "timeout-", "oom-", "leak-")))
        for p in wrong:
            KEPT.mkdir(parents=True, exist_ok=True)
            (KEPT / f"{slug(name)}-{p.name[:20]}").write_bytes(p.read_bytes())
    said = (done.stderr + done.stdout).replace(f"{ROOT}/", "").replace(f"{at}/", "")
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", said)
    reached = re.findall(r"cov: (\d+)", said)
    if executed is None:
        raise SystemExit(f"{name}: the fuzzer did not run; the end of what it said:\n{said[-2000:]}")
    return {
        "name": name, "seed": seed, "executions": int(executed[1]), "reached": int(reached[-1]) if reached else 0,
        "corpus": sum(not p.name.startswith(("whole-", "part-")) for p in corpus.iterdir()),
        "seconds": round(time.monotonic() - begin), "wrong": [p.name for p in wrong],
        "said": said[-3000:] if wrong or done.returncode else "",
    }  # fmt: skip


def run(name: str, runs: int, seconds: int, seed: int) -> dict[str, Any]:
    """One target, in processes of at most `EACH` executions."""
    begin, left = time.monotonic(), runs
    while True:
        rest = seconds - round(time.monotonic() - begin)
        found = run_child(name, min(left, EACH), max(rest, 1), seed * 1000 + left // EACH)
        left -= found["executions"]
        if left <= 0 or found["wrong"] or time.monotonic() - begin >= seconds:
            return {**found, "seed": seed, "executions": runs - left, "seconds": round(time.monotonic() - begin)}


def run_random(target: Target, cases: int, seed: int) -> dict[str, Any]:
    """Cases of one target by the driver of tests/fuzz, until one goes wrong."""
    from tests.fuzz import driver

    begin, wrong = time.monotonic(), []
    ended = {"read": 0, "refused": 0}
    with tempfile.TemporaryDirectory(prefix="tellme-fuzz-") as at:
        try:
            ended = driver.run(target, Path(at), seed, range(cases))
        except AssertionError as e:
            wrong.append(str(e))
    return {
        "kind": "random",
        "name": target.name,
        "seed": seed,
        **ended,
        "seconds": round(time.monotonic() - begin),
        "wrong": wrong,
    }


def write_table() -> None:
    """Puts the tables beside the results."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    guided, at_random = ([r for r in rows if (r.get("kind") == "random") == kind] for kind in (False, True))
    by_name: dict[str, list[dict[str, Any]]] = {}
    for r in guided:
        by_name.setdefault(r["name"], []).append(r)
    text = HEADER
    for name, mine in by_name.items():
        wrong = sum(len(r["wrong"]) for r in mine)
        total, seconds = (sum(r[k] for r in mine) for k in ("executions", "seconds"))
        text += f"| {name} | {total:,} | {max(r['reached'] for r in mine):,} | {max(r['corpus'] for r in mine):,} | {seconds:,} | {wrong} |\n"
    text += f"| all {len(by_name)} | {sum(r['executions'] for r in guided):,} | | | {sum(r['seconds'] for r in guided):,} | {sum(len(r['wrong']) for r in guided)} |\n"
    if at_random:
        files = sum(r["read"] + r["refused"] for r in at_random)
        text += RANDOM.format(command=at_random[-1]["command"], total=files)
        for r in at_random:
            text += f"| {r['name']} | {r['read'] + r['refused']:,} | {r['read']:,} | {r['refused']:,} | {r['seconds']:,} | {len(r['wrong'])} |\n"
    TABLE.write_text(text)


def main() -> None:
    """Runs every target, or those named; what earlier runs found stays in the tables."""
    parser = argparse.ArgumentParser(description="Fuzzes every reader, guided by coverage.")
    parser.add_argument("--runs", type=int, default=40_000, help="executions of each target, at most")
    parser.add_argument("--seconds", type=int, default=600, help="time of each target, at most")
    parser.add_argument("--only", nargs="+", default=[""], help="targets whose name begins so")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--random",
        type=int,
        default=0,
        metavar="FILES",
        help="so many files by the random driver instead, shared by the targets",
    )
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        child(a.child, a.runs, a.seconds, a.folder, a.corpus, a.seed)
        return
    from tests.fuzz.targets import targets

    chosen = [t for t in targets() if t.name.startswith(tuple(a.only))]
    tasks: list[Callable[[], dict[str, Any]]]
    if a.random:
        kept = [line for line in RESULTS.read_text().splitlines() if json.loads(line).get("kind") != "random"]
        RESULTS.write_text("".join(f"{line}\n" for line in kept))  # one table of one command
        each, command = (
            -(-a.random // len(chosen)),
            f"python -m bench.fuzzing --random {a.random} --only {' '.join(a.only)} --seed {a.seed}",
        )
        tasks = [lambda t=t: {**run_random(t, each, a.seed), "command": command} for t in chosen]  # type: ignore[misc]
    else:
        tasks = [lambda t=t: run(t.name, a.runs, a.seconds, a.seed) for t in chosen]  # type: ignore[misc]
    bad = 0
    # The random driver's limits are of the process.
    with ThreadPoolExecutor(1 if a.random else a.jobs) as pool:
        for result in map(lambda task: task(), tasks) if a.random else pool.map(lambda task: task(), tasks):
            with RESULTS.open("a") as out:
                out.write(json.dumps(result) + "\n")
            write_table()
            print({k: v for k, v in result.items() if k not in ("said", "command")}, flush=True)
            bad += len(result["wrong"])
    if bad:
        raise SystemExit(f"{bad} inputs went wrong; they are in {KEPT}, or named above")


if __name__ == "__main__":
    main()
