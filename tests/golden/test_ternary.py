"""Ternary weights: quantisation, base-3 packing and table lookup."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tellme.golden import ternary
from tellme.golden.formats import TERNARY
from tellme.golden.ternary import WeightError

TRITS = st.integers(-1, 1)


def straight(weights: list[int]) -> list[int]:
    """Bytes of weights, weight by weight."""
    out = []
    for i in range(0, len(weights), 5):
        five = weights[i : i + 5] + [0] * (5 - len(weights[i : i + 5]))
        out.append(sum((w + 1) * 3**j for j, w in enumerate(five)))
    return out


@settings(derandomize=True, deadline=None)
@given(st.lists(TRITS, min_size=1, max_size=33))
def test_packing_is_base_three_and_unpacks(weights: list[int]) -> None:
    data = TERNARY.pack(weights)
    assert data.tolist() == straight(weights)
    assert TERNARY.unpack(data, len(weights)).tolist() == weights


def test_every_byte_packs_and_unpacks_to_itself() -> None:
    data = np.arange(243, dtype=np.uint8)
    assert (TERNARY.pack(TERNARY.unpack(data[:, None]))[:, 0] == data).all()


def test_packing_keeps_leading_axes() -> None:
    w = np.random.default_rng(1).integers(-1, 2, (3, 4, 11)).astype(np.int8)
    assert TERNARY.pack(w).shape == (3, 4, 3)
    assert (TERNARY.unpack(TERNARY.pack(w), 11) == w).all()


@pytest.mark.parametrize("value", [-2, 2, 127, -128, 0.5])
def test_a_weight_that_is_not_ternary_is_refused_with_its_place(value: float) -> None:
    w = np.zeros((2, 7))
    w[1, 3] = value
    with pytest.raises(WeightError, match=re.escape(f"must be -1, 0 or 1; found {float(value)} at (1, 3)")):
        TERNARY.pack(w)


@pytest.mark.parametrize("byte", [243, 255])
def test_a_byte_that_no_weights_pack_to_is_refused_and_counted(byte: int) -> None:
    data = np.array([[0, 242], [byte, byte]], np.uint8)
    with pytest.raises(WeightError, match=re.escape(f"at most 242; found {byte} at (1, 0)")):
        TERNARY.unpack(data)
    assert TERNARY.invalid(data).sum() == 2


def test_more_weights_than_there_are_is_refused() -> None:
    with pytest.raises(WeightError, match="2 bytes hold 10 weights, not 11"):
        TERNARY.unpack(np.zeros(2, np.uint8), 11)


def test_quantisation_rounds_to_the_mean_magnitude() -> None:
    w, scale = ternary.quantise([[0.5, -1.5, 1.0], [-0.1, 0.4, -2.5]])
    assert scale == np.float32(1.0)
    assert w.tolist() == [[0, -1, 1], [0, 0, -1]]


def test_quantisation_of_zeros_has_the_smallest_scale() -> None:
    w, scale = ternary.quantise(np.zeros((2, 2)))
    assert not w.any() and scale == np.float32(1e-5)


@pytest.mark.parametrize("kind", ["random", "ones", "minus", "zero"])
@pytest.mark.parametrize(("rows", "inputs"), [(1, 1), (3, 320), (8, 6912), (2, 65536)])
def test_products_are_exact(kind: str, rows: int, inputs: int) -> None:
    rng = np.random.default_rng(2)
    fill = {"ones": 1, "minus": -1, "zero": 0}
    w = rng.integers(-1, 2, (rows, inputs)) if kind == "random" else np.full((rows, inputs), fill[kind])
    q = rng.integers(-128, 128, (4, inputs))
    q[0], q[1] = -128, 127
    got = ternary.linear(w.astype(np.int8), q.astype(np.int8))
    assert (got == q.astype(np.int64) @ w.T.astype(np.int64)).all()


def test_products_beyond_float32_and_float64_are_exact() -> None:
    q = np.full((1, 1 << 11), 127, np.int8)
    q[0, 0] = 126
    k = np.full((1, 1 << 11), 127, np.int8)
    assert ternary.exact_product(q, k, 1 << 14)[0, 0] == 127 * 127 * (1 << 11) - 127
    assert ternary.exact_product(q, k, 1 << 50)[0, 0] == 127 * 127 * (1 << 11) - 127


@pytest.mark.parametrize("lanes", [1, 3, 64])
@pytest.mark.parametrize(("rows", "inputs"), [(1100, 513), (9, 1 << 17), (4097, 4096)])
def test_matrices_larger_than_a_block_are_exact(lanes: int, rows: int, inputs: int) -> None:
    """Blocks that divide the rows and that do not, and one block that is a single row."""
    rng = np.random.default_rng(lanes)
    assert rows * inputs > ternary._BLOCK
    w = rng.integers(-1, 2, (rows, inputs), dtype=np.int8)
    w[-1], w[0] = 1, -1
    q = rng.integers(-128, 128, (lanes, inputs), dtype=np.int8)
    q[0] = -128
    got = ternary.linear(w, q)
    some = np.unique(np.concatenate([rng.integers(0, rows, 40), [0, rows - 1]]))
    assert (got[:, some] == q.astype(np.int64) @ w[some].T.astype(np.int64)).all()
    assert got[0, 0] == 128 * inputs and got[0, -1] == -128 * inputs


@pytest.mark.parametrize("inputs", [1023, 1024, 1025, 1536, 2560, 4096])
def test_int8_products_are_summed_in_slices_that_float32_holds(inputs: int) -> None:
    """1,024 products of two int8 reach 2^24; odd sums beyond it are the ones that a single float32 sum would round."""
    rng = np.random.default_rng(inputs)
    q, rows = np.full((2, inputs), -128, np.int8), np.full((700, inputs), -128, np.int8)
    q[1] = rng.integers(-128, 128, inputs)
    rows[1:] = rng.integers(100, 128, (699, inputs))
    q[0, 0], rows[0, 0] = 127, 127
    got = ternary.exact_product(q, rows, 1 << 14)
    assert (got == q.astype(np.int64) @ rows.T.astype(np.int64)).all()
    assert got[0, 0] == 16384 * (inputs - 1) + 127 * 127
    assert ternary.product(q, rows, 1 << 14).dtype == (np.float32 if inputs <= 1024 else np.float64)


def test_products_are_the_same_on_one_thread_and_on_several(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    w, q = rng.integers(-1, 2, (5000, 640), dtype=np.int8), rng.integers(-128, 128, (5, 640), dtype=np.int8)
    results = []
    for threads in (1, 4):
        monkeypatch.setattr(ternary, "_THREADS", threads)
        results.append(ternary.linear(w, q))
    assert (results[0] == results[1]).all()


@pytest.mark.parametrize("size", [2, 3, 4, 5])
@settings(derandomize=True, deadline=None, max_examples=30)
@given(data=st.data())
def test_table_lookup_equals_the_product(size: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 41))
    w = data.draw(hnp.arrays(np.int8, (3, n), elements=TRITS))
    q = data.draw(hnp.arrays(np.int8, n, elements=st.integers(-128, 127)))
    assert (ternary.lookup(q, w, size) == ternary.linear(w, q)).all()


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_tables_hold_every_signed_sum_and_are_symmetric(size: int) -> None:
    q = np.array([-128, 127, 5, -7, 100], np.int8)[:size]
    table = ternary.tables(q, size)[0]
    assert len(table) == 3**size
    for i in range(3**size):
        digits = [i // 3**j % 3 - 1 for j in range(size)]
        assert table[i] == sum(d * int(a) for d, a in zip(digits, q, strict=True))
        assert table[3**size - 1 - i] == -table[i]
    assert ternary.indices(np.zeros(size, np.int8), size)[0] == (3**size - 1) // 2


# ---- damage ----------------------------------------------------------------------------------------------------------


def both(w: NDArray[np.int8]) -> tuple[str | None, str | None]:
    """What is said of a matrix, and of its packed bytes."""
    packed = TERNARY.pack(w)[:, : w.shape[1] // 5]
    return ternary.damage(w), TERNARY.damage(packed)


@pytest.mark.parametrize("k", [32, 64, 96, 200, 256, 1000, 2560])
@pytest.mark.parametrize("p", [[0.25, 0.5, 0.25], [0.05, 0.9, 0.05], [0.5, 0, 0.5], [0.6, 0.4, 0], [0, 0.3, 0.7]])
def test_no_random_matrix_is_called_damaged(k: int, p: list[float]) -> None:
    w = np.random.default_rng(k).choice(np.array([-1, 0, 1], np.int8), (96, k), p=p)
    assert both(w) == (None, None)


def test_odd_but_possible_matrices_are_not_called_damaged() -> None:
    rng = np.random.default_rng(1)
    w = rng.integers(-1, 2, (256, 512), np.int8)
    w[:127] = 0  # features that died: nearly half of them
    assert both(w) == (None, None)
    w[:, :300] = 0  # inputs that are not used
    assert both(w) == (None, None)
    assert both(np.where(rng.random((64, 1000)) < 0.01, 1, 0).astype(np.int8)) == (None, None)
    w = np.tile(np.array([[1, -1], [-1, 1]], np.int8), (16, 64))  # a checkerboard
    assert both(w) == (None, None)
    w = rng.integers(-1, 2, (64, 512), np.int8)
    w[3, 5:130] = -1  # a long run, but no block of 128
    assert both(w) == (None, None)


@pytest.mark.parametrize("k", [32, 96, 128, 256, 1000])
@pytest.mark.parametrize(("value", "name"), [(-1, "-1"), (0, "zeros"), (1, r"\+1")])
def test_constant_matrices_and_holes_in_them_are_damaged(k: int, value: int, name: str) -> None:
    w = np.full((64, k), value, np.int8)
    for said in both(w):
        assert re.fullmatch(f"holds only {name}", said or "")
    rng = np.random.default_rng(2)
    w = rng.integers(-1, 2, (64, k), np.int8)
    w[32:] = value
    for said in both(w):
        assert re.match(
            "has 32 rows of zeros among its 64" if value == 0 else rf"holds .* weights of {name} at row 32", said or ""
        )
    if value and k > 128:
        w = rng.integers(-1, 2, (64, k), np.int8)
        w[7, 128:256] = value
        assert re.fullmatch(rf"holds 128 neighbouring weights of {name} at row 7, column 128", ternary.damage(w) or "")


def test_nearly_only_zeros_is_damaged() -> None:
    w = np.zeros((128, 128), np.int8)
    w[np.arange(128), np.arange(128)] = np.where(np.arange(128) < 16, 1, 0)
    assert ternary.damage(w) == "has 112 rows of zeros among its 128"
    w = np.zeros((64, 4096), np.int8)
    w[np.arange(64), np.arange(64)] = 1
    assert ternary.damage(w) == "has 262,080 zeros among its 262,144 weights"


def test_damage_of_gains_and_rows() -> None:
    x = np.random.default_rng(3).normal(0, 1, (64, 32)).astype(np.float32)
    assert ternary.damage_of_floats(x) is ternary.damage_of_floats(x[0]) is ternary.damage_of_floats(np.ones(8)) is None
    assert ternary.damage_of_floats(np.zeros(8)) == ternary.damage_of_floats(0 * x) == "holds only zeros"
    assert ternary.damage_of_floats(np.full((4, 4), 0.5)) == "holds only 0.5, everywhere"
    x[:31] = 0
    assert ternary.damage_of_floats(x) is None
    x[31] = 0
    assert ternary.damage_of_floats(x) == "has 32 rows of zeros among its 64"
    assert ternary.damage_of_floats(np.float32([0, 0, 0, 1])) == "has 3 zeros among its 4"


@pytest.mark.parametrize("group", [32, 128, 256, 1024])
def test_groups_of_one_scale_are_seen(group: int) -> None:
    rng = np.random.default_rng(4)
    w = rng.integers(-1, 2, (16, 1024)).astype(np.float32)
    scales = rng.uniform(0.1, 1, (16, 1024 // group)).astype(np.float32)
    assert ternary.scale_group(w * np.repeat(scales, group, axis=1)) == group
    assert ternary.scale_group(rng.normal(0, 1, (16, 1024)).astype(np.float32)) is None


@pytest.mark.parametrize("size", [1152, 576, 256, 128, 64, 32])
def test_groups_that_are_no_half_of_the_inputs_are_found(size: int) -> None:
    """Of 2,304 inputs, nine times 256."""
    rng = np.random.default_rng(size)
    w = rng.integers(-1, 2, (8, 2304)).astype(np.float32)
    w[:, ::size] = 1
    scales = rng.uniform(0.5, 1.5, (8, 2304 // size)).astype(np.float32)
    values = w * np.repeat(scales, size, axis=1)
    assert ternary.scale_group(values) == size
    values[0, 5] = 0.3  # one weight that is none of the three
    assert ternary.scale_group(values) is None
    assert ternary.scale_group(w[:, :48] * scales[:, :1] * np.repeat([1, 2, 3], 16).astype(np.float32)) is None
