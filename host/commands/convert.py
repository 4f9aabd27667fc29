"""`tellme convert`: an image of a checkpoint."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tellme.host.checkpoints.checkpoint import is_checkpoint, open_checkpoint
from tellme.host.commands.common import Board, ConfigFile, Latent, Settings, board
from tellme.host.commands.info import try_program
from tellme.host.errors import UserError
from tellme.host.files import peek
from tellme.host.image.model import convert, find_model
from tellme.host.places import check_new_file
from tellme.host.provenance import json_line


def command(
    source: Annotated[Path, typer.Argument(help="Hugging Face folder, .gguf file, or demo.")],
    out: Annotated[Path, typer.Argument(help="The .tlm image to write.")],
    board_name: Board = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    latent: Latent = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Convert a checkpoint into an image for one board (and those with the same beats)."""
    config = board(board_name, config_file, settings)
    path = find_model(str(source))
    if not is_checkpoint(path):
        what = f": it {kind}" if (kind := peek(path)) else "; images are made from checkpoints only"
        raise UserError(f"{path}: is not a checkpoint folder or .gguf file{what}")
    if out.suffix != ".tlm":
        raise UserError(f"{out}: an image's name ends in .tlm")
    check_new_file(out)
    with Console(stderr=True).status(f"reading {path}"):
        checkpoint = open_checkpoint(path, latent=latent)
    begun = time.monotonic()
    convert(checkpoint, out, config, show=not as_json)
    seconds = time.monotonic() - begun
    refusal = try_program(checkpoint.name, checkpoint.weights.spec, config)
    note = (
        f"{refusal}; the image is right for an accelerator with these beats and larger limits"
        if isinstance(refusal, UserError)
        else None
    )
    size = out.stat().st_size
    if as_json:
        facts = {"image": str(out), "bytes": size, "model": checkpoint.name, "board": config.name}
        print(json_line({**facts, "seconds": seconds, "note": note}))
        return
    print(f"{out}: {checkpoint.name} for {config.name}, {size:,} bytes")
    if note is not None:
        print(f"tellme: note: {note}", file=sys.stderr)
