"""The command: one JSON object, one line for every refusal, and the right exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tellme.golden.config import PRESETS, TINY
from tellme.host import cli
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.commands import bench, common, convert
from tellme.host.machine import program
from tellme.host.machine.backends import GoldenBackend
from tellme.host.machine.passes import Pass, PassResult
from tellme.host.provenance import commit, version
from tellme.host.text.tokenizer import Files, Tokenizer
from tests.host.machine.reference_machine import ReferenceMachine, Stop
from tests.host.support import DEMO, config_json, on_reference_machines, tensors_of, write_checkpoint, write_folder
from tests.models import random_weights, small_spec

KEYS = [
    "prompt_ids", "new_ids", "text", "lanes", "beat_bytes", "cycles_prefill", "cycles_decode", "stalls", "bit_exact",
    "model", "backend", "board", "clock_hz", "seconds", "head", "candidates", "screened_passes", "fallbacks",
    "kv", "hadamard", "cached_tokens", "logprobs", "drafted", "accepted", "tokens_per_pass", "version", "commit",
]  # fmt: skip


def tellme(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, list(arguments))


def refused(message: str, *arguments: str, code: int = 2) -> None:
    """The command ends with `code`, says `message` in one line on stderr and nothing on stdout."""
    r = tellme(*arguments)
    assert r.exit_code == code, r.output
    assert message in r.stderr
    assert r.stderr.startswith("tellme: ") and r.stderr.count("\n") == 1
    assert r.stdout == ""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[ReferenceMachine]:
    """Puts the reference machine in the place of the simulation."""
    made: list[ReferenceMachine] = []

    monkeypatch.setattr(common, "SimulatedAccelerator", on_reference_machines(made))
    return made


RUN = ("run", "--prompt", "Once upon a time", "--max-new-tokens", "12")


def test_golden_streams_the_text_and_statistics_apart():
    r = tellme(*RUN, "--backend", "golden")
    assert r.exit_code == 0
    assert r.stdout == "Once upon a time, in a house on a hill, there lived a happy\n"
    assert "no cycles are counted" in r.stderr


def test_chat_gives_the_prompt_to_the_models_template(tmp_path: Path):
    folder = write_checkpoint(tmp_path / "m", small_spec(vocab=1024))
    chat = ("run", "--backend", "golden", "--model", str(folder), "--prompt", "Hi", "--max-new-tokens", "1", "--chat")
    refused("the model has no chat template; leave --chat out", *chat)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}Once {{ messages[0].role }}: {{ messages[0].content }}")
    r = tellme(*chat, "--json")
    assert r.exit_code == 0, r.output
    tokenizer = Tokenizer(Files.read(folder), 1024)
    assert json.loads(r.stdout)["prompt_ids"] == tokenizer.encode("Once user: Hi")
    tellme("convert", str(folder), str(tmp_path / "m.tlm"))
    again = tellme(*[str(tmp_path / "m.tlm") if a == str(folder) else a for a in chat], "--json")
    first, second = json.loads(r.stdout), json.loads(again.stdout)
    assert {k: first[k] for k in ("prompt_ids", "new_ids", "text")} == {
        k: second[k] for k in ("prompt_ids", "new_ids", "text")
    }


def test_json_of_golden_and_of_a_machine(machine: list[ReferenceMachine]):
    results = {}
    for backend in ("golden", "sim"):
        r = tellme(*RUN, "--backend", backend, "--json")
        assert r.exit_code == 0 and r.stderr == ""
        results[backend] = json.loads(r.stdout)
        assert list(results[backend]) == KEYS and r.stdout.count("\n") == 1
    golden, sim = results["golden"], results["sim"]
    for key in ("prompt_ids", "new_ids", "text", "lanes", "beat_bytes"):
        assert golden[key] == sim[key]
    assert (golden["cycles_prefill"], golden["cycles_decode"], golden["stalls"]) == (None, [], {})
    assert golden["prompt_ids"] == [0, 461, 462, 260, 435] and len(golden["new_ids"]) == 12
    assert (golden["lanes"], golden["beat_bytes"], golden["bit_exact"]) == (4, 16, None)
    assert sim["cycles_prefill"] > 0 and len(sim["cycles_decode"]) == 11 and sim["bit_exact"] is None
    assert sim["stalls"]["memory"] == 13 and set(sim["stalls"]) == {
        "memory", "control", "elementwise", "attention", "epilogue", "drain",
    }  # fmt: skip
    assert machine[0].closed


@pytest.mark.parametrize("command", [RUN, (*RUN, "--check"), ("chat",)])
def test_the_program_is_compiled_once(
    command: tuple[str, ...], machine: list[ReferenceMachine], monkeypatch: pytest.MonkeyPatch
):
    compile_sections, compiled = program.compile_sections, []

    def count(*arguments: Any, **options: Any) -> Any:
        compiled.append(compile_sections(*arguments, **options))
        return compiled[-1]

    monkeypatch.setattr(program, "compile_sections", count)
    assert tellme(*command).exit_code == 0
    assert len(machine) == len(compiled) == 1


def test_check_says_how_much_was_compared(machine: list[ReferenceMachine]):
    r = tellme(*RUN, "--check")
    assert r.exit_code == 0
    assert f"bit-exact: {(5 + 11) * 1024:,} logits of 13 passes equal the golden model's" in r.stderr
    assert "tokens/s (simulated)" in r.stderr and "cycles without a beat: memory 13" in r.stderr
    assert json.loads(tellme(*RUN, "--check", "--json").stdout)["bit_exact"] is True


def test_a_failed_check_is_exit_code_1_and_says_where(machine: list[ReferenceMachine], monkeypatch: pytest.MonkeyPatch):
    class Wrong(GoldenBackend):
        def _pass(self, given: Pass) -> PassResult:
            r = super()._pass(given)
            if given.positions[0] == 6 and r.logits is not None:
                bits = r.logits.copy().view(np.uint32)
                bits[0, 77] ^= 1
                r = replace(r, logits=bits.view(np.float32))
            return r

    monkeypatch.setattr(common, "GoldenBackend", Wrong)
    r = tellme(*RUN, "--check", "--json")
    assert r.exit_code == 1
    assert "pass 3, lane 0, position 6, vocabulary index 77: logit" in r.stderr and r.stderr.count("\n") == 1
    result = json.loads(r.stdout)
    assert result["bit_exact"] is False and len(result["new_ids"]) == 2
    assert machine[0].closed


def test_sampling_options_reach_the_sampler(machine: list[ReferenceMachine]):
    options = ("--temperature", "0.9", "--top-k", "50", "--top-p", "0.95", "--json")

    def ids(*more: str) -> Any:
        return json.loads(tellme(*RUN, *options, *more).stdout)["new_ids"]

    assert ids("--seed", "1") == ids("--seed", "1", "--backend", "golden") != ids("--seed", "2")
    greedy = json.loads(tellme(*RUN, "--json", "--backend", "golden").stdout)["new_ids"]
    assert ids("--seed", "2", "--top-k", "1") == greedy


def test_stop_strings_end_the_text():
    r = tellme(*RUN, "--backend", "golden", "--stop", " house", "--stop", "zebra")
    assert r.stdout == "Once upon a time, in a\n"


def test_the_full_context_is_said(tmp_path: Path):
    folder = str(write_checkpoint(tmp_path / "m", small_spec(vocab=1024, max_context=8), eos_token_id=None))
    (tmp_path / "m" / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    r = tellme("run", "--prompt", "Once", "--model", folder, "--backend", "golden", "--json")
    assert r.exit_code == 0 and len(json.loads(r.stdout)["new_ids"]) == 7
    assert r.stderr == "tellme: stopped, the context of 8 positions is full\n"
    refused("the prompt has 11 tokens, but the context of m on board 'tiny' is 8 positions; shorten the prompt",
            "run", "--prompt", "Once upon a time there was a kind girl.", "--model", folder)  # fmt: skip


def test_an_error_of_the_device_is_exit_code_1(machine: list[ReferenceMachine], monkeypatch: pytest.MonkeyPatch):
    start = ReferenceMachine._start

    def broken(self: ReferenceMachine) -> None:
        self.injected = Stop(4, 99)
        start(self)

    monkeypatch.setattr(ReferenceMachine, "_start", broken)
    r = tellme(*RUN, "--json")
    assert (r.exit_code, r.stdout) == (1, "")
    assert r.stderr == (
        "tellme: the accelerator stopped the pass with error 4: memory answered a read with DECERR (no such address), "
        "at beat 99\n"
    )
    assert machine[0].closed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "fpga"), "backend 'fpga' is unknown; there are sim, golden, board"),
        (
            ("--board", "zcu"),
            "board 'zcu' is unknown; there are kr260, kv260, pynq_z2, rfsoc4x2, tiny, ultra96v2, zcu104",
        ),
        (
            ("--model", "no/where"),
            "model 'no/where' not found; give 'demo' or 'demo-qwen3', a checkpoint folder, a .gguf file or a .tlm image",
        ),
        (("--max-new-tokens", "0"), "max-new-tokens must be at least 1, not 0"),
        (("--max-new-tokens", "many"), "--max-new-tokens"),
        (("--temperature", "-1"), "temperature must be 0 (greedy) or a positive number, not -1.0"),
        (("--top-k", "-2"), "top-k must be 0 (all tokens) or more, not -2"),
        (("--top-p", "2"), "top-p must be above 0 and at most 1, not 2.0"),
        (("--seed", "-3"), "seed must be 0 or more, not -3"),
        (("--stop", ""), "a stop string must not be empty"),
        (("--stress", "1", "--timing", "kv260"), "--stress brings its own memory timing; leave --timing out"),
        (("--stress", "-1"), "--stress takes a seed of 0 or more, not -1"),
        (("--timing", "warp"), "no memory timing named 'warp'; there are ideal, kv260"),
        (("--waves", "no/where/x.fst"), "no/where/x.fst: its folder does not exist"),
        (("--backend", "golden", "--check"), "--check needs --backend sim or board"),
        (("--backend", "board", "--stress", "1"), "--stress needs --backend sim"),
        (("--bitstream", "x.bit"), "--bitstream needs --backend board"),
        (("--backend", "golden", "--stress", "1"), "--stress needs --backend sim"),
        (("--backend", "golden", "--timing", "kv260"), "--timing needs --backend sim"),
        (("--backend", "golden", "--waves", "x.fst"), "--waves needs --backend sim"),
        (("--frobnicate",), "No such option: --frobnicate"),
    ],
)
def test_bad_options_of_run(arguments: tuple[str, ...], message: str, machine: list[ReferenceMachine]):
    refused(message, "run", "--prompt", "x", *arguments)
    assert not machine or machine[0].closed


def test_usage_errors_are_one_line():
    refused("Missing option '--prompt'", "run")
    refused("No such command 'walk'", "walk")
    refused("Missing argument", "convert", "demo")


def test_help_is_shown_when_nothing_is_asked_for():
    r = tellme()
    assert r.exit_code == 2 and "convert" in r.output and "tellme:" not in r.stderr
    assert tellme("run", "--help").exit_code == 0


# ---- convert, info, verilog ------------------------------------------------------------------------------------------


def test_convert_then_run_says_the_same_as_the_checkpoint(tmp_path: Path, machine: list[ReferenceMachine]):
    out = tmp_path / "demo.tlm"
    r = tellme("convert", "demo", str(out), "--board", "tiny")
    assert r.exit_code == 0 and r.stdout == f"{out}: model for tiny, {out.stat().st_size:,} bytes\n"
    expected = json.loads(tellme(*RUN, "--json", "--backend", "golden").stdout)
    for backend in ("golden", "sim"):
        got = json.loads(tellme(*RUN, "--json", "--backend", backend, "--model", str(out)).stdout)
        assert (got["new_ids"], got["text"]) == (expected["new_ids"], expected["text"])
    assert json.loads(tellme(*RUN, "--json", "--check", "--model", str(out)).stdout)["bit_exact"] is True
    refused("was made for ports 1, but board 'kv260' has 4", *RUN, "--model", str(out), "--board", "kv260")
    refused("is not a checkpoint folder", "convert", str(out), str(tmp_path / "b.tlm"))
    damaged = bytearray(out.read_bytes())
    damaged[len(damaged) // 2] ^= 8
    out.write_bytes(damaged)
    refused("is damaged (checksum); convert the checkpoint again", *RUN, "--model", str(out), "--backend", "golden")


@pytest.mark.parametrize("made_for", ["kv260", "zcu104", "pynq_z2", "tiny"])
def test_the_board_is_taken_from_the_image(tmp_path: Path, machine: list[ReferenceMachine], made_for: str):
    out = str(tmp_path / "m.tlm")
    assert tellme("convert", "demo", out, "--board", made_for).exit_code == 0
    golden = json.loads(tellme(*RUN, "--json", "--backend", "golden", "--model", out).stdout)
    assert (golden["board"], golden["beat_bytes"]) == (made_for, PRESETS[made_for].beat_bytes)
    assert json.loads(tellme(*RUN, "--json", "--model", out).stdout)["board"] == made_for
    text = tmp_path / "t.txt"
    text.write_text("Once upon a time")
    assert json.loads(tellme("eval", out, "--text", str(text), "--json").stdout)["board"] == made_for
    said = CliRunner().invoke(cli.app, ["chat", "--backend", "golden", "--model", out, "--json"], input="Once\n")
    assert json.loads(said.stdout)["board"] == made_for
    same = json.loads(tellme(*RUN, "--json", "--backend", "golden", "--model", out, "--board", "kr260").stdout or "{}")
    assert same.get("board") == ("kr260" if PRESETS[made_for].beat_bytes == 64 else None)


def test_convert_is_for_the_kv260_unless_told(tmp_path: Path):
    out = tmp_path / "m.tlm"
    r = tellme("convert", "demo", str(out), "--json")
    assert r.exit_code == 0 and r.stderr == ""
    said = json.loads(r.stdout)
    assert (said["image"], said["board"], said["bytes"]) == (str(out), "kv260", out.stat().st_size)
    assert said["seconds"] > 0 and said["note"] is None and {"version", "commit", "model"} <= set(said)


def test_a_name_of_the_hub_is_told_how_to_fetch_it():
    name = "microsoft/bitnet-b1.58-2B-4T"
    for arguments in (
        (*RUN, "--model", name),
        ("chat", "--model", name),
        ("info", name),
        ("eval", name, "--text", "x"),
        ("convert", name, "x.tlm"),
    ):
        refused(f"model {name!r} not found", *arguments)
        refused(f"hf download {name} --local-dir bitnet-b1.58-2B-4T", *arguments)
    for other in ("bitnet", "./a/b", "a/b/c", "a/b.tlm", "a/b.gguf", "/a/b"):
        assert "hf download" not in tellme(*RUN, "--model", other).stderr


def test_version_and_commit_are_told():
    r = tellme("--version")
    assert r.exit_code == 0 and r.stdout.startswith(f"tellme {version()}")
    assert (commit() or "") in r.stdout and version() != "unknown"


def test_a_shell_completes_commands():
    assert "--install-completion" in tellme("--help").stdout
    r = CliRunner().invoke(
        cli.app,
        [],
        prog_name="tellme",
        env={"_TELLME_COMPLETE": "complete_bash", "COMP_WORDS": "tellme co", "COMP_CWORD": "1"},
    )
    assert r.stdout.split() == ["convert", "config"]


def test_info_is_one_json_object(tmp_path: Path):
    out = tmp_path / "m.tlm"
    tellme("convert", "demo", str(out), "--board", "tiny")
    for path, kind in (("demo", "Hugging Face checkpoint"), (str(out), ".tlm image")):
        r = tellme("info", path, "--json")
        assert r.exit_code == 0 and r.stdout.count("\n") == 1
        facts = json.loads(r.stdout)
        assert facts["kind"].startswith(kind) and facts["spec"]["hidden"] == 128 and facts["ternary_weights"] == 983_040
        ternary = [p["weights"] for p in facts["parts"] if p["as"] == "ternary"]
        assert sum(n for w in ternary for n in w.values()) == 983_040
        assert "tiny" in [p["board"] for p in facts["presets"]] and facts["refused"] == {}
        assert {"version", "commit"} <= set(facts)
    board = json.loads(tellme("info", "--board", "kv260", "--json").stdout)
    assert board["board"] == "kv260" and board["parameters"]["lanes"] == 16 and board["parameters"]["beat_bytes"] == 64


@pytest.mark.parametrize("columns", [None, "40", "80", "132", "400"])
@pytest.mark.parametrize("arguments", [("boards",), ("info", "demo"), ("info",), ("plan", "--model", "bitnet-0.7b")])
def test_tables_lose_nothing_however_narrow(
    arguments: tuple[str, ...], columns: str | None, monkeypatch: pytest.MonkeyPatch
):
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    r = tellme(*arguments)
    assert r.exit_code == 0 and "…" not in r.stdout
    words = {
        "boards": ("117,120", "1,248", "xck26-sfvc784-2LV-c", "tokens/s", "BRAM36"),
        "info": ("beats", "descriptors") if len(arguments) == 2 else ("attention_lanes", "beat_bytes"),
        "plan": ("32,768", "URAM288", "RAMB36", "TTFT"),
    }[arguments[0]]
    for word in words:
        assert word in r.stdout
    if columns is not None:
        assert max(len(line) for line in r.stdout.splitlines() if line[:1] in "┃│┏└├┡╇") <= int(columns)


def test_convert_writes_nothing_when_it_is_refused(tmp_path: Path):
    refused("an image's name ends in .tlm", "convert", "demo", str(tmp_path / "x.bin"))
    refused("its folder does not exist", "convert", "demo", str(tmp_path / "no" / "x.tlm"))
    (tmp_path / "dir.tlm").mkdir()
    refused("is a folder; give the name of a file", "convert", "demo", str(tmp_path / "dir.tlm"))
    (tmp_path / "empty").mkdir()
    refused("has no config.json", "convert", str(tmp_path / "empty"), str(tmp_path / "x.tlm"))
    bad = write_checkpoint(tmp_path / "bad", small_spec(), head_dim=40)
    refused("head_dim must be a multiple of 32, not 40", "convert", str(bad), str(tmp_path / "x.tlm"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "dir.tlm", "empty"]


def test_info():
    r = tellme("info")
    assert r.exit_code == 0 and "attention_lanes" in r.stdout
    r = tellme("info", "demo")
    assert r.exit_code == 0 and "983,040" in r.stdout and "626,688" in r.stdout
    refused("board 'x' is unknown", "info", "--board", "x")
    refused("not found", "info", "nothing")


def test_info_of_checkpoints_and_images_counts_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")  # pytest-xdist sets 80 in its workers, at which a table becomes a list
    spec = small_spec(attn_sub_norm=False, ffn_sub_norm=False, tied=False)
    folder, out = write_checkpoint(tmp_path / "m", spec), tmp_path / "m.tlm"
    assert tellme("convert", str(folder), str(out), "--board", "tiny").exit_code == 0
    weights = list(read_checkpoint(folder).weights.layers)
    for path, options in ((folder, ()), (out, ("--verify",)), (out, ("--board", "tiny"))):
        r = tellme("info", str(path), *options)
        assert r.exit_code == 0, r.output
        for part in ("q", "down"):
            all_of = np.concatenate([getattr(w, part).reshape(-1) for w in weights])
            row = next(line for line in r.stdout.splitlines() if line.startswith(f"│ {part} "))
            assert [f"{(all_of == v).mean():.1%}" for v in (-1, 0, 1)] == [c.strip() for c in row.split("│")[5:8]]
        assert "embedding (host)" in r.stdout and "2 x 64 x 64" in r.stdout
        assert ("are as they were written" in r.stdout) == ("--verify" in options)
    boards = [
        {line.split()[1] for line in tellme("info", str(p)).stdout.splitlines() if line[0] == "│"}
        for p in (folder, out)
    ]
    assert {"kv260", "tiny"} <= boards[0] and "tiny" in boards[1] and "kv260" not in boards[1]
    refused("was made for ports 1, but board 'kv260' has 4", "info", str(out), "--board", "kv260")
    data = bytearray(out.read_bytes())
    data[-5000] ^= 1
    out.write_bytes(data)
    refused("is damaged (checksum); convert the checkpoint again", "info", str(out), "--verify")


def test_a_model_beyond_a_board_is_converted_with_a_note_and_not_run(tmp_path: Path):
    folder, out = (
        str(write_checkpoint(tmp_path / "m", small_spec(heads=9, kv_heads=1, vocab=1024))),
        str(tmp_path / "m.tlm"),
    )
    reason = "query heads of a KV head is 9, but accelerator 'tiny' holds at most 8"
    r = tellme("convert", folder, out, "--board", "tiny")
    assert r.exit_code == 0 and r.stderr.startswith("tellme: note: m: ") and reason in r.stderr
    assert f"does not fit tiny: m: {reason}" in tellme("info", out).stdout
    for model in (folder, out):
        refused(reason, *RUN, "--model", model, "--backend", "golden")


def test_weights_that_are_not_ternary_need_to_be_asked_for(tmp_path: Path):
    spec = small_spec(attn_sub_norm=False, ffn_sub_norm=False, vocab=1024)
    tensors = tensors_of(random_weights(spec, 1), latent=True)
    for name in tensors:
        if "_proj" in name:
            tensors[name] = np.random.default_rng(1).normal(0, 0.02, tensors[name].shape).astype(np.float16)
    config = config_json(spec)
    del config["quantization_config"]
    folder, out = write_folder(tmp_path / "m", config, tensors), tmp_path / "m.tlm"
    message = "model.layers.0.self_attn.q_proj.weight is not ternary: F16 values like"
    refused(message, "convert", str(folder), str(out))
    refused(message, "info", str(folder))
    refused(message, *RUN, "--model", str(folder), "--backend", "golden")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert tellme("convert", str(folder), str(out), "--latent").exit_code == 0 and out.exists()
    r = tellme(
        "run", "--prompt", "Once", "--model", str(folder), "--backend", "golden", "--latent", "--max-new-tokens", "1"
    )
    assert r.exit_code == 0


def test_context_beyond_the_board_is_refused():
    refused("context must be from 1 to 256 positions on board 'tiny' with --kv 8, not 257", *RUN, "--context", "257")
    refused("context must be from 1 to 256 positions on board 'tiny' with --kv 8, not 0", *RUN, "--context", "0")
    refused("the prompt has", *RUN, "--context", "2", "--backend", "golden")


def test_verilog_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import types

    module = types.ModuleType("tellme.hw.verilog")
    module.accelerator_verilog = lambda config, **_: f"module tellme; // {config.name}\n"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tellme.hw.verilog", module)
    out = tmp_path / "a" / "b"
    r = tellme("verilog", "--board", "kv260", "--out", str(out))
    assert r.exit_code == 0 and "kv260, module tellme" in r.stdout
    assert [p.name for p in out.iterdir() if p.suffix == ".v"] == ["tellme.v"]
    assert {"README.md", "tellme_registers.h"} <= {p.name for p in out.iterdir()}
    assert not [p for p in out.rglob("*") if p.name.endswith(".part")]
    assert (out / "tellme.v").read_text() == "module tellme; // kv260\n"
    refused("is a file; give a folder", "verilog", "--out", str(out / "tellme.v"))
    refused("cannot be written", "verilog", "--out", str(out / "tellme.v" / "x"))


# ---- imports ---------------------------------------------------------------------------------------------------------


def test_neither_amaranth_nor_the_simulator_is_loaded_without_need():
    script = (
        "import sys; from tellme.host.cli import app\n"
        "try: app(['run', '--backend', 'golden', '--prompt', 'Once', '--max-new-tokens', '2', '--json'])\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "print([m for m in sys.modules if m.removeprefix('tellme.').split('.')[0] in ('amaranth', 'cocotb', 'hw', 'sim')])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


def test_the_demo_model_is_found_and_its_checkpoint_read():
    assert read_checkpoint(DEMO).weights.spec.check_fits(TINY) is None


# ---- places, output --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("verilog", "--out", "/proc/x"),
        ("build", "--board", "kv260", "--out", "/proc/x"),
        ("build", "--board", "ulx3s", "--out", "/proc/x"),
        ("convert", "demo", "/proc/x.tlm"),
        ("run", "--prompt", "Once", "--waves", "/proc/x"),
        ("bench", "--model", "bitnet-0.7b", "--trace", "/proc/x"),
        ("bench", "--model", "bitnet-0.7b", "--pictures", "/proc/x"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    def work(*_: Any, **__: Any) -> Any:
        raise AssertionError("work was begun")

    for module, name in (
        (convert, "convert"),
        (convert, "open_checkpoint"),
        (bench, "measure"),
        (common, "SimulatedAccelerator"),
    ):
        monkeypatch.setattr(module, name, work)
    monkeypatch.setattr("tellme.hw.verilog.accelerator_verilog", work)
    monkeypatch.setattr("tellme.hw.platforms.vivado.project", work)
    monkeypatch.setattr("tellme.hw.platforms.ulx3s.plan", work)
    refused("/proc/x", *arguments)


@pytest.mark.parametrize("arguments", [("info",), ("boards",), ("cache",), ("--help",), ("info", "demo"), ("run",)])
def test_an_output_that_fails_is_one_line_and_no_traceback(arguments: tuple[str, ...]):
    if arguments == ("run",):
        arguments = (*RUN, "--backend", "golden")
    command = [sys.executable, "-m", "tellme", *arguments]
    with open("/dev/full", "w") as full:
        r = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert r.returncode == 1
    assert r.stderr.splitlines()[-1] == "tellme: standard output cannot be written (No space left on device)"
    assert "Traceback" not in r.stderr and "Exception" not in r.stderr


def test_a_reader_that_has_gone_is_no_error_to_speak_of():
    command = [sys.executable, "-m", "tellme", "info"]
    read, write = os.pipe()
    os.close(read)
    r = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert r.returncode == 1 and r.stderr == ""


@pytest.mark.parametrize("missing", ["make", "c++", "ar"])
def test_a_missing_tool_is_named_at_once(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for tool in {"make", "c++", "ar"} - {missing}:
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TELLME_BUILD", str(tmp_path / "cache"))
    for command in (
        RUN,
        ("chat",),
        ("bench", "--model", "bitnet-0.7b"),
        ("eval", "demo", "--text", "x", "--backend", "sim"),
    ):
        refused(f"{missing} not found: the simulator is compiled; install gcc, g++ and make", *command)


def test_a_compiler_that_is_too_old_is_said_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "c++").write_text(
        "#!/bin/sh\necho 'c++: error: unrecognized command-line option -std=gnu++20' >&2; exit 1\n"
    )
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TELLME_BUILD", str(tmp_path / "cache"))
    refused("c++ cannot compile C++20 with coroutines (c++: error: unrecognized", *RUN)
