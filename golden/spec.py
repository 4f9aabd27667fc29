"""The shape of a model: its sizes, and as data what a layer is made of (matrices, norms, steps) and its activations.

Who needs "every matrix" or "every norm" goes through the tables: readers of checkpoints, images, programs, the golden model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tellme.golden import elementwise
from tellme.golden.config import MAX_GROUP, AcceleratorConfig
from tellme.golden.program import Kind
from tellme.golden.screen import MAX_ROWS, MULTIPLE

F32 = NDArray[np.float32]

HEAD_DIM_MULTIPLE = 32


class ModelError(ValueError):
    """A model that the accelerator cannot run, or weights that do not fit their specification."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ModelError(message)


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How the rotary frequencies of a model were changed to lengthen its context.

    Parameters
    ----------
    kind : 'linear' divides every frequency by `factor`; 'llama3' divides those whose wavelength is above
        original_context / low_freq_factor, keeps those below original_context / high_freq_factor, and blends between;
        'yarn' keeps those that turn beta_fast times or more in original_context positions, divides those that turn
        beta_slow times or less, and blends between.
    factor : at least 1.
    low_freq_factor, high_freq_factor, original_context : of 'llama3'; low < high, context in positions, also of 'yarn'.
    beta_fast, beta_slow : of 'yarn', fast > slow.
    attention_factor : of 'yarn', what cosines and sines are multiplied by.

    Raises
    ------
    ModelError : with the bad value and the limit.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        kinds = ("linear", "llama3", "yarn")
        _require(self.kind in kinds, f"rope scaling must be 'linear', 'llama3' or 'yarn', not {self.kind!r}")
        _require(1 <= self.factor < np.inf, f"rope scaling factor must be at least 1, not {self.factor}")
        low, high = self.low_freq_factor, self.high_freq_factor
        _require(
            0 < low < high < np.inf, f"rope scaling needs 0 < low_freq_factor < high_freq_factor, not {low}, {high}"
        )
        _require(self.original_context > 0, f"original_context must be positive, not {self.original_context}")
        slow, fast = self.beta_slow, self.beta_fast
        _require(0 < slow < fast < np.inf, f"rope scaling needs 0 < beta_slow < beta_fast, not {slow}, {fast}")
        most = float(np.finfo(np.float32).max)
        _require(
            0 < self.attention_factor <= most,
            f"attention_factor must be positive and finite, not {self.attention_factor}",
        )

    def _turning(self, turns: float, theta: float, dim: int) -> float:
        """Index of the frequency that turns so often in the original context."""
        return dim * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def apply(self, inverse: F32, theta: float) -> F32:
        """Scaled inverse frequencies, in float32 as the reference computes them; 'yarn' to within the last bits (the reference divides by
        factor * theta^(2j/D)).

        Parameters
        ----------
        inverse : theta^(-2j/D) of j < D/2. theta : their base.
        """
        factor = np.float32(self.factor)
        if self.kind == "yarn":
            dim = 2 * len(inverse)
            first = max(math.floor(self._turning(self.beta_fast, theta, dim)), 0)
            last = min(math.ceil(self._turning(self.beta_slow, theta, dim)), dim - 1)
            width = np.float32(last - first or 0.001)
            divided = np.clip((np.arange(len(inverse), dtype=np.float32) - np.float32(first)) / width, 0, 1)
            return np.asarray(inverse / factor * divided + inverse * (np.float32(1) - divided), np.float32)
        if self.kind == "linear":
            return np.asarray(inverse / factor, np.float32)
        context, low, high = (
            np.float32(v) for v in (self.original_context, self.low_freq_factor, self.high_freq_factor)
        )
        wavelength = np.float32(2 * np.pi) / inverse
        smooth = (context / wavelength - low) / (high - low)
        blended = (np.float32(1) - smooth) * inverse / factor + smooth * inverse
        scaled = np.where(wavelength > context / low, inverse / factor, inverse)
        medium = (wavelength >= context / high) & (wavelength <= context / low)
        return np.where(medium, blended, scaled).astype(np.float32)


def yarn_attention(factor: float, scale: float = 1.0) -> float:
    """What YaRN multiplies cosines and sines by where nothing else is said: 0.1 scale ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


# ---- what a layer is made of -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Activation:
    """What a gate's rows go through before they are multiplied with those of up.

    Attributes
    ----------
    name : as `ModelSpec.activation` and an image's header say it.
    title : as messages say it.
    kind : epilogue of the gate's matrix.
    gate : float32 features of rows of gate and of up.
    transformers, gguf : what configurations of transformers, and metadata of GGUF files, call it.
    """

    name: str
    title: str
    kind: Kind
    gate: Callable[[ArrayLike, ArrayLike], F32]
    transformers: tuple[str, ...]
    gguf: tuple[str, ...]


ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation(
            name="relu2",
            title="squared ReLU (relu2)",
            kind=Kind.GATE_RELU2,
            gate=elementwise.gate_relu2,
            transformers=("relu2",),
            gguf=("relu2", "relu_sqr", "relu_squared", "squared_relu"),
        ),
        Activation(
            name="silu",
            title="SiLU",
            kind=Kind.GATE_SILU,
            gate=elementwise.gate_silu,
            transformers=("silu", "swish"),
            gguf=("silu", "swish", "swiglu"),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A norm of a layer: `LayerWeights.<name>` is its gain.

    Attributes
    ----------
    features : the size of ModelSpec that is its number of gains.
    flag : the member of ModelSpec that says whether the model has it; None: every model has.
    transformers : its tensor's names within a layer, first the usual one. gguf : likewise, without `.weight`.
    """

    name: str
    features: str
    flag: str | None = None
    transformers: tuple[str, ...]
    gguf: str

    @property
    def of_heads(self) -> bool:
        """Whether it is of every head of Q or K, whose gains are stored in the order of their rows."""
        return self.features == "head_dim"

    def size(self, spec: ModelSpec) -> int:
        """Gains, 0 if the model has no such norm."""
        there = self.flag is None or getattr(spec, self.flag)
        return int(getattr(spec, self.features)) if there else 0


NORMS: dict[str, Norm] = {
    n.name: n
    for n in (
        Norm(
            name="input_norm",
            features="hidden",
            transformers=("input_layernorm.weight",),
            gguf="attn_norm",
        ),
        Norm(
            name="post_norm",
            features="hidden",
            transformers=("post_attention_layernorm.weight",),
            gguf="ffn_norm",
        ),
        # The second name is what `1bitLLM/bitnet_b1_58-*` calls it.
        Norm(
            name="attn_norm",
            features="q_dim",
            flag="attn_sub_norm",
            transformers=("self_attn.attn_sub_norm.weight", "self_attn.inner_attn_ln.weight"),
            gguf="attn_sub_norm",
        ),
        Norm(
            name="ffn_norm",
            features="ffn",
            flag="ffn_sub_norm",
            transformers=("mlp.ffn_sub_norm.weight", "mlp.ffn_layernorm.weight"),
            gguf="ffn_sub_norm",
        ),
        # Of every head of Q and of K, the same gains for all of them (Qwen3).
        Norm(
            name="q_norm",
            features="head_dim",
            flag="qk_norm",
            transformers=("self_attn.q_norm.weight",),
            gguf="attn_q_norm",
        ),
        Norm(
            name="k_norm",
            features="head_dim",
            flag="qk_norm",
            transformers=("self_attn.k_norm.weight",),
            gguf="attn_k_norm",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix of a layer as checkpoints hold it: `LayerWeights.<name>`, and its scale `<name>_scale`.

    Attributes
    ----------
    rows, inputs : sizes of ModelSpec.
    heads : the member of ModelSpec that counts the heads whose rows the rotary positions turn; None: none do.
    transformers, gguf : its tensor's name within a layer, without `.weight`.
    """

    name: str
    rows: str
    inputs: str
    heads: str | None = None
    transformers: str
    gguf: str

    def shape(self, spec: ModelSpec) -> tuple[int, int]:
        """(rows, inputs)."""
        return int(getattr(spec, self.rows)), int(getattr(spec, self.inputs))


MATRICES: dict[str, Matrix] = {
    m.name: m
    for m in (
        Matrix(name="q", rows="q_dim", inputs="hidden", heads="heads", transformers="self_attn.q_proj", gguf="attn_q"),
        Matrix(
            name="k", rows="kv_dim", inputs="hidden", heads="kv_heads", transformers="self_attn.k_proj", gguf="attn_k"
        ),
        Matrix(name="v", rows="kv_dim", inputs="hidden", transformers="self_attn.v_proj", gguf="attn_v"),
        Matrix(name="o", rows="hidden", inputs="q_dim", transformers="self_attn.o_proj", gguf="attn_output"),
        Matrix(name="gate", rows="ffn", inputs="hidden", transformers="mlp.gate_proj", gguf="ffn_gate"),
        Matrix(name="up", rows="ffn", inputs="hidden", transformers="mlp.up_proj", gguf="ffn_up"),
        Matrix(name="down", rows="hidden", inputs="ffn", transformers="mlp.down_proj", gguf="ffn_down"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the accelerator executes as one: a linear layer of joined matrices, or attention.

    Attributes
    ----------
    name : of its section in an image, behind the layer's number.
    matrices : whose rows it has; none: attention.
    epilogue : what is made of its rows; None: what the model's activation says.
    alternating : rows of the matrices take turns; otherwise one matrix follows the other.
    norm : the norm that its inputs have gone through; None: attention.
    gain : norms whose gains its section holds, one after the other: its outputs are multiplied with them. It is the norm
        of the step behind it, or norms of its own heads; none: they go as they are. The last step's is of the next layer, or the
        model's last norm.
    """

    name: str
    matrices: tuple[str, ...] = ()
    epilogue: Kind | None = None
    alternating: bool = False
    norm: str | None = None
    gain: tuple[str, ...] = ()

    def rows(self, spec: ModelSpec) -> int:
        return sum(n for n, _ in self.shapes(spec))

    def inputs(self, spec: ModelSpec) -> int:
        return self.shapes(spec)[0][1]

    def shapes(self, spec: ModelSpec) -> list[tuple[int, int]]:
        """(rows, inputs) of each of its matrices."""
        return [MATRICES[name].shape(spec) for name in self.matrices]

    def gains(self, spec: ModelSpec) -> int:
        """Features that its outputs have a gain for, 0 if none."""
        return sum(NORMS[name].size(spec) for name in self.gain)

    def normalised(self, spec: ModelSpec) -> bool:
        """Whether its inputs are divided by their root mean square."""
        return self.norm is not None and NORMS[self.norm].size(spec) > 0

    def kind(self, spec: ModelSpec) -> Kind:
        """Epilogue of its rows."""
        return ACTIVATIONS[spec.activation].kind if self.epilogue is None else self.epilogue

    def fields(self, spec: ModelSpec) -> dict[str, int | float]:
        """Fields of its descriptor that the model alone decides: all but places, and what its section's `info` says."""
        heads = {"head_dim": spec.head_dim, "heads": spec.heads, "kv_heads": spec.kv_heads}
        if not self.matrices:
            return {"group": spec.heads // spec.kv_heads, **heads}
        linear = {"kind": self.kind(spec), "norm_in": self.normalised(spec), "eps": spec.norm_eps}
        if self.epilogue is not Kind.QKV:
            return linear
        return {**linear, **heads}


STEPS: dict[str, Step] = {
    s.name: s
    for s in (
        Step(name="qkv", matrices=("q", "k", "v"), epilogue=Kind.QKV, norm="input_norm", gain=("q_norm", "k_norm")),
        Step(name="attention", gain=("attn_norm",)),
        Step(name="o", matrices=("o",), epilogue=Kind.RESIDUAL, norm="attn_norm", gain=("post_norm",)),
        Step(name="gate", matrices=("gate", "up"), alternating=True, norm="post_norm", gain=("ffn_norm",)),
        Step(name="down", matrices=("down",), epilogue=Kind.RESIDUAL, norm="ffn_norm", gain=("input_norm",)),
    )
}
"""A layer, in the order in which it is executed."""
LAST_STEP = "down"
"""The one whose gain is the next layer's."""


# ---- a model ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Shape of a model. Construction validates.

    Parameters
    ----------
    hidden : features of the residual stream.
    layers : transformer layers.
    heads, kv_heads, head_dim : query heads, key-value heads (a divisor), dimensions of each (a multiple of 32).
    ffn : features between up and down projection.
    vocab : tokens.
    activation : of the gate, a name of ACTIVATIONS: 'relu2' (squared ReLU) or 'silu'.
    attn_sub_norm, ffn_sub_norm : whether attention output and gated features are normalised.
    qk_norm : whether every head of Q and K is normalised, before RoPE.
    group_scales : whether groups of a matrix's inputs have scales of their own.
    ternary_head : whether the head is ternary, and kept as such (`golden.screen`): no int8 rows.
    rope_theta : base of the rotary frequencies.
    norm_eps : epsilon of every RMS norm.
    max_context : positions.
    tied : whether the head is the embedding.
    rope_scaling : of the rotary frequencies, None if they are as `rope_theta` says.

    Raises
    ------
    ModelError : with the bad value and the limit.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    activation: str = "relu2"
    attn_sub_norm: bool = True
    ffn_sub_norm: bool = True
    qk_norm: bool = False
    group_scales: bool = False
    ternary_head: bool = False
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    max_context: int = 256
    tied: bool = True
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if self.rope_scaling is not None and self.rope_scaling.kind == "yarn":
            _require(self.rope_theta > 1, f"rope_theta must be above 1 for YaRN, not {self.rope_theta}")
        for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab", "max_context"):
            value = getattr(self, name)
            _require(isinstance(value, int) and value > 0, f"{name} must be a positive integer, not {value!r}")
        for name in ("hidden", "head_dim", "ffn"):
            value = getattr(self, name)
            _require(value % HEAD_DIM_MULTIPLE == 0, f"{name} must be a multiple of {HEAD_DIM_MULTIPLE}, not {value}")
        _require(
            self.heads % self.kv_heads == 0, f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})"
        )
        known = tuple(ACTIVATIONS)  # in which, unlike in a dict, anything may be looked for
        _require(
            self.activation in known, f"activation must be {' or '.join(map(repr, known))}, not {self.activation!r}"
        )
        _require(self.norm_eps >= 0, f"norm_eps must not be negative, not {self.norm_eps}")
        least = 2 * MULTIPLE if self.ternary_head else 1
        _require(self.vocab >= least, f"a ternary head must have at least {least} rows, not {self.vocab}")

    @property
    def q_dim(self) -> int:
        """Features of all queries."""
        return self.heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Features of all keys."""
        return self.kv_heads * self.head_dim

    @property
    def qkv_rows(self) -> int:
        """Rows of the QKV matrix."""
        return STEPS["qkv"].rows(self)

    @property
    def layer_weights(self) -> int:
        """Weights of a layer's matrices."""
        return sum(rows * inputs for rows, inputs in self.matrices.values())

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(rows, inputs) of every matrix of a layer, by name."""
        return {name: m.shape(self) for name, m in MATRICES.items()}

    @property
    def norms(self) -> dict[str, int]:
        """Features of every norm that a layer has, by name."""
        return {name: size for name, n in NORMS.items() if (size := n.size(self))}

    def check_fits(self, config: AcceleratorConfig, v_narrow: bool = False) -> None:
        """Raises ModelError, naming the limit, unless the accelerator runs this model, with values of the cache in 8 or 4 bits."""
        for name, value, limit in (
            ("hidden", self.hidden, config.max_hidden),
            ("ffn", self.ffn, config.max_features),
            ("qkv rows", self.qkv_rows, config.max_features),
            ("kv_heads * head_dim", self.kv_dim, config.max_kv_dim),
            ("heads * head_dim", self.q_dim, config.max_features // 2),
            ("heads", self.heads, config.max_heads),
            ("head_dim", self.head_dim, config.max_head_dim),
            ("query heads of a KV head", self.heads // self.kv_heads, MAX_GROUP),
            ("max_context", self.max_context, config.context_limit(v_narrow)),
        ):
            _require(value <= limit, f"{name} is {value}, but accelerator {config.name!r} holds at most {limit}")
        self.check_format(config)

    def check_format(self, config: AcceleratorConfig) -> None:
        """Raises ModelError unless the accelerator's format of weights can hold this model's."""
        _require(
            not self.group_scales or config.packing.group > 0,
            f"groups of a matrix's inputs have scales of their own, but accelerator {config.name!r} has one scale a matrix; build one "
            "with weight_format = 'grouped' (--set weight_format=grouped)",
        )
        if self.ternary_head:
            _require(
                config.ternary_head,
                f"its head is ternary, without int8 rows, but accelerator {config.name!r} is built without ternary_head; convert the "
                "checkpoint with --head full, or build one with --set ternary_head=true",
            )
            _require(self.vocab <= MAX_ROWS, f"a ternary head has at most {MAX_ROWS:,} rows, not {self.vocab:,}")


def rope_tables(spec: ModelSpec, positions: int | None = None) -> tuple[F32, F32]:
    """cos and sin [positions, head_dim / 2] (max_context positions if None).

    As in the reference: inverse frequencies 1 / theta^(2j/D) and angles (their product with the position) are rounded
    to float32; cos and sin of that angle are computed in float64 and rounded once, then multiplied by YaRN's factor.
    """
    exponent = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
    power = np.float64(spec.rope_theta) ** exponent.astype(np.float64)
    inverse = np.float32(1) / power.astype(np.float32)
    if spec.rope_scaling is not None:
        inverse = spec.rope_scaling.apply(inverse, spec.rope_theta)
    n = spec.max_context if positions is None else positions
    angle = (np.arange(n, dtype=np.float32)[:, None] * inverse).astype(np.float64)
    factor = np.float32(1 if spec.rope_scaling is None else spec.rope_scaling.attention_factor)
    return np.cos(angle).astype(np.float32) * factor, np.sin(angle).astype(np.float32) * factor
