"""Random models of every family, plain and with outliers, on golden and in PyTorch: how near golden is to float32, beside bfloat16.

`python -m bench.fidelity` writes the tables of docs/measurements/fidelity.md; it needs the packages of `make oracle`.
`--only WORD` prints the rows of models whose name has that word in it, and writes nothing.

The models are larger than those of the tests (`SHAPES`), their parameters are bfloat16 numbers as published ones are, so that
PyTorch's bfloat16 run loses nothing by reading them. Each is run on sequences drawn from itself in float32. What is called
bfloat16 is transformers' own run in that type; first BitNet, which transformers does not know, is its LLaMA with the layers
of tests/oracle/make_families.py.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import nn

from tellme.golden.config import KV260
from tellme.golden.model import GoldenModel, ModelWeights
from tellme.host.checkpoints.checkpoint import Checkpoint, read_checkpoint, with_int8_inputs
from tellme.host.talk.scoring import log_softmax
from tests.oracle.families import FAMILIES
from tests.oracle.make_families import draw, write

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SEQUENCES, LENGTH = 4, 256
VOCAB = 4096
SHAPES: dict[str, dict[str, Any]] = {
    "bitnet-latent": dict(hidden_size=192, intermediate_size=512, num_attention_heads=6, num_key_value_heads=2),
    "bitnet-packed": dict(hidden_size=256, intermediate_size=704, num_attention_heads=4, num_key_value_heads=1),
    "first-bitnet": dict(hidden_size=192, intermediate_size=512, num_attention_heads=2, num_key_value_heads=2),
    "llama-ternary": dict(hidden_size=256, intermediate_size=768, num_attention_heads=8, num_key_value_heads=2),
}
LAYERS = 4
HEAD = (0.3, 1.9)
"""As in tests/oracle/make_families.py."""
FEATURE = 3
"""The one that is made an outlier."""


def _norms(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """(layer, its input norm)."""
    for layer in model.model.layers:
        yield layer, layer.input_layernorm


def _gain(factor: float) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        for _, norm in _norms(model):
            norm.weight[FEATURE] *= factor

    return change


def _residual(model: nn.Module) -> None:
    """A feature of the residual stream is 1e4, and every norm brings it back to the size of the others, as trained models do.

    A head that is the embedding has that column, too; its norm's gain makes little of it.
    """
    rows = model.get_input_embeddings().weight
    rows[:, FEATURE] = 1e4 * (1 + 0.1 * torch.randn(len(rows)))

    def bring_back(norm: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0].flatten(0, -2)
        size = float(torch.cat([x[:, :FEATURE], x[:, FEATURE + 1 :]], 1).pow(2).mean().sqrt())
        norm.weight *= float(x.pow(2).mean().sqrt()) / size
        norm.weight[FEATURE] *= size / 1e4
        if norm is model.model.norm and model.config.tie_word_embeddings:
            norm.weight[FEATURE] *= 1e-4

    norms = [n for layer in model.model.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)]
    hooks = [norm.register_forward_pre_hook(bring_back) for norm in [*norms, model.model.norm]]
    # With weights as they will be: ternary ones give less than latent ones.
    linears = [m for m in model.modules() if type(m) is nn.Linear and m is not model.get_output_embeddings()]
    latent = [m.weight.clone() for m in linears]
    for m in linears:
        mean = m.weight.abs().mean()
        m.weight.copy_((m.weight / mean).round().clamp(-1, 1) * mean)
    model(torch.randint(len(rows), (1, 64)))
    for m, weight in zip(linears, latent, strict=True):
        m.weight.copy_(weight)
    for hook in hooks:
        hook.remove()


def _sharp(model: nn.Module) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight *= 2
        layer.self_attn.k_proj.weight *= 2


def _key(model: nn.Module) -> None:
    """A feature of the input norm is large and goes into one channel of K alone (weights are ternary, so that a row cannot be)."""
    for layer, norm in _norms(model):
        norm.weight[FEATURE] *= 30
        a = layer.self_attn
        largest = a.k_proj.weight.abs().max()
        for linear in (a.q_proj, a.k_proj, a.v_proj):
            linear.weight[:, FEATURE] = 0
        a.k_proj.weight[5, FEATURE] = largest


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "plain": lambda model: None,
    "gain x10": _gain(10),
    "gain x50": _gain(50),
    "residual 1e4": _residual,
    "sharp attention": _sharp,
    "K channel x30": _key,
}


def _made(change: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
    def both(model: nn.Module) -> None:
        with torch.no_grad():
            change(model)
            for p in model.parameters():
                p.copy_(p.bfloat16())

    return both


@dataclass(frozen=True)
class Subject:
    """A model, its sequences [SEQUENCES, LENGTH], and logarithms of the probabilities that PyTorch gives: [SEQUENCES, LENGTH, vocab]."""

    name: str
    checkpoint: Checkpoint
    ids: I64
    float32: F64
    bfloat16: F64


def _torch(model: nn.Module, ids: torch.Tensor) -> F64:
    with torch.no_grad():
        return np.stack([log_softmax(model(s[None]).logits[0].float().numpy()) for s in ids])


def subject(family: str, variant: str) -> Subject:
    """One of the models."""
    seed = 100 + 10 * FAMILIES.index(family) + list(CHANGES).index(variant)
    shape = SHAPES[family] | {"num_hidden_layers": LAYERS, "vocab_size": VOCAB, "max_position_embeddings": LENGTH}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "m"
        model = write(family, folder, seed, shape=shape, head=HEAD, change=_made(CHANGES[variant]))
        with torch.no_grad():
            ids = draw(model, SEQUENCES, LENGTH)
        exact = _torch(model, ids)
        if family == "first-bitnet":
            low = model.bfloat16()
        else:
            low = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).bfloat16().eval()
        read = read_checkpoint(folder)
        held = replace(read, weights=replace(read.weights, layers=list(read.weights.layers)))
        return Subject(f"{family}, {variant}", held, ids.numpy(), exact, _torch(low, ids))


def golden(weights: ModelWeights, ids: I64) -> F64:
    """What golden makes of sequences: log probabilities [sequences, length, vocab]."""
    model = GoldenModel(weights, KV260)
    out = []
    for s in ids:
        model.reset()
        out.append(log_softmax(model.prefill(s, all_logits=True).logits))
    return np.stack(out)


@dataclass(frozen=True)
class Closeness:
    """Of a run to float32's: change of NLL, share of same likeliest tokens, KL(float32 || run) of each position."""

    nll: float
    same: float
    kl: F64

    @classmethod
    def of(cls, got: F64, want: F64, ids: I64) -> Closeness:
        def nll(x: F64) -> float:
            return -float(np.take_along_axis(x[:, :-1], ids[:, 1:, None], -1).mean())

        kl = (np.exp(want) * (want - got)).sum(-1)
        return cls(nll(got) / nll(want) - 1, float((got.argmax(-1) == want.argmax(-1)).mean()), kl)

    def cells(self) -> list[str]:
        return [f"{self.nll:+.2%}", f"{self.same:.2%}", f"{self.kl.mean():.2e}", f"{self.kl.max():.1e}"]


def main() -> None:
    torch._dynamo.config.disable = True
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="models whose name has this word in it; print only")
    only = parser.parse_args().only
    for variant in CHANGES:
        for family in FAMILIES:
            if only not in f"{family}, {variant}":
                continue
            s = subject(family, variant)
            runs = {
                "bfloat16": s.bfloat16,
                "exact": golden(s.checkpoint.weights, s.ids),
                "int8": golden(with_int8_inputs(s.checkpoint).weights, s.ids),
            }
            print(
                s.name,
                "NLL",
                -float(np.take_along_axis(s.float32[:, :-1], s.ids[:, 1:, None], -1).mean()),
                len(np.unique(s.ids)),
                len(np.unique(s.float32.argmax(-1))),
            )
            for name, got in runs.items():
                print(
                    "| " + " | ".join([s.name, name, *Closeness.of(got, s.float32, s.ids).cells()]) + " |", flush=True
                )


if __name__ == "__main__":
    main()
