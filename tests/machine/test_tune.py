"""`tellme tune` on the RTL of the tiny preset: what it counts, that it only reads, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tellme.golden.config import TINY
from tellme.host.cli import app
from tellme.host.commands.tune import LONG_FIFOS, SHORT, StreamMeter, region_beats, stream_beats
from tellme.sim.device import SimDevice
from tellme.sim.stream import sustained_rate
from tellme.sim.timing import KV260_TIMING, MemoryTiming, timing

PEAK = TINY.clock_hz * TINY.port_bytes


@pytest.mark.parametrize(
    ("how", "rate"),
    [
        (timing("ideal"), PEAK),
        (timing("kv260-ideal", bandwidth=8.0, pause=0), PEAK / 2),
        (timing("kv260"), sustained_rate(KV260_TIMING, (0,), clock_hz=TINY.clock_hz, burst=256, ahead=0)),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_a_ports_own_rate_is_its_memorys(how: MemoryTiming, rate: float) -> None:
    """Contents do not matter, and nothing is written; each beat is counted."""
    beats = 20000
    with SimDevice(TINY, region_beats(TINY, beats), memory_timing=how, phases=()) as device:
        meter = StreamMeter(device, TINY, timeout_s=600)
        rng = np.random.default_rng(5)
        device.memory[:] = rng.integers(0, 256, device.memory.shape, np.uint8)
        (own,), lockstep = meter.stream((8192,), beats, free=True)
        before = device.memory.copy()
        assert own == pytest.approx(rate, rel=0.02)
        # One port is not held up by another one, only by what computes: nothing here takes more than a beat a cycle.
        assert lockstep == pytest.approx(own, rel=0.03)
        assert sum(meter.read("port_beats", i) for i in range(TINY.ports)) == meter.read("beats")
        assert meter.read("port_beats") > stream_beats(TINY, beats)
        assert meter.read("port_beats") + meter.read("port_stalls") < meter.read("cycles")
        assert meter.read("writes") == 0
        again, _ = meter.stream((8192,), beats, free=True)
        assert np.array_equal(device.memory, before) and again[0] == pytest.approx(own, rel=0.01)


def test_the_command_measures_the_published_experiment_and_prints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "o.csv"
    file.write_text("hp0_offset_kib\n0\n24\n")
    arguments = ["tune", "--backend", "sim", "--board", "tiny", "--timing", "kv260", "--offsets", str(file), "--json"]
    r = CliRunner().invoke(app, arguments)
    assert r.exit_code == 0, r.output
    said = json.loads(r.stdout)
    assert [p["offsets_kib"] for p in said["points"]] == [[0.0], [24.0]]
    for p in said["points"]:
        assert len(p["gb_s"]) == 1 and 1.5 < p["gb_s"][0] <= 1.6 and p["phases_kib"] == p["offsets_kib"]
    assert said["best"]["lockstep_gb_s"] > 1.5 and said["simulated"] is True
    assert SHORT == 20480 and LONG_FIFOS * TINY.fifo_beats == 4096
