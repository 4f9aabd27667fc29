"""Reads tensors of a checkpoint folder: one safetensors file or an index of shards, by memory map, in pieces.

Own reader because NumPy has no bfloat16, in which the published checkpoints keep their norms, and because a piece of a
tensor is mapped only while it is in use: what a process holds of a checkpoint does not grow with its size.
Format: 8 bytes little-endian header length, JSON header {name: {dtype, shape, data_offsets}}, data without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.errors import UserError

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
}
FLOATS = ("F64", "F32", "F16", "BF16")
PIECE = 1 << 20
"""Elements of a tensor that are read at a time."""

_MAX_HEADER = 100_000_000
"""Bytes of a safetensors header, the limit of the format's own library."""
_MAX_JSON = 1 << 26
"""Bytes of any other JSON file of a checkpoint."""


def parse_json(text: bytes | str, where: object) -> dict[str, Any]:
    """A JSON object.

    Raises
    ------
    UserError : it is something else.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but is no text
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: is not JSON ({e})") from e
    if not isinstance(value, dict):
        raise UserError(f"{where}: is not a JSON object")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises
    ------
    UserError : the file is missing, too long, or is not a JSON object.
    """
    try:
        if not path.is_file() and path.exists():
            raise UserError(f"{path}: is not a file")
        size = path.stat().st_size
        if size > _MAX_JSON:
            raise UserError(f"{path}: has {size:,} bytes, at most {_MAX_JSON:,} are read")
        text = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    return parse_json(text, path)


@dataclass(frozen=True)
class _Entry:
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(v) is int and v >= 0 for v in values):
        raise ValueError
    return tuple(values)


class Tensors:
    """The tensors of a checkpoint folder by name.

    Raises
    ------
    UserError : no safetensors in the folder, a missing or broken shard.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._entries: dict[str, _Entry] = {}
        index = folder / "model.safetensors.index.json"
        single = folder / "model.safetensors"
        weight_map: dict[str, Any] = {}
        if index.exists():
            value = read_json(index).get("weight_map")
            if not isinstance(value, dict) or not value:
                raise UserError(f"{index}: has no weight_map")
            weight_map = value
            for name, shard in weight_map.items():
                if not isinstance(shard, str) or not shard or Path(shard).name != shard or "\0" in shard:
                    raise UserError(
                        f"{index}: the shard of tensor {name} must be a file in the same folder, not {shard!r}"
                    )
            shards = [folder / name for name in sorted(set(weight_map.values()))]
        elif single.exists():
            shards = [single]
        else:
            raise UserError(
                f"{folder}: has no model.safetensors and no model.safetensors.index.json; "
                "give a Hugging Face checkpoint folder"
            )
        for shard in shards:
            self._add(shard)
        for name, file in weight_map.items():
            if name not in self._entries or self._entries[name].path.name != file:
                raise UserError(f"{index}: names {name}, but {folder / file} does not hold it")

    def _add(self, path: Path) -> None:
        try:
            if not path.is_file() and path.exists():
                raise UserError(f"{path}: is not a file")
            size = path.stat().st_size
            with open(path, "rb") as f:
                length = int.from_bytes(f.read(8), "little")
                if size < 8 or length > size - 8:
                    raise UserError(f"{path}: is truncated or is not a safetensors file")
                if length > _MAX_HEADER:
                    raise UserError(f"{path}: its header has {length:,} bytes, at most {_MAX_HEADER:,} are read")
                text = f.read(length)
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror})") from e
        try:
            header = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}: is not a safetensors file (its header is not JSON)") from e
        if not isinstance(header, dict):
            raise UserError(f"{path}: is not a safetensors file (its header is not a JSON object)")
        spans = []
        for name, info in header.items():
            if name == "__metadata__":
                continue
            try:
                dtype, shape = str(info["dtype"]), _integers(info["shape"])
                start, end = _integers(info["data_offsets"])
            except (KeyError, TypeError, ValueError) as e:
                raise UserError(f"{path}: the entry of tensor {name!r} is broken") from e
            if dtype not in _DTYPES:
                raise UserError(f"{path}: tensor {name} is {dtype}; known are {', '.join(_DTYPES)}")
            if end - start != math.prod(shape) * _DTYPES[dtype].itemsize:
                raise UserError(f"{path}: tensor {name} has {end - start} bytes, which is not shape {list(shape)}")
            if 8 + length + end > size:
                raise UserError(f"{path}: is truncated, tensor {name} ends behind the file")
            if name in self._entries:
                raise UserError(f"{path}: holds tensor {name}, as {self._entries[name].path} does")
            spans.append((start, end, name))
            self._entries[name] = _Entry(path, dtype, shape, 8 + length + start)
        at = 0
        for start, end, name in sorted(spans):
            if start != at:
                raise UserError(
                    f"{path}: tensor {name} starts at byte {start} of the data, not at {at}; the file is damaged"
                )
            at = end
        if 8 + length + at != size:
            raise UserError(f"{path}: has {size - 8 - length - at} bytes behind its last tensor; the file is damaged")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def where(self, name: str) -> str:
        """`file: tensor name`, for messages."""
        return f"{self._entries[name].path}: {name}" if name in self else f"{self.folder}: {name}"

    def dtype(self, name: str) -> str:
        """safetensors name of the element type."""
        return self._entries[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Checks what the header says of a tensor.

        Raises
        ------
        UserError : the tensor is missing, has another shape or no elements.
        """
        if name not in self._entries:
            raise UserError(f"{self.folder}: tensor {name} is missing")
        e = self._entries[name]
        if e.shape != shape:
            raise UserError(f"{self.where(name)} has shape {list(e.shape)}, config.json asks for {list(shape)}")
        if math.prod(shape) == 0:
            raise UserError(f"{self.where(name)} is empty (shape {list(e.shape)})")

    def require_floats(self, name: str, shape: tuple[int, ...]) -> None:
        """As `require`; the tensor must be floating-point, too."""
        self.require(name, shape)
        if self.dtype(name) not in FLOATS:
            raise UserError(f"{self.where(name)} is {self.dtype(name)}, a floating-point tensor is needed")

    def pieces(self, name: str) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first row, rows) of a tensor as stored, about `PIECE` elements at a time, each mapped only while it is in use; bfloat16
        as uint16. A tensor without axes is one row.

        Raises
        ------
        UserError : the file cannot be mapped.
        """
        e = self._entries[name]
        rows = e.shape[0] if e.shape else 1
        row = e.shape[1:]
        n = math.prod(row)
        step = max(1, PIECE // n)
        dtype = _DTYPES[e.dtype]
        for i in range(0, rows, step):
            shape = (min(step, rows - i), *row)
            try:
                piece = np.memmap(e.path, dtype, "r", e.start + i * n * dtype.itemsize, shape)
            except (OSError, ValueError) as error:  # the file was cut since its header was read
                raise UserError(f"{e.path}: cannot be read ({error})") from error
            yield i, piece

    def float_pieces(self, name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(first row, rows) of a floating-point tensor as float32, all finite.

        Raises
        ------
        UserError : infinities or NaN, with their place.
        """
        bf16 = self.dtype(name) == "BF16"
        for i, value in self.pieces(name):
            if bf16:
                out = (value.astype(np.uint32) << 16).view(np.float32)
            else:
                with np.errstate(over="ignore"):
                    out = value.astype(np.float32)
            finite = np.isfinite(out)
            if not finite.all():
                place = [int(v) for v in np.argwhere(~finite)[0]]
                place[0] += i
                raise UserError(
                    f"{self.where(name)} holds NaN or infinity at {place if self.shape(name) else 'its only element'}; "
                    "the checkpoint is broken"
                )
            yield i, out

    def float32(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A floating-point tensor as float32, all finite.

        Raises
        ------
        UserError : missing, another shape, integers, infinities or NaN.
        """
        self.require_floats(name, shape)
        return np.concatenate([p for _, p in self.float_pieces(name)]).reshape(shape)
