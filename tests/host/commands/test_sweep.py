"""Sweeps: `--over` and `--csv` of `tellme plan` and `tellme bench`."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tellme.host.cli import app
from tellme.host.image.model import demo_folder
from tellme.host.provenance import commit, version

PLAN = ["plan", "--board", "ultra96v2", "--model", "demo", "--timing", "ultra96v2", "--prompt", "20"]
BENCH = ["bench", "--board", "tiny", "--model", "demo"]


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def test_every_combination_is_what_the_command_says_alone(tmp_path: Path) -> None:
    over = ["--over", "lanes=2,4", "--over", "context=64,32", "--csv", str(tmp_path / "plan.csv")]
    found = run(*PLAN, *over)
    points = found["points"]
    assert found["over"] == {"lanes": [2, 4], "context": [64, 32]}
    assert [(p["lanes"], p["context"]) for p in points] == [(2, 64), (2, 32), (4, 64), (4, 32)], (
        "the last is the fastest"
    )
    alone = run(*PLAN, "--set", "lanes=2", "--context", "32")
    assert {n: points[1][n] for n in alone if n in points[1]} == {n: v for n, v in alone.items() if n in points[1]}
    assert alone.keys() - points[1].keys() == {"version", "commit"}
    assert points[1]["sha256"] == run("config", "show", "--board", "ultra96v2", "--set", "lanes=2")["sha256"]
    assert points[1]["config"]["lanes"] == 2 and len({p["sha256"] for p in points}) == 2
    rows = table(tmp_path / "plan.csv")
    assert len(rows) == 4
    for row, point in zip(rows, points, strict=True):
        assert float(row["tokens_per_s"]) == point["tokens_per_s"] and float(row["ttft_s"]) == point["ttft_s"]
        assert int(row["stalls.attention"]) == point["stalls"]["attention"]
        assert (row["sha256"], row["model"], row["timing"]) == (point["sha256"], "demo", "ultra96v2")
        assert int(row["group_size"]) == point["config"]["group_size"]
        assert (row["version"], row["commit"]) == (version(), commit() or "")
        assert shlex.split(row["command"]) == ["tellme", *PLAN, *over, "--json"] == shlex.split(found["command"])


def test_models_boards_and_formats_are_varied_too(tmp_path: Path) -> None:
    over = ["--over", "board=ultra96v2,kv260", "--over", "clock=100,125"]
    found = run("plan", "--model", "demo", "--context", "200", *over)["points"]
    assert [(p["board"], p["clock_hz"]) for p in found[:3]] == [
        ("ultra96v2", 100_000_000), ("ultra96v2", 125_000_000), ("kv260", 100_000_000),
    ]  # fmt: skip
    found = run("plan", "--model", "demo", "--context", "250", "--prompt", "0", "--over", "kv=8,8-4")["points"]
    assert [p["kv"] for p in found] == ["8", "8-4"] and found[0]["bytes_per_pass"] > found[1]["bytes_per_pass"]
    demo = str(demo_folder() / "config.json")
    models = run(*PLAN, "--over", f"model=demo,{demo}")["points"]
    assert [p["model"] for p in models] == ["demo", demo]
    assert models[0]["tokens_per_s"] == models[1]["tokens_per_s"]


def test_one_point_has_a_table_too(tmp_path: Path) -> None:
    found = run(*PLAN, "--csv", str(tmp_path / "one.csv"))
    assert [float(r["tokens_per_s"]) for r in table(tmp_path / "one.csv")] == [
        p["tokens_per_s"] for p in found["points"]
    ]


def test_people_get_a_table() -> None:
    result = CliRunner().invoke(app, [*PLAN, "--over", "lanes=2,4"], env={"COLUMNS": "200"})
    assert result.exit_code == 0 and "2 points, estimated" in result.output
    assert "tokens_per_s" in result.output and "ttft_s" in result.output


def test_simulations_are_swept_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    points = run(*BENCH, "--over", "sequences=1,2", "--context", "9", "--csv", str(path))["points"]
    alone = run(*BENCH, "--context", "9")
    assert points[0]["cycles_per_pass"] == alone["cycles_per_pass"] and points[0]["bit_exact"]
    assert points[1]["sequences"] == 2 and points[1]["tokens_per_s"] > 1.2 * points[0]["tokens_per_s"]
    rows = table(path)
    assert [float(r["tokens_per_s"]) for r in rows] == [p["tokens_per_s"] for p in points]
    assert rows[0]["busy.tlmm"] and rows[1]["plan_error"] and not rows[1]["busy.tlmm"], (
        "a column for every figure of any"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PLAN, "--over", "lanes"], "--over lanes: must be name=value,value"),
        ([*PLAN, "--over", "lanes=1", "--over", "lanes=2"], "each name once"),
        ([*PLAN, "--over", "width=1"], "there is no parameter 'width' to vary; tellme config show lists them; besides"),
        ([*PLAN, "--over", "sequences=1,2"], "there is no parameter 'sequences' to vary"),
        ([*PLAN, "--over", "context=32,x"], "--over context=32,x: 'x' is no value"),
        ([*PLAN, "--over", "context=32,1.5"], "values of context are whole numbers, not 1.5"),
        ([*PLAN, "--over", "hadamard=1"], "values of hadamard are true and false, not 1"),
        ([*PLAN, "--over", "model=demo,"], "values of model are words, not ''"),
        ([*PLAN, "--over", "lanes=2,3"], "--over lanes=3: "),
        (
            [*PLAN, "--over", "lanes=2,4", "--over", "context=32,99999"],
            "--over lanes=2, context=99999: context must be",
        ),
        ([*PLAN, "--over", "model=demo,gpt"], "--over model=gpt: model 'gpt' is not a known shape"),
        ([*PLAN, "--over", "kv=8,3"], "--over kv=3: --kv must be 8, 8-4 or 4, not '3'"),
        ([*PLAN, "--over", "timing=kv260,none"], "--over timing=none: no memory timing named 'none'"),
        ([*PLAN, "--over", "clock=100,1"], "--over clock=1: --clock: ultra96v2 makes no clock of 1 MHz"),
        ([*PLAN, "--over", "head=full,auto"], "--over head=auto: --head of a shape must be"),
        ([*PLAN, "--over", "lanes=2,4", "--csv", "/"], "is a folder; give the name of a file"),
        ([*PLAN, "--over", "lanes=2,4", "--csv", "/nowhere/x.csv"], "its folder does not exist"),
        ([*BENCH, "--over", "sequences=1,99"], "--over sequences=99: --sequences must be from 1 to 4"),
        ([*BENCH, "--over", "context=1,2", "--trace", "x.json"], "--over and --csv go without --trace and --pictures"),
    ],
)
def test_refused_in_one_line_before_anything_runs(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = arguments if "--csv" in arguments or "--trace" in arguments else [*arguments, "--csv", "x.csv"]
    r = CliRunner().invoke(app, given)
    assert r.exit_code == 2 and r.stdout == "", r.output
    assert message in r.stderr and r.stderr.startswith("tellme: ") and r.stderr.count("\n") == 1, r.stderr
    assert not list(tmp_path.iterdir()), "nothing is left"
