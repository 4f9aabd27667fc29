"""GGUF files give the same model as its Hugging Face form; whatever is wrong with one is one line."""

from __future__ import annotations

import json
import math
import re
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gguf
import numpy as np
import pytest
import sentencepiece
from gguf import GGMLQuantizationType as T
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from typer.testing import CliRunner

from tellme.golden import head
from tellme.golden.config import TINY
from tellme.golden.model import GoldenModel, ModelWeights, RopeScaling
from tellme.host import cli
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.checkpoints.gguf import read_gguf
from tellme.host.checkpoints.gguf.elements import unpack_i2_s, unpack_tq1_0, unpack_tq2_0
from tellme.host.checkpoints.gguf.spec import _gate
from tellme.host.checkpoints.gguf.tensors import Gguf
from tellme.host.errors import UserError
from tellme.host.image.model import Model, convert
from tellme.host.text.tokenizer import Files, Tokenizer
from tests.host.checkpoints.gguf_support import AS_IS, I2_S, demo_vocabulary, half_scales, model, pack_i2_s, write_gguf
from tests.host.checkpoints.test_checkpoint import LFS, assert_same
from tests.host.support import DEMO, config_json, tensors_of, write_folder
from tests.host.text.test_vocabulary import TEXTS, train
from tests.models import PARTS

TERNARY = [I2_S, T.TQ1_0, T.TQ2_0]


SOME = settings(max_examples=40, deadline=None, derandomize=True)


def hf_form(path: Path, weights: ModelWeights) -> ModelWeights:
    """The model read from its Hugging Face folder."""
    return read_checkpoint(write_folder(path, config_json(weights.spec), tensors_of(weights))).weights


# ---- blocks ----------------------------------------------------------------------------------------------------------


@given(hnp.arrays(np.int8, st.tuples(st.integers(1, 5), st.just(128)), elements=st.integers(-1, 1)))
@SOME
def test_i2_s_blocks_unpack_to_what_was_packed(w: NDArray[np.int8]):
    packed = pack_i2_s(w, 0.5).view(np.uint8)
    assert len(packed) == w.size // 4 + 32 and packed[w.size // 4 :][:4].view("<f4")[0] == 0.5
    np.testing.assert_array_equal(unpack_i2_s(packed[: w.size // 4].reshape(-1, 32)), w + 1)


@given(
    hnp.arrays(np.int8, st.tuples(st.integers(1, 4), st.just(256)), elements=st.integers(-1, 1)), st.floats(1e-4, 1e3)
)
@SOME
def test_tq_blocks_unpack_to_what_the_package_packed(w: NDArray[np.int8], scale: float):
    for kind, unpack in ((T.TQ1_0, unpack_tq1_0), (T.TQ2_0, unpack_tq2_0)):
        codes, scales = unpack(gguf.quants.quantize(w * np.float32(scale), kind))
        np.testing.assert_array_equal(codes.view(np.int8) - 1, w)
        np.testing.assert_array_equal(scales, np.where(w.any(1), np.float32(np.float16(scale)), 0))


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(54))))
@SOME
def test_every_byte_of_tq1_0_decodes_as_in_the_package(data: NDArray[np.uint8]):
    data[:, 52:] = np.float16(1).reshape(1).view(np.uint8)
    codes, _ = unpack_tq1_0(data)
    assert codes.max() <= 2
    np.testing.assert_array_equal(codes.astype(np.float32) - 1, gguf.quants.dequantize(data, T.TQ1_0))


# ---- the same model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TERNARY)
@pytest.mark.parametrize("architecture", ["bitnet", "bitnet-b1.58", "bitnet-25", "llama"])
def test_ternary_payload_equals_the_hugging_face_form(tmp_path: Path, architecture: str, kind: int):
    norms = architecture != "llama"
    activation = "relu2" if "-" in architecture else "silu"
    weights = model(attn_sub_norm=norms, ffn_sub_norm=norms, activation=activation, rope_theta=5e5)
    want = hf_form(tmp_path / "hf", weights)
    got = read_gguf(write_gguf(tmp_path / "m.gguf", weights, architecture, kind))
    assert_same(got.weights, want, scales=kind == I2_S)
    for a, b in zip(got.weights.layers, want.layers, strict=True):
        for part in PARTS:
            scale = getattr(b, f"{part}_scale")
            assert getattr(a, f"{part}_scale") == (scale if kind == I2_S else float(np.float16(scale)))
    assert (got.name, got.eos_ids) == ("m", (1,))


@pytest.mark.parametrize(
    ("architecture", "kind", "embedding", "tied"),
    [
        ("bitnet", T.TQ1_0, T.F32, True),
        ("bitnet", I2_S, T.BF16, False),
        ("bitnet-b1.58", T.TQ2_0, T.F16, False),
        ("bitnet-b1.58", I2_S, T.F16, True),
        ("llama", T.TQ2_0, T.F32, True),
        ("llama", T.BF16, T.F16, False),
    ],
)
def test_converted_files_give_the_logits_of_the_hugging_face_form(
    tmp_path: Path, architecture: str, kind: int, embedding: T, tied: bool
):
    norms = architecture != "llama"
    activation = "relu2" if architecture == "bitnet-b1.58" else "silu"
    weights = half_scales(model(3, attn_sub_norm=norms, ffn_sub_norm=norms, activation=activation, tied=tied))
    tensors = tensors_of(weights)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            stored = tensors[name] if embedding == T.F32 else gguf.quants.quantize(tensors[name], embedding)
            tensors[name] = stored if embedding == T.F32 else gguf.quants.dequantize(stored, embedding)
    want = read_checkpoint(write_folder(tmp_path / "hf", config_json(weights.spec), tensors)).weights
    checkpoint = read_gguf(write_gguf(tmp_path / "m.gguf", weights, architecture, kind, embedding=embedding))
    convert(checkpoint, tmp_path / "m.tlm", TINY)
    with Model.open(tmp_path / "m.tlm", TINY) as opened:
        assert opened.spec == weights.spec
        ids = opened.tokenizer.encode("Once upon a time")
        got = GoldenModel(opened.weights(), TINY).run_pass(ids[:4], range(4), [0] * 4)
    np.testing.assert_array_equal(got.logits, GoldenModel(want, TINY).run_pass(ids[:4], range(4), [0] * 4).logits)


@pytest.mark.parametrize("kind", [*TERNARY, T.F32, T.F16, T.Q8_0])
def test_a_scale_tensor_multiplies_the_blocks_scale(tmp_path: Path, kind: int):
    weights = model()
    got = read_gguf(write_gguf(tmp_path / "m.gguf", weights, kind=kind, unit_scales=True)).weights
    assert_same(got, weights, embedding=False, scales=kind != T.Q8_0)
    assert got.layers[0].q_scale == pytest.approx(weights.layers[0].q_scale, rel=1e-3)


@pytest.mark.parametrize("kind", TERNARY)
def test_blocks_and_matrices_of_zeros(tmp_path: Path, kind: int):
    weights = model(layers=1)
    q = weights.layers[0].q.copy()
    q[:5] = 0
    q[7, :128] = 0
    layer = replace(weights.layers[0], q=q)
    weights = replace(weights, layers=[layer])
    got = read_gguf(write_gguf(tmp_path / "m.gguf", weights, kind=kind)).weights.layers[0]
    np.testing.assert_array_equal(got.q, layer.q)
    assert got.q_scale == pytest.approx(layer.q_scale, rel=2**-11)


@pytest.mark.parametrize("kind", [*TERNARY, T.F32, T.F16, T.BF16])
@pytest.mark.parametrize(
    ("rows", "value", "message"),
    [
        (slice(None), -1, "holds only -1"),
        (slice(None), 0, "holds only zeros"),
        (slice(None), 1, r"holds only \+1"),
        (slice(128, None), 0, "has 128 rows of zeros among its 256"),
        (slice(200, 201), -1, "holds 128 neighbouring weights of -1 at row 200, column 0"),
    ],
)
def test_damaged_matrices_are_refused_in_every_type(tmp_path: Path, kind: int, rows: slice, value: int, message: str):
    weights = half_scales(model(layers=1))
    up = weights.layers[0].up.copy()
    up[rows] = value
    weights = replace(weights, layers=[replace(weights.layers[0], up=up)])
    file = write_gguf(tmp_path / "m.gguf", weights, kind=kind)
    match = f"m.gguf: tensor blk.0.ffn_up.weight {message}; the checkpoint is broken .damaged."
    with pytest.raises(UserError, match=match):
        list(read_gguf(file).weights.layers)


@pytest.mark.parametrize("kind", TERNARY)
def test_payloads_of_zero_bytes_are_refused_in_every_type(tmp_path: Path, kind: int):
    """Codes alone, scales kept; then all of it."""

    def spoiled(scales: bool) -> dict[str, Any]:
        if kind == I2_S:
            return {Q: (np.full((256, 256), -1, np.int8), I2_S)}
        raw = gguf.quants.quantize(np.float32(model(layers=1).layers[0].q) * 0.5, T(kind))
        blocks = raw.reshape(-1, gguf.GGML_QUANT_SIZES[T(kind)][1])
        blocks[:, :-2] = 0
        if scales:
            blocks[:, -2:] = 0
        return {Q: (raw, kind)}

    for scales in (False, True):
        file = write_gguf(tmp_path / "m.gguf", model(layers=1), kind=kind, tensors=spoiled(scales))
        with pytest.raises(
            UserError, match="tensor blk.0.attn_q.weight holds only (-1|zeros); the checkpoint is broken"
        ):
            list(read_gguf(file).weights.layers)


def test_a_block_of_scale_0_is_zeros_whatever_its_codes(tmp_path: Path):
    o = gguf.quants.quantize(np.float32(small(hidden=256).layers[0].q) * 0.5, T.TQ2_0)
    o[3, :64], o[3, 64:] = 0xE4, 0  # codes 0, 1, 2, 3
    got = read_gguf(write_gguf(tmp_path / "m.gguf", small(hidden=256), tensors={Q: (o, T.TQ2_0)})).weights.layers[0]
    want = small(hidden=256).layers[0].q.copy()
    want[3] = 0
    np.testing.assert_array_equal(got.q, want)


@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16, T.Q8_0, T.Q5_0, T.Q4_0, T.Q4_1, T.Q5_1, T.TQ2_0])
def test_embeddings_of_every_type_are_decoded_as_the_package_does(tmp_path: Path, kind: T):
    weights = model(tied=False)
    got = read_gguf(write_gguf(tmp_path / "m.gguf", weights, embedding=kind)).weights
    hf = tensors_of(weights)
    for name, rows, scales in (
        ("model.embed_tokens.weight", got.embedding, got.embedding_scales),
        ("lm_head.weight", got.head, got.head_scales),
    ):
        x = hf[name] if kind == T.F32 else gguf.quants.dequantize(gguf.quants.quantize(hf[name], kind), kind)
        want, want_scales = head.quantise_rows(x)
        np.testing.assert_array_equal(rows, want)
        np.testing.assert_array_equal(scales, want_scales)


@pytest.mark.parametrize("kind", [T.Q6_K, T.Q4_K, T.Q5_K, T.Q3_K, T.Q2_K])
def test_embeddings_of_k_types_which_the_package_only_decodes(tmp_path: Path, kind: T):
    rng = np.random.default_rng(2)
    raw = rng.integers(0, 48, (1024, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)  # every float16 of such bytes is finite
    tensors = {"token_embd.weight": (raw, kind)}
    weights = model(layers=1)
    got = read_gguf(write_gguf(tmp_path / "m.gguf", weights, tensors=tensors)).weights
    rows = gguf.quants.dequantize(raw, kind)
    np.testing.assert_array_equal(got.inputs, rows)
    moved = got.norm / weights.norm  # outliers of such columns are in the gain
    np.testing.assert_array_equal(np.exp2(np.rint(np.log2(moved))), moved)
    np.testing.assert_array_equal(got.embedding, head.quantise_rows(rows / moved)[0])


def test_latent_matrices_are_quantised_when_asked_for(tmp_path: Path):
    weights = model()
    latent = np.random.default_rng(3).normal(0, 0.02, weights.layers[0].q.shape).astype(np.float32)
    hf = tensors_of(weights)
    hf["model.layers.0.self_attn.q_proj.weight"] = latent
    del hf["model.layers.0.self_attn.q_proj.weight_scale"]
    file = write_gguf(tmp_path / "m.gguf", weights, tensors={"blk.0.attn_q.weight": (latent, T.F32)})
    message = r"tensor blk.0.attn_q.weight: its weights are not ternary: magnitudes .* \(row 0, column \d+\); .* with --latent"
    with pytest.raises(UserError, match=message):
        list(read_gguf(file).weights.layers)
    want = read_checkpoint(write_folder(tmp_path / "hf", config_json(weights.spec), hf)).weights
    got = read_gguf(file, latent=True).weights
    np.testing.assert_array_equal(got.layers[0].q, want.layers[0].q)
    assert np.float32(got.layers[0].q_scale) == np.float32(want.layers[0].q_scale)
    np.testing.assert_array_equal(got.layers[1].q, weights.layers[1].q)


# ---- shapes and metadata ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2560, 30, 6912, 128256), (1536, 24, 4096, 32002)])
def test_the_shape_of_a_published_model_tells_its_gate(tmp_path: Path, shape: tuple[int, int, int, int]) -> None:
    write_gguf(tmp_path / "m.gguf", model())
    g = Gguf(tmp_path / "m.gguf")
    gate = "relu2" if shape[0] == 2560 else "silu"
    for heads, theta in (((20, 5), 5e5), ((16, 16), 1e4)):
        assert _gate(g, "bitnet-b1.58", shape, heads, theta) == (gate, [])
        for i in range(4):
            other = tuple(n + (i == k) for k, n in enumerate(shape))
            assert _gate(g, "bitnet-b1.58", other, heads, theta)[1]  # something is assumed


def small(**changes: Any) -> ModelWeights:
    """The smallest model with rows of whole I2_S blocks."""
    values: dict[str, Any] = dict(layers=1, hidden=128, heads=4, kv_heads=2, head_dim=32, ffn=128)
    return model(**(values | changes))


@pytest.mark.parametrize(
    ("architecture", "fields", "activation"),
    [
        ("bitnet", {}, "silu"),
        ("bitnet", {"arch__hidden_activation": "relu2"}, "relu2"),
        ("bitnet", {"arch__hidden_activation": "swish"}, "silu"),
        ("bitnet-25", {}, "relu2"),
        ("bitnet-25", {"arch__hidden_activation": "silu"}, "silu"),
        ("bitnet-b1.58", {}, "relu2"),
        ("bitnet-b1.58", {"arch__hidden_activation": "silu"}, "silu"),
        ("bitnet-b1.58", {"arch__hidden_activation": "relu_sqr"}, "relu2"),
        ("bitnet-b1.58", {"arch__hidden_act": "silu"}, "silu"),
        ("bitnet-b1.58", {"bitnet__hidden_activation": "silu"}, "silu"),
        ("bitnet-b1.58", {"arch__hidden_activation": "silu", "arch__hidden_act": "swish"}, "silu"),
        ("llama", {}, "silu"),
        ("llama", {"arch__hidden_activation": "relu2"}, "relu2"),
    ],
)
def test_gate_of_each_architecture(tmp_path: Path, architecture: str, fields: dict[str, Any], activation: str):
    skip = SUB_NORMS if architecture == "llama" else ()
    got = read_gguf(write_gguf(tmp_path / "m.gguf", small(), architecture, skip=skip, **fields))
    assert got.weights.spec.activation == activation
    assert bool(got.notes) == (not fields and architecture != "llama")
    for note in got.notes:
        assert re.match(
            rf"{tmp_path}/m.gguf: does not say its activation \({architecture}.hidden_activation is missing\); "
            rf"{ {'silu': 'SiLU', 'relu2': 'squared ReLU'}[activation] }.* is assumed, as usual for architecture {architecture}. If",
            note,
        )


@pytest.mark.parametrize("architecture", ["bitnet", "bitnet-b1.58", "bitnet-25", "llama"])
@pytest.mark.parametrize("value", ["gelu", "relu", "SiLU", " ", 3, True])
def test_an_activation_that_is_not_known_is_refused_by_name(tmp_path: Path, architecture: str, value: Any):
    file = write_gguf(tmp_path / "m.gguf", small(), architecture, arch__hidden_activation=value)
    with pytest.raises(UserError, match=rf"{architecture}.hidden_activation is {value!r}; supported are silu, swish"):
        read_gguf(file)
    both = {"arch__hidden_activation": "silu", "arch__hidden_act": "relu2"}
    with pytest.raises(
        UserError, match="hidden_activation is 'silu' and .*hidden_act is 'relu2'; correct the wrong one"
    ):
        read_gguf(write_gguf(tmp_path / "n.gguf", small(), architecture, **both))


def test_published_shapes_have_their_gate_without_being_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def gate(architecture: str, **changes: Any) -> tuple[str, int]:
        got = read_gguf(write_gguf(tmp_path / "m.gguf", small(**changes), architecture))
        return got.weights.spec.activation, len(got.notes)

    for name, want in (("_SHAPE_2B_4T", "relu2"), ("_SHAPE_LARGE", "silu")):
        with monkeypatch.context() as m:
            m.setattr(f"tellme.host.checkpoints.gguf.spec.{name}", (128, 1, 128, 1024))
            for architecture in ("bitnet", "bitnet-b1.58", "bitnet-25"):
                assert gate(architecture) == (want, 0)
        assert gate("bitnet", layers=2) == ("silu", 1)


def test_heads_and_rotary_base_of_the_first_generation_tell_its_gate(tmp_path: Path):
    """Since July 2026 bitnet.cpp's converter files 1bitLLM's models, too, as bitnet-b1.58, and says no activation."""
    for changes, want in (({}, "silu"), ({"rope_theta": 5e5}, "relu2"), ({"kv_heads": 2}, "relu2")):
        got = read_gguf(write_gguf(tmp_path / "m.gguf", small(**({"kv_heads": 4} | changes)), "bitnet-b1.58"))
        assert got.weights.spec.activation == want
        first = (
            "SiLU is assumed, its 4 KV heads for 4 heads and rope.freq_base of 10,000 are those of the first generation"
        )
        assert (first in got.notes[0]) == (want == "silu")


def test_defaults_of_missing_metadata(tmp_path: Path):
    names = ("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base", "vocab_size")
    weights = small(rope_theta=1e4)
    got = read_gguf(write_gguf(tmp_path / "m.gguf", weights, skip=names)).weights.spec
    assert got == replace(weights.spec, activation="relu2")
    weights = small(kv_heads=4, rope_theta=5e5)
    file = write_gguf(
        tmp_path / "n.gguf", weights, skip=("attention.head_count_kv",), arch__rope__scaling__type="linear"
    )
    assert read_gguf(file).weights.spec == weights.spec
    per_layer = {"arch__attention__head_count": [4, 4], "arch__feed_forward_length": [128, 128]}
    file = write_gguf(
        tmp_path / "o.gguf", small(layers=2), skip=("attention.head_count", "feed_forward_length"), **per_layer
    )
    assert read_gguf(file).weights.spec == small(layers=2).spec


def test_scaling_of_the_rotary_frequencies(tmp_path: Path):
    def scaling(name: str, divisors: NDArray[np.float32] | None = None, **fields: Any) -> RopeScaling | None:
        tensors = {} if divisors is None else {"rope_freqs.weight": (divisors, int(T.F32))}
        file = write_gguf(tmp_path / name, small(rope_theta=5e5), "llama", skip=SUB_NORMS, tensors=tensors, **fields)
        return read_gguf(file).weights.spec.rope_scaling

    assert (
        scaling("a") is scaling("b", np.ones(16, np.float32)) is scaling("c", arch__rope__scaling__type="none") is None
    )
    linear = {"arch__rope__scaling__type": "linear", "arch__rope__scaling__factor": 4.0}
    assert scaling("d", **linear) == RopeScaling(kind="linear", factor=4.0)
    # As llama.cpp reads them: without a type it is linear, 0 is no factor, scale_linear is the older name.
    four = RopeScaling(kind="linear", factor=4.0)
    assert scaling("f", arch__rope__scaling__factor=4.0) == four
    assert scaling("g", arch__rope__scale_linear=4.0) == four
    assert scaling("h", np.ones(16, np.float32), **linear) == four
    assert scaling("i", arch__rope__scaling__factor=0.0) is None
    assert scaling("j", arch__rope__scaling__type="none", arch__rope__scaling__factor=4.0) is None
    assert scaling("k", **linear, arch__rope__scaling__attn_factor=1.0) == four
    yarn = {
        "arch__rope__scaling__type": "yarn",
        "arch__rope__scaling__factor": 4.0,
        "arch__rope__scaling__original_context_length": 128,
    }
    as_usual = RopeScaling(kind="yarn", factor=4.0, original_context=128, attention_factor=1 + 0.1 * math.log(4.0))
    assert scaling("l", **yarn) == as_usual
    turns = {"arch__rope__scaling__yarn_beta_fast": 16.0, "arch__rope__scaling__yarn_beta_slow": 2.0}
    assert scaling("m", **yarn, **turns) == replace(as_usual, beta_fast=16.0, beta_slow=2.0)
    assert scaling("o", **yarn, arch__rope__scaling__yarn_ext_factor=1.0) == as_usual
    # As llama.cpp's converter computes them, in float64, from rope_scaling of Llama 3.2.
    frequency = 5e5 ** -(np.arange(0, 32, 2) / 32)
    smooth = (8192 / (2 * np.pi / frequency) - 1) / (4 - 1)
    divisors = 1 / ((1 - np.clip(smooth, 0, 1)) / 32 + np.clip(smooth, 0, 1))
    assert scaling("e", divisors.astype(np.float32)) == RopeScaling(kind="llama3", factor=32.0)


def broken(**spoil: Any) -> tuple[NDArray[np.uint8], int]:
    """A damaged TQ2_0 matrix [128, 128 + 128]."""
    raw = gguf.quants.quantize(np.float32(small(hidden=256).layers[0].q) * 0.5, T.TQ2_0)
    raw[spoil["row"], spoil["at"]] = spoil["to"]
    return raw, T.TQ2_0


SUB_NORMS = ("blk.0.attn_sub_norm.weight", "blk.0.ffn_sub_norm.weight")
HALF = np.float16([0.5, 0.25, np.nan, -1, np.inf]).view(np.uint8).reshape(-1, 2)
Q = "blk.0.attn_q.weight"
LATER = "blk.1.attn_q.weight"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # metadata
        ({"architecture": "gemma"}, "its architecture is 'gemma'; supported are bitnet, bitnet-b1.58, bitnet-25, llama"),
        ({"skip": ("embedding_length",)}, "bitnet-b1.58.embedding_length is missing"),
        ({"skip": ("attention.layer_norm_rms_epsilon",)}, "attention.layer_norm_rms_epsilon is missing"),
        ({"skip": ("block_count",), "arch__block_count": "two"}, "block_count must be a positive integer, not 'two'"),
        ({"skip": ("block_count",), "arch__block_count": True}, "block_count must be a positive integer, not 'True'"),
        ({"skip": ("block_count",), "arch__block_count": 0}, "block_count must be a positive integer, not 0"),
        ({"skip": ("block_count",), "arch__block_count": 4_000_000_000}, "block_count must be a positive integer, not 4000000000"),
        ({"skip": ("block_count",), "arch__block_count": 2_000_000_000}, "block_count is 2000000000; but the file has 13 tensors"),
        ({"skip": ("attention.head_count",), "arch__attention__head_count": [4, 2]}, "head_count must be a positive integer, not"),
        ({"skip": ("attention.head_count", "attention.key_length"), "arch__attention__head_count": 3}, "head_count is 3; without attention.key_length"),
        ({"skip": ("attention.value_length",), "arch__attention__value_length": 64}, "value_length is 64; only 32, the head dimension, is supported"),
        ({"skip": ("rope.dimension_count",), "arch__rope__dimension_count": 16}, "dimension_count is 16; only 32, the head dimension"),
        ({"skip": ("rope.freq_base",), "arch__rope__freq_base": -1.0}, "freq_base must be a positive number, not -1.0"),
        ({"skip": ("rope.freq_base",), "arch__rope__freq_base": float("nan")}, "freq_base must be a positive number, not nan"),
        ({"skip": ("vocab_size",), "arch__vocab_size": 7}, r"vocab_size is 7; but token_embd.weight has the shape \[1024, 128\]"),
        (
            {"skip": ("vocab_size",), "tensors": {"token_embd.weight": (np.zeros(256, np.float32), T.F32)}},
            r"token_embd.weight: has the shape \[256\]; a row for each token is needed",
        ),
        ({"arch__rope__scaling__type": "longrope"}, "scaling.type is 'longrope'; supported are 'none', 'linear' and 'yarn'"),
        ({"arch__rope__scaling__type": "yarn", "arch__rope__scaling__yarn_ext_factor": 0.5}, "yarn_ext_factor is 0.5; only 1 is supported"),
        ({"arch__rope__scaling__type": "yarn", "arch__rope__scaling__yarn_log_multiplier": 0.1}, "yarn_log_multiplier is 0.1; only 0 is"),
        ({"arch__rope__scaling__type": "yarn", "arch__rope__scaling__yarn_log_multiplier": "x"}, "yarn_log_multiplier is x; only 0 is"),
        ({"arch__rope__scaling__type": "yarn", "arch__rope__scaling__yarn_beta_fast": 0.5}, "needs 0 < beta_slow < beta_fast, not 1.0, 0.5"),
        ({"arch__rope__scaling__type": "linear", "arch__rope__scaling__factor": 0.5}, "rope scaling factor must be at least 1, not 0.5"),
        ({"arch__expert_count": 8}, "expert_count is 8; mixtures of experts are not supported"),
        ({"arch__rope__scaling__factor": 4.0, "arch__rope__scale_linear": 2.0}, "scaling.factor is 4 and .*rope.scale_linear is 2; correct"),
        ({"arch__rope__scaling__attn_factor": 1.5}, "attn_factor is 1.5; a factor of the rotary magnitudes is not supported"),
        ({"arch__rope__dimension_sections": [16, 24, 24]}, "rope.dimension_sections is set; heads must be rotated by one position"),
        ({"split__count": 3}, "is one of 3 files of a model; join them with llama-gguf-split --merge FIRST.gguf WHOLE.gguf"),
        ({"split__count": [1, 2]}, "files of a model; join them with llama-gguf-split --merge"),
        ({"general__type": "adapter"}, r"holds only an adapter \(LoRA\), no model; merge it into its base model \(llama-export-lora"),
        ({"general__type": "imatrix"}, "its general.type is 'imatrix'; give the file of the model itself"),
        ({"general__alignment": 48}, "general.alignment is 48; a power of two"),
        # tensors
        ({"skip": (Q,)}, "tensor blk.0.attn_q.weight is missing"),
        ({"skip": ("token_embd.weight",)}, "tensor token_embd.weight is missing"),
        ({"tensors": {"blk.0.attn_q.bias": (np.ones(128, np.float32), T.F32)}}, "tensor blk.0.attn_q.bias: linear layers with a bias are not supported"),
        ({"tensors": {"blk.9.x": (np.ones(3, np.float32), T.F32), "z": (np.ones(1, np.float32), T.F32)}}, "blk.9.x and 1 more: no place"),
        ({"tensors": {"rope_freqs.weight": (np.float32([1] * 15 + [8]), T.F32)}}, "rope_freqs.weight: scales the rotary frequencies, but not as Llama 3.1"),
        ({"tensors": {"output_norm.weight": (np.float32([1] * 127 + [np.nan]), T.F32)}}, r"output_norm.weight: holds NaN or infinity at \[0, 127\]"),
        ({"tensors": {"output_norm.weight": (np.ones(64, np.float32), T.F32)}}, r"output_norm.weight: has the shape \[64\], the metadata ask for \[128\]"),
        *(({"tensors": {"output_norm.weight": (np.ones(128, f"i{n // 8}"), AS_IS)}}, f"output_norm.weight: is I{n}, a floating-point tensor is needed")
          for n in (8, 16, 32, 64)),
        ({"tensors": {Q: (np.zeros((128, 128), np.int8), I2_S)}}, "attn_q.weight holds only zeros; the checkpoint is broken"),
        ({"tensors": {"token_embd.weight": (np.zeros((1024, 128), np.float32), T.F32)}}, "token_embd.weight holds only zeros; the checkpoint is"),
        ({"tensors": {"token_embd.weight": (np.ones((1024, 128), np.float32), T.F16)}}, "token_embd.weight holds only 127, everywhere"),
        ({"tensors": {"output.weight": (np.zeros((1024, 128), np.float32), T.F32)}}, "tensor output.weight holds only zeros"),
        ({"tensors": {"output_norm.weight": (np.zeros(128, np.float32), T.F32)}}, "output_norm.weight holds only zeros; the checkpoint is broken"),
        ({"tensors": {"blk.0.ffn_norm.weight": (np.zeros(128, np.float32), T.F32)}}, "blk.0.ffn_norm.weight holds only zeros"),
        ({"tensors": {"blk.0.attn_sub_norm.weight": (np.float32([0, 1] * 64), T.F32)}}, "attn_sub_norm.weight has 64 zeros among its 128"),
        ({"tensors": {Q: (np.zeros((64, 128), np.int8), I2_S)}}, r"attn_q.weight: has the shape \[64, 128\], the metadata ask for \[128, 128\]"),
        ({"tensors": {Q: (np.full((128, 128), 2, np.int8), I2_S)}}, "attn_q.weight: code 3 at row 0, column 0 is no ternary weight"),
        ({"tensors": {"blk.0.attn_q.scale": (np.zeros(1, np.float32), T.F32)}}, "attn_q.weight: its scale is 0.0; a scale must be positive"),
        ({"tensors": {"blk.0.attn_q.scale": (np.float32([-1]), T.F32)}}, "attn_q.weight: its scale is -"),
        ({"tensors": {"blk.0.attn_q.scale": (np.float32([np.inf]), T.F32)}}, "attn_q.scale: holds NaN or infinity"),
        ({"tensors": {"blk.0.attn_q.scale": (np.ones(2, np.float32), T.F32)}}, r"attn_q.scale: has the shape \[2\]"),
        ({"tensors": {Q: (np.float32([[1, -1] * 64] * 127 + [[1, 0.5] * 64]), T.F32)}}, r"not ternary: magnitudes 1 and 0.5 \(row 127, column 1\)"),
        ({"layers": 2, "tensors": {LATER: (np.float32([[1, 0, -1, 0] * 32] * 64 + [[0, 3] * 64] * 64), T.F16)}}, "attn_q.weight: is ternary with several scales, one for "
         "every 128 inputs of a row .1, and 3 at row 64, column 1., but the matrices of the first layer have one each"),
        ({"layers": 2, "hidden": 256, "tensors": {LATER: broken(row=3, at=slice(64, 66), to=HALF[1])}}, "attn_q.weight: its blocks have scales from 0.25 to 0.5, 2 "
         "different ones, but the matrices of the first layer have one each"),
        ({"hidden": 256, "tensors": {Q: broken(row=3, at=slice(64, 66), to=HALF[2])}}, "attn_q.weight: the scale of block 3 is nan"),
        ({"hidden": 256, "tensors": {Q: broken(row=4, at=slice(64, 66), to=HALF[3])}}, "attn_q.weight: the scale of block 4 is -1.0"),
        ({"hidden": 256, "tensors": {Q: broken(row=5, at=slice(64, 66), to=HALF[4])}}, "attn_q.weight: the scale of block 5 is inf"),
        ({"hidden": 256, "tensors": {Q: broken(row=6, at=1, to=255)}}, "attn_q.weight: code 3 at row 6, column 1 is no ternary weight"),
        # what golden refuses
        ({"hidden": 96, "kind": T.F32}, None),
        ({"skip": ("embedding_length",), "arch__embedding_length": 100}, "hidden must be a multiple of 32, not 100"),
        ({"skip": ("attention.head_count",), "arch__attention__head_count": 3}, r"heads \(3\) must be a multiple of kv_heads \(2\)"),
        # the tokenizer
        ({"vocabulary": None}, "tokenizer.ggml.model is missing"),
        ({"vocabulary": None, "tokenizer__ggml__model": "bert"}, "tokenizer.ggml.tokens is missing"),
        ({"vocabulary": None, "tokenizer__ggml__model": "bert", "tokenizer__ggml__tokens": ["a"]}, "model is 'bert'; supported are 'llama' and 'gpt2'"),
        ({"vocabulary": None, "tokenizer__ggml__model": "gpt2", "tokenizer__ggml__tokens": ["a"]}, "tokenizer.ggml.merges is missing"),
        ({"vocabulary": None, "tokenizer__ggml__model": "llama", "tokenizer__ggml__tokens": ["a"]}, "tokenizer.ggml.scores is missing"),
        ({"vocabulary": None, "tokenizer__ggml__model": "gpt2", "tokenizer__ggml__tokens": ["a"] * 2000}, "vocabulary has 2,000 tokens, token_embd.weight 1,024 rows"),
        ({"vocabulary": None, "tokenizer__ggml__model": "gpt2", "tokenizer__ggml__tokens": [1, 2]}, "tokens must be a list of texts"),
        ({"tokenizer__ggml__scores": [1.0]}, "tokenizer.ggml.scores must hold 1,024 numbers, one for each token"),
        ({"tokenizer__ggml__eot_token_id": 5000}, "eot_token_id is '5000'; the vocabulary has 1,024 tokens"),
        ({"tokenizer__ggml__eos_token_id": -2}, "eos_token_id is '-2'; the vocabulary has 1,024 tokens"),
        ({"tokenizer__ggml__padding_token_id": "x"}, "padding_token_id is 'x'; the vocabulary has 1,024 tokens"),
        ({"tokenizer__huggingface__json": "{}"}, "tokenizer.json cannot be used"),
        ({"tokenizer__chat_template": 5}, "tokenizer.chat_template must be a text, not '5'"),
        ({"tokenizer__ggml__add_eos_token": 1}, "add_eos_token must be true or false, not '1'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path, options: dict[str, Any], message: str | None):
    shape = {k: options[k] for k in ("hidden", "heads", "kv_heads", "layers") if k in options}
    options = {k: v for k, v in options.items() if k not in shape}
    file = write_gguf(tmp_path / "m.gguf", small(**shape), **options)
    if message is None:
        list(read_gguf(file).weights.layers)
        return
    with pytest.raises(UserError, match=message) as e:
        list(read_gguf(file).weights.layers)
    assert str(e.value).startswith(str(file)) or "tokenizer.json" in str(e.value)
    assert "\n" not in str(e.value)


def test_shapes_of_every_layer_are_checked_when_a_file_is_opened(tmp_path: Path):
    wrong = {"blk.1.ffn_up.weight": (np.ones((64, 128), np.float32), T.F32)}
    with pytest.raises(UserError, match=r"tensor blk.1.ffn_up.weight: has the shape \[64, 128\], the metadata ask for"):
        read_gguf(write_gguf(tmp_path / "m.gguf", small(layers=2), tensors=wrong))
    with pytest.raises(UserError, match=r"tensor blk.1.ffn_sub_norm.weight is missing"):
        read_gguf(write_gguf(tmp_path / "n.gguf", small(layers=2), skip=("blk.1.ffn_sub_norm.weight",)))


# ---- the header ------------------------------------------------------------------------------------------------------


def text(s: str | bytes) -> bytes:
    data = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(data)) + data


def field(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: str, dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def raw(fields: list[bytes], infos: list[bytes], data: bytes = bytes(64), version: int = 3, **counts: int) -> bytes:
    head = b"GGUF" + struct.pack(
        "<IQQ", version, counts.get("n_tensors", len(infos)), counts.get("n_fields", len(fields))
    )
    head += b"".join(fields) + b"".join(infos)
    return head + bytes(-len(head) % 32) + data


def test_every_type_of_metadata_is_read(tmp_path: Path):
    forms = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    fields = [field(f"one{k}", k, struct.pack("<" + f, 1)) for k, f in forms.items()]
    fields += [field(f"many{k}", 9, struct.pack("<IQ3" + f, k, 3, 1, 0, 1)) for k, f in forms.items()]
    fields += [field("text", 8, text("ä")), field("texts", 9, struct.pack("<IQ", 8, 2) + text("") + text("b"))]
    for version in (2, 3):
        (tmp_path / "m").write_bytes(raw(fields, [info("t", (2, 2))], np.arange(4, dtype="<f4").tobytes(), version))
        g = Gguf(tmp_path / "m")
        for kind in forms:
            assert g.fields[f"one{kind}"] == 1 and g.fields[f"many{kind}"].tolist() == [1, 0, 1]
        assert (g.fields["text"], g.fields["texts"]) == ("ä", ["", "b"])
        assert g.floats("t", (2, 2)).tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has 0 bytes; it is no GGUF file, or truncated"),
        (b"GGUF\x03", "has 5 bytes; it is no GGUF file"),
        (b"PK" + bytes(40), "is not a GGUF file"),
        (b"PK\x03\x04" + bytes(40), "is not a GGUF file: it is a PyTorch file .* or another zip archive"),
        (LFS, "is not a GGUF file: it is a Git LFS pointer and not the file itself; run `git lfs pull`"),
        (b"<!doctype html>", "is not a GGUF file: it is a web page"),
        (b"Entry not found", "is not a GGUF file: it is a server's answer"),
        (b"lmgg" + bytes(40), "is not a GGUF file: it is a GGML file from before GGUF; convert the original checkpoint again"),
        (bytes(100), "is not a GGUF file: it begins with zeros only; its download was not completed"),
        (struct.pack("<Q", 60) + b'{"a":' + bytes(60), "is not a GGUF file: it is a safetensors file; give the folder that holds it"),
        (raw([], [], version=1), "is GGUF version 1; supported are 2 and 3"),
        (raw([], [], version=0), "is GGUF version 0; supported are 2 and 3"),
        (raw([], [], version=3 << 24), "is a big-endian GGUF file"),
        (raw([], [], n_tensors=1 << 60), "is truncated or damaged: 1,152,921,504,606,846,976 tensors at byte 16 of 96"),
        (raw([], [], n_tensors=9), "is truncated or damaged: 9 tensors at byte 16 of 96"),
        (raw([], [], n_fields=1 << 63), "is truncated or damaged: 9,223,372,036,854,775,808 metadata fields"),
        (raw([], [], n_fields=2), "'' is given twice"),
        (raw([struct.pack("<Q", 1 << 62)], []), "a metadata name of 4,611,686,018,427,387,904 bytes at byte 32"),
        (raw([field("a", 8, struct.pack("<Q", 1 << 40))], []), "'a' of 1,099,511,627,776 bytes"),
        (raw([field("a", 8, text(b"\xff"))], []), "'a' at byte 45 is not UTF-8"),
        (raw([text(b"\xff\xfe") + bytes(20)], []), "a metadata name at byte 32 is not UTF-8"),
        (raw([field("a", 13, b"")], []), "'a' is of unknown type 13"),
        (raw([field("a", 9, struct.pack("<IQ", 9, 1))], []), "'a' is an array of type 9"),
        (raw([field("a", 9, struct.pack("<IQ", 4, 1 << 61))], []), "2,305,843,009,213,693,952 elements of 'a'"),
        (raw([field("a", 9, struct.pack("<IQ", 4, 999))], []), "999 elements of 'a'"),
        (raw([field("a", 9, struct.pack("<IQ", 8, 1 << 61))], []), "2,305,843,009,213,693,952 elements of 'a'"),
        (raw([field("a", 4, bytes(4))] * 2, []), "'a' is given twice"),
        (raw([], [info("t", ())]), "tensor t: has 0 dimensions"),
        (raw([], [info("t", (1,) * 5)]), "tensor t: has 5 dimensions"),
        (raw([], [text("t") + struct.pack("<I", 0xFFFFFFFF) + bytes(99)]), "tensor t: has 4,294,967,295 dimensions"),
        (raw([], [info("t", (4, 0))]), r"tensor t: has the shape \[0, 4\]; every dimension must be positive"),
        (raw([], [info("t", (1 << 62, 4))]), "every dimension must be positive and below"),
        (raw([], [info("t", (1 << 39, 1 << 39, 1 << 39, 4))]), "tensor t: ends at byte"),
        (raw([], [info("t", (17,))]), "tensor t: ends at byte 132, but the file has 128; it is truncated or damaged"),
        (raw([], [info("t", offset=1 << 63)]), "tensor t: ends at byte"),
        (raw([], [info("t", offset=8)]), "tensor t: its offset 8 is no multiple of 32"),
        (raw([], [info("t"), info("t", offset=32)]), "tensor t: is there twice"),
        (raw([], [info("t", (9,)), info("u", offset=32)]), "tensor u: lies within t; the file is damaged"),
        (raw([], [info("t\x1b\n", (9,)), info("u", offset=32)]), r"tensor u: lies within 't\\x1b\\n'; the file is damaged"),
        (raw([], [info("t\x1b\n", kind=38)]), r"tensor 't\\x1b\\n': is TL1"),
        (raw([], [info("t", kind=38)]), "tensor t: is TL1, which cannot be read; make the file with I2_S, TQ1_0 or TQ2_0"),
        (raw([], [info("t", kind=41)]), "tensor t: is Q1_0: binary sign weights, -1 and .1 in one bit each, no ternary ones"),
        (raw([], [info("t", kind=42)]), "tensor t: is Q2_0, and neither blocks of 64 nor of 128 fill its 64 bytes"),
        (raw([], [info("t", kind=142)]), r"tensor t: has rows of 4 weights, which are no whole blocks of 128 \(PQ2_0\)"),
        (raw([], [info("t", kind=143)]), r"tensor t: has rows of 4 weights, which are no whole blocks of 128 \(PTQ1_0\)"),
        (raw([], [info("t", kind=4)]), "tensor t: is of unknown type 4, which cannot be read"),
        (raw([], [info("t", kind=999999)]), "tensor t: is of unknown type 999999"),
        (raw([], [info("t", (130,), 36)]), r"tensor t: has rows of 130 weights, which are no whole blocks of 128 \(I2_S\)"),
        (raw([], [info("t", (128, 2), 36)]), "tensor t: ends at byte 164, but the file has 160"),
        (raw([], [info("t", (128,), 34)]), r"tensor t: has rows of 128 weights, which are no whole blocks of 256 \(TQ1_0\)"),
        (raw([field("general.alignment", 4, struct.pack("<I", 1 << 31))], []), "general.alignment"),
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused_without_taking_memory(tmp_path: Path, data: bytes, message: str):
    (tmp_path / "m.gguf").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as e:
            Gguf(tmp_path / "m.gguf")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(e.value) and str(e.value).startswith(f"{tmp_path}/m.gguf: ")


def test_a_part_of_a_model_is_known_by_its_name_too(tmp_path: Path):
    file = write_gguf(tmp_path / "m-00001-of-00002.gguf", small(), skip=("blk.0.ffn_up.weight",))
    with pytest.raises(
        UserError,
        match="ffn_up.weight is missing; by its name the file is one of 2, join them with llama-gguf-split --merge",
    ):
        read_gguf(file)
    assert read_gguf(write_gguf(file, small())).name == "m-00001-of-00002"  # whole, whatever its name
    with pytest.raises(
        UserError, match="is one of 2 files of a model; .* --merge m-00001-of-00002.gguf WHOLE.gguf and give that"
    ):
        read_gguf(write_gguf(file, small(), split__count=2))
    (tmp_path / "v.gguf").write_bytes(raw([], []))
    with pytest.raises(
        UserError, match="holds no tensors, only metadata .a vocabulary..; give the file of the model itself"
    ):
        read_gguf(tmp_path / "v.gguf")


def test_a_header_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tellme.host.checkpoints.gguf.header.MAX_HEADER", 100)
    (tmp_path / "m.gguf").write_bytes(raw([field("a", 8, text("x" * 90))], []))
    with pytest.raises(UserError, match="its header has more than 100 bytes; at most those are read"):
        Gguf(tmp_path / "m.gguf")


def test_folders_missing_and_shrunk_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is not a file; give a GGUF file"):
        Gguf(tmp_path)
    with pytest.raises(UserError, match="is not a file"):
        Gguf(tmp_path / "missing.gguf")
    file = write_gguf(tmp_path / "m.gguf", small())
    g = Gguf(file)
    file.write_bytes(file.read_bytes()[:-70000])
    with pytest.raises(UserError, match="m.gguf: cannot be read"):
        for name in g:
            list(g._pieces(g._entries[name]))


def test_layers_are_read_when_asked_for_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = small(layers=3)
    file = write_gguf(tmp_path / "m.gguf", weights)
    whole = read_gguf(file).weights
    monkeypatch.setattr("tellme.host.checkpoints.gguf.tensors.PIECE", 1000)  # 7 rows of 128
    got = read_gguf(file).weights
    assert_same(got, whole)
    monkeypatch.setattr(Gguf, "matrix", None)
    with pytest.raises(TypeError):
        got.layers[0]


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def sentencepiece_vocabulary(data: bytes) -> Any:
    """What llama.cpp's converter writes of a sentencepiece model."""
    p = sentencepiece.SentencePieceProcessor(model_proto=data)

    def write(w: gguf.GGUFWriter) -> None:
        n = p.vocab_size()
        kinds = [
            2 if p.is_unknown(i) else 3 if p.is_control(i) else 5 if p.is_unused(i) else 6 if p.is_byte(i) else 1
            for i in range(n)
        ]
        w.add_tokenizer_model("llama")
        w.add_tokenizer_pre("default")
        w.add_token_list([p.id_to_piece(i) for i in range(n)] + ["<|x|>", "<|im_end|>", "[PAD1]"])
        w.add_token_scores([p.get_score(i) for i in range(n)] + [-1000.0] * 3)
        w.add_token_types([*kinds, 4, 3, 5])

    return write


def test_a_sentencepiece_vocabulary_splits_as_the_library(tmp_path: Path):
    data = train("bpe", "identity", False, True, True)
    p = sentencepiece.SentencePieceProcessor(model_proto=data)
    n = p.vocab_size()
    file = write_gguf(tmp_path / "m.gguf", small(), vocabulary=sentencepiece_vocabulary(data))
    checkpoint = read_gguf(file)
    t = Tokenizer(checkpoint.tokenizer, 1024)
    assert (t.bos_id, t.eos_id, checkpoint.eos_ids) == (1, 2, (2, n + 1))
    for text in TEXTS:
        assert t.encode(text) == [1, *p.encode(text)], repr(text)
    assert t.encode("a<|x|>b<|im_end|>") == [1, *p.encode("a"), n, *p.encode("b"), n + 1]
    assert t.decode([n, n + 1]) == "<|x|>"
    plain = write_gguf(
        tmp_path / "n.gguf", small(), vocabulary=sentencepiece_vocabulary(data),
        tokenizer__ggml__add_bos_token=False, tokenizer__ggml__add_space_prefix=False,
    )  # fmt: skip
    t = Tokenizer(read_gguf(plain).tokenizer, 1024)
    assert t.decode(t.encode("hello")) == "hello" and t.encode("hello")[0] != 1


def test_a_byte_level_vocabulary_splits_as_the_tokenizer_it_came_from(tmp_path: Path):
    files = read_gguf(write_gguf(tmp_path / "m.gguf", small())).tokenizer
    t, want = Tokenizer(files, 1024), Tokenizer(Files.read(DEMO), 1024)
    for text in TEXTS:
        assert t.encode(text) == want.encode(text)
    assert (t.bos_id, t.eos_id) == (0, 1)


class NoToken:
    """-1 in an integer of one GGUF type, as the package writes it."""

    FORMS: ClassVar[dict[str, int]] = {
        "uint16": 0xFFFF, "uint32": 0xFFFFFFFF, "uint64": 0xFFFFFFFFFFFFFFFF, "int8": -1, "int16": -1, "int32": -1, "int64": -1,
    }  # fmt: skip


IDS = ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "cls", "mask", "fim_pre")


@pytest.mark.parametrize("form", NoToken.FORMS)
@pytest.mark.parametrize("name", IDS)
def test_special_tokens_of_id_minus_one_are_left_out(tmp_path: Path, form: str, name: str):
    def vocabulary(w: gguf.GGUFWriter) -> None:
        demo_vocabulary(w)
        key = f"tokenizer.ggml.{name}_token_id"
        w.kv_data[0].pop(key, None)
        getattr(w, f"add_{form}")(key, NoToken.FORMS[form])

    got = read_gguf(write_gguf(tmp_path / "m.gguf", small(), vocabulary=vocabulary))
    t = Tokenizer(got.tokenizer, 1024)
    assert t.bos_id == (None if name == "bos" else 0) and got.eos_ids == (() if name == "eos" else (1,))
    assert t.encode("One day")[-2:] == [899, 321]


@pytest.mark.parametrize("name", ["padding", "unknown"])
@pytest.mark.parametrize("i", [1024, 5000])
def test_an_unused_token_behind_the_vocabulary_is_left_out_with_a_word(tmp_path: Path, name: str, i: int):
    """Trainers add a padding token behind the last one, and converters keep its number."""
    got = read_gguf(write_gguf(tmp_path / "m.gguf", small(), **{f"tokenizer__ggml__{name}_token_id": i}))
    assert any(f"tokenizer.ggml.{name}_token_id is {i}, but the vocabulary has 1,024 tokens" in n for n in got.notes)
    assert Tokenizer(got.tokenizer, 1024).encode("One day") == [0, 899, 321] and got.eos_ids == (1,)


@pytest.mark.parametrize("name", ["bos", "eos", "eot", "eom"])
def test_a_token_that_begins_or_ends_a_text_must_be_in_the_vocabulary(tmp_path: Path, name: str):
    def vocabulary(w: gguf.GGUFWriter) -> None:
        demo_vocabulary(w)
        key = f"tokenizer.ggml.{name}_token_id"
        w.kv_data[0].pop(key, None)
        w.add_uint32(key, 1024)

    file = write_gguf(tmp_path / "m.gguf", small(), vocabulary=vocabulary)
    with pytest.raises(UserError, match=f"{name}_token_id is '1024'; the vocabulary has 1,024 tokens"):
        read_gguf(file)


def test_a_token_of_all_ones_within_the_vocabulary_is_one(tmp_path: Path):
    """255 in a byte may be -1, but is a token of this vocabulary."""

    def vocabulary(w: gguf.GGUFWriter) -> None:
        demo_vocabulary(w)
        w.add_uint8("tokenizer.ggml.eot_token_id", 255)

    assert read_gguf(write_gguf(tmp_path / "m.gguf", small(), vocabulary=vocabulary)).eos_ids == (1, 255)


def test_a_tokenizer_json_in_the_file_is_taken(tmp_path: Path):
    original = (DEMO / "tokenizer.json").read_text(encoding="utf-8")
    files = read_gguf(write_gguf(tmp_path / "m.gguf", small(), tokenizer__huggingface__json=original)).tokenizer
    assert files.tokenizer == original.encode()


def test_chat_templates_come_along(tmp_path: Path):
    user = [{"role": "user", "content": "Hi"}]
    one = write_gguf(
        tmp_path / "m.gguf", small(), tokenizer__chat_template="{{ bos_token }}[{{ messages[0].content }}]"
    )
    t = Tokenizer(read_gguf(one).tokenizer, 1024)
    assert t.chat_template.render(user) == "<s>[Hi]"
    assert t.encode_chat(user)[0] == 0 and t.encode_chat(user).count(0) == 1
    both = write_gguf(
        tmp_path / "n.gguf", small(), tokenizer__chat_template="main", tokenizer__chat_template__tool_use="tools"
    )
    assert Tokenizer(read_gguf(both).tokenizer, 1024).chat_template.render(user) == "main"
    named = write_gguf(tmp_path / "o.gguf", small(), tokenizer__chat_template__tool_use="tools")
    with pytest.raises(UserError, match=r"no chat template named 'default' \(there are: tool_use\)"):
        Tokenizer(read_gguf(named).tokenizer, 1024).encode_chat(user)
    with pytest.raises(UserError, match="the model has no chat template"):
        Tokenizer(read_gguf(write_gguf(tmp_path / "p.gguf", small())).tokenizer, 1024).encode_chat(user)


@pytest.mark.parametrize(
    ("tokens", "pre", "bos"),
    [(["<|begin_of_text|>"], None, True), ([], None, False), ([], "llama-bpe", True), ([], "qwen2", False)],
)
def test_how_words_are_cut_and_texts_begin_when_a_file_does_not_say(
    tmp_path: Path, tokens: list[str], pre: str | None, bos: bool
):
    def vocabulary(w: gguf.GGUFWriter) -> None:
        letters = [*"abc1234'SĠĊ", *tokens]
        w.add_tokenizer_model("gpt2")
        if pre:
            w.add_tokenizer_pre(pre)
        w.add_token_list([*letters, "ab"])
        w.add_token_types([3 if len(x) > 1 else 1 for x in letters] + [1])
        w.add_token_merges(["a b"])
        w.add_bos_token_id(0)

    config = json.loads(read_gguf(write_gguf(tmp_path / "m.gguf", small(), vocabulary=vocabulary)).tokenizer.config)
    assert config["add_bos_token"] is bos and config["add_eos_token"] is False and config["bos_token"] == "a"
    t = Tokenizer(read_gguf(write_gguf(tmp_path / "n.gguf", small(), vocabulary=vocabulary)).tokenizer, 1024)
    words = [w for w, _ in t._tokenizer.pre_tokenizer.pre_tokenize_str("1234")]
    assert words == {None: ["123", "4"], "llama-bpe": ["123", "4"], "qwen2": ["1", "2", "3", "4"]}[pre]


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_converts_and_runs_a_gguf_file(tmp_path: Path):
    template = "{{ bos_token }}{{ messages[0].content }}"
    file = write_gguf(tmp_path / "m.gguf", model(), kind=T.TQ1_0, tokenizer__chat_template=template)
    image = tmp_path / "m.tlm"

    def tellme(*arguments: str) -> Any:
        return CliRunner().invoke(cli.app, list(arguments))

    r = tellme("convert", str(file), str(image))
    assert r.exit_code == 0, r.output
    run = ("run", "--backend", "golden", "--prompt", "Once upon a time", "--max-new-tokens", "3", "--json", "--model")
    plain, chat, direct = tellme(*run, str(image)), tellme(*run, str(image), "--chat"), tellme(*run, str(file))
    assert plain.exit_code == 0, plain.output
    assert json.loads(plain.stdout)["prompt_ids"] == Tokenizer(Files.read(DEMO), 1024).encode("Once upon a time")
    said = [json.loads(r.stdout) for r in (plain, chat, direct)]
    assert said[0]["prompt_ids"] == said[1]["prompt_ids"] == said[2]["prompt_ids"]
    assert said[0]["new_ids"] == said[1]["new_ids"] == said[2]["new_ids"] and said[0]["text"] == said[2]["text"]
    broken = tmp_path / "n.gguf"
    broken.write_bytes(file.read_bytes()[:-4000])
    refused = tellme("convert", str(broken), str(image))
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1 and "it is truncated or damaged" in refused.stderr
    latent = write_gguf(
        tmp_path / "o.gguf", model(), tensors={Q: (np.random.default_rng(1).normal(size=(256, 256)), T.F16)}
    )
    refused = tellme("convert", str(latent), str(tmp_path / "o.tlm"))
    assert refused.exit_code == 2 and "with --latent" in refused.stderr and not (tmp_path / "o.tlm").exists()
    assert tellme("convert", str(latent), str(tmp_path / "o.tlm"), "--latent").exit_code == 0


def test_an_assumption_is_said_once_by_every_command(tmp_path: Path):
    file = write_gguf(tmp_path / "m.gguf", model(max_context=128))
    text = tmp_path / "t.txt"
    text.write_text("Once upon a time")
    note = (
        f"tellme: note: {file}: does not say its activation (bitnet-b1.58.hidden_activation is missing); squared ReLU"
    )

    def tellme(*arguments: str, **options: Any) -> Any:
        r = CliRunner().invoke(cli.app, list(arguments), **options)
        assert r.exit_code == 0, r.output
        return r

    model_, golden = ("--model", str(file)), ("--backend", "golden")
    for r in (
        tellme("run", *golden, *model_, "--prompt", "Once", "--max-new-tokens", "1"),
        tellme("eval", str(file), "--text", str(text), "--json"),
        tellme("convert", str(file), str(tmp_path / "m.tlm")),
    ):
        assert r.stderr.count("does not say its activation") == 1 and note in r.stderr
        assert "activation" not in r.stdout
    r = tellme("info", str(file), "--board", "tiny")
    assert r.stdout.count("note: ") == 1 and note.removeprefix("tellme: ") in r.stdout
    said = write_gguf(tmp_path / "n.gguf", model(max_context=128), arch__hidden_activation="relu2")
    r = tellme("run", *golden, "--model", str(said), "--prompt", "Once", "--max-new-tokens", "1")
    assert "note" not in r.stderr
    # A refusal stays one line.
    up = {"blk.1.ffn_up.weight": (np.full((256, 256), -1, np.int8), I2_S)}
    bad = write_gguf(tmp_path / "o.gguf", model(max_context=128), tensors=up)
    for command in (
        ("run", *golden, "--prompt", "Once", "--model", str(bad)),
        ("convert", str(bad), str(tmp_path / "o.tlm")),
        ("info", str(bad)),
    ):
        r = CliRunner().invoke(cli.app, list(command))
        assert r.exit_code == 2 and r.stderr.count("\n") == 1 and not r.stdout
        assert "blk.1.ffn_up.weight holds only -1; the checkpoint is broken (damaged)" in r.stderr
    assert not (tmp_path / "o.tlm").exists()
