"""Reads GGUF files of llama.cpp and bitnet.cpp into the golden model's weights.

| tensor type | weights |
|---|---|
| I2_S (36, bitnet.cpp's; unknown to the `gguf` package) | blocks of 128 in 32 bytes: byte j holds weights j, j + 32, j + 64, j + 96 at bits 7:6, 5:4, 3:2, 1:0 as weight + 1; behind the last block one float32 scale and 28 bytes of nothing |
| TQ1_0, TQ2_0 | blocks of 256 with a float16 scale each |
| Q2_0 (42, llama.cpp's since mid-2026), PQ2_0 (142), PTQ1_0 (143; both of Prism's branch) | blocks of 64 (Q2_0 of earlier files: 128, told apart by the tensor's span) and of 128 with a float16 scale each; unknown to the `gguf` package |
| F32, F16, BF16, Q8_0, ... | every weight -s, 0 or +s; or latent weights, when they are asked for |

Where the scales of a matrix of the first layer differ, the model has `group_scales`: a scale for every 64 inputs.

A scale of its own (`blk.N.attn_q.scale`) multiplies that of the blocks. Norms, embedding and head may be of any type that the `gguf` package decodes.

| `general.architecture` | gate, if the file does not say | rotary pairs | from |
|---|---|---|---|
| `bitnet` | SiLU | halves | llama.cpp; 1bitLLM's models |
| `bitnet-b1.58` | squared ReLU; SiLU with the heads and rotary base of the first generation, see `gguf.spec` | halves | bitnet.cpp; microsoft/bitnet-b1.58-2B-4T, since 2026 1bitLLM's models, too |
| `bitnet-25` | squared ReLU | halves | bitnet.cpp; microsoft/bitnet-b1.58-2B-4T |
| `qwen3` | SiLU | halves | Ternary Bonsai; every head of Q and K has a norm |
| `llama` | SiLU | neighbours: rows of Q and K are put back in the order of halves | Falcon3, Llama3-8B |

`hidden_activation` of the metadata says which gate it is; most files do not have it. What is assumed then is in `Checkpoint.notes`, unless the shape is that of a
published model. Special tokens of id -1, in whatever integer type, are left out, as if the file did not name them; padding and unknown tokens beyond
the vocabulary, too, with a note.

I2_S has two more layouts: builds of bitnet.cpp for Arm quantise in blocks of 64, and some newer ones for x86 four rows at a time. The file does not say which one it has. What is
read here is the one of the published files (and of `dequantize_row_i2_s`); of the others the weights would come out in the wrong order: convert from the original checkpoint then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden.model import LayerWeights, ModelWeights
from tellme.golden.spec import MATRICES, NORMS, ModelSpec
from tellme.host.checkpoints.balance import balanced
from tellme.host.checkpoints.common import Checkpoint, LazyLayers, golden_errors, unsupported
from tellme.host.checkpoints.gguf.header import SPLIT
from tellme.host.checkpoints.gguf.spec import ARCHITECTURES, read_spec, tensor_names
from tellme.host.checkpoints.gguf.tensors import Gguf
from tellme.host.checkpoints.gguf.vocabulary import read_tokenizer
from tellme.host.errors import UserError


def _halves(w: NDArray[np.integer], heads: int) -> NDArray[np.integer]:
    """Rows of Q or K in the order of rotary halves, from llama.cpp's order of neighbours."""
    rows, inputs = w.shape
    return np.ascontiguousarray(w.reshape(heads, rows // heads // 2, 2, inputs).swapaxes(1, 2)).reshape(rows, inputs)


def _refuse_parts(g: Gguf) -> None:
    """Refuses files that are only a part of a model, or something beside one."""
    name, count = SPLIT.search(g.path.name), g.fields.get("split.count", 1)
    if type(count) is not int or count not in (0, 1):
        first = f"{g.path.name[: name.start()]}-00001-of-{name[2]}.gguf" if name else "FIRST.gguf"
        raise UserError(
            f"{g.path}: is one of {str(count)[:20]} files of a model; join them with llama-gguf-split --merge {first} WHOLE.gguf "
            "and give that"
        )
    kind = g.fields.get("general.type", "model")
    if kind == "adapter":
        raise UserError(
            f"{g.path}: holds only an adapter (LoRA), no model; merge it into its base model (llama-export-lora) and give that file"
        )
    if kind != "model":
        raise UserError(f"{g.path}: its general.type is {str(kind)[:50]!r}; give the file of the model itself")
    if not list(g):
        raise UserError(f"{g.path}: holds no tensors, only metadata (a vocabulary?); give the file of the model itself")


def _norms(spec: ModelSpec) -> dict[str, tuple[str, int]]:
    """Tensor and features of every norm of a layer."""
    return {name: (NORMS[name].gguf, size) for name, size in spec.norms.items()}


def _opened(path: Path, latent: bool) -> tuple[Gguf, str, ModelSpec, list[str]]:
    """A file whose header has been checked, its architecture, the model's shape, and what was assumed. Raises UserError as `read_gguf`."""
    g = Gguf(path)
    _refuse_parts(g)
    architecture = g.text("general.architecture")
    if why := unsupported(architecture):
        raise UserError(f"{path}: its architecture is {architecture!r}, {why}, which is not supported")
    if architecture not in ARCHITECTURES:
        raise UserError(f"{path}: its architecture is {architecture!r}; supported are {', '.join(ARCHITECTURES)}")
    notes: list[str] = []
    spec = read_spec(g, architecture, notes)
    extra = sorted(set(g) - tensor_names(spec))
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        if extra[0].endswith(".bias"):
            raise UserError(f"{g.where(extra[0])}{more}: linear layers with a bias are not supported")
        raise UserError(f"{g.where(extra[0])}{more}: no place in this model; it may not be of the supported kind")
    for i in range(spec.layers):
        for part, shape in spec.matrices.items():
            g.require(f"blk.{i}.{MATRICES[part].gguf}.weight", shape)
        for tensor, features in _norms(spec).values():
            g.require(f"blk.{i}.{tensor}.weight", (features,))

    if not latent and any(
        g.several_scales(f"blk.0.{MATRICES[part].gguf}.weight", shape) for part, shape in spec.matrices.items()
    ):
        spec = replace(spec, group_scales=True)
    return g, architecture, spec, notes


def read_shape(path: Path) -> tuple[ModelSpec, Callable[[int], bool]]:
    """The model's shape, and whether its head is ternary with a scale for every so many features (`Gguf.has_scales`).

    Raises
    ------
    UserError : as `read_gguf`.
    """
    g, _, spec, _ = _opened(path, False)
    name, of = "token_embd.weight" if spec.tied else "output.weight", (spec.vocab, spec.hidden)
    g.require(name, of)
    return spec, lambda size: g.has_scales(name, of, size)


def read_gguf(path: Path, *, latent: bool = False) -> Checkpoint:
    """Reads and checks a GGUF file.

    Parameters
    ----------
    path : the file.
    latent : quantise floating-point matrices by their mean magnitude, instead of refusing those that are not ternary.

    Raises
    ------
    UserError : whatever is wrong with the file or not supported of the model, with file, tensor or field and the limit. Weights
        that are not ternary are found when their layer is read.
    """
    g, architecture, spec, notes = _opened(path, latent)
    norms = _norms(spec)

    def layer(i: int) -> LayerWeights:
        parts: dict[str, Any] = {}
        for part, shape in spec.matrices.items():
            matrix = MATRICES[part]
            w, scale = g.matrix(f"blk.{i}.{matrix.gguf}.weight", shape, latent=latent, groups=spec.group_scales)
            if architecture == "llama" and matrix.heads is not None:
                w = _halves(w, getattr(spec, matrix.heads))
            parts[part], parts[f"{part}_scale"] = w, scale
        for part, (tensor, features) in norms.items():
            parts[part] = g.gain(f"blk.{i}.{tensor}.weight", features)
        return LayerWeights(**parts)

    tokenizer, eos = read_tokenizer(g, spec.vocab, notes)
    embedding, scales = g.rows("token_embd.weight", (spec.vocab, spec.hidden))
    head_rows, head_scales = None, None
    if not spec.tied:
        head_rows, head_scales = g.rows("output.weight", (spec.vocab, spec.hidden))
    with golden_errors(path):
        weights = ModelWeights(
            spec=spec,
            layers=LazyLayers(spec, layer),
            norm=g.gain("output_norm.weight", spec.hidden),
            embedding=embedding,
            embedding_scales=scales,
            inputs=g.floats_as_stored("token_embd.weight", (spec.vocab, spec.hidden)),
            head=head_rows,
            head_scales=head_scales,
        )
        rows = weights.inputs if spec.tied else g.floats_as_stored("output.weight", (spec.vocab, spec.hidden))
        assert rows is not None
        weights, moved = balanced(weights, rows)
    return Checkpoint(path.stem, weights, tokenizer, eos, tuple(notes), moved, rows)
