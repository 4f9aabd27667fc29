"""Parts of files that are fuzzed by themselves, and whole files of them: with the lengths, checksums and places that readers look at first."""

from __future__ import annotations

import io
import json
import struct
import tomllib
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from tellme.golden.program import DESCRIPTOR_BYTES, FIELDS, Opcode
from tellme.host.image.file import PAGE
from tests.fuzz.driver import Part

Join = Callable[[bytes], bytes]


def whole(data: bytes) -> tuple[bytes, Join]:
    """Of a file that is JSON."""
    return data, lambda text: text


def safetensors_header(data: bytes) -> tuple[bytes, Join]:
    """The header of a safetensors file: with the right length."""
    n = int.from_bytes(data[:8], "little")
    return data[8 : 8 + n], lambda text: struct.pack("<Q", len(text)) + text + data[8 + n :]


def image_header(data: bytes) -> tuple[bytes, Join]:
    """The header of an image: with the right length, checksum and place of the data."""
    magic, version, n, _, zero = struct.unpack("<8sIIII", data[:24])
    start = -(-(24 + n) // PAGE) * PAGE

    def join(text: bytes) -> bytes:
        prefix = struct.pack("<8sIIII", magic, version, len(text), zlib.crc32(text), zero)
        return (prefix + text).ljust(-(-(24 + len(text)) // PAGE) * PAGE, b"\0") + data[start:]

    return data[24 : 24 + n], join


def npz_head(data: bytes) -> tuple[bytes, Join]:
    """The head of a prompt cache."""
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        parts = {n: found[n] for n in found.files}

    def join(text: bytes) -> bytes:
        out = io.BytesIO()
        np.savez(out, **(parts | {"head": np.frombuffer(text, np.uint8)}))
        return out.getvalue()

    return bytes(parts["head"]), join


def toml(data: bytes) -> tuple[bytes, Join]:
    """The settings of a TOML file."""

    def written(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {written(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(written, value)) + "]"
        return "nan" if value != value else "inf" if value == float("inf") else json.dumps(value)

    def join(text: bytes) -> bytes:
        tree = json.loads(text)
        values = tree if isinstance(tree, dict) else {}
        return "".join(f"{json.dumps(k)} = {written(v)}\n" for k, v in values.items()).encode()

    return json.dumps(tomllib.loads(data.decode())).encode(), join


def program_fields(data: bytes) -> tuple[bytes, Join]:
    """The fields of a program's descriptors."""

    def fields(code: bytes) -> dict[str, int]:
        raw = int.from_bytes(code, "little")
        return {f.name: raw >> f.start & f.top for f in FIELDS[Opcode(code[0])]}

    descriptors = [data[i : i + DESCRIPTOR_BYTES] for i in range(0, len(data), DESCRIPTOR_BYTES)]
    tree = [[code[0], fields(code)] for code in descriptors]

    def join(text: bytes) -> bytes:
        out = b""
        for entry in json.loads(text):
            with suppress(
                TypeError, ValueError, OverflowError, AttributeError
            ):  # what is no descriptor any more is left out
                opcode, values = entry
                raw = 0
                for f in FIELDS[Opcode(opcode)]:
                    raw |= (int(values.get(f.name, 0)) & f.top) << f.start
                out += (raw & ~0xFF | opcode & 0xFF).to_bytes(DESCRIPTOR_BYTES, "little")
        return out

    return json.dumps(tree).encode(), join


# ---- GGUF ------------------------------------------------------------------------------------------------------------

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_ALIGNMENT = 32


class _Header:
    """What stands in the header of a sound GGUF file: `fields` by name, `tensors` as [name, dimensions, type, offset], and where its data begin."""

    def __init__(self, data: bytes):
        self._data, self._at = data, 8
        tensors, fields = self._number("Q"), self._number("Q")
        self.fields = {self._text(): self._value(self._number("I")) for _ in range(fields)}
        self.tensors = [
            [self._text(), [self._number("Q") for _ in range(self._number("I"))], self._number("I"), self._number("Q")]
            for _ in range(tensors)
        ]
        self.end = self._at
        self.start = -(-self._at // _ALIGNMENT) * _ALIGNMENT

    def _number(self, form: str) -> Any:
        self._at += struct.calcsize("<" + form)
        return struct.unpack_from("<" + form, self._data, self._at - struct.calcsize("<" + form))[0]

    def _text(self) -> str:
        n = self._number("Q")
        self._at += n
        return self._data[self._at - n : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == 8:
            return self._text()
        if kind == 9:
            of = self._number("I")
            return [self._value(of) for _ in range(self._number("Q"))]
        return self._number(_NUMBERS[kind])


def _text(value: str) -> bytes:
    data = value.encode(errors="surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _kind(value: Any) -> int:
    """The type that a value is written in."""
    if isinstance(value, bool):
        return 7
    if isinstance(value, int):
        return next(
            (k for k, top in ((4, 32), (10, 64)) if 0 <= value < 1 << top), 5 if -(1 << 31) <= value < 0 else 11
        )
    if isinstance(value, float):
        return 6 if abs(value) < 3e38 or value != value else 12
    return 9 if isinstance(value, list) else 8


def _value(value: Any, kind: int) -> bytes:
    """Raises struct.error or AttributeError if the type does not have the value."""
    if kind == 8:
        return _text(value)
    if kind == 9:
        of = max(map(_kind, value), default=4)
        return struct.pack("<IQ", of, len(value)) + b"".join(_value(v, of) for v in value)
    return struct.pack("<" + _NUMBERS[kind], value)


def gguf_tree(data: bytes) -> tuple[bytes, Join]:
    """Metadata and tensors of a GGUF file: with the right lengths and counts."""
    header = _Header(data)

    def join(text: bytes) -> bytes:
        tree = json.loads(text)
        fields, tensors = [], []
        for key, value in (tree.get("fields") or {}).items() if isinstance(tree.get("fields"), dict) else ():
            with suppress(struct.error, AttributeError, OverflowError, TypeError):  # what has no type is left out
                fields.append(_text(key) + struct.pack("<I", _kind(value)) + _value(value, _kind(value)))
        for entry in tree.get("tensors") or () if isinstance(tree.get("tensors"), list) else ():
            with suppress(struct.error, AttributeError, OverflowError, TypeError, ValueError):
                name, dims, kind, offset = entry
                shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
                tensors.append(_text(name) + shape + struct.pack("<IQ", kind, offset))
        out = data[:8] + struct.pack("<QQ", len(tensors), len(fields)) + b"".join((*fields, *tensors))
        return out.ljust(-(-len(out) // _ALIGNMENT) * _ALIGNMENT, b"\0") + data[header.start :]

    return json.dumps({"fields": header.fields, "tensors": header.tensors}).encode(), join


def gguf_header(data: bytes) -> tuple[bytes, Join]:
    """The bytes of a GGUF file's header: the data stay where they should be."""
    header = _Header(data)

    def join(text: bytes) -> bytes:
        return text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT, b"\0") + data[header.start :]

    return data[: header.end], join


JSON = (Part(whole),)
SAFETENSORS = (Part(safetensors_header),)
GGUF = (Part(gguf_tree, "tree"), Part(gguf_header, "bytes"))
