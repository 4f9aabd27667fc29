"""What the test bench in the folder of `tellme verilog` replays: whole, for every configuration, and quick to make."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tellme.golden.boards import build_name
from tellme.golden.config import PRESETS, TINY, AcceleratorConfig
from tellme.golden.registers import offset
from tellme.host.machine.recording import record, small_model
from tellme.sim.standalone import bench
from tellme.sim.standalone.bench import Kind

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
    assert "primitives" not in "".join(bench.files(TINY, found, "../tellme.v", primitives=False))
