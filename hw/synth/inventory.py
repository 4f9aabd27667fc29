"""What a design instantiates, from its elaborated fragments: vendor primitives in their modes, and memories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from amaranth.hdl import Const, Elaboratable, Fragment, Instance, Shape, Value
from amaranth.hdl._mem import MemoryInstance

from tellme.hw.memory.columns import WORD


class ColumnError(ValueError):
    """A memory's write columns map to no byte enables of its RAM; the message names it and says what does."""


@dataclass(frozen=True)
class Primitive:
    """A mode of a vendor primitive. parameters: (name, value); constants: inputs that never change, (name, value);
    variables: the other inputs."""

    type: str
    parameters: tuple[tuple[str, int | str], ...]
    constants: tuple[tuple[str, int], ...]
    variables: tuple[str, ...]


@dataclass(frozen=True)
class Ram:
    """A memory. column: bits of a write enable, least of its ports. style: attribute ram_style, or "". registered: its
    read ports are clocked, so that it may be a block RAM or UltraRAM."""

    name: str
    width: int
    depth: int
    column: int
    style: str
    registered: bool


def fragments(fragment: Fragment, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Fragment]]:
    """A fragment and all inside it, each with its path."""
    yield path, fragment
    for i, (part, name, _) in enumerate(fragment.subfragments):
        yield from fragments(part, (*path, name or f"U{i}"))


@dataclass(frozen=True)
class Inventory:
    """What a component instantiates. primitives: how often each mode of one."""

    primitives: Counter[Primitive]
    memories: list[Ram]


def inventory(component: Elaboratable, platform: object) -> Inventory:
    """Elaborates a component for a platform, and lists its primitives and memories."""
    found = Inventory(Counter(), [])
    for path, fragment in fragments(Fragment.get(component, platform)):
        if isinstance(fragment, Instance):
            parameters = {k: v.value if isinstance(v, Const) else v for k, v in fragment.parameters.items()}
            inputs = {k: Value.cast(v) for k, (v, kind) in fragment.ports.items() if kind == "i"}
            constants = {k: v.value for k, v in inputs.items() if isinstance(v, Const)}
            mode = (tuple(sorted(parameters.items())), tuple(sorted(constants.items())))
            found.primitives[Primitive(fragment.type, *mode, tuple(sorted(inputs.keys() - constants.keys())))] += 1
        if isinstance(fragment, MemoryInstance):
            width = Shape.cast(fragment._data.shape).width
            found.memories.append(
                Ram(
                    ".".join(path),
                    width,
                    fragment._data.depth,
                    min((len(p._data) // max(1, len(p._en)) for p in fragment._write_ports), default=width),
                    str(fragment._attrs.get("ram_style", "")),
                    all(p._domain != "comb" for p in fragment._read_ports),
                )
            )
    return found


def check_columns(memories: list[Ram]) -> None:
    """Refuses memories whose write columns a tool would map to other RAMs than counted.

    UltraRAM and block RAM enable bytes of 8 or 9 bits (UG573), and inference takes columns of a multiple of these; for
    others it builds a RAM for each column (UG901). A column across two UltraRAM is left to the tool's taste, so a
    memory in UltraRAM that has columns may have one word.

    Raises
    ------
    ColumnError : the first such memory.
    """
    for ram in memories:
        if ram.column == ram.width or not ram.registered or ram.style in ("distributed", "registers"):
            continue
        if ram.column % 8 and ram.column % 9:
            raise ColumnError(
                f"memory {ram.name}: write columns of {ram.column} bits; a RAM's are a multiple of 8 or 9 bits"
            )
        if ram.style == "ultra" and ram.width > WORD:
            raise ColumnError(
                f"memory {ram.name}: {ram.width} bits with write columns of {ram.column}; in UltraRAM at most {WORD} bits "
                "have columns: use hw.memory.columns.ColumnMemory"
            )
