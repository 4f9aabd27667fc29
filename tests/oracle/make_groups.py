"""Makes tiny Qwen3 models with a scale for every group of weights, and records what transformers makes of them in float32.

Run by `make oracle`. Weights are as a training leaves them: latent normal weights, rounded to -s, 0 and s by their group's mean magnitude, where
rows and groups differ in size. Their activations are nobody's int8: what golden makes of them, with an exponent for every 64, is an approximation.
The vectors: weights; for 512 tokens the negative log-likelihood of the next one and the likeliest; of the first tokens the inputs of
every linear layer and their outputs.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import numpy as np
import torch
import transformers
from torch import nn

from tests.oracle.groups import (
    CONFIG,
    LENGTH,
    MODELS,
    SEQUENCES,
    TAPPED,
    TERNARY_HEAD,
    VOCAB,
    fingerprint,
    recorded,
    tensors,
    vectors,
)
from tests.oracle.make_families import draw

HEAD = dict.fromkeys(MODELS, (0.35, 1.8))
"""Standard deviation of the logarithm of the lengths of head rows, and of the logits of a row of mean length."""
OUTLIERS, TIMES = (7, 20, 40), (32.0, 16.0, 32.0)
"""Features of the residual stream that are so many times as large as the others, and so are few of their tokens' (massive activations)."""


def weights(name: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Signs and scales of every matrix, gains, embedding."""
    c, group = CONFIG, MODELS[name]
    hidden, dim, ffn = c["hidden_size"], c["head_dim"], c["intermediate_size"]
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    outliers = name == "bonsai-outliers"
    out: dict[str, np.ndarray] = {}
    for i in range(c["num_hidden_layers"]):
        shapes = {
            "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn),
        }  # fmt: skip
        for part, (rows, inputs) in shapes.items():
            spread = 0.4 if name == "bonsai-64" else 0.25
            sizes = np.exp(rng.normal(0, spread, (rows, inputs // group))) * np.exp(rng.normal(0, 0.3, (rows, 1)))
            latent = rng.normal(0, 1, (rows, inputs)) * np.repeat(sizes, group, axis=1) * 1.4 / inputs**0.5
            if outliers and inputs == hidden and part != "self_attn.o_proj":
                latent[:, OUTLIERS] *= 0.15  # few weights look at them
            mean = np.abs(latent).reshape(rows, -1, group).mean(-1).astype(np.float16)
            each = np.repeat(mean.astype(np.float64), group, axis=1)
            out[f"model.layers.{i}.{part}.weight.signs"] = np.clip(np.rint(latent / each), -1, 1).astype(np.int8)
            out[f"model.layers.{i}.{part}.weight.scales"] = mean
        for norm in ("input_layernorm", "post_attention_layernorm"):
            gain = rng.uniform(0.5, 1.5, hidden)
            if outliers:
                gain[list(OUTLIERS)] /= 2
            out[f"model.layers.{i}.{norm}.weight"] = gain.astype(np.float32)
        for norm in ("q_norm", "k_norm"):
            out[f"model.layers.{i}.self_attn.{norm}.weight"] = rng.uniform(0.5, 1.5, dim).astype(np.float32)
    spread, peak = HEAD[name]
    rows = rng.normal(0, 1, (VOCAB, hidden)) * np.exp(spread * rng.normal(0, 1, (VOCAB, 1)))
    last = peak / hidden**0.5 * rng.choice([-1, 1], hidden) * rng.uniform(0.5, 1.5, hidden)
    if outliers:
        rows[:, OUTLIERS] = np.array(TIMES) * rng.choice([-1, 1], (VOCAB, 3)) * np.exp(rng.normal(0, 0.5, (VOCAB, 1)))
        last *= 1.5
        last[list(OUTLIERS)] /= 1 << 14
    if name == TERNARY_HEAD:
        mean = np.abs(rows).reshape(VOCAB, -1, group).mean(-1).astype(np.float16)
        each = np.repeat(mean.astype(np.float64), group, axis=1)
        out["model.embed_tokens.weight.signs"] = np.clip(np.rint(rows / each), -1, 1).astype(np.int8)
        out["model.embed_tokens.weight.scales"] = mean
    else:
        out["model.embed_tokens.weight"] = rows.astype(np.float16)
    out["model.norm.weight"] = last.astype(np.float32)
    return out


def tap(model: nn.Module, ids: torch.Tensor) -> dict[str, np.ndarray]:
    """`i.<projection>.x` and `.y`, inputs and outputs of every linear layer."""
    out: dict[str, np.ndarray] = {}
    hooks = []
    for i, layer in enumerate(model.model.layers):
        for name, module in [*layer.self_attn.named_children(), *layer.mlp.named_children()]:
            if isinstance(module, nn.Linear):

                def hook(_: nn.Module, args: Any, y: torch.Tensor, key: str = f"{i}.{name}") -> None:
                    out[f"{key}.x"] = args[0].reshape(len(ids), -1).numpy().copy()
                    out[f"{key}.y"] = y.reshape(len(ids), -1).numpy().copy()

                hooks.append(module.register_forward_hook(hook))
    model(ids[None])
    for h in hooks:
        h.remove()
    return out


def main() -> int:
    """Writes every model, or those that are named; prints what the vectors say."""
    torch._dynamo.config.disable = True
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for number, name in enumerate(MODELS):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(number + 1)
        made = weights(name, np.random.default_rng(number + 1))
        np.savez_compressed(vectors(name), **made)
        recorded.cache_clear()
        config = transformers.Qwen3Config(
            **{k: v for k, v in CONFIG.items() if k not in ("architectures", "model_type", "rope_theta")},
            rope_parameters={"rope_type": "default", "rope_theta": CONFIG["rope_theta"]},
        )
        model = transformers.Qwen3ForCausalLM(config).eval()
        state = {key: torch.from_numpy(value.astype(np.float32)) for key, value in tensors(name).items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}
        with torch.no_grad():
            ids = draw(model, SEQUENCES, LENGTH)
            logits = model(ids).logits[:, :-1]
            taps = tap(model, ids[0, :TAPPED])
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").numpy()
        np.savez_compressed(
            vectors(name), **made, **taps, ids=ids.numpy().astype(np.int16), nll=losses,
            best=logits.argmax(-1).numpy().astype(np.int16), fingerprint=fingerprint(name),
        )  # fmt: skip
        recorded.cache_clear()
        ratio = max(
            float((np.abs(x).max(-1) / np.sqrt((x * x).mean(-1))).max()) for k, x in taps.items() if k.endswith(".x")
        )
        print(
            f"{name}: NLL {losses.mean():.3f} of {np.log(VOCAB):.3f}, {len(np.unique(logits.argmax(-1)))} likeliest tokens, "
            f"largest activation {ratio:.0f} times the mean, {vectors(name).stat().st_size:,} bytes"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
