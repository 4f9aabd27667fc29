"""Checkpoints for tests, written as Hugging Face writes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tellme.golden.config import TINY, AcceleratorConfig
from tellme.golden.model import ModelSpec, ModelWeights
from tellme.host.image.model import Model, demo_folder
from tellme.host.machine.driver import Driver
from tellme.host.machine.program import Program, compile_program
from tests.host.machine.reference_machine import ReferenceMachine
from tests.models import PARTS, random_weights

DEMO = demo_folder()

WORD = AcceleratorConfig(
    name="word",
    ports=2,
    port_bytes=16,
    lanes=4,
    block_rows=64,
    attention_lanes=2,
    key_tile=16,
    max_hidden=256,
    max_features=1024,
    max_kv_dim=256,
    max_heads=16,
    max_context=128,
    score_words=256,
    fifo_beats=64,
    burst_beats=16,
)
"""Two ports, 32-byte beats: a third beat size beside the presets'; a score memory that small passes already fill."""


def pack(weights: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two bits a weight: byte row r holds rows r + i * N/4 at bits 2i."""
    parts = (weights + 1).astype(np.uint8).reshape(4, -1, weights.shape[1])
    return parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6


def config_json(spec: ModelSpec, **changes: Any) -> dict[str, Any]:
    """config.json of a model: BitNet, or without sub-norms LLaMA, or Qwen3 if it has QK-norm; nothing says that group scales are ternary."""
    if spec.group_scales:
        changes = {"quantization_config": None} | changes
    plain = ("Qwen3ForCausalLM", "qwen3") if spec.qk_norm else ("LlamaForCausalLM", "llama")
    return {
        "architectures": ["BitNetForCausalLM" if spec.attn_sub_norm else plain[0]],
        "model_type": "bitnet" if spec.attn_sub_norm else plain[1],
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": spec.activation,
        "max_position_embeddings": spec.max_context,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
    } | changes


def tensors_of(weights: ModelWeights, *, latent: bool = False, divide: bool = False) -> dict[str, NDArray[Any]]:
    """Tensors of a checkpoint with these weights. Latent: floats whose mean magnitude quantises back to them."""
    out: dict[str, NDArray[Any]] = {}
    for i, layer in enumerate(weights.layers):
        prefix = f"model.layers.{i}."
        for name, part in PARTS.items():
            w, scale = getattr(layer, name), np.float32(getattr(layer, f"{name}_scale"))
            if weights.spec.group_scales:  # as published, unpacked
                out[f"{prefix}{part}.weight"] = (w * scale).astype(np.float16)
            elif latent:
                out[f"{prefix}{part}.weight"] = w.astype(np.float32) * scale
            else:
                out[f"{prefix}{part}.weight"] = pack(w)
                out[f"{prefix}{part}.weight_scale"] = np.array([1 / scale if divide else scale], np.float32)
        out[prefix + "input_layernorm.weight"] = layer.input_norm
        out[prefix + "post_attention_layernorm.weight"] = layer.post_norm
        if layer.attn_norm is not None:
            out[prefix + "self_attn.attn_sub_norm.weight"] = layer.attn_norm
        if layer.ffn_norm is not None:
            out[prefix + "mlp.ffn_sub_norm.weight"] = layer.ffn_norm
        for name, gain in (("q_norm", layer.q_norm), ("k_norm", layer.k_norm)):
            if gain is not None:
                out[f"{prefix}self_attn.{name}.weight"] = gain
    out["model.norm.weight"] = weights.norm
    rng = np.random.default_rng(5)
    shape = (weights.spec.vocab, weights.spec.hidden)
    out["model.embed_tokens.weight"] = rng.normal(0, 1, shape).astype(np.float32)
    if not weights.spec.tied:
        out["lm_head.weight"] = rng.normal(0, 0.2, shape).astype(np.float32)
    return out


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, NDArray[Any]], shards: int = 1) -> Path:
    """A checkpoint folder, with the demo model's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / name, folder / name)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]
        save_file({n: tensors[n] for n in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_checkpoint(folder: Path, spec: ModelSpec, seed: int = 1, **changes: Any) -> Path:
    """A packed checkpoint with random weights."""
    return write_folder(folder, config_json(spec, **changes), tensors_of(random_weights(spec, seed)))


def start(folder: Path, config: AcceleratorConfig = TINY, **load: Any) -> tuple[Driver, ReferenceMachine, Model]:
    """An accelerator on a reference machine of just the size it needs, with the model loaded."""
    model = Model.open(folder, config)
    program = compile_program(model, config, **load)
    machine = ReferenceMachine(config, program.window_beats)
    accelerator = Driver(machine, config)
    accelerator.load(model, program)
    return accelerator, machine, model


def on_reference_machines(made: list[ReferenceMachine]) -> Callable[..., Driver]:
    """What may stand in the place of `SimulatedAccelerator`: a driver on a new reference machine, which `made` keeps."""

    def simulated(model: Model, program: Program, **options: Any) -> Driver:
        made.append(ReferenceMachine(program.config, program.window_beats))
        accelerator = Driver(made[-1], program.config)
        accelerator.load(model, program)
        return accelerator

    return simulated
