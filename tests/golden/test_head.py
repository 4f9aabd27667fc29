"""The output head."""

import numpy as np
import pytest

from tellme.golden import head


@pytest.mark.parametrize("features", [32, 1024, 1056, 2560, 8192])
def test_dot_products_are_exact(features: int) -> None:
    rng = np.random.default_rng(31)
    q, rows = (rng.integers(-128, 128, (n, features)).astype(np.int8) for n in (3, 50))
    q[0], rows[0] = -128, -128
    q[1], rows[1] = rng.integers(120, 128, (2, features))  # sums that float32 cannot hold
    want = q.astype(np.int64) @ rows.T.astype(np.int64)
    assert (head.dots(q, rows) == want).all()
    assert (head.dots(q, rows.astype(np.float32)) == want).all()


def test_logits_multiply_the_scales_first() -> None:
    rng = np.random.default_rng(32)
    q, rows = (rng.integers(-128, 128, (n, 64)).astype(np.int8) for n in (2, 5))
    a, s = rng.uniform(0, 1, 2).astype(np.float32), rng.uniform(0, 1, 5).astype(np.float32)
    got = head.logits(q, a, rows, s)
    for i in range(2):
        for j in range(5):
            dot = sum(int(x) * int(y) for x, y in zip(q[i], rows[j], strict=True))
            assert got[i, j] == np.float32(dot) * (a[i] * s[j])


def test_arg_max_takes_the_first_of_equal_logits() -> None:
    values = np.float32([[1, 3, 3, 2], [-1, -0.0, 0.0, -0.0], [0.0, -0.0, -1, -1], [-5, -5, -5, -5]])
    assert head.best(values).tolist() == [1, 1, 0, 0]


def test_rows_are_quantised_to_half_a_step() -> None:
    x = np.random.default_rng(33).normal(size=(20, 128)).astype(np.float32)
    x[3] = 0
    q, s = head.quantise_rows(x)
    assert (np.abs(q[x.any(-1)].astype(int)).max(-1) == 127).all() and not q[3].any()
    assert np.abs(q * s[:, None] - x).max() <= 0.5001 * s.max()


@pytest.mark.parametrize("largest", [0.0, 1e-38, 9e-6, 1e-5, 2e-5])
def test_the_scale_of_a_row_has_a_floor(largest: float) -> None:
    """1e-5 / 127, so that a row of zeros or of next to nothing has a reciprocal."""
    x = np.zeros((2, 32), np.float32)
    x[0, 7], x[1] = -largest, 1
    q, s = head.quantise_rows(x)
    assert s[0] == np.float32(max(largest, 1e-5)) * np.float32(1 / 127) and s[1] == np.float32(1 / 127)
    assert q[0, 7] == round(-min(largest, 1e-5) / 1e-5 * 127) if largest < 1e-5 else q[0, 7] == -127
    assert np.count_nonzero(q[0]) == (round(largest / 1e-5 * 127) > 0)
