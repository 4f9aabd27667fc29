"""Random models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tellme.host.checkpoints.synthetic import random_weights
from tests.models import small_spec

SPEC = small_spec(layers=4)


def test_random_layers_do_not_depend_on_how_many_there_are() -> None:
    few = random_weights(replace(SPEC, layers=1), 7).layers[0]
    many = random_weights(SPEC, 7).layers
    assert np.array_equal(few.gate, many[0].gate) and not np.array_equal(many[0].gate, many[1].gate)
