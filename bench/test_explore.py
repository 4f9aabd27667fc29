"""`tellme explore --synthesise` with Yosys, on a machine so small that it maps all of it in a CPU-minute or two."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host.commands.test_explore import MAP_SMALLEST, run


def test_a_whole_machine_is_mapped_and_the_model_is_near(tmp_path: Path) -> None:
    explore = [*MAP_SMALLEST, "--out", str(tmp_path)]
    before = {p["name"]: p for p in run(*explore)["points"]}
    found = run(*explore, "--synthesise", "1")
    (own,) = (p for p in found["points"] if p.get("synthesised"))
    assert own["estimated"]["lut"] == before[own["name"]]["lut"] and found["evaluated"] == 0
    print({m: (own["estimated"][m], own[m]) for m in ("lut", "ff", "dsp", "ramb36")})
    for metric, near in (("lut", 0.1), ("ff", 0.05), ("dsp", 0.05), ("ramb36", 0.0)):
        assert own[metric] == pytest.approx(own["estimated"][metric], rel=near), metric
    # What was mapped is kept: a third run says the same at once.
    assert run(*explore, "--synthesise", "1")["points"] == found["points"]
