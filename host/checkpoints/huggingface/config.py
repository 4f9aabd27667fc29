"""config.json: the kind of a model, and its shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellme.golden.spec import ACTIVATIONS, ModelSpec, RopeScaling, yarn_attention
from tellme.host.checkpoints.common import activation, golden_errors, unsupported
from tellme.host.errors import UserError

_ACTIVATIONS = {name: a.name for a in ACTIVATIONS.values() for name in a.transformers}
_FLOATING = ("lm_head", "embed_tokens")
_LINEAR_CLASSES = ("bitlinear", "autobitlinear")


_MUP = (
    "scale_emb",
    "scale_depth",
    "dim_model_base",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "attention_multiplier",
)


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
class Family:
    """What config.json says of the kind of model.

    bitnet : BitNet proper, whose layers have sub-norms; otherwise LLaMA or Qwen3.
    declared : trained for ternary weights, so that floating-point ones are latent.
    divides : a weight_scale divides the outputs.
    qwen3 : LLaMA with a norm of every head of Q and K.
    """

    bitnet: bool
    declared: bool
    divides: bool
    qwen3: bool = False


def read_family(path: Path, config: dict[str, Any]) -> Family:
    """The kind of model that a configuration, from `path`, declares. Raises UserError if it is not supported."""
    architectures = config.get("architectures") or []
    names = architectures if isinstance(architectures, list) else [architectures]
    kind = config.get("model_type")
    bitnet = kind == "bitnet" or any("bitnet" in str(a).lower() for a in names)
    qwen3 = not bitnet and (kind == "qwen3" or "Qwen3ForCausalLM" in names)
    if why := unsupported(kind):
        raise UserError(f"{path}: model_type is {kind!r}, {why}, which is not supported")
    if not bitnet and not qwen3 and kind != "llama" and "LlamaForCausalLM" not in names:
        raise UserError(
            f"{path}: model_type is {kind!r}, architectures {names!r}; supported are 'bitnet', BitnetForCausalLM (1bitLLM) "
            "'llama' and 'qwen3', with ternary weights"
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
    return Family(bitnet, declared, linear_class == "bitlinear", qwen3)


def _rope_kind(path: Path, name: str, rope: dict[str, Any]) -> str:
    """Kind of scaling, which older configurations call `type`."""
    kinds = [rope[key] for key in ("rope_type", "type") if rope.get(key) is not None] or ["default"]
    if kinds[0] != kinds[-1]:
        raise UserError(f"{path}: {name} has rope_type {kinds[0]!r} and type {kinds[1]!r}; correct the wrong one")
    kind = kinds[0]
    if not isinstance(kind, str) or kind not in ("default", "linear", "llama3", "yarn"):
        raise UserError(f"{path}: rope_type is {kind!r}; supported are default, linear, llama3 and yarn")
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
                f"{path}: {name} has a factor of {where['factor']!r} but no rope_type; say linear, llama3 or yarn"
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
    before = _integer(rope, original, path, _integer(config, original, path, context))
    if kind == "yarn":
        return theta, _read_yarn(path, name, rope, before)
    return theta, RopeScaling(
        kind="llama3",
        factor=_number(rope, "factor", path),
        low_freq_factor=_number(rope, "low_freq_factor", path),
        high_freq_factor=_number(rope, "high_freq_factor", path),
        original_context=before,
    )


def _read_yarn(path: Path, name: str, rope: dict[str, Any], original: int) -> RopeScaling:
    """YaRN as transformers reads it: `attention_factor` itself, or from mscale and mscale_all_dim, or 0.1 ln(factor) + 1."""
    factor = _number(rope, "factor", path)
    if rope.get("truncate", True) is not True:
        raise UserError(
            f"{path}: truncate of {name} is {rope['truncate']!r}; only whole limits of YaRN's blend are supported"
        )
    given = {key: _number(rope, key, path) for key in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(key)}
    attention = given.get("attention_factor", yarn_attention(factor))
    if "attention_factor" not in given and {"mscale", "mscale_all_dim"} <= set(given):
        attention = yarn_attention(factor, given["mscale"]) / yarn_attention(factor, given["mscale_all_dim"])
    turns = {key: _number(rope, key, path) for key in ("beta_fast", "beta_slow") if rope.get(key)}
    return RopeScaling(kind="yarn", factor=factor, original_context=original, attention_factor=attention, **turns)


def _read_activation(path: Path, config: dict[str, Any], family: Family) -> tuple[str, list[str]]:
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


def read_spec(path: Path, config: dict[str, Any], family: Family, notes: list[str]) -> ModelSpec:
    """The shape that a configuration says; what was assumed goes to `notes`. Raises UserError if it is not supported."""
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            raise UserError(f"{path}: {name} is set; linear layers with a bias are not supported")
    for name in _MUP:
        if config.get(name) not in (None, 1):
            raise UserError(f"{path}: {name} is {config[name]!r}; a scale of its own (muP) is not supported")
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if config.get(name) not in (None, 0):
            raise UserError(f"{path}: {name} is {config[name]!r}; mixtures of experts are not supported")
    if config.get("use_sliding_window"):
        raise UserError(f"{path}: use_sliding_window is set; attention to a part of the context is not supported")
    if family.qwen3 and config.get("head_dim") is None:
        config = {**config, "head_dim": 128}  # transformers' default for Qwen3, whatever hidden_size is
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
            activation=gate,
            attn_sub_norm=family.bitnet,
            ffn_sub_norm=family.bitnet,
            qk_norm=family.qwen3,
            rope_theta=theta,
            norm_eps=_number(config, "rms_norm_eps", path, 1e-5 if config.get("model_type") == "bitnet" else 1e-6),
            max_context=context,
            tied=_flag(config, "tie_word_embeddings", path),
            rope_scaling=scaling,
        )
