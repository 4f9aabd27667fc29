"""Tiny Qwen3 models with a scale for every group of weights: where their weights and vectors are, and the folder that they make."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.host.support import write_folder

TERNARY_HEAD = "bonsai-ternary-head"
MODELS = {"bonsai": 128, "bonsai-outliers": 128, "bonsai-64": 64, TERNARY_HEAD: 128}
"""Inputs that share a scale. bonsai: as Ternary Bonsai, in groups of 128. bonsai-outliers: with features of the residual stream that are
far larger than the others, in some tokens more than in others. bonsai-64: groups of 64, of all magnitudes. bonsai-ternary-head: its embedding,
which is the head, is ternary in groups, too."""

FOLDER = Path(__file__).parent / "vectors"
SEQUENCES, LENGTH = 4, 128
"""512 tokens, drawn from the model itself."""
TAPPED = 3
"""Tokens of the first sequence whose layers are recorded."""
VOCAB = 256
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def vectors(name: str) -> Path:
    """Weights, and what PyTorch made of them."""
    return FOLDER / f"{name}.npz"


@cache
def recorded(name: str) -> dict[str, NDArray[Any]]:
    return dict(np.load(vectors(name)))


def tensors(name: str) -> dict[str, NDArray[Any]]:
    """Tensors of the unpacked form: float16 matrices whose groups hold -s, 0 and s; gains and embedding float32."""
    v, out = recorded(name), {}
    for key, value in v.items():
        if key.endswith(".signs"):
            tensor = key.removesuffix(".signs")
            scales = v[f"{tensor}.scales"]
            out[tensor] = (value * np.repeat(scales, MODELS[name], axis=1)[:, : value.shape[1]]).astype(np.float16)
        elif key.startswith("model.") and not key.endswith(".scales"):
            out[key] = value.astype(np.float32)
    return out


def write(name: str, folder: Path) -> Path:
    """The checkpoint folder."""
    return write_folder(folder, CONFIG, tensors(name))


def fingerprint(name: str) -> str:
    """Hash of the weights."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors(name).items()):
        digest.update(key.encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
