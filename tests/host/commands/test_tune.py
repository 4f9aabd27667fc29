"""`tellme tune` without a machine: the streaming program, the placements it looks at, what it stores, what it refuses.

The memory's model (sim/stream.py) takes the place of the accelerator's counters; tests/machine/test_tune.py has the RTL's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import memory
from tellme.golden.boards import BOARDS, PAGE, PHASE_PERIOD, check_phases
from tellme.golden.check import problem
from tellme.golden.config import KV260, PRESETS, TINY, ULTRA96V2, AcceleratorConfig
from tellme.host.cli import app
from tellme.host.commands.tune import (
    LONG_FIFOS,
    SHORT,
    Measured,
    StreamMeter,
    as_published,
    best,
    candidates,
    neighbours,
    read_offsets,
    region_beats,
    tune,
)
from tellme.host.errors import UserError
from tellme.host.machine import placement
from tellme.sim import stream
from tellme.sim.timing import timing
from tests.host.machine.reference_machine import ReferenceMachine

KIB = 1024


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    return tmp_path / "configuration" / "tellme" / "placement.json"


class ModelMeter(StreamMeter):
    """Rates of the memory's model instead of an accelerator's."""

    def measure(self, offsets: Sequence[int], phases: Sequence[int], *, lockstep: bool) -> Measured:
        t, c = timing(self.config.name), self.config
        common = {"clock_hz": float(c.clock_hz), "burst": c.burst_beats * c.port_bytes, "width": c.port_bytes}
        own = stream.run(t, phases, length=SHORT * c.port_bytes, **common).rates  # type: ignore[arg-type]
        together = stream.sustained_rate(
            t,
            tuple(phases),
            fifo=c.fifo_beats * c.port_bytes,
            length=LONG_FIFOS * c.fifo_beats * c.port_bytes,
            **common,  # type: ignore[arg-type]
        )
        return Measured(tuple(offsets), tuple(phases), own, together if lockstep else None)


def meter(config: AcceleratorConfig) -> ModelMeter:
    return ModelMeter(ReferenceMachine(config, region_beats(config, SHORT), dirty=False), config, timeout_s=1)


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_the_streaming_program_runs_on_every_preset(config: AcceleratorConfig) -> None:
    m = meter(config)
    for blocks in (0, 1, -(-LONG_FIFOS * config.fifo_beats // m._block)):
        assert problem(m._code(blocks), config, context=1, slots=1) is None


def test_a_few_dozen_placements_are_looked_at_and_a_better_one_is_kept_and_used(configuration: Path) -> None:
    configuration.parent.mkdir(parents=True)
    other = {"zcu104": {"board": {"phases_kib": [0, 8, 16, 24], "gb_s": 14.0, "measured": "2026-01-01"}}}
    worse = {"kv260": {"sim": {"phases_kib": [0, 0, 0, 0], "gb_s": 9.9, "measured": "2026-01-01"}}}
    configuration.write_text(json.dumps(other | worse))
    assert placement.in_use(KV260, "sim").phases == (0, 0, 0, 0)
    told: list[Measured] = []
    tuned = tune(meter(KV260), "sim", done=told.append)
    assert tuned.points == tuple(told) and 20 <= len(told) <= 48
    assert len({m.phases for m in told}) == len(told)
    assert tuned.before.phases == (0, 0, 0, 0)
    assert tuned.best.lockstep is not None and tuned.before.lockstep is not None
    assert tuned.best.lockstep > 14.6e9 > 11e9 > tuned.before.lockstep
    assert tuned.stored == configuration
    used = placement.in_use(KV260, "sim")
    assert used.phases == tuned.best.phases and used.rate == pytest.approx(tuned.best.lockstep, rel=1e-3)
    assert used.source.startswith("tellme tune, 20")
    # What was found on a simulation is not for the board, and other boards keep theirs.
    assert placement.in_use(KV260, "board").phases == BOARDS["kv260"].phases
    assert json.loads(configuration.read_text())["zcu104"] == other["zcu104"]


def test_the_placement_in_use_stays_where_nothing_is_better(configuration: Path) -> None:
    tuned = tune(meter(ULTRA96V2), "board")
    assert tuned.before.phases == BOARDS["ultra96v2"].phases and tuned.stored is None
    assert not configuration.exists()


def test_candidates_are_placements_and_begin_with_the_boards() -> None:
    for config in PRESETS.values():
        own = BOARDS[config.name].phases if config.name in BOARDS else ()
        many = candidates(config, own)
        assert many[0] == (own or (0,) * config.ports) and (0,) * config.ports in many
        for phases in (*many, *neighbours(many[-1], PAGE)):
            check_phases(phases, config.ports)


def test_the_published_experiment_is_repeated_by_ports_that_start_together() -> None:
    """With the memory's model as the accelerator: four times the slowest against what was measured."""
    points = memory.points()
    m = meter(KV260)
    measured = np.array([p.rates for p in points])
    told = np.array([m.measure(p.offsets, as_published(p.offsets), lockstep=False).rates for p in points]) / 1e9
    found = memory.agreement(told, measured)
    assert found.mean < 0.03 and found.rank > 0.88
    # Regions where the file says are another experiment: its ports did not start together.
    plain = np.array([m.measure(p.offsets, p.offsets, lockstep=False).rates for p in points]) / 1e9
    assert memory.agreement(plain, measured).rank < 0.8
    assert as_published((0, 0, 48 * KIB, 24 * KIB)) == (0, 0, 44 * KIB, 16 * KIB)


def test_the_best_is_the_best_in_lockstep_and_without_it_the_one_with_the_fastest_slowest_port() -> None:
    a, b = (Measured((0, 0), (0, 0), rates, together) for rates, together in (((4.0, 4.0), 5.0), ((1.0, 5.0), 6.0)))
    assert best([a, b]) is b
    c, d = (Measured((0, 0), (0, 0), rates, None) for rates in ((3.0, 3.5), (2.9, 9.0)))
    assert best([c, d]) is c


def test_offsets_are_read_by_the_names_of_their_columns(tmp_path: Path) -> None:
    file = tmp_path / "o.csv"
    file.write_text("note,hp1_offset_kib,hp0_offset_kib\nx,8,0\n\ny,60,4.0\n")
    assert read_offsets(file, 2) == [(0, 8 * KIB), (4 * KIB, 60 * KIB)]
    assert read_offsets(memory.SWEEP, 4) == [p.offsets for p in memory.points()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have one column hp0_offset_kib for each of the accelerator's 4 ports"),
        ("hp0_offset_kib,hp1_offset_kib,hp2_offset_kib\n0,0,0\n", "must have one column hp3_offset_kib"),
        ("HEAD\n", "has no offsets"),
        ("HEAD\n0,0,0,x\n", "line 2: could not convert string to float: 'x'"),
        ("HEAD\n0,0,0,8\n0,0,0\n", "line 3: has too few columns"),
        ("HEAD\n0,0,0,2\n", "line 2: a phase must be a multiple of 4 KiB from 0 to 60 KiB, not 2 KiB"),
        ("HEAD\n0,0,0,64\n", "not 64 KiB"),
        ("HEAD\n0,0,0,-4\n", "not -4 KiB"),
        ("HEAD\n0,0,0,nan\n", "line 2: an offset is no whole number of bytes"),
        ("HEAD\n0,0,0,1e400\n", "line 2: an offset is no whole number of bytes"),
    ],
)
def test_a_file_of_offsets_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "o.csv"
    file.write_text(text.replace("HEAD", "hp0_offset_kib,hp1_offset_kib,hp2_offset_kib,hp3_offset_kib"))
    r = CliRunner().invoke(app, ["tune", "--backend", "sim", "--board", "kv260", "--offsets", str(file)])
    assert r.exit_code == 2 and r.stdout == ""
    assert message in r.stderr and r.stderr.startswith(f"tellme: {file}") and r.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "golden"], "backend 'golden' cannot be tuned; there are sim, board"),
        (["--board", "none"], "board 'none' is unknown"),
        (["--backend", "sim", "--bitstream", "x.bit"], "--bitstream needs --backend board"),
        (["--timing", "kv260"], "--timing needs --backend sim"),
        (["--backend", "sim", "--offsets", "/nowhere.csv"], "/nowhere.csv: cannot be read (No such file or directory)"),
        (["--backend", "sim", "--timing", "none"], "no memory timing named 'none'"),
    ],
)
def test_refused_in_one_line(arguments: list[str], message: str) -> None:
    r = CliRunner().invoke(app, ["tune", *arguments])
    assert r.exit_code == 2 and r.stdout == ""
    assert message in r.stderr and r.stderr.startswith("tellme: ") and r.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not what tellme tune writes"),
        ('{"kv260": 3}', "is not what tellme tune writes"),
        ('{"kv260": {"sim": {}}}', "the placement of 'kv260' cannot be used"),
        ('{"kv260": {"sim": {"phases_kib": [0, 8], "gb_s": 1, "measured": "x"}}}', "for each of 4 ports, not 2"),
        ('{"kv260": {"sim": {"phases_kib": [0, 8, 1, 3], "gb_s": 1, "measured": "x"}}}', "multiple of 4 KiB"),
        ('{"kv260": {"sim": 5}}', "the placement of 'kv260' cannot be used"),
    ],
)
def test_a_damaged_placement_file_is_refused_and_says_what_to_do(configuration: Path, text: str, message: str) -> None:
    configuration.parent.mkdir(parents=True)
    configuration.write_text(text)
    with pytest.raises(UserError, match="remove it, or run tellme tune again") as e:
        placement.in_use(KV260, "sim")
    assert message in str(e.value) and str(configuration) in str(e.value)
    r = CliRunner().invoke(app, ["plan", "--model", "bitnet-0.7b"])
    assert r.exit_code == 2 and r.stderr.count("\n") == 1 and message in r.stderr


def test_what_is_in_use_is_said() -> None:
    assert str(placement.in_use(KV260, "board")) == (
        "0, 40, 24, 48 KiB modulo 64: 15.52 GB/s (the board's description, modelled)"
    )
    assert str(placement.in_use(TINY, "board")) == "one behind the other (nothing better is known)"
    placement.store(KV260, "board", (0, PAGE, PHASE_PERIOD - PAGE, 0), 14.2e9)
    assert str(placement.in_use(KV260, "board")).startswith("0, 4, 60, 0 KiB modulo 64: 14.20 GB/s (tellme tune, 20")
