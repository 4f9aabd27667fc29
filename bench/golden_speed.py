"""Speed and memory of the golden model at a reference shape: ``python -m bench.golden_speed SHAPE`` prints JSON."""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.config import KV260
from golden.model import GoldenModel, LayerWeights, ModelSpec, ModelWeights
from host.checkpoint import LazyLayers

SHAPES = {
    "0.73B": ModelSpec(
        hidden=1536, layers=24, heads=16, kv_heads=16, head_dim=96, ffn=4096, vocab=32002, activation="silu",
        max_context=2048,
    ),
    "2B-4T": ModelSpec(
        hidden=2560, layers=30, heads=20, kv_heads=5, head_dim=128, ffn=6912, vocab=128256, activation="relu2",
        rope_theta=500000.0, max_context=3968,
    ),
}  # fmt: skip
"""bitnet_b1_58-large and BitNet b1.58 2B-4T, whole."""


def synthetic(spec: ModelSpec) -> ModelWeights:
    """Random ternary weights of a shape, a layer made when it is asked for."""

    def matrix(rng: np.random.Generator, rows: int, inputs: int) -> NDArray[np.int8]:
        return rng.integers(-1, 2, (rows, inputs), dtype=np.int8)

    def layer(i: int) -> LayerWeights:
        rng = np.random.default_rng(i)
        shapes = {
            "q": (spec.q_dim, spec.hidden),
            "k": (spec.kv_dim, spec.hidden),
            "v": (spec.kv_dim, spec.hidden),
            "o": (spec.hidden, spec.q_dim),
            "gate": (spec.ffn, spec.hidden),
            "up": (spec.ffn, spec.hidden),
            "down": (spec.hidden, spec.ffn),
        }
        gains = {"input_norm": spec.hidden, "post_norm": spec.hidden, "attn_norm": spec.q_dim, "ffn_norm": spec.ffn}
        parts: dict[str, Any] = {name: matrix(rng, *shape) for name, shape in shapes.items()}
        parts |= {f"{name}_scale": 1 / shape[1] ** 0.5 for name, shape in shapes.items()}
        parts |= {name: rng.uniform(0.5, 1.5, n).astype(np.float32) for name, n in gains.items()}
        return LayerWeights(**parts)

    rng = np.random.default_rng(99)
    return ModelWeights(
        spec=spec,
        layers=LazyLayers(spec.layers, layer),
        norm=np.ones(spec.hidden, np.float32),
        embedding=rng.integers(-127, 128, (spec.vocab, spec.hidden), dtype=np.int8),
        embedding_scales=rng.uniform(0.005, 0.01, spec.vocab).astype(np.float32),
    )


def measure(spec: ModelSpec, prompt: int, new: int) -> dict[str, Any]:
    """Tokens a second of a prompt and of decoding behind it, peak memory in GiB, load before and after."""
    before = os.getloadavg()[0]
    start = time.monotonic()
    model = GoldenModel(synthetic(spec), KV260)
    made = time.monotonic() - start
    ids = np.random.default_rng(1).integers(0, spec.vocab, prompt)
    model.prefill(ids[:16])  # the BLAS starts its threads, the allocator finds its sizes
    model.reset()
    start = time.monotonic()
    result = model.prefill(ids)
    prefill = time.monotonic() - start
    start = time.monotonic()
    for _ in range(new):
        result = model.decode(int(result.best[0]))
    decode = time.monotonic() - start
    return {
        "prompt": prompt,
        "new": new,
        "load_s": round(made, 1),
        "prefill_tokens_per_s": round(prompt / prefill, 2),
        "decode_tokens_per_s": round(new / decode, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "load_before": round(before, 1),
        "load_after": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Measures one shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--layers", type=int, help="fewer layers, for a profile")
    arguments = parser.parse_args()
    spec = SHAPES[arguments.shape]
    if arguments.layers:
        from dataclasses import replace

        spec = replace(spec, layers=arguments.layers)
    print(json.dumps(measure(spec, arguments.prompt, arguments.new)))


if __name__ == "__main__":
    main()
