"""Reads tensors of a checkpoint folder: one safetensors file or an index of shards, by memory map, in pieces.

Own reader because NumPy has no bfloat16, in which the published checkpoints keep their norms, and because a piece of a
tensor is mapped only while it is in use: what a process holds of a checkpoint does not grow with its size.
Format: 8 bytes little-endian header length, JSON header {name: {dtype, shape, data_offsets}}, data without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.host.errors import UserError
from tellme.host.files import MAX_SAFETENSORS_HEADER, PEEK, listing, read_json, what_it_is

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


WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_TORCH = (".bin", ".pt", ".pth", ".ckpt")
_TO_SAFETENSORS = (
    'python -c "import glob, torch; from safetensors.torch import save_file; save_file({k: v.clone().contiguous() for f in '
    "glob.glob('%s') for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}, 'model.safetensors')\""
)
_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def _weight_map(index: Path) -> dict[str, str]:
    value = read_json(index).get("weight_map")
    if not isinstance(value, dict) or not value:
        raise UserError(f"{index}: has no weight_map")
    for name, shard in value.items():
        if not isinstance(shard, str) or not shard or Path(shard).name != shard or "\0" in shard:
            raise UserError(f"{index}: the shard of tensor {name} must be a file in the same folder, not {shard!r}")
    return value


def _other_model(index: Path) -> bool:
    """Whether an index is of other files than the whole one beside it."""
    return WHOLE not in _weight_map(index).values()


def adapter(folder: Path) -> str | None:
    """What to do with a folder of an adapter (LoRA), None if it is none."""
    if not any(name in _ADAPTERS for name in listing(folder)):
        return None
    base = ""
    with suppress(UserError):
        base = f" {read_json(folder / _ADAPTERS[0]).get('base_model_name_or_path', '')}".rstrip()
    return (
        f"holds only an adapter (LoRA), no model; merge it into its base model{base} (peft: merge_and_unload, save_pretrained) "
        "and give that folder"
    )


def _no_weights(folder: Path) -> str:
    """Why a folder has no weights that can be read, and what to do."""
    names = listing(folder)
    has = f"{folder}: has no {WHOLE} and no {INDEX}; "
    if hint := adapter(folder):
        return f"{folder}: {hint}"
    if found := [n for n in names if n.endswith(".safetensors")]:
        if len(found) > 1 or "-of-" in found[0]:
            return f"{has}it holds {found[0]}: download the index of its shards, too"
        return f"{has}it holds {found[0]}: rename it to {WHOLE}"
    if found := [n for n in names if n.endswith(".gguf")]:
        return f"{has}it holds {found[0]}: give that file"
    if found := [
        n
        for n in names
        if n.endswith(_TORCH) and not n.startswith(("training_args", "optimizer", "scheduler", "rng_state"))
    ]:
        some = found[0] if len(found) == 1 else f"{os.path.commonprefix(found)}*{Path(found[0]).suffix}"
        return f"{has}it holds {found[0]}: convert it there with {_TO_SAFETENSORS % some}"
    if found := [n for n in names if n.endswith((".h5", ".msgpack", ".onnx", ".npz", ".index.json"))]:
        return f"{has}it holds {found[0]}: download the model's .safetensors files"
    return f"{has}give a Hugging Face checkpoint folder"


class Tensors:
    """The tensors of a checkpoint folder by name.

    Attributes
    ----------
    notes : what had to be assumed of the folder, a line each.

    Raises
    ------
    UserError : no safetensors in the folder, a missing or broken shard.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.notes: tuple[str, ...] = ()
        self._entries: dict[str, _Entry] = {}
        index, single = folder / INDEX, folder / WHOLE
        weight_map: dict[str, Any] = {}
        if index.exists() and not (single.exists() and _other_model(index)):
            weight_map = _weight_map(index)
            shards = [folder / name for name in sorted(set(weight_map.values()))]
            missing = [s for s in shards if not os.path.lexists(s)]
            if missing:
                raise UserError(
                    f"{missing[0]}: cannot be read, it is missing; {index.name} names {len(shards)} shards and {len(shards) - len(missing)} of "
                    "them are there. Download the others, or take the index away if it belongs to other weights"
                )
        elif single.exists():
            # As transformers chooses: the whole file, even beside an index of shards.
            shards = [single]
            if index.exists():
                self.notes = (f"{index}: names other files than {single.name}, which lies beside it and is taken; take the "
                              "stale one of the two away",)  # fmt: skip
        else:
            raise UserError(_no_weights(folder))
        for shard in shards:
            self._add(shard)
        for name, file in weight_map.items():
            if name not in self._entries or self._entries[name].path.name != file:
                raise UserError(
                    f"{index}: names {name}, but {folder / file} does not hold it; index and shards are of different "
                    "downloads, fetch both again"
                )

    def _add(self, path: Path) -> None:
        try:
            if not path.is_file() and path.exists():
                raise UserError(f"{path}: is not a file")
            size = path.stat().st_size
            with open(path, "rb") as f:
                beginning = f.read(PEEK)
                length = int.from_bytes(beginning[:8], "little")
                if size < 8 or length > size - 8:
                    kind = what_it_is(beginning)
                    if kind is None or kind.startswith("is a safetensors"):
                        kind = "is truncated or is not a safetensors file" + ("; it is empty" if not size else "")
                    raise UserError(f"{path}: {kind}")
                f.seek(8)
                if length > MAX_SAFETENSORS_HEADER:
                    raise UserError(
                        f"{path}: its header has {length:,} bytes, at most {MAX_SAFETENSORS_HEADER:,} are read"
                    )
                text = f.read(length)
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror})") from e
        try:
            header = json.loads(text)
        except (ValueError, RecursionError) as e:
            kind = what_it_is(beginning)
            if kind is None or kind.startswith("is a safetensors"):
                kind = "is not a safetensors file (its header is not JSON)"
            raise UserError(f"{path}: {kind}") from e
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

    def floats_as_stored(self, name: str) -> NDArray[Any]:
        """A floating-point tensor, mapped, of one of `golden.elementwise.ROW_TYPES`; float64 is read as float32.

        Raises
        ------
        UserError : the file cannot be mapped; of float64, infinities or NaN.
        """
        e = self._entries[name]
        if e.dtype == "F64":
            return self.float32(name, e.shape)
        try:
            return np.memmap(e.path, _DTYPES[e.dtype], "r", e.start, e.shape)
        except (OSError, ValueError) as error:  # the file was cut since its header was read
            raise UserError(f"{e.path}: cannot be read ({error})") from error

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
