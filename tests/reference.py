"""The model in straight-line float64, independent of golden's arithmetic: what golden approximates.

Ternary weights and int8 activations of the linear layers are part of the model. The accelerator's own approximations
(int8 queries, keys and values, int8 embedding and head) are options, so that their contributions can be told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellme.golden.model import ModelWeights

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """What is int8 besides the linear layers, or rounded otherwise."""

    query: bool = False
    cache: bool = False
    embedding: bool = False
    head: bool = False
    scores: bool = False
    """Scores are multiples of 2^-10, as powers of two."""
    groups: bool = False
    """Activations of linear layers have a power of four for every 64, up to 64."""


def _blocks(x: F64) -> F64:
    """Block floating point of int8."""
    n = x.shape[-1]
    most = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5)
    out = np.empty_like(x)
    for i in range(0, n, 64):
        part = x[..., i : i + 64]
        ratio = most / np.maximum(np.abs(part).max(-1, keepdims=True), 1e-300)
        power = 4.0 ** np.clip(np.floor(np.log2(ratio) / 2), 0, 3)
        scale = most / 127 / power
        out[..., i : i + 64] = np.clip(np.rint(part / scale), -128, 127) * scale
    return out


def _same(x: F64) -> F64:
    return x


@dataclass(frozen=True)
class Kept:
    """What becomes of queries, keys and values [positions, heads, head_dim], after the options and RoPE."""

    query: Callable[[F64], F64] = _same
    key: Callable[[F64], F64] = _same
    value: Callable[[F64], F64] = _same


def rounded(x: F64, largest: int = 127) -> F64:
    """As integers times a scale a row, which makes the largest magnitude `largest`."""
    scale = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5) / largest
    return np.clip(np.rint(x / scale), -largest - 1, largest) * scale


_int8 = rounded


def _norm(x: F64, gain: NDArray[np.float32] | None, eps: float) -> F64:
    if gain is None:
        return x
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def forward(
    weights: ModelWeights,
    tokens: NDArray[np.int64],
    options: Options,
    embedding: NDArray[np.float32] | None = None,
    kept: Kept = Kept(),
) -> F64:
    """Logits [positions, vocab] of one sequence. `embedding` holds the float rows; those of the weights if None."""
    s = weights.spec
    n = len(tokens)
    activations = _blocks if options.groups else _int8
    coded = weights.embedding * weights.embedding_scales[:, None].astype(np.float64)
    exact = coded if embedding is None else embedding.astype(np.float64)
    x = (coded if options.embedding else exact)[tokens]
    frequency = s.rope_theta ** -(np.arange(0, s.head_dim, 2) / s.head_dim)
    if s.rope_scaling is not None:
        frequency = s.rope_scaling.apply(frequency.astype(np.float32), s.rope_theta).astype(np.float64)
    angle = np.arange(n)[:, None] * frequency
    magnitude = 1.0 if s.rope_scaling is None else s.rope_scaling.attention_factor
    cos, sin = (magnitude * np.tile(f(angle), 2)[:, None] for f in (np.cos, np.sin))

    def rotate(y: F64) -> F64:
        half = s.head_dim // 2
        return y * cos + np.concatenate([-y[..., half:], y[..., :half]], -1) * sin

    mask = np.where(np.arange(n) <= np.arange(n)[:, None], 0.0, -np.inf)
    for w in weights.layers:
        h = activations(_norm(x, w.input_norm, s.norm_eps))
        q = rotate(_norm((h @ w.q.T * w.q_scale).reshape(n, s.heads, s.head_dim), w.q_norm, s.norm_eps))
        k = rotate(_norm((h @ w.k.T * w.k_scale).reshape(n, s.kv_heads, s.head_dim), w.k_norm, s.norm_eps))
        v = (h @ w.v.T * w.v_scale).reshape(n, s.kv_heads, s.head_dim)
        q = _int8(q) if options.query else q
        k, v = (_int8(k), _int8(v)) if options.cache else (k, v)
        q, k, v = kept.query(q), kept.key(k), kept.value(v)
        k, v = (np.repeat(t, s.heads // s.kv_heads, axis=1) for t in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(s.head_dim) + mask
        if options.scores:
            scores = np.rint(scores * np.log2(np.e) * 1024) / 1024 / np.log2(np.e)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        o = np.einsum("hqk,khd->qhd", p, v).reshape(n, -1)
        x = x + activations(_norm(o, w.attn_norm, s.norm_eps)) @ w.o.T * w.o_scale
        h = activations(_norm(x, w.post_norm, s.norm_eps))
        gate, up = h @ w.gate.T * w.gate_scale, h @ w.up.T * w.up_scale
        gate = np.maximum(gate, 0) ** 2 if s.activation == "relu2" else gate / (1 + np.exp(-gate))
        x = x + activations(_norm(gate * up, w.ffn_norm, s.norm_eps)) @ w.down.T * w.down_scale
    last = _norm(x, weights.norm, s.norm_eps)
    rows, scales = weights.head_rows
    matrix = rows * scales[:, None].astype(np.float64) if options.head or not s.tied else exact
    return (_int8(last) if options.head else last) @ matrix.T


def nll(logits: NDArray[np.floating], targets: NDArray[np.int64]) -> F64:
    """Negative log-likelihood, nats, of each target [positions] under logits [positions, vocab]."""
    x = logits.astype(np.float64)
    top = x.max(-1)
    return np.asarray(top + np.log(np.exp(x - top[:, None]).sum(-1)) - x[np.arange(len(targets)), targets])
