"""Image, program and driver together, on a machine that knows only the memory: bit-equal to the golden model.

Refusals, device errors, resets and time-outs of the driver.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellme.golden import registers
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.registers import BUSY, STALLS, ErrorCode
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.errors import CheckError, DeviceError, UserError
from tellme.host.image.model import Model
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.device import Device
from tellme.host.machine.driver import ERROR_WORDS, Driver
from tellme.host.machine.passes import Backend, Pass, PassResult, fits_scores, lanes_that_fit
from tellme.host.machine.program import compile_program
from tests.host.machine.reference_machine import ReferenceMachine, Stop
from tests.host.support import DEMO, WORD, start, write_checkpoint
from tests.models import random_weights, small_spec

SHAPES: list[Any] = [
    pytest.param(small_spec(), TINY, id="gqa-tiny"),
    pytest.param(small_spec(kv_heads=4, head_dim=64, activation="silu", tied=False), TINY, id="mha-silu-untied-tiny"),
    pytest.param(small_spec(attn_sub_norm=False, ffn_sub_norm=False, kv_heads=1), WORD, id="no-sub-norms-word"),
    pytest.param(small_spec(head_dim=96, heads=2, kv_heads=1, ffn=352), WORD, id="head-96-word"),
    pytest.param(small_spec(hidden=160, head_dim=128, heads=2, kv_heads=2), KV260, id="head-128-kv260"),
]


def checked(folder: Path, config: AcceleratorConfig, **load: Any) -> tuple[CheckedBackend, ReferenceMachine]:
    accelerator, machine, _ = start(folder, config, **load)
    golden = GoldenBackend(read_checkpoint(folder).weights, config, **load)
    return CheckedBackend(accelerator, golden), machine


def tokens(n: int, vocab: int, seed: int = 3) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, vocab, n)]


@pytest.mark.parametrize(("spec", "config"), SHAPES)
def test_every_logit_of_prefill_and_decode_equals_golden(tmp_path: Path, spec: Any, config: AcceleratorConfig):
    backend, _ = checked(write_checkpoint(tmp_path / "m", spec), config)
    prompt = tokens(config.lanes + 3, spec.vocab)
    results = backend.prefill(prompt)
    for i, t in enumerate(tokens(4, spec.vocab, 4)):
        results.append(backend.decode(t, len(prompt) + i))
    assert backend.passes == len(results) and backend.logits == spec.vocab * (len(prompt) + 4)


@pytest.mark.parametrize("n", [1, TINY.lanes - 1, TINY.lanes, TINY.lanes + 1, 100])
def test_prefill_equals_one_token_at_a_time(n: int):
    accelerator, _, model = start(DEMO)
    ids = tokens(n, model.spec.vocab)
    chunked = accelerator.prefill(ids, logits=True)
    assert len(chunked) == -(-n // TINY.lanes)
    single = [accelerator.decode(t, i, logits=i == n - 1) for i, t in enumerate(ids)]
    assert chunked[-1].logits is not None and single[-1].logits is not None
    np.testing.assert_array_equal(chunked[-1].logits, single[-1].logits)
    assert [r.head_count for r in chunked] == [0] * (len(chunked) - 1) + [1]


def test_the_context_fills_and_one_token_more_is_refused(tmp_path: Path):
    spec = small_spec(max_context=40)
    backend, machine = checked(write_checkpoint(tmp_path / "m", spec), TINY)
    backend.prefill(tokens(37, spec.vocab))
    for p in (37, 38, 39):
        backend.decode(1, p)
    assert backend.logits == 40 * spec.vocab
    message = "position 40 is beyond the context of 40 positions; shorten the prompt"
    with pytest.raises(UserError, match=message):
        backend.decode(1, 40)
    with pytest.raises(UserError, match=message):
        backend.prefill(tokens(41, spec.vocab))
    before = machine.memory.copy()
    with pytest.raises(UserError, match=message):
        backend.tested.prefill(tokens(5, spec.vocab), start=36)
    np.testing.assert_array_equal(machine.memory, before)


def test_prefill_takes_fewer_lanes_where_the_score_memory_ends(tmp_path: Path):
    # WORD keeps 256 words of 1 key for 2 queries; 4 lanes of 4 query heads are 8 sets, so 32 keys fit.
    spec = small_spec(kv_heads=1, max_context=128)
    backend, _ = checked(write_checkpoint(tmp_path / "m", spec), WORD)
    sizes = []
    run = backend._pass

    def count(given: Pass) -> PassResult:
        sizes.append(given.lanes)
        return run(given)

    backend._pass = count  # type: ignore[method-assign]
    backend.prefill(tokens(127, spec.vocab))
    backend.decode(1, 127)
    assert sum(sizes) == 128 and sizes[0] == WORD.lanes and sizes[-2] < WORD.lanes
    assert sizes[:-2] == sorted(sizes[:-2], reverse=True)
    with pytest.raises(UserError, match="4 lanes at position 120 need more than the 256 words of score memory"):
        backend.run_pass(Pass.of([1] * 4, range(120, 124), [0] * 4))
    # One lane too many is enough.
    tight = next(p for p in range(124) if lanes_that_fit(WORD, backend.group, p, 4) in (1, 2, 3))
    most = lanes_that_fit(WORD, backend.group, tight, 4)
    backend.run_pass(Pass.of([1] * most, range(tight, tight + most), [0] * most))
    with pytest.raises(UserError, match=f"{most + 1} lanes at position {tight} need more"):
        backend.run_pass(Pass.of([1] * (most + 1), range(tight, tight + most + 1), [0] * (most + 1)))


def test_lanes_behind_another_slot_s_are_counted_for_themselves():
    config = replace(WORD, lanes=4)
    backend = GoldenBackend(random_weights(small_spec(kv_heads=1, max_context=128), 3), config, slots=2)
    for first in range(124):
        fit = [n for n in (1, 2, 3) if fits_scores(config, backend.group, first, n, 1)]
        for n in (1, 2, 3):
            given = Pass.of([1] * (n + 1), [0, *range(first, first + n)], [0] + [1] * n, head=(0, 0))
            with contextlib.nullcontext() if n in fit else pytest.raises(UserError, match=f"{n} lanes at position"):
                backend._check_pass(given)
    assert fit == [1]


def test_sequences_in_several_slots_do_not_touch_each_other(tmp_path: Path):
    spec = small_spec()
    backend, _ = checked(write_checkpoint(tmp_path / "m", spec), TINY, slots=3)
    backend.prefill(tokens(6, spec.vocab, 1), slot=2)
    backend.prefill(tokens(3, spec.vocab, 2), slot=0)
    backend.run_pass(Pass.of([1, 2, 3, 4], [3, 0, 6, 7], [0, 1, 2, 2], head=(0, 4)))
    backend.run_pass(Pass.of([5, 6], [8, 4], [2, 0], head=(1, 1)))
    assert backend.passes == 5


def test_head_lanes_choose_whose_logits_return():
    accelerator, _, _ = start(DEMO)
    ids = [0, 432, 433, 260]
    whole = accelerator.run_pass(Pass.of(ids, range(4), head=(0, 4), write_logits=True))
    part = accelerator.run_pass(Pass.of(ids, range(4), head=(1, 2), write_logits=True))
    none = accelerator.run_pass(Pass.of(ids, range(4), write_logits=True))
    assert whole.logits is not None and part.logits is not None and none.logits is None
    np.testing.assert_array_equal(part.logits, whole.logits[1:3])
    assert part.best_index == whole.best_index[1:3] == tuple(np.argmax(part.logits, axis=1))
    assert part.best_value == tuple(np.max(part.logits, axis=1))
    assert (none.best_index, none.head_count) == ((), 0)
    assert accelerator.run_pass(Pass.of(ids, range(4), head=(3, 1))).logits is None


def test_counters_carry_their_names():
    accelerator, machine, _ = start(DEMO)
    r = accelerator.decode(0, 0)
    assert r.stalls == {name: i + 1 for i, name in enumerate(STALLS)}
    assert tuple(r.busy) == BUSY
    assert r.beats == machine.get("beats") == r.cycles


def test_the_reference_machine_is_a_device():
    assert isinstance(ReferenceMachine(TINY, 1), Device)


def test_the_buffer_is_written_only_inside_the_window():
    with Model.open(DEMO, TINY) as model:
        program = compile_program(model, TINY)
        machine = ReferenceMachine(TINY, program.window_beats + 50)
        guard = machine.memory[:, program.window_beats :].copy()
        accelerator = Driver(machine, TINY)
        accelerator.load(model, program)
        accelerator.prefill([0, 432, 433, 260, 406], logits=True)
        np.testing.assert_array_equal(machine.memory[:, program.window_beats :], guard)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["identity", "version", "geometry", "build"])
def test_an_accelerator_that_is_not_the_expected_one_is_refused(name: str):
    machine = ReferenceMachine(TINY, 8)
    machine.set(name, machine.get(name) ^ 1)
    with pytest.raises(DeviceError, match=f"{name} register is 0x.*, board 'tiny' needs 0x.*; load the bitstream"):
        Driver(machine, TINY)


def test_another_configuration_of_the_same_geometry_is_refused_by_its_build():
    with pytest.raises(DeviceError, match="build register"):
        Driver(ReferenceMachine(replace(TINY, block_rows=64), 8), TINY)


def test_a_buffer_of_another_shape_is_refused():
    machine = ReferenceMachine(TINY, 8)
    machine.memory = np.zeros((2, 8, 16), np.uint8)
    with pytest.raises(DeviceError, match="buffer has 2 regions of 16-byte beats, board 'tiny' needs 1 of 16"):
        Driver(machine, TINY)


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        (
            [0x1000_0010] * 2,
            r"the region of port 0 begins at 0x10000010, no multiple of 4096; the device must hand out",
        ),
        ([0x1000_0000, 0x2000_0800], "the region of port 1 begins at 0x20000800, no multiple of 4096"),
        ([-4096, 0x1000_0000], "the region of port 0 begins at -0x1000"),
        ([0x1000_0000, 0xFF_FFFF_F000], "the region of port 1 ends at 0x10000000f40, .* addresses have 40 bits"),
        ([0x1000_0000, 1 << 44], "the region of port 1 ends at .* 40 bits"),
        (
            [0x1000_1000, 0x1000_0000],
            "the regions of ports 1 and 0 overlap: 8,000 bytes from 0x10000000 and 0x10001000",
        ),
    ],
)
def test_regions_that_the_masters_would_take_for_others_are_refused(bases: list[int], message: str):
    config = replace(TINY, ports=2)
    machine = ReferenceMachine(config, 500)
    machine.port_bases = tuple(bases)
    with pytest.raises(DeviceError, match=message) as e:
        Driver(machine, config)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("first", [0, (1 << 40) - 16384])
def test_regions_side_by_side_at_either_end_of_the_addresses_are_taken(first: int):
    config = replace(TINY, ports=2)
    machine = ReferenceMachine(config, 512)
    machine.port_bases = (first, first + 8192)
    Driver(machine, config)


def test_a_pass_that_another_host_left_is_ended_before_a_model_is_loaded():
    with Model.open(DEMO, TINY) as model:
        program = compile_program(model, TINY)
        machine = ReferenceMachine(TINY, program.window_beats)
        machine.set("status", 1)
        accelerator = Driver(machine, TINY)
        accelerator.load(model, program)
        assert machine.resets == 1
        assert accelerator.decode(0, 0).head_count == 1


def test_context_and_slots_reach_their_registers():
    _, machine, _ = start(DEMO, slots=3, context=100)
    assert (machine.get("context"), machine.get("slots")) == (100, 3)


def test_a_buffer_that_is_too_small_is_refused():
    with Model.open(DEMO, TINY) as model:
        accelerator = Driver(ReferenceMachine(TINY, 1000), TINY)
        with pytest.raises(UserError, match="needs 623,872 bytes of buffer .* the device has 16,000; take a smaller"):
            accelerator.load(model, compile_program(model, TINY))
        with pytest.raises(UserError, match="no model is loaded"):
            accelerator._pass(Pass((0,), (0,), (0,), (0, 1)))


def test_a_program_of_another_accelerator_is_refused():
    other = replace(TINY, name="other", block_rows=TINY.block_rows * 2)
    with Model.open(DEMO, TINY) as model:
        program = compile_program(model, TINY)
        accelerator = Driver(ReferenceMachine(other, program.window_beats), other)
        with pytest.raises(UserError, match="the program was compiled for 'tiny', this is 'other'; compile it again"):
            accelerator.load(model, program)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "a pass has from 1 to 4 lanes, not 0"),
        (([0] * 5, range(5)), "a pass has from 1 to 4 lanes, not 5"),
        (([0, 0], [0]), "2 tokens need 2 positions and slots, not 1 and 2"),
        (([1024], [0]), "token 1024 is outside the vocabulary of 1024"),
        (([-1], [0]), "token -1 is outside"),
        (([0], [256]), "position 256 is beyond the context of 256 positions"),
        (([0], [-1]), "position -1 is beyond"),
        (([0], [0], [2]), "cache slot 2 does not exist; there are 2"),
        (([0, 0], [3, 5]), "lanes 0 and 1 share slot 0, so their positions must follow each other, not 3, 5"),
        (([0, 0, 0], [0, 0, 1], [0, 1, 0]), "lanes of slot 0 must be neighbours"),
        (([0, 0], [0, 1], [0, 0], (1, 2)), r"head lanes 1..2 are not lanes of a pass of 2"),
    ],
)
def test_passes_that_make_no_sense_are_refused(arguments: tuple[Any, ...], message: str):
    accelerator, machine, _ = start(DEMO, slots=2)
    machine.write = lambda *_: pytest.fail("a register was written")  # type: ignore[method-assign]
    head = arguments[3] if len(arguments) > 3 else (0, 0)
    with pytest.raises(UserError, match=message):
        accelerator.run_pass(Pass.of(*arguments[:3], head=head))


class Takes(Backend):
    """Takes any pass that is valid."""

    config, group, vocab, context, slots = TINY, 2, 1024, 64, 4

    def _pass(self, given: Pass) -> PassResult:
        return PassResult(head_first=0, head_count=0, best_index=(), best_value=())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=4), st.booleans())
def test_lanes_of_a_slot_follow_each_other_or_are_refused(lanes: list[tuple[int, int]], runs: bool):
    """Of any lanes, and of such that mostly do."""
    if runs:
        lanes = [(slot, position + i) for slot, position in lanes for i in range(2)][: TINY.lanes]
    slots, positions = [slot for slot, _ in lanes], [position for _, position in lanes]
    good = True
    for slot in set(slots):
        first, count = slots.index(slot), slots.count(slot)
        at = positions[first]
        good &= slots[first : first + count] == [slot] * count
        good &= positions[first : first + count] == list(range(at, at + count))
    expected = contextlib.nullcontext() if good else pytest.raises(UserError, match="must (be neighbours|follow)")
    with expected:
        Takes().run_pass(Pass.of([0] * len(lanes), positions, slots))


def test_an_empty_prompt_is_refused():
    accelerator, _, _ = start(DEMO)
    with pytest.raises(UserError, match="there is nothing to prefill"):
        accelerator.prefill([])


# ---- errors of the device --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [c for c in ErrorCode if c is not ErrorCode.NONE])
def test_errors_are_told_in_words_and_the_next_pass_works(code: ErrorCode):
    accelerator, machine, _ = start(DEMO)
    machine.injected = Stop(code, 1234)
    with pytest.raises(DeviceError, match=f"stopped the pass with error {int(code)}: ") as e:
        accelerator.decode(0, 0)
    words = ERROR_WORDS[code]
    assert words.format(address=1234) in str(e.value)
    assert machine.resets == 1
    assert accelerator.decode(0, 0).head_count == 1


def test_every_error_code_has_words():
    assert set(ERROR_WORDS) == set(ErrorCode)


def test_an_unknown_error_code_is_told_too():
    accelerator, machine, _ = start(DEMO)
    machine.injected = Stop(99, 7)
    with pytest.raises(DeviceError, match="error 99: unknown error code, error address 7"):
        accelerator.decode(0, 0)


def test_a_damaged_weight_in_memory_is_found():
    accelerator, machine, model = start(DEMO)
    assert accelerator._program is not None
    s = model.image.sections["2.down"]
    machine.memory[0, accelerator._program.image_address + s.address + s.beats - 1, 15] = 243
    with pytest.raises(DeviceError, match="a weight byte above 242 was read, .* at descriptor 15"):
        accelerator.decode(0, 0)


def test_a_window_too_small_stops_the_pass():
    accelerator, machine, _ = start(DEMO)
    accelerator.write("window_beats", machine.get("window_beats") // 2)
    with pytest.raises(DeviceError, match="outside the buffer's window was refused, at beat"):
        accelerator.decode(0, 0)


def test_a_device_that_does_not_answer_times_out_and_recovers():
    accelerator, machine, _ = start(DEMO)
    machine.hang = True
    with pytest.raises(DeviceError, match=r"did not finish a pass in 10 s \(status 0x1\)"):
        accelerator.decode(0, 0)
    machine.hang = False
    assert machine.resets == 1
    assert accelerator.decode(0, 0).head_count == 1


def test_a_program_runs_at_another_clock_than_it_was_compiled_for():
    with Model.open(DEMO, TINY) as model:
        program = compile_program(model, replace(TINY, clock_hz=TINY.clock_hz - 1_000_000))
        machine = ReferenceMachine(TINY, program.window_beats)
        accelerator = Driver(machine, TINY)
        accelerator.load(model, program)
        assert accelerator.decode(0, 0).head_count == 1


def test_a_pass_is_done_when_its_register_says_so_and_not_when_somebody_woke():
    accelerator, machine, _ = start(DEMO)
    machine.hang = True
    machine.wait_done = lambda timeout_s: True  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match=r"did not finish a pass in 10 s \(status 0x1\)"):
        accelerator.decode(0, 0)
    assert machine.resets == 1


def test_a_device_that_needs_a_while_for_its_reset_is_waited_for():
    accelerator, machine, _ = start(DEMO)
    read, asked = machine.read, []

    def slow(offset: int) -> int:
        busy = offset == registers.offset("status") and len(asked) < 3
        asked.extend([offset] * busy)
        return 1 if busy else read(offset)

    machine.read = slow  # type: ignore[method-assign]
    accelerator.reset()
    assert len(asked) == 3


def test_a_device_that_stays_busy_is_given_up():
    accelerator, machine, _ = start(DEMO)
    accelerator.timeout_s = 0.01
    machine.set("status", 1)
    write = machine.write
    machine.write = lambda o, v: None if v == 2 else write(o, v)  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="still busy 0.01 s after a soft reset; load the bitstream again"):
        accelerator.reset()


@pytest.mark.parametrize(
    ("owed", "words"),
    [
        ({0: 1}, " because memory never answered 1 read burst of port 0;"),
        ({0: 5}, " because memory never answered 5 read bursts of port 0;"),
        ({1: 2 << 16}, " because memory never answered 2 writes of port 1;"),
        (
            {0: 3 | 1 << 16, 1: 1},
            " because memory never answered 3 read bursts and 1 write of port 0, 1 read burst of port 1;",
        ),
    ],
)
def test_what_memory_owes_is_told_with_what_stopped_the_pass(owed: dict[int, int], words: str):
    accelerator, machine, _ = start(DEMO, replace(TINY, ports=2, port_bytes=8))
    accelerator.timeout_s = 0.01
    machine.injected = Stop(ErrorCode.TIMEOUT, 9)
    write = machine.write

    def stuck(offset: int, value: int) -> None:
        if offset == registers.offset("control") and value == 2:
            machine.set("status", machine.get("status") | 5)
            for port, count in owed.items():
                machine.set("owed", count, port)
        else:
            write(offset, value)

    machine.write = stuck  # type: ignore[method-assign]
    with pytest.raises(DeviceError) as e:
        accelerator.decode(0, 0)
    message = str(e.value)
    assert message.startswith("the accelerator stopped the pass with error 7: no progress")
    assert (
        f"at descriptor 9; the accelerator is still busy 0.01 s after a soft reset{words} load the bitstream" in message
    )
    assert message.count("\n") == 0


def test_ctrl_c_during_a_pass_resets_and_the_next_pass_may_start_at_once():
    accelerator, machine, _ = start(DEMO)
    wait, machine.hang = machine.wait_done, True

    def interrupted(timeout_s: float) -> bool:
        assert registers.unpack("status", machine.get("status"))["busy"]
        raise KeyboardInterrupt

    machine.wait_done = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        accelerator.decode(0, 0)
    assert machine.resets == 1 and machine.get("status") == 0
    machine.wait_done, machine.hang = wait, False  # type: ignore[method-assign]
    assert accelerator.decode(0, 0).head_count == 1


def test_what_is_done_meanwhile_is_done_in_every_pass_and_ctrl_c_in_it_resets():
    accelerator, machine, _ = start(DEMO)
    machine.hang, seen = True, []
    wait = machine.wait_done

    def waits(timeout_s: float) -> bool:
        seen.append("waited for")
        machine.hang = False
        return wait(timeout_s)

    machine.wait_done = waits  # type: ignore[method-assign]
    accelerator.meanwhile = lambda: seen.append(registers.unpack("status", machine.get("status"))["busy"])
    with contextlib.suppress(DeviceError):
        accelerator.decode(0, 0)
    assert seen == [1, "waited for"]

    def interrupted() -> None:
        raise KeyboardInterrupt

    machine.hang, accelerator.meanwhile = True, interrupted
    resets = machine.resets
    with pytest.raises(KeyboardInterrupt):
        accelerator.decode(0, 0)
    assert machine.resets == resets + 1 and machine.get("status") == 0


def test_ctrl_c_stays_ctrl_c_when_the_reset_does_not_help():
    accelerator, machine, _ = start(DEMO)
    accelerator.timeout_s = 0.01
    machine.hang, asked = True, []
    write = machine.write

    def stuck(offset: int, value: int) -> None:
        if offset == registers.offset("control") and registers.unpack("control", value)["soft_reset"]:
            asked.append(value)
        else:
            write(offset, value)

    def interrupted(timeout_s: float) -> bool:
        raise KeyboardInterrupt

    machine.write, machine.wait_done = stuck, interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        accelerator.decode(0, 0)
    assert len(asked) == 1


@pytest.mark.parametrize("cycles", [0, 4321, (1 << 32) - 1])
def test_everything_that_loading_says_reaches_its_register(cycles: int):
    with Model.open(DEMO, TINY) as model:
        program = compile_program(model, TINY, slots=3, context=100)
        machine = ReferenceMachine(TINY, program.window_beats)
        for name in ("timeout", "slots", "context", "program_length", "program_address", "window_beats", "irq_enable"):
            machine.set(name, 0xDEAC)
        machine.set("port_lead", 1)
        Driver(machine, TINY, timeout_cycles=cycles).load(model, program)
    got = {
        n: machine.get(n) for n in ("timeout", "slots", "context", "program_length", "program_address", "window_beats")
    }
    assert got == {
        "timeout": cycles,
        "slots": 3,
        "context": 100,
        "program_length": program.length,
        "program_address": program.program_address,
        "window_beats": program.window_beats,
    }
    assert registers.unpack("irq_enable", machine.get("irq_enable"))["done"] == 1
    assert registers.unpack("port_lead", machine.get("port_lead"))["free"] == 0
    assert (machine.get("base_high") << 32 | machine.get("base_low")) == machine.port_bases[0]


def test_every_pass_is_exact_through_caches_that_are_not_coherent():
    """Prefill, decode, several slots, and a second model over the first: what is not flushed or not invalidated is random, and what is
    flushed without having been written goes over what the accelerator wrote."""
    weights = read_checkpoint(DEMO).weights
    with Model.open(DEMO, TINY) as model:
        program = compile_program(model, TINY, slots=2)
        machine = ReferenceMachine(TINY, program.window_beats, cached=True)
        accelerator = Driver(machine, TINY)
        for _ in range(2):
            accelerator.load(model, program)
            backend = CheckedBackend(accelerator, GoldenBackend(weights, TINY, slots=2))
            backend.prefill([0, 432, 433, 260, 406], slot=1)
            backend.decode(13, 5, slot=1, logits=True)
            backend.run_pass(Pass.of([0, 1, 2, 3], [0, 1, 6, 7], [0, 0, 1, 1], head=(1, 3), write_logits=True))
            assert backend.logits == 10 * model.spec.vocab


def test_a_cache_is_read_written_and_copied_through_caches_that_are_not_coherent():
    """Of positions in two key blocks: what a machine has written is seen, and what is written it sees; neighbours stay."""
    weights = read_checkpoint(DEMO).weights
    prompt = tokens(TINY.key_block + 5, 1024)
    with Model.open(DEMO, TINY) as model:
        program = compile_program(model, TINY, slots=3)
        machine = ReferenceMachine(TINY, program.window_beats, cached=True)
        accelerator = Driver(machine, TINY)
        accelerator.load(model, program)
    golden = GoldenBackend(weights, TINY, slots=3)
    golden.prefill(prompt, slot=1)
    accelerator.prefill(prompt, slot=1)
    for again in (False, True):  # what the host holds of it from the first time is old
        n = len(prompt)
        if not again:
            accelerator.copy_cache(1, 0, n)  # before anybody has read what it copies
        mine, theirs = accelerator.read_cache(1, n), golden.read_cache(1, n)
        for name in ("k", "v", "k_scales", "v_scales"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name
        if again:
            accelerator.copy_cache(1, 0, n)
        accelerator.write_cache(2, theirs)
        for slot in (0, 2, 1):
            want = golden.decode(7, n, slot=1, logits=True)
            got = accelerator.decode(7, n, slot=slot, logits=True)
            assert got.logits is not None and want.logits is not None and np.array_equal(got.logits, want.logits), slot
        prompt = [*prompt[: TINY.key_block - 3], *tokens(9, 512)]
        golden.prefill(prompt, slot=1)
        accelerator.prefill(prompt, slot=1)
    empty = golden.read_cache(1, 0)
    accelerator.write_cache(2, empty)
    accelerator.copy_cache(1, 0, 0)
    with pytest.raises(UserError, match="no model is loaded"):
        Driver(machine, TINY).read_cache(0, 1)


def test_close_closes_the_device():
    accelerator, machine, _ = start(DEMO)
    with accelerator:
        pass
    assert machine.closed


def test_base_addresses_above_4_gib_reach_both_registers():
    accelerator, machine, _ = start(DEMO)
    assert machine.get("base_high", 0) == 1 and machine.port_bases[0] == 1 << 32
    assert accelerator.read("base_low") == 0 and registers.offset("base_low", 7) == 0x5C


# ---- checking --------------------------------------------------------------------------------------------------------


class Liar(GoldenBackend):
    """A golden model with one wrong bit in the third pass, or a wrong arg-max."""

    wrong = "logit"
    count = 0

    def _pass(self, given: Pass) -> PassResult:
        r = super()._pass(given)
        self.count += 1
        if self.count != 3:
            return r
        if self.wrong == "arg-max":
            return replace(r, best_index=(*r.best_index[:-1], r.best_index[-1] ^ 1))
        assert r.logits is not None
        bits = r.logits.copy().view(np.uint32)
        bits[1, 700] ^= 1
        bits[3, 9] ^= 1 << 20
        return replace(r, logits=bits.view(np.float32))


@pytest.mark.parametrize("wrong", ["logit", "arg-max"])
def test_check_fails_on_the_first_difference_and_says_where(wrong: str):
    weights = read_checkpoint(DEMO).weights
    liar = Liar(weights, TINY)
    liar.wrong = wrong
    backend = CheckedBackend(liar, GoldenBackend(weights, TINY))
    expected = {
        "logit": r"pass 2, lane 1, position 9, vocabulary index 700: logit .*\(0x.*\) differs from the golden model's "
        r".*\(0x.*\); 2 logits of this pass differ",
        "arg-max": r"pass 2, lane 3, position 11: arg-max is token \d+ .* the golden model's is token \d+",
    }
    with pytest.raises(CheckError, match=expected[wrong]):
        backend.prefill(tokens(16, 1024))
    assert backend.passes == 2


def test_check_computes_the_head_on_every_lane_but_returns_what_was_asked():
    backend, _ = checked(DEMO, TINY)
    r = backend.prefill([0, 432, 433, 260, 406, 13])
    assert [x.head_count for x in r] == [0, 1] and backend.logits == 6 * 1024
    assert len(r[-1].best_index) == 1 and r[-1].logits is None and r[-1].cycles is not None
    assert backend.decode(5, 6, logits=True).logits.shape == (1, 1024)  # type: ignore[union-attr]


# ---- fields of limited width -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("slots", 300, "register slots must be from 0 to 256, not 300"),
        ("slot", 256, "register slot must be from 0 to 255, not 256"),
        ("position", 65536, "register position must be from 0 to 65535, not 65536"),
        ("position", 1.5, "register position must be from 0 to 65535, not 1.5"),
        ("context", 65537, "register context must be from 0 to 65536, not 65537"),
        ("lanes", 33, "register lanes must be from 0 to 32, not 33"),
        ("program_length", 1 << 16, "register program_length must be from 0 to 65535, not 65536"),
        ("window_beats", 1 << 32, "register window_beats must be from 0 to 4294967295, not 4294967296"),
        ("timeout", -1, "register timeout must be from 0 to 4294967295, not -1"),
        ("head_lanes", {"first": 0, "count": 256}, r"register head_lanes\.count must be from 0 to 255, not 256"),
        ("head_lanes", {"first": 256}, r"register head_lanes\.first must be from 0 to 255, not 256"),
        ("head_lanes", 257, "register head_lanes has fields: first, count"),
        ("write_logits", {"every": 2}, r"register write_logits\.every must be from 0 to 1, not 2"),
        ("base_high", {"high": 256}, r"register base_high\.high must be from 0 to 255, not 256"),
        ("lanes", {"count": 1}, "register lanes is one number, without fields"),
    ],
)
def test_what_a_register_cannot_hold_is_refused_before_it_is_written(name: str, values: Any, message: str):
    accelerator, machine, _ = start(DEMO, TINY)
    before = dict(machine.values)
    with pytest.raises(UserError, match=message) as e:
        accelerator.write(name, **values) if isinstance(values, dict) else accelerator.write(name, values)
    assert "\n" not in str(e.value) and machine.values == before


@pytest.mark.parametrize("cycles", [1 << 32, -1])
def test_a_time_out_that_the_register_cannot_hold_is_refused_when_the_driver_opens(cycles: int):
    with pytest.raises(UserError, match=f"register timeout must be from 0 to 4294967295, not {cycles}"):
        Driver(ReferenceMachine(TINY, 16), TINY, timeout_cycles=cycles)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (1 << 40, r"register base_high\.high must be from 0 to 255, not 256"),
        (0x1800, "the region of port 0 begins at 0x1800, no multiple of 4096"),
    ],
)
def test_a_base_that_the_ports_would_take_for_another_is_refused(base: int, message: str):
    accelerator, machine, _ = start(DEMO, TINY)
    with pytest.raises(UserError, match=message):
        accelerator.point([base], 1)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"slots": 300}, "slots must be from 1 to 256, .*, not 300"),
        ({"slots": 257}, "slots must be from 1 to 256, .*, not 257"),
        ({"slots": 0}, "slots must be from 1 to 256, .*, not 0"),
        ({"context": 0}, "context must be from 1 to .* positions on board 'tiny' with --kv 8, not 0"),
        ({"context": 1 << 17}, "context must be from 1 to .* positions on board 'tiny' with --kv 8, not 131072"),
    ],
)
def test_the_golden_back_end_refuses_a_cache_that_the_accelerator_has_not(limits: dict[str, int], message: str):
    _, _, model = start(DEMO, TINY)
    with pytest.raises(UserError, match=message):
        GoldenBackend(model.weights(), TINY, **limits)
