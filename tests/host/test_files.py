"""What a file is by its beginning, and JSON that may be anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tellme.host import files
from tellme.host.errors import UserError


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        (b"GGUF\x03", "is a GGUF file"),
        (b"TELLMETM", "is a .tlm image"),
        (b"PK\x03\x04", "is a PyTorch file .* or another zip archive"),
        (b"\x80\x02", "is a PyTorch file"),
        *((b"\x80" + bytes([n]), "is a Python pickle") for n in (3, 4, 5)),
        (b"\x1f\x8b\x08", "compressed .gzip."),
        (b"BZh9", "compressed .bzip2."),
        (b"\xfd7zXZ\0", "compressed .xz."),
        (b"\x28\xb5\x2f\xfd", "compressed .zstd."),
        (b"7z\xbc\xaf\x27", "is a 7z archive"),
        (b"Rar!\x1a", "is a rar archive"),
        (b"\x89HDF\r\n", "is an HDF5 file"),
        (b"\x93NUMPY", "is a NumPy array"),
        *((magic, "is a GGML file from before GGUF") for magic in (b"lmgg", b"tjgg", b"fmgg")),
        (b"\xef\xbb\xbf\r\n\t <!DOCTYPE html>", "is a web page"),
        (b"<HTML>", "is a web page"),
        (b"<?xml version", "is a web page"),
        (b"Entry not found\n", "is a server's answer .'Entry not found'. and not the file"),
        (b'{"error":"x"}', "is a server's answer"),
        (b"x" * 257 + b"ustar\0", "is a tar archive"),
        ((2).to_bytes(8, "little") + b"{}", "is a safetensors file"),
        ((100_000_000).to_bytes(8, "little") + b'{"', "is a safetensors file"),
        (bytes(24), "begins with zeros only"),
    ],
)
def test_what_is_something_else_is_named(head: bytes, words: str, tmp_path: Path) -> None:
    found = files.what_it_is(head)
    assert found is not None and re.search(words, found), found
    path = tmp_path / "f"
    path.write_bytes(head + b"\1" * 600)
    assert files.peek(path) == files.what_it_is(head + b"\1" * (files.PEEK - len(head)))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x80\x01",
        b"\x80\x06",
        b"{}",
        bytes(23),
        bytes(23) + b"\1",
        (1).to_bytes(8, "little") + b"{}",
        (100_000_001).to_bytes(8, "little") + b'{"',
        (50).to_bytes(8, "little") + b"[]",
        b"x" * 256 + b"ustar\0",
    ],
)
def test_what_may_be_anything_is_not_named(head: bytes) -> None:
    assert files.what_it_is(head) is None


def test_json_is_an_object_of_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert files.read_json(path) == {"a": 1} == files.parse_json(b'{"a": 1}', "x")
    monkeypatch.setattr(files, "_MAX_JSON", 8)
    assert files.read_json(path) == {"a": 1}
    monkeypatch.setattr(files, "_MAX_JSON", 7)
    with pytest.raises(UserError, match=f"^{path}: has 8 bytes, at most 7 are read$"):
        files.read_json(path)
    for text, words in (
        ("[1]", "x: is not a JSON object"),
        ("{", "x: is not JSON"),
        ('{"a": "\\ud800"}', "x: is not JSON"),
        ("[" * 100_000, "x: is not JSON"),
        ("GGUF", "x: is a GGUF file"),
    ):
        for given in (text, text.encode()):
            with pytest.raises(UserError, match=words):
                files.parse_json(given, "x")
    with pytest.raises(UserError, match=f"^{tmp_path}: is not a file$"):
        files.read_json(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        files.read_json(tmp_path / "none")
    assert files.listing(tmp_path) == ["a.json"] and files.listing(tmp_path / "none") == []
    assert files.peek(tmp_path) is None and files.peek(tmp_path / "none") is None
