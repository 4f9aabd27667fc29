"""`tellme report`: one page of a configuration, a model and what was measured, in a file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tellme.golden.boards import BOARDS, build_name
from tellme.golden.config import AcceleratorConfig
from tellme.golden.program import DESCRIPTOR_BYTES
from tellme.golden.registers import STALLS
from tellme.golden.shapes import SHAPES
from tellme.golden.spec import ModelSpec
from tellme.host.commands import drawing, traces
from tellme.host.commands.build import at_clock
from tellme.host.commands.common import SHAPE_HELP, Board, Clock, ConfigFile, Kv, Settings, board, cache_format
from tellme.host.commands.page import Section, page, table, tiles
from tellme.host.commands.pictures import PUBLISHED, operations, weight_bytes
from tellme.host.errors import UserError
from tellme.host.files import parse_json, read_json
from tellme.host.machine.measurement import shape
from tellme.host.machine.passes import chunks
from tellme.host.machine.placement import in_use, regions
from tellme.host.machine.program import Program, check_fits, compile_sections, planned_sections, usable_context
from tellme.host.machine.simulation import memory_timing, unloadable
from tellme.host.places import check_new_file, replacing
from tellme.host.provenance import commit, json_line, version

_CHIP = ("lut", "ff", "dsp", "ramb36", "uram")


def _figures(bench: Mapping[str, Any], path: Path, config: AcceleratorConfig) -> dict[str, Any]:
    """Of `tellme bench --json`, or of a run; refused unless they are this configuration's."""
    try:
        if (
            bench["board"] != config.name
            or int(bench["lanes"]) != config.lanes
            or int(bench["beat_bytes"]) != config.beat_bytes
        ):
            raise UserError(
                f"{path}: is of board {bench['board']!r} with {bench['lanes']} lanes and beats of {bench['beat_bytes']} bytes, "
                f"the report of {config.name!r} with {config.lanes} and {config.beat_bytes}; give its --board, --config and --set"
            )
        if "cycles_decode" in bench:
            decode = [int(n) for n in bench["cycles_decode"]]
            if not decode:
                raise UserError(f"{path}: holds no decode pass (the golden back end counts no cycles)")
            total = sum(decode) / len(decode)
            stalls = {k: int(v) for k, v in bench["stalls"].items()}
            return {
                "kind": "run",
                "cycles": total,
                "clock_hz": int(bench["clock_hz"]),
                "stalls": stalls,
                "beats": None,
                "ttft_s": None,
            }
        cycles = int(bench["cycles_per_pass"])
        return {
            "kind": "simulated",
            "cycles": cycles,
            "clock_hz": int(bench["clock_hz"]),
            "beats": int(bench["bytes_per_pass"]) // config.beat_bytes,
            "stalls": {k: int(bench["stalls"][k]) for k in STALLS},
            "busy": {k: float(v) for k, v in bench["busy"].items()},
            "ttft_s": bench.get("ttft_s"),
            "prefill": [(f"prefill at {p['position']}", p) for p in bench.get("prefill", [])],
        }
    except (KeyError, TypeError, ValueError) as e:
        raise UserError(f"{path}: is not what tellme bench --json or tellme run --json prints ({e})") from e


def _synthesis(path: Path, config: AcceleratorConfig) -> Mapping[str, Any]:
    """What `tellme synth --json` printed of this board; of a list of such, the one."""
    try:
        text = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    if text.lstrip()[:1] == b"[":
        text = b'{"records": ' + text + b"}"
    found = parse_json(text, path)
    records = found.get("records", [found])
    try:
        record: Mapping[str, Any] = next(r for r in records if r["board"] == config.name)
        for r in (record["total"] or {}, *record["blocks"].values()):
            assert isinstance(r, dict) and all(isinstance(r.get(c, 0), (int, float)) for c in _CHIP)
        return record
    except StopIteration:
        raise UserError(f"{path}: has no synthesis of board {config.name!r}") from None
    except (KeyError, TypeError, AttributeError, AssertionError) as e:
        raise UserError(f"{path}: is not what tellme synth --json prints ({e!r})") from e


def _area(record: Mapping[str, Any]) -> str:
    blocks = sorted(record["blocks"].items(), key=lambda item: -item[1]["lut"])
    total, chip = record.get("total"), record.get("chip") or {}
    inside = ""
    if total:
        inside += drawing.gauges({c.upper(): (total[c], chip[c]) for c in _CHIP if chip.get(c)})
    kinds = {"logic": "#3b6fb6", "memory": "#dd8452"}
    rows = {n: {"logic": b["lut_logic"], "memory": b["lut_memory"]} for n, b in blocks if b["lut"]}
    inside += drawing.bars(rows, kinds, "LUT", "LUT by block")
    return inside + table(
        ("block", *(c.upper() for c in _CHIP), "levels"), [(n, *(b[c] for c in _CHIP), b["levels"]) for n, b in blocks]
    )


def _memory(program: Program) -> list[tuple[str, int, int]]:
    """Regions of the buffer: name, first beat, beats."""
    p = program
    width = p.config.beat_bytes
    found = [
        ("program", p.program_address, -(p.length * DESCRIPTOR_BYTES // -width)),
        ("activations in", p.x_address, p.config.lanes * p.x_beats),
        ("rotary table", p.rope_address, len(p.rope_table)),
        ("model image", p.image_address, p.logits_address - p.image_address),
        ("logits", p.logits_address, p.config.lanes * p.logits_stride),
        ("KV cache", p.kv_address, p.window_beats - p.kv_address),
    ]
    return [r for r in found if r[2]]


def _roofline(spec: ModelSpec, config: AcceleratorConfig, name: str, beats: int, rate: float, kind: str) -> str:
    per = operations(spec)
    points: list[drawing.Point] = [
        (f"this, {name}: {rate:.1f} tokens/s ({kind})", per / (beats * config.beat_bytes), rate * per, True)
    ]
    if config.name in BOARDS:
        # Not those that take several tokens at once: how many share a read of the weights is not published.
        points += [
            (
                f"{who}, {other}, {r:.0f} tokens/s",
                operations(SHAPES[other]) / weight_bytes(SHAPES[other]),
                r * operations(SHAPES[other]),
                False,
            )
            for who, other, r in PUBLISHED
            if who.endswith("decode")
        ]
    compute = 2.0 * config.lanes * config.beat_weights * config.clock_hz
    roofs = {"beats": float(config.beat_bytes * config.clock_hz)}
    if config.name in BOARDS:
        roofs["memory's peak"] = float(BOARDS[config.name].ddr_peak)
    return drawing.roofline(points, compute, roofs)


def command(
    model: Annotated[str, typer.Option("--model", help=SHAPE_HELP)],
    out: Annotated[Path, typer.Option("--out", help="The page (.html).")],
    board_name: Board = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    context: Annotated[int, typer.Option("--context", help="Cached keys of the decode pass.")] = 128,
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens to prefill; 0: none.")] = 128,
    timing: Annotated[str, typer.Option("--timing", help="Timing of the memory.")] = "kv260",
    clock: Clock = None,
    kv: Kv = "8",
    bench: Annotated[
        Path | None, typer.Option("--bench", help="What tellme bench --json or tellme run --json printed: its figures.")
    ] = None,
    trace: Annotated[Path | None, typer.Option("--trace", help="What tellme bench --trace wrote.")] = None,
    synth: Annotated[
        Path | None, typer.Option("--synth", help="What tellme synth --json printed: area by block.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Write one page about a configuration and a model: architecture, roofline, cycles, FIFO, area, memory, trace.

    Figures are estimated, as by tellme plan, unless a measurement is given. The page needs no network.
    """
    check_new_file(out)
    config = at_clock(board(board_name, config_file, settings), clock)
    spec, cache = shape(model), cache_format(kv)
    check_fits(spec, config, model, cache)
    usable = usable_context(spec, config, cache)
    for what, value in (("context", context), ("prompt", prompt)):
        if not 0 <= value < usable:
            raise UserError(f"{what} must be from 0 to {usable - 1} for {model} on {config.name!r}, not {value}")
    measured = None if bench is None else _figures(read_json(bench), bench, config)
    area = None if synth is None else _synthesis(synth, config)
    recorded = None if trace is None else traces.read(trace)
    try:
        from tellme.hw.plan import plan
        from tellme.sim.stream import SustainedMemory
    except ImportError as e:
        raise unloadable(e, "") from e
    placement = in_use(config, "sim")
    memory = memory_timing(timing, None)
    passes = chunks(config, spec.heads // spec.kv_heads, prompt, kv=cache)
    planned = plan(
        spec, config, SustainedMemory(memory, placement.phases or None), context=context, prompt=passes, kv=cache
    )
    program = compile_sections(model, spec, planned_sections(spec, config), config, kv=cache)

    kind = "estimated" if measured is None else measured["kind"]
    cycles = planned.decode.cycles if measured is None else measured["cycles"]
    hz = config.clock_hz if measured is None else measured["clock_hz"]
    beats = (None if measured is None else measured["beats"]) or planned.decode.beats
    ttft = planned.ttft_s if measured is None else measured["ttft_s"]
    rate = hz / cycles
    figures = [
        (f"{rate:,.1f}", f"tokens/s, {kind}"),
        (f"{cycles:,.0f}", "cycles a token"),
        (f"{beats / cycles:.1%}", "of the beat rate"),
        (drawing.si(beats * config.beat_bytes, "B"), "read a token"),
        (f"{hz / 1e6:g} MHz", "clock"),
        *([(f"{1e3 * ttft:,.1f} ms", "to the first token")] if ttft else []),
        *([(f"{area['total']['lut']:,}", f"LUT by {area['tool']}")] if area and area.get("total") else []),
    ]
    rows: dict[str, dict[str, float]] = {}
    if measured is not None and measured["kind"] == "simulated":
        rows["decode, simulated"] = {"beats": beats, **measured["stalls"]}
        rows |= {name: {"beats": p["beats"], **p["stalls"]} for name, p in measured["prefill"]}
    rows["decode, estimated"] = {"beats": planned.decode.beats, **planned.decode.stalls}
    if measured is None:
        rows |= {
            f"prefill at {at}, estimated": {"beats": p.beats, **p.stalls}
            for (at, _), p in zip(passes, planned.prefill, strict=True)
        }
    described = BOARDS.get(config.name)
    sections: list[Section] = [
        ("Architecture", f"{described.title}, {described.part}" if described else "No board", drawing.architecture(config)),
        ("Roofline", "Operations count a multiply-add as two. Letters are systems that others published, on a KV260.", _roofline(spec, config, model, beats, rate, kind)),
        ("Where the cycles go", "Cycles with a beat, and without one by cause; whole passes.", drawing.bars(rows, drawing.COLOURS, "cycles", "Cycles of passes")),
    ]  # fmt: skip
    if measured is not None and measured.get("busy"):
        busy = {k: {"busy": 100 * v} for k, v in measured["busy"].items()}
        sections.append(
            ("Busy units", "Share of the decode pass, %.", drawing.bars(busy, {"busy": "#55a868"}, "%", "Busy units"))
        )
    depths = [(d, f"{u} URAM288" if u else f"{b} RAMB36", c) for d, (u, b), c in planned.depths]
    fifo = f"{config.fifo_beats:,} beats are built; {planned.depth:,} would be within 0.1 % of the deepest."
    sections.append(("FIFO", fifo, table(("beats", "memory", "cycles a token, estimated"), depths)))
    if recorded is not None:
        found, title = recorded
        sections.append(("Trace", title, drawing.timeline(found, 0, found.cycles, fifo=config.fifo_beats, title=title)))
        sections += [
            (f"Layer {name}", "", drawing.timeline(found, start, end, fifo=config.fifo_beats, title=f"Layer {name}"))
            for name, (start, end) in list(traces.layers(found).items())
            if name == "1"
        ]
        by = {k: v for k, v in traces.causes(found).items() if sum(v.values()) > found.cycles / 1000}
        sections.append(("Cycles by step", "", drawing.bars(by, drawing.COLOURS, "cycles", "Cycles by step")))
    if area is not None:
        sections.append(("Area by block", f"{area['tool']}, estimated", _area(area)))
    placed = drawing.memory(_memory(program), config.beat_bytes)
    if placement.kib:
        placed += drawing.phases(placement.kib)
    where = f"Ports' regions at {regions(placement.kib)}; {program.slots} slot of {program.context:,} positions."
    sections.append(("Placement of memory", where, placed))
    sections.append(("Configuration", build_name(config), table(("parameter", "value"), list(asdict(config).items()))))
    stamp = f"tellme {version()}" + (f" ({commit()})" if commit() else "")
    text = page(
        f"{model} on {config.name}",
        sections,
        top=tiles(figures),
        foot=f"{stamp}. {kind}; context {context}, timing {memory.name}.",
    )
    with replacing(out) as whole:
        whole.write_text(text)
    if as_json:
        facts = {
            "out": str(out),
            "bytes": len(text.encode()),
            "sections": [s[0] for s in sections],
            "kind": kind,
            "tokens_per_s": rate,
        }
        print(json_line(facts))
        return
    print(f"{out}: {len(sections)} sections, {len(text.encode()):,} bytes; {rate:,.1f} tokens/s {kind}")
