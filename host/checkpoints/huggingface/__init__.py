"""Reads Hugging Face folders into the golden model's weights.

Families of checkpoints, told apart by config.json:

| family | recognised by | layers |
|---|---|---|
| BitNet (microsoft/bitnet-b1.58-2B-4T) | model_type `bitnet` | sub-norms, squared ReLU or SiLU |
| first BitNet (1bitLLM/bitnet_b1_58-*) | architecture `BitnetForCausalLM` | sub-norms under their first names, SiLU |
| LLaMA of 1.58 bit (Falcon3-1.58bit, Llama3-8B-1.58) | model_type `llama`, and `quantization_config` of `bitnet` | no sub-norms, SiLU |

Ternary matrices come in three forms. *Packed*: uint8 [N/4, K], byte row r holding output rows r + i*N/4 at bits 2i as
weight + 1, with a `weight_scale` that multiplies the outputs (linear class `autobitlinear`) or divides them
(`bitlinear`). *Latent*: trained floating-point weights, quantised here by their mean magnitude as the model itself does
at every use; that is right only for models trained so, which is what their config.json declares. *Ternary in
floating-point*: -s, 0 and s, where nothing is declared, or beside a `weight_scale` (what transformers writes of a packed
model that it has read); with scales that differ in the first layer's matrices, such in every 64 inputs
of a row. Anything else is no ternary model. Embedding and head become int8 rows
with a scale each; the embedding's own rows stay mapped, for the inputs.

What the headers of a checkpoint say (names, shapes, types) and the scales are checked when it is opened; weights when
they are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tellme.golden.model import ModelWeights
from tellme.golden.spec import ModelSpec
from tellme.host.checkpoints.balance import balanced
from tellme.host.checkpoints.common import Checkpoint, LazyLayers, golden_errors, head_scales
from tellme.host.checkpoints.huggingface.config import read_family, read_spec
from tellme.host.checkpoints.huggingface.source import EMBEDDING, HEAD, NORM, Source
from tellme.host.checkpoints.tensors import INDEX, WHOLE, Tensors, adapter
from tellme.host.errors import UserError
from tellme.host.files import listing, peek, read_json
from tellme.host.text.tokenizer import Files

_PARTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model")
"""Files of a folder that may be something else; tensors look for themselves."""


def _no_config(folder: Path) -> str:
    """Why a folder is no checkpoint, and what to do."""
    names = listing(folder)
    if hint := adapter(folder):
        return f"{folder}: {hint}"
    for suffix in (".gguf", ".tlm"):
        if found := [n for n in names if n.endswith(suffix)]:
            return f"{folder}: has no config.json, but {found[0]}; give that file"
    if inside := sorted(p.parent for p in [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]):
        return f"{folder}: has no config.json, but {inside[0]} does; give that folder"
    if "params.json" in names:
        return f"{folder}: is in Meta's own format; convert it (transformers' convert_llama_weights_to_hf.py)"
    if found := [n for n in names if n.endswith((".safetensors", ".bin", ".pt", ".pth"))]:
        return f"{folder}: has no config.json beside {found[0]}; download the model's config.json and tokenizer, too"
    return f"{folder}: has no config.json; give a Hugging Face checkpoint folder, a .gguf file or a .tlm image"


def read_checkpoint(folder: Path, *, latent: bool = False) -> Checkpoint:
    """Reads and checks a Hugging Face checkpoint folder.

    Parameters
    ----------
    latent : quantise floating-point matrices that nothing declares to be latent ternary weights.

    Raises
    ------
    UserError : missing or unexpected tensors, wrong shapes, broken scales, unsupported models; the message names the
        file, the tensor and the limit. Weights that are not ternary are found when their layer is read.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(_no_config(folder))
    for part in _PARTS:
        if kind := peek(folder / part):
            raise UserError(f"{folder / part}: {kind}")
    config = read_json(path)
    notes: list[str] = []
    family = read_family(path, config)
    spec = read_spec(path, config, family, notes)
    tensors = Tensors(folder)
    notes += tensors.notes
    if adapter(folder):
        notes.append(
            f"{folder}: holds an adapter (LoRA) beside the model, which is not applied; merge the two (peft: merge_and_unload)"
        )
    source = Source(tensors, spec, family, latent=latent)
    if source.several_scales():
        source.spec = spec = replace(spec, group_scales=True)
    files, eos = Files.read(folder), _eos(folder, config)
    embedding, embedding_scales = source.rows(EMBEDDING)
    head_rows, head_scales = (None, None) if spec.tied else source.rows(HEAD)
    with golden_errors(folder):
        weights = ModelWeights(
            spec=spec,
            layers=LazyLayers(spec, source.layer),
            norm=source.gain(NORM, spec.hidden),
            embedding=embedding,
            embedding_scales=embedding_scales,
            inputs=tensors.floats_as_stored(EMBEDDING),
            head=head_rows,
            head_scales=head_scales,
        )
        rows = weights.inputs if spec.tied else tensors.floats_as_stored(HEAD)
        assert rows is not None
        weights, moved = balanced(weights, rows)
    return Checkpoint(folder.resolve().name, weights, files, eos, tuple(notes), moved, rows)


def read_shape(path: Path) -> tuple[ModelSpec, Callable[[int], bool] | None]:
    """The shape that a config.json tells, and whether the head of the weights beside it is ternary with a scale for every so many features: all rows are
    read, up to the first that has not. None if there are no weights.

    Raises
    ------
    UserError : it cannot be used, or has a family that is not supported; asked of the head: it cannot be read.
    """
    if not path.exists():
        raise UserError(_no_config(path.parent))
    told = read_json(path)
    with golden_errors(path):
        spec = read_spec(path, told, read_family(path, told), [])
    folder = path.parent
    if not (folder / WHOLE).exists() and not (folder / INDEX).exists():
        return spec, None

    def is_ternary(size: int) -> bool:
        tensors, name = Tensors(folder), EMBEDDING if spec.tied else HEAD
        tensors.require_floats(name, (spec.vocab, spec.hidden))
        return all(head_scales(piece, size) is not None for _, piece in tensors.float_pieces(name))

    return spec, is_ternary


def _eos(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """End tokens of generation_config.json and config.json."""
    found: list[int] = []
    generation = folder / "generation_config.json"
    for source in ([read_json(generation)] if generation.exists() else []) + [config]:
        value = source.get("eos_token_id")
        found += [v for v in (value if isinstance(value, list) else [value]) if type(v) is int and 0 <= v < 1 << 31]
    return tuple(dict.fromkeys(found))
