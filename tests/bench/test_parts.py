"""`make bench` on the farm: every part runs, one that fails fails the command and is named, and the workers do not matter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import parts
from bench.workers import ROOT

PARTS = {
    "test_good": "def test_it() -> None:\n    print('measured 42')\n",
    "test_bad": "def test_it() -> None:\n    assert not 'this part is wrong'\n",
    "test_broken": "import nothing_of_this_name\n",
    "test_empty": "",
    "test_skipped": "import pytest\n\n\ndef test_it() -> None:\n    pytest.skip('not here')\n",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("parts")
    for name, text in PARTS.items():
        (folder / f"{name}.py").write_text(text)
    return {name: str(folder / f"{name}.py") for name in PARTS}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_parts_that_fail_are_named_and_the_others_run(
    files: dict[str, str], workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parts.main([*files.values(), "--workers", workers])
    failing = ("test_bad", "test_broken", "test_empty")  # in which there is no test, as when a file's name is wrong
    assert str(ended.value) == f"3 of 5 parts failed: {', '.join(files[name] for name in failing)}"
    said = capsys.readouterr().out
    assert "measured 42" in said and "this part is wrong" in said and "1 skipped" in said
    outcomes = dict(reversed(m) for m in re.findall(r"^(passed|FAILED) +\d+ s  (\S+), \d of 5$", said, re.MULTILINE))
    assert outcomes == {file: "FAILED" if name in failing else "passed" for name, file in files.items()}


def test_parts_that_pass_end_well(files: dict[str, str]) -> None:
    parts.main([files["test_good"], files["test_skipped"], "--workers", "1"])


def test_what_cannot_be_is_said_in_one_line(files: dict[str, str]) -> None:
    for options, message in (
        (["--workers", "0"], "--workers must be at least 1, not 0"),
        (["--workers", "2", "--scheduler", "tcp://x:1"], "--workers and --scheduler exclude each other"),
    ):
        with pytest.raises(SystemExit) as ended:
            parts.main([files["test_good"], *options])
        assert str(ended.value) == message


def test_every_file_is_a_part_and_the_longest_come_first() -> None:
    found = parts.files()
    assert sorted(found) == sorted(f"bench/{p.name}" for p in (ROOT / "bench").glob("test_*.py"))
    assert {Path(f).name for f in found[: len(parts.FIRST)]} == set(parts.FIRST)
