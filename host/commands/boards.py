"""`tellme boards`: what is on a board, what is built for it, and which reference models fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console

from tellme.golden.arith import ceil_div
from tellme.golden.boards import BOARDS, GIB, MIB, ZYNQMP, Board, buffer_bytes, build_name
from tellme.golden.config import CLOCK_HZ, KV260, AcceleratorConfig
from tellme.golden.kv import EIGHT, CacheFormat
from tellme.golden.layout import KvLayout, float_beats
from tellme.golden.model import ModelSpec
from tellme.golden.selftest import SELFTEST
from tellme.golden.shapes import (
    BITNET_07B,
    BITNET_2B,
    BONSAI_4B,
    BONSAI_8B,
    BONSAI_17B,
    FALCON3_1B,
    FALCON3_3B,
    FALCON_E_1B,
    FALCON_E_3B,
    LLAMA3_8B,
)
from tellme.host.commands.common import Clock, Hadamard, Kv, cache_format
from tellme.host.errors import UserError
from tellme.host.image.model import section_shapes
from tellme.host.machine.program import check_fits, usable_context
from tellme.host.provenance import json_line
from tellme.host.tables import grid, show

CONTEXT = 128
"""Position at which decoding is estimated."""

REFERENCE_MODELS: dict[str, ModelSpec] = {"BitNet 0.73B": BITNET_07B, "BitNet 2B-4T": BITNET_2B}

_GROUPED: dict[str, Any] = {"weight_format": "grouped", "ternary_head": True}
_LARGE: dict[str, Any] = {
    "lanes": 8,
    "max_hidden": 4096,
    "max_features": 16384,
    "max_kv_dim": 2048,
    "max_head_dim": 256,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "kv260_bonsai": _GROUPED,
    "kv260_bonsai_large": _LARGE | _GROUPED,
    "kv260_large": _LARGE,
}
"""Changes of the KV260's preset for models that it does not hold: the files of these names in docs/examples/configurations."""

CONFIGURED_MODELS: dict[str, tuple[ModelSpec, str]] = {
    "Ternary Bonsai 1.7B": (BONSAI_17B, "kv260_bonsai"),
    "Ternary Bonsai 4B": (BONSAI_4B, "kv260_bonsai_large"),
    "Ternary Bonsai 8B": (BONSAI_8B, "kv260_bonsai_large"),
    "Falcon-E 1B": (FALCON_E_1B, "kv260_large"),
    "Falcon-E 3B": (FALCON_E_3B, "kv260_large"),
    "Falcon3 1B 1.58": (FALCON3_1B, "kv260_large"),
    "Falcon3 3B 1.58": (FALCON3_3B, "kv260_large"),
    "Llama3 8B 1.58": (LLAMA3_8B, "kv260_large"),
}
"""Models that run on these, and on which one."""

ONE_PIECE = 2 * GIB
"""Of a Zynq UltraScale+'s memory, the rest of which begins at another address (UG1085, system addresses): no buffer is longer."""


def configured(config: AcceleratorConfig, name: str) -> AcceleratorConfig | None:
    """A configuration of `CONFIGURATIONS` for another board's preset, at the clock that it has; None if it is not the KV260's design."""
    if replace(config, name=KV260.name, clock_hz=KV260.clock_hz) != KV260:
        return None
    return replace(config, **CONFIGURATIONS[name])


def at_most(board: Board, mhz: float | None) -> AcceleratorConfig:
    """A board's preset at its clock, or at the fastest of at most so many MHz that the board makes.

    Raises
    ------
    UserError : the board makes none.
    """
    c = board.config
    if mhz is None:
        return c
    clocks = board.clocks(min(c.clock_hz, round(mhz * 1e6)) if mhz < 1e3 else c.clock_hz, CLOCK_HZ[0])
    if not clocks:
        raise UserError(f"--clock: {board.name} makes no clock of at most {mhz:g} MHz")
    return replace(c, clock_hz=c.clock_hz if abs(clocks[0] - c.clock_hz) <= 1 else clocks[0])


def fit(
    board: Board, spec: ModelSpec, name: str, config: AcceleratorConfig | None = None, kv: CacheFormat = EIGHT
) -> dict[str, Any]:
    """Whether a model fits a board, its memory, and the tokens/s that the beats allow (estimated, not run).

    Returns
    -------
    fits; reason, if not; else context, buffer_bytes, cma (enough of it by default), one_piece (of memory can hold it),
    tokens_per_second at `CONTEXT`.
    """
    c = config or board.config
    try:
        check_fits(spec, c, name, kv)
        context = usable_context(spec, c, kv)
    except UserError as e:
        return {"fits": False, "reason": str(e)}
    weights = sum(section.beats for section in section_shapes(spec, c))
    # Half of the memory at most for keys and values, a tenth of the whole for the system.
    room = int(board.ddr_bytes * 0.9) // c.beat_bytes - weights

    def cache(positions: int) -> int:
        return spec.layers * KvLayout(c, spec.head_dim, spec.kv_heads, positions, kv).slot_stride

    def total(positions: int) -> int:
        return buffer_bytes(c, weights + cache(positions), board.phases)

    # No longer than a piece of the memory, with logits, inputs and rotary table, if the weights leave it some.
    rest = c.beat_bytes * c.lanes * float_beats(spec.vocab + spec.hidden + c.key_block, c) + MIB

    def whole(positions: int) -> int:
        return total(positions) + rest + 4 * positions * spec.head_dim

    piece = ONE_PIECE if board.ps == ZYNQMP and whole(c.key_block) < ONE_PIECE else board.ddr_bytes
    while context > c.key_block and (cache(context) > room or whole(context) >= piece):
        context -= c.key_block
    if cache(context) > room:
        need = (weights + cache(min(context, c.key_block))) * c.beat_bytes
        return {
            "fits": False,
            "reason": f"{name} needs {need // MIB:,} MiB, {board.name} has {board.ddr_bytes // MIB:,} MiB",
        }
    rate = min(c.clock_hz * c.beat_bytes, board.memory_rate) / c.beat_bytes
    keys = min(CONTEXT, context)
    read = weights + cache(ceil_div(keys, c.key_block) * c.key_block)
    size = total(context)
    return {
        "fits": True,
        "context": context,
        "buffer_bytes": size,
        "cma": size <= board.cma_default,
        "one_piece": board.ps != ZYNQMP or size < ONE_PIECE,
        "tokens_per_second": rate / read,
    }


def described(
    boards: Sequence[Board] = tuple(BOARDS.values()), clock: float | None = None, kv: CacheFormat = EIGHT
) -> dict[str, Any]:
    """Everything that `tellme boards --json` says; `clock` as in `at_most`; `kv`: elements of the cache."""
    out: dict[str, Any] = {}
    for b in boards:
        c = at_most(b, clock)
        out[b.name] = {
            "title": b.title,
            "part": b.part,
            "family": b.family,
            "ddr": b.ddr,
            "ddr_bytes": b.ddr_bytes,
            "ddr_peak": b.ddr_peak,
            "phases_kib": [x // 1024 for x in b.phases],
            "memory_rate": b.memory_rate,
            "cma_default": b.cma_default,
            "memory_ports": list(b.memory_ports),
            "port_bits": b.port_bits,
            "pl_reference_hz": b.pl_reference_hz,
            "vivado": b.vivado,
            "resources": {"lut": b.luts, "ff": b.ffs, "bram36": b.bram36, "uram": b.urams, "dsp": b.dsps},
            "preset": {
                "name": build_name(c),
                "beat_bytes": c.beat_bytes,
                "lanes": c.lanes,
                "clock_hz": c.clock_hz,
                "beat_rate": c.clock_hz * c.beat_bytes,
            },
            "models": {name: fit(b, spec, name, c, kv) for name, spec in REFERENCE_MODELS.items()},
            "configured": {
                name: {"configuration": which, **fit(b, spec, name, changed, kv)}
                for name, (spec, which) in CONFIGURED_MODELS.items()
                if (changed := configured(c, which)) is not None
            },
        }
    out["ulx3s"] = {
        "title": "Radiona ULX3S-85F",
        "part": "LFE5U-85F-6BG381",
        "family": "ECP5",
        "self_test": {"beat_bytes": SELFTEST.beat_bytes, "lanes": SELFTEST.lanes, "clock_hz": SELFTEST.clock_hz},
    }
    return out


def contiguous(found: dict[str, Any]) -> str:
    """What a buffer (of `fit`) asks of the kernel."""
    if not found["one_piece"]:
        return f"more than a piece of {ONE_PIECE // MIB:,} MiB"
    return "as it is" if found["cma"] else f"cma={ceil_div(found['buffer_bytes'], 64 * MIB) * 64 + 64}M"


def show_boards(*, as_json: bool, console: Console, clock: float | None = None, kv: CacheFormat = EIGHT) -> None:
    """Prints the boards, at clocks of at most so many MHz, with caches of such elements."""
    facts = described(clock=clock, kv=kv)
    if as_json:
        print(json_line(facts))
        return
    chips: list[tuple[object, ...]] = []
    fits: list[tuple[object, ...]] = []
    others: list[tuple[object, ...]] = []
    reasons: list[str] = []
    for b in BOARDS.values():
        c = at_most(b, clock)
        memory = f"{b.ddr_bytes // MIB:,} MiB {b.ddr}"
        ports = f"{len(b.memory_ports)} x {b.port_bits} bit"
        if b.phases:
            ports += f" at {', '.join(str(x // 1024) for x in b.phases)} KiB"
        ports += f", {b.memory_rate / 1e9:.1f} GB/s"
        chips.append((b.name, b.title, b.part, b.luts, b.bram36, b.urams, b.dsps, memory, ports))
        preset = f"{c.beat_bytes}-byte beat, {c.lanes} lanes, {c.clock_hz / 1e6:.0f} MHz"
        for table, first, models in ((fits, preset, "models"), (others, "", "configured")):
            for name, f in facts[b.name][models].items():
                if f["fits"]:
                    size = f"{f['buffer_bytes'] // MIB:,} MiB"
                    row = (f["context"], size, contiguous(f), f"{f['tokens_per_second']:.1f}")
                else:
                    row = ("does not fit", "-", "-", "-")
                    reasons.append(f["reason"])
                table.append((b.name, first or f["configuration"], name, *row))
    chips.append(
        ("ulx3s", "Radiona ULX3S-85F", "LFE5U-85F-6BG381", "83,640", "-", "-", "-", "-", "TLMM self-test only")
    )
    columns = ("board", "name", "part", "LUT", "BRAM36", "URAM", "DSP", "memory", "ports, modelled rate")
    show(grid("boards", columns, chips, left=("name", "part", "memory", "ports, modelled rate")), console)
    header = ("board", "preset", "model", "context", "buffer", "contiguous memory", "tokens/s")
    title = "what fits (estimated from the beats a token reads at the memory's modelled rate; no board has run)"
    show(grid(title, header, fits, left=("preset", "model", "contiguous memory")), console)
    header = ("board", "configuration", *header[2:])
    title = "and on the KV260's design with what docs/examples/configurations changes (estimated likewise)"
    show(grid(title, header, others, left=("configuration", "model", "contiguous memory")), console)
    for reason in reasons:
        console.print(f"does not fit: {reason}", highlight=False, soft_wrap=True, markup=False)


def command(
    clock: Clock = None,
    kv: Kv = "8",
    hadamard: Hadamard = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the tables.")] = False,
) -> None:
    """List the boards: what is on them, what is built for them, and which models fit."""
    show_boards(as_json=as_json, clock=clock, kv=cache_format(kv, hadamard), console=Console())
