"""The `.tlm` image: a model laid out for the ports of one beat geometry, with everything needed to run it.

File format (little endian), version 2:

| bytes | content |
|---|---|
| 0..7 | magic `TELLMETM` |
| 8..11 | format version, uint32 |
| 12..15 | length H of the header, uint32 |
| 16..19 | CRC-32 of the header, uint32 |
| 20..23 | zero |
| 24..24+H | header, JSON (UTF-8), filled up with spaces |
| data | from the next multiple of 4096: for each port in order, its `port_bytes` of beats 0, 1, ... (1) |
| blobs | one after the other, each padded to a multiple of 4096: what only the host reads |

(1) Each port's part is padded to a multiple of 4096, so that it can be mapped and copied to the port's region as it is.

Header: `geometry` {ports, port_bytes, key_tile, and weight_format if it is not `ternary`}; `made_for` {build, version}: name of the build (with its hash, as the
bitstream's files have it) and version of the memory formats it was converted for; `beats`, the length of the data; `sections`, a list of {name, address,
beats, crc32, info}: beats [address, address + beats) of the data, and the CRC-32 of each port's part of them (8
hexadecimal digits each); `blobs`, a list of {name, offset (from the end of the ports' parts), bytes, crc32}; `model`, a
JSON object {name, spec, eos_ids}. Sections and blobs follow each other without gaps. Every section and blob is checked
when an image is opened, unless the caller says no.

Compatibility: a program reads exactly one version, and refuses others by name; images are made again from their
checkpoint. What changes the meaning or place of anything raises the version. Within a version the header may gain keys:
a reader ignores those that it does not know, and `model.spec` may gain only fields that are absent at their default.

Version 1 had one CRC-32 a section, over all ports.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tellme.golden.arith import ceil_div
from tellme.golden.boards import build_name
from tellme.golden.config import PRESETS, AcceleratorConfig
from tellme.golden.formats import FORMATS, TERNARY
from tellme.golden.registers import VERSION
from tellme.host.errors import UserError
from tellme.host.files import parse_json, what_it_is

MAGIC = b"TELLMETM"
FORMAT_VERSION = 2
PAGE = 4096
_PREFIX = struct.Struct("<8sIIII")
_INFO_BYTES = 256
"""Place in the header for the `info` of a section, whose scales are known only when it is written."""
_PIECE = 1 << 24
"""Bytes that are checked at a time."""


def _pages(n: int) -> int:
    return ceil_div(n, PAGE) * PAGE


def geometry_of(config: AcceleratorConfig) -> dict[str, Any]:
    """The parameters that the byte layout of an image depends on."""
    names = ("ports", "port_bytes", "key_tile", "weight_format")
    return {name: getattr(config, name) for name in names}


def made_for(geometry: Mapping[str, Any]) -> list[AcceleratorConfig]:
    """Presets of that geometry, with its format of weights."""
    configs = [replace(c, weight_format=geometry["weight_format"]) for c in PRESETS.values()]
    return [c for c in configs if geometry_of(c) == geometry]


@dataclass(frozen=True)
class Section:
    """Beats [address, address + beats) of an image's data. `info` is what the program compiler needs to know of it."""

    name: str
    address: int
    beats: int
    crc32: tuple[int, ...]
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A section to be written: its length, and the function that makes its `info` and its uint8[beats, beat_bytes], in pieces
    of any length."""

    name: str
    beats: int
    make: Callable[[], tuple[dict[str, Any], Iterable[NDArray[np.uint8]]]]


def write_image(
    path: Path,
    *,
    config: AcceleratorConfig,
    model: Mapping[str, Any],
    sections: Sequence[Plan],
    blobs: Mapping[str, bytes | NDArray[Any]],
    advance: Callable[[int], None] | None = None,
) -> None:
    """Writes an image beside `path` and renames it into place, so that `path` is whole or untouched.

    Parameters
    ----------
    advance : called with the number of beats as they are written.

    Raises
    ------
    UserError : the file cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=path.name + ".", suffix=".part", dir=path.parent or Path("."))
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror})") from e
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w+b") as f:
            write_stream(f, config=config, model=model, sections=sections, blobs=blobs, advance=advance)
            f.flush()
            os.fsync(f.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror})") from e
    finally:
        temporary.unlink(missing_ok=True)


def write_stream(
    f: BinaryIO,
    *,
    config: AcceleratorConfig,
    model: Mapping[str, Any],
    sections: Sequence[Plan],
    blobs: Mapping[str, bytes | NDArray[Any]],
    advance: Callable[[int], None] | None = None,
) -> None:
    """Writes an image to an empty file. Sections are made one at a time. Raises what writing raises (OSError)."""
    beats = sum(s.beats for s in sections)
    part = _pages(beats * config.port_bytes)
    head: dict[str, Any] = {
        # The format of weights came later: images in the first one stay as they were.
        "geometry": {k: v for k, v in geometry_of(config).items() if v != TERNARY.name},
        "made_for": {"build": build_name(config), "version": VERSION},
        "beats": beats,
        "sections": [],
        "blobs": [],
        "model": dict(model),
    }
    address = 0
    for s in sections:
        entry = {"name": s.name, "address": address, "beats": s.beats, "crc32": ["0" * 8] * config.ports, "info": {}}
        head["sections"].append(entry)
        address += s.beats
    offset = 0
    raw = {
        k: memoryview(v if isinstance(v, bytes) else np.ascontiguousarray(v).data).cast("B") for k, v in blobs.items()
    }
    for key, value in raw.items():
        head["blobs"].append({"name": key, "offset": offset, "bytes": len(value), "crc32": f"{zlib.crc32(value):08x}"})
        offset += _pages(len(value))
    # Infos come with their sections; the data must be placed before.
    length = len(json.dumps(head).encode()) + _INFO_BYTES * len(sections)
    data = _pages(_PREFIX.size + length)
    for s, entry in zip(sections, head["sections"], strict=True):
        entry["info"], pieces = s.make()
        if len(json.dumps(entry["info"])) > _INFO_BYTES:
            raise AssertionError(f"section {s.name}: its info takes more than {_INFO_BYTES} bytes")
        crc = [0] * config.ports
        done = 0
        for piece in pieces:
            if piece.shape[1:] != (config.beat_bytes,) or piece.dtype != np.uint8 or done + len(piece) > s.beats:
                raise AssertionError(f"section {s.name}: made {piece.shape} behind {done}, planned {s.beats} beats")
            for port in range(config.ports):
                columns = np.ascontiguousarray(piece[:, port * config.port_bytes : (port + 1) * config.port_bytes])
                f.seek(data + port * part + (entry["address"] + done) * config.port_bytes)
                f.write(columns.data)
                crc[port] = zlib.crc32(columns.data, crc[port])
            done += len(piece)
            if advance is not None:
                advance(len(piece))
        if done != s.beats:
            raise AssertionError(f"section {s.name}: made {done}, planned {s.beats} beats")
        entry["crc32"] = [f"{c:08x}" for c in crc]
    for entry, value in zip(head["blobs"], raw.values(), strict=True):
        f.seek(data + config.ports * part + entry["offset"])
        f.write(value)
    f.truncate(data + config.ports * part + offset)
    header = json.dumps(head).encode().ljust(length)
    f.seek(0)
    f.write(_PREFIX.pack(MAGIC, FORMAT_VERSION, len(header), zlib.crc32(header), 0) + header)


# ---- reading ---------------------------------------------------------------------------------------------------------


class _HeaderError(ValueError):
    """The header is valid JSON with a valid checksum, but not what this format says."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise _HeaderError(message)


def _integer(value: Any, what: str, most: int = 1 << 62) -> int:
    _check(type(value) is int and 0 <= value <= most, f"{what} must be an integer from 0 to {most}")
    return value


def _text(value: Any, what: str) -> str:
    _check(isinstance(value, str), f"{what} must be a string")
    return value


def _list(head: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = head.get(name)
    _check(isinstance(value, list) and all(isinstance(v, dict) for v in value), f"{name} must be a list of objects")
    return value  # type: ignore[return-value]


def _hex(value: Any, what: str) -> int:
    _check(isinstance(value, str) and len(value) == 8, f"{what} must have 8 hexadecimal digits")
    try:
        return int(value, 16)
    except ValueError as e:
        raise _HeaderError(f"{what} must have 8 hexadecimal digits") from e


class Image:
    """An open image, mapped from its file.

    Parameters
    ----------
    path : the file.
    verify : check every section and blob against its checksum (reads the whole file).
    file : the open file, if it has no name; `path` then only says where the model came from.
    advance : called with the number of bytes as they are verified.

    Attributes
    ----------
    geometry, beats, sections, model : from the header. data : uint8[ports, beats, port_bytes], mapped.

    Raises
    ------
    UserError : the file is not an image, is of another version, truncated or damaged.
    """

    def __init__(
        self,
        path: Path,
        *,
        verify: bool = True,
        file: BinaryIO | None = None,
        advance: Callable[[int], None] | None = None,
    ):
        self.path = path
        try:
            if file is None and path.exists() and not path.is_file():
                raise UserError(f"{path}: is not a file; give a .tlm image")
            with contextlib.nullcontext(file) if file is not None else open(path, "rb") as f:
                f.seek(0, os.SEEK_END)
                size = f.tell()
                f.seek(0)
                prefix = f.read(_PREFIX.size)
                if len(prefix) < _PREFIX.size or prefix[:8] != MAGIC:
                    kind = what_it_is(prefix + f.read(512))
                    what = f": it {kind}" if kind else "; make one with `tellme convert`"
                    raise UserError(f"{path}: is not a .tlm image{what}")
                _, version, length, crc, _ = _PREFIX.unpack(prefix)
                if version != FORMAT_VERSION:
                    raise UserError(
                        f"{path}: is a .tlm image of version {version}, this program reads version {FORMAT_VERSION}; "
                        "convert the checkpoint again"
                    )
                if length > size - _PREFIX.size:
                    raise UserError(f"{path}: is truncated within its header; convert the checkpoint again")
                header = f.read(length)
                if zlib.crc32(header) != crc:
                    raise UserError(f"{path}: its header is damaged (checksum); convert the checkpoint again")
                try:
                    self._read_header(parse_json(header, path))
                except _HeaderError as e:
                    raise UserError(f"{path}: its header is broken, {e}; convert the checkpoint again") from e
                ports, port_bytes = self.geometry["ports"], self.geometry["port_bytes"]
                part = _pages(self.beats * port_bytes)
                data = _pages(_PREFIX.size + length)
                blobs = data + ports * part
                end = blobs + sum(_pages(n) for _, n, _ in self._blobs.values())
                if size != end:
                    raise UserError(
                        f"{path}: has {size} bytes instead of {end}, it is truncated or something was appended; "
                        "convert the checkpoint again"
                    )
                self._map = np.memmap(f, dtype=np.uint8, mode="r")
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror})") from e
        self._part = part
        self._start, self._blob_start = data, blobs
        self.data: NDArray[np.uint8] = self._map[data:blobs].reshape(ports, part)[:, : self.beats * port_bytes]
        self.data = self.data.reshape(ports, self.beats, port_bytes)
        if verify:
            self.verify(advance)

    def _read_header(self, head: Mapping[str, Any]) -> None:
        geometry = head.get("geometry")
        _check(isinstance(geometry, dict), "geometry must be an object")
        self.geometry: dict[str, Any] = {}
        for name, most in (("ports", 64), ("port_bytes", 64), ("key_tile", 1 << 16)):
            self.geometry[name] = _integer(geometry.get(name), name, most)  # type: ignore[union-attr]
            _check(self.geometry[name] > 0, f"{name} must be positive")
        form = geometry.get("weight_format", TERNARY.name)  # type: ignore[union-attr]
        _check(isinstance(form, str) and form in FORMATS, f"weight_format must be {' or '.join(FORMATS)}")
        self.geometry["weight_format"] = form
        made_for = head.get("made_for", {})
        _check(isinstance(made_for, dict), "made_for must be an object")
        # Images from before this key are of version 1 of the formats.
        self.build = str(made_for.get("build", "unknown"))
        self.formats = _integer(made_for.get("version", 1), "made_for.version", 1 << 16)
        self.beats = _integer(head.get("beats"), "beats", 1 << 40)
        model = head.get("model")
        _check(isinstance(model, dict), "model must be an object")
        self.model: dict[str, Any] = model  # type: ignore[assignment]
        self.sections: dict[str, Section] = {}
        at = 0
        for s in _list(head, "sections"):
            name, crcs, info = _text(s.get("name"), "the name of a section"), s.get("crc32"), s.get("info")
            _check(name not in self.sections, f"section {name!r} is there twice")
            _check(s.get("address") == at, f"section {name!r} must start at beat {at}")
            _check(isinstance(info, dict), f"info of section {name!r} must be an object")
            _check(
                isinstance(crcs, list) and len(crcs) == self.geometry["ports"],
                f"section {name!r} must have a checksum for each port",
            )
            beats = _integer(s.get("beats"), f"beats of section {name!r}", self.beats)
            checksums = tuple(_hex(c, f"a checksum of section {name!r}") for c in crcs)  # type: ignore[union-attr]
            self.sections[name] = Section(name, at, beats, checksums, info)  # type: ignore[arg-type]
            at += beats
        _check(at == self.beats, f"sections have {at} beats of {self.beats}")
        self._blobs: dict[str, tuple[int, int, int]] = {}
        at = 0
        for b in _list(head, "blobs"):
            name = _text(b.get("name"), "the name of a part")
            _check(name not in self._blobs, f"part {name!r} is there twice")
            _check(b.get("offset") == at, f"part {name!r} must start at byte {at}")
            n = _integer(b.get("bytes"), f"bytes of part {name!r}")
            self._blobs[name] = at, n, _hex(b.get("crc32"), f"the checksum of part {name!r}")
            at += _pages(n)

    def _crc(self, start: int, length: int, advance: Callable[[int], None] | None) -> int:
        """CRC-32 of bytes of the file; pages that were read are given back."""
        crc = 0
        for i in range(start, start + length, _PIECE):
            n = min(_PIECE, start + length - i)
            crc = zlib.crc32(self._map[i : i + n].data, crc)
            self.release(i, n)
            if advance is not None:
                advance(n)
        return crc

    def release(self, start: int = 0, length: int | None = None) -> None:
        """Gives back the memory of mapped pages; they are read again when they are used again."""
        n = len(self._map) - start if length is None else length
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        if n <= 0:
            return
        self._map._mmap.madvise(mmap.MADV_DONTNEED, first, start + n - first)  # type: ignore[attr-defined]

    @property
    def bytes(self) -> int:
        """Length of the file."""
        return len(self._map)

    def verify(self, advance: Callable[[int], None] | None = None) -> None:
        """Checks every section and blob.

        Raises
        ------
        UserError : naming the first that is damaged.
        """
        width = self.geometry["port_bytes"]
        for s in self.sections.values():
            for port, crc in enumerate(s.crc32):
                start = self._start + port * self._part + s.address * width
                if self._crc(start, s.beats * width, advance) != crc:
                    raise UserError(
                        f"{self.path}: section {s.name!r} is damaged (checksum); convert the checkpoint again"
                    )
        for name, (offset, n, crc) in self._blobs.items():
            if self._crc(self._blob_start + offset, n, advance) != crc:
                raise UserError(f"{self.path}: part {name!r} is damaged (checksum); convert the checkpoint again")

    def section(self, name: str) -> NDArray[np.uint8]:
        """A section as beats: uint8[beats, beat_bytes] (a copy)."""
        s = self.sections[name]
        width = self.geometry["port_bytes"]
        beats = self.data[:, s.address : s.address + s.beats].transpose(1, 0, 2)
        out = np.ascontiguousarray(beats).reshape(s.beats, self.geometry["ports"] * width)
        for port in range(self.geometry["ports"]):
            self.release(self._start + port * self._part + s.address * width, s.beats * width)
        return out

    def blob(self, name: str) -> NDArray[np.uint8]:
        """A blob's bytes, mapped.

        Raises
        ------
        UserError : the image has no such part.
        """
        if name not in self._blobs:
            raise UserError(f"{self.path}: its part {name!r} is missing; convert the checkpoint again")
        offset, n, _ = self._blobs[name]
        return self._map[self._blob_start + offset : self._blob_start + offset + n]

    @property
    def blobs(self) -> list[str]:
        """Names of the blobs."""
        return list(self._blobs)

    def blob_bytes(self, name: str) -> int:
        """Length of a blob, 0 if there is none."""
        return self._blobs[name][1] if name in self._blobs else 0

    def require(self, config: AcceleratorConfig) -> None:
        """Refuses an accelerator whose beats are laid out otherwise. One of the very build it was made for always fits;
        another fits if the formats and the geometry are the same.

        Raises
        ------
        UserError : naming the parameter, both values and the remedy.
        """
        if self.build != build_name(config) and self.formats != VERSION:
            raise UserError(
                f"{self.path}: was made for build {self.build}, version {self.formats} of the memory formats, but "
                f"{build_name(config)} has version {VERSION}; convert the checkpoint with --board {config.name}"
            )
        for name, value in geometry_of(config).items():
            if self.geometry[name] != value:
                other = (
                    f"give --set {name}={self.geometry[name]} if that is what was built, or "
                    if name == "weight_format"
                    else ""
                )
                raise UserError(
                    f"{self.path}: was made for {name} {self.geometry[name]}, but board {config.name!r} has {value}; "
                    f"{other}convert the checkpoint with --board {config.name}"
                )
