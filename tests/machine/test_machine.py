"""The whole machine, RTL under Verilator, equals the golden model: every logit of every pass, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from tellme.golden import schedule
from tellme.golden.config import TINY
from tellme.golden.model import GoldenModel
from tellme.golden.registers import STALLS
from tellme.host.checkpoints.checkpoint import Checkpoint
from tellme.host.cli import app
from tellme.host.errors import DeviceError, UserError
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.passes import Pass, PassResult
from tellme.host.machine.program import compile_program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.host.text.tokenizer import Files
from tellme.sim.timing import timing
from tests.machine.conftest import SLOTS
from tests.models import random_weights, small_spec

F32 = NDArray[np.float32]


def tokens(n: int, seed: int) -> list[int]:
    """Random tokens behind a document start."""
    return [0, *np.random.default_rng(seed).integers(2, 1024, n - 1).tolist()]


def equal_bits(a: F32, b: F32) -> bool:
    return bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))


def checked(machine: SimulatedAccelerator, demo: Model) -> CheckedBackend:
    """The machine with the golden model beside it, caches empty."""
    return CheckedBackend(machine, GoldenBackend(demo.weights(), TINY, slots=SLOTS))


def one_at_a_time(machine: SimulatedAccelerator, ids: Sequence[int], slot: int) -> PassResult:
    """The last pass of feeding `ids` a token a pass."""
    for position, token in enumerate(ids):
        last = position == len(ids) - 1
        result = machine.run_pass(Pass.of([token], [position], [slot], head=(0, int(last)), write_logits=last))
    return result


@pytest.mark.parametrize("length", [1, TINY.lanes - 1, TINY.lanes, TINY.lanes + 1, 100])
def test_prompts_are_bit_exact_and_independent_of_how_they_are_split(
    machine: SimulatedAccelerator, demo: Model, length: int
) -> None:
    ids = tokens(length, length)
    both = checked(machine, demo)
    chunks = [
        both.run_pass(
            Pass.of(
                ids[i : i + TINY.lanes],
                range(i, min(i + TINY.lanes, length)),
                head=(0, len(ids[i : i + TINY.lanes])),
                write_logits=True,
            )
        )
        for i in range(0, length, TINY.lanes)
    ]
    chunked = chunks[-1].logits
    assert chunked is not None
    singly = one_at_a_time(machine, ids, 1).logits
    assert singly is not None
    assert equal_bits(chunked[-1], singly[0])


def test_the_context_fills_to_its_maximum_and_no_further(machine: SimulatedAccelerator, demo: Model) -> None:
    both = checked(machine, demo)
    ids = tokens(256, 5)
    n = TINY.lanes
    for i in range(0, 252, n):
        both.run_pass(Pass.of(ids[i : i + n], range(i, i + n), head=(n - 1, 1), write_logits=True))
    for i in range(252, 256):
        both.run_pass(Pass.of([ids[i]], [i], head=(0, 1), write_logits=True))
    with pytest.raises(UserError, match="256"):
        machine.run_pass(Pass.of([3], [256], head=(0, 1)))


def test_lanes_of_different_slots_share_a_pass(machine: SimulatedAccelerator, demo: Model) -> None:
    """Three sequences at different positions; each as if it were alone."""
    both = checked(machine, demo)
    ids = {slot: tokens(40, 30 + slot) for slot in range(SLOTS)}
    starts = {0: 37, 1: 1, 2: 20}
    for slot, start in starts.items():
        for i in range(0, start, TINY.lanes):
            part = ids[slot][i : min(i + TINY.lanes, start)]
            both.run_pass(Pass.of(part, range(i, i + len(part)), [slot] * len(part), head=(0, 0)))
    lanes = [(0, 37), (2, 20), (2, 21), (1, 1)]
    both.run_pass(
        Pass.of(
            [ids[slot][p] for slot, p in lanes],
            [p for _, p in lanes],
            [slot for slot, _ in lanes],
            head=(0, len(lanes)),
            write_logits=True,
        )
    )


def test_the_head_of_some_lanes_is_a_part_of_the_head_of_all(machine: SimulatedAccelerator, demo: Model) -> None:
    """Wherever the head's lanes begin and however many there are. Other tokens each time: memory keeps the last logits."""
    n = TINY.lanes
    golden = GoldenBackend(demo.weights(), TINY, slots=SLOTS)
    for first in range(n):
        for count in range(1, n - first + 1):
            ids = tokens(n, 100 + n * first + count)
            every = golden.run_pass(Pass.of(ids, range(n), head=(0, n), write_logits=True))
            got = machine.run_pass(Pass.of(ids, range(n), head=(first, count), write_logits=True))
            part = slice(first, first + count)
            assert every.logits is not None and got.logits is not None
            assert equal_bits(got.logits, every.logits[part])
            assert (got.best_index, got.best_value) == (every.best_index[part], every.best_value[part])


def test_stress_changes_no_bit(demo: Model) -> None:
    """Random stalls on every channel, reordering: same logits, more cycles."""
    ids = tokens(11, 9)
    for seed in (1, 2):
        with SimulatedAccelerator(
            demo, compile_program(demo, TINY, slots=SLOTS), timing=timing("stress", seed=seed)
        ) as stressed:
            both = checked(stressed, demo)
            n = TINY.lanes
            for i in range(0, len(ids), n):
                part = ids[i : i + n]
                result = both.run_pass(Pass.of(part, range(i, i + len(part)), head=(0, len(part)), write_logits=True))
            assert result.cycles is not None and result.stalls["memory"] > 0


def test_own_keys_are_kept_until_they_are_written(tmp_path: Path) -> None:
    """Memory that answers so late that a layer's matmuls end first: the next layer waits, and results stay the same."""
    spec = small_spec(layers=3, heads=8, kv_heads=8, ffn=32)
    weights, path, n = random_weights(spec, 3), tmp_path / "small.tlm", TINY.lanes
    tokenizer = Files.read(demo_folder())
    convert(Checkpoint(name="small", weights=weights, tokenizer=tokenizer, eos_ids=()), path, TINY)
    waited = []
    for latency in (10, 6000):
        with (
            Model.open(path, TINY) as model,
            SimulatedAccelerator(model, compile_program(model, TINY), timing=timing("ideal", latency=latency)) as slow,
            CheckedBackend(slow, GoldenBackend(weights, TINY)) as both,
        ):
            result = both.run_pass(Pass.of(range(n), range(n), head=(0, n), write_logits=True))
            both.run_pass(Pass.of([n], [n], head=(0, 1), write_logits=True))  # reads what was written
        waited.append(result.stalls["control"])
    assert waited[1] > 10 * waited[0]


def test_cycles_are_beats_and_stalls_and_beats_are_what_the_program_reads(
    machine: SimulatedAccelerator,
) -> None:
    """Every cycle is accounted for; the machine reads exactly the beats of golden.schedule."""
    program = machine._program
    assert program is not None
    for position, lanes in ((0, 1), (0, 4), (33, 1), (64, 3)):
        ids = tokens(lanes + 1, 4)[:lanes]
        positions = list(range(position, position + lanes))
        result = machine.run_pass(Pass.of(ids, positions, head=(lanes - 1, 1)))
        again = machine.run_pass(Pass.of(ids, positions, head=(lanes - 1, 1)))
        segments = schedule.segments(TINY, program.code, program.program_address, positions, [0] * lanes, 1)
        assert result.beats == sum(s.beats for s in segments)
        assert set(result.stalls) == set(STALLS)
        assert result.cycles is not None and result.beats is not None
        assert abs(result.cycles - result.beats - sum(result.stalls.values())) <= 1
        assert again.beats == result.beats and abs((again.cycles or 0) - result.cycles) < 0.02 * result.cycles


def test_a_damaged_program_stops_with_words_and_the_next_pass_works(machine: SimulatedAccelerator, demo: Model) -> None:
    program = machine._program
    assert program is not None
    golden = GoldenModel(demo.weights(), TINY).run_pass([0], [0], [0], head_lanes=(0, 1))
    memory = machine.device.memory
    weights = program.image_address + demo.image.sections["0.qkv"].address + 40
    keep = memory[0, weights].copy()
    for damage, message in (
        (lambda: machine.write("program_length", 0), "cannot be executed"),
        (lambda: machine.write("window_beats", program.image_address + 5), "outside the buffer's window"),
        (lambda: memory[0, weights].fill(255), "weight byte above 242"),
    ):
        damage()
        with pytest.raises(DeviceError, match=message):
            machine.run_pass(Pass.of([0], [0], head=(0, 1)))
        machine.write("program_length", program.length)
        machine.write("window_beats", program.window_beats)
        memory[0, weights] = keep
        result = machine.run_pass(Pass.of([0], [0], head=(0, 1), write_logits=True))
        assert result.logits is not None and golden.logits is not None
        assert equal_bits(result.logits, golden.logits)


def test_both_back_ends_say_the_same(demo: Model) -> None:
    """`tellme run` on the RTL and on the golden model: same tokens; the JSON has what is promised."""
    out = {}
    for backend in ("sim", "golden"):
        call = ["run", "--backend", backend, "--model", "demo", "--prompt", "One day, a small fox", "--json"]
        call += ["--max-new-tokens", "12", "--temperature", "0.8", "--seed", "3"]
        call += ["--check"] if backend == "sim" else []
        result = CliRunner().invoke(app, call)
        assert result.exit_code == 0, result.output
        out[backend] = json.loads(result.stdout)
    keys = "prompt_ids new_ids text lanes beat_bytes cycles_prefill cycles_decode stalls bit_exact".split()
    keys += "model backend board clock_hz seconds head candidates screened_passes fallbacks".split()
    keys += "kv hadamard cached_tokens logprobs drafted accepted tokens_per_pass version commit".split()
    assert list(out["sim"]) == keys
    assert out["sim"]["new_ids"] == out["golden"]["new_ids"] and len(out["sim"]["new_ids"]) == 12
    assert out["sim"]["bit_exact"] is True and out["sim"]["lanes"] == TINY.lanes
    assert len(out["sim"]["cycles_decode"]) == 11 and set(out["sim"]["stalls"]) == set(STALLS)
