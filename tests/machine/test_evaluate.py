"""`tellme eval` on the RTL gives the numbers of the golden model, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tellme.host.cli import app

TEXT = "One day, a small fox sat by the road and wanted to find a friend."


def test_the_simulation_scores_as_the_golden_model(tmp_path: Path) -> None:
    """Windows that overlap, passes of several lanes and of one, logits of every lane."""
    path = tmp_path / "t.txt"
    path.write_text(TEXT)
    out: dict[str, dict[str, Any]] = {}
    for backend in ("sim", "golden"):
        call = ["eval", "demo", "--text", str(path), "--backend", backend, "--reference", "demo", "--json"]
        call += ["--context", "9", "--stride", "5", "--max-tokens", "13"]
        result = CliRunner().invoke(app, call)
        assert result.exit_code == 0, result.output
        out[backend] = json.loads(result.stdout)
    assert out["sim"]["nll"] == out["golden"]["nll"] and out["sim"]["windows"] == 2
    assert out["sim"]["bits_per_byte"] == out["golden"]["bits_per_byte"]
    reference = out["sim"]["reference"]
    assert (reference["agreement"], reference["kl_max"], reference["nll"]) == (1.0, 0.0, out["sim"]["nll"])
