"""The bench: what it measures, counts and predicts, on a small shape with the RTL of the tiny preset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tellme.golden.boards import BOARDS
from tellme.golden.config import KV260, PYNQ_Z2, TINY, ULTRA96V2, AcceleratorConfig
from tellme.golden.model import ModelSpec
from tellme.golden.registers import BUSY, STALLS
from tellme.golden.shapes import BITNET_07B, BITNET_2B, SHAPES
from tellme.host.cli import app
from tellme.host.errors import CheckError
from tellme.host.machine import measurement
from tellme.host.machine.measurement import Machine, Measurement, measure
from tellme.host.machine.passes import chunks
from tellme.hw.plan import DEPTHS, fifo_memory, plan, predict, steps
from tellme.sim.stream import SustainedMemory
from tellme.sim.timing import timing

pytestmark = pytest.mark.xdist_group("machine")

SMALL = ModelSpec(
    hidden=128, layers=4, heads=4, kv_heads=2, head_dim=32, ffn=320, vocab=600, activation="relu2", max_context=256
)
MEMORY = timing("kv260-ideal")


@pytest.fixture(scope="module")
def measured() -> Iterator[Measurement]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "small", SMALL)
        yield measure("small", TINY, MEMORY, context=40, prompt=9, complete=True, trace=True)


def test_multiplied_layers_are_within_half_a_percent_of_all_layers(measured: Measurement) -> None:
    assert measured.complete_error is not None and abs(measured.complete_error) < 0.005
    assert measured.complete is not None and measured.complete.beats == measured.decode.beats


def test_cycles_are_beats_and_stalls(measured: Measurement) -> None:
    for cost in (measured.decode, *(p.cost for p in measured.prefill)):
        assert cost.cycles == cost.beats + sum(cost.stalls.values())


def test_the_report_has_what_others_read(measured: Measurement) -> None:
    r: dict[str, Any] = json.loads(json.dumps(measured.report()))
    assert r["phases_kib"] == []
    keys = "tokens_per_s ttft_s cycles_per_pass bytes_per_pass share_of_beat_rate stalls busy lanes clock_hz".split()
    assert set(keys) <= set(r)
    assert list(r["stalls"]) == list(STALLS) and list(r["busy"]) == list(BUSY)
    assert r["tokens_per_s"] == pytest.approx(TINY.clock_hz / r["cycles_per_pass"])
    assert r["bytes_per_pass"] == measured.decode.beats * TINY.beat_bytes
    assert [p["lanes"] for p in r["prefill"]] == [4, 4, 1]


def test_the_trace_adds_up_to_the_counters(tmp_path: Path) -> None:
    from tellme.sim import trace

    with Machine(SMALL, 2, TINY, MEMORY, cached=5, context=64, trace=tmp_path / "t") as m:
        cost = m.run([3, 4], 5, head=True)
        names = measurement._names(m.program)
    read = trace.read(tmp_path / "t", names)
    assert read.cycles == cost.cycles
    sums: Counter[tuple[str, str]] = Counter()
    for s in read.spans:
        sums[s.track, s.name] += s.end - s.start
    # The counters see everything a cycle later than the record of the running pass begins.
    assert all(abs(sums["no beat", k] - v) <= 1 for k, v in cost.stalls.items())
    assert all(abs(sums[k, k] - v) <= 1 for k, v in cost.busy.items())
    assert {name for track, name in sums if track == "descriptor"} == set(names)
    trace.write_chrome(read, tmp_path / "t.json", clock_hz=TINY.clock_hz, title="small")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert {e["name"] for e in events if e["ph"] == "C"} == {"FIFO beats"}
    assert sum(e["ph"] == "X" for e in events) == len(read.spans)


def test_a_recording_without_a_pass_is_refused(tmp_path: Path) -> None:
    from tellme.sim import trace

    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="no pass was recorded"):
        trace.read(tmp_path / "empty", [])


@pytest.mark.parametrize("part", ["value", "scale"])
def test_a_cache_that_differs_from_golden_is_found(part: str) -> None:
    with Machine(SMALL, 1, TINY, MEMORY, cached=3, context=64) as m:
        m.run([3], 3, head=True, logits=True)
        place = m.program.kv.v_cell(0, 1, 3, 0) if part == "value" else m.program.kv.k_scale(0, 1, 3)
        m.accelerator.device.memory[0, m.program.kv_address + place[0], place[1]] ^= 1
        with pytest.raises(CheckError, match="in layer 0, KV head 1 differ from golden's"):
            m._check_cache(3, 1, "here")


@pytest.mark.parametrize("name", ["kv260", "kv260-ideal", "kv260-pessimistic", "ideal"])
@pytest.mark.parametrize(("position", "lanes"), [(0, 1), (40, 1), (250, 1), (0, 4), (40, 4)])
def test_the_plan_is_within_three_percent_of_the_simulation(name: str, position: int, lanes: int) -> None:
    memory = timing(name)
    with Machine(SMALL, 2, TINY, memory, cached=position, context=256) as m:
        cost = m.run(list(range(2, 2 + lanes)), position, head=True)
        todo = steps(m.spec, TINY, range(position, position + lanes), [0] * lanes, 1)
    predicted = predict(todo, TINY, SustainedMemory(memory))
    assert predicted.beats == cost.beats
    assert predicted.cycles == pytest.approx(cost.cycles, rel=0.03)


def test_a_slow_memory_is_predicted_as_memory_stalls() -> None:
    slow = timing("kv260-ideal", bandwidth=8.0)
    assert SustainedMemory(slow).rate(TINY) == pytest.approx(8 / 16 * (1 - 20 / 1950))
    todo = steps(SMALL, TINY, [10], [0], 1)
    fast, late = (predict(todo, TINY, SustainedMemory(m)) for m in (MEMORY, slow))
    assert late.cycles > 1.5 * fast.cycles and late.stalls["memory"] > fast.cycles / 2
    assert {k: v for k, v in late.stalls.items() if k != "memory"} == {
        k: v for k, v in fast.stalls.items() if k != "memory"
    }


def test_regions_of_one_bank_are_predicted_as_memory_stalls() -> None:
    """Where regions lie is part of the prediction: the board's phases if nothing is said."""
    kv260, todo = timing("kv260"), steps(BITNET_07B, KV260, [128], [0], 1)
    placed, equal = (predict(todo, KV260, SustainedMemory(kv260, r)) for r in (None, (0, 0, 0, 0)))
    assert placed == predict(todo, KV260, SustainedMemory(kv260, BOARDS["kv260"].phases))
    assert equal.cycles > 1.4 * placed.cycles and equal.beats == placed.beats
    assert equal.stalls["memory"] - placed.stalls["memory"] == pytest.approx(equal.cycles - placed.cycles, abs=5)


def test_the_depth_needed_is_the_least_that_costs_nothing() -> None:
    result = plan(BITNET_2B, KV260, SustainedMemory(MEMORY), context=250, prompt=chunks(KV260, 4, 128))
    cycles = {d: c for d, _, c in result.depths}
    assert list(cycles) == list(DEPTHS) and sorted(cycles.values(), reverse=True) == list(cycles.values())
    assert cycles[result.depth] <= 1.001 * cycles[DEPTHS[-1]]


@pytest.mark.parametrize(
    ("config", "beats", "memory"),
    [
        (KV260, 8192, (16, 0)),
        (KV260, 4096, (8, 0)),
        (KV260, 2048, (8, 0)),
        (KV260, 1024, (0, 16)),
        (KV260, 256, (0, 8)),
        (ULTRA96V2, 512, (0, 4)),  # as mapped: docs/measurements/synth.md
        (ULTRA96V2, 8192, (0, 64)),
        (PYNQ_Z2, 512, (0, 2)),
        (PYNQ_Z2, 32768, (0, 128)),
    ],
)
def test_fifos_take_ultraram_where_they_are_deep_and_the_chip_has_it(
    config: AcceleratorConfig, beats: int, memory: tuple[int, int]
) -> None:
    assert fifo_memory(replace(config, fifo_beats=beats)) == memory


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


def test_pictures_of_a_measurement(measured: Measurement, tmp_path: Path) -> None:
    from tellme.host.commands.pictures import draw

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "small", SMALL)
        files = draw(measured, tmp_path / "new")
        again = draw(measured, tmp_path / "again")
    assert [f.name for f in files] == ["small-roofline.svg", "small-breakdown.svg", "small-fifo.svg"]
    assert all(b"</svg>" in f.read_bytes() for f in files)
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in again]


def test_random_layers_do_not_depend_on_how_many_there_are() -> None:
    from dataclasses import replace

    from tellme.host.checkpoints.synthetic import random_weights

    few = random_weights(replace(SMALL, layers=1), 7).layers[0]
    many = random_weights(SMALL, 7).layers
    assert np.array_equal(few.gate, many[0].gate) and not np.array_equal(many[0].gate, many[1].gate)
