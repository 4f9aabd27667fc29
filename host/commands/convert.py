"""`tellme convert`: an image of a checkpoint."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tellme.host.checkpoints.checkpoint import Checkpoint, is_checkpoint, open_checkpoint, with_int8_inputs
from tellme.host.commands.common import Board, ConfigFile, Embedding, Latent, Settings, board, check_embedding
from tellme.host.commands.evaluate import read_text
from tellme.host.commands.info import try_program
from tellme.host.errors import UserError
from tellme.host.files import peek
from tellme.host.image.model import convert, find_model
from tellme.host.image.screening import TEXT, Calibration, with_screen, with_ternary_head
from tellme.host.places import check_new_file
from tellme.host.provenance import json_line


def _head(checkpoint: Checkpoint, found: Calibration | None) -> dict[str, Any] | None:
    """What the JSON says of a ternary copy of the head."""
    made = checkpoint.weights.screen
    if made is None:
        return None
    return {
        "planes": made.count,
        "exact": made.exact,
        "margin": float(made.margin),
        "calibration": None if found is None else asdict(found),
    }


def command(
    source: Annotated[Path, typer.Argument(help="Hugging Face folder, .gguf file, demo, or demo-qwen3.")],
    out: Annotated[Path, typer.Argument(help="The .tlm image to write.")],
    board_name: Board = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            help="full: int8 rows; screened: these and a ternary copy of the head, which chooses candidates. Default: a ternary head "
            "as it is, where the accelerator takes one, and else full.",
        ),
    ] = None,
    planes: Annotated[
        int | None,
        typer.Option(
            "--planes", help="Ternary planes of that copy, 1 or 2. Default: what a calibration text asks for."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="UTF-8 text that the copy is calibrated with. Default: one of our own."),
    ] = None,
    embedding: Embedding = "exact",
    latent: Latent = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Convert a checkpoint into an image for one board (and those with the same beats)."""
    config = board(board_name, config_file, settings)
    check_embedding(embedding)
    if head not in (None, "full", "screened"):
        raise UserError(f"--head of an image must be full or screened, not {head!r}")
    if head != "screened" and (planes is not None or calibration is not None):
        raise UserError("--planes and --calibration need --head screened")
    if planes is not None and calibration is not None:
        raise UserError("give --planes or --calibration, not both")
    text = TEXT if calibration is None else read_text(calibration)
    path = find_model(str(source))
    if not is_checkpoint(path):
        what = f": it {kind}" if (kind := peek(path)) else "; images are made from checkpoints only"
        raise UserError(f"{path}: is not a checkpoint folder or .gguf file{what}")
    if out.suffix != ".tlm":
        raise UserError(f"{out}: an image's name ends in .tlm")
    check_new_file(out)
    with Console(stderr=True).status(f"reading {path}"):
        checkpoint = open_checkpoint(path, latent=latent)
    if embedding == "int8":
        checkpoint = with_int8_inputs(checkpoint)
    begun = time.monotonic()
    found = None
    if head == "screened":
        with Console(stderr=True).status(f"making a ternary copy of the head of {checkpoint.name}"):
            checkpoint, found = with_screen(checkpoint, config, planes=planes, text=text)
    if head is None:
        checkpoint = with_ternary_head(checkpoint, config) or checkpoint
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
        print(json_line({**facts, "seconds": seconds, "note": note, "head": _head(checkpoint, found)}))
        return
    print(f"{out}: {checkpoint.name} for {config.name}, {size:,} bytes")
    if checkpoint.weights.spec.ternary_head:
        print("ternary head: kept as it is, its logits are exact; no int8 rows")
    if found is not None and checkpoint.weights.screen is not None:
        made = checkpoint.weights.screen
        print(
            f"ternary head: {made.count} plane{'s' * (made.count > 1)}; of {found.positions:,} positions the true arg-max never ranks "
            f"below {found.worst_rank + 1}, margin {made.margin:.3g}"
        )
    if note is not None:
        print(f"tellme: note: {note}", file=sys.stderr)
