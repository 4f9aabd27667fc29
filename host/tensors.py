"""Reads tensors of a checkpoint folder: one safetensors file or an index of shards, by memory map.

Own reader because NumPy has no bfloat16, in which the published checkpoints keep their norms.
Format: 8 bytes little-endian header length, JSON header {name: {dtype, shape, data_offsets}}, data.
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises
    ------
    UserError : the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise UserError(f"{path}: is not JSON ({e})") from e
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object")
    return value


@dataclass(frozen=True)
class _Entry:
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


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
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"{index}: has no weight_map")
            shards = [folder / str(name) for name in sorted(set(weight_map.values()))]
        elif single.exists():
            shards, weight_map = [single], {}
        else:
            raise UserError(
                f"{folder}: has no model.safetensors and no model.safetensors.index.json; "
                "give a Hugging Face checkpoint folder"
            )
        for shard in shards:
            self._add(shard)
        for name in weight_map:
            if name not in self._entries:
                raise UserError(f"{index}: names {name}, but {folder / str(weight_map[name])} does not hold it")

    def _add(self, path: Path) -> None:
        try:
            size = path.stat().st_size
            with open(path, "rb") as f:
                length = int.from_bytes(f.read(8), "little")
                if size < 8 or length > size - 8:
                    raise UserError(f"{path}: is truncated or is not a safetensors file")
                header = json.loads(f.read(length))
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror})") from e
        except ValueError as e:
            raise UserError(f"{path}: is not a safetensors file (its header is not JSON)") from e
        if not isinstance(header, dict):
            raise UserError(f"{path}: is not a safetensors file (its header is not a JSON object)")
        for name, info in header.items():
            if name == "__metadata__":
                continue
            try:
                dtype, shape = str(info["dtype"]), tuple(int(n) for n in info["shape"])
                start, end = (int(n) for n in info["data_offsets"])
            except (KeyError, TypeError, ValueError) as e:
                raise UserError(f"{path}: the entry of tensor {name} is broken") from e
            if dtype not in _DTYPES:
                raise UserError(f"{path}: tensor {name} is {dtype}; known are {', '.join(_DTYPES)}")
            if end - start != math.prod(shape) * _DTYPES[dtype].itemsize or start < 0:
                raise UserError(f"{path}: tensor {name} has {end - start} bytes, which is not shape {list(shape)}")
            if 8 + length + end > size:
                raise UserError(f"{path}: is truncated, tensor {name} ends behind the file")
            if name in self._entries:
                raise UserError(f"{path}: holds tensor {name}, as {self._entries[name].path} does")
            self._entries[name] = _Entry(path, dtype, shape, 8 + length + start)

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

    def raw(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """A tensor as stored, mapped; bfloat16 as uint16.

        Raises
        ------
        UserError : the tensor is missing or has another shape.
        """
        if name not in self._entries:
            raise UserError(f"{self.folder}: tensor {name} is missing")
        e = self._entries[name]
        if e.shape != shape:
            raise UserError(f"{self.where(name)} has shape {list(e.shape)}, config.json asks for {list(shape)}")
        if math.prod(shape) == 0:
            raise UserError(f"{self.where(name)} is empty (shape {list(e.shape)})")
        return np.memmap(e.path, dtype=_DTYPES[e.dtype], mode="r", offset=e.start, shape=shape)

    def float32(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A floating-point tensor as float32, all finite.

        Raises
        ------
        UserError : missing, another shape, integers, infinities or NaN.
        """
        value = self.raw(name, shape)
        dtype = self._entries[name].dtype
        if dtype not in FLOATS:
            raise UserError(f"{self.where(name)} is {dtype}, a floating-point tensor is needed")
        if dtype == "BF16":
            out = (value.astype(np.uint32) << 16).view(np.float32)
        else:
            with np.errstate(over="ignore"):
                out = value.astype(np.float32)
        if not np.all(np.isfinite(out)):
            raise UserError(f"{self.where(name)} holds NaN or infinity; the checkpoint is broken")
        return out
