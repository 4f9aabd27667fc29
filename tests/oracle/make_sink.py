"""Writes a tiny model with an attention sink, and what PyTorch (float32) makes of a long sequence of its own.

Run by `make oracle`. Every head gives the first token nearly all of its weight, and that token's value is 0, so that what
attention says comes from the others' small weights alone; the sub-norm behind it brings that to full size. Trained models
do so to attend to nothing: here each token has feature `TOKEN`, which all queries look for, the first one alone has
feature `FIRST`, which its key shows in the dimensions that RoPE turns slowest, and no value comes from either.
"""

from __future__ import annotations

import os
import shutil
import sys

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import numpy as np
import torch
import transformers
from transformers.integrations.bitnet import pack_weights

from tests.oracle.make_families import PROJECTIONS, VOCAB, write_tokenizer
from tests.oracle.sink import CHECKPOINT, ENDS, LENGTH, VECTORS, fingerprint

FIRST, TOKEN = 0, 1
SHARE = 3000.0
"""Feature FIRST of the first token, others being of size 1: behind the norm nothing else of it is left."""
LEAD, SPREAD = 14.0, 1.5
"""Of the sink's score over the mean of the others, and standard deviation of these, nats."""
VALUE = 1e5
"""Size of values: attention's results are well above the sub-norm's epsilon, small weights or not."""


def ternary(*shape: int) -> torch.Tensor:
    """-1, 0, 1 at random."""
    return torch.randint(-1, 2, shape).float()


def write() -> torch.nn.Module:
    """Writes the checkpoint; the model as PyTorch runs it, read back from there."""
    torch.manual_seed(1)
    config = transformers.BitNetConfig(
        vocab_size=VOCAB, hidden_size=96, intermediate_size=128, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, hidden_act="relu2", max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=1,
        rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )  # fmt: skip
    model = transformers.BitNetForCausalLM(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.uniform_(0.5, 1.5)
            else:
                p.copy_(ternary(*p.shape) if "proj" in name else torch.randn(p.shape))
        rows = model.get_input_embeddings().weight
        rows[:, FIRST], rows[:, TOKEN] = 0, 4
        rows *= torch.exp(0.4 * torch.randn(VOCAB, 1))
        rows[0] = torch.nn.functional.one_hot(torch.tensor(FIRST), config.hidden_size) * SHARE
        # Signs, because a tied head would find the input token itself again, whatever the layers do.
        model.model.norm.weight *= 2.5 / config.hidden_size**0.5 * torch.randn(config.hidden_size).sign()
        model.model.norm.weight[[FIRST, TOKEN]] = 0
        for layer in model.model.layers:
            shape_layer(layer, rows)
    state = {}
    for name, tensor in model.state_dict().items():
        if any(p in name for p in PROJECTIONS):
            state[name], state[f"{name}_scale"] = pack_weights(tensor.sign()), tensor.abs().max().reshape(1)
        elif name != "lm_head.weight":
            state[name] = tensor
    config.quantization_config = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
    }
    shutil.rmtree(CHECKPOINT, ignore_errors=True)
    model.save_pretrained(CHECKPOINT, state_dict=state)
    for path in CHECKPOINT.iterdir():
        path.chmod(0o644)
    write_tokenizer(CHECKPOINT, VOCAB)
    return transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def shape_layer(layer: torch.nn.Module, rows: torch.Tensor) -> None:
    """Makes the sink; scales such that scores have `SPREAD` and `LEAD`, and values `VALUE`."""
    attention, mlp = layer.self_attn, layer.mlp
    q, k, v, o = (getattr(attention, f"{name}_proj").weight for name in "qkvo")
    gate, up, down = (getattr(mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
    size = attention.head_dim
    slow = [d for d in range(size) if d % (size // 2) >= 3 * size // 8]
    for matrix in (q, k, v, gate, up):
        matrix[:, [FIRST, TOKEN]] = 0
    for matrix in (o, down):
        matrix[[FIRST, TOKEN]] = 0
    for head in range(0, len(q), size):
        q[[head + d for d in slow], TOKEN] = 1
    k[slow, FIRST] = 1
    gain = layer.input_layernorm.weight
    gain[TOKEN] = 4
    layer.post_attention_layernorm.weight[[FIRST, TOKEN]] = 0.01
    x = rows[2:] / rows[2:].square().mean(-1, keepdim=True).sqrt() * gain
    queries, keys = (x @ q.T).reshape(-1, size), x @ k.T
    pairs = queries[torch.randint(len(queries), (4000,))] * keys[torch.randint(len(keys), (4000,))]
    scale = SPREAD / (pairs.sum(-1).std() / size**0.5)
    of_sink = queries[:, slow].mean(0).sum() * rows.shape[1] ** 0.5 / size**0.5 * scale
    gain[FIRST] = LEAD / of_sink
    q *= scale
    v *= VALUE / (x @ v.T).std()
    for matrix, size_out in ((o, 0.8), (down, 0.5), (gate, 1.0), (up, 1.0)):
        matrix *= size_out / (2 / 3 * matrix.shape[1]) ** 0.5


def draw(model: torch.nn.Module) -> torch.Tensor:
    """A random sequence of the model's own, [1, LENGTH], without a second first token and without an end."""
    ids = last = torch.zeros(1, 1, dtype=torch.int64)
    cache = None
    while ids.shape[1] < LENGTH:
        out = model(last, past_key_values=cache, use_cache=True)
        p = out.logits[:, -1].softmax(-1)
        p[:, :2] = 0
        cache, last = out.past_key_values, torch.multinomial(p, 1)
        ids = torch.cat([ids, last], -1)
    return ids


def main() -> int:
    """Writes checkpoint and vectors; prints what they say."""
    torch._dynamo.config.disable = True
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with torch.no_grad():
        model = write()
        ids = draw(model)
        logits = model(ids).logits[0].numpy()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(ids[:, :256], output_attentions=True).attentions
    np.savez_compressed(
        VECTORS,
        fingerprint=fingerprint(),
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
        ids=ids[0].numpy().astype(np.int16),
        best=logits.argmax(-1).astype(np.int16),
        logits=np.concatenate([logits[:ENDS], logits[-ENDS:]]).astype(np.float16),
    )
    size = VECTORS.stat().st_size + sum(p.stat().st_size for p in CHECKPOINT.iterdir())
    shares = ", ".join(f"{w[0, :, 1:, 0].median():.5f}" for w in weights)
    print(f"sink: {size:,} bytes, {LENGTH} tokens; the first one's weight (median of a layer): {shares}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
