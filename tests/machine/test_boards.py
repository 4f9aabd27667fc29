"""The smallest board's accelerator, RTL under Verilator: 64-bit ports, four lanes, block RAM. Others: bench/test_boards.py."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tellme.golden.config import PRESETS
from tellme.host.cli import app


@pytest.mark.parametrize("timing", ["kv260", "stress"])
def test_pynq_z2_speaks_bit_exactly(timing: str) -> None:
    c = PRESETS["pynq_z2"]
    assert (c.port_bytes, c.lanes) == (8, 4)
    call = ["run", "--board", "pynq_z2", "--prompt", "One day, a", "--max-new-tokens", "3", "--check", "--json"]
    call += ["--stress", "7"] if timing == "stress" else ["--timing", timing]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["bit_exact"] is True and facts["beat_bytes"] == 16 and len(facts["new_ids"]) == 3
