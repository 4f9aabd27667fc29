"""Reads a Hugging Face `bitnet` checkpoint folder into the golden model's weights.

Ternary matrices come in two forms. *Packed*: uint8 [N/4, K], byte row r holding output rows r + i*N/4 at bits 2i as
weight + 1, with a `weight_scale` that multiplies the outputs (linear class `autobitlinear`) or divides them
(`bitlinear`). *Latent*: trained floating-point weights, quantised here by their mean magnitude. Embedding and head
become int8 rows with a scale each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden import head, ternary
from golden.config import ConfigError
from golden.layout import LayoutError
from golden.model import LayerWeights, ModelError, ModelSpec, ModelWeights, PassError
from host.errors import UserError
from host.tensors import FLOATS, Tensors, read_json
from host.tokenizer import Files

_MATRICES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
# The second name is what `1bitLLM/bitnet_b1_58-*` calls it.
_ATTN_NORM = ("self_attn.attn_sub_norm.weight", "self_attn.inner_attn_ln.weight")
_FFN_NORM = ("mlp.ffn_sub_norm.weight", "mlp.ffn_layernorm.weight")
_IGNORED = ("rotary_emb.inv_freq",)
_ACTIVATIONS = {"relu2": "relu2", "silu": "silu", "swish": "silu"}
_EMBEDDING, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@contextmanager
def golden_errors(where: object) -> Iterator[None]:
    """Golden's refusals as UserError, with the place in front."""
    try:
        yield
    except (ModelError, LayoutError, PassError, ConfigError, ternary.WeightError) as e:
        raise UserError(f"{where}: {e}") from e


class LazyLayers(Sequence[LayerWeights]):
    """Layers made when they are asked for; the last one is kept."""

    def __init__(self, count: int, make: Callable[[int], LayerWeights]):
        self._count = count
        self._make = lru_cache(maxsize=1)(make)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._make(index % self._count)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, read.

    Attributes
    ----------
    name : of the folder.
    weights : shapes and weights; layers are read when they are asked for.
    tokenizer : files of the tokenizer.
    eos_ids : tokens that end a text.
    """

    name: str
    weights: ModelWeights
    tokenizer: Files
    eos_ids: tuple[int, ...]


def _integer(config: dict[str, Any], name: str, path: Path, default: int | None = None) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise UserError(f"{path}: {name} must be a positive integer, not {value!r}")
    return value


def _number(config: dict[str, Any], name: str, path: Path, default: float | None = None) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value) or value <= 0:
        raise UserError(f"{path}: {name} must be a positive number, not {value!r}")
    return float(value)


def _read_spec(path: Path, config: dict[str, Any], tensors: Tensors) -> ModelSpec:
    architectures = " ".join(map(str, config.get("architectures") or [])).lower()
    if config.get("model_type") != "bitnet" and "bitnet" not in architectures:
        raise UserError(
            f"{path}: model_type is {config.get('model_type')!r}; only 'bitnet' models (ternary weights) can be run"
        )
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            raise UserError(f"{path}: {name} is set; linear layers with a bias are not supported")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind != "default":
        raise UserError(f"{path}: rope_type is {kind!r}; only 'default' rotary embeddings are supported")
    quantisation = config.get("quantization_config") or {}
    if quantisation.get("use_rms_norm"):
        raise UserError(
            f"{path}: use_rms_norm in quantization_config is set; norms inside linear layers are not supported"
        )
    activation = config.get("hidden_act", "relu2")
    if activation not in _ACTIVATIONS:
        raise UserError(f"{path}: hidden_act is {activation!r}; supported are {', '.join(_ACTIVATIONS)}")
    hidden, heads = _integer(config, "hidden_size", path), _integer(config, "num_attention_heads", path)
    if config.get("head_dim") is None and hidden % heads:
        raise UserError(f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}; give head_dim")
    theta = {"rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0))}
    with golden_errors(path):
        return ModelSpec(
            hidden=hidden,
            layers=_integer(config, "num_hidden_layers", path),
            heads=heads,
            kv_heads=_integer(config, "num_key_value_heads", path, heads),
            head_dim=_integer({"head_dim": config.get("head_dim") or hidden // heads}, "head_dim", path),
            ffn=_integer(config, "intermediate_size", path),
            vocab=_integer(config, "vocab_size", path),
            activation=_ACTIVATIONS[activation],  # type: ignore[arg-type]
            attn_sub_norm=any(f"model.layers.0.{n}" in tensors for n in _ATTN_NORM),
            ffn_sub_norm=any(f"model.layers.0.{n}" in tensors for n in _FFN_NORM),
            rope_theta=_number(theta, "rope_theta", path),
            norm_eps=_number(config, "rms_norm_eps", path, 1e-6),
            max_context=_integer(config, "max_position_embeddings", path, 2048),
            tied=bool(config.get("tie_word_embeddings", False)),
        )


class _Reader:
    """Reads named weights, and remembers which tensors were used."""

    def __init__(self, tensors: Tensors, divides: bool):
        self.tensors = tensors
        self.divides = divides
        self.used: set[str] = set()

    def floats(self, names: str | Sequence[str], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A float tensor under the first of its names that exists."""
        options = [names] if isinstance(names, str) else list(names)
        name = next((n for n in options if n in self.tensors), options[0])
        value = self.tensors.float32(name, shape)
        self.used.add(name)
        return value

    def matrix(self, name: str, rows: int, inputs: int) -> tuple[NDArray[np.int8], float]:
        """A ternary matrix [rows, inputs] and the scale that multiplies its outputs."""
        weight, scale = f"{name}.weight", f"{name}.weight_scale"
        if weight not in self.tensors:
            raise UserError(f"{self.tensors.folder}: tensor {weight} is missing")
        if self.tensors.dtype(weight) in FLOATS:
            self.used.add(weight)
            w, s = ternary.quantise(self.tensors.float32(weight, (rows, inputs)))
            return w, float(s)
        where = self.tensors.where(weight)
        if self.tensors.dtype(weight) != "U8":
            raise UserError(
                f"{where} is {self.tensors.dtype(weight)}; packed weights are U8, latent ones floating-point"
            )
        if rows % 4:
            raise UserError(f"{where}: packed matrices have a multiple of 4 rows, config.json asks for {rows}")
        packed = self.tensors.raw(weight, (rows // 4, inputs))
        codes = np.concatenate([packed >> 2 * i & 3 for i in range(4)])
        if (codes == 3).any():
            row, column = (int(i) for i in np.argwhere(codes == 3)[0])
            raise UserError(f"{where}: code 3 at row {row}, column {column} is no ternary weight; the file is damaged")
        if scale not in self.tensors:
            raise UserError(f"{self.tensors.folder}: tensor {scale} is missing; packed weights need it")
        shape = self.tensors.shape(scale)
        if shape not in ((), (1,)):
            raise UserError(f"{self.tensors.where(scale)} has shape {list(shape)}, one scale a matrix is supported")
        s = self.tensors.float32(scale, shape).reshape(-1)[0]
        if s <= 0:
            raise UserError(f"{self.tensors.where(scale)} is {s}; a scale must be positive")
        with np.errstate(over="ignore"):
            s = np.float32(1) / s if self.divides else s
        if not np.isfinite(s):
            raise UserError(f"{self.tensors.where(scale)} is too small, its inverse is not finite")
        self.used |= {weight, scale}
        return (codes.astype(np.int8) - 1).astype(np.int8), float(s)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads and checks a checkpoint folder.

    Raises
    ------
    UserError : missing or unexpected tensors, wrong shapes, broken scales, unsupported models; the message names the
        file, the tensor and the limit.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder}: has no config.json; give a Hugging Face checkpoint folder or a .tlm image")
    config = read_json(path)
    tensors = Tensors(folder)
    spec = _read_spec(path, config, tensors)
    linear_class = (config.get("quantization_config") or {}).get("linear_class", "bitlinear")
    if linear_class not in ("bitlinear", "autobitlinear"):
        raise UserError(f"{path}: linear_class is {linear_class!r}; supported are bitlinear and autobitlinear")
    reader = _Reader(tensors, divides=linear_class == "bitlinear")
    shapes = {
        "q": (spec.q_dim, spec.hidden),
        "k": (spec.kv_dim, spec.hidden),
        "v": (spec.kv_dim, spec.hidden),
        "o": (spec.hidden, spec.q_dim),
        "gate": (spec.ffn, spec.hidden),
        "up": (spec.ffn, spec.hidden),
        "down": (spec.hidden, spec.ffn),
    }

    def layer(i: int) -> LayerWeights:
        prefix = f"model.layers.{i}."
        parts: dict[str, Any] = {}
        for name, tensor in _MATRICES.items():
            parts[name], parts[f"{name}_scale"] = reader.matrix(prefix + tensor, *shapes[name])
        attn, ffn = ([prefix + n for n in names] for names in (_ATTN_NORM, _FFN_NORM))
        return LayerWeights(
            **parts,
            input_norm=reader.floats(prefix + "input_layernorm.weight", (spec.hidden,)),
            post_norm=reader.floats(prefix + "post_attention_layernorm.weight", (spec.hidden,)),
            attn_norm=reader.floats(attn, (spec.q_dim,)) if spec.attn_sub_norm else None,
            ffn_norm=reader.floats(ffn, (spec.ffn,)) if spec.ffn_sub_norm else None,
        )

    shape = (spec.vocab, spec.hidden)
    rows = reader.floats(_EMBEDDING, shape)
    embedding, embedding_scales = head.quantise_rows(rows)
    head_rows, head_scales = None, None
    if not spec.tied:
        head_rows, head_scales = head.quantise_rows(reader.floats(_HEAD, shape))
    elif _HEAD in tensors:
        if not np.array_equal(reader.floats(_HEAD, shape), rows):
            raise UserError(
                f"{tensors.where(_HEAD)} differs from {_EMBEDDING}, but config.json says tie_word_embeddings; "
                "correct one of them"
            )
    with golden_errors(folder):
        weights = ModelWeights(
            spec=spec,
            layers=LazyLayers(spec.layers, layer),
            norm=reader.floats(_NORM, (spec.hidden,)),
            embedding=embedding,
            embedding_scales=embedding_scales,
            head=head_rows,
            head_scales=head_scales,
        )
    extra = sorted(n for n in tensors if n not in reader.used and not n.endswith(_IGNORED))
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UserError(f"{tensors.where(extra[0])}{more}: no place in this model; it may not be of the supported kind")
    return Checkpoint(folder.resolve().name, weights, Files.read(folder), _eos(folder, config))


def _eos(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """End tokens of generation_config.json and config.json."""
    found: list[int] = []
    generation = folder / "generation_config.json"
    for source in ([read_json(generation)] if generation.exists() else []) + [config]:
        value = source.get("eos_token_id")
        found += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)]
    return tuple(dict.fromkeys(found))
