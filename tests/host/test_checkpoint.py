"""Checkpoints become the right weights; broken ones are refused in one line: what, where, what to do."""

from __future__ import annotations

import json
import os
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import host.tensors
from golden import head, ternary
from golden.config import TINY
from golden.model import ModelWeights, rope_tables
from host.checkpoint import is_checkpoint, open_checkpoint, read_checkpoint
from host.errors import UserError
from host.image import Image
from host.model import Model, convert
from host.program import check_fits
from host.tensors import Tensors
from tests.host.support import DEMO, config_json, tensors_of, write_checkpoint, write_folder
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
            r"config.json: model_type is 'qwen2', architectures \['Qwen2ForCausalLM'\]; supported are 'bitnet'",
        ),
        (
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
            "model.layers.0.mlp.ffn_sub_norm.weight and 3 more: no place in this model",
        ),
        ({"attention_bias": True}, "attention_bias is set"),
        ({"mlp_bias": True}, "mlp_bias is set; linear layers with a bias are not supported"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type is 'yarn'; supported are default, linear and llama3"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'; supported are default"),
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
    monkeypatch.setattr(host.tensors, "PIECE", pieces * 64)
    part = read_checkpoint(folder).weights
    assert_same(replace(part, layers=list(part.layers)), replace(whole, layers=layers), scales=not latent)
    for a, b in zip(part.layers, layers, strict=True):
        assert a.up_scale == pytest.approx(b.up_scale, rel=1e-6)


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
        monkeypatch.setattr(host.tensors, "PIECE", piece)
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
