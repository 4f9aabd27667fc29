"""Damaged files end in one clear line; `make bench` runs 40,000 cases, this a share of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellme.host.errors import UserError
from tests.fuzz.driver import Hang, Target, mutation, run
from tests.fuzz.targets import targets

SEED = 1
CASES = 300
TARGETS = {t.name: t for t in targets()}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_refused_in_words(name: str, tmp_path: Path) -> None:
    """No crash, no hang, no allocation from an unchecked length."""
    ended = run(TARGETS[name], tmp_path, SEED, range(CASES))
    print(f"{name}: {ended}")
    assert ended["refused"] > CASES // 4 and sum(ended.values()) == CASES


@pytest.mark.parametrize("name", ["config", "image"])
def test_cases_can_be_repeated_and_differ(name: str) -> None:
    """A case is the same whatever was run before it."""
    target, n = TARGETS[name], 400
    cases = [mutation(target, SEED, i) for i in range(n)]
    assert cases == [mutation(target, SEED, i) for i in reversed(range(n))][::-1]
    assert len({data for _, data in cases}) > 0.8 * n
    assert all(mutation(target, 2, i) != c for i, c in enumerate(cases[:3]))


@pytest.mark.parametrize("what", ["crash", "memory", "panic", "hang", "message"])
def test_the_driver_finds_what_it_looks_for(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    def read(folder: Path) -> None:
        if (folder / "f").read_bytes() == b"abc":
            return
        if what == "crash":
            raise KeyError("x")
        if what == "memory":
            bytearray(1 << 34)
        if what == "panic":
            raise Panic
        if what == "message":
            raise UserError("")
        while True:
            pass

    monkeypatch.setattr("tests.fuzz.driver.SECONDS", 0.2)
    found = {
        "crash": "KeyError",
        "memory": "MemoryError",
        "panic": "Panic",
        "hang": Hang.__name__,
        "message": "message ''",
    }
    with pytest.raises(AssertionError, match=found[what]):
        run(Target("x", {"f": b"abc"}, read), tmp_path, SEED, range(40))
