"""`tellme config`, and `--config` and `--set` wherever a board is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from tellme.golden.boards import BOARDS, build_name
from tellme.golden.config import KV260, TINY
from tellme.host.cli import app
from tellme.host.configuration import PARAMETERS, resolve
from tests.own_boards import EXAMPLES, forgotten


@pytest.fixture(autouse=True)
def own() -> Iterator[None]:
    with forgotten():
        yield


def tellme(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def test_show_says_it_all_in_json_and_in_tables(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('board = "kv260"\nlanes = 8\n')
    r = tellme("config", "show", "--config", str(path), "--set", "clock_mhz=200", "--json")
    config = replace(KV260, lanes=8, clock_hz=200_000_000)
    said = json.loads(r.stdout)
    assert said["name"] == build_name(config) and said["changes"] == {"lanes": 8, "clock_hz": 200_000_000}
    r = tellme("config", "show", "--config", str(path))
    assert all(name in r.stdout for name in (*PARAMETERS, "beat_weights", "x.toml", "build register"))


def test_show_says_what_the_preset_has_of_every_parameter_that_differs() -> None:
    """Numbers, words, and what is true or false."""
    settings = ["lanes=8", "clock_mhz=200", "weight_format=grouped", "narrow_cache=false"]
    r = tellme("config", "show", "--board", "kv260", *(x for s in settings for x in ("--set", s)))
    assert r.exit_code == 0, r.output
    said = {line.split("│")[1].strip(): line for line in r.stdout.splitlines() if "│" in line}
    for name, value, preset in (
        ("lanes", "8", "16"), ("clock_hz", "200,000,000", "250,000,000"), ("weight_format", "grouped", "ternary"),
        ("narrow_cache", "False", "True"),
    ):  # fmt: skip
        assert [c.strip() for c in said[name].split("│")[2:4]] == [value, preset]


def test_show_writes_a_file_that_is_read_as_the_same(tmp_path: Path) -> None:
    out = tmp_path / "out.toml"
    assert tellme("config", "show", "--board", "tiny", "--set", "lanes=2", "--out", str(out)).exit_code == 0
    assert resolve(None, out, ()).config == replace(TINY, lanes=2)
    r = tellme("config", "show", "--board", "tiny", "--out", str(tmp_path / "none" / "x.toml"))
    assert r.exit_code == 2 and "none" in r.stderr and not r.stdout


def test_every_command_that_takes_a_board_takes_a_configuration() -> None:
    group = typer.main.get_command(app)
    commands = {**group.commands, **{f"config {n}": c for n, c in group.commands["config"].commands.items()}}  # type: ignore[attr-defined]
    with_board = {n for n, c in commands.items() if any("--board" in p.opts for p in c.params)}
    assert {"run", "chat", "build", "bench", "plan", "synth", "config show"} <= with_board
    for name in with_board:
        options = {o for p in commands[name].params for o in p.opts}
        assert {"--config", "--set"} <= options, name


@pytest.mark.parametrize(
    "command", [["plan", "--model", "bitnet-2b"], ["info"], ["synth"], ["config", "show"], ["run", "--prompt", "x"]]
)
def test_a_configuration_that_cannot_be_is_one_line(command: list[str]) -> None:
    r = tellme(*command, "--board", "kv260", "--set", "group_size=6")
    assert r.exit_code == 2 and not r.stdout
    assert r.stderr == "tellme: --set group_size=6: group_size must be a whole number from 2 to 5, not 6\n"


def test_info_shows_what_is_changed() -> None:
    r = tellme("info", "--set", "lanes=2", "--json")
    assert json.loads(r.stdout)["parameters"]["lanes"] == 2 and json.loads(r.stdout)["board"] == "tiny"


def test_a_configuration_is_built_to_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    verilog = "module tellme; endmodule\n"
    monkeypatch.setattr("tellme.hw.platforms.vivado.accelerator_verilog", lambda config, **_: verilog)
    for path in EXAMPLES:
        out = tmp_path / path.stem
        r = tellme("build", "--config", str(path), "--set", "lanes=2", "--out", str(out), "--json")
        assert r.exit_code == 0, r.stderr
        config = resolve(None, path, ("lanes=2",)).config
        said = json.loads(r.stdout)
        assert (said["board"], said["name"]) == (path.stem, build_name(config))
        m = json.loads((out / f"{build_name(config)}.json").read_text())
        assert m["config"]["lanes"] == 2 and m["part"] == BOARDS[path.stem].part
        assert (out / f"constraints/{path.stem}.xdc").read_text().strip()
        # Another configuration is another build, which the folder is not for.
        r = tellme("build", "--config", str(path), "--out", str(out))
        assert r.exit_code == 2 and "give another folder" in r.stderr
    r = tellme("build", "--board", "ulx3s", "--set", "lanes=2", "--out", str(tmp_path / "u"))
    assert r.exit_code == 2 and "leave --config and --set out" in r.stderr


def test_the_demo_runs_as_configured() -> None:
    """Group size and lanes change how, never what."""
    told = []
    for settings in ([], ["--set", "lanes=1", "--set", "group_size=5"]):
        r = tellme(
            "run",
            "--backend",
            "golden",
            "--prompt",
            "Once",
            "--max-new-tokens",
            "4",
            "--board",
            "tiny",
            *settings,
            "--json",
        )
        assert r.exit_code == 0, r.stderr
        told.append(json.loads(r.stdout))
    assert told[0]["ids"] == told[1]["ids"] if "ids" in told[0] else told[0]["text"] == told[1]["text"]
