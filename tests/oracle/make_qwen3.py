"""Runs the second demo model in PyTorch (transformers' Qwen3, float32) and writes the reference vectors that tests read.

Run by `make oracle`. The weights are unpacked here, without the importer, and their names are those that the `gguf` package has for
transformers' modules. The vectors: for every position of every held-out story, the negative log-likelihood of the next token, the
most likely token and its lead over the second; for the first tokens of the first story the residual stream behind every layer.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import gguf
import numpy as np
import torch
import transformers

from tests.oracle.heldout import stories
from tests.oracle.qwen3 import TAPPED, VECTORS, fingerprint, tensors


def reference() -> transformers.Qwen3ForCausalLM:
    """transformers' model with the file's shape and weights."""
    reader, values = tensors()

    def value(name: str) -> float:
        return reader.value(f"qwen3.{name}")

    config = transformers.Qwen3Config(
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        head_dim=value("attention.key_length"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings="output.weight" not in values,
    )
    model = transformers.Qwen3ForCausalLM(config).eval()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    state = {
        name: torch.from_numpy(values.pop(names.get_name(name, (".weight",))).copy())
        for name in model.state_dict()
        if name != "lm_head.weight"
    }
    assert not values, f"not used: {sorted(values)}"
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def main() -> int:
    """Writes the vectors; prints what they say."""
    torch._dynamo.config.disable = True
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    model = reference()
    vectors: dict[str, list[np.ndarray]] = {"nll": [], "best": [], "lead": []}
    with torch.no_grad():
        for ids in stories():
            logits = model(torch.from_numpy(ids)[None]).logits[0, :-1]
            top = logits.topk(2)
            losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids)[1:], reduction="none")
            vectors["nll"].append(losses.numpy())
            vectors["best"].append(top.indices[:, 0].numpy().astype(np.int16))
            vectors["lead"].append((top.values[:, 0] - top.values[:, 1]).numpy())
        states: list[torch.Tensor] = []
        for layer in model.model.layers:
            layer.register_forward_hook(lambda _module, _args, result: states.append(result[0]))
        model(torch.from_numpy(stories()[0][:TAPPED])[None])
    np.savez_compressed(
        VECTORS,
        fingerprint=fingerprint(),
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
        **{name: np.concatenate(parts) for name, parts in vectors.items()},
        **{f"{i}.x": x.reshape(TAPPED, -1).numpy() for i, x in enumerate(states)},
    )
    nll = np.concatenate(vectors["nll"])
    print(f"{VECTORS}: {VECTORS.stat().st_size} bytes, {len(nll)} positions, mean NLL {nll.mean():.5f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
