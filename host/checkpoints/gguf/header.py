"""The header of a GGUF file: metadata, and where its tensors are.

It is parsed here and not with the `gguf` package's reader, which knows neither type 36 nor a file that lies: it makes arrays of whatever length is written, and Python
objects of every element. Here a length, count or offset is compared with the file's size before it is used.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tellme.golden.arith import ceil_div
from tellme.host.checkpoints.common import GGUF_MAGIC
from tellme.host.checkpoints.gguf.elements import I2_S, NOT_YET, Q2_0, Q2_0_LEGACY, block_of, type_name
from tellme.host.errors import UserError
from tellme.host.files import PEEK, what_it_is
from tellme.host.text.vocabulary import MAX_PIECES

MAX_HEADER = 1 << 26
"""Bytes of a header (metadata and tensor names). Those of published files, with their vocabulary, have some 10 million."""
MAX_TENSORS = 1 << 16

SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""How llama.cpp names the parts of a model."""

# GGUF value types: struct formats of the numbers; 8 is a string, 9 an array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Entry:
    """A tensor: shape as NumPy has it (rows first), type number, place in the file, bytes of a row."""

    shape: tuple[int, ...]
    type: int
    start: int
    row_bytes: int


def _shown(name: str) -> str:
    """A name from a file as a message may hold it."""
    return name[:100] if name.isprintable() else repr(name[:100])


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


class Header:
    """What a GGUF file says of itself: metadata, and its tensors by name.

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
        self._entries: dict[str, Entry] = {}
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
            head = f.read(PEEK)
        return None if head.startswith(GGUF_MAGIC) else what_it_is(head)

    def _parse(self, c: _Cursor) -> None:
        path = self.path
        if c.take(4, "the magic number") != GGUF_MAGIC:
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
        data = ceil_div(c.at, alignment) * alignment
        spans = []
        starts = sorted({offset for *_, offset in infos} | {max(self._size - data, 0)})
        for name, shape, kind, offset in infos:
            if kind == Q2_0:
                following = starts[bisect_right(starts, offset)] if offset < starts[-1] else offset
                kind = self._blocks_of_q2_0(name, shape, following - offset, alignment)
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

    def _place(self, name: str, shape: tuple[int, ...], kind: int, data: int, offset: int, alignment: int) -> Entry:
        where = self.where(name)
        if kind in NOT_YET:
            raise UserError(f"{where}: is {NOT_YET[kind]}. Take the model in I2_S, TQ1_0 or TQ2_0, if there is one")
        if not all(0 < n < 1 << 40 for n in shape):
            raise UserError(f"{where}: has the shape {list(shape)}; every dimension must be positive and below 2**40")
        try:
            block, width = block_of(kind)
        except ValueError:
            raise UserError(
                f"{where}: is {type_name(kind)}, which cannot be read; make the file with I2_S, TQ1_0 or TQ2_0"
            ) from None
        if shape[-1] % block:
            raise UserError(
                f"{where}: has rows of {shape[-1]:,} weights, which are no whole blocks of {block} ({type_name(kind)})"
            )
        entry = Entry(shape, kind, data + offset, shape[-1] // block * width)
        if offset % alignment:
            raise UserError(f"{where}: its offset {offset:,} is no multiple of {alignment}; the file is damaged")
        if entry.start + self._bytes(entry) > self._size:
            raise UserError(
                f"{where}: ends at byte {entry.start + self._bytes(entry):,}, but the file has {self._size:,}; it is truncated or damaged"
            )
        return entry

    def _blocks_of_q2_0(self, name: str, shape: tuple[int, ...], span: int, alignment: int) -> int:
        """Which of its two block sizes a tensor has: that whose bytes fill its span, up to the alignment of what follows."""
        fit = []
        for kind in (Q2_0, Q2_0_LEGACY):
            block, width = block_of(kind)
            if shape[-1] % block == 0 and 0 <= span - math.prod(shape) // block * width < alignment:
                fit.append(kind)
        if len(fit) != 1:
            what = "blocks of 64 and of 128 both" if fit else "neither blocks of 64 nor of 128"
            raise UserError(
                f"{self.where(name)}: is Q2_0, and {what} fill its {span:,} bytes for the shape {list(shape)}; make the file anew, or take it "
                "in another type"
            )
        return fit[0]

    @staticmethod
    def _bytes(e: Entry) -> int:
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
            part = SPLIT.search(self.path.name)
            hint = (
                f"; by its name the file is one of {int(part[2])}, join them with llama-gguf-split --merge"
                if part
                else ""
            )
            raise UserError(f"{self.path}: tensor {name} is missing{hint}")
        return self._entries[name].shape

    def require(self, name: str, shape: tuple[int, ...]) -> Entry:
        """A tensor of this shape. Raises UserError."""
        if self.shape(name) != shape:
            raise UserError(
                f"{self.where(name)}: has the shape {list(self.shape(name))}, the metadata ask for {list(shape)}"
            )
        return self._entries[name]
