"""Writes a tiny random model of every Hugging Face family with transformers, and what PyTorch (float32) makes of it.

Run by `make oracle`; names of families as arguments write only those. The recorded vectors of the first tokens, layer by layer: inputs of every norm, int8 codes and outputs
of every linear layer, rotary tables; for all 512 tokens the negative log-likelihood of the next one and the likeliest.

A random model's logits are nearly equal, so that its NLL says nothing and its likeliest token is a matter of the last
bit. So the rows of the output head are of very different lengths (log-normal): as in a trained model some tokens are
likely, and the distribution is far from uniform (the mean NLL is printed beside that of the uniform one). The tokens are
drawn from it, so that the NLL is its entropy. The test also runs damaged models, to show that its bounds tell.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.integrations.bitnet import pack_weights, unpack_weights

from tests.oracle.families import FAMILIES, LENGTH, SEQUENCES, TAPPED, checkpoint, fingerprint, vectors

VOCAB = 256
HEADS = {
    "bitnet-latent": (0.4, 2.2),
    "bitnet-packed": (0.4, 2.2),
    "first-bitnet": (0.35, 2.0),
    "llama-ternary": (0.7, 1.8),
    "qwen3-ternary": (0.4, 2.2),
}
"""Standard deviations of the logarithm of the lengths of head rows, and of the logits of a row of mean length."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class BitLinear(nn.Linear):
    """1bitLLM's linear layer: weights to -1, 0, 1 times their mean magnitude, inputs to int8 by their absolute maximum, at
    every use (the published definition: weight_bits 1, input_bits 8)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.weight.float().abs().mean().clamp(min=1e-5)
        weight = (self.weight.float() / mean).round().clamp(-1, 1) * mean
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        return nn.functional.linear((x * scale).round().clamp(-128, 127) / scale, weight)


class Normalised(nn.Module):
    """A norm in front of a linear layer, where 1bitLLM has its sub-norms."""

    def __init__(self, norm: nn.Module, linear: nn.Module):
        super().__init__()
        self.norm, self.linear = norm, linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(x))


def first_bitnet(config: transformers.LlamaConfig) -> transformers.LlamaForCausalLM:
    """1bitLLM/bitnet_b1_58 of transformers' LLaMA: its linear layers replaced, its two sub-norms added."""
    model = transformers.LlamaForCausalLM(config)
    norm = transformers.models.llama.modeling_llama.LlamaRMSNorm
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, BitLinear(linear.in_features, linear.out_features, bias=False))
        o, down = layer.self_attn.o_proj, layer.mlp.down_proj
        layer.self_attn.o_proj = Normalised(norm(o.in_features, config.rms_norm_eps), o)
        layer.mlp.down_proj = Normalised(norm(down.in_features, config.rms_norm_eps), down)
    return model


FIRST_NAMES = {
    "self_attn.o_proj.norm": "self_attn.inner_attn_ln",
    "mlp.down_proj.norm": "mlp.ffn_layernorm",
    "proj.linear": "proj",
}


def config_of(family: str) -> transformers.PreTrainedConfig:
    """The configuration of a family's tiny model."""
    common: dict[str, Any] = dict(
        vocab_size=VOCAB,
        num_hidden_layers=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        rms_norm_eps=1e-5,
    )
    if family == "first-bitnet":
        return transformers.LlamaConfig(
            hidden_size=192, intermediate_size=96, num_attention_heads=2, num_key_value_heads=2, hidden_act="silu",
            tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **common,
        )  # fmt: skip
    if family == "llama-ternary":
        rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
        return transformers.LlamaConfig(
            hidden_size=128, intermediate_size=192, num_attention_heads=4, num_key_value_heads=1, head_dim=32,
            hidden_act="silu", tie_word_embeddings=False, rope_parameters=rope,
            quantization_config={"quant_method": "bitnet"}, **common,
        )  # fmt: skip
    if family == "qwen3-ternary":
        return transformers.Qwen3Config(
            hidden_size=96, intermediate_size=160, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
            hidden_act="silu", tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            quantization_config={"quant_method": "bitnet"}, **common,
        )  # fmt: skip
    mode = "online" if family == "bitnet-latent" else "offline"
    quantisation = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode}
    return transformers.BitNetConfig(
        hidden_size=96, intermediate_size=128, num_attention_heads=3, num_key_value_heads=1, hidden_act="relu2",
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        quantization_config=quantisation, **common,
    )  # fmt: skip


def randomise(model: nn.Module, family: str) -> None:
    """Random gains; weights such that residual stream and layers are of one size; a head that decides."""
    hidden, (spread, peak) = model.config.hidden_size, HEADS[family]
    for name, p in model.named_parameters():
        with torch.no_grad():
            if p.dim() == 1:
                p.uniform_(0.5, 1.5)
            elif "proj" in name:
                p.normal_(0, 1.5 / p.shape[1] ** 0.5)
            else:
                p.normal_(0, 1)
    rows = model.get_output_embeddings().weight
    with torch.no_grad():
        rows *= torch.exp(spread * torch.randn(len(rows), 1))
        # Signs, because a tied head would find the input token itself again, whatever the layers do.
        model.model.norm.weight *= peak / hidden**0.5 * torch.randn(hidden).sign()


def packed(state: dict[str, torch.Tensor], divides: bool) -> dict[str, torch.Tensor]:
    """A state dictionary with its ternary matrices packed by transformers."""
    out = {}
    for name, tensor in state.items():
        if any(p in name for p in PROJECTIONS):
            scale = tensor.abs().mean()
            out[name] = pack_weights((tensor / scale).round().clamp(-1, 1))
            out[f"{name}_scale"] = (1 / scale if divides else scale).reshape(1)
        else:
            out[name] = tensor
    return out


def write(family: str) -> nn.Module:
    """Writes the checkpoint; the model as PyTorch runs it, read back from there where transformers knows the family."""
    folder = checkpoint(family)
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(FAMILIES.index(family) + 1)
    config = config_of(family)
    if family == "first-bitnet":
        model = first_bitnet(config)
        randomise(model, family)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p.half())  # what float16 holds
        folder.mkdir(parents=True)
        tensors = {}
        for name, tensor in model.state_dict().items():
            for new, old in FIRST_NAMES.items():
                name = name.replace(new, old)
            if name != "lm_head.weight":
                tensors[name] = tensor.half()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        keep = (
            "attention_bias bos_token_id eos_token_id hidden_act hidden_size intermediate_size max_position_embeddings "
            "num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps tie_word_embeddings vocab_size"
        ).split()
        text = {name: getattr(config, name) for name in keep} | {
            "architectures": ["BitnetForCausalLM"], "model_type": "llama", "input_bits": 8, "weight_bits": 1,
            "rope_scaling": None, "rope_theta": 10000.0, "torch_dtype": "float16",
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(text, indent=1))
    else:
        quantisation = config.quantization_config
        del config.quantization_config
        kinds = {"llama-ternary": transformers.LlamaForCausalLM, "qwen3-ternary": transformers.Qwen3ForCausalLM}
        plain = kinds.get(family, transformers.BitNetForCausalLM)(config)
        randomise(plain, family)
        config.quantization_config = quantisation
        if family == "bitnet-latent":
            plain.to(torch.bfloat16).save_pretrained(folder)
        else:
            state = packed(plain.state_dict(), divides=family in kinds)
            if config.tie_word_embeddings:
                state.pop("lm_head.weight", None)
            shard = "60KB" if family == "llama-ternary" else "1GB"
            plain.save_pretrained(folder, state_dict=state, max_shard_size=shard)
        for path in folder.iterdir():
            path.chmod(0o644)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    write_tokenizer(folder)
    return model.eval()


def write_tokenizer(folder: Path) -> None:
    """A tokenizer.json of as many words as the vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "w0", "eos_token": "w1"}')


def cross_entropy(logits: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    """Negative log-likelihood of every next token: [SEQUENCES, LENGTH - 1]."""
    return nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").numpy()


def draw(model: nn.Module) -> torch.Tensor:
    """Random sequences of the model's own: [SEQUENCES, LENGTH]."""
    ids = last = torch.zeros(SEQUENCES, 1, dtype=torch.int64)
    cache = None
    while ids.shape[1] < LENGTH:
        out = model(last, past_key_values=cache, use_cache=True)
        cache, last = out.past_key_values, torch.multinomial(out.logits[:, -1].softmax(-1), 1)
        ids = torch.cat([ids, last], -1)
    return ids


def tap(model: nn.Module, ids: torch.Tensor) -> dict[str, np.ndarray]:
    """Layers of a sequence. Per layer i: `i.x`, `i.attention`, `i.middle`, `i.gated`, the inputs of the norm (if any) and
    quantiser of QKV, of o, of gate and up, of down; `i.<part>.codes` of each; `i.<projection>.y`; `i.q_norm`, `i.k_norm`,
    heads behind their norm. And cos, sin."""
    out: dict[str, np.ndarray] = {}
    hooks = []

    def keep(module: nn.Module, name: str, inputs: bool) -> None:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], result: Any) -> None:
            tensor = args[0] if inputs else result
            out[name] = tensor.reshape(len(ids), -1).float().numpy().copy()

        hooks.append(module.register_forward_hook(hook))

    def codes(module: nn.Module, name: str) -> None:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], result: Any) -> None:
            x = args[0].reshape(len(ids), -1)
            scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
            out[name] = (x * scale).round().clamp(-128, 127).to(torch.int8).numpy()

        hooks.append(module.register_forward_hook(hook))

    def rotary(_: nn.Module, args: Any, result: tuple[torch.Tensor, torch.Tensor]) -> None:
        for name, table in zip(("cos", "sin"), result, strict=True):
            out[name] = table[0, :, : table.shape[-1] // 2].numpy().copy()

    hooks.append(model.model.rotary_emb.register_forward_hook(rotary))
    for i, layer in enumerate(model.model.layers):
        o, down = layer.self_attn.o_proj, layer.mlp.down_proj
        keep(layer.input_layernorm, f"{i}.x", True)
        keep(layer.post_attention_layernorm, f"{i}.middle", True)
        keep(getattr(layer.self_attn, "attn_sub_norm", o), f"{i}.attention", True)
        keep(getattr(layer.mlp, "ffn_sub_norm", down), f"{i}.gated", True)
        linear = {name: getattr(layer.self_attn, f"{name}_proj") for name in ("q", "k", "v", "o")}
        linear |= {name: getattr(layer.mlp, f"{name}_proj") for name in ("gate", "up", "down")}
        for name, module in linear.items():
            keep(module, f"{i}.{name}.y", False)
        for name in ("q_norm", "k_norm"):
            if hasattr(layer.self_attn, name):
                keep(getattr(layer.self_attn, name), f"{i}.{name}", False)
        for name, part in (("q", "x"), ("o", "attention"), ("gate", "middle"), ("down", "gated")):
            codes(getattr(linear[name], "linear", linear[name]), f"{i}.{part}.codes")
    model(ids[None])
    for h in hooks:
        h.remove()
    return out


def in_float(family: str, model: nn.Module) -> nn.Module:
    """The same ternary weights in plain linear layers, whose inputs nobody quantises."""
    config = config_of(family)
    del config.quantization_config
    plain = type(model)(config)
    tensors = {}
    for path in checkpoint(family).glob("*.safetensors"):
        tensors |= load_file(path)
    state = {}
    for name, tensor in tensors.items():
        if f"{name}_scale" in tensors:
            state[name] = unpack_weights(tensor, torch.float32) / tensors[f"{name}_scale"]
        elif not name.endswith("_scale"):
            state[name] = tensor
    missing, unexpected = plain.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return plain.eval()


def main(families: Sequence[str]) -> int:
    """Writes families; prints what the vectors say."""
    torch._dynamo.config.disable = True
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    total = 0
    for family in families:
        with torch.no_grad():
            model = write(family)
            ids = draw(model)
            logits = model(ids).logits[:, :-1]
            taps = tap(model, ids[0, :TAPPED])
            if family == "qwen3-ternary":
                plain = in_float(family, model)(ids).logits[:, :-1]
                taps |= {
                    "float.nll": cross_entropy(plain, ids),
                    "float.best": plain.argmax(-1).numpy().astype(np.int16),
                }
        losses = cross_entropy(logits, ids)
        top = logits.topk(2).values
        np.savez_compressed(
            vectors(family),
            fingerprint=fingerprint(family),
            versions=f"torch {torch.__version__}, transformers {transformers.__version__}",
            ids=ids.numpy().astype(np.int16),
            nll=losses,
            best=logits.argmax(-1).numpy().astype(np.int16),
            lead=(top[..., 0] - top[..., 1]).numpy(),
            **taps,
        )
        size = vectors(family).stat().st_size + sum(p.stat().st_size for p in checkpoint(family).iterdir())
        total += size
        print(
            f"{family}: {size:,} bytes, {losses.size} tokens, NLL {losses.mean():.3f} of {np.log(VOCAB):.3f} (uniform), "
            f"median lead of the likeliest token {np.median(top[..., 0] - top[..., 1]):.2f}, "
            f"{len(set(logits.argmax(-1).flatten().tolist()))} different ones"
        )
    print(f"{total:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or FAMILIES))
