"""Checkpoints become the right weights; broken ones are refused in one line: what, where, what to do."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from typer.testing import CliRunner

import tellme.host.checkpoints.tensors
from tellme.golden import head, ternary
from tellme.golden.config import TINY
from tellme.golden.model import ModelWeights, rope_tables
from tellme.host.checkpoints.checkpoint import is_checkpoint, open_checkpoint, read_checkpoint
from tellme.host.checkpoints.tensors import Tensors
from tellme.host.cli import app
from tellme.host.errors import UserError
from tellme.host.image.file import Image
from tellme.host.image.model import Model, convert
from tellme.host.machine.program import check_fits
from tests.host.support import DEMO, config_json, pack, tensors_of, write_checkpoint, write_folder
from tests.models import PARTS, load_demo, random_weights, small_spec

NORMS = ("input_norm", "post_norm", "attn_norm", "ffn_norm")


def assert_same(a: ModelWeights, b: ModelWeights, *, embedding: bool = True, scales: bool = True) -> None:
    assert a.spec == b.spec
    assert len(a.layers) == len(b.layers)
    for x, y in zip(a.layers, b.layers, strict=True):
        for name in PARTS:
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name), err_msg=name)
            if scales:
                assert np.float32(getattr(x, f"{name}_scale")) == np.float32(getattr(y, f"{name}_scale")), name
        for name in NORMS:
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name), err_msg=name)
    np.testing.assert_array_equal(a.norm, b.norm)
    if embedding:
        for x, y in zip((a.embedding, a.embedding_scales), (b.embedding, b.embedding_scales), strict=True):
            np.testing.assert_array_equal(x, y)
        for x, y in zip(a.head_rows, b.head_rows, strict=True):
            np.testing.assert_array_equal(x, y)


def test_demo_checkpoint_equals_an_independent_reading():
    got = read_checkpoint(DEMO)
    assert_same(got.weights, load_demo()[0])
    np.testing.assert_array_equal(got.weights.inputs, load_demo()[1])
    assert got.eos_ids == (1,)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "changes", [{}, {"tied": False}, {"activation": "silu"}, {"attn_sub_norm": False, "ffn_sub_norm": False}]
)
def test_packed_checkpoints(tmp_path: Path, changes: dict[str, Any], shards: int):
    spec = small_spec(**changes)
    weights = random_weights(spec, 1)
    tensors = tensors_of(weights)
    got = read_checkpoint(write_folder(tmp_path / "m", config_json(spec), tensors, shards))
    assert_same(got.weights, weights, embedding=False)
    rows, scales = head.quantise_rows(tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(got.weights.embedding, rows)
    np.testing.assert_array_equal(got.weights.embedding_scales, scales)
    assert (got.weights.head is None) == spec.tied
    if not spec.tied:
        np.testing.assert_array_equal(got.weights.head, head.quantise_rows(tensors["lm_head.weight"])[0])


@pytest.mark.parametrize("quantisation", [{"linear_class": "bitlinear"}, {}])
def test_bitlinear_divides_by_the_weight_scale(tmp_path: Path, quantisation: dict[str, Any]):
    spec = small_spec()
    weights = random_weights(spec, 1)
    config = config_json(spec, quantization_config={"quant_method": "bitnet", **quantisation})
    tensors = tensors_of(weights, divide=True)
    got = read_checkpoint(write_folder(tmp_path / "m", config, tensors)).weights
    assert_same(got, weights, embedding=False, scales=False)
    stored = tensors["model.layers.1.mlp.up_proj.weight_scale"][0]
    assert got.layers[1].up_scale == float(np.float32(1) / stored)


def test_latent_weights_are_quantised_by_their_mean_magnitude(tmp_path: Path):
    spec = small_spec()
    tensors = tensors_of(random_weights(spec, 1), latent=True)
    rng = np.random.default_rng(2)
    for name in tensors:
        if "_proj" in name:
            tensors[name] = rng.normal(0, 0.02, tensors[name].shape).astype(np.float32)
    got = read_checkpoint(write_folder(tmp_path / "m", config_json(spec), tensors)).weights
    latent = tensors["model.layers.0.self_attn.o_proj.weight"]
    np.testing.assert_array_equal(got.layers[0].o, ternary.quantise(latent)[0])
    assert got.layers[0].o_scale == pytest.approx(np.abs(latent).mean(), rel=1e-6)
    assert set(np.unique(got.layers[0].o)) == {-1, 0, 1}


def test_names_of_the_first_bitnet_checkpoints(tmp_path: Path):
    spec = small_spec(tied=False)
    weights = random_weights(spec, 1)
    names = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"}
    tensors = {}
    for name, value in tensors_of(weights).items():
        for new, old in names.items():
            name = name.replace(new, old)
        tensors[name] = value
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    config = config_json(spec, model_type="llama", architectures=["BitnetForCausalLM"])
    assert_same(read_checkpoint(write_folder(tmp_path / "m", config, tensors)).weights, weights, embedding=False)


def test_bfloat16_and_float16_norms_are_widened_exactly(tmp_path: Path):
    values = np.float32([1.0, -0.15625, 3.0e38, 0.0])
    raw = values.view(np.uint32) >> 16
    body = raw.astype("<u2").tobytes() + np.float16([1, 2]).tobytes()
    header = json.dumps(
        {
            "b": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
            "h": {"dtype": "F16", "shape": [2], "data_offsets": [8, 12]},
        }
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + body)
    t = Tensors(tmp_path)
    np.testing.assert_array_equal(t.float32("b", (4,)), (raw << 16).view(np.float32))
    np.testing.assert_array_equal(t.float32("h", (2,)), np.float32([1, 2]))


def test_eos_tokens_of_both_files_are_joined(tmp_path: Path):
    folder = write_checkpoint(tmp_path / "m", small_spec(), eos_token_id=[1, 7])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert read_checkpoint(folder).eos_ids == (9, 1, 7)


# ---- refusals --------------------------------------------------------------------------------------------------------


def refused(folder: Path, message: str) -> None:
    """Opening it, or reading its layers, ends in one line."""
    with pytest.raises(UserError, match=message) as e:
        list(read_checkpoint(folder).weights.layers)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
            r"config.json: model_type is 'qwen2', whose linear layers have a bias, which is not supported",
        ),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
            "model.layers.0.mlp.ffn_sub_norm.weight and 3 more: no place in this model",
        ),
        ({"attention_bias": True}, "attention_bias is set"),
        ({"mlp_bias": True}, "mlp_bias is set; linear layers with a bias are not supported"),
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            "rope_type is 'longrope'; supported are default, linear, llama3 and yarn",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'; supported are default"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor must be a positive number .of float32., not None"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, "rope scaling factor must be at least 1, not 0.5"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4, "truncate": False}},
            "truncate of rope_scaling is False; only whole limits",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_fast": 1}},
            "rope scaling needs 0 < beta_slow < beta_fast, not 1.0, 1.0",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4}, "rope_theta": 1},
            "rope_theta must be above 1 for YaRN, not 1.0",
        ),
        ({"rope_scaling": "yarn"}, "rope_scaling must be a JSON object, not 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "factor must be a positive number .of float32., not None"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope scaling factor must be at least 1, not 0.5"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}},
            "rope scaling needs 0 < low_freq_factor < high_freq_factor, not 4.0, 1.0",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is set; heads must be rotated whole"),
        ({"weight_bits": 2}, "weight_bits, input_bits are 2, 8; supported are 1 .ternary. and 8"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "quant_method in quantization_config is 'gptq'; only 'bitnet'",
        ),
        ({"quantization_config": []}, r"quantization_config must be a JSON object, not \[\]"),
        (
            {"quantization_config": {"modules_to_not_convert": ["lm_head", "model.layers.0.mlp.up_proj"]}},
            "modules_to_not_convert holds 'model.layers.0.mlp.up_proj'; only the head may stay floating-point",
        ),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, not 'yes'"),
        ({"rope_theta": "big"}, "rope_theta must be a positive number .of float32., not 'big'"),
        ({"hidden_size": 1 << 40}, "hidden_size must be a positive integer .below 2.31., not 1099511627776"),
        (
            {"hidden_size": 65, "head_dim": None},
            "hidden_size 65 is not a multiple of num_attention_heads 4; give head_dim",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported are relu2, silu"),
        ({"head_dim": 48}, "head_dim must be a multiple of 32, not 48"),
        ({"hidden_size": 72}, "hidden must be a multiple of 32, not 72"),
        ({"num_key_value_heads": 3}, r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer .below 2.31., not 0"),
        ({"vocab_size": "big"}, "vocab_size must be a positive integer .below 2.31., not 'big'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps must be a positive number .of float32., not -1"),
        ({"quantization_config": {"linear_class": "int4"}}, "linear_class is 'int4'"),
        ({"quantization_config": {"linear_class": "bitlinear", "use_rms_norm": True}}, "use_rms_norm .* is set"),
        ({"num_hidden_layers": 3}, "tensor model.layers.2.self_attn.q_proj.weight is missing"),
        ({"num_hidden_layers": 1}, "model.layers.1.*and 17 more: no place in this model"),
        ({"vocab_size": 51}, r"embed_tokens.weight has shape \[50, 64\], config.json asks for \[51, 64\]"),
        (
            {"tie_word_embeddings": False},
            "tensor lm_head.weight is missing; if the embedding is the head, config.json must say tie_word_embeddings",
        ),
    ],
)
def test_unsupported_configurations(tmp_path: Path, changes: dict[str, Any], message: str):
    refused(write_checkpoint(tmp_path / "m", small_spec(), **changes), message)


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (DOWN + "_scale", None, "tensor model.layers.1.mlp.down_proj.weight_scale is missing; packed weights need it"),
        (DOWN + "_scale", np.float32([np.nan]), "down_proj.weight_scale holds NaN or infinity"),
        (DOWN + "_scale", np.float32([-1]), r"down_proj.weight_scale is -1.0; a scale must be positive"),
        (DOWN + "_scale", np.float32([1, 2]), r"weight_scale has shape \[2\], one scale a matrix"),
        (DOWN, np.full((16, 96), 0b11 << 4, np.uint8), r"code 3 at row 32, column 0 is no ternary weight"),
        (DOWN, np.zeros((16, 97), np.uint8), r"has shape \[16, 97\], config.json asks for \[16, 96\]"),
        (DOWN, np.zeros((16, 96), np.int8), "is I8; packed weights are U8"),
        (DOWN, None, "tensor model.layers.1.mlp.down_proj.weight is missing"),
        (DOWN, np.zeros((64, 96), np.float32), "down_proj.weight holds only zeros; the checkpoint is broken"),
        (
            DOWN,
            np.eye(64, 96, dtype=np.float32) * 2 + 1,
            "down_proj.weight is not ternary: F32 values like 1 at row 0, col",
        ),
        (DOWN + "_scale", np.float32([1e-45]), None),
        ("model.layers.0.mlp.ffn_sub_norm.weight", None, "tensor model.layers.0.mlp.ffn_sub_norm.weight is missing"),
        ("model.norm.weight", np.zeros(64, np.int8), "model.norm.weight is I8, a floating-point tensor is needed"),
        ("model.norm.weight", np.zeros(64, np.int32), "tensor model.norm.weight is I32; known are"),
        ("extra.weight", np.zeros(1, np.float32), "extra.weight: no place in this model"),
        ("lm_head.weight", np.zeros((50, 64), np.float32), "lm_head.weight differs from model.embed_tokens.weight"),
    ],
)
def test_broken_tensors(tmp_path: Path, name: str, value: Any, message: str):
    spec = small_spec()
    tensors = tensors_of(random_weights(spec, 1))
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = value
    config = config_json(spec)
    if message is None:  # a scale that is fine to multiply by, but has no inverse
        list(read_checkpoint(write_folder(tmp_path / "m", config, tensors)).weights.layers)
        config["quantization_config"]["linear_class"] = "bitlinear"
        message = "down_proj.weight_scale is too small, its inverse is not finite"
    refused(write_folder(tmp_path / "m", config, tensors), message)


def plain_llama(tmp_path: Path, change: Any = None, dtype: Any = np.float16) -> tuple[Path, ModelWeights]:
    """A LLaMA in floating-point that declares nothing, its matrices -s, 0 and s before `change`."""
    spec = small_spec(attn_sub_norm=False, ffn_sub_norm=False, tied=False)
    weights = random_weights(spec, 1)
    tensors = {
        n: (v.astype(np.float64) * 2).astype(dtype) if "_proj" in n else v
        for n, v in tensors_of(weights, latent=True).items()
    }
    if change is not None:
        change(tensors)
    config = config_json(spec)
    del config["quantization_config"]
    return write_folder(tmp_path / "m", config, tensors), weights


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_floating_point_model_is_refused_by_name_unless_latent_weights_are_asked_for(tmp_path: Path, dtype: Any):
    rng = np.random.default_rng(3)
    name = "model.layers.1.self_attn.v_proj.weight"
    values = rng.normal(0, 0.02, (64, 64)).astype(dtype)

    def change(tensors: dict[str, Any]) -> None:
        tensors[name] = values

    folder, _ = plain_llama(tmp_path, change, dtype)
    kind = {np.float16: "F16", np.float32: "F32", np.float64: "F64"}[dtype]
    with pytest.raises(UserError) as e:
        list(read_checkpoint(folder).weights.layers)
    row = values.reshape(-1)
    biggest = np.abs(values[:64].astype(np.float32)).max()
    assert str(e.value) == (
        f"{folder}/model.safetensors: {name} is not ternary: {kind} values like {np.float32(row[0]):.6g} at row 0, column 0 "
        f"beside {biggest:.6g}; convert a 1.58-bit checkpoint, or quantise these weights by their mean magnitude with --latent"
    )
    got = list(read_checkpoint(folder, latent=True).weights.layers)[1]
    np.testing.assert_array_equal(got.v, ternary.quantise(values)[0])
    assert got.v_scale == pytest.approx(np.abs(values.astype(np.float64)).mean(), rel=1e-6)


def test_ternary_values_in_floating_point_are_taken_as_they_are(tmp_path: Path):
    """Nothing declares them latent: -s, 0, s are the weights -1, 0, 1 and the scale s, not the mean magnitude."""
    folder, weights = plain_llama(tmp_path)
    got = read_checkpoint(folder).weights
    assert_same(got, weights, embedding=False, scales=False)
    for a, b in zip(got.layers, weights.layers, strict=True):
        for part in PARTS:
            assert getattr(a, f"{part}_scale") == float(np.float16(np.float32(getattr(b, f"{part}_scale")) * 2.0))


@pytest.mark.parametrize("divide", [False, True])
def test_unpacked_weights_beside_their_scale_are_the_packed_model(tmp_path: Path, divide: bool):
    """What transformers writes of an `autobitlinear` model that it has read."""
    spec = small_spec()
    weights = random_weights(spec, 1)
    tensors = tensors_of(weights, divide=divide)
    for i, layer in enumerate(weights.layers):
        for part, name in PARTS.items():
            tensors[f"model.layers.{i}.{name}.weight"] = getattr(layer, part).astype(np.float32)
    config = config_json(spec)
    config["quantization_config"]["linear_class"] = "bitlinear" if divide else "autobitlinear"
    got = read_checkpoint(write_folder(tmp_path / "m", config, tensors)).weights
    assert_same(got, weights, embedding=False, scales=not divide)


def test_a_matrix_of_zeros_is_refused(tmp_path: Path):
    folder, _ = plain_llama(tmp_path, lambda t: t["model.layers.0.mlp.up_proj.weight"].fill(0))
    refused(folder, "up_proj.weight holds only zeros; the checkpoint is broken")


UP = "model.layers.0.mlp.up_proj.weight"


def folder_of(tmp_path: Path, form: str, w: NDArray[np.int8], scale: float = 0.25) -> Path:
    """A checkpoint whose up projection [128, 128] is `w`: packed, latent, or ternary in floating-point."""
    spec = small_spec(hidden=128, heads=4, layers=1, ffn=128, attn_sub_norm=form != "F16", ffn_sub_norm=form != "F16")
    tensors = tensors_of(random_weights(spec, 1), latent=form != "U8")
    tensors[UP] = pack(w) if form == "U8" else (w * scale).astype({"F16": np.float16, "latent": np.float32}[form])
    config = config_json(spec)
    if form == "F16":
        del config["quantization_config"]
    return write_folder(tmp_path / "m", config, tensors)


@pytest.mark.parametrize("form", ["U8", "latent", "F16"])
@pytest.mark.parametrize(
    ("rows", "value", "message"),
    [
        (slice(None), -1, "holds only -1; the checkpoint is broken .damaged.: download it"),
        (slice(None), 0, "holds only zeros; the checkpoint is broken"),
        (slice(None), 1, r"holds only \+1; the checkpoint is broken"),
        (slice(64, None), -1, "holds 128 neighbouring weights of -1 at row 64, column 0"),
        (slice(40, 41), 1, r"holds 128 neighbouring weights of \+1 at row 40, column 0"),
        (slice(64, None), 0, "has 64 rows of zeros among its 128"),
    ],
)
def test_damaged_matrices_are_refused_in_every_form(tmp_path: Path, form: str, rows: slice, value: int, message: str):
    w = np.random.default_rng(6).integers(-1, 2, (128, 128), np.int8)
    list(read_checkpoint(folder_of(tmp_path, form, w)).weights.layers)
    w[rows] = value
    refused(folder_of(tmp_path, form, w), f"{UP} {message}")


@pytest.mark.parametrize("form", ["U8", "latent", "F16"])
def test_a_matrix_with_some_dead_rows_is_read(tmp_path: Path, form: str):
    w = np.random.default_rng(6).integers(-1, 2, (128, 128), np.int8)
    w[10:60] = 0
    np.testing.assert_array_equal(read_checkpoint(folder_of(tmp_path, form, w)).weights.layers[0].up, w)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        (UP, lambda x: np.zeros_like(x), "holds only -1; the checkpoint is broken .damaged."),
        ("model.embed_tokens.weight", lambda x: x * 0, "embed_tokens.weight holds only zeros; the checkpoint is broken"),
        ("model.embed_tokens.weight", lambda x: x * 0 + 1, "embed_tokens.weight holds only 127, everywhere"),
        ("model.embed_tokens.weight", lambda x: x * (np.arange(50) < 25)[:, None], "has 25 rows of zeros among its 50"),
        ("model.norm.weight", lambda x: x * 0, "model.norm.weight holds only zeros"),
        ("model.norm.weight", lambda x: x * np.nan, r"model.norm.weight holds NaN or infinity at \[0\]"),
        ("model.layers.1.mlp.ffn_sub_norm.weight", lambda x: x * 0, "ffn_sub_norm.weight holds only zeros"),
        ("model.layers.0.input_layernorm.weight", lambda x: x * 0, "input_layernorm.weight holds only zeros"),
        ("model.layers.1.post_attention_layernorm.weight", lambda x: x * (np.arange(64) < 32), "has 32 zeros among its 64"),
        (UP + "_scale", lambda x: x * 0, "weight_scale is 0.0; a scale must be positive"),
        (UP + "_scale", lambda x: x * np.inf, "weight_scale holds NaN or infinity"),
    ],
)  # fmt: skip
def test_damaged_embeddings_norms_and_scales_are_refused(tmp_path: Path, name: str, spoil: Any, message: str):
    spec = small_spec()
    tensors = tensors_of(random_weights(spec, 1))
    tensors[name] = np.asarray(spoil(tensors[name]), tensors[name].dtype)
    refused(write_folder(tmp_path / "m", config_json(spec), tensors), message)


def test_a_latent_outlier_that_makes_all_others_zero_is_refused(tmp_path: Path):
    spec = small_spec()
    tensors = tensors_of(random_weights(spec, 1), latent=True)
    tensors[UP][3, 5] = 1e30
    refused(
        write_folder(tmp_path / "m", config_json(spec), tensors), "up_proj.weight has 95 rows of zeros among its 96"
    )


@pytest.mark.parametrize("group", [32, 64])
def test_several_scales_are_named_for_what_they_are(tmp_path: Path, group: int):
    """A scale for every group of inputs, or for a row; then for two blocks of rows."""

    later = UP.replace("layers.0", "layers.1")

    def change(tensors: dict[str, Any]) -> None:
        w = tensors[later]
        scales = np.float16(2.0) ** np.random.default_rng(1).integers(-3, 3, (96, 64 // group)).astype(np.float16)
        tensors[later] = (np.sign(w) * np.repeat(scales, group, axis=1)).astype(np.float16)

    refused(
        plain_llama(tmp_path, change)[0],
        f"up_proj.weight: is ternary with several scales, one for every {group} inputs of a row .* at row \\d+, column .*, but the "
        "matrices of the first layer have one each",
    )

    def halves(tensors: dict[str, Any]) -> None:
        tensors[later][48:] *= 2

    refused(
        plain_llama(tmp_path, halves)[0],
        r"is ternary with several scales, one for every 64 inputs .* at row 48, column \d",
    )


@pytest.mark.parametrize(("power", "written"), [(30, r"1e\+30"), (-30, "1e-30")])
def test_a_scale_that_over_or_underflows_beside_floating_point_weights_is_refused(
    tmp_path: Path, power: int, written: str
):
    spec = small_spec()
    tensors = tensors_of(random_weights(spec, 1))
    w = random_weights(spec, 1).layers[0].up
    tensors |= {UP: w * np.float32(10.0**power), UP + "_scale": np.float32([10.0**power])}
    refused(
        write_folder(tmp_path / "m", config_json(spec), tensors),
        f"values of {written} times weight_scale {written} are no float32",
    )


def test_nan_in_latent_weights_is_found_with_its_place(tmp_path: Path):
    spec = small_spec()
    tensors = tensors_of(random_weights(spec, 1), latent=True)
    tensors[DOWN][63, 95] = np.nan
    refused(
        write_folder(tmp_path / "m", config_json(spec), tensors),
        r"down_proj.weight holds NaN or infinity at \[63, 95\]",
    )


@pytest.mark.parametrize(
    ("changes", "divides"),
    [
        ({}, False),  # BitNet without quantization_config: Microsoft's convention
        ({"model_type": "llama", "architectures": ["BitnetForCausalLM"], "weight_bits": 1, "input_bits": 8}, False),
    ],
)
def test_packed_weights_without_quantization_config(tmp_path: Path, changes: dict[str, Any], divides: bool):
    spec = small_spec(activation="silu")
    weights = random_weights(spec, 1)
    config = config_json(spec, **changes)
    del config["quantization_config"]
    got = read_checkpoint(write_folder(tmp_path / "m", config, tensors_of(weights, divide=divides))).weights
    assert_same(got, weights, embedding=False)


@pytest.mark.parametrize("pieces", [1, 7, 1 << 20])
@pytest.mark.parametrize("latent", [False, True])
def test_reading_in_pieces_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int, latent: bool):
    spec = small_spec(tied=False)
    folder = write_folder(tmp_path / "m", config_json(spec), tensors_of(random_weights(spec, 1), latent=latent))
    whole = read_checkpoint(folder).weights
    layers = list(whole.layers)
    monkeypatch.setattr(tellme.host.checkpoints.tensors, "PIECE", pieces * 64)
    part = read_checkpoint(folder).weights
    assert_same(replace(part, layers=list(part.layers)), replace(whole, layers=layers), scales=not latent)
    for a, b in zip(part.layers, layers, strict=True):
        assert a.up_scale == pytest.approx(b.up_scale, rel=1e-6)


@pytest.mark.parametrize(
    ("more", "attention"),
    [
        ({}, 0.1 * math.log(40.0) + 1),
        ({"mscale": 0.707, "mscale_all_dim": 1.0}, 0.9210423553163399),  # transformers 5.24
        ({"attention_factor": 1.25, "mscale": 2.0, "mscale_all_dim": 1.0}, 1.25),
        ({"mscale": 0.707}, 0.1 * math.log(40.0) + 1),
    ],
)
def test_yarn_of_a_configuration_is_read_as_transformers_reads_it(
    tmp_path: Path, more: dict[str, float], attention: float
):
    rope = {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 16,
        "beta_slow": 2,
    }
    config = config_json(small_spec()) | {"rope_scaling": rope | more}
    folder = write_folder(tmp_path / "m", config, tensors_of(random_weights(small_spec(), 1)))
    found = read_checkpoint(folder).weights.spec.rope_scaling
    assert found is not None and found.attention_factor == pytest.approx(attention, rel=1e-6)
    assert (found.kind, found.factor, found.original_context, found.beta_fast, found.beta_slow) == (
        "yarn",
        40.0,
        4096,
        16,
        2,
    )
    image = tmp_path / "m.tlm"
    convert(read_checkpoint(folder), image, TINY)
    with Model.open(image, TINY) as model:
        assert model.spec.rope_scaling == found


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        # As transformers 5.24 reads them: AutoConfig.from_pretrained(...).rope_parameters.
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_scaling": {"type": "linear", "factor": 2.0},
          "rope_theta": 1e4}, (1e4, 2.0)),
        ({"rope_parameters": {"rope_theta": 500.0}, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
         (500.0, 2.0)),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": None, "rope_theta": 3e4}, (3e4, 2.0)),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {}}, (5e5, 2.0)),
        ({"rope_parameters": {"rope_theta": 3e4}, "rope_theta": 500.0}, (3e4, None)),
        ({"rope_parameters": {"rope_theta": 3e4, "partial_rotary_factor": 1.0}, "partial_rotary_factor": None}, (3e4, None)),
        ({"rope_parameters": None, "rope_scaling": None}, (5e5, None)),
        ({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 3.0}, "rope_theta": 500.0}, (500.0, 3.0)),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}, "rope_scaling": {"type": "linear", "factor": 2}}, (5e5, 2.0)),
        ({"rope_scaling": {"rope_type": None, "type": "linear", "factor": 2}}, (5e5, 2.0)),
        # And what no one can mean.
        ({"rope_parameters": {"rope_theta": 3e4}, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_parameters has rope_theta "
         "30000.0, but rope_scaling beside it, which takes its place, makes it 500000"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_scaling": {"type": "linear", "factor": 2.0}},
         r"rope_scaling \(linear\) and rope_parameters \(linear\) scale the rotary frequencies in two ways"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_scaling": {"type": "default"}}, "in two ways"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}, "rope_scaling": {"type": "linear", "factor": 2.0}}, "in two ways"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling has a factor of 2.0 but no rope_type; say linear, llama3 or yarn"),
        ({"rope_scaling": {"rope_type": "default", "type": "linear"}}, "has rope_type 'default' and type 'linear'; correct the wrong one"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}, "has parameters for 'full_attention' alone"),
        ({"rope_parameters": {"rope_theta": 3e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is set"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is set"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}, "original_max_position_embeddings": 16}, "is 16 and, in rope_scaling, 32"),
    ],
)  # fmt: skip
def test_rope_of_every_spelling_is_read_or_refused(tmp_path: Path, rope: dict[str, Any], expected: Any):
    config = {k: v for k, v in config_json(small_spec()).items() if k != "rope_theta"} | rope
    folder = write_folder(tmp_path / "m", config, tensors_of(random_weights(small_spec(), 1)))
    if isinstance(expected, str):
        refused(folder, expected)
        return
    spec = read_checkpoint(folder).weights.spec
    assert (spec.rope_theta, spec.rope_scaling.factor if spec.rope_scaling else None) == expected


@pytest.mark.parametrize(
    ("changes", "activation", "assumed"),
    [
        ({"hidden_act": "silu"}, "silu", None),
        ({"hidden_act": None, "hidden_activation": "silu"}, "silu", None),
        ({"hidden_act": "swish", "hidden_activation": "silu"}, "silu", None),
        ({"hidden_act": None}, "relu2", "hidden_act is missing; relu2 is assumed, the default of transformers for model_type 'bitnet'"),
        ({"hidden_act": None, "model_type": "llama", "architectures": ["BitnetForCausalLM"]}, "silu", "silu is assumed"),
        ({"hidden_act": "relu2", "hidden_activation": "silu"}, "hidden_act is 'relu2' and hidden_activation is 'silu'; correct", None),
        ({"hidden_act": "silu", "hidden_activation": "gelu"}, "hidden_activation is 'gelu'; supported are relu2, silu, swish", None),
        ({"hidden_act": "SiLU"}, "hidden_act is 'SiLU'; supported are", None),
        ({"hidden_act": 5}, "hidden_act is 5; supported are", None),
    ],
)  # fmt: skip
def test_the_activation_under_both_names(tmp_path: Path, changes: dict[str, Any], activation: str, assumed: str | None):
    folder = write_checkpoint(tmp_path / "m", small_spec(), **changes)
    if activation not in ("silu", "relu2"):
        refused(folder, activation)
        return
    got = read_checkpoint(folder)
    assert got.weights.spec.activation == activation
    assert len(got.notes) == (assumed is not None) and all(str(assumed) in n for n in got.notes)


def test_the_least_variance_of_a_norm_is_the_family_s_where_none_is_said(tmp_path: Path):
    for name, spec, eps in (
        ("bitnet", small_spec(), 1e-5),
        ("llama", small_spec(attn_sub_norm=False, ffn_sub_norm=False, activation="silu"), 1e-6),
    ):
        folder = write_checkpoint(tmp_path / name, spec)
        said = json.loads((folder / "config.json").read_text())
        del said["rms_norm_eps"]
        (folder / "config.json").write_text(json.dumps(said))
        assert read_checkpoint(folder).weights.spec.norm_eps == eps


def test_a_llama_s_activation_is_no_assumption(tmp_path: Path):
    spec = small_spec(attn_sub_norm=False, ffn_sub_norm=False, activation="silu")
    got = read_checkpoint(write_checkpoint(tmp_path / "m", spec, hidden_act=None))
    assert (got.weights.spec.activation, got.notes) == ("silu", ())


@pytest.mark.parametrize(
    ("rope", "kind"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}, "linear"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 500.0}, "linear"),
        (
            {"rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
             "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}, "llama3",
        ),
    ],
)  # fmt: skip
def test_rope_scaling_reaches_the_tables_and_the_image(tmp_path: Path, rope: dict[str, Any], kind: str):
    config = {k: v for k, v in config_json(small_spec()).items() if k != "rope_theta"} | rope
    checkpoint = read_checkpoint(write_folder(tmp_path / "m", config, tensors_of(random_weights(small_spec(), 1))))
    spec = checkpoint.weights.spec
    assert spec.rope_scaling is not None and spec.rope_scaling.kind == kind and spec.rope_theta == 500.0
    plain = replace(spec, rope_scaling=None)
    inverse = np.arctan2(*(t[1].astype(np.float64) for t in rope_tables(spec)[::-1]))
    before = np.arctan2(*(t[1].astype(np.float64) for t in rope_tables(plain)[::-1]))
    ratio = before / inverse
    assert ratio[-1] == pytest.approx(4.0, rel=1e-3)
    assert ratio[0] == pytest.approx(4.0 if kind == "linear" else 1.0, rel=1e-3)
    if kind == "llama3":
        assert ((ratio > 1.01) & (ratio < 3.99)).any()
    convert(checkpoint, tmp_path / "m.tlm", TINY)
    assert Model(Image(tmp_path / "m.tlm"), TINY).spec == spec


def test_more_queries_on_a_kv_head_than_the_attention_unit_counts_are_refused(tmp_path: Path):
    spec = small_spec(heads=16, kv_heads=1)
    with pytest.raises(UserError, match="query heads of a KV head is 16, but accelerator 'tiny' holds at most 8"):
        check_fits(read_checkpoint(write_checkpoint(tmp_path / "m", spec)).weights.spec, TINY, "m")


def test_a_code_three_is_found_with_its_place_in_any_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = small_spec()
    tensors = tensors_of(random_weights(spec, 1))
    tensors[DOWN][11, 95] |= 0b11 << 4  # rows 11 + 2 * 16
    folder = write_folder(tmp_path / "m", config_json(spec), tensors)
    for piece in (96, 500, 1 << 20):
        monkeypatch.setattr(tellme.host.checkpoints.tensors, "PIECE", piece)
        refused(folder, "down_proj.weight: code 3 at row 43, column 95 is no ternary weight; the file is damaged")


def test_a_tied_head_that_repeats_the_embedding_is_accepted(tmp_path: Path):
    spec = small_spec()
    tensors = tensors_of(random_weights(spec, 1))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    assert read_checkpoint(write_folder(tmp_path / "m", config_json(spec), tensors)).weights.head is None


def test_missing_files(tmp_path: Path):
    refused(tmp_path, "has no config.json; give a Hugging Face checkpoint folder, a .gguf file or a .tlm image")
    folder = write_checkpoint(tmp_path / "m", small_spec())
    (folder / "tokenizer.json").unlink()
    refused(folder, "tokenizer.json: cannot be read")
    (folder / "model.safetensors").unlink()
    refused(folder, "has no model.safetensors")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json: is not JSON")
    (folder / "config.json").write_text("[]")
    refused(folder, "config.json: is not a JSON object")


@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_a_truncated_tokenizer_is_refused_before_anything_is_written(tmp_path: Path, share: float):
    folder = write_checkpoint(tmp_path / "m", small_spec())
    whole = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(whole[: int(share * len(whole))])
    refused(folder, f"{folder}: tokenizer.json cannot be used: ")
    done = CliRunner().invoke(app, ["convert", str(folder), str(tmp_path / "m.tlm"), "--board", "tiny"])
    assert done.exit_code == 2 and "tokenizer.json cannot be used" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "m.tlm").exists()


def test_broken_shards(tmp_path: Path):
    spec = small_spec()
    tensors = tensors_of(random_weights(spec, 1))
    folder = write_folder(tmp_path / "m", config_json(spec), tensors, 2)
    shard = folder / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole + b"x")
    refused(folder, "has 1 bytes behind its last tensor; the file is damaged")
    shard.write_bytes(whole[:-1])
    refused(folder, "is truncated, tensor .* ends behind the file")
    shard.write_bytes(whole[:4])
    refused(folder, "is truncated or is not a safetensors file")
    shard.write_bytes(struct.pack("<Q", 3) + b"abc")
    refused(folder, re.escape(f"{shard}: is not a safetensors file"))
    shard.unlink()
    refused(folder, "cannot be read")
    names = sorted(tensors)[::2]
    save_file({n: tensors[n] for n in names}, shard)
    refused(folder, "holds tensor .*, as .* does")
    shard.unlink()
    os.mkfifo(shard)
    refused(folder, "model-00002-of-00002.safetensors: is not a file")
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../other/model.safetensors"}}')
    refused(folder, "the shard of tensor a must be a file in the same folder, not '../other/model.safetensors'")
    for shard in ('""', "7", "null", '"x\\u0000"'):
        index.write_text(f'{{"weight_map": {{"a": {shard}}}}}')
        refused(folder, "the shard of tensor a must be a file in the same folder, not ")
    index.write_text('{"weight_map": []}')
    refused(folder, "has no weight_map")
    os.truncate(index, 1 << 30)
    refused(folder, "index.json: has 1,073,741,824 bytes, at most 67,108,864 are read")


@pytest.mark.parametrize(
    ("entries", "size", "message"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, 12, "a starts at byte 4 of the data, not at 0"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "U8", "shape": [8],
          "data_offsets": [4, 12]}}, 12, "b starts at byte 4 of the data, not at 8; the file is damaged"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, 4, r"a has 4 bytes, which is not shape \[2\]"),
        ({"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 8]}}, 8, "a has 8 bytes, which is not"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, 8, "the entry of tensor 'a' is broken"),
        ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, 4, "the entry of tensor 'a' is broken"),
        ({"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, 8, "the entry of tensor 'a' is broken"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "the entry of tensor 'a' is broken"),
        ({"a": 5}, 8, "the entry of tensor 'a' is broken"),
        ({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}}, 8, "tensor a is F4; known are"),
    ],
)  # fmt: skip
def test_broken_headers(tmp_path: Path, entries: dict[str, Any], size: int, message: str):
    text = json.dumps(entries).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    with pytest.raises(UserError, match=message):
        Tensors(tmp_path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1178628727\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Not here</title></head></html>"
ZIP = b"PK\x03\x04" + bytes(60)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "is a Git LFS pointer and not the file itself; run `git lfs pull` there, or download it again"),
        (PAGE, "is a web page and not the file itself; download it by its own link"),
        (b"Entry not found", "is a server's answer .'Entry not found'. and not the file itself; download it again"),
        (b'{"error":"Repository not found"}', "is a server's answer"),
        (ZIP, r"is a PyTorch file \(.bin, .pt, .pth\) or another zip archive; convert it to safetensors"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j", r"is a PyTorch file \(.bin, .pt, .pth\); convert it to safetensors"),
        (b"\x1f\x8b\x08" + bytes(30), r"is compressed \(gzip\); unpack it"),
        (b"GGUF\x03" + bytes(30), "is a GGUF file; give it as it is"),
        (bytes(4096), "begins with zeros only; its download was not completed"),
    ],
)  # fmt: skip
def test_files_of_another_kind_are_named_for_what_they_are(tmp_path: Path, name: str, content: bytes, message: str):
    folder = write_checkpoint(tmp_path / "m", small_spec())
    (folder / name).write_bytes(content)
    refused(folder, f"m/{re.escape(name)}: {message}")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["pytorch_model.bin"], "it holds pytorch_model.bin: convert it there with python -c .*torch.load.*'model.safetensors'"),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "training_args.bin"],
         r"it holds pytorch_model-00001-of-00002.bin: convert it there with .*glob\('pytorch_model-0000\*.bin'\)"),
        (["consolidated.00.pth"], "it holds consolidated.00.pth: convert it"),
        (["ggml-model-i2_s.gguf"], "it holds ggml-model-i2_s.gguf: give that file"),
        (["bitnet.safetensors"], "it holds bitnet.safetensors: rename it to model.safetensors"),
        (["model-00001-of-00002.safetensors"], "it holds model-00001-of-00002.safetensors: download the index of its shards, too"),
        (["tf_model.h5"], "it holds tf_model.h5: download the model's .safetensors files"),
        (["pytorch_model.bin.index.json"], "it holds pytorch_model.bin.index.json: download the model's .safetensors files"),
        (["adapter_model.safetensors"], r"holds only an adapter \(LoRA\), no model; merge it into its base model \(peft"),
        ([], "has no model.safetensors and no model.safetensors.index.json; give a Hugging Face checkpoint folder"),
    ],
)  # fmt: skip
def test_a_folder_without_weights_says_what_it_has(tmp_path: Path, files: list[str], message: str):
    folder = write_checkpoint(tmp_path / "m", small_spec())
    (folder / "model.safetensors").unlink()
    for name in files:
        (folder / name).write_bytes(b"x")
    refused(folder, message)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["x.gguf"], "has no config.json, but x.gguf; give that file"),
        (["x.tlm"], "has no config.json, but x.tlm; give that file"),
        (["snapshots/4d7a/config.json"], "has no config.json, but .*/snapshots/4d7a does; give that folder"),
        (["inner/config.json"], "has no config.json, but .*/inner does; give that folder"),
        (["params.json", "consolidated.00.pth"], "is in Meta's own format; convert it"),
        (
            ["pytorch_model.bin"],
            "has no config.json beside pytorch_model.bin; download the model's config.json and tokenizer, too",
        ),
    ],
)
def test_a_folder_without_a_configuration_says_what_it_has(tmp_path: Path, files: list[str], message: str):
    for name in files:
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_bytes(b"x")
    refused(tmp_path / "m", message)


def test_an_adapter_names_its_base_model(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "microsoft/bitnet-b1.58-2B-4T"}')
    refused(
        tmp_path, r"holds only an adapter .* into its base model microsoft/bitnet-b1.58-2B-4T \(peft: merge_and_unload"
    )
    folder = write_checkpoint(tmp_path / "m", small_spec())
    assert read_checkpoint(folder).notes == ()
    (folder / "adapter_config.json").write_text("{}")
    (note,) = read_checkpoint(folder).notes
    assert note.startswith(f"{folder}: holds an adapter (LoRA) beside the model, which is not applied; merge the two")
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.ones((4, 64), np.float32)}
    save_file(lora, folder / "model.safetensors")
    refused(folder, "lora_A.weight: is part of an adapter .LoRA.; merge it into its base model")


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (
            "",
            "embed_tokens.weight: the names of its tensors have no prefix, where 'model.' is needed .*; save the whole one",
        ),
        ("module.model.", "begin with 'module.model.', where 'model.' is needed"),
        ("_orig_mod.model.", "begin with '_orig_mod.model.'"),
    ],
)
def test_names_with_another_prefix_are_said(tmp_path: Path, prefix: str, message: str):
    spec = small_spec()
    tensors = {prefix + n.removeprefix("model."): v for n, v in tensors_of(random_weights(spec, 1)).items()}
    refused(write_folder(tmp_path / "m", config_json(spec), tensors), message)


def test_names_of_metas_own_format_are_said(tmp_path: Path):
    tensors = {"tok_embeddings.weight": np.ones((50, 64), np.float32)}
    refused(
        write_folder(tmp_path / "m", config_json(small_spec()), tensors), "the names of Meta's own format; convert it"
    )


def test_an_index_of_other_shards_beside_a_whole_file(tmp_path: Path):
    """The whole file is taken, as transformers does, with a word; an index of the whole file itself is nothing special."""
    spec = small_spec()
    folder = write_checkpoint(tmp_path / "m", spec)
    want = read_checkpoint(folder)
    assert want.notes == ()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}))
    got = read_checkpoint(folder)
    assert_same(got.weights, want.weights)
    assert got.notes == (
        f"{index}: names other files than model.safetensors, which lies beside it and is taken; take the stale one of the two away",
    )
    index.write_text(json.dumps({"weight_map": dict.fromkeys(Tensors(folder), "model.safetensors")}))
    got = read_checkpoint(folder)
    assert_same(got.weights, want.weights)
    assert got.notes == ()


def test_missing_shards_are_counted(tmp_path: Path):
    folder = write_folder(tmp_path / "m", config_json(small_spec()), tensors_of(random_weights(small_spec(), 1)), 3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(
        folder,
        "model-00002-of-00003.safetensors: cannot be read, it is missing; .* names 3 shards and 2 of them are there. Download",
    )


@pytest.mark.parametrize("value", [None, -1, [], [-1], [None], 4294967295])
def test_end_tokens_that_are_none(tmp_path: Path, value: Any):
    assert read_checkpoint(write_checkpoint(tmp_path / "m", small_spec(), eos_token_id=value)).eos_ids == ()
    assert read_checkpoint(write_checkpoint(tmp_path / "m", small_spec(), eos_token_id=[value, 1])).eos_ids == (1,)


def test_a_message_is_one_printable_line_of_bounded_length(tmp_path: Path):
    refused(write_checkpoint(tmp_path / "m", small_spec(), hidden_act="a\nb\x1b[0m" + "x" * 5000), "hidden_act is")
    try:
        read_checkpoint(tmp_path / "m")
    except UserError as e:
        assert str(e).isprintable() and len(str(e)) == 1000


def test_a_gguf_file_goes_to_its_own_reader(tmp_path: Path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "y").write_bytes(b"GGUF")
    (tmp_path / "z").write_bytes(b"TELL")
    assert [is_checkpoint(tmp_path / n) for n in ("x.gguf", "y", "z", "none")] == [True, True, False, False]
    with pytest.raises(UserError):
        open_checkpoint(tmp_path / "x.gguf")


def test_layers_are_read_when_asked_for_and_checked_at_once(tmp_path: Path):
    weights = read_checkpoint(write_checkpoint(tmp_path / "m", small_spec(layers=3))).weights
    assert [len(weights.layers), len(weights.layers[1:])] == [3, 2]
    assert weights.layers[-1] is weights.layers[2]
    with pytest.raises(IndexError):
        weights.layers[3]
    assert replace(weights.spec) == weights.spec
