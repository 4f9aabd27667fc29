"""A head that is ternary on the RTL: arg-max, candidates with their logits, and every logit equal golden's, bit for bit, without int8 rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellme.golden import schedule
from tellme.golden.config import TINY, AcceleratorConfig
from tellme.golden.model import ModelWeights
from tellme.host.checkpoints.checkpoint import Checkpoint
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.passes import Pass
from tellme.host.machine.program import compile_program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.host.text.tokenizer import Files
from tellme.sim.timing import timing
from tests.models import random_weights, small_spec

pytestmark = pytest.mark.xdist_group("machine")

GROUPED = replace(TINY, weight_format="grouped")
KINDS: dict[str, tuple[AcceleratorConfig, dict[str, Any]]] = {
    "a scale a row": (TINY, dict(vocab=331, tied=False, hidden=96)),
    "groups": (
        GROUPED,
        dict(vocab=270, group_scales=True, activation="silu", attn_sub_norm=False, ffn_sub_norm=False, hidden=192),
    ),
}


@contextmanager
def machine(
    folder: Path, weights: ModelWeights, config: AcceleratorConfig, memory: str = "kv260"
) -> Iterator[tuple[CheckedBackend, SimulatedAccelerator]]:
    """The simulated accelerator with the model's image, and golden with the weights of which it was made beside it."""
    path = folder / "made.tlm"
    convert(Checkpoint(name="test", weights=weights, tokenizer=Files.read(demo_folder()), eos_ids=()), path, config)
    with (
        Model.open(path, config) as model,
        SimulatedAccelerator(model, compile_program(model, config), timing=timing(memory, seed=1)) as simulated,
        CheckedBackend(simulated, GoldenBackend(weights, config)) as both,
    ):
        yield both, simulated


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", ["kv260", "stress"])
def test_every_number_of_lanes_and_candidates(kind: str, memory: str, tmp_path: Path) -> None:
    """Candidates, every logit, and the arg-max alone, which is the same; what is read is what the schedule says."""
    config, changes = KINDS[kind]
    weights = random_weights(small_spec(ternary_head=True, **changes), 3)
    with machine(tmp_path, weights, config, memory) as (both, simulated):
        position = 0
        for lanes, head, count in ((1, (0, 1), 16), (4, (0, 4), 128), (3, (1, 2), 0), (1, (0, 1), 0), (4, (0, 4), 0)):
            ids = range(position, position + lanes)
            given = Pass.of(ids, ids, head=head, write_logits=True, candidates=count)
            got = both.run_pass(given)
            assert got.logits is not None and got.logits.shape == (head[1], count or weights.spec.vocab)
            again = simulated.run_pass(replace(given, write_logits=False))
            assert again.logits is None and (again.best_index, again.best_value) == (got.best_index, got.best_value)
            program = simulated._program
            assert program is not None
            read = schedule.segments(config, program.code, program.program_address, list(ids), [0] * lanes, head[1])
            assert again.beats == sum(s.beats for s in read)
            position += lanes


def test_ties_go_to_the_lowest_rows(tmp_path: Path) -> None:
    """Rows twice over, and rows of zeros."""
    weights = random_weights(small_spec(ternary_head=True, vocab=160), 4)
    assert weights.screen is not None
    planes, scales = np.copy(weights.screen.planes), np.copy(weights.screen.scales)
    planes[:80:7] = 0
    planes[80:], scales[80:] = planes[:80], scales[:80]
    weights = replace(weights, screen=replace(weights.screen, planes=planes, scales=scales))
    with machine(tmp_path, weights, TINY) as (both, _):
        for count in (32, 0):
            result = both.run_pass(Pass.of(range(4), range(4), head=(0, 4), write_logits=True, candidates=count))
            assert max(result.best_index) < 80
