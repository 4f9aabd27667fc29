"""40,000 damaged files, shared by all readers. Run by `make bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellme.golden.arith import ceil_div
from tests.fuzz.driver import run
from tests.fuzz.targets import targets

CASES = 40_000
SEED = 1
TARGETS = {t.name: t for t in targets()}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    n = ceil_div(CASES, len(TARGETS))
    print(f"{name}: {run(TARGETS[name], tmp_path, SEED, range(n))}")
