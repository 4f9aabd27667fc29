"""`tellme config`: what a configuration resolves to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tellme.golden.boards import BOARDS, build_name
from tellme.host.commands.common import Board, ConfigFile, Settings
from tellme.host.configuration import PARAMETERS, resolve, text
from tellme.host.places import check_new_file, replacing
from tellme.host.provenance import json_line
from tellme.host.tables import grid, pairs, show

app = typer.Typer(help="Configurations: presets, and what is changed in them.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command("show")
def command(
    board_name: Board = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write it as a configuration file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show a configuration resolved: each parameter, what follows from them, and the hash that a build carries."""
    if out is not None:
        check_new_file(out)
    found = resolve(board_name, config_file, settings or (), default="kv260")
    record = found.record()
    if out is not None:
        with replacing(out) as whole:
            whole.write_text(text(found.config, found.board, found.base, build_name(found.config)))
    if as_json:
        print(json_line(record))
        return
    console = Console()
    config, base = found.config, found.base
    rows = [
        (n, getattr(config, n), "" if getattr(config, n) == getattr(base, n) else getattr(base, n)) for n in PARAMETERS
    ]
    board = BOARDS.get(config.name)
    title = f"{build_name(config)}" + (f": {board.title}, {board.part}" if board is not None else "")
    show(grid(title, ("parameter", "value", "preset's"), rows), console)
    show(pairs("what follows", [*record["derived"].items(), ("build register", record["build"])]), console)
    for file in found.files:
        console.print(f"from {file}", highlight=False, soft_wrap=True, markup=False)
