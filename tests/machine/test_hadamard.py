"""The machine that turns queries and keys, on the RTL: every logit equals golden's, with every cache, full and screened head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tellme.golden import screen
from tellme.golden.config import TINY
from tellme.golden.kv import CACHE_FORMATS, CacheFormat
from tellme.golden.model import ModelSpec
from tellme.host.checkpoints.checkpoint import Checkpoint
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.passes import Pass
from tellme.host.machine.program import compile_program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.host.text.tokenizer import Files
from tellme.sim.timing import timing
from tests.models import random_weights, small_spec

TURNED = replace(TINY, hadamard=True)
SLOTS = 2
SHAPES: dict[str, ModelSpec] = {
    "gqa": small_spec(heads=4, kv_heads=2, head_dim=64, vocab=300),
    "qk-norm": small_spec(heads=2, kv_heads=2, head_dim=96, vocab=300, qk_norm=True),
    "widest": small_spec(heads=2, kv_heads=1, head_dim=128, vocab=300, hidden=96),
}


CACHES = [*(replace(c, hadamard=True) for c in CACHE_FORMATS.values()), CACHE_FORMATS["4"]]
CASES = [*(("gqa", c) for c in CACHES), ("qk-norm", CACHES[2]), ("widest", CACHES[1])]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1].options.replace(' --', '-')}")
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Model, CacheFormat]]:
    """A small model with a ternary copy of its head, and how its cache is kept."""
    shape, cache = request.param
    weights = random_weights(SHAPES[shape], 6)
    weights = replace(weights, screen=screen.quantise(*weights.head_rows, 1))
    checkpoint = Checkpoint(name="small", weights=weights, tokenizer=Files.read(demo_folder()), eos_ids=())
    convert(checkpoint, tmp_path / "small.tlm", TURNED)
    with Model.open(tmp_path / "small.tlm", TURNED) as model:
        yield model, cache


def test_prompts_and_decode_equal_golden(opened: tuple[Model, CacheFormat]) -> None:
    """Prompts in two slots, one over more than a block of keys; then both at once, and a lane alone that attends to all of it."""
    model, cache = opened
    program = compile_program(model, TURNED, slots=SLOTS, kv=cache)
    with (
        SimulatedAccelerator(model, program, timing=timing("kv260")) as machine,
        CheckedBackend(machine, GoldenBackend(model.weights(), TURNED, slots=SLOTS, kv=cache)) as both,
    ):
        n = TURNED.lanes
        for slot, length in enumerate((40, 8)):
            for first in range(0, length, n):
                lanes = range(first, first + n)
                ids = [(7 * p + 11 * slot) % model.spec.vocab for p in lanes]
                both.run_pass(
                    Pass.of(ids, lanes, [slot] * n, head=(0, n if first == 4 else 0), write_logits=first == 4)
                )
        both.run_pass(Pass.of([1, 2, 3], [40, 41, 8], [0, 0, 1], head=(0, 3), write_logits=True, candidates=64))
        both.run_pass(Pass.of([5], [42], [0], head=(0, 1), write_logits=True))
        assert both.passes == 14 and both.logits > 0
        mine, theirs = both.tested.read_cache(0, 43), both.reference.read_cache(0, 43)
        assert all((getattr(mine, part) == getattr(theirs, part)).all() for part in ("k", "v", "k_scales", "v_scales"))
