"""The demo models as trainable networks, with quantisation in the forward pass.

`BITNET` is BitNet b1.58: arithmetic and parameter names are those of ``BitNetForCausalLM`` in Hugging Face transformers
with ``AutoBitLinear`` layers (``integrations/bitnet.py``): weights become -1, 0 or 1 times their mean magnitude, the
input of every linear layer is rounded to eight bits by its largest magnitude per token. The checkpoint that
`Network.packed_state` gives is the "offline" one: ternary codes, four to a byte.

`QWEN3` is a ternary Qwen3 (Ternary Bonsai): arithmetic and parameter names are those of ``Qwen3ForCausalLM``; weights,
those of the embedding too, become -1, 0 or 1 times the mean magnitude of a group of 64 along the inputs, a float16.
`Network.exact_state` gives these weights as floating-point numbers.

Rounding passes gradients straight through.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Dimensions of the model, named as in ``config.json``.

    Raises
    ------
    ValueError
        A width is not a multiple of 32, or the heads do not share the key-value heads evenly.
    """

    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 256
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "head_dim"):
            value = getattr(self, name)
            if value < 32 or value % 32:
                raise ValueError(f"{name} must be a positive multiple of 32, not {value}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads must be a multiple of num_key_value_heads ({self.num_key_value_heads}), "
                f"not {self.num_attention_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What tells the families apart.

    Parameters
    ----------
    group : weights along the inputs of a matrix that share a scale; 0: the whole matrix has one.
    sub_norms : norms before the output and the down projection.
    qk_norm : a norm of every head of Q and K, before RoPE.
    int8_inputs : inputs of linear layers are rounded to eight bits.
    ternary_embedding : the embedding, which is the head, is ternary like every other matrix.
    activation : of the gate.
    """

    group: int
    sub_norms: bool
    qk_norm: bool
    int8_inputs: bool
    ternary_embedding: bool
    activation: Callable[[Tensor], Tensor]

    def ternary(self, name: str) -> bool:
        """Whether the parameter of this name is rounded to ternary weights."""
        return name.endswith("_proj.weight") or (self.ternary_embedding and name == "embed_tokens.weight")


def squared_relu(x: Tensor) -> Tensor:
    """Squared ReLU."""
    return functional.relu(x).square()


BITNET = Kind(
    group=0, sub_norms=True, qk_norm=False, int8_inputs=True, ternary_embedding=False, activation=squared_relu
)
QWEN3 = Kind(
    group=64, sub_norms=False, qk_norm=True, int8_inputs=False, ternary_embedding=True, activation=functional.silu
)


def weight_scale(weight: Tensor) -> Tensor:
    """Reciprocal of the mean magnitude of `weight`, a scalar."""
    return 1.0 / weight.abs().mean().clamp(min=1e-5)


def ternary_codes(weight: Tensor) -> Tensor:
    """`weight` as -1, 0 and 1."""
    return (weight * weight_scale(weight)).round().clamp(-1, 1)


def group_codes(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """`weight` (rows, columns) as -1, 0 and 1 in groups (rows, columns / group, group), and a scale for each: the group's mean
    magnitude, rounded to float16 (rows, columns / group, 1)."""
    groups = weight.unflatten(1, (-1, group))
    scale = groups.abs().mean(-1, keepdim=True).clamp(min=1e-4).half().float()
    return (groups / scale).round().clamp(-1, 1), scale


def ternary_weight(weight: Tensor, kind: Kind) -> Tensor:
    """`weight` rounded to three values, of the whole matrix or of every group."""
    if not kind.group:
        return ternary_codes(weight) / weight_scale(weight)
    codes, scale = group_codes(weight, kind.group)
    return (codes * scale).flatten(1)


def quantise_weight(weight: Tensor, kind: Kind) -> Tensor:
    """`ternary_weight`; the gradient passes straight through."""
    with torch.no_grad():
        rounding = ternary_weight(weight, kind) - weight
    return weight + rounding


def quantise_input(x: Tensor) -> Tensor:
    """`x` rounded to eight bits per token (last axis); the gradient passes straight through."""
    with torch.no_grad():
        scale = 127 / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
        rounding = (x * scale).round().clamp(-128, 127) / scale - x
    return x + rounding


def pack(codes: Tensor) -> Tensor:
    """Ternary codes (rows, columns) as bytes (rows / 4, columns).

    Byte row r holds the rows r, r + rows/4, r + 2 rows/4 and r + 3 rows/4 in its bit pairs, lowest first, as code + 1.
    """
    quarters = (codes + 1).to(torch.uint8).chunk(4)
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


class Norm(nn.Module):
    """RMSNorm with a gain."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps))


class TernaryLinear(nn.Module):
    """Linear layer without bias and with ternary weights; its input comes already quantised."""

    def __init__(self, inputs: int, outputs: int, kind: Kind):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.empty(outputs, inputs).normal_(0, 0.02))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, quantise_weight(self.weight, self.kind))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of `x` (..., tokens, head_dim), halves paired."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Attention(nn.Module):
    """Causal attention with shared key-value heads; with a norm of queries and keys, or before the output projection."""

    def __init__(self, shape: Shape, kind: Kind):
        super().__init__()
        self.shape, self.kind = shape, kind
        inner, shared = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
        self.q_proj = TernaryLinear(shape.hidden_size, inner, kind)
        self.k_proj = TernaryLinear(shape.hidden_size, shared, kind)
        self.v_proj = TernaryLinear(shape.hidden_size, shared, kind)
        self.o_proj = TernaryLinear(inner, shape.hidden_size, kind)
        if kind.sub_norms:
            self.attn_sub_norm = Norm(inner, shape.rms_norm_eps)
        if kind.qk_norm:
            self.q_norm = Norm(shape.head_dim, shape.rms_norm_eps)
            self.k_norm = Norm(shape.head_dim, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        if self.kind.int8_inputs:
            x = quantise_input(x)
        query, key, value = (
            projection(x).view(batch, tokens, -1, self.shape.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.kind.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        group = self.shape.num_attention_heads // self.shape.num_key_value_heads
        mixed = functional.scaled_dot_product_attention(
            rotate(query, cos, sin),
            rotate(key, cos, sin).repeat_interleave(group, dim=1),
            value.repeat_interleave(group, dim=1),
            is_causal=True,
        )
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, -1)
        if self.kind.sub_norms:
            mixed = self.attn_sub_norm(mixed)
        return self.o_proj(quantise_input(mixed) if self.kind.int8_inputs else mixed)


class FeedForward(nn.Module):
    """Gated feed-forward; with a norm before the down projection."""

    def __init__(self, shape: Shape, kind: Kind):
        super().__init__()
        self.kind = kind
        self.gate_proj = TernaryLinear(shape.hidden_size, shape.intermediate_size, kind)
        self.up_proj = TernaryLinear(shape.hidden_size, shape.intermediate_size, kind)
        self.down_proj = TernaryLinear(shape.intermediate_size, shape.hidden_size, kind)
        if kind.sub_norms:
            self.ffn_sub_norm = Norm(shape.intermediate_size, shape.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind.int8_inputs:
            x = quantise_input(x)
        hidden = self.kind.activation(self.gate_proj(x)) * self.up_proj(x)
        if self.kind.sub_norms:
            hidden = self.ffn_sub_norm(hidden)
        return self.down_proj(quantise_input(hidden) if self.kind.int8_inputs else hidden)


class Layer(nn.Module):
    """One decoder layer: attention and feed-forward, each on a normalised input and added to the residual."""

    def __init__(self, shape: Shape, kind: Kind):
        super().__init__()
        self.self_attn = Attention(shape, kind)
        self.mlp = FeedForward(shape, kind)
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Network(nn.Module):
    """The language model: token ids (batch, tokens) to logits (batch, tokens, vocabulary)."""

    def __init__(self, shape: Shape, kind: Kind = BITNET):
        super().__init__()
        self.shape, self.kind = shape, kind
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, 0, 0.02)
        self.layers = nn.ModuleList(Layer(shape, kind) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        rates = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angles = torch.arange(shape.max_position_embeddings).float()[:, None] * rates
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        tokens = ids.shape[1]
        rows = self.embed_tokens.weight
        if self.kind.ternary_embedding:
            rows = quantise_weight(rows, self.kind)
        x = functional.embedding(ids, rows)
        for layer in self.layers:
            x = layer(x, self.cos[:tokens], self.sin[:tokens])
        return functional.linear(self.norm(x), rows)

    def loss(self, rows: Tensor) -> Tensor:
        """Mean negative log-likelihood (nats a token) of `rows` (batch, tokens + 1), each token from those before."""
        return functional.cross_entropy(self(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    @torch.no_grad()
    def generate(self, ids: list[int], *, temperature: float, seed: int, stop: int) -> list[int]:
        """Continue `ids` to the token `stop` or the end of the context; greedy at temperature 0."""
        generator = torch.Generator().manual_seed(seed)
        ids = list(ids)
        while len(ids) < self.shape.max_position_embeddings and ids[-1] != stop:
            logits = self(torch.tensor([ids]))[0, -1]
            if temperature == 0:
                ids.append(int(logits.argmax()))
            else:
                ids.append(int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)))
        return ids

    @torch.no_grad()
    def round_embedding(self) -> None:
        """Puts every embedding row onto its int8 grid, 127 steps to its largest magnitude: what an accelerator with an
        int8 head computes with is then what is stored."""
        rows = self.embed_tokens.weight
        scale = rows.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5) / 127
        rows.copy_((rows / scale).round() * scale)

    def packed_state(self) -> dict[str, Tensor]:
        """Tensors of the Hugging Face checkpoint: packed ternary weights with their scales, the rest in binary32."""
        state = {}
        for name, tensor in self.state_dict().items():
            if name.endswith("_proj.weight"):
                state[f"model.{name}"] = pack(ternary_codes(tensor)).contiguous()
                state[f"model.{name}_scale"] = (1.0 / weight_scale(tensor)).reshape(1)
            else:
                state[f"model.{name}"] = tensor.clone()
        return state

    @torch.no_grad()
    def exact_state(self) -> dict[str, Tensor]:
        """Tensors under the names of the Hugging Face checkpoint in binary32, matrices as the ternary weights that are used."""
        return {
            f"model.{name}": ternary_weight(tensor, self.kind) if self.kind.ternary(name) else tensor.clone()
            for name, tensor in self.state_dict().items()
        }
