"""GGUF files for tests, written by the `gguf` package; only I2_S, which it does not know, is packed here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from numpy.typing import NDArray

from tellme.golden.model import ModelSpec, ModelWeights
from tests.host.support import DEMO, tensors_of
from tests.models import PARTS, random_weights

I2_S = 36
AS_IS = -1
"""Instead of a type: what the array has."""
NAMES = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
NORMS = {
    "input_norm": "attn_norm", "post_norm": "ffn_norm", "attn_norm": "attn_sub_norm", "ffn_norm": "ffn_sub_norm",
    "q_norm": "attn_q_norm", "k_norm": "attn_k_norm",
}  # fmt: skip


def pack_i2_s(weights: NDArray[np.int8], scale: float) -> NDArray[np.int8]:
    """As the format is described: 128 weights in 32 bytes, the first 32 in the top bits; behind all scale and 28 bytes of nothing."""
    block, place = np.divmod(np.arange(weights.size), 128)
    group, column = np.divmod(place, 32)
    out = np.zeros(weights.size // 4 + 32, np.uint8)
    np.add.at(out, 32 * block + column, ((weights.reshape(-1) + 1) * 4 ** (3 - group)).astype(np.uint8))
    out[weights.size // 4 :][:4] = np.float32([scale]).view(np.uint8)
    return out.view(np.int8)


Q2_0, Q2_0_LEGACY, PQ2_0, PTQ1_0 = 42, -42, 142, 143
GROUP_OF = {Q2_0: 64, Q2_0_LEGACY: 128, PQ2_0: 128, PTQ1_0: 128}
"""Weights of a block of the types that the package does not know."""
PTQ1_0_PLACES = [
    *([b + 16 * t for t in range(5)] for b in range(16)),
    *([80 + b + 8 * t for t in range(5)] for b in range(8)),
    *([120 + b + 2 * t for t in range(4)] for b in range(2)),
]
"""Weights of each of its bytes, the highest digit first."""


def pack_groups(x: NDArray[np.float32], kind: int) -> NDArray[np.uint8]:
    """Rows of weights -d, 0, d in blocks as the formats are described, byte by byte."""
    blocks = x.reshape(-1, GROUP_OF[kind])
    d = np.abs(blocks).max(axis=1).astype(np.float16).view(np.uint8).reshape(-1, 2)
    codes = np.sign(blocks).astype(np.int64) + 1
    packed = []
    if kind == PTQ1_0:
        for places in PTQ1_0_PLACES:
            value = sum(codes[:, p] * 3 ** (4 - i) for i, p in enumerate(places))
            packed.append(-(-value * 256 // 243))
    else:
        for first in range(0, GROUP_OF[kind], 4):
            packed.append(sum(codes[:, first + j] << 2 * j for j in range(4)))
    weights = np.stack(packed, axis=1).astype(np.uint8)
    return np.concatenate([weights, d] if kind == PTQ1_0 else [d, weights], axis=1).reshape(len(x), -1)


def permute(w: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of Q or K as llama.cpp's converter orders them for the `llama` architecture: rotary partners are neighbours."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def half_scales(weights: ModelWeights) -> ModelWeights:
    """The same model with scales that float16 and bfloat16 hold."""

    def exact(layer: Any) -> Any:
        return replace(
            layer,
            **{f"{p}_scale": float(np.float32(2.0 ** np.round(np.log2(getattr(layer, f"{p}_scale"))))) for p in PARTS},
        )

    return replace(weights, layers=[exact(w) for w in weights.layers])


def model(seed: int = 1, **changes: Any) -> ModelWeights:
    """A small model whose rows are whole blocks of every type."""
    values: dict[str, Any] = dict(
        hidden=256, layers=2, heads=4, kv_heads=2, head_dim=64, ffn=256, vocab=1024, max_context=64, norm_eps=1e-5
    )
    return random_weights(ModelSpec(**(values | changes)), seed)


def demo_vocabulary(w: gguf.GGUFWriter) -> None:
    """The demo model's byte-level vocabulary."""
    t = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, special = t["model"]["vocab"], {a["content"] for a in t["added_tokens"]}
    texts = sorted(vocab, key=vocab.get)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(texts)
    w.add_token_types([gguf.TokenType.CONTROL if x in special else gguf.TokenType.NORMAL for x in texts])
    w.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in t["model"]["merges"]])
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)
    w.add_add_bos_token(True)


def write_gguf(
    path: Path,
    weights: ModelWeights,
    architecture: str = "bitnet-b1.58",
    kind: int = I2_S,
    *,
    embedding: T = T.F32,
    vocabulary: Any = demo_vocabulary,
    skip: tuple[str, ...] = (),
    tensors: dict[str, tuple[NDArray[Any], int]] | None = None,
    unit_scales: bool = False,
    **fields: Any,
) -> Path:
    """A GGUF file of a model: the embedding of `tensors_of`, linear layers as `kind`.

    `skip` leaves metadata and tensors out, `fields` adds metadata (`.` written as `__`, the architecture as `arch`), `tensors` adds tensors
    (values, or bytes of blocks, and their type) or puts them in the place of the model's.
    unit_scales: blocks have scale 1, the matrix's is a tensor of its own.
    """
    s = weights.spec
    w = gguf.GGUFWriter(path, architecture)
    values: dict[str, Any] = {
        "embedding_length": s.hidden,
        "block_count": s.layers,
        "feed_forward_length": s.ffn,
        "context_length": s.max_context,
        "attention.head_count": s.heads,
        "attention.head_count_kv": s.kv_heads,
        "attention.key_length": s.head_dim,
        "attention.value_length": s.head_dim,
        "attention.layer_norm_rms_epsilon": float(s.norm_eps),
        "rope.dimension_count": s.head_dim,
        "rope.freq_base": float(s.rope_theta),
        "vocab_size": s.vocab,
    }
    values = {f"{architecture}.{k}": v for k, v in values.items() if k not in skip}
    values |= {k.replace("__", ".").replace("arch.", f"{architecture}."): v for k, v in fields.items()}
    if vocabulary is not None:
        vocabulary(w)
    for key, v in values.items():
        if isinstance(v, bool):
            w.add_bool(key, v)
        elif isinstance(v, int):
            (w.add_uint32 if v >= 0 else w.add_int32)(key, v)
        elif isinstance(v, float):
            w.add_float32(key, v)
        elif isinstance(v, list):
            w.add_array(key, v)
        else:
            w.add_string(key, v)
    hf, written = tensors_of(weights), set[str]()

    def add(name: str, x: NDArray[Any], t: int) -> None:
        if name in skip or name in written:
            return
        written.add(name)
        if t == I2_S:
            w.add_tensor(name, pack_i2_s(x, 1.0), raw_shape=x.shape, raw_dtype=I2_S)  # type: ignore[arg-type]
        elif t == AS_IS:
            w.add_tensor(name, x)
        elif t in GROUP_OF:
            w.add_tensor(name, pack_groups(x, t).view(np.int8), raw_shape=x.shape, raw_dtype=abs(t))  # type: ignore[arg-type]
        elif x.dtype == np.uint8:
            w.add_tensor(name, x, raw_dtype=T(t))
        elif t == T.F32:
            w.add_tensor(name, x.astype(np.float32))
        elif t == T.F16:
            w.add_tensor(name, x.astype(np.float16))
        else:
            w.add_tensor(name, gguf.quants.quantize(x.astype(np.float32), T(t)), raw_dtype=T(t))

    for name, (x, t) in (tensors or {}).items():
        add(name, x, t)
    add("token_embd.weight", hf["model.embed_tokens.weight"], embedding)
    if not s.tied:
        add("output.weight", hf["lm_head.weight"], embedding)
    add("output_norm.weight", weights.norm, T.F32)
    for i, layer in enumerate(weights.layers):
        for name, tensor in NAMES.items():
            m, scale = getattr(layer, name), getattr(layer, f"{name}_scale")
            if architecture == "llama" and name in "qk":
                m = permute(m, s.heads if name == "q" else s.kv_heads)
            if unit_scales:
                add(f"blk.{i}.{tensor}.scale", np.array([scale]), T.F32)
                scale = 1.0
            full = f"blk.{i}.{tensor}.weight"
            if kind == I2_S and full not in skip and full not in written:
                w.add_tensor(full, pack_i2_s(m, scale), raw_shape=m.shape, raw_dtype=I2_S)  # type: ignore[arg-type]
            elif kind != I2_S:
                add(full, m * np.float32(scale), kind)
        for name, tensor in NORMS.items():
            if getattr(layer, name) is not None:
                add(f"blk.{i}.{tensor}.weight", getattr(layer, name), T.F32)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
