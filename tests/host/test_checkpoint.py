"""Checkpoints become the right weights, and broken ones are refused in one line that says what, where and what to do."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from golden import head, ternary
from golden.model import ModelWeights
from host.checkpoint import read_checkpoint
from host.errors import UserError
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
    "changes", [{}, {"tied": False}, {"attn_sub_norm": False}, {"ffn_sub_norm": False, "activation": "silu"}]
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
    with pytest.raises(UserError, match=message) as e:
        read_checkpoint(folder)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, r"model_type is 'llama'; only 'bitnet'"),
        ({"attention_bias": True}, "attention_bias is set"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type is 'yarn'; only 'default'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; supported are relu2, silu"),
        ({"head_dim": 48}, "head_dim must be a multiple of 32, not 48"),
        ({"hidden_size": 72}, "hidden must be a multiple of 32, not 72"),
        ({"num_key_value_heads": 3}, r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, not 0"),
        ({"vocab_size": "big"}, "vocab_size must be a positive integer, not 'big'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps must be a positive number, not -1"),
        ({"quantization_config": {"linear_class": "int4"}}, "linear_class is 'int4'"),
        ({"quantization_config": {"linear_class": "bitlinear", "use_rms_norm": True}}, "use_rms_norm .* is set"),
        ({"num_hidden_layers": 3}, "tensor model.layers.2.self_attn.q_proj.weight is missing"),
        ({"num_hidden_layers": 1}, "model.layers.1.*and 17 more: no place in this model"),
        ({"vocab_size": 51}, r"embed_tokens.weight has shape \[50, 64\], config.json asks for \[51, 64\]"),
        ({"tie_word_embeddings": False}, "tensor lm_head.weight is missing"),
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
        (DOWN, np.full((64, 96), np.inf, np.float32), "down_proj.weight holds NaN or infinity"),
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
    refused(write_folder(tmp_path / "m", config_json(spec), tensors), message)


def test_a_tied_head_that_repeats_the_embedding_is_accepted(tmp_path: Path):
    spec = small_spec()
    tensors = tensors_of(random_weights(spec, 1))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    assert read_checkpoint(write_folder(tmp_path / "m", config_json(spec), tensors)).weights.head is None


def test_missing_files(tmp_path: Path):
    refused(tmp_path, "has no config.json; give a Hugging Face checkpoint folder or a .tlm image")
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


def test_layers_are_read_when_asked_for_and_checked_at_once(tmp_path: Path):
    weights = read_checkpoint(write_checkpoint(tmp_path / "m", small_spec(layers=3))).weights
    assert [len(weights.layers), len(weights.layers[1:])] == [3, 2]
    assert weights.layers[-1] is weights.layers[2]
    with pytest.raises(IndexError):
        weights.layers[3]
    assert replace(weights.spec) == weights.spec
