"""Converts synthetic checkpoints of exact published shapes, and writes time and peak memory to docs/measurements/convert.md.

`python -m bench.convert --dir DIR [SHAPE ...]` (a folder with room for the checkpoint and the image; both are removed).
The checkpoints hold repeated random data, in the tensor names, types, shards and config.json keys of the originals; the
tokenizer is the demo model's. Each command runs in a process of its own; the peak is its largest resident set, mapped
pages included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tellme.host.image.model import demo_folder
from tests.host.checkpoints.gguf_support import NAMES, PQ2_0, demo_vocabulary
from tests.models import PARTS

PAGE = Path(__file__).parent.parent / "docs" / "measurements" / "convert.md"
CONFIGURATIONS = PAGE.parent.parent / "examples" / "configurations"
PEAK_LIMIT = 2 << 30
"""Bytes that a conversion of 2B-4T may hold."""
_SIZES = {"F32": 4, "BF16": 2, "U8": 1}
_BLOCK = 34
"""Bytes of 128 weights in PQ2_0: a scale of float16, then four weights a byte."""


@dataclass(frozen=True)
class Shape:
    """A published model: config.json, type of its matrices (U8: packed; PQ2_0: a GGUF file, embedding and head likewise), of its other
    tensors, shards, and what it is converted for."""

    config: dict[str, Any]
    matrices: str
    floats: str
    sub_norms: tuple[str, str] | None
    shards: int = 1
    target: tuple[str, str] = ("--board", "kv260")


def _config(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "rms_norm_eps": 1e-5,
    } | more


_B_2 = _config(
    30, 2560, 6912, 20, 5, 128256, model_type="bitnet", architectures=["BitNetForCausalLM"], hidden_act="relu2",
    max_position_embeddings=4096, rope_theta=500000.0, tie_word_embeddings=True,
)  # fmt: skip
_LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
}
_LLAMA |= {"quantization_config": {"quant_method": "bitnet"}, "tie_word_embeddings": False}
_NEW_NORMS = ("self_attn.attn_sub_norm", "mlp.ffn_sub_norm")


def _bonsai(layers: int, hidden: int, ffn: int, heads: int, tied: bool, configuration: str) -> Shape:
    config = _config(
        layers, hidden, ffn, heads, 8, 151936, head_dim=128, rope_theta=1e6, max_position_embeddings=32768,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return Shape(config, "PQ2_0", "F32", None, target=("--config", str(CONFIGURATIONS / f"{configuration}.toml")))


SHAPES = {
    "0.73B": Shape(
        _config(
            24, 1536, 4096, 16, 16, 32002, model_type="llama", architectures=["BitnetForCausalLM"], hidden_act="silu",
            max_position_embeddings=2048, rope_theta=10000.0, tie_word_embeddings=True, weight_bits=1, input_bits=8,
        ),
        "F32", "F32", ("self_attn.inner_attn_ln", "mlp.ffn_layernorm"),
    ),
    "2B-4T": Shape(
        _B_2 | {"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear",
                                        "quantization_mode": "offline"}},
        "U8", "BF16", _NEW_NORMS,
    ),
    "2B-4T-bf16": Shape(
        _B_2 | {"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear",
                                        "quantization_mode": "online"}},
        "BF16", "BF16", _NEW_NORMS,
    ),
    "Falcon3-1B": Shape(
        _config(18, 2048, 8192, 8, 4, 131072, head_dim=256, rope_theta=1000042.0, **_LLAMA) | {"rms_norm_eps": 1e-6},
        "U8", "BF16", None,
    ),
    "Llama3-8B": Shape(
        _config(32, 4096, 14336, 32, 8, 128256, rope_theta=500000.0, **_LLAMA), "U8", "BF16", None, shards=2,
    ),
    "Falcon-E-1B": Shape(
        _config(24, 2048, 9216, 16, 2, 32768, head_dim=128, rope_theta=1000042.0, **_LLAMA) | {"rms_norm_eps": 1e-6},
        "U8", "BF16", None, target=("--config", str(CONFIGURATIONS / "kv260_large.toml")),
    ),
    "Bonsai-1.7B": _bonsai(28, 2048, 6144, 16, True, "kv260_bonsai"),
    "Bonsai-4B": _bonsai(36, 2560, 9728, 32, True, "kv260_bonsai_large"),
    "Bonsai-8B": _bonsai(36, 4096, 12288, 32, False, "kv260_bonsai_large"),
}  # fmt: skip


def write_gguf(path: Path, shape: Shape) -> int:
    """Writes a GGUF file of architecture qwen3; returns its bytes. All of its matrices begin with the same blocks."""
    c, rng = shape.config, np.random.default_rng(1)
    hidden, ffn, dim = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * dim, c["num_key_value_heads"] * dim
    w = gguf.GGUFWriter(path, "qwen3")
    demo_vocabulary(w)
    for key, value in (
        ("embedding_length", hidden),
        ("block_count", c["num_hidden_layers"]),
        ("feed_forward_length", ffn),
        ("context_length", c["max_position_embeddings"]),
        ("attention.head_count", c["num_attention_heads"]),
        ("attention.head_count_kv", c["num_key_value_heads"]),
        ("attention.key_length", dim),
        ("attention.value_length", dim),
        ("vocab_size", c["vocab_size"]),
    ):
        w.add_uint32(f"qwen3.{key}", value)
    w.add_float32("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
    w.add_float32("qwen3.rope.freq_base", c["rope_theta"])
    some = np.empty((1 << 16, _BLOCK), np.uint8)
    some[:, :2] = rng.uniform(0.01, 0.03, (len(some), 1)).astype(np.float16).view(np.uint8)
    some[:, 2:] = (rng.integers(0, 3, (len(some), _BLOCK - 2, 4), np.uint8) << np.array([0, 2, 4, 6], np.uint8)).sum(
        axis=-1
    )
    blocks = np.resize(some.view(np.int8), (c["vocab_size"] * hidden // 128, _BLOCK))

    def add(name: str, rows: int, inputs: int) -> None:
        data = blocks[: rows * inputs // 128].reshape(rows, -1)
        w.add_tensor(name, data, raw_shape=(rows, inputs), raw_dtype=PQ2_0)  # type: ignore[arg-type]

    def ones(name: str, n: int) -> None:
        w.add_tensor(name, np.ones(n, np.float32))

    add("token_embd.weight", c["vocab_size"], hidden)
    if not c["tie_word_embeddings"]:
        add("output.weight", c["vocab_size"], hidden)
    ones("output_norm.weight", hidden)
    sizes = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
    sizes |= {"gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}
    for i in range(c["num_hidden_layers"]):
        for part, (rows, inputs) in sizes.items():
            add(f"blk.{i}.{NAMES[part]}.weight", rows, inputs)
        for norm, n in (("attn_norm", hidden), ("ffn_norm", hidden), ("attn_q_norm", dim), ("attn_k_norm", dim)):
            ones(f"blk.{i}.{norm}.weight", n)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path.stat().st_size


def tensors(shape: Shape) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, type, shape) of every tensor."""
    c = shape.config
    hidden, ffn = c["hidden_size"], c["intermediate_size"]
    head_dim = c.get("head_dim", hidden // c["num_attention_heads"])
    q, kv = c["num_attention_heads"] * head_dim, c["num_key_value_heads"] * head_dim
    sizes = {"q": (q, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, q)}
    sizes |= {"gate": (ffn, hidden), "up": (ffn, hidden), "down": (hidden, ffn)}
    yield "model.embed_tokens.weight", shape.floats, (c["vocab_size"], hidden)
    for i in range(c["num_hidden_layers"]):
        prefix = f"model.layers.{i}."
        for part, (rows, inputs) in sizes.items():
            if shape.matrices == "U8":
                yield f"{prefix}{PARTS[part]}.weight", "U8", (rows // 4, inputs)
                yield f"{prefix}{PARTS[part]}.weight_scale", shape.floats, (1,)
            else:
                yield f"{prefix}{PARTS[part]}.weight", shape.matrices, (rows, inputs)
        yield f"{prefix}input_layernorm.weight", shape.floats, (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", shape.floats, (hidden,)
        if shape.sub_norms is not None:
            yield f"{prefix}{shape.sub_norms[0]}.weight", shape.floats, (q,)
            yield f"{prefix}{shape.sub_norms[1]}.weight", shape.floats, (ffn,)
    yield "model.norm.weight", shape.floats, (hidden,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", shape.floats, (c["vocab_size"], hidden)


def _patterns() -> dict[str, bytes]:
    """Random data of every type, and 1.0s for norms and scales."""
    rng = np.random.default_rng(1)
    n = 1 << 22
    codes = rng.integers(0, 3, (4, n), dtype=np.uint8)
    normal: NDArray[np.float32] = rng.normal(0, 0.02, n).astype(np.float32)
    return {
        "U8": (codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6).tobytes(),
        "F32": normal.tobytes(),
        "BF16": (normal.view(np.uint32) >> 16).astype("<u2").tobytes(),
    }


def write_checkpoint(folder: Path, shape: Shape) -> int:
    """Writes a checkpoint folder; returns its bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(demo_folder() / name, folder / name)
    patterns = _patterns()
    ones = {"F32": np.float32(1).tobytes(), "BF16": b"\x80\x3f"}
    every = list(tensors(shape))
    weight_map: dict[str, str] = {}
    total = 0
    for shard in range(shape.shards):
        part = every[shard * len(every) // shape.shards : (shard + 1) * len(every) // shape.shards]
        header, at = {}, 0
        for name, dtype, size in part:
            n = int(np.prod(size)) * _SIZES[dtype]
            header[name] = {"dtype": dtype, "shape": list(size), "data_offsets": [at, at + n]}
            at += n
        text = json.dumps(header).encode()
        file = f"model-{shard + 1:05}-of-{shape.shards:05}.safetensors" if shape.shards > 1 else "model.safetensors"
        weight_map |= dict.fromkeys(header, file)
        with open(folder / file, "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for _, dtype, size in part:
                n = int(np.prod(size)) * _SIZES[dtype]
                source = patterns[dtype] if len(size) == 2 else ones[dtype] * size[0]
                for i in range(0, n, len(source)):
                    f.write(source[: n - i])
        total += 8 + len(text) + at
    if shape.shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


@dataclass(frozen=True)
class Run:
    """A finished command: seconds of wall clock and of processors, peak resident bytes, what it printed."""

    seconds: float
    cpu: float
    peak: int
    output: str


def tellme(*arguments: str) -> Run:
    """Runs a tellme command in its own process.

    Raises
    ------
    RuntimeError : it failed.
    """
    start = time.monotonic()
    script = "from tellme.host.cli import main; main()"
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise RuntimeError(f"tellme {' '.join(arguments)}: {text}")
    return Run(time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, text)


HEADER = [
    "# Conversion of checkpoints: time and memory",
    "",
    "`python -m bench.convert --dir DIR` (bench/convert.py): synthetic checkpoints of the exact published shapes and types, for the `kv260` beat geometry, or the configuration of the KV260 that the shape needs. "
    "Seconds of processor time (and of wall clock, on 2 shared x86 cores); the peak is the largest resident set of the process, mapped pages "
    "included. A conversion of 2B-4T that takes 2 GiB or more fails the bench.",
    "",
    "| checkpoint | matrices | bytes | convert, s (wall) | peak, MiB | image, bytes | `info --verify` of the image, s (wall) | peak, MiB |",
    "|---|---|---|---|---|---|---|---|",
]


def measure(name: str, folder: Path) -> str:
    """Converts one shape below `folder`; the row of the table."""
    shape = SHAPES[name]
    packed = shape.matrices == "PQ2_0"
    source, image = folder / (f"{name}.gguf" if packed else name), folder / f"{name}.tlm"
    try:
        size = (write_gguf if packed else write_checkpoint)(source, shape)
        run = tellme("convert", str(source), str(image), *shape.target)
        print(run.output, end="", flush=True)
        written = image.stat().st_size
        check = tellme("info", str(image), "--verify", *shape.target)
        print(check.output, flush=True)
    finally:
        shutil.rmtree(source, ignore_errors=True)
        source.unlink(missing_ok=True)
        image.unlink(missing_ok=True)
    if name.startswith("2B-4T") and max(run.peak, check.peak) >= PEAK_LIMIT:
        raise RuntimeError(f"{name}: peak of {run.peak:,} and {check.peak:,} bytes, the limit is {PEAK_LIMIT:,}")
    kind = {"PQ2_0": "GGUF, PQ2_0", "U8": "packed", "F32": "float32, latent", "BF16": "bfloat16, latent"}[
        shape.matrices
    ]
    return (
        f"| {name} | {kind} | {size:,} | {run.cpu:.0f} ({run.seconds:.0f}) | {run.peak / 2**20:,.0f} | {written:,} | "
        f"{check.cpu:.0f} ({check.seconds:.0f}) | {check.peak / 2**20:,.0f} |"
    )


def record(row: str) -> None:
    """Puts a row into the page, in place of the one of the same shape."""
    old = PAGE.read_text().splitlines() if PAGE.exists() else []
    rows = {
        line.split("|")[1].strip(): line
        for line in old
        if line.startswith("| ") and not line.startswith("| checkpoint")
    }
    rows[row.split("|")[1].strip()] = row
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join([*HEADER, *(rows[n] for n in SHAPES if n in rows)]) + "\n")


def main() -> None:
    """Measures the shapes that were named, all if none was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="folder for checkpoints and images")
    parser.add_argument("shapes", nargs="*", help=f"of {', '.join(SHAPES)}")
    options = parser.parse_args()
    unknown = set(options.shapes) - set(SHAPES)
    if unknown:
        parser.error(f"no shape {', '.join(sorted(unknown))}; there are {', '.join(SHAPES)}")
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="tellme-bench-") as folder:
        for name in options.shapes or SHAPES:
            row = measure(name, Path(folder))
            print(row, flush=True)
            record(row)


if __name__ == "__main__":
    main()
