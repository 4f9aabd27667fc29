"""Fuzzing of every reader, guided by the lines that an input reaches: `make fuzz`. Writes docs/measurements/fuzz.md.

The inputs, readers and rules are those of tests/fuzz: a case ends well or in a UserError of one line, soon, in little memory. Here atheris (libFuzzer) chooses what
to change: each target runs in a process of its own, whose corpus begins with the target's valid files, and grows by what reaches something new. atheris has no
wheel for every Python, so it is no dependency: give a Python that has it and the development dependencies.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "measurements" / "fuzz.jsonl"
TABLE = RESULTS.with_suffix(".md")
CRASHES = ROOT / "build" / "fuzz"
"""Inputs that went wrong. Each is to become a test of its reader."""

HEADER = """# Fuzzing

`make fuzz` ([bench/fuzzing.py](../../bench/fuzzing.py)): atheris changes the files of [tests/fuzz/targets.py](../../tests/fuzz/targets.py), guided by the lines of this project that they reach. An
execution must end well or in one line of words, within 20 s and without a gigabyte more. *Reached*: branches of libFuzzer's count, at the end; *corpus*: inputs that reached something new.

| reader | executions | reached | corpus | seconds | went wrong |
|---|---|---|---|---|---|
"""


def child(name: str, runs: int, folder: Path, seed: int) -> None:
    """Runs one target, and never returns."""
    import atheris

    with atheris.instrument_imports(include=["tellme.host", "tellme.golden"], enable_loader_override=False):
        from tellme.host.errors import UserError
        from tests.fuzz.driver import mutate_json
        from tests.fuzz.targets import targets

    target = next(t for t in targets() if t.name == name)
    place, corpus = folder / "files", folder / "corpus"
    place.mkdir()
    corpus.mkdir()
    names = target.damaged or tuple(target.files)
    for file, data in target.files.items():
        (place / file).write_bytes(data)
    # An input: which file, whether it is only the JSON in it, contents.
    for i, file in enumerate(names):
        (corpus / f"whole-{i}").write_bytes(bytes([i, 0]) + target.files[file])
        if file in target.json_parts:
            (corpus / f"json-{i}").write_bytes(bytes([i, 1]) + target.json_parts[file](target.files[file])[0])

    def one(data: bytes) -> None:
        if len(data) < 2:
            return
        file, contents = names[data[0] % len(names)], data[2:]
        if data[1] & 1 and file in target.json_parts:
            contents = target.json_parts[file](target.files[file])[1](contents)
        (place / file).write_bytes(contents)
        try:
            target.read(place)
        except UserError as e:
            assert str(e) and str(e).isprintable(), f"message {str(e)!r}"
        finally:
            (place / file).write_bytes(target.files[file])

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        """Half of the changes of JSON are of its tree."""
        rng = random.Random(seed)
        if len(data) > 2 and data[1] & 1 and rng.random() < 0.5:
            try:
                return (data[:2] + mutate_json(data[2:], rng))[:most]
            except (ValueError, RecursionError, AttributeError):
                pass
        return bytes(atheris.Mutate(data, most))

    longest = max(len(d) for d in target.files.values()) + 4096
    options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={longest}", "-timeout=20", "-rss_limit_mb=3000", "-print_final_stats=1", f"-artifact_prefix={folder}/"]  # fmt: skip
    atheris.Setup([sys.argv[0], str(corpus), *options], one, custom_mutator=mutated)
    atheris.Fuzz()


def run(name: str, runs: int, seed: int) -> dict[str, Any]:
    """One target in a process of its own; what it said."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tellme-fuzz-") as at:
        command = [sys.executable, "-m", "bench.fuzzing", "--child", name, "--runs", str(runs), "--seed", str(seed), "--folder", at]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", env=dict(os.environ))
        wrong = sorted(p for p in Path(at).iterdir() if p.name.startswith(("crash-", "timeout-", "oom-", "leak-")))
        for p in wrong:
            CRASHES.mkdir(parents=True, exist_ok=True)
            (CRASHES / f"{name.replace(' ', '_')}-{p.name[:20]}").write_bytes(p.read_bytes())
        corpus = len(list((Path(at) / "corpus").iterdir())) if (Path(at) / "corpus").is_dir() else 0
    said = done.stderr + done.stdout
    executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", said)
    reached = re.findall(r"cov: (\d+)", said)
    if executed is None:
        raise SystemExit(f"{name}: the fuzzer did not run; the end of what it said:\n{said[-2000:]}")
    return {
        "name": name, "seed": seed, "executions": int(executed[1]), "reached": int(reached[-1]) if reached else 0, "corpus": corpus,
        "seconds": round(time.monotonic() - begin), "wrong": [p.name for p in wrong],
        "said": said[-3000:] if wrong or done.returncode else "",
    }  # fmt: skip


def write_table() -> None:
    """Puts the table beside the results."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for r in rows:
        by_name.setdefault(r["name"], []).append(r)
    lines = []
    for name, mine in by_name.items():
        wrong = sum(len(r["wrong"]) for r in mine)
        total, seconds = (sum(r[k] for r in mine) for k in ("executions", "seconds"))
        lines.append(
            f"| {name} | {total:,} | {max(r['reached'] for r in mine):,} | {max(r['corpus'] for r in mine):,} | {seconds:,} | {wrong} |"
        )
    lines.append(f"| all | {sum(r['executions'] for r in rows):,} | | | {sum(r['seconds'] for r in rows):,} | {sum(len(r['wrong']) for r in rows)} |")  # fmt: skip
    TABLE.write_text(HEADER + "\n".join(lines) + "\n")


def main() -> None:
    """Runs every target, or those named; what earlier runs found stays in the table."""
    parser = argparse.ArgumentParser(description="Fuzzes every reader, guided by coverage.")
    parser.add_argument("--runs", type=int, default=80_000, help="executions of each target")
    parser.add_argument("--only", default="", help="targets whose name begins so")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        child(a.child, a.runs, a.folder, a.seed)
        return
    from tests.fuzz.targets import targets

    bad = 0
    for target in targets():
        if not target.name.startswith(a.only):
            continue
        result = run(target.name, a.runs, a.seed)
        with RESULTS.open("a") as out:
            out.write(json.dumps(result) + "\n")
        write_table()
        print({k: v for k, v in result.items() if k != "said"}, flush=True)
        bad += len(result["wrong"])
    if bad:
        raise SystemExit(f"{bad} inputs went wrong; they are in {CRASHES}")


if __name__ == "__main__":
    main()
