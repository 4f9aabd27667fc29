"""Shapes of published ternary models, by the names that the commands take."""

from __future__ import annotations

from dataclasses import replace

from tellme.golden.spec import ModelSpec

BITNET_07B = ModelSpec(
    hidden=1536,
    layers=24,
    heads=16,
    kv_heads=16,
    head_dim=96,
    ffn=4096,
    vocab=32002,
    activation="silu",
    rope_theta=10000.0,
    max_context=2048,
    tied=True,
)
"""BitNet 0.73B, `1bitLLM/bitnet_b1_58-large`."""

BITNET_2B = ModelSpec(
    hidden=2560,
    layers=30,
    heads=20,
    kv_heads=5,
    head_dim=128,
    ffn=6912,
    vocab=128256,
    activation="relu2",
    rope_theta=500000.0,
    max_context=4096,
    tied=True,
)
"""BitNet b1.58 2B-4T, `microsoft/bitnet-b1.58-2B-4T`."""

_BONSAI = ModelSpec(
    hidden=2048,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    ffn=6144,
    vocab=151936,
    activation="silu",
    attn_sub_norm=False,
    ffn_sub_norm=False,
    qk_norm=True,
    group_scales=True,
    ternary_head=True,
    rope_theta=1e6,
    norm_eps=1e-6,
    max_context=32768,
    tied=True,
)

BONSAI_17B = _BONSAI
"""Ternary Bonsai 1.7B (Qwen3). Embedding and head count as int8, as the accelerator holds them."""

BONSAI_4B = replace(_BONSAI, hidden=2560, layers=36, heads=32, ffn=9728)
"""Ternary Bonsai 4B."""

BONSAI_8B = replace(_BONSAI, hidden=4096, layers=36, heads=32, ffn=12288, tied=False)
"""Ternary Bonsai 8B."""

FALCON_E_1B = ModelSpec(
    hidden=2048,
    layers=24,
    heads=16,
    kv_heads=2,
    head_dim=128,
    ffn=9216,
    vocab=32768,
    activation="silu",
    attn_sub_norm=False,
    ffn_sub_norm=False,
    rope_theta=1000042.0,
    norm_eps=1e-6,
    max_context=8192,
    tied=False,
)
"""Falcon-E 1B, `tiiuae/Falcon-E-1B-Base`: its matrices' sizes are published, FFN and heads follow from them; the rotary base is a guess, which
no cost depends on."""

FALCON_E_3B = replace(FALCON_E_1B, layers=32, ffn=13312)
"""Falcon-E 3B, with the heads of the 1B: its FFN is published, the heads are taken to be the same."""

FALCON3_1B = replace(FALCON_E_1B, layers=18, heads=8, kv_heads=4, head_dim=256, ffn=8192, vocab=131072)
"""Falcon3 1B, `tiiuae/Falcon3-1B-Instruct-1.58bit`: heads of 256."""

FALCON3_3B = replace(FALCON3_1B, hidden=3072, layers=22, heads=12, ffn=9216)
"""Falcon3 3B, likewise."""

LLAMA3_8B = ModelSpec(
    hidden=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=14336,
    vocab=128256,
    activation="silu",
    attn_sub_norm=False,
    ffn_sub_norm=False,
    rope_theta=500000.0,
    max_context=8192,
    tied=False,
)
"""Llama3-8B-1.58, `HF1BitLLM/Llama3-8B-1.58-100B-tokens`."""

SHAPES: dict[str, ModelSpec] = {
    "bitnet-0.7b": BITNET_07B,
    "bitnet-2b": BITNET_2B,
    "bonsai-1.7b": BONSAI_17B,
    "bonsai-4b": BONSAI_4B,
    "bonsai-8b": BONSAI_8B,
    "falcon-e-1b": FALCON_E_1B,
    "falcon-e-3b": FALCON_E_3B,
    "falcon3-1b": FALCON3_1B,
    "falcon3-3b": FALCON3_3B,
    "llama3-8b": LLAMA3_8B,
}
