"""`tellme bench`: speed of a model's real shape on the simulated accelerator."""

from __future__ import annotations

from pathlib import Path
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
    bench_candidates,
    board,
    cache_format,
)
from tellme.host.commands.pictures import draw, prepare
from tellme.host.commands.sweep import Csv, Over, emit, sweep
from tellme.host.commands.together import Together, together
from tellme.host.errors import UserError
from tellme.host.machine.measurement import Measurement, measure, shape
from tellme.host.machine.placement import regions
from tellme.host.machine.simulation import check_simulator, memory_timing
from tellme.host.places import check_new_file, replacing
from tellme.host.progress import Status
from tellme.host.tables import grid, pairs, show


def _tables(measured: Measurement, console: Console) -> None:
    r = measured.report()
    cycles = r["cycles_per_pass"]
    rows: list[tuple[str, object]] = [
        ("tokens/s", f"{r['tokens_per_s']:.1f}"),
        ("cycles a token", cycles),
        ("bytes read a token", r["bytes_per_pass"]),
        ("GB/s", f"{r['gb_per_s']:.2f}"),
        ("ports' regions at", regions(r["phases_kib"])),
        ("share of the beat rate", f"{r['share_of_beat_rate']:.1%}"),
        *((f"without a beat: {k}", f"{v:,} ({v / cycles:.2%})") for k, v in r["stalls"].items()),
        *((f"busy: {k}", f"{v:.1%}") for k, v in r["busy"].items()),
    ]
    if r["complete_error"] is not None:
        rows.append(("cycles with every layer run", r["complete_cycles_per_pass"]))
        rows.append(("error of multiplying layers", f"{r['complete_error']:+.3%}"))
    if measured.ternary_head:
        rows.append(("head", f"ternary, {measured.candidates or 'no'} candidates"))
    elif measured.candidates:
        rows.append(("head", f"{measured.candidates} candidates, chosen by {measured.planes} ternary plane(s)"))
    if measured.kv.v_narrow:
        rows.append(("cache", "keys in {} bits, values in {}".format(*measured.kv.element_bits)))
    if measured.kv.hadamard:
        rows.append(("queries and keys", "turned (Hadamard)"))
    title = f"{measured.model} on {r['board']}, simulated, timing {r['timing']}"
    show(pairs(f"{title}: decode with {r['context']} keys", rows), console)
    if r["ttft_s"] is not None:
        passes = []
        for p in r["prefill"]:
            stalls = ", ".join(f"{k} {v:,}" for k, v in p["stalls"].items() if v)
            passes.append((p["position"], p["lanes"], p["cycles"], f"{p['share_of_beat_rate']:.1%}", stalls))
        header = ("position", "lanes", "cycles", "share of the beat rate", "stalls")
        show(grid(f"prefill of {r['prompt']} tokens", header, passes, left=("stalls",)), console)
        console.print(f"TTFT {r['ttft_s']:.4f} s, {r['prefill_tokens_per_s']:.1f} tokens/s", highlight=False)
    console.print("every pass equals the golden model's, bit for bit", highlight=False)


def command(
    model: Annotated[str, typer.Option("--model", help=SHAPE_HELP)],
    board_name: Board = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    context: Context = 128,
    prompt: Prompt = 0,
    timing: Annotated[str, typer.Option("--timing", help="Timing of the simulated memory.")] = "kv260",
    clock: Clock = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Run every layer too, against multiplying them.")
    ] = False,
    sequences: Annotated[
        int, typer.Option("--sequences", help="Conversations side by side, each with as many cached keys.")
    ] = 1,
    speculate: Annotated[
        bool, typer.Option("--speculate", help="With the guesses that answers of --work would be decoded with.")
    ] = False,
    work: Annotated[
        str, typer.Option("--work", help="What is answered then: story, another story, summary, edit or list.")
    ] = "edit",
    head: BenchHead = "full",
    candidates: Candidates = None,
    planes: Planes = 1,
    kv: Kv = "8",
    hadamard: Hadamard = False,
    trace: Annotated[Path | None, typer.Option("--trace", help="Write a trace for Perfetto or Chrome (JSON).")] = None,
    pictures: Annotated[Path | None, typer.Option("--pictures", help="Folder for pictures (SVG).")] = None,
    over: Over = None,
    csv_file: Csv = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Measure a model's real shape on the simulated accelerator, with synthetic weights."""
    if over or csv_file is not None:
        if trace is not None or pictures is not None:
            raise UserError("--over and --csv go without --trace and --pictures")
        sweep(command, over or (), csv_file, as_json, locals())
        return
    config = at_clock(board(board_name, config_file, settings), clock)
    memory = memory_timing(timing, None)
    wanted = bench_candidates(head, candidates, planes, shape(model, config))
    cache = cache_format(kv, hadamard)
    if sequences != 1 or speculate:
        if prompt or complete or trace is not None or pictures is not None:
            raise UserError("--sequences and --speculate go without --prompt, --complete, --trace and --pictures")
        together(
            Together(model, config, memory, context, sequences, wanted, planes, cache),
            work if speculate else None,
            as_json,
        )
        return
    if trace is not None:
        check_new_file(trace)
    if pictures is not None:
        prepare(pictures)
    check_simulator(config)
    errors = Console(stderr=True)
    with Status(errors, "starting", lines=True) as status:
        measured = measure(
            model,
            config,
            memory,
            context=context,
            prompt=prompt,
            complete=complete,
            candidates=wanted,
            planes=planes,
            kv=cache,
            trace=trace is not None or pictures is not None,
            say=status,
            status=status,
        )
    # Figures first: they are there even if a file cannot be written.
    if as_json:
        emit(measured.report())
    else:
        _tables(measured, Console())
    if trace is not None:
        from tellme.sim.trace import write_chrome

        assert measured.trace is not None
        title = f"{model}, two layers, {context} keys, simulated {config.name}"
        with replacing(trace) as whole:
            write_chrome(measured.trace, whole, clock_hz=config.clock_hz, title=title)
    if pictures is not None:
        draw(measured, pictures)
