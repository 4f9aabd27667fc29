"""Writes the marked tables of the documents, and the image format, from the code: `python -m docs.tables` (or `--check`)."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from amaranth.lib.wiring import In, Out

import tellme.host.image.file
import tellme.host.image.model
from docs.journey import journey
from tellme.golden.boards import BOARDS, MIB
from tellme.golden.config import PRESETS, AcceleratorConfig
from tellme.golden.program import FIELDS, Kind, Opcode
from tellme.golden.registers import BUSY, REGISTERS, STALLS, ErrorCode
from tellme.host.commands.boards import described
from tellme.hw import fp
from tellme.hw.attention.block import PIPES, Sizes
from tellme.hw.attention.merge import SumAccumulator
from tellme.hw.elementwise.elementwise import Elementwise
from tellme.hw.elementwise.epilogue import Epilogue
from tellme.hw.elementwise.statistics import Statistics
from tellme.hw.queues import ReservedQueue
from tellme.hw.tlmm.engine import TlmmEngine
from tellme.hw.tlmm.engine import expected_cycles as tlmm_cycles

PAGES = tuple(
    Path(__file__).parent / name for name in ("architecture.md", "formats.md", "numerics.md", "boards.md", "token.md")
)


def _table(header: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows])


def registers() -> str:
    """Register map."""
    rows = []
    for r in REGISTERS:
        where = f"0x{r.offset:03X}" + (f" + 4i, i < {r.count}" if r.count > 1 else "")
        rows.append((where, f"`{r.name}`", "", r.access, r.doc))
        for f in r.fields:
            bits = f"{f.start + f.width - 1}:{f.start}" if f.width > 1 else f"{f.start}"
            rows.append(("", f"`{r.name}.{f.name}`", bits, "", f.doc))
    errors = ", ".join(f"{e.value} {e.name}" for e in ErrorCode)
    live = ", ".join(f"`{r.name}`" for r in REGISTERS if r.live)
    return (
        _table(("offset", "register", "bits", "access", "meaning"), rows)
        + f"\n\nWhile `status` says busy, only {live} take writes: the others are ignored (and answered), so that a pass keeps what "
        f"it began with.\n\nErrors: {errors}.\n\nStall causes: {', '.join(STALLS)}. Busy units: {', '.join(BUSY)}."
    )


def descriptors() -> str:
    """Fields of every opcode."""
    rows = [
        (op.name, f"`{f.name}`", f.word, f"{f.lsb + f.width - 1}:{f.lsb}", ("binary32: " if f.is_float else "") + f.doc)
        for op in Opcode
        for f in FIELDS[op]
    ]
    return _table(("opcode", "field", "word", "bits", "meaning"), rows)


def presets() -> str:
    """Parameters and derived sizes of the presets; presets that differ in name alone share a column."""
    columns: dict[AcceleratorConfig, list[str]] = {}
    for name, c in PRESETS.items():
        columns.setdefault(replace(c, name="any"), []).append(name)
    names = [f.name for f in fields(AcceleratorConfig) if f.name != "name"]
    derived = ["beat_bytes", "beat_weights", "groups", "word", "cell", "keys_per_beat", "key_block", "scale_beats"]
    rows = [(f"`{n}`", *(getattr(c, n) for c in columns)) for n in names + derived + ["row_width"]]
    return _table(("parameter", *(", ".join(names) for names in columns.values())), rows)


def latencies() -> str:
    """Cycles from input to output of every arithmetic unit."""
    units = [
        *(
            getattr(fp, n)()
            for n in ("Multiplier", "Adder", "FloatToInt8", "Reciprocal", "ReciprocalSqrt", "Exponential")
        ),
        *(fp.IntToFloat(width) for width in (22, 32, 40)),
        *(fp.FloatToFixed(frac, width) for frac, width in ((14, 24), (0, 18))),
        fp.Exp2Mantissa(),
    ]
    names = {fp.IntToFloat: "({0.width})", fp.FloatToFixed: "({0.frac}, {0.width})"}
    rows = []
    for u in units:
        doc = (type(u).__doc__ or "").strip().split("\n")[0].split(";")[0].rstrip(".")
        ports = {flow: ", ".join(n for n, p in u.signature.members.items() if p.flow is flow) for flow in (In, Out)}
        name = f"`{type(u).__name__}{names.get(type(u), '').format(u)}`"
        rows.append((name, f"{ports[In]} -> {ports[Out]}", u.delay, doc))
    return _table(("unit", "ports", "cycles", "what"), rows)


def delays() -> str:
    """Cycles through the blocks of the kv260 preset."""
    c = PRESETS["kv260"]
    epilogue = "from the issue of a chunk by the transposer to its features"
    rows = [
        ("`TlmmEngine`", "from a beat of a block's last tile to its row in the FIFO", TlmmEngine(c).delay),
        ("`ReservedQueue`", "from a write into the empty queue to its output", ReservedQueue.delay),
        *((f"`Epilogue`, {kind.name}", epilogue, Epilogue.delay(kind)) for kind in Kind),
        ("`Statistics`", "from the finalising read of a lane to its sums", Statistics(c).read_delay),
        ("`SumAccumulator`", "from the read of a sum to its result", SumAccumulator(Sizes(c, PIPES)).delay),
    ]
    return _table(("block", "from, to", "cycles"), rows)


def cycles() -> str:
    """What the engines' cycle formulas give for the reference shapes on the kv260 preset."""
    c = PRESETS["kv260"]
    rows: list[tuple[Any, ...]] = []
    for lanes in (1, 16):
        for name, inputs, outputs in (
            ("0.73B gate and up", 1536, 8192),
            ("0.73B down", 4096, 1536),
            ("2B-4T gate and up", 2560, 13824),
            ("2B-4T down", 6912, 2560),
        ):
            tiles = -(-inputs // c.beat_weights)
            n = tlmm_cycles(c, tiles=tiles, rows=outputs, block_rows=c.block_rows, lanes=lanes)
            q = Elementwise.expected_quantise_cycles(c, tiles=tiles, lanes=lanes)
            rows.append((f"TLMM {name}", lanes, tiles * outputs, n, f"{tiles * outputs / n:.1%}", q))
    return _table(("job", "lanes", "beats", "cycles", "share of the beat rate", "cycles of its quantiser"), rows)


def image() -> str:
    """The `.tlm` format, from the modules that write and read it."""
    parts = (inspect.cleandoc(module.__doc__ or "") for module in (tellme.host.image.file, tellme.host.image.model))
    return "\n\n".join(parts).replace("host/image/model.py", "below")


def boards() -> str:
    """What is on each board and what is built for it."""
    rows: list[tuple[object, ...]] = []
    for b in BOARDS.values():
        c = b.config
        ports = ", ".join(p.split("_")[2] for p in b.memory_ports)
        rows.append(
            (
                f"`{b.name}`",
                b.title,
                f"`{b.part}`",
                f"{b.luts:,} LUT, {b.ffs:,} FF, {b.bram36:,} BRAM36, {b.urams} URAM, {b.dsps:,} {b.dsp}",
                f"{b.ddr_bytes // MIB:,} MiB {b.ddr}, {b.ddr_peak / 1e9:.1f} GB/s",
                f"{ports} of {b.port_bits} bit",
                f"{c.beat_bytes} bytes at {c.clock_hz / 1e6:.1f} MHz, {c.beat_bytes * c.clock_hz / 1e9:.1f} GB/s",
                c.lanes,
                f"0x{b.register_base:08X}",
                b.vivado,
            )
        )
    head = ("board", "", "part", "chip", "memory", "ports", "beat", "lanes", "registers", "Vivado")
    return _table(head, rows)


def fits() -> str:
    """Reference models on the boards."""
    rows: list[tuple[object, ...]] = []
    for name, facts in described().items():
        for model, f in facts.get("models", {}).items():
            if f["fits"]:
                cma = "yes" if f["cma"] else "`cma=` to be raised"
                rows.append(
                    (f"`{name}`", model, f"{f['context']:,}", f"{f['buffer_bytes'] // MIB:,} MiB", cma)
                    + (f"{f['tokens_per_second']:.1f}",)
                )
            else:
                rows.append((f"`{name}`", model, "does not fit", "-", "-", "-"))
    return _table(("board", "model", "context", "buffer", "fits the default CMA", "tokens/s, estimated"), rows)


def configured() -> str:
    """Models beyond the presets on the KV260's configurations."""
    rows: list[tuple[object, ...]] = []
    for model, f in described()["kv260"]["configured"].items():
        piece = "yes" if f["cma"] else "`cma=` to be raised" if f["one_piece"] else "more than a piece of 2 GiB"
        file = f["configuration"]
        rows.append(
            (
                model,
                f"[{file}](examples/configurations/{file}.toml)",
                f"{f['context']:,}",
                f"{f['buffer_bytes'] // MIB:,} MiB",
                piece,
            )
            + (f"{f['tokens_per_second']:.1f}",)
        )
    return _table(("model", "configuration", "context", "buffer", "fits the default CMA", "tokens/s, estimated"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "latencies": latencies,
    "delays": delays,
    "cycles": cycles,
    "presets": presets,
    "registers": registers,
    "descriptors": descriptors,
    "image": image,
    "boards": boards,
    "fits": fits,
    "configured": configured,
    "journey": journey,
}


def render(text: str) -> str:
    """`text` with every marked table made anew."""

    def one(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- table: {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", one, text, flags=re.S)


def main() -> int:
    old = {page: page.read_text() for page in PAGES}
    new = {page: render(text) for page, text in old.items()}
    if "--check" in sys.argv:
        return int(new != old)
    for page, text in new.items():
        page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
