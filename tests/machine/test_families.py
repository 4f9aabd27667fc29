"""A checkpoint of every Hugging Face family, as transformers wrote it, runs bit-exactly on the RTL of the tiny preset."""

from __future__ import annotations

import numpy as np
import pytest

from tellme.golden.config import TINY
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.image.model import Model
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.passes import Pass
from tellme.host.machine.program import compile_program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.sim.timing import timing
from tests.oracle.families import FAMILIES, checkpoint, vectors


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_every_family_is_bit_exact(family: str) -> None:
    """A pass of all lanes and one of one lane; golden reads the checkpoint, the machine its image."""
    ids = np.load(vectors(family))["ids"][0].tolist()
    n = TINY.lanes
    with (
        Model.open(checkpoint(family), TINY) as model,
        SimulatedAccelerator(model, compile_program(model, TINY), timing=timing("ideal")) as machine,
        CheckedBackend(machine, GoldenBackend(read_checkpoint(checkpoint(family)).weights, TINY)) as both,
    ):
        for first, lanes in ((0, n), (n, 1)):
            positions = range(first, first + lanes)
            both.run_pass(Pass.of([ids[p] for p in positions], positions, head=(0, lanes), write_logits=True))
        assert (both.passes, both.logits) == (2, (n + 1) * model.spec.vocab)
