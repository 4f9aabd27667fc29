"""`tellme verilog`: the Verilog of an accelerator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tellme.golden.project import advice
from tellme.host.commands.common import Board, ConfigFile, Settings, board
from tellme.host.commands.delivery import VERILOG, beside
from tellme.host.errors import UserError
from tellme.host.places import check_new_file, check_new_folder, replacing


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the Verilog.")],
    board_name: Board = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    primitives: Annotated[
        bool, typer.Option("--primitives", help="Instantiate the vendor's primitives where the board's chip has them.")
    ] = False,
    sources: Annotated[
        bool, typer.Option("--sources", help="Attributes src: the file and line that each signal comes from.")
    ] = False,
) -> None:
    """Generate the Verilog of an accelerator, with what an engineer needs who has nothing else: README.md says what."""
    config = board(board_name, config_file, settings)
    check_new_folder(out)
    if out.is_dir():
        check_new_file(out / "tellme.v")
    try:
        from tellme.hw.verilog import accelerator_verilog
    except ImportError as e:
        raise UserError(f"the generator cannot be loaded ({e}); install it: {advice('generate')}") from e
    with Console(stderr=True).status(f"generating the Verilog of {config.name}"):
        text = accelerator_verilog(config, primitives=primitives, sources=sources)
        files = {**beside(config, VERILOG, primitives=primitives), "tellme.v": text}
    for name, content in files.items():
        try:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"{out}: cannot be written ({e.strerror})") from e
        with replacing(out / name) as whole:
            whole.write_text(content)
    print(
        f"{out / 'tellme.v'}: {config.name}, module tellme, {len(text):,} bytes; {out / 'README.md'} says what is beside it"
    )
