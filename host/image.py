"""The `.tlm` image: a model laid out for the ports of one beat geometry, with everything needed to run it.

File format (little endian), version 1:

| bytes | content |
|---|---|
| 0..7 | magic `TELLMETM` |
| 8..11 | format version, uint32 |
| 12..15 | length H of the header, uint32 |
| 16..19 | CRC-32 of the header, uint32 |
| 20..23 | zero |
| 24..24+H | header, JSON (UTF-8) |
| data | from the next multiple of 4096: for each port in order, its `port_bytes` of beats 0, 1, ... (1) |
| blobs | one after the other, each padded to a multiple of 4096: what only the host reads |

(1) Each port's part is padded to a multiple of 4096, so that it can be mapped and copied to the port's region as it is.

Header: `geometry` {ports, port_bytes, key_tile}; `beats`, the length of the data; `sections`, a list of {name, address,
beats, crc32, info}: beats [address, address + beats) of the data, its CRC-32 taken port after port; `blobs`, a list of
{name, offset (from the end of the ports' parts), bytes, crc32}; `model`, a JSON object (see `host/model.py`). Sections
follow each other without gaps. Every section and blob is checked when an image is opened, unless the caller says no.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from golden.config import AcceleratorConfig
from host.errors import UserError

MAGIC = b"TELLMETM"
FORMAT_VERSION = 1
PAGE = 4096
_PREFIX = struct.Struct("<8sIIII")


def _pages(n: int) -> int:
    return -(-n // PAGE) * PAGE


def geometry_of(config: AcceleratorConfig) -> dict[str, int]:
    """The parameters that the byte layout of an image depends on."""
    return {"ports": config.ports, "port_bytes": config.port_bytes, "key_tile": config.key_tile}


@dataclass(frozen=True)
class Section:
    """Beats [address, address + beats) of an image's data. `info` is what the program compiler needs to know of it."""

    name: str
    address: int
    beats: int
    crc32: int
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A section to be written: its length, and the function that makes its uint8[beats, beat_bytes]."""

    name: str
    beats: int
    make: Callable[[], NDArray[np.uint8]]
    info: dict[str, Any] = field(default_factory=dict)


def write_image(
    path: Path,
    *,
    config: AcceleratorConfig,
    model: Mapping[str, Any],
    sections: Sequence[Plan],
    blobs: Mapping[str, bytes | NDArray[Any]],
) -> None:
    """Writes an image beside `path` and renames it into place, so that `path` is whole or untouched.

    Raises
    ------
    UserError : the file cannot be written.
    """
    beats = sum(s.beats for s in sections)
    part = _pages(beats * config.port_bytes)
    try:
        handle, name = tempfile.mkstemp(prefix=path.name + ".", suffix=".part", dir=path.parent or Path("."))
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror})") from e
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w+b") as f:
            # The header's length must be known before the data is placed; checksums are written with a fixed width.
            head: dict[str, Any] = {
                "geometry": geometry_of(config),
                "beats": beats,
                "sections": [],
                "blobs": [],
                "model": dict(model),
            }
            address = 0
            for s in sections:
                head["sections"].append(
                    {"name": s.name, "address": address, "beats": s.beats, "crc32": "0" * 8, "info": s.info}
                )
                address += s.beats
            offset = 0
            raw = {k: v if isinstance(v, bytes) else np.ascontiguousarray(v).tobytes() for k, v in blobs.items()}
            for key, value in raw.items():
                head["blobs"].append(
                    {"name": key, "offset": offset, "bytes": len(value), "crc32": f"{zlib.crc32(value):08x}"}
                )
                offset += _pages(len(value))
            data = _pages(_PREFIX.size + len(json.dumps(head).encode()))
            for i, s in enumerate(sections):
                array = s.make()
                if array.shape != (s.beats, config.beat_bytes) or array.dtype != np.uint8:
                    raise AssertionError(f"section {s.name}: made {array.shape}, planned {s.beats} beats")
                crc = 0
                for port in range(config.ports):
                    columns = np.ascontiguousarray(array[:, port * config.port_bytes : (port + 1) * config.port_bytes])
                    f.seek(data + port * part + head["sections"][i]["address"] * config.port_bytes)
                    f.write(columns.data)
                    crc = zlib.crc32(columns.data, crc)
                head["sections"][i]["crc32"] = f"{crc:08x}"
            for entry, value in zip(head["blobs"], raw.values(), strict=True):
                f.seek(data + config.ports * part + entry["offset"])
                f.write(value)
            f.truncate(data + config.ports * part + offset)
            header = json.dumps(head).encode()
            f.seek(0)
            f.write(_PREFIX.pack(MAGIC, FORMAT_VERSION, len(header), zlib.crc32(header), 0) + header)
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


class Image:
    """An open image, mapped from its file.

    Parameters
    ----------
    path : the file.
    verify : check every section and blob against its checksum (reads the whole file).

    Raises
    ------
    UserError : the file is not an image, is of another version, truncated or damaged.
    """

    def __init__(self, path: Path, *, verify: bool = True):
        self.path = path
        try:
            size = path.stat().st_size
            with open(path, "rb") as f:
                prefix = f.read(_PREFIX.size)
                if len(prefix) < _PREFIX.size or prefix[:8] != MAGIC:
                    raise UserError(f"{path}: is not a .tlm image; make one with `tellme convert`")
                _, version, length, crc, _ = _PREFIX.unpack(prefix)
                if version != FORMAT_VERSION:
                    raise UserError(
                        f"{path}: is a .tlm image of version {version}, this program reads version {FORMAT_VERSION}; "
                        "convert the checkpoint again"
                    )
                header = f.read(length)
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror})") from e
        if len(header) < length:
            raise UserError(f"{path}: is truncated within its header; convert the checkpoint again")
        if zlib.crc32(header) != crc:
            raise UserError(f"{path}: its header is damaged (checksum); convert the checkpoint again")
        head = json.loads(header)
        self.geometry: dict[str, int] = head["geometry"]
        self.beats: int = head["beats"]
        self.model: dict[str, Any] = head["model"]
        self.sections: dict[str, Section] = {
            s["name"]: Section(s["name"], s["address"], s["beats"], int(s["crc32"], 16), s["info"])
            for s in head["sections"]
        }
        ports, port_bytes = self.geometry["ports"], self.geometry["port_bytes"]
        part = _pages(self.beats * port_bytes)
        data = _pages(_PREFIX.size + length)
        blobs = data + ports * part
        end = blobs + sum(_pages(b["bytes"]) for b in head["blobs"])
        if size != end:
            raise UserError(
                f"{path}: has {size} bytes instead of {end}, it is truncated or something was appended; "
                "convert the checkpoint again"
            )
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
        self.data: NDArray[np.uint8] = mapped[data:blobs].reshape(ports, part)[:, : self.beats * port_bytes]
        self.data = self.data.reshape(ports, self.beats, port_bytes)
        self._blobs = {
            b["name"]: (mapped[blobs + b["offset"] : blobs + b["offset"] + b["bytes"]], int(b["crc32"], 16))
            for b in head["blobs"]
        }
        if verify:
            self.verify()

    def verify(self) -> None:
        """Checks every section and blob.

        Raises
        ------
        UserError : naming the first that is damaged.
        """
        for s in self.sections.values():
            crc = 0
            for port in self.data:
                crc = zlib.crc32(np.ascontiguousarray(port[s.address : s.address + s.beats]).data, crc)
            if crc != s.crc32:
                raise UserError(f"{self.path}: section {s.name!r} is damaged (checksum); convert the checkpoint again")
        for name, (content, crc) in self._blobs.items():
            if zlib.crc32(np.ascontiguousarray(content).data) != crc:
                raise UserError(f"{self.path}: part {name!r} is damaged (checksum); convert the checkpoint again")

    def section(self, name: str) -> NDArray[np.uint8]:
        """A section as beats: uint8[beats, beat_bytes] (a copy)."""
        s = self.sections[name]
        return np.ascontiguousarray(self.data[:, s.address : s.address + s.beats].transpose(1, 0, 2)).reshape(
            s.beats, -1
        )

    def blob(self, name: str) -> NDArray[np.uint8]:
        """A blob's bytes, mapped."""
        return self._blobs[name][0]

    def has_blob(self, name: str) -> bool:
        return name in self._blobs

    def require(self, config: AcceleratorConfig) -> None:
        """Refuses an accelerator whose beats are laid out otherwise.

        Raises
        ------
        UserError : naming the parameter, both values and the remedy.
        """
        for name, value in geometry_of(config).items():
            if self.geometry[name] != value:
                raise UserError(
                    f"{self.path}: was made for {name} {self.geometry[name]}, but board {config.name!r} has {value}; "
                    f"convert the checkpoint with --board {config.name}"
                )
