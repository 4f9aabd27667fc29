"""What holds for any input of a format: packing and its inverse, files of other writers and our readers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from tellme.golden import layout, ternary
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.formats import TERNARY
from tellme.golden.model import ModelError, ModelSpec, RopeScaling, rope_tables
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.checkpoints.tensors import Tensors
from tellme.host.image.file import Image, Plan, write_image
from tellme.host.image.model import read_spec
from tests.host.support import WORD, config_json, pack, tensors_of, write_folder
from tests.models import PARTS, random_weights, small_spec

CONFIGS = st.sampled_from([TINY, WORD, KV260])
QUICK = settings(max_examples=40, deadline=None, derandomize=True)


def trits(shape: Any) -> st.SearchStrategy[Any]:
    return hnp.arrays(np.int8, shape, elements=st.integers(-1, 1))


@QUICK
@given(trits(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=33)))
def test_five_weights_a_byte_come_back(w: np.ndarray) -> None:
    packed = TERNARY.pack(w)
    assert packed.shape == (*w.shape[:-1], -(-w.shape[-1] // 5)) and packed.max() <= 242
    np.testing.assert_array_equal(TERNARY.unpack(packed, w.shape[-1]), w)
    by_hand = sum(
        (int(v) + 1) * 3**j for j, v in enumerate(np.resize(np.pad(w.reshape(-1)[:5], (0, 5)), 5)[: w.shape[-1]])
    )
    if w.ndim == 1 and len(w) >= 5:
        assert packed[0] == by_hand


@QUICK
@given(st.data(), CONFIGS, st.integers(1, 12), st.integers(1, 700), st.integers(1, 8))
def test_matrices_come_back_from_their_beats(
    data: Any, config: AcceleratorConfig, rows: int, inputs: int, block: int
) -> None:
    seed = data.draw(st.integers(0, 1 << 30))
    w = np.random.default_rng(seed).integers(-1, 2, (8 * rows, inputs)).astype(np.int8)
    beats = layout.pack_linear(w, config, 8 * block)
    np.testing.assert_array_equal(layout.unpack_linear(beats, 8 * rows, inputs, config, 8 * block), w)
    # Block by block, as an image is written.
    pieces = [layout.pack_linear(w[i : i + 8 * block], config, 8 * block) for i in range(0, len(w), 8 * block)]
    np.testing.assert_array_equal(np.concatenate(pieces), beats)


@QUICK
@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.floats(-100, 100, width=32)
    )
)
def test_latent_weights_in_parts_are_what_they_are_together(latent: np.ndarray) -> None:
    w, scale = ternary.quantise(latent)
    assert set(np.unique(w)) <= {-1, 0, 1} and scale >= np.float32(1e-5)
    parts = [ternary.quantise(latent[i : i + 3], scale)[0] for i in range(0, len(latent), 3)]
    np.testing.assert_array_equal(np.concatenate(parts), w)
    assert (np.sign(latent) * w >= 0).all()


SHAPES = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12).filter(lambda n: n != "__metadata__"),
    st.tuples(st.sampled_from([np.float64, np.float32, np.float16, np.uint8, np.int8]), hnp.array_shapes(max_dims=3, max_side=5)),
    min_size=1,
    max_size=6,
)  # fmt: skip


@QUICK
@given(SHAPES, st.integers(0, 1 << 30), st.integers(1, 9))
def test_tensors_of_the_format_s_own_writer_are_read(shapes: dict[str, Any], seed: int, piece: int) -> None:
    rng = np.random.default_rng(seed)
    tensors = {n: (rng.normal(0, 50, s).astype(d)) for n, (d, s) in shapes.items()}
    with tempfile.TemporaryDirectory() as name:
        save_file(tensors, Path(name) / "model.safetensors")
        got = Tensors(Path(name))
        assert set(got) == set(tensors)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tellme.host.checkpoints.tensors.PIECE", piece)
            for n, value in tensors.items():
                assert got.shape(n) == value.shape
                rows = np.concatenate([p for _, p in got.pieces(n)])
                np.testing.assert_array_equal(rows, value.reshape(rows.shape))
                if value.dtype.kind == "f":
                    np.testing.assert_array_equal(got.float32(n, value.shape), value.astype(np.float32))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 20), st.booleans(), st.booleans(), st.sampled_from(["packed", "divide", "latent"]))
def test_checkpoints_of_any_kind_keep_their_weights(seed: int, tied: bool, norms: bool, kind: str) -> None:
    spec = small_spec(
        hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, vocab=9, tied=tied, attn_sub_norm=norms, ffn_sub_norm=norms
    )
    weights = random_weights(spec, seed)
    config = config_json(spec)
    config["quantization_config"]["linear_class"] = "bitlinear" if kind == "divide" else "autobitlinear"
    with tempfile.TemporaryDirectory() as name:
        folder = write_folder(
            Path(name) / "m", config, tensors_of(weights, latent=kind == "latent", divide=kind == "divide")
        )
        got = read_checkpoint(folder).weights.layers[0]
    for part in PARTS:
        np.testing.assert_array_equal(getattr(got, part), getattr(weights.layers[0], part))


@QUICK
@given(trits(st.tuples(st.integers(1, 9).map(lambda n: 4 * n), st.integers(1, 9))))
def test_two_bit_packing_has_no_code_three(w: np.ndarray) -> None:
    packed = pack(w)
    assert not (packed & packed >> 1 & 0x55).any()


PIECES = st.lists(st.integers(0, 40), max_size=4)


@QUICK
@given(CONFIGS, st.lists(PIECES, max_size=4), st.lists(st.binary(max_size=300), max_size=3), st.integers(0, 1 << 30))
def test_images_hold_any_sections_and_parts(
    config: AcceleratorConfig, sizes: Any, blobs: list[bytes], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    contents = [[rng.integers(0, 256, (n, config.beat_bytes), dtype=np.uint8) for n in pieces] for pieces in sizes]
    plans = [
        Plan(f"s{i}", sum(map(len, pieces)), lambda i=i, pieces=pieces: ({"i": i}, pieces))
        for i, pieces in enumerate(contents)
    ]
    parts = {f"b{i}": b for i, b in enumerate(blobs)}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.tlm"
        write_image(path, config=config, model={"m": 1}, sections=plans, blobs=parts)
        image = Image(path)
        for i, pieces in enumerate(contents):
            expected = np.concatenate([np.zeros((0, config.beat_bytes), np.uint8), *pieces])
            np.testing.assert_array_equal(image.section(f"s{i}"), expected)
            assert image.sections[f"s{i}"].info == {"i": i}
        assert {n: image.blob(n).tobytes() for n in image.blobs} == parts


@QUICK
@given(
    st.fixed_dictionaries(
        {},
        optional={n: st.one_of(st.integers(-5, 300), st.floats(), st.booleans(), st.text(max_size=3), st.none())
                  for n in ("hidden", "layers", "heads", "head_dim", "rope_theta", "norm_eps", "tied", "activation", "rope_scaling",
                            "unknown")},
    )
)  # fmt: skip
def test_a_specification_is_read_or_refused(changes: dict[str, Any]) -> None:
    values = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 32, "ffn": 96, "vocab": 50}
    try:
        spec = read_spec(values | changes)
    except (ValueError, ModelError):
        assert changes
        return
    assert isinstance(spec, ModelSpec) and "unknown" not in changes


@QUICK
@given(
    st.floats(1, 64),
    st.floats(0.25, 4),
    st.floats(1.125, 16),
    st.integers(16, 8192),
    st.sampled_from(["linear", "llama3"]),
)
def test_scaled_rotary_frequencies_lie_between_whole_and_divided(
    factor: float, low: float, ratio: float, context: int, kind: Any
) -> None:
    """Measured on the angle of position 1: every frequency is divided by something from 1 to `factor`, later ones by more."""
    scaling = RopeScaling(
        kind=kind, factor=factor, low_freq_factor=low, high_freq_factor=low * ratio, original_context=context
    )
    spec = small_spec(rope_theta=1000.0)
    plain = rope_tables(spec, 2)[1][1].astype(np.float64)
    scaled = rope_tables(ModelSpec(**{**vars(spec), "rope_scaling": scaling}), 2)[1][1].astype(np.float64)
    ratios = np.arcsin(plain) / np.arcsin(scaled)
    assert (ratios > 1 - 1e-4).all() and (ratios < factor * (1 + 1e-4)).all()
    assert (np.diff(ratios) > -1e-3 * factor).all()
