"""`tellme explore`: what it finds, keeps, writes and refuses."""

from __future__ import annotations

import csv
import json
import xml.dom.minidom
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tellme.golden.config import KV260, AcceleratorConfig
from tellme.host.cli import app
from tellme.host.configuration import resolve
from tellme.host.machine.exploration import KEPT
from tellme.hw.synth import synthesis
from tellme.hw.synth.estimate import model
from tellme.hw.synth.netlist import Resources

ROOT = Path(__file__).resolve().parents[3]
SMALL = ["explore", "--board", "ultra96v2", "--model", "demo", "--context", "64", "--workers", "1"]
SPACE = ["--over", "lanes=1,4", "--over", "group_size=2,3"]


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("explored")
    return folder, run(*SMALL, *SPACE, "--prompt", "20", "--out", str(folder))


def test_points_have_what_is_promised(explored: tuple[Path, dict[str, Any]]) -> None:
    folder, found = explored
    assert len(found["points"]) == 4 and found["points"][0]["name"] == found["base"]
    for p in found["points"]:
        assert {"feasible", "tokens_per_s", "ttft_s", "lut", "ff", "dsp", "ramb36", "uram", "config"} <= p.keys()
        config = AcceleratorConfig(**p["config"])
        assert config.name == "ultra96v2" and config.lanes in (1, 4) and config.group_size in (2, 3)
        assert p["feasible"] and p["lut"] > 10_000 and p["joules_per_token"] > 0
    by = {(p["config"]["lanes"], p["config"]["group_size"]): p for p in found["points"]}
    assert by[4, 3]["lut"] > by[1, 3]["lut"], "lanes cost LUTs"
    assert by[4, 3]["ttft_s"] < by[1, 3]["ttft_s"], "and make prompts faster"
    assert {"version", "commit", "timing", "clock_hz", "workload", "space"} <= found.keys()
    assert found["workload"]["context"] == 64 and found["workload"]["prompt"] == 20


def test_the_front_has_files_that_build_what_they_say(explored: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, found = explored
    points = {p["name"]: p for p in found["points"]}
    assert found["best"] in found["front"] and 1 <= len(found["front"]) <= 4
    for name in found["front"]:
        shown = run("config", "show", "--config", points[name]["file"])
        assert all(shown["parameters"][n] == v for n, v in points[name]["config"].items() if n != "name")
    assert "</svg>" in (folder / "front.svg").read_text()
    xml.dom.minidom.parse(str(folder / "front.svg"))
    with open(folder / "points.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [r["name"] for r in rows] == [p["name"] for p in found["points"]]
    assert {r["name"] for r in rows if r["best"] == "True"} == set(found["front"])
    assert all(r["sources"] == found["sources"] and int(r["lanes"]) for r in rows)


def test_the_plan_says_the_same(explored: tuple[Path, dict[str, Any]]) -> None:
    """Of the same configuration, by the command that plans one."""
    _, found = explored
    point = next(p for p in found["points"] if p["config"]["lanes"] == 1)
    settings = ["--set", "lanes=1", "--set", f"group_size={point['config']['group_size']}"]
    planned = run(
        "plan",
        "--board",
        "ultra96v2",
        "--model",
        "demo",
        "--context",
        "64",
        "--prompt",
        "20",
        "--timing",
        "ultra96v2",
        *settings,
    )
    assert planned["tokens_per_s"] == point["tokens_per_s"] and planned["ttft_s"] == point["ttft_s"]


def test_a_second_run_goes_on(explored: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, found = explored
    assert found["evaluated"] == 4
    text = (folder / KEPT).read_bytes()
    # Cut off in the middle of a line, as when the power fails.
    (tmp_path / KEPT).write_bytes(text[: len(text) - 40])
    again = run(*SMALL, *SPACE, "--prompt", "20", "--out", str(tmp_path))
    assert again["evaluated"] == 1
    assert [{**p, "file": ""} for p in again["points"]] == [{**p, "file": ""} for p in found["points"]]
    assert run(*SMALL, *SPACE, "--prompt", "20", "--out", str(tmp_path))["evaluated"] == 0
    # Another workload, timing or clock is another question.
    for other in (["--prompt", "21"], ["--timing", "ideal"], ["--clock", "150"]):
        assert run(*SMALL, "--over", "lanes=4", "--prompt", "20", *other, "--out", str(tmp_path))["evaluated"] == 1


def test_clocks_do_not_share_files(tmp_path: Path) -> None:
    names = {run(*SMALL, "--over", "lanes=4", "--clock", c, "--out", str(tmp_path))["base"] for c in ("150", "187.5")}
    assert len(names) == 2 and len(list(tmp_path.glob("*.toml"))) == 2


def test_what_does_not_fit_is_said_and_not_on_the_front(tmp_path: Path) -> None:
    found = run(*SMALL, "--over", "lanes=4,32", "--margin", "0.75", "--out", str(tmp_path))
    wide = next(p for p in found["points"] if p["config"]["lanes"] == 32)
    assert not wide["feasible"] and "of the chip's" in wide["reason"] and wide["name"] not in found["front"]
    assert found["front"] == [found["base"]]


def test_tables_name_the_best(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*SMALL, "--over", "lanes=1,4", "--out", str(tmp_path)], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert "best" in result.output and "tellme build --config" in result.output and "2 configurations" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "gpt"], "model 'gpt' is not a known shape"),
        (["--board", "tiny"], "'tiny' is no board: it has no chip to fit"),
        (["--board", "kv261"], "kv261"),
        (["--margin", "0"], "--margin must be above 0, not 0"),
        (["--margin", "1.5"], "--margin must be above 0 and at most 1, not 1.5"),
        (["--margin", "nan"], "--margin must be above 0, not nan"),
        (["--context", "5000"], "context must be from 0 to"),
        (["--prompt", "-1"], "prompt must be from 0 to"),
        (["--conversations", "0"], "--conversations must be from 1 to 32, not 0"),
        (["--kv", "3"], "--kv must be 8, 8-4 or 4, not '3'"),
        (["--head", "auto"], "--head of a shape must be full or screened"),
        (["--timing", "none"], "no memory timing named 'none'"),
        (["--over", "lanes"], "--over lanes: must be name=value,value"),
        (["--over", "lanes="], "--over lanes=: must be name=value,value"),
        (["--over", "lanes=1", "--over", "lanes=2"], "each name once"),
        (["--over", "width=1"], "--over width=1: there is no parameter 'width' to vary"),
        (["--over", "name=1"], "there is no parameter 'name' to vary"),
        (["--over", "lanes=four"], "--over lanes=four: "),
        (["--over", "lanes=1.5"], "values of lanes are whole numbers, not 1.5"),
        (["--over", "lanes=true"], "values of lanes are whole numbers, not True"),
        (["--over", "narrow_cache=1"], "values of narrow_cache are true and false, not 1"),
        (["--over", "group_size=6,7"], "--over group_size: group_size must be a whole number from 2 to 5, not 6"),
        (["--most", "0"], "--most must be above 0, not 0"),
        (["--synthesise", "-1"], "--synthesise must be at least 0"),
        (["--workers", "0"], "--workers must be at least 1, not 0"),
        (["--workers", "1", "--scheduler", "tcp://x:1"], "--workers and --scheduler exclude each other"),
        (["--out", "/dev/null"], "is a file; give a folder"),
        (["--out", "/proc/here"], "cannot be written"),
    ],
)
def test_refused_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    rest = [x for name, value in {"--model": "bitnet-0.7b"}.items() if name not in given for x in (name, value)]
    result = CliRunner().invoke(app, ["explore", *rest, *arguments])
    assert result.exit_code != 0 and isinstance(result.exception, SystemExit), result.output
    assert message in result.output.replace("\n", " "), result.output
    assert not list(tmp_path.iterdir()), "nothing is left"


def test_the_kv260_has_one_at_least_as_fast(tmp_path: Path) -> None:
    """A part of the default space: BitNet 2B-4T, without synthesis. Its best is the configuration of the examples."""
    over = ["--over", "lanes=1,16", "--over", "attention_lanes=4"]
    found = run("explore", "--board", "kv260", "--model", "bitnet-2b", *over, "--workers", "1", "--out", str(tmp_path))
    points = {p["name"]: p for p in found["points"]}
    base, best = points[found["base"]], points[found["best"]]
    assert base["config"]["lanes"] == KV260.lanes and base["feasible"]
    assert best["feasible"] and best["tokens_per_s"] >= base["tokens_per_s"] and best["lut"] < base["lut"]
    example = resolve(None, ROOT / "docs/examples/configurations/kv260_decode.toml", ()).config
    assert AcceleratorConfig(**best["config"]) == example


def test_a_space_too_large_to_walk_is_searched_the_same_way_twice(tmp_path: Path) -> None:
    space = [
        "--over",
        "lanes=1,2,4",
        "--over",
        "group_size=2,3,4,5",
        "--over",
        "fifo_beats=256,512,1024",
        "--most",
        "4",
    ]
    first, second = (run(*SMALL, *space, "--no-picture", "--out", str(tmp_path / name)) for name in ("a", "b"))
    assert not first["walked"] and len(first["points"]) == 4 and first["points"][0]["name"] == first["base"]
    assert [p["config"] for p in first["points"]] == [p["config"] for p in second["points"]]
    assert len({json.dumps(p["config"]) for p in first["points"]}) == 4
    assert run(*SMALL, *space, "--no-picture", "--out", str(tmp_path / "a"))["evaluated"] == 0


def test_what_is_synthesised_takes_the_estimate_s_place_and_corrects_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Yosys' figures are given: a fifth more LUTs than estimated in every block."""
    mapped: list[AcceleratorConfig] = []

    def given(config: AcceleratorConfig, **_: Any) -> SimpleNamespace:
        mapped.append(config)
        blocks = {
            name: Resources(lut_logic=round(1.2 * r["lut"]), ff=round(r["ff"]), dsp=int(r["dsp"]), ramb36=r["ramb36"])
            for name, r in model().blocks(config).items()
        }
        return SimpleNamespace(blocks=blocks)

    arguments = [*SMALL, "--over", "lanes=1,4", "--over", "group_size=2,3", "--out", str(tmp_path)]
    before = {p["name"]: p for p in run(*arguments)["points"]}
    monkeypatch.setattr(synthesis, "synthesise", given)
    found = run(*arguments, "--synthesise", "1")
    assert len(mapped) == 1 and found["evaluated"] == 0
    (own,) = (p for p in found["points"] if p.get("synthesised"))
    assert own["lut"] == pytest.approx(1.2 * before[own["name"]]["lut"], rel=0.001)
    assert own["estimated"]["lut"] == before[own["name"]]["lut"] and own["name"] in found["front"]
    others = [p for p in found["points"] if p is not own]
    assert others and all(p["lut"] != before[p["name"]]["lut"] and "estimated" not in p for p in others)
    # A second run, with another workload, has the synthesis already.
    run(*arguments, "--synthesise", "1", "--context", "32")
    assert len(mapped) == 1


SMALLEST = {
    "lanes": 1, "group_size": 2, "block_rows": 128, "attention_lanes": 1, "key_tile": 32, "max_hidden": 256, "max_features": 1024, "max_kv_dim": 256,
    "max_heads": 16, "max_head_dim": 128, "max_context": 256, "score_words": 512, "fifo_beats": 64, "max_descriptors": 128, "screen_entries": 64,
    "burst_beats": 16, "outstanding": 2, "narrow_cache": "false",
}  # fmt: skip
"""Of a PYNQ-Z2, to be mapped soon."""
MAP_SMALLEST = [
    *("explore", "--board", "pynq_z2", *(x for n, v in SMALLEST.items() for x in ("--set", f"{n}={v}")), "--model", "demo"),
    *("--context", "64", "--over", "burst_beats=16", "--workers", "1", "--no-picture"),
]  # fmt: skip


def test_blocks_that_yosys_maps_are_what_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Yosys itself, on blocks that it maps in seconds; the others are as estimated. (All of them: bench/test_explore.py.)"""
    reports: list[synthesis.Report] = []
    whole = synthesis.synthesise

    def some(config: AcceleratorConfig, **options: Any) -> SimpleNamespace:
        reports.append(whole(config, blocks=("counters", "supervisor"), **options))
        others = {
            name: Resources(lut_logic=round(r["lut"]), ff=round(r["ff"]), dsp=int(r["dsp"]), ramb36=r["ramb36"])
            for name, r in model().blocks(config).items()
        }
        return SimpleNamespace(blocks=others | reports[-1].blocks)

    monkeypatch.setattr(synthesis, "synthesise", some)
    found = run(*MAP_SMALLEST, "--out", str(tmp_path), "--synthesise", "1")
    (report,), (own,) = reports, (p for p in found["points"] if p.get("synthesised"))
    estimate = model().blocks(AcceleratorConfig(**own["config"]))
    for metric in ("lut", "ff"):
        change = sum(r.record()[metric] - estimate[name][metric] for name, r in report.blocks.items())
        assert own[metric] == pytest.approx(own["estimated"][metric] + change, abs=len(estimate)), metric
    for name, r in report.blocks.items():
        assert r.lut > 20 and r.ff > 50
        assert r.lut == pytest.approx(estimate[name]["lut"], abs=20), f"{name}: the model is of what Yosys maps"
        assert r.ff == pytest.approx(estimate[name]["ff"], abs=30)
    kept = (json.loads(line) for line in (tmp_path / KEPT).read_text().splitlines())
    (mapped,) = (e["found"] for e in kept if e["key"].startswith("synthesis-"))
    assert all(mapped[name]["lut"] == r.lut for name, r in report.blocks.items())
