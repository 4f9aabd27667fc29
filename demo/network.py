"""The demo model as a trainable network: BitNet b1.58 with quantisation in the forward pass.

The arithmetic and the parameter names are those of ``BitNetForCausalLM`` in Hugging Face transformers with
``AutoBitLinear`` layers (``integrations/bitnet.py``): weights become -1, 0 or 1 times their mean magnitude, the input
of every linear layer is rounded to eight bits by its largest magnitude per token, and both roundings pass gradients
straight through. The checkpoint that `packed_state` gives is the "offline" one: ternary codes, four to a byte.
"""

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


def weight_scale(weight: Tensor) -> Tensor:
    """Reciprocal of the mean magnitude of `weight`, a scalar."""
    return 1.0 / weight.abs().mean().clamp(min=1e-5)


def ternary_codes(weight: Tensor) -> Tensor:
    """`weight` as -1, 0 and 1."""
    return (weight * weight_scale(weight)).round().clamp(-1, 1)


def quantise_weight(weight: Tensor) -> Tensor:
    """`weight` rounded to three values; the gradient passes straight through."""
    with torch.no_grad():
        rounding = ternary_codes(weight) / weight_scale(weight) - weight
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

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs).normal_(0, 0.02))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, quantise_weight(self.weight))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of `x` (..., tokens, head_dim), halves paired."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Attention(nn.Module):
    """Causal attention with shared key-value heads and a norm before the output projection."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        inner, shared = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
        self.q_proj = TernaryLinear(shape.hidden_size, inner)
        self.k_proj = TernaryLinear(shape.hidden_size, shared)
        self.v_proj = TernaryLinear(shape.hidden_size, shared)
        self.o_proj = TernaryLinear(inner, shape.hidden_size)
        self.attn_sub_norm = Norm(inner, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        x = quantise_input(x)
        query, key, value = (
            projection(x).view(batch, tokens, -1, self.shape.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        group = self.shape.num_attention_heads // self.shape.num_key_value_heads
        mixed = functional.scaled_dot_product_attention(
            rotate(query, cos, sin),
            rotate(key, cos, sin).repeat_interleave(group, dim=1),
            value.repeat_interleave(group, dim=1),
            is_causal=True,
        )
        mixed = self.attn_sub_norm(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return self.o_proj(quantise_input(mixed))


class FeedForward(nn.Module):
    """Gated feed-forward with squared ReLU and a norm before the down projection."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj = TernaryLinear(shape.hidden_size, shape.intermediate_size)
        self.up_proj = TernaryLinear(shape.hidden_size, shape.intermediate_size)
        self.down_proj = TernaryLinear(shape.intermediate_size, shape.hidden_size)
        self.ffn_sub_norm = Norm(shape.intermediate_size, shape.rms_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = quantise_input(x)
        hidden = self.ffn_sub_norm(functional.relu(self.gate_proj(x)).square() * self.up_proj(x))
        return self.down_proj(quantise_input(hidden))


class Layer(nn.Module):
    """One decoder layer: attention and feed-forward, each on a normalised input and added to the residual."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = Norm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Network(nn.Module):
    """The language model: token ids (batch, tokens) to logits (batch, tokens, vocabulary)."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, 0, 0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        rates = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angles = torch.arange(shape.max_position_embeddings).float()[:, None] * rates
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        tokens = ids.shape[1]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.cos[:tokens], self.sin[:tokens])
        return functional.linear(self.norm(x), self.embed_tokens.weight)

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
