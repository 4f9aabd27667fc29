"""`tellme report`: one page of a configuration, a model and what was measured, in a file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tellme.golden.boards import BOARDS, build_name
from tellme.golden.config import AcceleratorConfig
from tellme.golden.program import DESCRIPTOR_BYTES
from tellme.golden.registers import STALLS
from tellme.golden.shapes import SHAPES
from tellme.golden.spec import ModelSpec
from tellme.host.commands import drawing, traces
from tellme.host.commands.build import at_clock
from tellme.host.commands.common import (
    SHAPE_HELP,
    Board,
    Clock,
    ConfigFile,
    Context,
    Kv,
    Prompt,
    Settings,
    Timing,
    board,
    cache_format,
)
from tellme.host.commands.page import Section, page, table, tiles
from tellme.host.commands.pictures import PUBLISHED, operations, weight_bytes
from tellme.host.errors import UserError
from tellme.host.files import parse_json, read_json
from tellme.host.machine.measurement import shape
from tellme.host.machine.passes import chunks
from tellme.host.machine.placement import Placement, in_use, regions
from tellme.host.machine.program import (
    Program,
    check_fits,
    check_positions,
    compile_sections,
    planned_sections,
)
from tellme.host.machine.simulation import memory_timing, unloadable
from tellme.host.places import check_new_file, replacing
from tellme.host.provenance import commit, json_line, version

if TYPE_CHECKING:
    from tellme.hw.plan import Plan
    from tellme.sim.trace import Trace

_CHIP = ("lut", "ff", "dsp", "ramb36", "uram")


def _figures(
    bench: Mapping[str, Any], path: Path, config: AcceleratorConfig, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Of `tellme bench --json`, or of a run; refused unless they are this configuration's, and a bench's of `about`: model, context
    and so on, as its JSON names them."""
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
            {k: int(v) for k, v in bench["stalls"].items()}
            tokens = float(bench.get("tokens_per_pass") or 1)  # more than one where tokens are guessed
            return {
                "kind": "run",
                "cycles": sum(decode) / len(decode) / tokens,
                "tokens_per_pass": tokens,
                "clock_hz": int(bench["clock_hz"]),
                "beats": None,
                "ttft_s": None,
            }
        for name, value in about.items():
            if bench.get(name, value) != value:
                raise UserError(f"{path}: is of {name} {bench[name]}, the report of {value}; give the same to both")
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
        total = record["total"]
        for r in (*([total] if total else []), *record["blocks"].values()):
            if not all(isinstance(r[c], (int, float)) for c in (*_CHIP, "lut_logic", "lut_memory", "levels")):
                raise TypeError("a figure is no number")
        if not isinstance(record["tool"], str):
            raise TypeError("tool is no text")
        return record
    except StopIteration:
        raise UserError(f"{path}: has no synthesis of board {config.name!r}") from None
    except (KeyError, TypeError, AttributeError) as e:
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


@dataclass(frozen=True)
class _Seen:
    """What a report is of. measured, area, recorded : None if there is none."""

    model: str
    spec: ModelSpec
    config: AcceleratorConfig
    planned: Plan
    passes: tuple[tuple[int, int], ...]
    placement: Placement
    program: Program
    measured: Mapping[str, Any] | None
    area: Mapping[str, Any] | None
    recorded: tuple[Trace, str] | None

    @property
    def kind(self) -> str:
        return "estimated" if self.measured is None else str(self.measured["kind"])

    @property
    def cycles(self) -> float:
        """Of a token."""
        return self.planned.decode.cycles if self.measured is None else float(self.measured["cycles"])

    @property
    def clock_hz(self) -> int:
        return self.config.clock_hz if self.measured is None else int(self.measured["clock_hz"])

    @property
    def beats(self) -> int:
        """Of a token; a run counts none, and takes the plan's."""
        if self.measured is not None and self.measured["kind"] == "run":
            return round(self.planned.decode.beats / self.measured["tokens_per_pass"])
        return self.planned.decode.beats if self.measured is None else int(self.measured["beats"])

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.clock_hz / self.cycles


def _large(seen: _Seen) -> list[tuple[str, str]]:
    """The figures in large."""
    ttft = seen.planned.ttft_s if seen.measured is None else seen.measured["ttft_s"]
    out = [
        (f"{seen.rate:,.1f}", f"tokens/s, {seen.kind}"),
        (f"{seen.cycles:,.0f}", "cycles a token"),
        (f"{seen.beats / seen.cycles:.1%}", "of the beat rate"),
        (drawing.si(seen.beats * seen.config.beat_bytes, "B"), "read a token"),
        (f"{seen.clock_hz / 1e6:g} MHz", "clock"),
    ]
    if ttft:
        out.append((f"{1e3 * ttft:,.1f} ms", "to the first token"))
    if seen.area and seen.area.get("total"):
        out.append((f"{seen.area['total']['lut']:,}", f"LUT by {seen.area['tool']}"))
    return out


def _cycles(seen: _Seen) -> dict[str, dict[str, float]]:
    """Cycles with a beat and without, by cause, of every pass that is known."""
    rows: dict[str, dict[str, float]] = {}
    measured, decode = seen.measured, seen.planned.decode
    if measured is not None and measured["kind"] == "simulated":
        rows["decode, simulated"] = {"beats": seen.beats, **measured["stalls"]}
        rows |= {name: {"beats": p["beats"], **p["stalls"]} for name, p in measured["prefill"]}
    rows["decode, estimated"] = {"beats": decode.beats, **decode.stalls}
    if measured is None:
        for (at, _), p in zip(seen.passes, seen.planned.prefill, strict=True):
            rows[f"prefill at {at}, estimated"] = {"beats": p.beats, **p.stalls}
    return rows


def _traced(found: Trace, title: str, fifo: int) -> list[Section]:
    """What happened when."""
    out = [("Trace", title, drawing.timeline(found, 0, found.cycles, fifo=fifo, title=title))]
    if "1" in (parts := traces.layers(found)):
        out.append(("Layer 1", "", drawing.timeline(found, *parts["1"], fifo=fifo, title="Layer 1")))
    by = {k: v for k, v in traces.causes(found).items() if sum(v.values()) > found.cycles / 1000}
    out.append(("Cycles by step", "", drawing.bars(by, drawing.COLOURS, "cycles", "Cycles by step")))
    return out


def _sections(seen: _Seen) -> list[Section]:
    config, planned, measured = seen.config, seen.planned, seen.measured
    described = BOARDS.get(config.name)
    board_title = f"{described.title}, {described.part}" if described else "No board"
    out: list[Section] = [
        ("Architecture", board_title, drawing.architecture(config)),
        (
            "Roofline",
            "Operations count a multiply-add as two. Letters are systems that others published, on a KV260.",
            _roofline(seen.spec, config, seen.model, seen.beats, seen.rate, seen.kind),
        ),
        (
            "Where the cycles go",
            "Cycles with a beat, and without one by cause; whole passes.",
            drawing.bars(_cycles(seen), drawing.COLOURS, "cycles", "Cycles of passes"),
        ),
    ]
    if measured is not None and measured.get("busy"):
        busy = {k: {"busy": 100 * v} for k, v in measured["busy"].items()}
        chart = drawing.bars(busy, {"busy": "#55a868"}, "%", "Busy units")
        out.append(("Busy units", "Share of the decode pass, %.", chart))
    depths = [(d, f"{u} URAM288" if u else f"{b} RAMB36", c) for d, (u, b), c in planned.depths]
    fifo = f"{config.fifo_beats:,} beats are built; {planned.depth:,} would be within 0.1 % of the deepest."
    out.append(("FIFO", fifo, table(("beats", "memory", "cycles a token, estimated"), depths)))
    if seen.recorded is not None:
        out += _traced(*seen.recorded, config.fifo_beats)
    if seen.area is not None:
        out.append(("Area by block", f"{seen.area['tool']}, estimated", _area(seen.area)))
    placed = drawing.memory(_memory(seen.program), config.beat_bytes)
    kib = seen.placement.kib
    if kib:
        placed += drawing.phases(kib)
    where = f"Ports' regions {'at ' if kib else ''}{regions(kib)}; {seen.program.slots} slot of {seen.program.context:,} positions."
    out.append(("Placement of memory", where, placed))
    out.append(("Configuration", build_name(config), table(("parameter", "value"), list(asdict(config).items()))))
    return out


def command(
    model: Annotated[str, typer.Option("--model", help=SHAPE_HELP)],
    out: Annotated[Path, typer.Option("--out", help="The page (.html).")],
    board_name: Board = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    context: Context = 128,
    prompt: Prompt = 128,
    timing: Timing = "kv260",
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
    spec, cache = shape(model, config), cache_format(kv)
    check_fits(spec, config, model, cache)
    check_positions(spec, config, model, cache, context=context, prompt=prompt)
    about = {"model": model, "context": context, "kv": cache.name, "hadamard": cache.hadamard}
    measured = None if bench is None else _figures(read_json(bench), bench, config, about)
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

    seen = _Seen(model, spec, config, planned, tuple(passes), placement, program, measured, area, recorded)
    sections = _sections(seen)
    rate, kind = seen.rate, seen.kind
    stamp = f"tellme {version()}" + (f" ({commit()})" if commit() else "")
    text = page(
        f"{model} on {config.name}",
        sections,
        top=tiles(_large(seen)),
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
