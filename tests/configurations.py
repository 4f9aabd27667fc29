"""Configurations far from the presets, which the generator must build all the same: `tellme --board tiny` with changes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tellme.host.cli import app
from tellme.sim.runner import verilator

SMALL: dict[str, dict[str, object]] = {
    "one lane, groups of 5": {"lanes": 1, "group_size": 5, "attention_lanes": 1, "narrow_cache": False},
    "two 8-byte ports, groups of 2": {"ports": 2, "port_bytes": 8, "lanes": 2, "group_size": 2},
    "heads of 32 only, everything least": {
        "lanes": 2, "group_size": 4, "max_hidden": 128, "max_features": 512, "max_kv_dim": 64, "max_heads": 4,
        "max_head_dim": 32, "block_rows": 64, "fifo_beats": 64, "screen_entries": 64, "burst_beats": 2, "outstanding": 2,
    },
    "two ports, groups of 4, bursts of 4 KiB": {
        "ports": 2, "group_size": 4, "lanes": 2, "attention_lanes": 4, "key_tile": 16, "burst_beats": 256, "outstanding": 64,
    },
}  # fmt: skip
"""Seconds or few minutes each, in `make test`."""

LARGE: dict[str, dict[str, object]] = {
    "32 lanes, groups of 2": {"lanes": 32, "group_size": 2, "attention_lanes": 8},
    "eight 8-byte ports, groups of 5": {"ports": 8, "port_bytes": 8, "group_size": 5, "key_tile": 16},
    "heads of 64 only": {"max_head_dim": 64, "max_kv_dim": 64, "max_heads": 4, "lanes": 8},
    "32 attention lanes of two lanes": {"lanes": 2, "attention_lanes": 32},
    "one attention lane of 16 lanes": {"lanes": 16, "attention_lanes": 1, "narrow_cache": False, "group_size": 4},
    "64-byte beats, two lanes, groups of 2": {"ports": 4, "lanes": 2, "group_size": 2, "key_tile": 16},
    "runs of 256 beats": {"key_tile": 256, "max_context": 512, "burst_beats": 4, "group_size": 5},
    "blocks of 4,096 rows, 8,192 features": {"block_rows": 4096, "max_features": 8192, "lanes": 1, "group_size": 2},
    "grouped weights, 32-byte beats, groups of 5": {
        "weight_format": "grouped", "ports": 2, "group_size": 5, "lanes": 2, "key_tile": 16,
    },
    "grouped weights, one lane, groups of 2": {
        "weight_format": "grouped", "lanes": 1, "group_size": 2, "attention_lanes": 1, "narrow_cache": False,
    },
    "a FIFO of 65,536 beats, few scores": {"fifo_beats": 65536, "score_words": 512, "attention_lanes": 8, "group_size": 4},
    "32 lanes, one attention lane, groups of 5": {
        "lanes": 32, "group_size": 5, "attention_lanes": 1, "narrow_cache": False,
    },
}  # fmt: skip
"""Minutes each, in bench/."""


def settings(changes: Mapping[str, object]) -> list[str]:
    """Options of a command."""
    return [
        s
        for name, value in changes.items()
        for s in ("--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}")
    ]


def lint(changes: Mapping[str, object], folder: Path) -> None:
    """Writes the Verilog, and has Verilator read it without a complaint."""
    result = CliRunner().invoke(app, ["verilog", "--board", "tiny", *settings(changes), "--out", str(folder)])
    assert result.exit_code == 0, result.output
    program = str(verilator() / "bin" / "verilator_bin")
    done = subprocess.run(
        [program, "--lint-only", "--top-module", "tellme", "tellme.v"],
        cwd=folder, env=os.environ | {"VERILATOR_ROOT": str(verilator())}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def speak(changes: Mapping[str, object], tokens: int = 3) -> dict[str, Any]:
    """The demo model on the simulated machine, each logit held against golden; what `tellme run --json` says."""
    call = ["run", "--board", "tiny", *settings(changes), "--prompt", "One day, a small fox", "--check", "--json"]
    result = CliRunner().invoke(app, [*call, "--max-new-tokens", str(tokens)])
    assert result.exit_code == 0, result.output
    facts: dict[str, Any] = json.loads(result.stdout)
    assert facts["bit_exact"] is True and len(facts["new_ids"]) == tokens
    return facts
