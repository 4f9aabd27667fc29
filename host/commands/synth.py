"""`tellme synth`: tables and JSON of a synthesis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tellme.golden.config import AcceleratorConfig
from tellme.golden.project import advice
from tellme.host.commands.common import Board, ConfigFile, Settings, board
from tellme.host.errors import CheckError, UserError
from tellme.host.provenance import json_line
from tellme.host.tables import show

if TYPE_CHECKING:
    from tellme.hw.synth.route import Routed
    from tellme.hw.synth.synthesis import Report

COLUMNS = ("lut_logic", "lut_memory", "lut", "ff", "carry", "dsp", "ramb36", "uram")


def synth(
    config: AcceleratorConfig, *, blocks: Sequence[str], as_json: bool, jobs: int, paths: int, routed: bool
) -> None:
    """Synthesises a board's accelerator, or some of its blocks, and prints what it takes.

    Raises
    ------
    UserError : an unknown block, a missing tool.
    CheckError : a tool failed.
    """
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}")
    if paths < 1:
        raise UserError(f"--paths must be at least 1, not {paths}")
    try:
        from tellme.hw.synth import synthesis, yosys
    except ImportError as e:
        raise UserError(f"the generator cannot be loaded ({e}); install it: {advice('synth')}") from e
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        tasks: dict[str, object] = {}

        def progress(block: str, step: str) -> None:
            if block not in tasks:
                tasks[block] = bar.add_task(block)
            bar.update(tasks[block], description=f"{block}: {step.lower()}")  # type: ignore[arg-type]
            if step in ("cached", "done"):
                bar.stop_task(tasks[block])  # type: ignore[arg-type]

        try:
            yosys.version()
            report = synthesis.synthesise(config, blocks=blocks, paths=paths, jobs=jobs, progress=progress)
            routes: dict[str, Routed] = {}
            if routed:
                from tellme.hw.synth import route

                for block in route.BLOCKS:
                    routes[block] = route.route(block, progress=partial(progress, f"{block} on ECP5"))
        except synthesis.UnknownBlock as e:
            raise UserError(str(e)) from None
        except yosys.SynthesisError as e:
            raise CheckError(f"synthesis failed: {e}") from None
    if as_json:
        ecp5 = {"ecp5": {block: r.record() for block, r in routes.items()}} if routed else {}
        print(json_line(report.record() | ecp5))
        return
    show(table(report), Console())
    for block, found in report.paths.items():
        for path in found:
            print(f"{block}: {path.levels:g} levels from {path.source}: {' '.join(path.nets)}")
    for block, r in routes.items():
        print(
            f"{block}, small, routed on an ECP5-85F-8: {r.fmax:g} MHz; {r.lut:,} LUT4, {r.ff:,} FF, {r.dsp} MULT18X18D, "
            f"{r.ram} DP16KD"
        )


def _share(used: float, has: int) -> str:
    return f"{used / has:.1%}" if has else "none there"


def table(report: Report) -> Table:
    """Resources and levels of each block, the total, and its share of the chip."""
    out = Table(title=f"{report.board} by {report.tool}, estimated", title_justify="left")
    for name in ("block", *COLUMNS, "levels"):
        out.add_column(name, justify="left" if name == "block" else "right")
    for name, r in sorted(report.blocks.items(), key=lambda item: -item[1].lut):
        out.add_row(name, *(f"{r.record()[c]:,g}" for c in COLUMNS), f"{report.levels.get(name, 0):g}")
    if report.total:
        total = report.total.record()
        out.add_section()
        out.add_row("total", *(f"{total[c]:,g}" for c in COLUMNS), f"{max(report.levels.values()):g}")
        if report.chip:
            out.add_row(
                "of the chip", *(_share(total[c], report.chip[c]) if c in report.chip else "" for c in COLUMNS), ""
            )
    return out


def command(
    board_name: Board = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    block: Annotated[
        list[str] | None, typer.Option("--block", help="Only this block, or part of one (attention.array); repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", help="Yosys processes at a time.")] = 1,
    paths: Annotated[int, typer.Option("--paths", help="Longest paths shown of each block.")] = 1,
    ecp5: Annotated[bool, typer.Option("--ecp5", help="Also place and route two small blocks on an ECP5.")] = False,
) -> None:
    """Synthesise an accelerator: resources and logic levels, estimated by Yosys."""
    synth(
        board(board_name, config_file, settings),
        blocks=block or (),
        as_json=as_json,
        jobs=jobs,
        paths=paths,
        routed=ecp5,
    )
