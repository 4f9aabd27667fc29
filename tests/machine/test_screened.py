"""The screened head on the RTL: candidates, their logits, arg-max and bound equal golden's, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tellme.golden import schedule, screen
from tellme.golden.config import TINY
from tellme.golden.model import ModelWeights
from tellme.host.checkpoints.checkpoint import Checkpoint
from tellme.host.errors import DeviceError
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.passes import Pass
from tellme.host.machine.program import compile_program
from tellme.host.machine.screening import HeadChoice
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.host.text.tokenizer import Files
from tellme.sim.timing import timing
from tests.models import load_demo, random_weights, small_spec


@contextmanager
def machine(
    folder: Path, weights: ModelWeights, planes: int, memory: str = "kv260"
) -> Iterator[tuple[CheckedBackend, SimulatedAccelerator]]:
    """The simulated accelerator with a model whose head is screened, and golden beside it."""
    weights = replace(weights, screen=screen.quantise(*weights.head_rows, planes))
    path = folder / f"screened-{planes}.tlm"
    convert(Checkpoint(name="test", weights=weights, tokenizer=Files.read(demo_folder()), eos_ids=()), path, TINY)
    with (
        Model.open(path, TINY) as model,
        SimulatedAccelerator(model, compile_program(model, TINY), timing=timing(memory, seed=1)) as simulated,
        CheckedBackend(simulated, GoldenBackend(model.weights(), TINY)) as both,
    ):
        yield both, simulated


def test_every_number_of_lanes_and_candidates(tmp_path: Path) -> None:
    """One plane and two; a vocabulary of some row blocks, the last of them short; candidates from the fewest to all that there are
    place for, or half of the vocabulary; turns with the full head."""
    for planes, vocab in ((1, 300), (2, 331)):
        with machine(tmp_path, random_weights(small_spec(vocab=vocab), 3), planes) as (both, simulated):
            position = 0
            for lanes, head, count in (
                (1, (0, 1), 16),
                (4, (0, 4), 128),
                (3, (1, 2), 144),
                (1, (0, 1), 0),
                (2, (1, 1), 48),
            ):
                ids = range(position, position + lanes)
                given = Pass.of(ids, ids, head=head, write_logits=True, candidates=count)
                got = both.run_pass(given)
                assert got.logits is not None and got.logits.shape == (head[1], count or vocab)
                # Without logits: the same best and bounds.
                again = simulated.run_pass(replace(given, write_logits=False))
                assert again.logits is None and (again.best_index, again.best_value) == (got.best_index, got.best_value)
                assert again.bound == got.bound and (again.bound is None) == (count == 0)
                position += lanes


def test_untied_heads_ties_and_rows_of_zeros(tmp_path: Path) -> None:
    """Equal rows have equal scores and logits: the lowest win; rows of zeros score 0."""
    weights = random_weights(small_spec(vocab=160, tied=False, hidden=96), 4)
    rows, scales = (np.copy(x) for x in weights.head_rows)
    rows[:80:7] = 0
    rows[80:], scales[80:] = rows[:80], scales[:80]
    weights = replace(weights, head=rows, head_scales=scales)
    with machine(tmp_path, weights, 1) as (both, _):
        result = both.run_pass(Pass.of(range(4), range(4), head=(0, 4), write_logits=True, candidates=32))
        assert max(result.best_index) < 80


def test_stress_changes_no_bit_of_a_screened_head(tmp_path: Path) -> None:
    with machine(tmp_path, random_weights(small_spec(vocab=270), 5), 2, "stress") as (both, _):
        for first, lanes in ((0, 4), (4, 1)):
            ids = range(first, first + lanes)
            both.run_pass(Pass.of(ids, ids, head=(0, lanes), write_logits=True, candidates=64))


def test_the_demo_is_screened_with_the_beats_that_the_schedule_says(tmp_path: Path) -> None:
    """Prompt and decode by the back end's own choice; what is read is the schedule's, and a fifth less than the full head's."""
    with machine(tmp_path, load_demo()[0], 1) as (both, simulated):
        both.head = HeadChoice(mode="screened", candidates=64)
        ids = [0, *range(40, 49)]
        result = both.prefill(ids)[-1]
        for position in range(len(ids), len(ids) + 3):
            result = both.decode(result.best_index[-1], position, logits=True)
        assert both.screened == 4 and both.fallbacks == 0 and result.candidates is not None
        program = simulated._program
        assert program is not None
        at = len(ids) + 2
        read = [
            sum(s.beats for s in schedule.segments(TINY, program.code, program.program_address, [at], [0], 1, rows))
            for rows in (result.candidates[0].tolist(), [])
        ]
        assert result.beats == read[0] < 0.8 * read[1]


def test_where_candidates_are_in_doubt_every_row_is_scored(tmp_path: Path) -> None:
    """A margin that no best logit has: each pass is followed by one of the full head, whose result counts."""
    with machine(tmp_path, random_weights(small_spec(vocab=300), 6), 1) as (both, _):
        both.head = HeadChoice(mode="auto", candidates=64, margin=1e9)
        first = both.prefill([1, 2, 3, 4, 5], logits=True)[-1]
        second = both.decode(first.best_index[-1], 5)
        assert both.screened == both.fallbacks == 2 and both.passes == 5
        assert first.candidates is None and first.logits is not None and first.logits.shape == (1, 300)
        reference = GoldenBackend(random_weights(small_spec(vocab=300), 6), TINY)
        assert second.best_index == reference.prefill([1, 2, 3, 4, 5, first.best_index[-1]])[-1].best_index


def test_candidates_that_there_cannot_be_stop_the_pass(tmp_path: Path) -> None:
    """Raw registers: no multiple, too many for the lanes, more than half of the vocabulary, beyond the register; then a good one."""
    with machine(tmp_path, random_weights(small_spec(vocab=300), 7), 1) as (both, simulated):
        good = Pass.of([1, 2, 3, 4], range(4), head=(0, 4), candidates=128)
        want = simulated.run_pass(good)
        for count in (8, 129, 144, 160, 1 << 11, 1 << 31 | 64):
            simulated.write("candidates", min(count, 1024)) if count <= 1024 else simulated.device.write(0x84, count)
            with pytest.raises(DeviceError, match="descriptor 11 of the program cannot be executed"):
                simulated.execute()
        assert simulated.run_pass(good).best_value == want.best_value
        assert both.can_screen


def test_a_program_without_a_ternary_head_has_no_candidates(tmp_path: Path) -> None:
    path = tmp_path / "full.tlm"
    weights = random_weights(small_spec(vocab=300), 7)
    convert(Checkpoint(name="full", weights=weights, tokenizer=Files.read(demo_folder()), eos_ids=()), path, TINY)
    with (
        Model.open(path, TINY) as model,
        SimulatedAccelerator(model, compile_program(model, TINY), timing=timing("ideal")) as simulated,
    ):
        want = simulated.run_pass(Pass.of([1], [0], head=(0, 1)))
        simulated.write("candidates", 64)
        with pytest.raises(DeviceError, match="descriptor 12 of the program cannot be executed"):
            simulated.execute()
        assert simulated.run_pass(Pass.of([1], [0], head=(0, 1))).best_value == want.best_value
