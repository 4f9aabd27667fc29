"""Mistakes on the farm: what tests say of them, whatever the workers."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pytest

from bench import trials
from bench.holes import HOLES, Hole
from bench.trials import Batch, Bench, Trial, verdicts
from bench.workers import ROOT, workers
from tellme.host.errors import CheckError

PATH, TESTS = "golden/head.py", ("tests/golden/test_head.py",)
ARG_MAX = "tests/golden/test_head.py::test_arg_max_takes_the_first_of_equal_logits"


def trial(name: str, old: str, new: str) -> Trial:
    """`old`, which stands once in the file, becomes `new`."""
    text = (ROOT / PATH).read_text()
    assert text.count(old) == 1, old
    return Trial(name, PATH, text.replace(old, new), text[: text.index(old)].count("\n") + 1)


LAST = trial("the last of equal ones", "np.argmax(values, axis=-1)", "values.shape[1] - 1 - np.argmax(values[:, ::-1], axis=-1)")  # fmt: skip
SAME = trial("the same in other words", "np.argmax(values, axis=-1)", "values.argmax(axis=-1)")
OUTSIDE = trial("outside of functions", "_PRODUCT = 1 << 14", "_PRODUCT = 1 << 4")


@pytest.mark.parametrize("count", [1, 2])
def test_mistakes_are_seen_and_what_is_none_survives(count: int) -> None:
    batches = {"two": Batch(TESTS, (LAST, SAME)), "one": Batch(TESTS, (OUTSIDE,))}
    with workers(argparse.Namespace(workers=count, scheduler=None), "batches") as run:
        found = {name: [(trial, outcome, test) for trial, outcome, test, _ in of] for name, of in run(verdicts, batches)}  # fmt: skip
    assert found["two"] == [(LAST.name, "killed", ARG_MAX), (SAME.name, "survived", "")]
    ((name, outcome, test),) = found["one"]
    assert (name, outcome) == (OUTSIDE.name, "killed") and test.startswith(TESTS[0])


def test_nothing_is_begun_when_the_time_is_over() -> None:
    assert verdicts(Batch(TESTS, (LAST,), until=time.time() - 1)) == []


def test_tests_that_fail_by_themselves_are_named() -> None:
    with pytest.raises(CheckError, match="tests/golden/test_nowhere.py: .*do not pass without a mistake"):
        verdicts(Batch(("tests/golden/test_nowhere.py",), (LAST,)))


def test_what_a_process_of_a_test_calls_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "PROFILES", tmp_path / "profiles")
    bench = Bench(tmp_path / "sources", tmp_path / "cache")
    name = "tests/bench/test_made.py"
    call = "import tellme.golden.arith as a; a.ceil_div(3, 2)"
    (bench.folder / name).write_text(
        f"import subprocess, sys\ndef test_it():\n    subprocess.run([sys.executable, '-c', {call!r}], check=True)\n"
    )
    calls = bench.profile((name,)).calls["golden/arith.py"]
    (line,) = (
        n for n, row in enumerate((ROOT / "golden/arith.py").read_text().splitlines(), 1) if "def ceil_div" in row
    )
    assert calls[line] == {f"{name}::test_it"}


@pytest.mark.parametrize("hole", HOLES, ids=lambda h: h.name)
def test_what_a_mistake_changes_stands_once_in_its_file(hole: Hole) -> None:
    """So that `make mutants` finds it, and knows which place is meant."""
    assert (ROOT / hole.path).read_text().count(hole.old) == 1 and hole.new != hole.old
