"""A long run of a board: the Ultra96-V2's accelerator on the demo model. (What boards take: test_synth.py.)"""

from __future__ import annotations

import json

from typer.testing import CliRunner

from tellme.host.cli import app


def test_ultra96v2_speaks_bit_exactly() -> None:
    call = ["run", "--board", "ultra96v2", "--prompt", "One day, a small fox", "--max-new-tokens", "6", "--check"]
    result = CliRunner().invoke(app, [*call, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["bit_exact"] is True and facts["beat_bytes"] == 32
