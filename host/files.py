"""Files of others: what a file is by its beginning, JSON that may be anything, and what is in a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tellme.host.errors import UserError

MAX_SAFETENSORS_HEADER = 100_000_000
"""Bytes of a safetensors header, the limit of the format's own library."""
PEEK = 512
"""Bytes by which `what_it_is` tells a file."""
_MAX_JSON = 1 << 26
"""Bytes of a JSON file that are read."""


_KINDS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer and not the file itself; run `git lfs pull` there, or download it again"),
    (b"GGUF", "is a GGUF file; give it as it is, with a name that ends in .gguf"),
    (b"TELLMETM", "is a .tlm image; give it as it is, with a name that ends in .tlm"),
    (b"PK\x03\x04", "is a PyTorch file (.bin, .pt, .pth) or another zip archive; convert it to safetensors, or unpack it"),
    (b"\x80\x02", "is a PyTorch file (.bin, .pt, .pth); convert it to safetensors"),
    (b"\x80\x03", "is a Python pickle; convert it to safetensors"),
    (b"\x80\x04", "is a Python pickle; convert it to safetensors"),
    (b"\x80\x05", "is a Python pickle; convert it to safetensors"),
    (b"\x1f\x8b", "is compressed (gzip); unpack it"),
    (b"BZh", "is compressed (bzip2); unpack it"),
    (b"\xfd7zXZ", "is compressed (xz); unpack it"),
    (b"\x28\xb5\x2f\xfd", "is compressed (zstd); unpack it"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it"),
    (b"Rar!", "is a rar archive; unpack it"),
    (b"\x89HDF", "is an HDF5 file (Keras, TensorFlow); convert it to safetensors"),
    (b"\x93NUMPY", "is a NumPy array; convert it to safetensors"),
    (b"lmgg", "is a GGML file from before GGUF; convert the original checkpoint again"),
    (b"tjgg", "is a GGML file from before GGUF; convert the original checkpoint again"),
    (b"fmgg", "is a GGML file from before GGUF; convert the original checkpoint again"),
)  # fmt: skip
"""How files begin that are taken for something else, and what they are."""

_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
_ANSWERS = (b"entry not found", b"repository not found", b"invalid username", b"invalid credentials", b"access to model",
            b"access denied", b"unauthorized", b"not found", b'{"error')  # fmt: skip


def what_it_is(head: bytes) -> str | None:
    """What a file is that is not of the kind it was taken for, and what to do; None if its beginning does not tell.

    Parameters
    ----------
    head : the first bytes of it, at least 300 of a file that has them.
    """
    for magic, kind in _KINDS:
        if head.startswith(magic):
            return kind
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PAGES):
        return "is a web page and not the file itself; download it by its own link (on Hugging Face .../resolve/..., not .../blob/...)"
    if text.startswith(_ANSWERS):
        answer = " ".join(head.decode(errors="replace").split())[:60]
        return f"is a server's answer ({answer!r}) and not the file itself; download it again, logged in if it is gated"
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it"
    if head[8:10] in (b'{"', b"{ ", b"{}") and 1 < int.from_bytes(head[:8], "little") <= MAX_SAFETENSORS_HEADER:
        return "is a safetensors file; give the folder that holds it beside its config.json and tokenizer"
    if len(head) >= 24 and not any(head):
        return "begins with zeros only; its download was not completed, fetch it again"
    return None


def peek(path: Path) -> str | None:
    """`what_it_is` of a file, which may be missing or unreadable: None then."""
    try:
        if not path.is_file():
            return None
        with open(path, "rb") as f:
            return what_it_is(f.read(PEEK))
    except OSError:
        return None


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
        kind = what_it_is(text[:PEEK] if isinstance(text, bytes) else text[:PEEK].encode(errors="replace"))
        raise UserError(f"{where}: {kind or f'is not JSON ({e})'}") from e
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


def listing(folder: Path) -> list[str]:
    """Names of what is in a folder, sorted; none if it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
