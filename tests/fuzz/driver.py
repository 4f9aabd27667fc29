"""Feeds damaged files to readers: every one must end well or in a UserError, soon, and without taking much memory.

A `Target` is a valid input and the function that reads it; targets.py lists them. A case is one mutation of one of its
files, made from the target's name, a seed and the number of the case alone, so that a failure can be repeated. A part
of a file is also mutated by itself and put together again with the right lengths and checksums, so that mutations reach
what is behind them (parts.py).
"""

from __future__ import annotations

import json
import random
import resource
import signal
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tellme.host.errors import UserError

SECONDS = 20.0
"""Wall clock of a case, on a busy machine. All of them take milliseconds."""
MEMORY = 1 << 30
"""Bytes of address space that a case may add. The inputs have kilobytes."""

Split = Callable[[bytes], tuple[bytes, Callable[[bytes], bytes]]]
"""Of a file: a part of it, and the function that makes a whole file of another one."""


@dataclass(frozen=True)
class Part:
    """A part of a file that is mutated by itself.

    Attributes
    ----------
    split : how to get at it.
    kind : "json": JSON as the file has it, also damaged as text; "tree": JSON that stands for something else, and stays JSON; "bytes".
    """

    split: Split
    kind: Literal["json", "tree", "bytes"] = "json"


@dataclass(frozen=True)
class Target:
    """Something that reads files.

    Attributes
    ----------
    name : of the target.
    files : a valid input: contents by file name.
    read : reads the folder of the files.
    parts : of the files, by file name.
    damaged : the files that are mutated; all of them if empty.
    notation : the files only stand for something else: they are damaged by their parts alone.
    header : bytes at the start of a file that take half of the edits.
    """

    name: str
    files: dict[str, bytes]
    read: Callable[[Path], object]
    parts: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    header: int = 64
    notation: bool = False


class Hang(Exception):
    """A case took too long."""


# ---- mutations -------------------------------------------------------------------------------------------------------

_WORDS = (
    0,
    1,
    2,
    7,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 31, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 10**30, 10**400,
    -(1 << 63), 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"), "", "0", "x", "F32", "U8", "I64", "../x", "\x00", "\ud800",
    "a\nb", "9" * 5000, [], {}, [[]], [0], [1, 1], [-1], [1 << 40, 1 << 40], ["x"], {"x": 1}, {"": {}},
)  # fmt: skip


def mutate_bytes(data: bytes, rng: random.Random, header: int = 64) -> bytes:
    """One to four edits: bits, bytes, words of extreme values, cuts, insertions, repetitions."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        n = len(out)
        at = rng.randrange(n + 1) if rng.random() < 0.5 else rng.randrange(min(n, header) + 1)
        kind = rng.randrange(8)
        if kind == 0 and at < n:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < n:
            out[at] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice("BHIQ")
            word = struct.pack("<" + size, rng.choice(_WORDS) & ((1 << 8 * struct.calcsize(size)) - 1))
            out[at : at + len(word)] = word
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            del out[at : at + rng.randrange(1, 40)]
        elif kind == 5:
            out[at:at] = rng.randbytes(rng.randrange(1, 40))
        elif kind == 6:
            end = at + rng.randrange(1, 200)
            out[at:at] = out[at:end]
        elif rng.random() < 0.2:
            out.clear()
    return bytes(out)


def _nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value of a JSON tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items):
        yield value, key
        yield from _nodes(child)


def _place(tree: Any, places: list[tuple[Any, Any]], rng: random.Random) -> tuple[Any, Any]:
    """Where to change a tree: half of the time any place, else one on a way from the root, so that a few settings beside a long list get their share."""
    if rng.random() < 0.5:
        return rng.choice(places)
    container = tree
    while True:
        key = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
        child = container[key]
        if not isinstance(child, (dict, list)) or not child or rng.random() < 0.3:
            return container, key
        container = child


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """One to three changes of a JSON tree, in place."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_nodes(tree))
        if not places:
            break
        container, key = _place(tree, places, rng)
        old, kind = container[key], rng.randrange(6)
        if kind <= 1:
            container[key] = deepcopy(rng.choice(_VALUES))  # later changes must not reach the next case
        elif kind == 2:
            del container[key]
        elif kind == 3 and type(old) in (int, float):
            container[key] = rng.choice((old + 1, old - 1, old * 2, -old, old << 20 if type(old) is int else old / 3))
        elif kind == 4:
            other, place = rng.choice(places)
            # A copy, because a tree must not contain itself; the place may have been deleted with its parent.
            container[key] = json.loads(json.dumps(other[place] if isinstance(other, list) else other.get(place)))
        elif isinstance(container, dict):
            container[rng.choice(("x", "", str(key) + "_", "shape"))] = container.pop(key)
        else:
            container.insert(key, deepcopy(rng.choice(_VALUES)))
    return tree


def mutate_json(text: bytes, rng: random.Random) -> bytes:
    """Changes of the tree, or junk in the text."""
    if rng.random() < 0.05:
        at = rng.randrange(len(text) + 1)
        junk = rng.choice((b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"NaN", b"\xff\xfe", b'"\\ud800"', b"1e999"))
        return text[:at] + junk + text[at:]
    return json.dumps(mutate_tree(json.loads(text), rng)).encode()


def mutate_part(part: Part, text: bytes, rng: random.Random) -> bytes:
    """A part of a file, changed as its kind allows."""
    if part.kind == "tree":
        return json.dumps(mutate_tree(json.loads(text), rng)).encode()
    if part.kind == "json" and rng.random() < 0.8:
        return mutate_json(text, rng)
    return mutate_bytes(text, rng, len(text) if part.kind == "bytes" else 64)


def mutation(target: Target, seed: int, case: int) -> tuple[str, bytes]:
    """File name and damaged contents of a case."""
    rng = random.Random(f"{target.name}/{seed}/{case}")
    name = rng.choice(target.damaged or tuple(target.files))
    data, parts = target.files[name], target.parts.get(name, ())
    if parts and (rng.random() < 0.6 or target.notation):
        part = rng.choice(parts)
        text, join = part.split(data)
        return name, join(mutate_part(part, text, rng))
    return name, mutate_bytes(data, rng, target.header)


# ---- running ---------------------------------------------------------------------------------------------------------


def put(path: Path, data: bytes) -> None:
    """Writes a file anew. ext4 brings a file that is truncated to the disk when it is closed, which takes milliseconds; not so a new one."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def bound_memory() -> tuple[int, int]:
    """Bounds the address space of this process to `MEMORY` bytes more than it has; the limits before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as f:
        used = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    return soft, hard


@contextmanager
def limits() -> Iterator[None]:
    """Bounds the address space of this process, and makes a case that hangs raise `Hang`."""

    def hang(*_: object) -> None:
        raise Hang(f"more than {SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, hang)
    memory = bound_memory()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(target: Target, folder: Path, seed: int, cases: range) -> dict[str, int]:
    """Runs cases in an empty folder; how many ended well ("read") and in a UserError ("refused").

    Raises
    ------
    AssertionError : a case ended otherwise; says which and how.
    """
    for name, data in target.files.items():
        put(folder / name, data)
    target.read(folder)  # the valid input must be read
    out = {"read": 0, "refused": 0}
    with limits(), warnings.catch_warnings():
        warnings.simplefilter("error")  # lines that nobody asked for
        for case in cases:
            name, data = mutation(target, seed, case)
            put(folder / name, data)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                target.read(folder)
                out["read"] += 1
            except UserError as e:
                if not str(e).isprintable() or not str(e):
                    raise AssertionError(f"{target.name}, seed {seed}, case {case}: message {str(e)!r}") from e
                out["refused"] += 1
            except BaseException as e:  # pyo3 panics are no Exceptions
                if isinstance(e, KeyboardInterrupt):
                    raise
                raise AssertionError(
                    f"{target.name}, seed {seed}, case {case} ({name}): {type(e).__name__}: {e}"
                ) from e
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                put(folder / name, target.files[name])
    return out
