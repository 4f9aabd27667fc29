"""Models for tests: random ones of any shape, and the demo checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from tellme.golden import head
from tellme.golden.model import LayerWeights, ModelSpec, ModelWeights
from tellme.host.checkpoints.synthetic import random_weights

DEMO = Path(__file__).parents[1] / "demo" / "model"

__all__ = ["DEMO", "load_demo", "random_weights", "small_spec"]

PARTS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def small_spec(**changes: object) -> ModelSpec:
    """A model that the tiny preset holds, with GQA."""
    values: dict[str, object] = dict(
        hidden=64, layers=2, heads=4, kv_heads=2, head_dim=32, ffn=96, vocab=50, max_context=64
    )
    return ModelSpec(**(values | changes))  # type: ignore[arg-type]


def load_demo(folder: Path = DEMO) -> tuple[ModelWeights, NDArray[np.float32]]:
    """The demo checkpoint, and its embedding as float32."""
    c = json.loads((folder / "config.json").read_text())
    spec = ModelSpec(
        hidden=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        kv_heads=c["num_key_value_heads"],
        head_dim=c["head_dim"],
        ffn=c["intermediate_size"],
        vocab=c["vocab_size"],
        activation=c["hidden_act"],
        rope_theta=c["rope_theta"],
        norm_eps=c["rms_norm_eps"],
        max_context=c["max_position_embeddings"],
        tied=c["tie_word_embeddings"],
    )
    with safe_open(folder / "model.safetensors", "np") as f:
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    layers = []
    for i in range(spec.layers):
        prefix = f"model.layers.{i}."
        matrices: dict[str, Any] = {n: _unpack(tensors[f"{prefix}{p}.weight"]) for n, p in PARTS.items()}
        scales: dict[str, Any] = {
            f"{n}_scale": float(tensors[f"{prefix}{p}.weight_scale"][0]) for n, p in PARTS.items()
        }
        layers.append(
            LayerWeights(
                **matrices,
                **scales,
                input_norm=tensors[prefix + "input_layernorm.weight"],
                post_norm=tensors[prefix + "post_attention_layernorm.weight"],
                attn_norm=tensors[prefix + "self_attn.attn_sub_norm.weight"],
                ffn_norm=tensors[prefix + "mlp.ffn_sub_norm.weight"],
            )
        )
    embedding = tensors["model.embed_tokens.weight"]
    rows, scales_e = head.quantise_rows(embedding)
    weights = ModelWeights(
        spec=spec,
        layers=layers,
        norm=tensors["model.norm.weight"],
        embedding=rows,
        embedding_scales=scales_e,
        inputs=embedding,
    )
    return weights, embedding


def _unpack(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Two-bit codes: byte row r holds rows r + i * rows / 4 at bits 2i, code = weight + 1."""
    return np.concatenate([(packed >> (2 * i) & 3).astype(np.int8) - 1 for i in range(4)])
