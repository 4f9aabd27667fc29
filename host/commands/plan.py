"""`tellme plan`: depth and memory of the weight buffer, predicted stalls and tokens/s; nothing is simulated."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from tellme.host.commands.build import at_clock
from tellme.host.commands.common import (
    SHAPE_HELP,
    BenchHead,
    Board,
    Candidates,
    Clock,
    ConfigFile,
    Context,
    Hadamard,
    Kv,
    Planes,
    Prompt,
    Settings,
    Timing,
    bench_candidates,
    board,
    cache_format,
)
from tellme.host.commands.sweep import Csv, Over, emit, sweep
from tellme.host.machine.measurement import shape
from tellme.host.machine.passes import chunks
from tellme.host.machine.placement import in_use, regions
from tellme.host.machine.program import check_fits, check_positions
from tellme.host.machine.simulation import memory_timing, unloadable
from tellme.host.tables import grid, pairs, show


def command(
    model: Annotated[str, typer.Option("--model", help=SHAPE_HELP)],
    board_name: Board = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    context: Context = 128,
    prompt: Prompt = 128,
    timing: Timing = "kv260",
    clock: Clock = None,
    head: BenchHead = "full",
    candidates: Candidates = None,
    planes: Planes = 1,
    kv: Kv = "8",
    hadamard: Hadamard = False,
    over: Over = None,
    csv_file: Csv = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Analyse the weight buffer: FIFO depth, its memory, predicted stalls and tokens/s. Estimated, nothing is simulated."""
    if over or csv_file is not None:
        sweep(command, over or (), csv_file, as_json, locals())
        return
    config = at_clock(board(board_name, config_file, settings), clock)
    spec = shape(model, config)
    cache = cache_format(kv, hadamard)
    check_fits(spec, config, model, cache)
    memory = memory_timing(timing, None)
    wanted = bench_candidates(head, candidates, planes, spec)
    check_positions(spec, config, model, cache, context=context, prompt=prompt)
    try:
        from tellme.hw.plan import fifo_memory, plan
        from tellme.sim.stream import SustainedMemory
    except ImportError as e:
        raise unloadable(e, "") from e

    passes = chunks(config, spec.heads // spec.kv_heads, prompt, kv=cache)
    placement = in_use(config, "sim")
    result = plan(
        spec,
        config,
        SustainedMemory(memory, placement.phases or None),
        context=context,
        prompt=passes,
        candidates=wanted,
        planes=planes,
        kv=cache,
    )
    if as_json:
        uram, ramb36 = fifo_memory(config)
        emit(
            {
                "model": model,
                "board": config.name,
                "clock_hz": config.clock_hz,
                "timing": memory.name,
                "estimated": True,
                "context": context,
                "prompt": prompt,
                "head": head,
                "candidates": wanted or None,
                "planes": planes if wanted else None,
                "kv": cache.name,
                "hadamard": cache.hadamard,
                "tokens_per_s": result.tokens_per_s,
                "ttft_s": result.ttft_s,
                "cycles_per_pass": result.decode.cycles,
                "bytes_per_pass": result.decode.beats * config.beat_bytes,
                "share_of_beat_rate": result.decode.beats / result.decode.cycles,
                "stalls": result.decode.stalls,
                "memory_rate": result.rate,
                "phases_kib": placement.kib,
                "fifo_beats": config.fifo_beats,
                "fifo_beats_needed": result.depth,
                "uram": uram,
                "ramb36": ramb36,
                "depths": [
                    {"beats": d, "uram": u, "ramb36": b, "cycles_per_pass": c} for d, (u, b), c in result.depths
                ],
            }
        )
        return
    console = Console()
    d = result.decode
    rows: list[tuple[str, object]] = [
        ("ports' regions at", regions(placement.kib)),
        ("memory, beats a cycle", f"{result.rate:.4f}"),
        ("tokens/s", f"{result.tokens_per_s:.1f}"),
        ("cycles a token", d.cycles),
        ("share of the beat rate", f"{d.beats / d.cycles:.1%}"),
        *((f"without a beat: {k}", f"{v:,} ({v / d.cycles:.2%})") for k, v in d.stalls.items()),
    ]
    if result.ttft_s is not None:
        rows.append((f"TTFT of {prompt} tokens, s", f"{result.ttft_s:.4f}"))
    rows += [("FIFO built, beats", config.fifo_beats), ("FIFO needed (within 0.1 %), beats", result.depth)]
    show(pairs(f"{model} on {config.name}, estimated, timing {memory.name}: {context} keys", rows), console)
    depths = [(f"{d:,}", f"{u} URAM288" if u else f"{b} RAMB36", c) for d, (u, b), c in result.depths]
    show(grid("FIFO depth", ("beats", "memory", "cycles a token"), depths), console)
