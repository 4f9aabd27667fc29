"""Shapes beyond those of BitNet, on the RTL of a small machine: heads of 256, attention wider or narrower than the residual
stream, the widest FFN and residual stream that the buffers hold, whose last tiles reach beyond them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tellme.golden.config import TINY
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

LARGE = replace(TINY, name="large-heads", max_hidden=1024, max_features=2048, max_kv_dim=512, max_head_dim=256)
PLAIN = dict(layers=2, vocab=40, activation="silu", attn_sub_norm=False, ffn_sub_norm=False)
SHAPES: dict[str, ModelSpec] = {
    "falcon3: heads of 256": small_spec(**PLAIN, hidden=1024, heads=2, kv_heads=1, head_dim=256, ffn=1312, tied=False),
    "bonsai-4b: attention wider than hidden": small_spec(
        **PLAIN, hidden=320, heads=8, kv_heads=2, head_dim=128, ffn=2048, qk_norm=True, rope_theta=1e6
    ),
    "widest heads with QK-norm": small_spec(
        **PLAIN, hidden=96, heads=4, kv_heads=2, head_dim=256, ffn=64, qk_norm=True
    ),
    "narrow attention": small_spec(hidden=512, heads=2, kv_heads=1, head_dim=96, ffn=512, vocab=40, qk_norm=True),
}


@pytest.fixture(params=SHAPES)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CheckedBackend]:
    """The RTL and the golden model beside it."""
    path, weights = tmp_path / "small.tlm", random_weights(SHAPES[request.param], 5)
    convert(Checkpoint(name="small", weights=weights, tokenizer=Files.read(demo_folder()), eos_ids=()), path, LARGE)
    with (
        Model.open(path, LARGE) as model,
        SimulatedAccelerator(model, compile_program(model, LARGE, slots=2), timing=timing("ideal")) as machine,
        CheckedBackend(machine, GoldenBackend(weights, LARGE, slots=2)) as checked,
    ):
        yield checked


def test_a_model_of_the_shape_is_bit_exact(both: CheckedBackend) -> None:
    """Prompts in two slots, then a lane alone, which attends to what the cache holds."""
    n = LARGE.lanes
    for positions, slots in (
        (range(n), [0] * n),
        ([n, n + 1, 0, 1], [0, 0, 1, 1]),
        ([2], [1]),
    ):
        ids = [(7 * p + 11 * s) % 40 for p, s in zip(positions, slots, strict=True)]
        both.run_pass(Pass.of(ids, list(positions), slots, head=(0, len(ids)), write_logits=True))
    assert both.passes == 3
