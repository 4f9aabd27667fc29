"""Shapes of published ternary models, by the names that the commands take."""

from __future__ import annotations

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

SHAPES: dict[str, ModelSpec] = {"bitnet-0.7b": BITNET_07B, "bitnet-2b": BITNET_2B}
