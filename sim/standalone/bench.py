"""The files of a stand-alone test bench (`sim/` in the folder of `tellme verilog` and `tellme build`).

`script.hex` is what happens, a line for each step: {kind 8, address 24, value 32}, `Kind` says which there are. `load<n>.hex` is what the host
writes to memory before pass n, `result<n>.hex` what the accelerator must have written after it: beats of all ports, by their address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from tellme.golden.boards import build_name
from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import ADDRESS_BITS, PORT_ADDRESS_BITS, register
from tellme.sim.models import OURS

HERE = Path(__file__).resolve().parent
FOLDER = "sim"


class Kind(IntEnum):
    """Steps of a script: a register is written, or read and compared; the interrupt is waited for, `value` cycles at most;
    load<value>.hex comes into memory; memory must be as result<value>.hex says."""

    WRITE = 0
    EXPECT = 1
    WAIT = 2
    LOAD = 3
    COMPARE = 4


@dataclass(frozen=True)
class Step:
    """A line of the script. address: of a register."""

    kind: Kind
    address: int = 0
    value: int = 0


@dataclass(frozen=True)
class Recording:
    """Passes with all that goes in and must come out.

    Attributes
    ----------
    title : of what, in words.
    steps : what happens.
    loads, results : for each pass, beats that change by address: uint8[beat_bytes], lowest port first.
    bases : byte address of each port's region. beats : of the memory.
    """

    title: str
    steps: tuple[Step, ...]
    loads: tuple[dict[int, NDArray[np.uint8]], ...]
    results: tuple[dict[int, NDArray[np.uint8]], ...]
    bases: tuple[int, ...]
    beats: int


def _hex(beats: dict[int, NDArray[np.uint8]]) -> str:
    """As $readmemh reads it: the last byte of a beat is its highest, an address begins each run."""
    lines = []
    following = None
    for address, beat in sorted(beats.items()):
        if address != following:
            lines.append(f"@{address:x}")
        lines.append(beat[::-1].tobytes().hex())
        following = address + 1
    return "\n".join(lines) + "\n"


def _script(steps: Sequence[Step]) -> str:
    return "".join(f"{s.kind << 56 | s.address << 32 | s.value:016x}\n" for s in steps)


def files(config: AcceleratorConfig, recording: Recording, verilog: str, *, primitives: bool) -> dict[str, str]:
    """The test bench, by path below the folder.

    Parameters
    ----------
    verilog : path of the accelerator's Verilog, from `FOLDER`.
    primitives : it instantiates the vendor's primitives, whose behaviour is needed then.
    """
    models = {f"primitives/{path.name}": path.read_text() for path in OURS.values()} if primitives else {}
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    facts = {
        "build": build_name(config),
        "config": config,
        "recording": recording,
        "kinds": list(Kind),
        "address_bits": PORT_ADDRESS_BITS,
        "register_bits": ADDRESS_BITS,
        "registers": {"cycles": register("cycles").offset},
        "verilog": verilog,
        "models": list(models),
    }
    texts = {
        **models,
        "memory.sv": (HERE / "memory.sv").read_text(),
        **{name: environment.get_template(f"{name}.j2").render(facts) + "\n" for name in ("testbench.sv", "Makefile")},
        "script.hex": _script(recording.steps),
        **{f"load{i}.hex": _hex(beats) for i, beats in enumerate(recording.loads)},
        **{f"result{i}.hex": _hex(beats) for i, beats in enumerate(recording.results)},
    }
    return {f"{FOLDER}/{name}": text for name, text in texts.items()}
