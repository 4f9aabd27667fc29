"""What goes wrong on the whole machine ends, with a code and words: programs, lanes, meddling hosts, memory that is silent."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest

from tellme.golden import registers
from tellme.golden.check import problem
from tellme.golden.config import TINY
from tellme.golden.program import DESCRIPTOR_BYTES, FIELDS, Opcode
from tellme.golden.registers import REGISTERS, ErrorCode
from tellme.host.errors import DeviceError
from tellme.host.image.model import Model
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.driver import Driver
from tellme.host.machine.passes import Pass, PassResult
from tellme.host.machine.program import Program, compile_program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.hw.control.check import ProgramCheck
from tellme.sim.timing import MemoryTiming, timing
from tests.control.programs import damaged, mutation, split, with_field
from tests.machine.conftest import SLOTS

TIMEOUT = 20_000
"""Cycles, for a machine whose longest wait without a beat or a write is some thousands."""


def program_of(machine: Driver) -> Program:
    assert machine._program is not None
    return machine._program


def run(machine: Driver, positions: list[int], slots: list[int] | None = None) -> PassResult:
    """A pass that the host's own checks do not see: neither those of a pass nor those of a register."""

    def raw(name: str, value: int | None = None, index: int = 0, /, **fields: int) -> None:
        word = registers.pack(name, **fields) if value is None else value
        machine.device.write(registers.offset(name, index), word)

    with mock.patch.object(machine, "write", raw):
        return machine._pass(Pass.of([5] * len(positions), positions, slots, head=(0, 1)))


def outcome(machine: Driver, positions: list[int], slots: list[int] | None = None) -> tuple[ErrorCode, int]:
    """(code, descriptor that the message names, or 0) that a pass ends with; the machine is idle then."""
    try:
        run(machine, positions, slots)
    except DeviceError as e:
        found = re.search(r"stopped the pass with error (\d+)", str(e))
        assert found, str(e)
        code = ErrorCode(int(found[1]))
        assert machine.read_fields("status")["busy"] == 0
        named = re.search(r"descriptor (\d+)", str(e))
        return code, int(named[1]) if named else 0
    return ErrorCode.NONE, 0


@pytest.fixture
def quick(machine: SimulatedAccelerator) -> Iterator[SimulatedAccelerator]:
    """The machine with a short time-out; its program and memory as they were afterwards."""
    program = program_of(machine)
    before = machine.device.memory.copy()
    machine.write("timeout", TIMEOUT)
    yield machine
    machine.device.memory[:] = before
    machine.write("timeout", machine.timeout_cycles)
    machine.write("program_address", program.program_address)
    machine.write("program_length", program.length)


def put(machine: Driver, code: bytes, address: int | None = None) -> None:
    program = program_of(machine)
    padded = np.frombuffer(code + bytes(-len(code) % TINY.beat_bytes), np.uint8).reshape(-1, TINY.beat_bytes)
    machine.put(program.program_address if address is None else address, padded)
    machine.write("program_length", len(code) // DESCRIPTOR_BYTES)


def same_but_inputs(machine: Driver, before: np.ndarray) -> bool:
    """Whether memory is as it was, but for the program and the inputs that the host itself writes."""
    rest = program_of(machine).rope_address
    return bool(np.array_equal(machine.device.memory[:, rest:], before[:, rest:]))


def test_a_program_that_fills_its_memory_without_an_end_is_refused(quick: SimulatedAccelerator) -> None:
    """Its index would wrap to descriptors that have been, and every beat would be progress."""
    program = program_of(quick)
    quick.write("program_address", program.kv_address)
    before = quick.device.memory.copy()
    for count in (1, TINY.max_descriptors - 1, TINY.max_descriptors):
        put(quick, split(program.code)[0] * count, program.kv_address)
        before[:, program.kv_address :] = quick.device.memory[:, program.kv_address :]
        assert outcome(quick, [0]) == (ErrorCode.BAD_DESCRIPTOR, count)
        assert same_but_inputs(quick, before)


@pytest.mark.parametrize(
    "field",
    "LOAD.inputs LOAD.x_beats LOAD.rope_beats LOAD.head_dim LINEAR.tiles LINEAR.rows LINEAR.inputs LINEAR.block_rows "
    "LINEAR.head_dim LINEAR.heads LINEAR.kv_heads ATTENTION.head_dim ATTENTION.heads ATTENTION.kv_heads ATTENTION.group "
    "ATTENTION.head_stride ATTENTION.slot_stride HEAD.blocks HEAD.tiles HEAD.inputs HEAD.rows HEAD.logits_stride".split(),
)
def test_a_count_of_zero_is_a_bad_descriptor_and_nothing_is_written(quick: SimulatedAccelerator, field: str) -> None:
    program = program_of(quick)
    name, part = field.split(".")
    parts = split(program.code)
    i = next(i for i, d in enumerate(parts) if d[0] == Opcode[name])
    parts[i] = with_field(parts[i], next(f for f in FIELDS[Opcode[name]] if f.name == part), 0)
    put(quick, b"".join(parts))
    before = quick.device.memory.copy()
    assert outcome(quick, [0, 1, 2]) == (ErrorCode.BAD_DESCRIPTOR, i)
    assert same_but_inputs(quick, before)
    assert quick.read("cycles") < 2000


def test_passes_of_damaged_programs_always_end(quick: SimulatedAccelerator) -> None:
    """With the code that golden.check says, or with what the damage to addresses and scales leads to."""
    program = program_of(quick)
    rng = random.Random(12)
    # A longer one reaches into the inputs, which the host writes after it; tests/control/test_check.py has these.
    known = [code for _, code in damaged(program.code) if len(code) <= len(program.code)]
    cases = rng.sample(known, 40) + [mutation(program.code, rng) for _ in range(60)]
    before = quick.device.memory.copy()
    codes = []
    for code in cases:
        quick.device.memory[:] = before
        put(quick, code)
        clean = quick.device.memory.copy()
        n = rng.randrange(1, TINY.lanes + 1)
        want = problem(code, TINY, context=program.context, slots=SLOTS)
        got = outcome(quick, list(range(n)))
        codes.append(got[0])
        if want is not None:
            assert got == (ErrorCode.BAD_DESCRIPTOR, want[0]), want
            assert same_but_inputs(quick, clean), want
        else:
            assert got[0] not in (ErrorCode.BAD_DESCRIPTOR, ErrorCode.BAD_LANES, ErrorCode.TIMEOUT), got
    assert codes.count(ErrorCode.BAD_DESCRIPTOR) > 30 and codes.count(ErrorCode.NONE) > 3, codes


@pytest.mark.parametrize(
    ("positions", "slots"),
    [
        ([256], [0]),
        ([65536], [0]),
        ([1 << 31], [0]),
        ([254, 255, 256], [0, 0, 0]),
        ([4, 4], [0, 0]),
        ([4, 3], [0, 0]),
        ([4, 6], [0, 0]),
        ([0, 0, 1], [0, 1, 0]),
        ([0], [SLOTS]),
        ([0], [255]),
        ([0], [256]),
        ([0, 0], [0, 256]),
        ([0], [1 << 31]),
    ],
)
def test_lanes_that_do_not_make_a_pass_are_refused(
    quick: SimulatedAccelerator, positions: list[int], slots: list[int]
) -> None:
    before = quick.device.memory.copy()
    assert outcome(quick, positions, slots) == (ErrorCode.BAD_LANES, 0)
    assert same_but_inputs(quick, before)


def test_a_position_beyond_the_slot_is_refused_where_the_model_has_less_context_than_the_machine(demo: Model) -> None:
    with SimulatedAccelerator(demo, compile_program(demo, TINY, slots=2, context=40), timing=timing("ideal")) as small:
        run(small, [39])
        before = small.device.memory.copy()
        assert outcome(small, [40]) == (ErrorCode.BAD_LANES, 0)
        assert same_but_inputs(small, before)
        # A host that says more than it has laid out is told so by the strides.
        small.write("context", 41 + TINY.key_block)
        assert outcome(small, [40])[0] == ErrorCode.BAD_DESCRIPTOR


def test_what_the_host_writes_during_a_pass_changes_nothing(
    machine: SimulatedAccelerator, demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = CheckedBackend(machine, GoldenBackend(demo.weights(), TINY, slots=SLOTS))
    wait, meddled = machine._wait, []
    ours = [r for r in REGISTERS if r.access == "rw" and not r.live]
    for at in (0, 50, 400, 12_000):
        for value in (0, 1, 0xFFFF_FFFF):

            def meddle(at: int = at, value: int = value) -> bool:
                assert at == 0 or not machine.device.run(at)
                assert machine.read_fields("status")["busy"]
                for r in ours:
                    entries = TINY.lanes if r.name in ("position", "slot") else 1
                    for i in range(entries):
                        held = machine.read(r.name, i)
                        machine.device.write(registers.offset(r.name, i), value)
                        assert machine.read(r.name, i) == held, r.name
                meddled.append(at)
                return wait()

            monkeypatch.setattr(machine, "_wait", meddle)
            both.run_pass(Pass.of([0, 432, 433], [0, 1, 2], [1, 1, 1], head=(0, 3), write_logits=True))
    assert len(meddled) == 12 and both.logits == 12 * 3 * demo.spec.vocab


def test_a_pass_that_runs_can_be_given_a_time_out(machine: SimulatedAccelerator) -> None:
    """The one register of a pass that it does not keep: a host may stop a pass that it began without one."""
    run(machine, [0])  # whatever was tested before: lanes of a pass that runs
    machine.write("timeout", 0)
    machine.write("control", start=1)
    machine.device.run(2000)
    machine.write("timeout", 1)
    assert machine.device.run(20_000)
    assert machine.read_fields("status")["error"] == ErrorCode.TIMEOUT
    machine.reset()
    machine.write("timeout", machine.timeout_cycles)


def test_low_bits_of_a_base_count_as_zero_for_reads_and_writes(machine: SimulatedAccelerator, demo: Model) -> None:
    both = CheckedBackend(machine, GoldenBackend(demo.weights(), TINY, slots=SLOTS))
    base = machine.device.port_bases[0] & 0xFFFF_FFFF
    assert base % registers.BASE_ALIGNMENT == 0
    for low in (0x10, 0x100, 0x7F0, 0xFFF):
        machine.device.write(registers.offset("base_low"), base | low)
        both.run_pass(Pass.of([0, 432, 433], [0, 1, 2], [1, 1, 1], head=(0, 3), write_logits=True))
        both.run_pass(Pass.of([434], [3], [1], head=(0, 1), write_logits=True))  # reads what was written
    machine.write("base_low", page=base // registers.BASE_ALIGNMENT)


# ---- memory that does not answer -------------------------------------------------------------------------------------


def silent(program: Program, address: int, beats: int = 1) -> MemoryTiming:
    width = TINY.port_bytes
    return timing("kv260", hangs=((address * width, (address + beats) * width),))


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_lost_answer_is_named_and_the_bitstream_must_be_loaded_again(
    demo: Model, machine: SimulatedAccelerator, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    program = program_of(machine)
    place = program.image_address + demo.image.sections["3.down"].address if kind == "read" else program.logits_address
    monkeypatch.setattr("tellme.host.machine.driver.RESET_S", 0.5)
    with SimulatedAccelerator(demo, compile_program(demo, TINY, slots=SLOTS), timing=silent(program, place)) as stuck:
        stuck.write("timeout", 5000)
        begin = time.monotonic()
        with pytest.raises(DeviceError) as e:
            stuck.run_pass(Pass.of([0], [0], head=(0, 1), write_logits=True))
        assert time.monotonic() - begin < 60
        what = {"read": r"\d+ read bursts?", "write": r"\d+ writes?"}[kind]
        assert re.fullmatch(
            "the accelerator stopped the pass with error 7: no progress for the time set in the timeout register, at "
            rf".*; the accelerator is still busy 0\.5 s after a soft reset because memory never answered {what} of port 0; "
            "load the bitstream again",
            str(e.value),
        ), str(e.value)
        status, owed = stuck.read_fields("status"), stuck.read_fields("owed")
        assert status["busy"] and status["stopped"]
        assert (owed["reads"] > 0) == (kind == "read") and (owed["writes"] > 0) == (kind == "write")


def test_a_silent_memory_and_no_time_out_end_by_the_clock_of_the_host(
    demo: Model, machine: SimulatedAccelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = program_of(machine)
    place = program.image_address + demo.image.sections["3.down"].address
    monkeypatch.setattr("tellme.host.machine.driver.RESET_S", 0.2)
    with SimulatedAccelerator(demo, compile_program(demo, TINY), timing=silent(program, place), timeout_s=1.0) as stuck:
        stuck.write("timeout", 0)
        with pytest.raises(DeviceError) as e:
            stuck.run_pass(Pass.of([0], [0], head=(0, 1)))
        assert re.fullmatch(
            r"the simulated accelerator took no beat for 1 s of wall clock and was given up \(TELLME_SIM_TIMEOUT sets "
            r"another number of seconds\) \(status 0x1\); the accelerator is still busy .* memory never answered "
            r"\d+ read bursts? of port 0; load the bitstream again",
            str(e.value),
        ), str(e.value)


def test_nothing_is_owed_between_passes_and_the_look_at_the_program_is_control(machine: SimulatedAccelerator) -> None:
    result, program = run(machine, [0]), program_of(machine)
    assert machine.read("owed") == 0 and machine.read_fields("status")["stopped"] == 0
    look = ProgramCheck.expected_cycles(
        TINY,
        descriptors=program.length,
        attentions=program.spec.layers,
        kv_heads=program.spec.kv_heads,
        context=program.context,
        slots=SLOTS,
    )
    assert look - program.length < result.stalls["control"] and result.stalls["memory"] < look
