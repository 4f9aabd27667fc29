"""What the metadata of a GGUF file say of a model: its shape, and the names of its tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from tellme.golden.spec import ACTIVATIONS, MATRICES, NORMS, ModelSpec, RopeScaling, yarn_attention
from tellme.host.checkpoints.common import activation, golden_errors
from tellme.host.checkpoints.gguf.tensors import Gguf
from tellme.host.errors import UserError

FREQUENCIES = "rope_freqs.weight"
# SiLU's names first, which most files have.
_ACTIVATIONS = {name: a.name for a in reversed(ACTIVATIONS.values()) for name in a.gguf}
_ACTIVATION_KEYS = ("hidden_activation", "hidden_act", "activation_function", "feed_forward_activation")
"""Last parts of the metadata that name the gate: llama.cpp's, then what configurations call it."""
ARCHITECTURES = {"bitnet": "silu", "bitnet-b1.58": "relu2", "bitnet-25": "relu2", "llama": "silu", "qwen3": "silu"}
_SHAPE_2B_4T = (2560, 30, 6912, 128256)
_SHAPE_LARGE = (1536, 24, 4096, 32002)
"""hidden, layers, ffn, vocabulary of microsoft/bitnet-b1.58-2B-4T and of 1bitLLM/bitnet_b1_58-large (the others of the first
generation have features that are no multiples of 32)."""


def _gate(
    g: Gguf, architecture: str, shape: tuple[int, int, int, int], heads: tuple[int, int], theta: float
) -> tuple[str, list[str]]:
    """The gate, and what was assumed of it.

    Parameters
    ----------
    shape : hidden, layers, ffn, vocabulary. heads : of queries and of keys. theta : base of the rotary frequencies.

    A file says it in `<architecture>.hidden_activation`, of which a key that was left behind under another architecture is as good.
    Without it the shape of a published model tells. Of other `bitnet-b1.58` files the first generation has as many KV heads as heads
    and a base of 10,000, while 2B-4T and its kin share KV heads and have 500,000.
    """
    said = activation(
        {k: v for k, v in g.fields.items() if k.rpartition(".")[2] in _ACTIVATION_KEYS}, _ACTIVATIONS, g.path
    )
    if said is not None:
        return said, []
    if shape == _SHAPE_2B_4T and architecture != "llama":
        return "relu2", []
    if shape == _SHAPE_LARGE:
        return "silu", []
    gate, why = ARCHITECTURES[architecture], f"as usual for architecture {architecture}"
    if architecture == "bitnet-b1.58" and heads[0] == heads[1] and theta == 10000:
        gate = "silu"
        why = f"its {heads[0]} KV heads for {heads[0]} heads and rope.freq_base of 10,000 are those of the first generation (1bitLLM)"
    elif (
        architecture in ("llama", "qwen3")
        and "blk.0.ffn_sub_norm.weight" not in g
        and "blk.0.attn_sub_norm.weight" not in g
    ):
        return gate, []  # every LLaMA has it
    return gate, [
        f"{g.path}: does not say its activation ({architecture}.hidden_activation is missing); {ACTIVATIONS[gate].title} is assumed, {why}. If that is wrong, "
        "give the model's Hugging Face folder, or a file that says it"
    ]


def read_spec(g: Gguf, architecture: str, notes: list[str]) -> ModelSpec:
    """The shape that the metadata say; what was assumed goes to `notes`. Raises UserError if it is not supported."""

    def key(name: str) -> str:
        return f"{architecture}.{name}"

    def refuse(name: str, value: object, limit: str) -> None:
        raise UserError(f"{g.path}: {key(name)} is {value!r}; {limit}")

    hidden, heads = g.integer(key("embedding_length")), g.integer(key("attention.head_count"))
    if key("attention.key_length") not in g.fields and hidden % heads:
        refuse("attention.head_count", heads, f"without attention.key_length it must divide the {hidden} features")
    head_dim = g.integer(key("attention.key_length"), hidden // heads or 1)
    for name in ("attention.value_length", "rope.dimension_count"):
        if g.integer(key(name), head_dim) != head_dim:
            refuse(name, g.fields[key(name)], f"only {head_dim}, the head dimension, is supported")
    if key("expert_count") in g.fields and g.fields[key("expert_count")] != 0:
        refuse("expert_count", g.fields[key("expert_count")], "mixtures of experts are not supported")
    for name in ("embedding_scale", "residual_scale", "logit_scale", "attention.scale"):  # muP
        if key(name) in g.fields and g.number(key(name)) != 1:
            refuse(name, g.fields[key(name)], "a scale of its own (muP) is not supported")
    shape = g.shape("token_embd.weight")
    if len(shape) != 2:
        raise UserError(f"{g.where('token_embd.weight')}: has the shape {list(shape)}; a row for each token is needed")
    vocab = shape[0]
    if g.integer(key("vocab_size"), vocab) != vocab:
        refuse("vocab_size", g.fields[key("vocab_size")], f"but token_embd.weight has the shape {list(shape)}")
    layers, ffn = g.integer(key("block_count")), g.integer(key("feed_forward_length"))
    if layers > len(list(g)):
        refuse("block_count", layers, f"but the file has {len(list(g))} tensors")
    kv_heads, theta = g.integer(key("attention.head_count_kv"), heads), g.number(key("rope.freq_base"), 10000.0)
    gate, assumed = _gate(g, architecture, (hidden, layers, ffn, vocab), (heads, kv_heads), theta)
    notes += assumed
    norms: dict[str, Any] = {
        n.flag: f"blk.0.{n.gguf}.weight" in g for n in NORMS.values() if n.flag and n.flag != "qk_norm"
    }
    with golden_errors(g.path):
        return ModelSpec(
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=ffn,
            vocab=vocab,
            activation=gate,
            rope_theta=theta,
            norm_eps=g.number(key("attention.layer_norm_rms_epsilon")),
            max_context=g.integer(key("context_length")),
            tied="output.weight" not in g,
            rope_scaling=_rope_scaling(g, architecture, head_dim),
            qk_norm=architecture == "qwen3",
            **norms,
        )


def _rope_scaling(g: Gguf, architecture: str, head_dim: int) -> RopeScaling | None:
    """How the rotary frequencies are scaled: linearly by metadata, or as Llama 3.1 does by a tensor of divisors.

    As in llama.cpp: a factor without a type is linear, 0 is none, and `rope.scale_linear` is its older name.
    """
    kind = f"{architecture}.rope.scaling.type"
    factors = {}
    for key in (f"{architecture}.rope.scaling.factor", f"{architecture}.rope.scale_linear"):
        if key in g.fields and g.fields[key] != 0:
            factors[key] = g.number(key)
    if len(set(factors.values())) > 1:
        said = " and ".join(f"{k} is {v:g}" for k, v in factors.items())
        raise UserError(f"{g.path}: {said}; correct the wrong one")
    by = next(iter(factors.values()), 1.0)
    scaling = g.text(kind, "linear")
    if scaling not in ("none", "linear", "yarn"):
        raise UserError(f"{g.path}: {kind} is {scaling!r}; supported are 'none', 'linear' and 'yarn'")
    if scaling == "none":
        by = 1.0
    for name in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
        key = f"{architecture}.{name}"
        if key in g.fields and g.fields[key] != 0 and g.number(key) != 1:
            raise UserError(f"{g.path}: {key} is {g.fields[key]:g}; a factor of the rotary magnitudes is not supported")
    if f"{architecture}.rope.dimension_sections" in g.fields:
        raise UserError(
            f"{g.path}: {architecture}.rope.dimension_sections is set; heads must be rotated by one position"
        )
    if scaling == "yarn":
        return _yarn(g, architecture, by)
    if FREQUENCIES not in g:
        return RopeScaling(kind="linear", factor=by) if by != 1 else None
    divisors = g.floats(FREQUENCIES, (head_dim // 2,))
    if (divisors == 1).all():
        return RopeScaling(kind="linear", factor=by) if by != 1 else None
    theta = g.number(f"{architecture}.rope.freq_base", 10000.0)
    inverse = (theta ** -(np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    # A file has the divisors and not the four numbers they were made from; published models differ only in the factor.
    llama3 = RopeScaling(kind="llama3", factor=max(float(divisors.max()), 1.0))
    if by != 1 or not np.allclose(inverse / llama3.apply(inverse, theta), divisors, rtol=1e-3, atol=0):
        raise UserError(
            f"{g.where(FREQUENCIES)}: scales the rotary frequencies, but not as Llama 3.1 does; that is not supported"
        )
    return llama3


def _yarn(g: Gguf, architecture: str, factor: float) -> RopeScaling:
    """YaRN by metadata, as llama.cpp computes it."""
    prefix = f"{architecture}.rope.scaling"
    if FREQUENCIES in g:
        raise UserError(
            f"{g.where(FREQUENCIES)}: scales the rotary frequencies, and {prefix}.type is 'yarn'; that is not supported"
        )
    for name, usual in (("yarn_log_multiplier", 0), ("yarn_ext_factor", 1)):
        value = g.fields.get(f"{prefix}.{name}", usual)
        if not isinstance(value, int | float) or value != usual:
            raise UserError(f"{g.path}: {prefix}.{name} is {str(value)[:100]}; only {usual} is supported")
    turns = {n: g.number(key) for n in ("beta_fast", "beta_slow") if (key := f"{prefix}.yarn_{n}") in g.fields}
    context = f"{prefix}.original_context_length"
    original = g.integer(context if context in g.fields else f"{architecture}.context_length")
    return RopeScaling(
        kind="yarn", factor=factor, original_context=original, attention_factor=yarn_attention(factor), **turns
    )


def tensor_names(spec: ModelSpec) -> set[str]:
    """Tensors that a file of this shape may hold."""
    matrices = [m.gguf for m in MATRICES.values()]
    norms = [NORMS[name].gguf for name in spec.norms]
    parts = [f"{n}.weight" for n in (*norms, *matrices)] + [f"{n}.scale" for n in matrices]
    names = {f"blk.{i}.{part}" for i in range(spec.layers) for part in parts}
    return names | {"token_embd.weight", "output_norm.weight", "output.weight", FREQUENCIES}
