"""The test bench in the folder of `tellme verilog`: whole for every configuration; run by its Makefile it passes, and fails for a wrong bit."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tellme.golden.boards import build_name
from tellme.golden.config import PRESETS, TINY, AcceleratorConfig
from tellme.golden.registers import offset
from tellme.host.cli import app
from tellme.host.machine.recording import record, small_model
from tellme.sim.runner import verilator
from tellme.sim.standalone import bench
from tellme.sim.standalone.bench import Kind

MUTANTS = (
    ("tlmm_unpacker", "index__15", 0),
    ("tlmm_builder", "value_13", 0),
    ("tlmm_tree", "sums__1", 0),
    ("tlmm_accumulator", "write__data", 0),
    ("elementwise_loader", "x", 0),
    ("elementwise_statistics", "best_delayed", 0),
    ("elementwise_scales", "query_scale", 23),
    ("elementwise_quantiser", "place_info_delayed", 0),
    ("attention_queries", "load_word_d2", 0),
    ("attention_array", "dots", 0),
    ("attention_array", "sums__data", 0),
    ("attention_weight", "weight_address", 0),
    ("kv_writer", "writes__payload", 0),
    ("screened_head_scorer", "dot", 0),
    ("screened_head_scorer", "new_row", 0),
    ("executor", "descriptor_1", 0),
    ("fetcher", "index", 0),
    ("registers", "bus__rdata", 0),
)
"""Module, register and the bit of it that is inverted: TLMM, element-wise pipeline, attention, cache writer, the scorer of candidates, executor, fetcher, registers."""

RULES = (
    (".wlast(~wlast)", "WLAST at the wrong beat"),
    (".araddr(araddr | 'hff0)", "burst crosses 4 KiB"),
    (".araddr(araddr ^ 'h8000_0000)", "read outside the memory"),
    (".awaddr(awaddr ^ 'h8000_0000)", "write outside the memory"),
    (".arlen(arlen | 8'h80)", "burst of kind 1, size"),
    (".arburst('0)", "burst of kind 0"),
    (".arsize(arready ? arsize : ~arsize)", "a read address was withdrawn"),
    (".awaddr(awready ? awaddr : ~awaddr)", "a write address was withdrawn"),
    (".wdata(wready ? wdata : ~wdata)", "write data was withdrawn"),
)
"""What the memory is connected to in place of the accelerator's own, and what it says then."""

CONFIGS = {
    **PRESETS,
    "one lane": replace(PRESETS["kv260"], lanes=1),
    "grouped": replace(PRESETS["kv260"], weight_format="grouped"),
    "groups of five": replace(TINY, group_size=5),
    "least": replace(TINY, max_hidden=32, max_features=256, max_kv_dim=32, max_heads=1, max_head_dim=32),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_a_recording_is_whole(config: AcceleratorConfig) -> None:
    found = record(config)
    spec = small_model(config)
    spec.check_fits(config)
    kinds = [s.kind for s in found.steps]
    assert len(found.loads) == len(found.results) == kinds.count(Kind.WAIT) == kinds.count(Kind.COMPARE) == 3
    assert [s.value for s in found.steps if s.kind is Kind.LOAD] == [0, 1, 2]
    expected = [s for s in found.steps if s.kind is Kind.EXPECT]
    assert sum(s.address == offset("status") for s in expected) == 3
    assert any(offset("best_value") <= s.address < offset("best_value") + 128 and s.value for s in expected)
    # Every pass writes keys and values; two of them logits too. What is written differs from what was there.
    memory = np.zeros((found.beats, config.beat_bytes), np.uint8)
    for load, result in zip(found.loads, found.results, strict=True):
        for beats in (load, result):
            assert beats and max(beats) < found.beats
            for address, beat in beats.items():
                assert beat.tobytes() != memory[address].tobytes()
                memory[address] = beat
    assert len(set(found.bases)) == config.ports and all(b % 4096 == 0 and b >> 32 for b in found.bases)


def test_the_files_are_those_of_the_recording() -> None:
    found = record(TINY)
    files = bench.files(TINY, found, "../tellme.v", primitives=True)
    assert {f for f in files if f.startswith("sim/primitives/")} == {
        f"sim/primitives/{name}.sv" for name in ("DSP48E2", "RAM32M16", "URAM288")
    }
    words = files["sim/script.hex"].split()
    assert len(words) == len(found.steps) and all(re.fullmatch("[0-9a-f]{16}", w) for w in words)
    at = 0
    read: dict[int, bytes] = {}
    for line in files["sim/load0.hex"].split():
        if line[0] == "@":
            at = int(line[1:], 16)
        else:
            read[at] = bytes.fromhex(line)[::-1]
            at += 1
    assert read == {a: b.tobytes() for a, b in found.loads[0].items()}
    for name, text in files.items():
        assert all(word not in text for word in ("{%", "/work", "/tmp", "/home", "/root")), name
    assert build_name(TINY) in files["sim/testbench.sv"] and "../tellme.v" in files["sim/Makefile"]
    assert "sim/primitives/" not in "".join(bench.files(TINY, found, "../tellme.v", primitives=False))


def mutated(verilog: str) -> str:
    """The Verilog, in which `testbench.mutant` says which mutant it is; 0: none."""
    parts = re.split(r"(?m)^(?=module )", verilog)
    for number, (module, register, bit) in enumerate(MUTANTS, 1):
        (place,) = (i for i, p in enumerate(parts) if re.match(rf"module tellme_{module}\(", p))
        wrong = rf"{register} <= (\1) ^ (256'(testbench.mutant == {number}) << {bit});"
        parts[place], count = re.subn(rf"\b{register} <= ([^;]+);", wrong, parts[place])
        assert count, (module, register)
    return "".join(parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sim/`, built by its Makefile with plain Verilator."""
    out = tmp_path_factory.mktemp("verilog")
    r = CliRunner().invoke(app, ["verilog", "--board", "tiny", "--set", "lanes=2", "--out", str(out)])
    assert r.exit_code == 0, r.output
    (out / "tellme.v").write_text(mutated((out / "tellme.v").read_text()))
    bench_file = out / "sim/testbench.sv"
    told = 'int mutant = 0;\n    initial void\'($value$plusargs("mutant=%d", mutant));\n    initial begin\n'
    text = bench_file.read_text().replace("initial begin\n", told, 1)
    bench_file.write_text(broken(text))
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONPATH")}
    command = ["make", "-C", str(out / "sim"), f"VERILATOR={verilator() / 'bin' / 'verilator'}"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    assert re.search(r"(?m)^PASS: tellme-tiny-\w{8}, 3 passes, \d+ registers, \d+ beats of memory$", made.stdout)
    assert not re.search(r"(?m)^FAIL", made.stdout)
    return out / "sim"


def broken(text: str) -> str:
    """The test bench, in which `rule` says which of RULES its memory is shown broken; 0: none."""
    changed: dict[str, str] = {}
    for number, (connection, _) in enumerate(RULES, 1):
        port, value = connection[1:-1].split("(", 1)
        changed[port] = f"rule == {number} ? {value} : {changed.get(port, port)}"
    told = 'int rule = 0;\n    initial void\'($value$plusargs("rule=%d", rule));'
    ports = ", ".join(f".{port}({value})" for port, value in changed.items())
    for old, new in ((") memory (.*);", f") memory (.*, {ports});"), ("always #(", f"{told}\n    always #(")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


def simulated(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["obj_dir/simulation", *arguments], cwd=folder, capture_output=True, text=True)


def test_it_passes_and_says_so(folder: Path) -> None:
    r = simulated(folder)
    assert r.returncode == 0 and "\nPASS: " in r.stdout and "FAIL" not in r.stdout, r.stdout + r.stderr


@pytest.mark.parametrize("number", range(1, len(MUTANTS) + 1), ids=[f"{m}.{r}" for m, r, _ in MUTANTS])
def test_it_fails_for_one_wrong_bit_of_the_rtl(folder: Path, number: int) -> None:
    r = simulated(folder, f"+mutant={number}")
    assert r.returncode != 0 and "PASS" not in r.stdout, r.stdout
    assert "FAIL: tellme-tiny-" in r.stdout or "port 0: " in r.stdout, r.stdout


@pytest.mark.parametrize("number", range(1, len(RULES) + 1), ids=[c for c, _ in RULES])
def test_the_memory_says_which_rule_of_the_bus_is_broken(folder: Path, number: int) -> None:
    r = simulated(folder, f"+rule={number}")
    assert r.returncode != 0 and "PASS" not in r.stdout
    assert re.search(rf"port 0: +({RULES[number - 1][1]})", r.stdout + r.stderr), r.stdout[-500:] + r.stderr[-500:]


@pytest.mark.parametrize("file", ["script.hex", "load0.hex", "load2.hex", "result0.hex", "result1.hex", "result2.hex"])
def test_it_fails_for_one_wrong_bit_of_what_is_recorded(folder: Path, file: str) -> None:
    """Of the script the lowest bit of the last value that is expected; of memory the highest of the last beat."""
    whole = (folder / file).read_text()
    lines = whole.splitlines()
    at = max(i for i, line in enumerate(lines) if file != "script.hex" or line.startswith("01"))
    word = lines[at]
    flipped = int(word, 16) ^ (1 if file == "script.hex" else 1 << 4 * len(word) - 1)
    lines[at] = f"{flipped:0{len(word)}x}"
    (folder / file).write_text("\n".join(lines) + "\n")
    try:
        r = simulated(folder)
    finally:
        (folder / file).write_text(whole)
    assert r.returncode != 0 and "FAIL: tellme-tiny-" in r.stdout and "PASS" not in r.stdout, r.stdout
