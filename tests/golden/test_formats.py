"""Formats of weights: what every row of the table must keep, and that layout and model need not know which one it is."""

from dataclasses import replace

import numpy as np
import pytest

from tellme.golden import layout, ternary
from tellme.golden.config import KV260, TINY, ULTRA96V2, AcceleratorConfig
from tellme.golden.formats import FORMATS, GROUPED, TERNARY, WeightFormat
from tellme.golden.formats.packed_ternary import PackedTernary
from tellme.golden.ternary import WeightError
from tests.formats import TwoBits, with_format

BYTES = pytest.mark.parametrize("form", [TERNARY, TwoBits()], ids=lambda f: f.name)
"""Those of which every byte is like every other."""
ALL = pytest.mark.parametrize("form", [*FORMATS.values(), TwoBits()], ids=lambda f: f.name)


@ALL
def test_bytes_of_a_format_unpack_to_what_was_packed(form: WeightFormat) -> None:
    rng = np.random.default_rng(1)
    for n in (1, 4, 5, 7, 40):
        w = rng.integers(-1, 2, (3, n)).astype(form.dtype)
        if form.group:
            w *= form.largest
        packed = form.pack(w)
        unit = max(1, form.group // form.weights_per_byte)
        assert (
            packed.shape == (3, -(-n // (unit * form.weights_per_byte)) * unit) and form.first_invalid(packed) is None
        )
        assert (form.unpack(packed, n) == w).all()
    assert form.group or (form.pack(np.zeros(3 * form.weights_per_byte, np.int8)) == form.zero).all()
    assert form.beat_weights(16) == 16 * form.weights_per_byte


@BYTES
def test_bytes_that_are_no_weights_are_found_and_refused(form: WeightFormat) -> None:
    bad = [b for b in range(256) if form.invalid(np.uint8(b))]
    assert bad and form.zero not in bad
    for b in bad:
        data = np.full((2, 3), form.zero, np.uint8)
        data[1, 2] = b
        assert form.first_invalid(data) == (1, 2)
        with pytest.raises(WeightError, match=rf"{form.rule}; found {b} at \(1, 2\)"):
            form.unpack(data)


@BYTES
@pytest.mark.parametrize("value", [2, -2, 100])
def test_weights_beyond_a_format_are_refused(form: WeightFormat, value: int) -> None:
    with pytest.raises(WeightError, match=rf"found {value} at \(1,\)"):
        form.pack(np.array([0, value], np.int8))


@ALL
def test_holes_in_packed_rows_are_seen(form: WeightFormat) -> None:
    w = np.random.default_rng(2).integers(-1, 2, (64, 640)).astype(np.int8)
    assert form.damage(form.pack(w)) is None
    rows = form.pack(w)
    rows[32:] = 0  # what a file that was not written reads as
    assert "weights of -1 at row 32" in str(form.damage(rows))


@ALL
@pytest.mark.parametrize("base", [TINY, KV260], ids=lambda c: c.name)
def test_matrices_are_laid_out_in_any_format(form: WeightFormat, base: AcceleratorConfig) -> None:
    config = with_format(base, form)
    assert config.beat_weights == base.beat_bytes * form.weights_per_byte
    w = np.random.default_rng(3).integers(-1, 2, (72, 333)).astype(np.int8)
    beats = layout.pack_linear(w, config, 64)
    assert len(beats) == 72 * layout.tiles(333, config)
    first = np.zeros(config.beat_weights, np.int8)
    first[: min(333, config.beat_weights)] = w[0, : config.beat_weights]
    assert (beats[0] == form.pack(first)).all()
    assert (layout.unpack_linear(beats, 72, 333, config, 64) == w).all()
    whole = form.whole_bytes(333) * form.weights_per_byte
    assert (form.unpack(layout.packed_rows(beats, 72, 333, config, 64)) == w[:, :whole]).all()


def test_accumulators_are_as_wide_as_the_largest_weight_asks() -> None:
    class Wide(PackedTernary):
        largest = 7

    for form, base in ((TERNARY, TINY), (TERNARY, KV260), (GROUPED, TINY), (GROUPED, KV260), (Wide(), TINY)):
        config = with_format(base, form)
        most = config.max_features * (128 << form.activation_bits) * form.largest
        assert -(1 << config.row_width - 1) < -most and most < 1 << config.row_width - 1
        assert most >= 1 << config.row_width - 3


def test_another_format_is_another_configuration_only_by_its_format() -> None:
    config = with_format(TINY, TwoBits())
    assert replace(config, name="x").beat_weights == 64 and TINY.beat_weights == 80


# ---- grouped ---------------------------------------------------------------------------------------------------------


def grouped(rng: np.random.Generator, rows: int, inputs: int) -> np.ndarray:
    """Integer weights with a scale for every 64, among them 0, 1 and the largest."""
    scales = rng.integers(1, GROUPED.largest + 1, (rows, -(-inputs // 64)))
    scales.flat[:3] = 0, 1, GROUPED.largest
    return np.asarray(rng.integers(-1, 2, (rows, inputs)) * np.repeat(scales, 64, axis=1)[:, :inputs], np.int16)


def test_a_group_is_13_bytes_of_weights_its_scale_and_a_spare_byte() -> None:
    w = np.zeros((1, 128), np.int16)
    w[0, 0], w[0, 63], w[0, 64:128] = 258, -258, 7
    packed = GROUPED.pack(w)[0]
    # 1 + 1 + 1 + 1 + 2 ... as digits to base 3, the first lowest: 2,1,1,1,1 and 1,1,1,0,(1).
    assert packed[:16].tolist() == [2 + 3 + 9 + 27 + 81, *[121] * 11, 1 + 3 + 9 + 0 + 81, 2, 1, 0]
    assert packed[16:].tolist() == [242] * 12 + [2 + 6 + 18 + 54 + 81, 7, 0, 0]


@pytest.mark.parametrize("base", [TINY, KV260, ULTRA96V2], ids=lambda c: c.name)
def test_grouped_matrices_take_two_bits_a_weight_in_beats_of_any_size(base: AcceleratorConfig) -> None:
    config = replace(base, weight_format="grouped")
    rng = np.random.default_rng(4)
    assert config.beat_weights == 4 * config.beat_bytes and config.tile_words == 16
    for inputs in (64, 100, 1024, 999):
        w = grouped(rng, 24, inputs)
        beats = layout.pack_linear(w, config, 16)
        assert len(beats) == 24 * -(-inputs // config.beat_weights)
        assert (layout.unpack_linear(beats, 24, inputs, config, 16) == w).all()
        rows = layout.packed_rows(beats, 24, inputs, config, 16)
        assert (GROUPED.unpack(rows) == w[:, : inputs // 64 * 64]).all() and GROUPED.damage(rows) is None


@pytest.mark.parametrize("place,value", [(0, 243), (12, 0), (12, 200), (14, 128), (15, 1), (28, 80)])
def test_bytes_that_are_no_grouped_weights_are_found(place: int, value: int) -> None:
    data = GROUPED.pack(grouped(np.random.default_rng(5), 2, 128))
    assert GROUPED.first_invalid(data) is None
    data[1, place] = value
    assert GROUPED.first_invalid(data) == (1, place)
    with pytest.raises(WeightError, match=rf"found {value} at \(1, {place}\)"):
        GROUPED.unpack(data)


def test_groups_with_two_scales_or_a_scale_of_16_bits_are_refused() -> None:
    w = np.zeros((2, 128), np.int32)
    w[1, 64], w[1, 70] = 5, -6
    with pytest.raises(WeightError, match=r"with one s up to 32767; found -6 at \(1, 70\)"):
        GROUPED.pack(w)
    w[1, 64] = w[1, 70] = 32768
    with pytest.raises(WeightError, match=r"found 32768 at \(1, 64\)"):
        GROUPED.pack(w)


def test_float16_scales_down_to_a_sixteenth_of_the_largest_are_exact_integers() -> None:
    rng = np.random.default_rng(6)
    w = rng.integers(-1, 2, (16, 256)).astype(np.int8)
    scales = rng.uniform(0.065, 1, (16, 4)).astype(np.float16).astype(np.float32)
    integers, unit = ternary.group_integers(w, scales, 64)
    assert (integers * np.float64(unit) == w * np.repeat(scales.astype(np.float64), 64, axis=1)).all()
    assert np.frexp(unit)[0] == 0.5 and np.abs(integers).max() > 1 << 14
    # Groups of 128 have each scale twice, of 32 they may differ where only one is used.
    twice, _ = ternary.group_integers(w, scales[:, ::2], 128)
    assert (twice == ternary.group_integers(w, np.repeat(scales[:, ::2], 2, axis=1), 64)[0]).all()
    tiny = scales.copy()
    tiny[0, 0] = 1e-7
    assert not ternary.group_integers(w, tiny, 64)[0][0, :64].any()
