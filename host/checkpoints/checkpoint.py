"""Reads checkpoints into the golden model's weights: Hugging Face folders here, GGUF files in host/checkpoints/gguf.py.

Families of Hugging Face checkpoints, told apart by config.json:

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
model that it has read). Anything else is no ternary model. Embedding and head become int8 rows with a scale each.

What the headers of a checkpoint say (names, shapes, types) and the scales are checked when it is opened; weights when
they are read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden import head, ternary
from tellme.golden.config import TRITS_PER_BYTE, ConfigError
from tellme.golden.layout import LayoutError
from tellme.golden.model import LayerWeights, ModelError, ModelSpec, ModelWeights, PassError, RopeScaling
from tellme.host.checkpoints.tensors import FLOATS, Tensors, adapter, listing, peek, read_json
from tellme.host.errors import UserError
from tellme.host.text.tokenizer import Files

_MATRICES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_NORMS = {"input_norm": "input_layernorm.weight", "post_norm": "post_attention_layernorm.weight"}
# The second name is what `1bitLLM/bitnet_b1_58-*` calls it.
_SUB_NORMS = {
    "attn_norm": ("self_attn.attn_sub_norm.weight", "self_attn.inner_attn_ln.weight"),
    "ffn_norm": ("mlp.ffn_sub_norm.weight", "mlp.ffn_layernorm.weight"),
}
_IGNORED = ("rotary_emb.inv_freq",)
_ACTIVATIONS = {"relu2": "relu2", "silu": "silu", "swish": "silu"}
_EMBEDDING, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_FLOATING = ("lm_head", "embed_tokens")
_LINEAR_CLASSES = ("bitlinear", "autobitlinear")
_GGUF_MAGIC = b"GGUF"


def tell(notes: Iterable[str]) -> None:
    """Says on stderr what was assumed of a checkpoint. Called when its weights have been read, so that a refusal stays one line."""
    for note in notes:
        print(f"tellme: note: {UserError(note)}", file=sys.stderr)


def sound(where: str, weights: NDArray[Any], *, packed: bool = False) -> NDArray[Any]:
    """Ternary weights [rows, inputs], or their packed bytes, unless they are damaged (see `golden.ternary.damage`): UserError then."""
    codes = (ternary.PACKED, TRITS_PER_BYTE) if packed else ()
    return _sound(where, weights, ternary.damage(weights, *codes))


def sound_floats(where: str, values: NDArray[Any]) -> NDArray[Any]:
    """As `sound`, of gains, or of the rows of an embedding or head."""
    return _sound(where, values, ternary.damage_of_floats(values))


def _sound(where: str, values: NDArray[Any], damage: str | None) -> NDArray[Any]:
    if damage is not None:
        raise UserError(f"{where} {damage}; the checkpoint is broken (damaged): download it, or convert it, again")
    return values


def activation(found: dict[str, Any], known: dict[str, str], path: object) -> str | None:
    """The gate that a checkpoint names; None if it names none.

    Parameters
    ----------
    found : values by the names under which they were found; None counts as not there.
    known : gates by the names they may have.

    Raises
    ------
    UserError : an unknown one, or two that differ.
    """
    gates: dict[str, str] = {}
    for name, value in found.items():
        if value is None:
            continue
        if not isinstance(value, str) or value not in known:
            raise UserError(f"{path}: {name} is {value!r}; supported are {', '.join(known)}")
        gates[name] = known[value]
    if len(set(gates.values())) > 1:
        said = " and ".join(f"{name} is {found[name]!r}" for name in gates)
        raise UserError(f"{path}: {said}; correct the wrong one")
    return next(iter(gates.values()), None)


@contextmanager
def golden_errors(where: object) -> Iterator[None]:
    """Golden's refusals as UserError, with the place in front."""
    try:
        yield
    except (ModelError, LayoutError, PassError, ConfigError, ternary.WeightError) as e:
        raise UserError(f"{where}: {e}") from e


class LazyLayers(Sequence[LayerWeights]):
    """Layers of a specification, made and checked when they are asked for; the last one is kept."""

    def __init__(self, spec: ModelSpec, make: Callable[[int], LayerWeights]):
        self._count = spec.layers

        def checked(i: int) -> LayerWeights:
            layer = make(i)
            layer.check(spec, i)
            return layer

        self._make = lru_cache(maxsize=1)(checked)

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
    notes : what the files do not say and had to be assumed, a line each.
    """

    name: str
    weights: ModelWeights
    tokenizer: Files
    eos_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()


# ---- config.json -----------------------------------------------------------------------------------------------------


def _integer(config: dict[str, Any], name: str, path: Path, default: int | None = None) -> int:
    value = config.get(name, default)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise UserError(f"{path}: {name} must be a positive integer (below 2^31), not {value!r}")
    return value


def _number(config: dict[str, Any], name: str, path: Path, default: float | None = None) -> float:
    value = config.get(name, default)
    if type(value) not in (int, float) or not 0 < value < 3e38:  # type: ignore[operator]
        raise UserError(f"{path}: {name} must be a positive number (of float32), not {value!r}")
    return float(value)  # type: ignore[arg-type]


def _flag(config: dict[str, Any], name: str, path: Path) -> bool:
    value = config.get(name, False)
    if type(value) is not bool:
        raise UserError(f"{path}: {name} must be true or false, not {value!r}")
    return value


def _object(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A JSON object of the configuration; empty if it is absent or null."""
    value = config.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: {name} must be a JSON object, not {value!r}")
    return value


@dataclass(frozen=True)
class _Family:
    """What config.json says of the kind of model.

    bitnet : BitNet proper, whose layers have sub-norms; otherwise LLaMA.
    declared : trained for ternary weights, so that floating-point ones are latent.
    divides : a weight_scale divides the outputs.
    """

    bitnet: bool
    declared: bool
    divides: bool


def _read_family(path: Path, config: dict[str, Any]) -> _Family:
    architectures = config.get("architectures") or []
    names = architectures if isinstance(architectures, list) else [architectures]
    kind = config.get("model_type")
    bitnet = kind == "bitnet" or any("bitnet" in str(a).lower() for a in names)
    if not bitnet and kind != "llama" and "LlamaForCausalLM" not in names:
        raise UserError(
            f"{path}: model_type is {kind!r}, architectures {names!r}; supported are 'bitnet', BitnetForCausalLM (1bitLLM) "
            "and 'llama', with ternary weights"
        )
    bits = config.get("weight_bits", 1), config.get("input_bits", 8)
    if bits != (1, 8):
        raise UserError(
            f"{path}: weight_bits, input_bits are {bits[0]!r}, {bits[1]!r}; supported are 1 (ternary) and 8"
        )
    quantisation = _object(config, "quantization_config", path)
    method = quantisation.get("quant_method", "bitnet")
    if method != "bitnet":
        raise UserError(
            f"{path}: quant_method in quantization_config is {method!r}; only 'bitnet' (ternary weights) can be run"
        )
    if quantisation.get("use_rms_norm"):
        raise UserError(
            f"{path}: use_rms_norm in quantization_config is set; norms inside linear layers are not supported"
        )
    kept = quantisation.get("modules_to_not_convert") or []
    for name in kept if isinstance(kept, list) else [kept]:
        if str(name).removesuffix(".weight").split(".")[-1] not in _FLOATING:
            raise UserError(f"{path}: modules_to_not_convert holds {name!r}; only the head may stay floating-point")
    # transformers' default where it is not named; without any quantization_config a packed BitNet is Microsoft's.
    default = "bitlinear" if quantisation or not bitnet else "autobitlinear"
    linear_class = quantisation.get("linear_class", default)
    if linear_class not in _LINEAR_CLASSES:
        raise UserError(f"{path}: linear_class is {linear_class!r}; supported are {' and '.join(_LINEAR_CLASSES)}")
    declared = bitnet or bool(quantisation) or "weight_bits" in config
    return _Family(bitnet, declared, linear_class == "bitlinear")


def _rope_kind(path: Path, name: str, rope: dict[str, Any]) -> str:
    """Kind of scaling, which older configurations call `type`."""
    kinds = [rope[key] for key in ("rope_type", "type") if rope.get(key) is not None] or ["default"]
    if kinds[0] != kinds[-1]:
        raise UserError(f"{path}: {name} has rope_type {kinds[0]!r} and type {kinds[1]!r}; correct the wrong one")
    kind = kinds[0]
    if not isinstance(kind, str) or kind not in ("default", "linear", "llama3"):
        raise UserError(f"{path}: rope_type is {kind!r}; supported are default, linear and llama3")
    return kind


def _read_rope(path: Path, config: dict[str, Any], context: int, default: float) -> tuple[float, RopeScaling | None]:
    """Base of the rotary frequencies, and their scaling.

    As transformers 5 reads it: `rope_scaling`, the older name, takes the place of `rope_parameters` where both are given; `rope_theta`
    is looked for in it, then in the configuration.
    """
    scaling, parameters = _object(config, "rope_scaling", path), _object(config, "rope_parameters", path)
    name, rope = ("rope_scaling", scaling) if scaling else ("rope_parameters", parameters)
    for key, value in rope.items():
        if isinstance(value, dict):
            raise UserError(f"{path}: {name} has parameters for {key!r} alone; those of all layers must be the same")
    for where in (scaling, parameters, config):
        if where.get("partial_rotary_factor") not in (None, 1):
            raise UserError(f"{path}: partial_rotary_factor is set; heads must be rotated whole")
    for where in (scaling, parameters):
        if where and _rope_kind(path, name, where) == "default" and where.get("factor") not in (None, 1):
            raise UserError(
                f"{path}: {name} has a factor of {where['factor']!r} but no rope_type; say linear or llama3"
            )
    theta = _number({"rope_theta": rope.get("rope_theta", config.get("rope_theta", default))}, "rope_theta", path)
    if scaling and parameters:
        # transformers forgets what rope_parameters says; if that differs nobody knows which one is meant.
        if parameters.get("rope_theta", theta) != theta:
            raise UserError(
                f"{path}: rope_parameters has rope_theta {parameters['rope_theta']!r}, but rope_scaling beside it, which takes its "
                f"place, makes it {theta:g}; put rope_theta into rope_scaling, or take one of the two away"
            )
        kinds = [_rope_kind(path, n, r) for n, r in (("rope_scaling", scaling), ("rope_parameters", parameters))]
        same = kinds[0] == kinds[1] and all(scaling.get(k, v) == v for k, v in parameters.items())
        if kinds[1] != "default" and not same:
            raise UserError(
                f"{path}: rope_scaling ({kinds[0]}) and rope_parameters ({kinds[1]}) scale the rotary frequencies in two ways; "
                "take one of them away"
            )
    kind = _rope_kind(path, name, rope)
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=_number(rope, "factor", path))
    original = "original_max_position_embeddings"
    contexts = {where[original] for where in (config, rope) if type(where.get(original)) is int}
    if len(contexts) > 1:
        raise UserError(
            f"{path}: {original} is {config[original]} and, in {name}, {rope[original]}; correct the wrong one"
        )
    return theta, RopeScaling(
        kind="llama3",
        factor=_number(rope, "factor", path),
        low_freq_factor=_number(rope, "low_freq_factor", path),
        high_freq_factor=_number(rope, "high_freq_factor", path),
        original_context=_integer(rope, original, path, _integer(config, original, path, context)),
    )


def _read_activation(path: Path, config: dict[str, Any], family: _Family) -> tuple[str, list[str]]:
    """The gate, and what was assumed of it."""
    said = activation({n: config.get(n) for n in ("hidden_act", "hidden_activation")}, _ACTIVATIONS, path)
    if said is not None:
        return said, []
    # Defaults are those of transformers' configuration classes.
    assumed = "relu2" if config.get("model_type") == "bitnet" else "silu"
    if not family.bitnet:
        return assumed, []  # every LLaMA has it
    return assumed, [
        f"{path}: hidden_act is missing; {assumed} is assumed, the default of transformers for model_type "
        f"{config.get('model_type')!r}. If the model was trained otherwise, write hidden_act into the file"
    ]


def _read_spec(path: Path, config: dict[str, Any], family: _Family, notes: list[str]) -> ModelSpec:
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            raise UserError(f"{path}: {name} is set; linear layers with a bias are not supported")
    gate, assumed = _read_activation(path, config, family)
    notes += assumed
    hidden, heads = _integer(config, "hidden_size", path), _integer(config, "num_attention_heads", path)
    if config.get("head_dim") is None and hidden % heads:
        raise UserError(f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}; give head_dim")
    head_dim = hidden // heads if config.get("head_dim") is None else _integer(config, "head_dim", path)
    kv_heads = heads if config.get("num_key_value_heads") is None else _integer(config, "num_key_value_heads", path)
    context = _integer(config, "max_position_embeddings", path, 2048)
    with golden_errors(path):
        default = 500000.0 if config.get("model_type") == "bitnet" else 10000.0
        theta, scaling = _read_rope(path, config, context, default)
        return ModelSpec(
            hidden=hidden,
            layers=_integer(config, "num_hidden_layers", path),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=_integer(config, "intermediate_size", path),
            vocab=_integer(config, "vocab_size", path),
            activation=gate,  # type: ignore[arg-type]
            attn_sub_norm=family.bitnet,
            ffn_sub_norm=family.bitnet,
            rope_theta=theta,
            norm_eps=_number(config, "rms_norm_eps", path, 1e-5 if config.get("model_type") == "bitnet" else 1e-6),
            max_context=context,
            tied=_flag(config, "tie_word_embeddings", path),
            rope_scaling=scaling,
        )


# ---- tensors ---------------------------------------------------------------------------------------------------------


class _Source:
    """The weights of a Hugging Face folder. Construction checks every header entry and scale; reading checks the rest.

    Raises
    ------
    UserError : naming the tensor, what was found and what is needed.
    """

    def __init__(self, tensors: Tensors, spec: ModelSpec, family: _Family, *, latent: bool):
        self.tensors = tensors
        self.spec = spec
        self.family = family
        self.latent = latent or family.declared
        self.scales: dict[str, float] = {}
        self.used: set[str] = set()
        s = spec
        self.shapes = {
            "q": (s.q_dim, s.hidden),
            "k": (s.kv_dim, s.hidden),
            "v": (s.kv_dim, s.hidden),
            "o": (s.hidden, s.q_dim),
            "gate": (s.ffn, s.hidden),
            "up": (s.ffn, s.hidden),
            "down": (s.hidden, s.ffn),
        }
        if _EMBEDDING not in tensors:
            self._refuse_other_names()
        self._floats(_EMBEDDING, (s.vocab, s.hidden))
        self._floats(_NORM, (s.hidden,))
        for i in range(s.layers):
            for part in _MATRICES:
                self._matrix(self._name(i, part), self.shapes[part])
            for name, size in self._gains(i).values():
                self._floats(name, (size,))
        self._head()
        extra = sorted(n for n in tensors if n not in self.used and not n.endswith(_IGNORED))
        if extra:
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            raise UserError(
                f"{tensors.where(extra[0])}{more}: no place in this model; it may not be of the supported kind"
            )

    def _refuse_other_names(self) -> None:
        """Says what names a checkpoint has that are not those of transformers' whole model."""
        t = self.tensors
        lora = next((n for n in t if "lora_" in n), None)
        if lora is not None:
            raise UserError(
                f"{t.where(lora)}: is part of an adapter (LoRA); merge it into its base model (peft: merge_and_unload, "
                "save_pretrained) and give that folder"
            )
        last = _EMBEDDING.removeprefix("model.")
        name = next((n for n in t if n.endswith(last)), None)
        if name is not None:
            prefix = name.removesuffix(last)
            begin = f"begin with {prefix!r}" if prefix else "have no prefix"
            raise UserError(
                f"{t.where(name)}: the names of its tensors {begin}, where 'model.' is needed (model.embed_tokens.weight): the inner "
                "model or a wrapper of it was saved; save the whole one (AutoModelForCausalLM), or rename the tensors"
            )
        if "tok_embeddings.weight" in t:
            raise UserError(
                f"{t.where('tok_embeddings.weight')}: the tensors have the names of Meta's own format; convert it to a Hugging Face "
                "folder (transformers' convert_llama_weights_to_hf.py)"
            )

    @staticmethod
    def _name(layer: int, part: str) -> str:
        return f"model.layers.{layer}.{_MATRICES[part]}.weight"

    def _gains(self, layer: int) -> dict[str, tuple[str, int]]:
        """Tensor and size of every norm of a layer; sub-norms under the first of their names that exists."""
        s, prefix = self.spec, f"model.layers.{layer}."
        gains = {part: (prefix + name, s.hidden) for part, name in _NORMS.items()}
        for part, size, there in (("attn_norm", s.q_dim, s.attn_sub_norm), ("ffn_norm", s.ffn, s.ffn_sub_norm)):
            if there:
                names = [prefix + n for n in _SUB_NORMS[part]]
                gains[part] = (next((n for n in names if n in self.tensors), names[0]), size)
        return gains

    def _floats(self, name: str, shape: tuple[int, ...]) -> None:
        self.tensors.require_floats(name, shape)
        self.used.add(name)

    def _head(self) -> None:
        t, shape = self.tensors, (self.spec.vocab, self.spec.hidden)
        if not self.spec.tied:
            if _HEAD not in t:
                raise UserError(
                    f"{t.folder}: tensor {_HEAD} is missing; if the embedding is the head, config.json must say "
                    "tie_word_embeddings"
                )
            self._floats(_HEAD, shape)
        elif _HEAD in t:
            self._floats(_HEAD, shape)
            pairs = zip(t.float_pieces(_HEAD), t.float_pieces(_EMBEDDING), strict=True)
            if not all(np.array_equal(a, b) for (_, a), (_, b) in pairs):
                raise UserError(
                    f"{t.where(_HEAD)} differs from {_EMBEDDING}, but config.json says tie_word_embeddings; "
                    "correct one of them"
                )

    def _matrix(self, name: str, shape: tuple[int, int]) -> None:
        """Checks what the header says of a ternary matrix, and reads the scale of a packed one."""
        t, scale = self.tensors, f"{name}_scale"
        if name not in t:
            raise UserError(f"{t.folder}: tensor {name} is missing")
        self.used.add(name)
        where = t.where(name)
        if t.dtype(name) in FLOATS:
            t.require(name, shape)
            if scale in t:
                self._scale(name)
            return
        if t.dtype(name) != "U8":
            raise UserError(f"{where} is {t.dtype(name)}; packed weights are U8, latent ones floating-point")
        rows, inputs = shape
        if rows % 4:
            raise UserError(f"{where}: packed matrices have a multiple of 4 rows, config.json asks for {rows}")
        t.require(name, (rows // 4, inputs))
        if scale not in t:
            raise UserError(f"{t.folder}: tensor {scale} is missing; packed weights need it")
        self._scale(name)

    def _scale(self, name: str) -> None:
        """Reads the weight_scale of a matrix."""
        t, scale = self.tensors, f"{name}_scale"
        if t.shape(scale) not in ((), (1,)):
            raise UserError(
                f"{t.where(scale)} has shape {list(t.shape(scale))}, one scale a matrix is supported, several are not yet"
            )
        s = t.float32(scale, t.shape(scale)).reshape(-1)[0]
        if s <= 0:
            raise UserError(f"{t.where(scale)} is {s}; a scale must be positive")
        with np.errstate(over="ignore"):
            s = np.float32(1) / s if self.family.divides else s
        if not np.isfinite(s):
            raise UserError(f"{t.where(scale)} is too small, its inverse is not finite")
        self.used.add(scale)
        self.scales[name] = float(s)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def layer(self, i: int) -> LayerWeights:
        """Reads a layer."""
        parts: dict[str, Any] = {}
        for part, shape in self.shapes.items():
            parts[part], parts[f"{part}_scale"] = self.matrix(self._name(i, part), shape)
        for part, (name, size) in self._gains(i).items():
            parts[part] = self.gain(name, size)
        return LayerWeights(**parts)

    def gain(self, name: str, size: int) -> NDArray[np.float32]:
        """The gain of a norm."""
        return sound_floats(self.tensors.where(name), self.tensors.float32(name, (size,)))

    def matrix(self, name: str, shape: tuple[int, int]) -> tuple[NDArray[np.int8], float]:
        """A ternary matrix [rows, inputs] and the scale that multiplies its outputs."""
        where = self.tensors.where(name)
        if self.tensors.dtype(name) == "U8":
            weights, scale = self._packed(name, shape), self.scales[name]
        elif name in self.scales:
            weights, unit = self._exact(name, shape)
            with np.errstate(all="ignore"):
                scale = float(np.float32(unit) * np.float32(self.scales[name]))
            if not 0 < scale < np.inf:
                raise UserError(
                    f"{where}: its values of {unit:g} times weight_scale {self.scales[name]:g} are no float32; the file is damaged"
                )
        else:
            weights, scale = self._latent(name, shape) if self.latent else self._exact(name, shape)
        return sound(where, weights), scale

    def _packed(self, name: str, shape: tuple[int, int]) -> NDArray[np.int8]:
        out = np.empty(shape, np.int8)
        quarter = shape[0] // 4
        for first, codes in self.tensors.pieces(name):
            bad = codes & (codes >> 1) & 0x55  # both bits of a code set: 3
            if bad.any():
                row, column = (int(v) for v in np.argwhere(bad)[0])
                row += first + quarter * next(i for i in range(4) if bad[row, column] >> 2 * i & 1)
                raise UserError(
                    f"{self.tensors.where(name)}: code 3 at row {row}, column {column} is no ternary weight; "
                    "the file is damaged"
                )
            for i in range(4):
                part = (codes >> 2 * i) & 3
                part -= 1
                out[i * quarter + first :][: len(codes)] = part.view(np.int8)
        return out

    def _latent(self, name: str, shape: tuple[int, int]) -> tuple[NDArray[np.int8], float]:
        total = sum(float(np.abs(p).sum(dtype=np.float64)) for _, p in self.tensors.float_pieces(name))
        scale = ternary.latent_scale(total, shape[0] * shape[1])
        out = np.empty(shape, np.int8)
        for i, piece in self.tensors.float_pieces(name):
            out[i : i + len(piece)] = ternary.quantise(piece, scale)[0]
        return out, float(scale)

    def _exact(self, name: str, shape: tuple[int, int]) -> tuple[NDArray[np.int8], float]:
        """Floating-point weights that are -s, 0 and s."""
        out = np.empty(shape, np.int8)
        scale = np.float32(0)
        where = self.tensors.where(name)
        for i, piece in self.tensors.float_pieces(name):
            magnitude = np.abs(piece)
            scale = scale or magnitude.max()
            bad = (magnitude != 0) & (magnitude != scale)
            if bad.any():
                row, column = (int(v) for v in np.argwhere(bad)[0])
                if group := ternary.scale_group(piece):
                    raise several_scales(where, group, magnitude, i, scale)
                raise UserError(
                    f"{where} is not ternary: {self.tensors.dtype(name)} values like "
                    f"{piece[row, column]:.6g} at row {i + row}, column {column} beside {scale:.6g}; convert a 1.58-bit "
                    "checkpoint, or quantise these weights by their mean magnitude with --latent"
                )
            out[i : i + len(piece)] = np.sign(piece)
        if not scale:
            sound(where, out)
        return out, float(scale)

    def rows(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Embedding or head: int8 rows and their scales."""
        out = np.empty((self.spec.vocab, self.spec.hidden), np.int8)
        scales = np.empty(self.spec.vocab, np.float32)
        for i, piece in self.tensors.float_pieces(name):
            part = slice(i, i + len(piece))
            out[part], scales[part] = head.quantise_rows(piece)
        return sound_floats(self.tensors.where(name), out), scales


def several_scales(
    where: str, group: int, magnitude: NDArray[np.float32], first: int, before: float | np.floating[Any]
) -> UserError:
    """What is said of a matrix whose weights are ternary, each group of inputs by a scale of its own.

    Parameters
    ----------
    group : inputs that share a scale.
    magnitude : of a piece of the matrix in which the scale changes, or has changed since the piece before.
    first : row at which the piece begins. before : scale of the pieces before it.
    """
    one = np.float32(before) if first else magnitude[magnitude != 0][0]
    row, column = (int(v) for v in np.argwhere((magnitude != 0) & (magnitude != one))[0])
    return UserError(
        f"{where}: is ternary with several scales, one for every {group:,} inputs of a row ({one:g}, and {magnitude[row, column]:g} "
        f"at row {row + first}, column {column}); one scale a matrix is supported, several are not yet"
    )


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
    family = _read_family(path, config)
    spec = _read_spec(path, config, family, notes)
    tensors = Tensors(folder)
    notes += tensors.notes
    if adapter(folder):
        notes.append(
            f"{folder}: holds an adapter (LoRA) beside the model, which is not applied; merge the two (peft: merge_and_unload)"
        )
    source = _Source(tensors, spec, family, latent=latent)
    files, eos = Files.read(folder), _eos(folder, config)
    embedding, embedding_scales = source.rows(_EMBEDDING)
    head_rows, head_scales = (None, None) if spec.tied else source.rows(_HEAD)
    with golden_errors(folder):
        weights = ModelWeights(
            spec=spec,
            layers=LazyLayers(spec, source.layer),
            norm=source.gain(_NORM, spec.hidden),
            embedding=embedding,
            embedding_scales=embedding_scales,
            head=head_rows,
            head_scales=head_scales,
        )
    return Checkpoint(folder.resolve().name, weights, files, eos, tuple(notes))


def _eos(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """End tokens of generation_config.json and config.json."""
    found: list[int] = []
    generation = folder / "generation_config.json"
    for source in ([read_json(generation)] if generation.exists() else []) + [config]:
        value = source.get("eos_token_id")
        found += [v for v in (value if isinstance(value, list) else [value]) if type(v) is int and 0 <= v < 1 << 31]
    return tuple(dict.fromkeys(found))


# ---- any kind --------------------------------------------------------------------------------------------------------


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint: a folder or a GGUF file. Everything else is taken for an image."""
    if path.is_dir() or path.suffix == ".gguf":
        return True
    try:
        if not path.is_file():  # a pipe would block
            return False
        with open(path, "rb") as f:
            return f.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC
    except OSError:
        return False


def open_checkpoint(path: Path, *, latent: bool = False) -> Checkpoint:
    """Reads a checkpoint of any kind: a Hugging Face folder or a GGUF file.

    Raises
    ------
    UserError : it cannot be used; see `read_checkpoint` and `host.checkpoints.gguf.read_gguf`.
    """
    if path.is_dir():
        return read_checkpoint(path, latent=latent)
    try:
        from tellme.host.checkpoints.gguf import read_gguf
    except ImportError as e:
        raise UserError(f"{path}: GGUF files cannot be read ({e}); give a Hugging Face checkpoint folder") from e
    return read_gguf(path, latent=latent)
