"""Outliers of the head's columns, moved into the gain before it: the same model in float, a closer one in int8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tellme.golden.config import TINY
from tellme.golden.head import quantise_rows
from tellme.golden.model import GoldenModel
from tellme.host.checkpoints.balance import MOST, factors
from tellme.host.checkpoints.checkpoint import open_checkpoint, with_int8_inputs
from tellme.host.image.model import Model, convert, demo_folder
from tests.host.checkpoints.gguf_support import model as gguf_model
from tests.host.checkpoints.gguf_support import write_gguf
from tests.host.support import config_json, tensors_of, write_folder
from tests.models import random_weights, small_spec
from tests.oracle.families import FAMILIES, checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ONES = np.ones(8, np.float32)


def at(value: float) -> NDArray[np.float32]:
    out = ONES.copy()
    out[3] = value
    return out


@pytest.mark.filterwarnings("error")
def test_what_overflows_is_left_alone_without_a_warning():
    tiny = np.full(8, 1e-38, np.float32)
    tiny[3] = 3e38
    assert np.isfinite(factors(tiny, tiny, ONES)).all() and factors(tiny, tiny, ONES)[3] == 1


@pytest.mark.parametrize(
    ("column", "gain", "stream", "want"),
    [
        (1.0, 1.0, 1.0, 1.0),
        (2.0, 0.5, 1.0, 1.0),  # an exponent of 1 is left alone
        (4.0, 0.25, 1.0, 4.0),
        (1.0, 64.0, 1.0, 0.125),  # a gain alone
        (64.0, 1.0, 1.0, 8.0),  # a column alone
        (64.0, 1.0, 64.0, 1.0),  # large in all: nothing helps
        (1.0, 1 / 64, 64.0, 1.0),  # the gain brings the stream back
        (1e4, 1e-8, 1e4, 2.0**13),
        (1.0, 1.0, 1e-3, 1.0),  # what is small at first may grow
        (0.0, 1.0, 1.0, 1.0),
        (1e4, 0.0, 1.0, 1.0),
        (1e30, 1e-30, 1.0, 2.0**MOST),
    ],
)
def test_factors_are_powers_of_two_that_make_both_equally_large(
    column: float, gain: float, stream: float, want: float
) -> None:
    got = factors(at(column), -at(gain), at(stream))
    assert got.dtype == np.float32 and (np.delete(got, 3) == 1).all()
    assert got[3] == want


def test_nothing_known_is_nothing_moved() -> None:
    zeros = np.zeros(8, np.float32)
    assert (factors(zeros, zeros, zeros) == 1).all() and (factors(ONES, zeros, zeros) == 1).all()


@pytest.mark.parametrize("folder", [demo_folder(), *map(checkpoint, FAMILIES)], ids=lambda f: f.name)
def test_ordinary_models_stay_as_they_are(folder: Path) -> None:
    assert open_checkpoint(folder).moved is None


def outlier(folder: Path, tied: bool) -> tuple[Path, NDArray[np.float64], NDArray[np.float64]]:
    """A checkpoint with a feature of 1e4 in its head, of which the gain makes little; head and last gain in float64."""
    spec = small_spec(vocab=50, tied=tied)
    tensors = tensors_of(random_weights(spec, 1))
    rows = tensors[EMBEDDING if tied else HEAD].astype(np.float32)
    rows[:, 3] = 1e4 * (1 + np.arange(len(rows)) / len(rows)) * np.sqrt(np.square(rows).mean())
    tensors[EMBEDDING if tied else HEAD] = rows
    gain = tensors["model.norm.weight"].astype(np.float32)
    gain[3] *= 1e-8 if tied else 1e-4
    tensors["model.norm.weight"] = gain
    return write_folder(folder, config_json(spec), tensors), rows.astype(np.float64), gain.astype(np.float64)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_with_an_outlier_keeps_its_other_features(tmp_path: Path, tied: bool) -> None:
    folder, rows, gain = outlier(tmp_path / "m", tied)
    read = open_checkpoint(folder)
    assert read.moved is not None and read.moved[3] > 1e3 and (np.delete(read.moved, 3) == 1).all()
    codes, scales = read.weights.head_rows
    held = codes * scales[:, None].astype(np.float64) * read.weights.norm
    plain, steps = quantise_rows(rows.astype(np.float32))
    others = np.arange(rows.shape[1]) != 3
    want = (rows * gain)[:, others]
    lost = np.abs(plain * steps[:, None].astype(np.float64) * gain - rows * gain)[:, others]
    kept = np.abs(held - rows * gain)[:, others]
    assert kept.max() < 0.01 * np.abs(want).max() and lost.max() > 0.5 * np.abs(want).max()
    np.testing.assert_allclose(held[:, 3], rows[:, 3] * gain[3], rtol=0.02)
    # Through the image, and what tokens begin with stays the checkpoint's own.
    convert(read, tmp_path / "m.tlm", TINY)
    with Model.open(tmp_path / "m.tlm", TINY) as model:
        again = model.weights()
        for name in ("norm", "inputs", *(("embedding",) if tied else ("head", "head_scales"))):
            np.testing.assert_array_equal(getattr(again, name), getattr(read.weights, name))
        got = GoldenModel(again, TINY).embed([0, 7])
        np.testing.assert_array_equal(got, read.weights.inputs[[0, 7]] if tied else model.embed([0, 7]))


def test_int8_rows_that_tokens_begin_with_are_the_embedding_s_own(tmp_path: Path) -> None:
    """A tied model's head then is what it was: there is one matrix for both."""
    folder, rows, gain = outlier(tmp_path / "m", True)
    weights = with_int8_inputs(open_checkpoint(folder)).weights
    codes, scales = quantise_rows(rows.astype(np.float32))
    np.testing.assert_array_equal(weights.embedding, codes)
    np.testing.assert_array_equal(weights.embedding_scales, scales)
    np.testing.assert_array_equal(weights.norm, gain.astype(np.float32))
    assert with_int8_inputs(with_int8_inputs(open_checkpoint(folder))).moved is None


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_files_are_balanced_as_folders_are(tmp_path: Path, tied: bool) -> None:
    weights = gguf_model(tied=tied)
    norm = weights.norm.copy()
    norm[3] *= np.float32(2.0**12)
    weights = replace(weights, norm=norm)
    folder = write_folder(tmp_path / "m", config_json(weights.spec), tensors_of(weights))
    read = [open_checkpoint(folder), open_checkpoint(write_gguf(tmp_path / "m.gguf", weights))]
    for r in read:
        assert r.moved is not None and r.moved[3] < 1
    np.testing.assert_array_equal(read[0].moved, read[1].moved)
