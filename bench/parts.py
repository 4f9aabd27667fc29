"""`make bench`: what pytest runs of bench/, a file at a time, shared over the farm.

A file is a part: none needs another's results, and each writes documents of its own. Every part runs, whatever becomes of the others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from bench.workers import ROOT, add_options, module, workers

FIRST = ("test_speed.py", "test_families.py", "test_synth.py", "test_configurations.py")
"""The longest are begun first, lest the others wait for them at the end."""


def files() -> list[str]:
    """Files of bench/ that pytest runs."""
    found = sorted((ROOT / "bench").glob("test_*.py"), key=lambda p: (p.name not in FIRST, p.name))
    return [str(p.relative_to(ROOT)) for p in found]


def part(file: str) -> tuple[int, float, str]:
    """In a worker: runs a file; (pytest's exit code, seconds, what it printed)."""
    begin = time.monotonic()
    done = module("pytest", "-q", "-s", "-p", "no:cacheprovider", file)
    return done.returncode, time.monotonic() - begin, done.stdout.decode(errors="replace")


def main(given: Sequence[str] | None = None) -> None:
    """Runs the parts, prints what each said as it ends, and what became of all of them.

    Raises
    ------
    SystemExit : a part failed; all that did are named.
    """
    parser = argparse.ArgumentParser(description="Files of bench/, each a part, on several workers.")
    parser.add_argument("files", nargs="*", help="as pytest takes them; default: all of bench/")
    add_options(parser)
    a = parser.parse_args(given)
    chosen = list(dict.fromkeys(a.files or files()))
    codes: dict[str, int] = {}
    with workers(a, "parts") as run:
        for file, (code, seconds, said) in run(part, {file: file for file in chosen}):
            codes[file] = code
            print(said)
            print(
                f"{'FAILED' if code else 'passed'} {seconds:6.0f} s  {file}, {len(codes)} of {len(chosen)}", flush=True
            )
    if failed := [file for file in chosen if codes[file]]:
        raise SystemExit(f"{len(failed)} of {len(chosen)} parts failed: {', '.join(failed)}")


if __name__ == "__main__":
    from bench.parts import main as run  # workers find the functions of a module, not of a program

    run()
