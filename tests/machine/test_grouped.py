"""Models with a scale for every group of weights run bit-exactly on the RTL of the tiny preset in the format `grouped`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellme.golden.config import TINY
from tellme.golden.model import ModelWeights
from tellme.host.checkpoints.checkpoint import Checkpoint
from tellme.host.errors import UserError
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.image.screening import with_screen
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.passes import Pass
from tellme.host.machine.program import compile_program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.host.text.tokenizer import Files
from tellme.sim.timing import timing
from tests.models import random_weights, small_spec

GROUPED = replace(TINY, weight_format="grouped")
LLAMA: dict[str, Any] = dict(group_scales=True, activation="silu", attn_sub_norm=False, ffn_sub_norm=False)


def checkpoint(weights: ModelWeights) -> Checkpoint:
    return Checkpoint("made", weights, Files.read(demo_folder()), (1,))


@pytest.mark.parametrize(
    "changes",
    [
        dict(LLAMA, qk_norm=True, hidden=192, ffn=352, head_dim=64),
        dict(LLAMA, hidden=96, ffn=160, tied=False),
        dict(hidden=128),
    ],
    ids=["Bonsai", "inputs that are no whole groups", "one scale a matrix"],
)
def test_group_scaled_models_are_bit_exact(changes: dict[str, Any], tmp_path: Path) -> None:
    """Passes of all lanes and of one, with features of very different sizes, through the image."""
    weights = random_weights(small_spec(vocab=160, **changes), 3)
    # Outliers: groups of all exponents.
    rows, scales = weights.embedding.copy(), weights.embedding_scales
    rows[:, -1] = np.where(rows[:, -1] < 0, -127, 127)
    rows[:, :64] //= 16
    weights = replace(weights, embedding=rows, embedding_scales=scales)
    path = tmp_path / "made.tlm"
    made, _ = with_screen(checkpoint(weights), GROUPED, planes=2)
    convert(made, path, GROUPED)
    n = GROUPED.lanes
    with (
        Model.open(path, GROUPED) as model,
        SimulatedAccelerator(model, compile_program(model, GROUPED), timing=timing("kv260")) as machine,
        CheckedBackend(machine, GoldenBackend(made.weights, GROUPED)) as both,
    ):
        ids = np.random.default_rng(1).integers(0, weights.spec.vocab, 2 * n + 1).tolist()
        for first, lanes in ((0, n), (n, n - 1), (2 * n - 1, 1)):
            positions = range(first, first + lanes)
            both.run_pass(Pass.of([ids[p] for p in positions], positions, head=(0, lanes), write_logits=True))
        assert (both.passes, both.logits) == (3, 2 * n * model.spec.vocab)
        # The screened head has one scale a row and activations without exponents, as in the other format.
        last = Pass.of(ids[2 * n :], [2 * n], head=(0, 1), write_logits=True)
        both.run_pass(replace(last, candidates=64))


def test_images_of_the_other_format_are_refused_in_one_line(tmp_path: Path) -> None:
    weights = random_weights(small_spec(), 3)
    for made, other in ((TINY, GROUPED), (GROUPED, TINY)):
        path = tmp_path / f"{made.weight_format}.tlm"
        convert(checkpoint(weights), path, made)
        with pytest.raises(UserError) as caught:
            Model.open(path, other)
        said = f"was made for weight_format {made.weight_format}, but board 'tiny' has {other.weight_format}"
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_weights_come_back_from_the_image(tmp_path: Path) -> None:
    weights = random_weights(small_spec(**LLAMA, hidden=192), 5)
    path = tmp_path / "made.tlm"
    convert(checkpoint(weights), path, GROUPED)
    with Model.open(path, GROUPED) as model:
        back = model.weights()
        assert back.spec == weights.spec and back.spec.group_scales
        for mine, its in zip(weights.layers, back.layers, strict=True):
            for name in mine.__dataclass_fields__:
                a, b = getattr(mine, name), getattr(its, name)
                assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, name


def test_what_the_format_cannot_do_is_refused_in_one_line(tmp_path: Path) -> None:
    made = checkpoint(random_weights(small_spec(**LLAMA), 3))
    with pytest.raises(UserError, match="build one with weight_format = 'grouped'"):
        convert(made, tmp_path / "x.tlm", TINY)
