"""The bench: what it measures, counts and predicts, on a small shape with the RTL of the tiny preset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tellme.golden.config import TINY
from tellme.golden.model import ModelSpec
from tellme.golden.registers import BUSY, STALLS
from tellme.golden.shapes import SHAPES
from tellme.host.cli import app
from tellme.host.errors import CheckError
from tellme.host.machine import measurement
from tellme.host.machine.measurement import Machine, Measurement, measure
from tellme.host.machine.passes import Pass
from tellme.hw.plan import predict, steps
from tellme.sim.stream import SustainedMemory
from tellme.sim.timing import timing

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


@pytest.mark.parametrize(("lanes", "candidates", "planes"), [(1, 32, 1), (1, 256, 2), (3, 64, 1)])
def test_the_plan_of_a_screened_head_is_near_the_simulation(lanes: int, candidates: int, planes: int) -> None:
    """Beats exactly; cycles as near as a random order of scores is to the mean of all."""
    memory = timing("kv260")
    with Machine(SMALL, 1, TINY, memory, cached=9, context=64, candidates=candidates, planes=planes) as m:
        cost = m.run(list(range(2, 2 + lanes)), 9, head=True, logits=True)
        todo = steps(m.spec, TINY, range(9, 9 + lanes), [0] * lanes, 1, candidates, planes)
    predicted = predict(todo, TINY, SustainedMemory(memory))
    assert predicted.beats == cost.beats
    assert predicted.cycles == pytest.approx(cost.cycles, rel=0.06)


@pytest.mark.parametrize(("lanes", "candidates"), [(1, 32), (4, 16), (1, 0), (4, 0)])
def test_the_plan_of_a_ternary_head_is_near_the_simulation(lanes: int, candidates: int) -> None:
    """Candidates, and every logit written."""
    memory, spec, ids = timing("kv260"), replace(SMALL, ternary_head=True), range(9, 9 + lanes)
    with Machine(spec, 1, TINY, memory, cached=9, context=64, candidates=candidates) as m:
        cost = m.run_pass(Pass.of(ids, ids, head=(0, lanes), write_logits=True, candidates=candidates))
        todo = steps(m.spec, TINY, ids, [0] * lanes, lanes, candidates)
    predicted = predict(todo, TINY, SustainedMemory(memory))
    assert predicted.beats == cost.beats
    assert predicted.cycles == pytest.approx(cost.cycles, rel=0.06)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--kv", "4"),
        ("--kv", "4", "--hadamard", "--set", "hadamard=true"),
        ("--head", "screened", "--candidates", "64"),
        ("--speculate", "--work", "list"),
    ],
)
def test_several_conversations_are_measured_and_the_plan_is_within_three_percent(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "small", SMALL)
    words = ["bench", "--model", "small", "--board", "tiny", "--context", "40", "--sequences", "3", "--json", *options]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    r = json.loads(done.stdout.splitlines()[-1])
    cycles = sum(p["times"] * (p["cycles"] or p["planned_cycles"]) for p in r["passes"])
    times = sum(p["times"] for p in r["passes"])
    assert r["tokens_per_s"] == pytest.approx(r["tokens_per_pass"] * times * TINY.clock_hz / cycles)
    assert abs(r["plan_error"]) < (0.06 if "screened" in options else 0.03) and r["on_rtl"] > 0.9
    assert r["head"] == ("screened" if "screened" in options else "full") and r["kv"] == (
        "4" if "4" in options else "8"
    )
    assert r["hadamard"] == ("--hadamard" in options)
    if "--speculate" in options:
        assert r["tokens_per_pass"] > 3 and r["accepted"] > 0 and r["faster"] > 1
    else:
        assert r["tokens_per_pass"] == 3 and r["passes"][0]["lanes"] == [1, 1, 1]
        # Three tokens cost less than three passes.
        one = predict(steps(SMALL, TINY, [40], [0], 1), TINY, SustainedMemory(timing("kv260"))).cycles
        assert one < cycles < 3 * one


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sequences", "0"), "--sequences must be from 1 to 4, the lanes of 'tiny', not 0"),
        (("--sequences", "5"), "--sequences must be from 1 to 4, the lanes of 'tiny', not 5"),
        (("--sequences", "2", "--prompt", "8"), "go without --prompt, --complete, --trace and --pictures"),
        (("--speculate", "--work", "poem"), "--work must be one of story, another story, summary, edit, list, not 'poem'"),
        (("--sequences", "2", "--context", "4000"), "context must be from 0 to"),
    ],
)  # fmt: skip
def test_conversations_that_cannot_be_measured_are_refused(options: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(app, ["bench", "--model", "demo", "--board", "tiny", *options])
    assert done.exit_code == 2 and words in " ".join(done.output.split()), done.output


def test_pictures_of_a_measurement(measured: Measurement, tmp_path: Path) -> None:
    from tellme.host.commands.pictures import draw

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "small", SMALL)
        files = draw(measured, tmp_path / "new")
        again = draw(measured, tmp_path / "again")
    assert [f.name for f in files] == ["small-roofline.svg", "small-breakdown.svg", "small-fifo.svg"]
    assert all(b"</svg>" in f.read_bytes() for f in files)
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in again]
