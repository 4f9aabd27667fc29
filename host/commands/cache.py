"""`tellme cache`: what is built once and kept."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

from tellme.host.provenance import json_line
from tellme.host.tables import grid, show

app = typer.Typer(
    help="What is built once and kept: simulators and syntheses. Without a command: show it.",
    invoke_without_command=True,
)


@app.callback()
def show_cache(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Show the cache: where it is, what is in it, how large it is."""
    if context.invoked_subcommand is not None:
        return
    from tellme.hw import cache

    entries = cache.entries()
    size = sum(e.bytes for e in entries)
    if as_json:
        listed = [
            {"name": e.path.name, "kind": e.kind, "bytes": e.bytes, "used": e.used, "in_use": e.busy} for e in entries
        ]
        print(json_line({"path": str(cache.root()), "bytes": size, "entries": listed}))
        return
    rows = [
        (
            e.path.name,
            f"{e.kind}{', in use' if e.busy else ''}",
            f"{e.bytes / 1e6:,.1f}",
            time.strftime("%Y-%m-%d %H:%M", time.localtime(e.used)),
        )
        for e in entries
    ]
    if entries:
        show(grid("kept", ("entry", "what", "MB", "last used"), rows, left=("what", "last used")), Console())
    print(f"{cache.root()}: {len(entries)} entries, {size / 1e6:,.1f} MB (${cache.VARIABLE} names another folder)")


@app.command("clear")
def clear(
    unused_days: Annotated[
        float, typer.Option("--unused-days", help="Only what was not used for so many days.", min=0)
    ] = 0.0,
) -> None:
    """Remove what is in the cache, but for what a process uses now."""
    from tellme.hw import cache

    gone, kept = cache.clear(unused_days)
    still = f"; {len(kept)} in use stay" if kept else ""
    print(f"{cache.root()}: {len(gone)} entries removed, {sum(e.bytes for e in gone) / 1e6:,.1f} MB{still}")
