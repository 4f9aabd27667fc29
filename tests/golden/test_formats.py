"""Formats of weights: what every row of the table must keep, and that layout and model need not know which one it is."""

from dataclasses import replace

import numpy as np
import pytest

from tellme.golden import layout
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.formats import FORMATS, TERNARY, WeightFormat
from tellme.golden.formats.packed_ternary import PackedTernary
from tellme.golden.ternary import WeightError
from tests.formats import TwoBits, with_format

ALL = pytest.mark.parametrize("form", [*FORMATS.values(), TwoBits()], ids=lambda f: f.name)


@ALL
def test_bytes_of_a_format_unpack_to_what_was_packed(form: WeightFormat) -> None:
    rng = np.random.default_rng(1)
    for n in (1, 4, 5, 7, 40):
        w = rng.integers(-form.largest, form.largest + 1, (3, n)).astype(np.int8)
        packed = form.pack(w)
        assert packed.shape == (3, -(-n // form.weights_per_byte)) and form.first_invalid(packed) is None
        assert (form.unpack(packed, n) == w).all()
    assert (form.pack(np.zeros(3 * form.weights_per_byte, np.int8)) == form.zero).all()
    assert form.beat_weights(16) == 16 * form.weights_per_byte


@ALL
def test_bytes_that_are_no_weights_are_found_and_refused(form: WeightFormat) -> None:
    bad = [b for b in range(256) if form.invalid(np.uint8(b))]
    assert bad and form.zero not in bad
    for b in bad:
        data = np.full((2, 3), form.zero, np.uint8)
        data[1, 2] = b
        assert form.first_invalid(data) == (1, 2)
        with pytest.raises(WeightError, match=rf"{form.rule}; found {b} at \(1, 2\)"):
            form.unpack(data)


@ALL
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

    for form, base in ((TERNARY, TINY), (TERNARY, KV260), (Wide(), TINY)):
        config = with_format(base, form)
        most = config.max_features * 128 * form.largest
        assert -(1 << config.row_width - 1) < -most and most < 1 << config.row_width - 1
        assert most >= 1 << config.row_width - 3


def test_another_format_is_another_configuration_only_by_its_format() -> None:
    config = with_format(TINY, TwoBits())
    assert replace(config, name="x").beat_weights == 64 and TINY.beat_weights == 80
