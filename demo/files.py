"""Writes the demo models in published forms: a Hugging Face ``bitnet`` folder, and a GGUF file of architecture ``qwen3``."""

import json
from dataclasses import asdict
from pathlib import Path

import gguf
import numpy as np
from gguf import TokenType
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from tellme.demo.network import Network, Shape, group_codes

BEGIN, END = 0, 1
SPECIAL_TOKENS = ("<s>", "</s>")

Q2_0 = 42
"""Type of llama.cpp that the `gguf` package does not know yet: 64 weights in 18 bytes, a float16 scale and then a code (weight + 1) in
two bits, weight j in byte j/4 at bits 2(j mod 4)."""


def config(shape: Shape) -> dict[str, object]:
    """The content of ``config.json``."""
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        **asdict(shape),
        "hidden_act": "relu2",
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "tie_word_embeddings": True,
        "attention_bias": False,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "dtype": "float32",
        "torch_dtype": "float32",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
    }


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write `content`, indented, with a newline at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_folder(folder: Path, network: Network, tokenizer: Tokenizer) -> Path:
    """Write a Hugging Face ``bitnet`` folder. Returns the file that has the weights."""
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "model.safetensors"
    save_file(network.packed_state(), path, metadata={"format": "pt"})
    write_json(folder / "config.json", config(network.shape))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL_TOKENS[BEGIN],
            "eos_token": SPECIAL_TOKENS[END],
            "model_max_length": network.shape.max_position_embeddings,
        },
    )
    return path


def pack_q2_0(weight: Tensor) -> NDArray[np.uint8]:
    """Latent `weight` (rows, columns) as Q2_0 blocks (rows, columns / 64 * 18)."""
    signs, scale = group_codes(weight, 64)
    codes = (signs.numpy() + 1).astype(np.uint8).reshape(*signs.shape[:2], 16, 4)
    packed = codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6
    scales = scale.numpy().astype("<f2").view(np.uint8)
    return np.concatenate([scales, packed], axis=-1).reshape(len(codes), -1)


def write_gguf(folder: Path, network: Network, tokenizer: Tokenizer) -> Path:
    """Write a GGUF file of architecture ``qwen3``, every matrix as Q2_0, norms as binary32. Returns its path."""
    shape, architecture = network.shape, "qwen3"
    path = folder / "demo-qwen3.gguf"
    w = gguf.GGUFWriter(path, architecture)
    w.add_name("tellme demo, Qwen3")
    w.add_license("apache-2.0")
    w.add_vocab_size(shape.vocab_size)
    w.add_context_length(shape.max_position_embeddings)
    w.add_embedding_length(shape.hidden_size)
    w.add_block_count(shape.num_hidden_layers)
    w.add_feed_forward_length(shape.intermediate_size)
    w.add_head_count(shape.num_attention_heads)
    w.add_head_count_kv(shape.num_key_value_heads)
    w.add_key_length(shape.head_dim)
    w.add_value_length(shape.head_dim)
    w.add_layer_norm_rms_eps(shape.rms_norm_eps)
    w.add_rope_freq_base(shape.rope_theta)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, shape.num_hidden_layers)
    model = json.loads(tokenizer.to_str())["model"]
    texts = sorted(model["vocab"], key=model["vocab"].get)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(texts)
    w.add_token_types([TokenType.CONTROL if t in SPECIAL_TOKENS else TokenType.NORMAL for t in texts])
    w.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in model["merges"]])
    w.add_bos_token_id(BEGIN)
    w.add_eos_token_id(END)
    w.add_add_bos_token(True)
    for name, tensor in network.state_dict().items():
        theirs = names.get_name(f"model.{name}", (".weight",))
        assert theirs is not None, name
        if network.kind.ternary(name):
            blocks = pack_q2_0(tensor).view(np.int8)
            w.add_tensor(theirs, blocks, raw_shape=tuple(tensor.shape), raw_dtype=Q2_0)  # type: ignore[arg-type]
        else:
            w.add_tensor(theirs, tensor.numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
