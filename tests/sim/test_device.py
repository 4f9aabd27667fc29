"""The simulated device end to end: a copying accelerator behind the interface that the host driver uses."""

from __future__ import annotations

import gc
import math
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import memory
from tellme.golden.boards import BOARDS, PHASE_PERIOD
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.registers import IDENTITY, ErrorCode, offset
from tellme.host.commands.tune import as_published
from tellme.hw.memory.reader import LEAD, burst_queue
from tellme.sim.device import SimDevice
from tellme.sim.device import built as find_built
from tellme.sim.runner import SimulationError
from tellme.sim.stream import sustained_rate
from tellme.sim.timing import KV260_TIMING, MemoryTiming, timing
from tests.memory.common import SMALL
from tests.sim.copier import COUNT, SOURCE, TARGET, Copier

STRESSED = replace(KV260_TIMING, name="kv260-stressed", jitter=60, stall=0.08, stall_max=20, reorder=True, hazard=True)
"""Banks, and what STRESS does, together."""


def device(
    config: AcceleratorConfig,
    beats: int,
    how: MemoryTiming | str,
    waves: Path | None = None,
    phases: tuple[int, ...] | None = None,
) -> SimDevice:
    d = SimDevice(config, beats, accelerator=Copier(config), memory_timing=how, waves=waves, phases=phases)
    for i, base in enumerate(d.port_bases):
        d.write(offset("base_low", i), base & 0xFFFF_FFFF)
        d.write(offset("base_high", i), base >> 32)
    d.write(offset("window_beats"), beats)
    d.write(offset("timeout"), 5000)
    return d


def copy(d: SimDevice, source: int, target: int, beats: int) -> int:
    """Runs a copy; returns the status."""
    for register, value in ((SOURCE, source), (TARGET, target), (COUNT, beats), (offset("control"), 1)):
        d.write(register, value)
    assert d.wait_done(60)
    return d.read(offset("status"))


@pytest.mark.parametrize(
    ("config", "how", "beats"),
    [
        (KV260, "ideal", 32768),
        (KV260, "kv260", 32768),
        (KV260, "stress", 4096),
        (SMALL, STRESSED, 3000),
        (SMALL, "pynq_z2", 3000),
        (SMALL, "kv260-pessimistic", 3000),
        (SMALL, "stress", 3000),
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_copies_bit_exactly(config: AcceleratorConfig, how: MemoryTiming | str, beats: int) -> None:
    with device(config, 2 * beats + 7, how) as d:
        assert d.read(offset("identity")) == IDENTITY
        rng = np.random.default_rng(7)
        d.memory[:] = rng.integers(0, 256, d.memory.shape, np.uint8)
        before = d.memory.copy()
        start = time.perf_counter()
        assert copy(d, 3, beats + 5, beats) == 2
        cycles = d.read(offset("cycles"))
        print(
            f"{config.name} {getattr(how, 'name', how)}: {cycles} cycles, {cycles / (time.perf_counter() - start) / 1e3:.0f} kHz"
        )
        want = before
        want[:, beats + 5 : 2 * beats + 5] = before[:, 3 : beats + 3]
        assert np.array_equal(d.memory, want)


@pytest.mark.parametrize("phases", [(), (4096, 61440), (0, 0), (32768, 8192)])
def test_regions_begin_at_any_phases_and_hold_what_they_held(phases: tuple[int, ...]) -> None:
    """The same copy, with memory that answers an access outside a port's own region with DECERR."""
    with device(SMALL, 3000, "kv260", phases=phases) as d:
        assert tuple(base % PHASE_PERIOD for base in d.port_bases) == (phases or (0, d.memory[0].nbytes))
        rng = np.random.default_rng(3)
        d.memory[:] = rng.integers(0, 256, d.memory.shape, np.uint8)
        want = d.memory.copy()
        want[:, 1501:2901] = want[:, 7:1407]
        assert copy(d, 7, 1501, 1400) == 2
        assert np.array_equal(d.memory, want)
        d.write(offset("base_low", 1), (d.port_bases[1] + 4096) & 0xFFFF_FFFF)
        d.write(offset("base_high", 1), (d.port_bases[1] + 4096) >> 32)
        status = copy(d, 3000 - 20, 100, 20)  # the last page of a region that now begins a page later is not there
        assert (status >> 8 & 0xFF, d.read(offset("error_address"))) == (ErrorCode.READ_DECERR, 2980)


@pytest.mark.parametrize(
    ("phases", "message"),
    [((0,), "a phase for each of 2 ports, not 1"), ((0, 2048), "not 2 KiB"), ((0, 65536), "not 64 KiB")],
)
def test_phases_that_are_none_are_refused(phases: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        device(SMALL, 64, "ideal", phases=phases)


def test_long_reads_keep_the_beat_rate() -> None:
    beats = 200_000
    with device(KV260, beats, "kv260-ideal") as d:
        start = time.perf_counter()
        assert copy(d, 0, 0xFFFF_FFFF, beats) == 2
        cycles = d.read(offset("cycles"))
        print(f"{beats / cycles:.4f} beats a cycle, {cycles / (time.perf_counter() - start) / 1e3:.0f} kHz simulated")
        # The pauses of the preset leave 1,930 of 1,950 cycles.
        assert 0.985 < beats / cycles < 0.9898


@pytest.mark.parametrize("beats", [32_768, 131_072])
def test_simulation_and_streams_alone_agree_on_placements(beats: int) -> None:
    """The reader under the simulated memory gets what sim/stream.py says of these phases, in short streams and in long ones:
    ports keep the phases that they are placed at. Equal ones are the worst; free ports drift, and lose what placement won."""
    kib, rates = 1024, {}
    board = BOARDS["kv260"].phases
    with device(KV260, beats + 8192, "kv260") as d:
        first = d.port_bases
        assert tuple(base % PHASE_PERIOD for base in first) == board
        for free, phases in ((0, board), (0, (0, 0, 48 * kib, 24 * kib)), (0, (0, 0, 0, 0)), (1, board)):
            d.write(offset("port_lead"), free)
            for i, phase in enumerate(phases):
                d.write(offset("base_low", i), (first[i] + (phase - first[i]) % PHASE_PERIOD) & 0xFFFF_FFFF)
            assert copy(d, 0, 0xFFFF_FFFF, beats) == 2
            rates[free, phases] = beats / d.read(offset("cycles"))
            alone = sustained_rate(
                KV260_TIMING,
                phases,
                burst=KV260.burst_beats * KV260.port_bytes,
                fifo=KV260.fifo_beats * KV260.port_bytes,
                ahead=burst_queue(KV260) if free else LEAD,
                length=beats * KV260.port_bytes,
            )
            within = 0.02 if free else 0.005
            assert rates[free, phases] == pytest.approx(alone / (KV260.beat_bytes * KV260.clock_hz), rel=within)
    assert rates[0, (0, 0, 0, 0)] < 0.7 and rates[0, board] > 0.965 > 0.96 > rates[1, board]


def test_ports_with_long_bursts_get_what_the_published_ports_got() -> None:
    """The preset's reader, each port counted by itself, against a sweep that was measured on a board; regions as
    `tellme tune --offsets` places them, and runs them: freely."""
    points = memory.points()
    beats, told = 20_480, []
    with device(KV260, 24_576, "kv260", phases=(0, 0, 0, 0)) as d:
        first = d.port_bases
        d.write(offset("port_lead"), 1)
        for p in points:
            for i, phase in enumerate(as_published(p.offsets)):
                d.write(offset("base_low", i), (first[i] + phase) & 0xFFFF_FFFF)
            assert copy(d, 0, 0xFFFF_FFFF, beats) == 2
            counts = [(d.read(offset("port_beats", i)), d.read(offset("port_stalls", i))) for i in range(4)]
            assert all(n == beats for n, _ in counts)
            told.append([n * 16 * 0.25 / (n + stalls) for n, stalls in counts])
    found = memory.agreement(np.array(told), np.array([p.rates for p in points]))
    print(memory.show(found))
    assert found.mean < 0.04 and found.rank > 0.85
    # Each port's own rate: the two that have a port of the controller for themselves are faster.
    assert found.ports < 0.04 and np.mean(told, 0)[0] > 1.05 * np.mean(told, 0)[1]


def test_errors_reach_the_host_and_a_soft_reset_recovers() -> None:
    width = SMALL.port_bytes
    how = timing("kv260", errors=((100 * width, 101 * width, 2), (600 * width, 601 * width, 3)))
    with device(SMALL, 1024, how) as d:
        for source, target, beats, code, address in (
            (90, 300, 20, ErrorCode.READ_SLVERR, 100),
            (300, 590, 20, ErrorCode.WRITE_DECERR, 600),
            (1000, 0, 25, ErrorCode.READ_WINDOW, 1000),
            (0, 1020, 25, ErrorCode.WRITE_WINDOW, 1024),
        ):
            status = copy(d, source, target, beats)
            assert (status >> 8 & 0xFF, d.read(offset("error_address"))) == (code, address)
            d.write(offset("control"), 2)
            d.run(1000)
            assert copy(d, 200, 700, 50) == 2
            assert np.array_equal(d.memory[:, 700:750], d.memory[:, 200:250])


def test_refused_register_access_is_an_error_and_the_device_lives() -> None:
    with device(SMALL, 16, "ideal") as d:
        with pytest.raises(SimulationError, match="offset 0xffc answered with AXI response 2"):
            d.read(0xFFC)
        assert d.read(offset("identity")) == IDENTITY
        assert not d.wait_done(0.0)
        before = d.cycles
        assert not d.run(1234)
        assert d.cycles - before in range(1234, 1240)
    with pytest.raises(SimulationError, match="closed"):
        d.read(0)


def test_crash_of_the_simulation_is_reported_with_its_log() -> None:
    with device(SMALL, 1024, timing("ideal", hazard=True)) as d:
        with pytest.raises(SimulationError, match="write to what is being read|read passes a write"):
            copy(d, 0, 24, 1000)  # nearer ones are joined to bursts before they are read


def test_killed_host_leaves_no_simulation_and_no_files() -> None:
    script = (
        "import time; from tests.sim.test_device import *; d = device(SMALL, 64, 'ideal');"
        "print(d._process.pid, flush=True); d.run(2**31)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None
        child = int(host.stdout.readline())
        files = {os.readlink(p) for p in Path(f"/proc/{child}/fd").iterdir() if p.exists() or True}
        host.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the simulation outlived its host")
    regular = [f for f in files if f.startswith("/tmp") and "(deleted)" not in f]
    assert not regular, regular


def fst_blocks(data: bytes) -> dict[int, list[bytes]]:
    """Blocks of an FST file by type: a byte of type, 8 bytes of length (themselves included), the rest."""
    out: dict[int, list[bytes]] = {}
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at + 1 : at + 9], "big")
        out.setdefault(data[at], []).append(data[at + 9 : at + 1 + length])
        at += 1 + length
    assert at == len(data)
    return out


def literals(block: bytes) -> bytes:
    """An LZ4 block of literals alone."""
    size, at = block[0] >> 4, 1
    if size == 15:
        while True:
            size, at = size + block[at], at + 1
            if block[at - 1] < 255:
                break
    assert at + size == len(block)
    return block[at:]


def test_wave_file_is_a_whole_fst_unless_the_simulation_was_killed(tmp_path: Path) -> None:
    """Its blocks in GTKWave's format: header, value changes, geometry (zlib), hierarchy (LZ4)."""
    d = device(SMALL, 64, "ideal", tmp_path / "whole")
    assert copy(d, 0, 20, 10) == 2
    d.close()
    assert d.ended
    blocks = fst_blocks((tmp_path / "whole" / "dump.fst").read_bytes())
    (header,), (geometry,), (hierarchy,) = blocks[0], blocks[3], blocks[6]
    start, end, e, _, scopes, names, variables, sections = struct.unpack_from(">QQ8sQQQQQ", header)
    assert len(header) == 329 - 8 and start == 0 and struct.unpack("=d", e)[0] == math.e
    assert end > d.cycles and scopes > 1 and names >= variables > 100 and len(blocks[8]) == sections >= 1
    size, count = struct.unpack_from(">QQ", geometry)
    assert count == variables
    assert len(geometry) - 16 == size or len(zlib.decompress(geometry[16:])) == size
    text = literals(hierarchy[8:])
    assert len(text) == int.from_bytes(hierarchy[:8], "big") and b"tb_top" in text
    d = device(SMALL, 64, "ideal", tmp_path / "killed")
    assert d._process is not None
    d._process.kill()
    d.close()
    assert not d.ended


def test_forgotten_device_ends_its_simulation() -> None:
    d = device(SMALL, 64, "ideal")
    assert d._process is not None
    child = d._process.pid
    del d
    gc.collect()
    assert not Path(f"/proc/{child}").exists()


def test_a_build_is_found_again_until_anything_it_is_made_from_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another process too: nothing is elaborated for what has been built."""
    monkeypatch.setenv("TELLME_BUILD", str(tmp_path))
    built: list[bool] = []

    def build(component: object, *, waves: bool = False, random_start: bool = False) -> Path:
        built.append(waves)
        folder = tmp_path / f"build{len(built)}"
        folder.mkdir()
        (folder / "done").touch()
        return folder

    monkeypatch.setattr("tellme.sim.device.harness.build", build)
    monkeypatch.setattr("tellme.hw.top.Accelerator", lambda config: config)

    def get(config: AcceleratorConfig = TINY, waves: bool = False) -> Path:
        return find_built(config, waves=waves)

    first = get()
    assert get() == first and len(built) == 1
    assert get(waves=True) != first and get(KV260) != first and len(built) == 3
    (first / "done").unlink()
    assert get() != first and len(built) == 4
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda p: original(p) + (b"#" if p.name == "tables.py" else b""))
    get()
    assert len(built) == 5
