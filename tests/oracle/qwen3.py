"""The second demo model's weights, read from its GGUF file without the importer, and where its vectors are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.gguf_reader import ReaderField
from numpy.typing import NDArray

from tellme.host.image.model import demo_qwen3
from tests.oracle.heldout import TEXT

VECTORS = Path(__file__).parent / "vectors" / "demo-qwen3.npz"
TAPPED = 12
"""Tokens of the first story whose layers are recorded."""
Q2_0, GROUP = 42, 64


class Reader(gguf.GGUFReader):
    """The package's reader, for a type that it does not know: keeps what the header says of every tensor."""

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        self.places = {}
        for field in fields:
            _, name, _, dims, kind, offset = field.parts
            shape = tuple(reversed(dims.tolist()))
            self.places[bytes(name).decode()] = shape, int(kind[0]), start_offs + int(offset[0])

    def value(self, name: str) -> Any:
        """Of a metadata key."""
        return self.fields[name].contents()


def unpack_q2_0(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Weights [n, 64] of blocks [n, 18], byte by byte as llama.cpp describes them."""
    out = np.empty((len(data), GROUP), np.float32)
    d = np.frombuffer(data[:, :2].tobytes(), "<f2").astype(np.float32)
    for j in range(GROUP):
        out[:, j] = ((data[:, 2 + j // 4] >> 2 * (j % 4) & 3).astype(np.float32) - 1) * d
    return out


def tensors() -> tuple[Reader, dict[str, NDArray[np.float32]]]:
    """Every tensor of the file in float32, under the file's names."""
    reader, out = Reader(demo_qwen3()), {}
    for name, (shape, kind, first) in reader.places.items():
        n = int(np.prod(shape))
        if kind == Q2_0:
            out[name] = unpack_q2_0(reader.data[first : first + n // GROUP * 18].reshape(-1, 18)).reshape(shape)
        else:
            assert kind == gguf.GGMLQuantizationType.F32, name
            out[name] = reader.data[first : first + 4 * n].view(np.float32).reshape(shape)
    return reader, out


def fingerprint() -> str:
    """Hash of the model and the text."""
    return hashlib.sha256(demo_qwen3().read_bytes() + TEXT.read_bytes()).hexdigest()
