"""Reads GGUF files of llama.cpp and bitnet.cpp into the golden model's weights.

| tensor type | weights |
|---|---|
| I2_S (36, bitnet.cpp's; unknown to the `gguf` package) | blocks of 128 in 32 bytes: byte j holds weights j, j + 32, j + 64, j + 96 at bits 7:6, 5:4, 3:2, 1:0 as weight + 1; behind the last block one float32 scale and 28 bytes of nothing |
| TQ1_0, TQ2_0 | blocks of 256 with a float16 scale each, which are equal in a ternary matrix |
| F32, F16, BF16, Q8_0, ... | every weight -s, 0 or +s; or latent weights, when they are asked for |

A scale of its own (`blk.N.attn_q.scale`) multiplies that of the blocks. Norms, embedding and head may be of any type that the `gguf` package decodes.

| `general.architecture` | gate, if the file does not say | rotary pairs | from |
|---|---|---|---|
| `bitnet` | SiLU | halves | llama.cpp; 1bitLLM's models |
| `bitnet-b1.58` | squared ReLU; SiLU with the heads and rotary base of the first generation, see `_gate` | halves | bitnet.cpp; microsoft/bitnet-b1.58-2B-4T, since 2026 1bitLLM's models, too |
| `bitnet-25` | squared ReLU | halves | bitnet.cpp; microsoft/bitnet-b1.58-2B-4T |
| `llama` | SiLU | neighbours: rows of Q and K are put back in the order of halves | Falcon3, Llama3-8B |

`hidden_activation` of the metadata says which gate it is; most files do not have it. What is assumed then is in `Checkpoint.notes`, unless the shape is that of a
published model. Special tokens of id -1, in whatever integer type, are left out, as if the file did not name them; padding and unknown tokens beyond
the vocabulary, too, with a note.

The header is parsed here and not with the package's reader, which knows neither type 36 nor a file that lies: it makes arrays of whatever length is written, and Python
objects of every element. Here a length, count or offset is compared with the file's size before it is used. Tensors are mapped piece by piece, so what the
process holds does not grow with the file.

I2_S has two more layouts: builds of bitnet.cpp for Arm quantise in blocks of 64, and some newer ones for x86 four rows at a time. The file does not say which one it has. What is
read here is the one of the published files (and of `dequantize_row_i2_s`); of the others the weights would come out in the wrong order: convert from the original checkpoint then.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from tellme.golden import head, ternary
from tellme.golden.model import LayerWeights, ModelSpec, ModelWeights, RopeScaling
from tellme.host.checkpoints.checkpoint import (
    Checkpoint,
    LazyLayers,
    activation,
    golden_errors,
    several_scales,
    sound,
    sound_floats,
)
from tellme.host.checkpoints.tensors import what_it_is
from tellme.host.errors import UserError
from tellme.host.text.tokenizer import Files, Tokenizer
from tellme.host.text.vocabulary import (
    MAX_PIECES,
    SPLITS,
    TURN_ENDS,
    Kind,
    Piece,
    SentencePiece,
    byte_level_json,
    sentencepiece_json,
)

MAGIC = b"GGUF"
MAX_HEADER = 1 << 26
"""Bytes of a header (metadata and tensor names). Those of published files, with their vocabulary, have some 10 million."""
MAX_TENSORS = 1 << 16
PIECE = 1 << 20
"""Elements of a tensor that are decoded at a time."""

FREQUENCIES = "rope_freqs.weight"
I2_S = 36
_INTEGERS = (24, 25, 26, 27)  # I8, I16, I32, I64
_BITNET_CPP = {36: "I2_S", 37: "I8_S", 38: "TL1", 39: "TL2 or MXFP4"}
_NOT_YET = {
    41: "Q1_0: binary sign weights, -1 and +1 in one bit each, no ternary ones; a binary model is not supported",
    42: "Q2_0: ternary with a scale for every 64 (or 128) inputs; one scale a matrix is supported, several are not yet",
    142: "PQ2_0: ternary with a scale for every 128 inputs; one scale a matrix is supported, several are not yet",
    143: "PTQ1_0: ternary with a scale for every 128 inputs; one scale a matrix is supported, several are not yet",
}
"""Types of llama.cpp (and, from 142 on, of Prism's branch) that are known but cannot be run."""
_I2_S_BLOCK = 128
_TQ_BLOCK = 256
_TQ = {GGMLQuantizationType.TQ1_0, GGMLQuantizationType.TQ2_0}
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""How llama.cpp names the parts of a model."""
_HALF_STEP = 1 + 2.0**-10
"""Scales of one matrix may differ by one step of float16."""

# GGUF value types: struct formats of the numbers; 8 is a string, 9 an array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_MATRICES = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "swiglu": "silu",
    "relu2": "relu2", "relu_sqr": "relu2", "relu_squared": "relu2", "squared_relu": "relu2",
}  # fmt: skip
_ACTIVATION_KEYS = ("hidden_activation", "hidden_act", "activation_function", "feed_forward_activation")
"""Last parts of the metadata that name the gate: llama.cpp's, then what configurations call it."""
_ARCHITECTURES = {"bitnet": "silu", "bitnet-b1.58": "relu2", "bitnet-25": "relu2", "llama": "silu"}
_SHAPE_2B_4T = (2560, 30, 6912, 128256)
_SHAPE_LARGE = (1536, 24, 4096, 32002)
"""hidden, layers, ffn, vocabulary of microsoft/bitnet-b1.58-2B-4T and of 1bitLLM/bitnet_b1_58-large (the others of the first
generation have features that are no multiples of 32)."""
_NO_TOKEN = (-1, 0xFF, 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)
"""-1 in an integer of any kind; only beyond the vocabulary does it mean that there is no such token."""
_UNUSED = ("unknown", "padding")
"""Special tokens that say nothing of where a text begins or ends: beyond the vocabulary, as a padding token that was added behind it,
they are left out with a word, as llama.cpp does."""


# ---- blocks ----------------------------------------------------------------------------------------------------------


def unpack_i2_s(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes uint8[n, 128] (weight + 1; 3 is no weight) of blocks uint8[n, 32]."""
    return np.concatenate([data >> shift & 3 for shift in (6, 4, 2, 0)], axis=-1)


def unpack_tq2_0(data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes uint8[n, 256] (weight + 1; 3 is no weight) and scales [n] of blocks uint8[n, 66]: for each half 32 bytes, then the scale."""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
    halves = data[:, :64].reshape(-1, 2, 1, 32) >> shifts & np.uint8(3)
    return halves.reshape(-1, _TQ_BLOCK), _half(data[:, 64:])


def unpack_tq1_0(data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes uint8[n, 256] (weight + 1) and scales [n] of blocks uint8[n, 54]: 32 bytes of 5 weights, 16 of 5, 4 of 4, the scale.

    A byte is ceil(v * 256 / 243) of the base-3 number v of its weights, first one highest: digit i is the top of (byte * 3**i mod 256) * 3.
    """
    parts = []
    for start, size, digits in ((0, 32, 5), (32, 16, 5), (48, 4, 4)):
        powers = np.array([1, 3, 9, 27, 81][:digits], np.uint8).reshape(-1, 1)
        rest = data[:, None, start : start + size] * powers  # mod 256
        parts.append((rest.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(data), -1))
    return np.concatenate(parts, axis=1), _half(data[:, 52:])


def _half(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(data).view("<f2")[:, 0].astype(np.float32)


_UNPACK = {GGMLQuantizationType.TQ1_0: unpack_tq1_0, GGMLQuantizationType.TQ2_0: unpack_tq2_0}


# ---- the file --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """A tensor: shape as NumPy has it (rows first), type number, place in the file, bytes of a row."""

    shape: tuple[int, ...]
    type: int
    start: int
    row_bytes: int


def _shown(name: str) -> str:
    """A name from a file as a message may hold it."""
    return name[:100] if name.isprintable() else repr(name[:100])


def _type_name(number: int) -> str:
    try:
        return GGMLQuantizationType(number).name
    except ValueError:
        return _BITNET_CPP.get(number, f"of unknown type {number}")


class _Cursor:
    """Reads a header. Nothing is taken without a look at what is left of the file."""

    def __init__(self, data: mmap.mmap, size: int, path: Path):
        self._data, self._size, self._path, self.at = data, size, path, 0

    def take(self, n: int, what: str) -> bytes:
        if n > self._size - self.at:
            raise UserError(
                f"{self._path}: is truncated or damaged: {what} of {n:,} bytes at byte {self.at:,} of {self._size:,}"
            )
        if n > len(self._data) - self.at:
            raise UserError(f"{self._path}: its header has more than {MAX_HEADER:,} bytes; at most those are read")
        self.at += n
        return self._data[self.at - n : self.at]

    def number(self, form: str, what: str) -> Any:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form), what))[0]

    def count(self, what: str, smallest: int, most: int) -> int:
        """A number of things that take `smallest` bytes each, at least."""
        n: int = self.number("Q", what)
        if n > most or n * smallest > self._size - self.at:
            raise UserError(
                f"{self._path}: is truncated or damaged: {n:,} {what} at byte {self.at:,} of {self._size:,}"
            )
        return n

    def string(self, what: str) -> str:
        data = self.take(self.number("Q", f"the length of {what}"), what)
        try:
            return data.decode()
        except ValueError as e:
            raise UserError(f"{self._path}: {what} at byte {self.at - len(data):,} is not UTF-8") from e

    def value(self, key: str) -> Any:
        kind = self.number("I", f"the type of {key}")
        if kind == _STRING:
            return self.string(key)
        if kind in _NUMBERS:
            value = self.number(_NUMBERS[kind], key)
            # The shortest decimal that is this float32: 1e-05 as in a config.json, not 9.999999747378752e-06.
            return float(str(np.float32(value))) if kind == 6 else value
        if kind != _ARRAY:
            raise UserError(f"{self._path}: {key} is of unknown type {kind}; the file is damaged or too new")
        kind = self.number("I", f"the type of {key}")
        if kind == _STRING:
            return [self.string(f"{key}[{i}]") for i in range(self.count(f"elements of {key}", 8, 4 * MAX_PIECES))]
        if kind not in _NUMBERS:
            raise UserError(f"{self._path}: {key} is an array of type {kind}; the file is damaged or too new")
        width = struct.calcsize("<" + _NUMBERS[kind])
        n = self.count(f"elements of {key}", width, MAX_HEADER)
        return np.frombuffer(self.take(n * width, key), np.dtype(_NUMBERS[kind]).newbyteorder("<"))


class Gguf:
    """The header of a GGUF file, and its tensors by name.

    Attributes
    ----------
    path : the file.
    fields : metadata: str, bool, int, float, list[str] or an array of numbers.

    Raises
    ------
    UserError : the file cannot be read, or is not a whole, undamaged GGUF file of version 2 or 3.
    """

    def __init__(self, path: Path):
        self.path = path
        self.fields: dict[str, Any] = {}
        self._entries: dict[str, _Entry] = {}
        try:
            if not path.is_file():
                raise UserError(f"{path}: is not a file; give a GGUF file")
            self._size = path.stat().st_size
            if kind := self._other():
                raise UserError(f"{path}: is not a GGUF file: it {kind}")
            if self._size < 24:
                raise UserError(f"{path}: has {self._size} bytes; it is no GGUF file, or truncated")
            with (
                open(path, "rb") as f,
                mmap.mmap(f.fileno(), min(self._size, MAX_HEADER), access=mmap.ACCESS_READ) as m,
            ):
                self._parse(_Cursor(m, self._size, path))
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror})") from e

    def _other(self) -> str | None:
        """What a file without the magic number is, if that can be seen."""
        with open(self.path, "rb") as f:
            head = f.read(512)
        return None if head.startswith(MAGIC) else what_it_is(head)

    def _parse(self, c: _Cursor) -> None:
        path = self.path
        if c.take(4, "the magic number") != MAGIC:
            raise UserError(f"{path}: is not a GGUF file")
        version = c.number("I", "the version")
        if version not in (2, 3):
            if version and version & 0xFFFF == 0:
                raise UserError(f"{path}: is a big-endian GGUF file; only little-endian ones are supported")
            raise UserError(f"{path}: is GGUF version {version}; supported are 2 and 3")
        tensors = c.count("tensors", 24, MAX_TENSORS)
        for _ in range(c.count("metadata fields", 13, MAX_TENSORS)):
            key = c.string("a metadata name")
            if key in self.fields:
                raise UserError(f"{path}: {key[:100]!r} is given twice")
            self.fields[key] = c.value(repr(key[:100]))
        infos = [self._info(c) for _ in range(tensors)]
        alignment = self.integer("general.alignment", 32)
        if alignment & alignment - 1 or alignment > 1 << 20:
            raise UserError(f"{path}: general.alignment is {alignment}; a power of two of at most 1,048,576 is needed")
        data = -(-c.at // alignment) * alignment
        spans = []
        for name, shape, kind, offset in infos:
            entry = self._place(name, shape, kind, data, offset, alignment)
            if name in self._entries:
                raise UserError(f"{self.where(name)}: is there twice")
            self._entries[name] = entry
            spans.append((entry.start, entry.start + self._bytes(entry), name))
        spans.sort()
        for (_, end, before), (start, _, name) in zip(spans, spans[1:], strict=False):
            if start < end:
                raise UserError(f"{self.where(name)}: lies within {_shown(before)}; the file is damaged")

    def _info(self, c: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
        name = c.string("a tensor name")
        n = c.number("I", "a number of dimensions")
        if not 1 <= n <= 4:
            raise UserError(f"{self.where(name)}: has {n:,} dimensions; 1 to 4 are possible, the file is damaged")
        dims = struct.unpack(f"<{n}Q", c.take(8 * n, f"the shape of {name[:100]!r}"))
        return name, tuple(reversed(dims)), c.number("I", "a tensor type"), c.number("Q", "a tensor offset")

    def _place(self, name: str, shape: tuple[int, ...], kind: int, data: int, offset: int, alignment: int) -> _Entry:
        where = self.where(name)
        if kind in _NOT_YET:
            raise UserError(f"{where}: is {_NOT_YET[kind]}. Take the model in I2_S, TQ1_0 or TQ2_0, if there is one")
        if not all(0 < n < 1 << 40 for n in shape):
            raise UserError(f"{where}: has the shape {list(shape)}; every dimension must be positive and below 2**40")
        if kind == I2_S:
            block, width = _I2_S_BLOCK, _I2_S_BLOCK // 4
        else:
            try:
                block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            except ValueError:
                raise UserError(
                    f"{where}: is {_type_name(kind)}, which cannot be read; make the file with I2_S, TQ1_0 or TQ2_0"
                ) from None
        if shape[-1] % block:
            raise UserError(
                f"{where}: has rows of {shape[-1]:,} weights, which are no whole blocks of {block} ({_type_name(kind)})"
            )
        entry = _Entry(shape, kind, data + offset, shape[-1] // block * width)
        if offset % alignment:
            raise UserError(f"{where}: its offset {offset:,} is no multiple of {alignment}; the file is damaged")
        if entry.start + self._bytes(entry) > self._size:
            raise UserError(
                f"{where}: ends at byte {entry.start + self._bytes(entry):,}, but the file has {self._size:,}; it is truncated or damaged"
            )
        return entry

    @staticmethod
    def _bytes(e: _Entry) -> int:
        return math.prod(e.shape[:-1]) * e.row_bytes + (4 if e.type == I2_S else 0)

    # ---- metadata ----------------------------------------------------------------------------------------------------

    def _field(self, key: str, types: type | tuple[type, ...], what: str, default: Any) -> Any:
        value = self.fields.get(key, default)
        if value is default is None:
            raise UserError(f"{self.path}: {key} is missing")
        if not isinstance(value, types) or isinstance(value, bool) != (types is bool):
            raise UserError(f"{self.path}: {key} must be {what}, not {str(value)[:100]!r}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer. Raises UserError."""
        value = self.fields.get(key)
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu" and (value == value[0]).all():
            value = int(value[0])  # one for each layer, all equal
        elif key in self.fields:
            value = self._field(key, int, "a positive integer", None)
        else:
            value = self._field(key, int, "a positive integer", default)
        if not 0 < value < 1 << 31:
            raise UserError(f"{self.path}: {key} must be a positive integer, not {value}")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number. Raises UserError."""
        value = float(self._field(key, (int, float), "a positive number", default))
        if not 0 < value < math.inf:
            raise UserError(f"{self.path}: {key} must be a positive number, not {value}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A text. Raises UserError."""
        return str(self._field(key, str, "a text", default))

    def flag(self, key: str, default: bool) -> bool:
        """A truth value. Raises UserError."""
        return bool(self._field(key, bool, "true or false", default))

    def texts(self, key: str) -> list[str]:
        """A list of texts. Raises UserError."""
        value: list[str] = self._field(key, list, "a list of texts", None)
        return value

    # ---- tensors -----------------------------------------------------------------------------------------------------

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def where(self, name: str) -> str:
        """`file: tensor name`, for messages."""
        return f"{self.path}: tensor {_shown(name)}"

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows first. Raises UserError if there is no such tensor."""
        if name not in self._entries:
            part = _SPLIT.search(self.path.name)
            hint = (
                f"; by its name the file is one of {int(part[2])}, join them with llama-gguf-split --merge"
                if part
                else ""
            )
            raise UserError(f"{self.path}: tensor {name} is missing{hint}")
        return self._entries[name].shape

    def require(self, name: str, shape: tuple[int, ...]) -> _Entry:
        """A tensor of this shape. Raises UserError."""
        if self.shape(name) != shape:
            raise UserError(
                f"{self.where(name)}: has the shape {list(self.shape(name))}, the metadata ask for {list(shape)}"
            )
        return self._entries[name]

    def _map(self, start: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        try:
            return np.memmap(self.path, np.uint8, "r", start, shape)
        except (OSError, ValueError) as e:  # the file was cut since its header was read
            raise UserError(f"{self.path}: cannot be read ({e})") from e

    def _pieces(self, e: _Entry) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(first row, bytes uint8[rows, row_bytes]), about PIECE elements at a time."""
        rows = math.prod(e.shape[:-1])
        step = max(1, PIECE // e.shape[-1])
        for i in range(0, rows, step):
            yield i, self._map(e.start + i * e.row_bytes, (min(step, rows - i), e.row_bytes))

    def float_pieces(self, name: str, shape: tuple[int, ...]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, float32[rows, elements]) of a tensor of any type that decodes to floats, all finite.

        Raises
        ------
        UserError : missing, another shape, a type that is no float, infinities or NaN.
        """
        e = self.require(name, shape)
        kind = UserError(f"{self.where(name)}: is {_type_name(e.type)}, a floating-point tensor is needed")
        if e.type in (I2_S, *_INTEGERS):
            raise kind
        for i, raw in self._pieces(e):
            with np.errstate(all="ignore"):
                try:
                    if e.type == GGMLQuantizationType.F64:
                        out = raw.view("<f8").astype(np.float32)
                    else:
                        out = np.asarray(
                            dequantize(np.ascontiguousarray(raw), GGMLQuantizationType(e.type)), np.float32
                        )
                except NotImplementedError as error:  # a type that the gguf package cannot decode
                    raise kind from error
            if not np.isfinite(out).all():
                row, column = (int(v) for v in np.argwhere(~np.isfinite(out))[0])
                raise UserError(
                    f"{self.where(name)}: holds NaN or infinity at [{row + i}, {column}]; the file is damaged"
                )
            yield i, out

    def floats(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A whole small tensor. Raises UserError as `float_pieces`."""
        return np.concatenate([piece for _, piece in self.float_pieces(name, shape)]).reshape(shape)

    def gain(self, name: str, features: int) -> NDArray[np.float32]:
        """The gain of a norm. Raises UserError as `float_pieces`, and if it is damaged."""
        return sound_floats(self.where(name), self.floats(name, (features,)))

    def rows(self, name: str, shape: tuple[int, int]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """int8 rows and their scales of an embedding or a head. Raises UserError as `float_pieces`."""
        self.require(name, shape)  # before memory of that shape is taken
        codes, scales = np.empty(shape, np.int8), np.empty(shape[0], np.float32)
        for i, piece in self.float_pieces(name, shape):
            part = slice(i, i + len(piece))
            codes[part], scales[part] = head.quantise_rows(piece)
        sound_floats(self.where(name), codes)
        return codes, scales

    def matrix(self, name: str, shape: tuple[int, int], *, latent: bool = False) -> tuple[NDArray[np.int8], float]:
        """A ternary matrix int8[rows, inputs] and the scale that multiplies its outputs.

        Raises
        ------
        UserError : missing, another shape, weights that are not ternary or are damaged, scales that differ or are broken.
        """
        e = self.require(name, shape)
        out = np.empty(shape, np.int8)
        if e.type == I2_S:
            scale = self._i2_s(name, e, out)
        elif e.type in _TQ:
            scale = self._tq(name, e, out)
        elif latent:
            total = sum(float(np.abs(x).sum(dtype=np.float64)) for _, x in self.float_pieces(name, shape))
            s = ternary.latent_scale(total, out.size)
            for i, x in self.float_pieces(name, shape):
                out[i : i + len(x)] = ternary.quantise(x, s)[0]
            scale = float(s)
        else:
            scale = self._exact(name, shape, out)
        extra = name.removesuffix(".weight") + ".scale"
        if extra in self:
            scale *= float(self.floats(extra, (1,))[0])
        sound(self.where(name), out)
        with np.errstate(over="ignore"):
            scale = float(np.float32(scale))
        if not 0 < scale < math.inf:
            raise UserError(f"{self.where(name)}: its scale is {scale}; a scale must be positive and finite")
        return out, scale

    def _codes(self, name: str, codes: NDArray[np.uint8], row: int, out: NDArray[np.int8]) -> None:
        """Writes the weights of codes uint8[rows * blocks, weights of a block] to `out` from a row on."""
        codes = codes.reshape(-1, out.shape[1])
        if (codes == 3).any():
            i, column = (int(v) for v in np.argwhere(codes == 3)[0])
            raise UserError(
                f"{self.where(name)}: code 3 at row {i + row}, column {column} is no ternary weight; the file is damaged"
            )
        np.subtract(codes.view(np.int8), 1, out=out[row : row + len(codes)])

    def _i2_s(self, name: str, e: _Entry, out: NDArray[np.int8]) -> float:
        for i, raw in self._pieces(e):
            self._codes(name, unpack_i2_s(np.ascontiguousarray(raw).reshape(-1, _I2_S_BLOCK // 4)), i, out)
        return float(self._map(e.start + len(out) * e.row_bytes, (4,)).view("<f4")[0])

    def _tq(self, name: str, e: _Entry, out: NDArray[np.int8]) -> float:
        kind = GGMLQuantizationType(e.type)
        low, high, several = math.inf, 0.0, set[float]()
        for i, raw in self._pieces(e):
            codes, scales = _UNPACK[kind](np.ascontiguousarray(raw).reshape(-1, GGML_QUANT_SIZES[kind][1]))
            if not np.isfinite(scales).all() or (scales < 0).any():
                block = int(np.argwhere(~(np.isfinite(scales) & (scales >= 0)))[0, 0])
                raise UserError(
                    f"{self.where(name)}: the scale of block {i * (e.shape[1] // _TQ_BLOCK) + block} is {scales[block]}; the file is damaged"
                )
            codes[scales == 0] = 1  # a block of zeros
            self._codes(name, codes, i, out)
            if scales.any():
                low, high = min(low, float(scales[scales > 0].min())), max(high, float(scales.max()))
                several.update(float(s) for s in np.unique(scales[scales > 0]))
        if high > low * _HALF_STEP:
            raise UserError(
                f"{self.where(name)}: its blocks have scales from {low:g} to {high:g}, {len(several):,} different ones: one scale a matrix is "
                "supported, several are not yet. If the model was not trained with ternary weights, take one that was"
            )
        return high

    def _exact(self, name: str, shape: tuple[int, int], out: NDArray[np.int8]) -> float:
        """Floats of which each is -s, 0 or s."""
        scale = 0.0
        for i, x in self.float_pieces(name, shape):
            magnitude = np.abs(x)
            scale = scale or float(magnitude.max())
            bad = (magnitude != scale) & (x != 0)
            if bad.any():
                row, column = (int(v) for v in np.argwhere(bad)[0])
                if group := ternary.scale_group(x):
                    raise several_scales(self.where(name), group, magnitude, i, scale)
                raise UserError(
                    f"{self.where(name)}: its weights are not ternary: magnitudes {scale:g} and {magnitude[row, column]:g} (row {row + i}, "
                    f"column {column}); convert a model that was trained with ternary weights, or quantise these by their mean magnitude with --latent"
                )
            out[i : i + len(x)] = np.sign(x)
        return scale


# ---- the model -------------------------------------------------------------------------------------------------------


def _gate(
    g: Gguf, architecture: str, shape: tuple[int, int, int, int], heads: tuple[int, int], theta: float
) -> tuple[str, list[str]]:
    """The gate, and what was assumed of it.

    Parameters
    ----------
    shape : hidden, layers, ffn, vocabulary. heads : of queries and of keys. theta : base of the rotary frequencies.

    A file says it in `<architecture>.hidden_activation`, of which a key that was left behind under another architecture is as good.
    Without it the shape of a published model tells. Of other `bitnet-b1.58` files the first generation has as many KV heads as heads
    and a base of 10,000, while 2B-4T and its kin share KV heads and have 500,000.
    """
    said = activation(
        {k: v for k, v in g.fields.items() if k.rpartition(".")[2] in _ACTIVATION_KEYS}, _ACTIVATIONS, g.path
    )
    if said is not None:
        return said, []
    if shape == _SHAPE_2B_4T and architecture != "llama":
        return "relu2", []
    if shape == _SHAPE_LARGE:
        return "silu", []
    gate, why = _ARCHITECTURES[architecture], f"as usual for architecture {architecture}"
    if architecture == "bitnet-b1.58" and heads[0] == heads[1] and theta == 10000:
        gate = "silu"
        why = f"its {heads[0]} KV heads for {heads[0]} heads and rope.freq_base of 10,000 are those of the first generation (1bitLLM)"
    elif architecture == "llama" and "blk.0.ffn_sub_norm.weight" not in g and "blk.0.attn_sub_norm.weight" not in g:
        return gate, []  # every LLaMA has it
    name = {"silu": "SiLU", "relu2": "squared ReLU (relu2)"}[gate]
    return gate, [
        f"{g.path}: does not say its activation ({architecture}.hidden_activation is missing); {name} is assumed, {why}. If that is wrong, "
        "give the model's Hugging Face folder, or a file that says it"
    ]


def _read_spec(g: Gguf, architecture: str, notes: list[str]) -> ModelSpec:
    def key(name: str) -> str:
        return f"{architecture}.{name}"

    def refuse(name: str, value: object, limit: str) -> None:
        raise UserError(f"{g.path}: {key(name)} is {value!r}; {limit}")

    hidden, heads = g.integer(key("embedding_length")), g.integer(key("attention.head_count"))
    if key("attention.key_length") not in g.fields and hidden % heads:
        refuse("attention.head_count", heads, f"without attention.key_length it must divide the {hidden} features")
    head_dim = g.integer(key("attention.key_length"), hidden // heads or 1)
    for name in ("attention.value_length", "rope.dimension_count"):
        if g.integer(key(name), head_dim) != head_dim:
            refuse(name, g.fields[key(name)], f"only {head_dim}, the head dimension, is supported")
    if key("expert_count") in g.fields and g.fields[key("expert_count")] != 0:
        refuse("expert_count", g.fields[key("expert_count")], "mixtures of experts are not supported")
    shape = g.shape("token_embd.weight")
    vocab = shape[0] if len(shape) == 2 else 0
    if g.integer(key("vocab_size"), max(vocab, 1)) != vocab:
        refuse("vocab_size", g.fields[key("vocab_size")], f"but token_embd.weight has the shape {list(shape)}")
    layers, ffn = g.integer(key("block_count")), g.integer(key("feed_forward_length"))
    if layers > len(list(g)):
        refuse("block_count", layers, f"but the file has {len(list(g))} tensors")
    kv_heads, theta = g.integer(key("attention.head_count_kv"), heads), g.number(key("rope.freq_base"), 10000.0)
    gate, assumed = _gate(g, architecture, (hidden, layers, ffn, vocab), (heads, kv_heads), theta)
    notes += assumed
    with golden_errors(g.path):
        return ModelSpec(
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=ffn,
            vocab=vocab,
            activation=gate,  # type: ignore[arg-type]
            attn_sub_norm="blk.0.attn_sub_norm.weight" in g,
            ffn_sub_norm="blk.0.ffn_sub_norm.weight" in g,
            rope_theta=theta,
            norm_eps=g.number(key("attention.layer_norm_rms_epsilon")),
            max_context=g.integer(key("context_length")),
            tied="output.weight" not in g,
            rope_scaling=_rope_scaling(g, architecture, head_dim),
        )


def _rope_scaling(g: Gguf, architecture: str, head_dim: int) -> RopeScaling | None:
    """How the rotary frequencies are scaled: linearly by metadata, or as Llama 3.1 does by a tensor of divisors.

    As in llama.cpp: a factor without a type is linear, 0 is none, and `rope.scale_linear` is its older name.
    """
    kind = f"{architecture}.rope.scaling.type"
    factors = {}
    for key in (f"{architecture}.rope.scaling.factor", f"{architecture}.rope.scale_linear"):
        if key in g.fields and g.fields[key] != 0:
            factors[key] = g.number(key)
    if len(set(factors.values())) > 1:
        said = " and ".join(f"{k} is {v:g}" for k, v in factors.items())
        raise UserError(f"{g.path}: {said}; correct the wrong one")
    by = next(iter(factors.values()), 1.0)
    scaling = g.text(kind, "linear")
    if scaling not in ("none", "linear"):
        raise UserError(f"{g.path}: {kind} is {scaling!r}; supported are 'none' and 'linear'")
    if scaling == "none":
        by = 1.0
    for name in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
        key = f"{architecture}.{name}"
        if key in g.fields and g.fields[key] != 0 and g.number(key) != 1:
            raise UserError(f"{g.path}: {key} is {g.fields[key]:g}; a factor of the rotary magnitudes is not supported")
    if f"{architecture}.rope.dimension_sections" in g.fields:
        raise UserError(
            f"{g.path}: {architecture}.rope.dimension_sections is set; heads must be rotated by one position"
        )
    if FREQUENCIES not in g:
        return RopeScaling(kind="linear", factor=by) if by != 1 else None
    divisors = g.floats(FREQUENCIES, (head_dim // 2,))
    if (divisors == 1).all():
        return RopeScaling(kind="linear", factor=by) if by != 1 else None
    theta = g.number(f"{architecture}.rope.freq_base", 10000.0)
    inverse = (theta ** -(np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    # A file has the divisors and not the four numbers they were made from; published models differ only in the factor.
    llama3 = RopeScaling(kind="llama3", factor=max(float(divisors.max()), 1.0))
    if by != 1 or not np.allclose(inverse / llama3.apply(inverse), divisors, rtol=1e-3, atol=0):
        raise UserError(
            f"{g.where(FREQUENCIES)}: scales the rotary frequencies, but not as Llama 3.1 does; that is not supported"
        )
    return llama3


def _names(spec: ModelSpec) -> set[str]:
    """Tensors that a file of this shape may hold."""
    norms = ["attn_norm", "ffn_norm"] + ["attn_sub_norm"] * spec.attn_sub_norm + ["ffn_sub_norm"] * spec.ffn_sub_norm
    parts = [f"{n}.weight" for n in (*norms, *_MATRICES.values())] + [f"{n}.scale" for n in _MATRICES.values()]
    names = {f"blk.{i}.{part}" for i in range(spec.layers) for part in parts}
    return names | {"token_embd.weight", "output_norm.weight", "output.weight", FREQUENCIES}


def _halves(w: NDArray[np.int8], heads: int) -> NDArray[np.int8]:
    """Rows of Q or K in the order of rotary halves, from llama.cpp's order of neighbours."""
    rows, inputs = w.shape
    return np.ascontiguousarray(w.reshape(heads, rows // heads // 2, 2, inputs).swapaxes(1, 2)).reshape(rows, inputs)


def _refuse_parts(g: Gguf) -> None:
    """Refuses files that are only a part of a model, or something beside one."""
    name, count = _SPLIT.search(g.path.name), g.fields.get("split.count", 1)
    if type(count) is not int or count not in (0, 1):
        first = f"{g.path.name[: name.start()]}-00001-of-{name[2]}.gguf" if name else "FIRST.gguf"
        raise UserError(
            f"{g.path}: is one of {str(count)[:20]} files of a model; join them with llama-gguf-split --merge {first} WHOLE.gguf "
            "and give that"
        )
    kind = g.fields.get("general.type", "model")
    if kind == "adapter":
        raise UserError(
            f"{g.path}: holds only an adapter (LoRA), no model; merge it into its base model (llama-export-lora) and give that file"
        )
    if kind != "model":
        raise UserError(f"{g.path}: its general.type is {str(kind)[:50]!r}; give the file of the model itself")
    if not list(g):
        raise UserError(f"{g.path}: holds no tensors, only metadata (a vocabulary?); give the file of the model itself")


def read_gguf(path: Path, *, latent: bool = False) -> Checkpoint:
    """Reads and checks a GGUF file.

    Parameters
    ----------
    path : the file.
    latent : quantise floating-point matrices by their mean magnitude, instead of refusing those that are not ternary.

    Raises
    ------
    UserError : whatever is wrong with the file or not supported of the model, with file, tensor or field and the limit. Weights
        that are not ternary are found when their layer is read.
    """
    g = Gguf(path)
    _refuse_parts(g)
    architecture = g.text("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise UserError(f"{path}: its architecture is {architecture!r}; supported are {', '.join(_ARCHITECTURES)}")
    notes: list[str] = []
    spec = _read_spec(g, architecture, notes)
    extra = sorted(set(g) - _names(spec))
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UserError(f"{g.where(extra[0])}{more}: no place in this model; it may not be of the supported kind")
    shapes = {
        "q": (spec.q_dim, spec.hidden),
        "k": (spec.kv_dim, spec.hidden),
        "v": (spec.kv_dim, spec.hidden),
        "o": (spec.hidden, spec.q_dim),
        "gate": (spec.ffn, spec.hidden),
        "up": (spec.ffn, spec.hidden),
        "down": (spec.hidden, spec.ffn),
    }

    norms = {"input_norm": ("attn_norm", spec.hidden), "post_norm": ("ffn_norm", spec.hidden)}
    if spec.attn_sub_norm:
        norms["attn_norm"] = ("attn_sub_norm", spec.q_dim)
    if spec.ffn_sub_norm:
        norms["ffn_norm"] = ("ffn_sub_norm", spec.ffn)
    for i in range(spec.layers):
        for part, tensor in _MATRICES.items():
            g.require(f"blk.{i}.{tensor}.weight", shapes[part])
        for tensor, features in norms.values():
            g.require(f"blk.{i}.{tensor}.weight", (features,))

    def layer(i: int) -> LayerWeights:
        parts: dict[str, Any] = {}
        for part, tensor in _MATRICES.items():
            w, scale = g.matrix(f"blk.{i}.{tensor}.weight", shapes[part], latent=latent)
            if architecture == "llama" and part in "qk":
                w = _halves(w, spec.heads if part == "q" else spec.kv_heads)
            parts[part], parts[f"{part}_scale"] = w, scale
        for part, (tensor, features) in norms.items():
            parts[part] = g.gain(f"blk.{i}.{tensor}.weight", features)
        return LayerWeights(**parts)

    tokenizer, eos = _tokenizer(g, spec.vocab, notes)
    embedding, scales = g.rows("token_embd.weight", (spec.vocab, spec.hidden))
    head_rows, head_scales = None, None
    if not spec.tied:
        head_rows, head_scales = g.rows("output.weight", (spec.vocab, spec.hidden))
    with golden_errors(path):
        weights = ModelWeights(
            spec=spec,
            layers=LazyLayers(spec, layer),
            norm=g.gain("output_norm.weight", spec.hidden),
            embedding=embedding,
            embedding_scales=scales,
            head=head_rows,
            head_scales=head_scales,
        )
    return Checkpoint(path.stem, weights, tokenizer, eos, tuple(notes))


# ---- the tokenizer ---------------------------------------------------------------------------------------------------


def _pieces(g: Gguf, vocab: int) -> list[Piece]:
    texts = g.texts("tokenizer.ggml.tokens")
    if not 0 < len(texts) <= min(vocab, MAX_PIECES):
        raise UserError(f"{g.path}: its vocabulary has {len(texts):,} tokens, token_embd.weight {vocab:,} rows")

    def numbers(name: str, default: int, kinds: str) -> NDArray[Any]:
        value = g.fields.get(f"tokenizer.ggml.{name}", np.full(len(texts), default))
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or len(value) != len(texts):
            raise UserError(f"{g.path}: tokenizer.ggml.{name} must hold {len(texts):,} numbers, one for each token")
        return value

    scores, kinds = numbers("scores", 0, "fiu"), numbers("token_type", Kind.NORMAL, "iu")
    if len(kinds) and not (kinds.min() >= min(Kind) and kinds.max() <= max(Kind)):
        bad = int(np.argwhere((kinds < min(Kind)) | (kinds > max(Kind)))[0, 0])
        raise UserError(
            f"{g.path}: tokenizer.ggml.token_type[{bad}] is {kinds[bad]}; types are {min(Kind):d} to {max(Kind):d}"
        )
    return [Piece(t, float(s), Kind(int(k))) for t, s, k in zip(texts, scores, kinds, strict=True)]


def _tokenizer(g: Gguf, vocab: int, notes: list[str]) -> tuple[Files, tuple[int, ...]]:
    """The vocabulary as tokenizer.json, what tokenizer_config.json would say, and the tokens that end a text; what was left out goes to `notes`."""
    model = g.text("tokenizer.ggml.model")
    pieces = _pieces(g, vocab)

    def token(name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in g.fields:
            return None
        i = g.fields[key]
        if type(i) is int and i in _NO_TOKEN and not 0 <= i < len(pieces):
            return None
        if type(i) is int and i >= len(pieces) and name in _UNUSED:
            notes.append(
                f"{g.path}: {key} is {i}, but the vocabulary has {len(pieces):,} tokens; it is left out, as no text needs it"
            )
            return None
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(pieces):
            raise UserError(f"{g.path}: {key} is {str(i)[:50]!r}; the vocabulary has {len(pieces):,} tokens")
        return i

    def or_control(i: int | None, default: int, kind: Kind = Kind.CONTROL) -> int | None:
        """llama.cpp's default for vocabularies of the Llama kind, if that is such a token."""
        return default if i is None and default < len(pieces) and pieces[default].kind == kind else i

    bos, eos, unknown = token("bos"), token("eos"), token("unknown")
    if model == "llama":
        if "tokenizer.ggml.scores" not in g.fields:
            raise UserError(f"{g.path}: tokenizer.ggml.scores is missing; a vocabulary of the kind 'llama' needs it")
        bos, eos, unknown = or_control(bos, 1), or_control(eos, 2), or_control(unknown, 0, Kind.UNKNOWN)
        add_bos = True
        source = SentencePiece(
            pieces,
            prefix=g.flag("tokenizer.ggml.add_space_prefix", True),
            squeeze=g.flag("tokenizer.ggml.remove_extra_whitespaces", False),
            unknown=-1 if unknown is None else unknown,
        )

        def make(begin: int) -> bytes:
            return sentencepiece_json(source, str(g.path), begin=begin)

    elif model == "gpt2":
        # Early files of bitnet-b1.58-2B-4T do not say how words are cut; its vocabulary is Llama 3's.
        default = "llama-bpe" if any(p.text == "<|begin_of_text|>" for p in pieces) else "default"
        split = g.text("tokenizer.ggml.pre", default)
        add_bos = split in SPLITS and SPLITS[split].bos

        def make(begin: int) -> bytes:
            return byte_level_json(pieces, g.texts("tokenizer.ggml.merges"), split, str(g.path), begin=begin)

    else:
        raise UserError(f"{g.path}: tokenizer.ggml.model is {model!r}; supported are 'llama' and 'gpt2'")
    add_bos = g.flag("tokenizer.ggml.add_bos_token", add_bos)
    if "tokenizer.huggingface.json" in g.fields:
        data = g.text("tokenizer.huggingface.json").encode()
    else:
        data = make(bos if add_bos and bos is not None else -1)
    config: dict[str, Any] = {
        "add_bos_token": add_bos,
        "add_eos_token": g.flag("tokenizer.ggml.add_eos_token", False),
    }
    for name, i in (("bos", bos), ("eos", eos), ("unk", unknown), ("pad", token("padding"))):
        if i is not None:
            config[f"{name}_token"] = pieces[i].text
    templates = _templates(g)
    if templates is not None:
        config["chat_template"] = templates
    files = Files(data, json.dumps(config, ensure_ascii=False).encode())
    Tokenizer(files, vocab)  # raises if it cannot be used
    ends = [eos, token("eot"), token("eom")]
    ends += [i for i, p in enumerate(pieces) if p.text in TURN_ENDS]
    return files, tuple(dict.fromkeys(i for i in ends if i is not None))


def _templates(g: Gguf) -> str | list[dict[str, str]] | None:
    """The chat template, or all of them by name."""
    key = "tokenizer.chat_template"
    main = g.text(key) if key in g.fields else None
    named = {k.removeprefix(f"{key}."): g.text(k) for k in g.fields if k.startswith(f"{key}.")}
    if not named:
        return main
    if main is not None:
        named = {"default": main} | named
    return [{"name": name, "template": template} for name, template in named.items()]
