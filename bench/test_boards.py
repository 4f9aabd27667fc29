"""Long runs of the boards: the Ultra96-V2's accelerator on the demo model, and the small presets inside their chips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.fit import cells, resources
from golden.boards import BOARDS
from host.cli import app


def test_ultra96v2_speaks_bit_exactly() -> None:
    call = ["run", "--board", "ultra96v2", "--prompt", "One day, a small fox", "--max-new-tokens", "6", "--check"]
    result = CliRunner().invoke(app, [*call, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["bit_exact"] is True and facts["beat_bytes"] == 32


@pytest.mark.parametrize("name", ["pynq_z2", "ultra96v2"])
def test_presets_of_small_boards_are_inside_their_chips(name: str, tmp_path: Path) -> None:
    b = BOARDS[name]
    used = resources(cells(b, tmp_path))
    print(name, used)
    limits = {"lut": b.luts, "ff": b.ffs, "bram36": b.bram36, "uram": b.urams, "dsp": b.dsps}
    for what, limit in limits.items():
        assert used[what] <= limit, f"{what}: {used[what]:,} of {limit:,}"
