"""What is fuzzed. A new reader is one more `Target` in `targets`."""

from __future__ import annotations

import json
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from golden.config import TINY
from host.checkpoint import read_checkpoint
from host.image import PAGE, Image
from host.model import Model, convert
from host.program import compile_program
from host.tokenizer import Files, Tokenizer
from tests.fuzz.driver import Target, whole
from tests.host.support import config_json, tensors_of, write_folder
from tests.models import random_weights, small_spec

SPEC = small_spec(hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, vocab=8)
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(8)}, "unk_token": "w2"},
}  # fmt: skip


def safetensors_header(data: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """Split of a safetensors file."""
    n = int.from_bytes(data[:8], "little")
    return data[8 : 8 + n], lambda text: struct.pack("<Q", len(text)) + text + data[8 + n :]


def image_header(data: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """Split of an image: with the right length, checksum and place of the data."""
    magic, version, n, _, zero = struct.unpack("<8sIIII", data[:24])
    start = -(-(24 + n) // PAGE) * PAGE

    def join(text: bytes) -> bytes:
        prefix = struct.pack("<8sIIII", magic, version, len(text), zlib.crc32(text), zero)
        return (prefix + text).ljust(-(-(24 + len(text)) // PAGE) * PAGE, b"\0") + data[start:]

    return data[24 : 24 + n], join


def read_folder(folder: Path) -> None:
    """Opens a checkpoint and reads every layer."""
    list(read_checkpoint(folder).weights.layers)


def read_tokenizer(folder: Path) -> None:
    """Reads the tokenizer and uses it."""
    tokenizer = Tokenizer(Files.read(folder), SPEC.vocab)
    tokenizer.decode(tokenizer.encode("w3 w4"))


def read_image(folder: Path) -> None:
    """Opens an image unchecked, as the checksums of its content find everything else, and uses all of it."""
    model = Model(Image(folder / "m.tlm", verify=False), TINY)
    list(model.weights().layers)
    compile_program(model, TINY)
    model.embed([0, model.spec.vocab - 1])
    model.image.verify()


def _checkpoint(shards: int, *, tied: bool = True, latent: bool = False) -> dict[str, bytes]:
    spec = small_spec(hidden=32, layers=1, heads=2, kv_heads=1, ffn=32, vocab=8, tied=tied)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "m"
        scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        write_folder(
            folder, config_json(spec, rope_scaling=scaling), tensors_of(random_weights(spec, 1), latent=latent), shards
        )
        (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        (folder / "tokenizer_config.json").write_text('{"bos_token": {"content": "w0"}, "eos_token": "w1"}')
        (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
        return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def _image() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "m"
        folder.mkdir()
        for file, data in _checkpoint(1, tied=False).items():
            (folder / file).write_bytes(data)
        convert(read_checkpoint(folder), folder / "m.tlm", TINY)
        return (folder / "m.tlm").read_bytes()


def targets() -> list[Target]:
    """Every target."""
    single, shards, latent = _checkpoint(1), _checkpoint(2, tied=False), _checkpoint(1, latent=True)
    configs = ("config.json", "generation_config.json")
    headers = {n: safetensors_header for n in (*single, *shards) if n.endswith(".safetensors")}
    parts = headers | {n: whole for n in (*single, *shards) if n.endswith(".json")}
    index = tuple(n for n in shards if n.endswith((".index.json", ".safetensors")))
    return [
        Target("config", single, read_folder, parts, configs),
        Target("safetensors", single, read_folder, parts, ("model.safetensors",)),
        Target("latent", latent, read_folder, parts, ("model.safetensors", "config.json")),
        Target("shards", shards, read_folder, parts, index),
        Target("tokenizer", single, read_tokenizer, parts, ("tokenizer.json", "tokenizer_config.json")),
        Target("image", {"m.tlm": _image()}, read_image, {"m.tlm": image_header}),
    ]
