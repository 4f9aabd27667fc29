"""`tellme plan`, and what it and `tellme bench` refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tellme.golden.boards import BOARDS
from tellme.golden.config import KV260
from tellme.golden.shapes import BITNET_07B
from tellme.host.cli import app
from tellme.hw.plan import predict, steps
from tellme.sim.stream import SustainedMemory
from tellme.sim.timing import timing

BONSAI = str(Path(__file__).resolve().parents[3] / "docs" / "examples" / "configurations" / "kv260_bonsai_large.toml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--model", "gpt"], "model 'gpt' is not a known shape; there are bitnet-0.7b, bitnet-2b"),
        (["bench", "--model", "bitnet-0.7b", "--board", "tiny"], "hidden is 1536, but accelerator 'tiny' holds"),
        (["bench", "--model", "bitnet-0.7b", "--context", "2048"], "context must be from 0 to 2047"),
        (["bench", "--model", "bitnet-0.7b", "--prompt", "-1"], "prompt must be from 0 to 2047"),
        (["bench", "--model", "bitnet-0.7b", "--timing", "none"], "no memory timing named 'none'"),
        (["bench", "--model", "bitnet-0.7b", "--trace", "/nowhere/t.json"], "its folder does not exist"),
        (["bench", "--model", "bitnet-0.7b", "--trace", "/"], "is a folder; give the name of a file"),
        (["bench", "--model", "bitnet-0.7b", "--pictures", "/proc/pictures"], "/proc/pictures: cannot be written ("),
        (["bench", "--model", "bitnet-0.7b", "--pictures", "/dev/null"], "is a file; give a folder"),
        (["bench", "--model", "bitnet-2b", "--head", "auto"], "--head of a shape must be full or screened, not 'auto'"),
        (["bench", "--model", "bitnet-2b", "--candidates", "64"], "--candidates needs --head screened"),
        (["plan", "--model", "bitnet-2b", "--head", "screened", "--planes", "3"], "--planes must be 1 or 2, not 3"),
        (["plan", "--model", "bitnet-2b", "--head", "screened", "--candidates", "8"], "from 16 to 1024, not 8"),
        (
            ["plan", "--config", BONSAI, "--model", "bonsai-8b", "--head", "screened", "--planes", "2"],
            "--planes is of a ternary copy of the head; this model's head is ternary itself, leave it out",
        ),
        (["plan", "--model", "gpt"], "model 'gpt' is not a known shape"),
        (["plan", "--model", "bitnet-0.7b", "--board", "tiny"], "hidden is 1536, but accelerator 'tiny' holds"),
        (["plan", "--model", "bitnet-2b", "--context", "4000"], "context must be from 0 to"),
    ],
)
def test_refused_in_one_line(arguments: list[str], message: str) -> None:
    r = CliRunner().invoke(app, arguments)
    assert r.exit_code == 2 and r.stdout == ""
    assert message in r.stderr
    assert r.stderr.startswith("tellme: ") and r.stderr.count("\n") == 1


def test_plan_prints_what_the_analysis_says() -> None:
    r = CliRunner().invoke(app, ["plan", "--model", "bitnet-0.7b", "--context", "128", "--json"])
    assert r.exit_code == 0, r.output
    said = json.loads(r.stdout)
    assert said["estimated"] is True
    assert said["cycles_per_pass"] == pytest.approx(
        predict(
            steps(BITNET_07B, KV260, [128], [0], 1), KV260, SustainedMemory(timing("kv260"), BOARDS["kv260"].phases)
        ).cycles
    )
    assert said["phases_kib"] == [x // 1024 for x in BOARDS["kv260"].phases]
    assert said["memory_rate"] * 16 == pytest.approx(BOARDS["kv260"].memory_rate / 1e9, rel=0.02)
    assert said["tokens_per_s"] == pytest.approx(250e6 / said["cycles_per_pass"])


def test_a_screened_head_is_planned_to_read_less() -> None:
    said = {}
    for head in ("full", "screened"):
        r = CliRunner().invoke(app, ["plan", "--model", "bitnet-2b", "--context", "250", "--head", head, "--json"])
        assert r.exit_code == 0, r.output
        said[head] = json.loads(r.stdout)
    assert said["screened"]["candidates"] == 256 and said["full"]["candidates"] is None
    assert said["screened"]["bytes_per_pass"] < 0.67 * said["full"]["bytes_per_pass"]
    assert said["screened"]["tokens_per_s"] > 1.45 * said["full"]["tokens_per_s"]


def test_a_ternary_head_is_read_as_it_is_only_by_accelerators_that_take_one() -> None:
    """Two bits a weight and no candidates' rows, instead of eight."""
    read = {}
    for key, options in {"exact": (), "int8": ("--set", "ternary_head=false")}.items():
        r = CliRunner().invoke(
            app, ["plan", "--config", BONSAI, "--model", "bonsai-4b", "--prompt", "0", "--json", *options]
        )
        assert r.exit_code == 0, r.output
        read[key] = json.loads(r.stdout)["bytes_per_pass"]
    weights = 151936 * 2560
    assert read["int8"] - read["exact"] == pytest.approx(weights * (8 - 2) / 8, rel=0.01)
