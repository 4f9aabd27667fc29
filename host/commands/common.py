"""What several commands share: their options, the preset that is meant, opening a back end."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from tellme.golden.config import PRESETS, AcceleratorConfig
from tellme.host.configuration import resolve
from tellme.host.errors import UserError
from tellme.host.image.model import Model, preset_of
from tellme.host.machine.backends import CheckedBackend, GoldenBackend, load_weights
from tellme.host.machine.board import BoardAccelerator
from tellme.host.machine.passes import Backend
from tellme.host.machine.program import Program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.host.progress import Status

BACKENDS = ("sim", "golden", "board")

Board = Annotated[
    str | None,
    typer.Option("--board", help=f"Preset of the accelerator: {', '.join(sorted(PRESETS))}. Default: kv260."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Configuration file (TOML): a preset and what differs, or a board of its own."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a parameter, as lanes=8; repeatable. tellme config show lists them."),
]
Latent = Annotated[
    bool,
    typer.Option("--latent", help="Quantise floating-point weights that nothing declares to be latent ternary ones."),
]
MODEL_HELP = "demo, a Hugging Face folder, a .gguf file, or a .tlm image."

AnyBoard = Annotated[
    str | None,
    typer.Option(
        "--board",
        help=f"Preset: {', '.join(sorted(PRESETS))}. Default: what bitstream or image is for; else kv260 on a board, "
        "tiny elsewhere.",
    ),
]
BackendName = Annotated[
    str, typer.Option("--backend", help="sim: the RTL under Verilator; golden: NumPy; board: a board, through PYNQ.")
]
Bitstream = Annotated[
    Path | None,
    typer.Option(
        "--bitstream", help="The .bit file for --backend board. Default: that of the preset, here or in build/."
    ),
]


def board(
    name: str | None, file: Path | None = None, settings: Sequence[str] | None = None, *, default: str = "kv260"
) -> AcceleratorConfig:
    """The configuration of `--board`, `--config` and `--set`."""
    return resolve(name, file, settings or (), default=default).config


def preset(
    name: str | None,
    backend: str,
    bitstream: Path | None,
    model: Path | None = None,
    file: Path | None = None,
    settings: Sequence[str] | None = None,
) -> AcceleratorConfig:
    """The configuration of `--board`, `--config` and `--set`. Where they name no board: the preset that the bitstream was built
    as or that the image was made for; with neither kv260 on a board and tiny elsewhere."""
    if name is None and file is None and bitstream is not None:
        parts = bitstream.stem.split("-")
        name = parts[1] if len(parts) == 3 and parts[0] == "tellme" else None
    if name is None and file is None and model is not None:
        name = preset_of(model)
    return board(name, file, settings, default="kv260" if backend == "board" else "tiny")


def check_backend(backend: str, bitstream: Path | None) -> None:
    if backend not in BACKENDS:
        raise UserError(f"backend {backend!r} is unknown; there are {', '.join(BACKENDS)}")
    if bitstream is not None and backend != "board":
        raise UserError("--bitstream needs --backend board")


def terminate(number: int, frame: Any) -> NoReturn:
    """SIGTERM: leave through every `finally`, so that a board is stopped before its memory goes."""
    raise SystemExit(128 + number)


def open_machine(
    backend: str,
    opened: Model,
    path: Path,
    program: Program,
    console: Console,
    *,
    memory: Any = None,
    waves: Path | None = None,
    check: bool = False,
    bitstream: Path | None = None,
    latent: bool = False,
) -> Backend:
    """Opens a back end with a model loaded."""
    config = program.config
    if backend == "board":
        signal.signal(signal.SIGTERM, terminate)
    what = {"golden": "opening the model", "sim": "building the simulation", "board": "loading bitstream and model"}
    with Status(console, what[backend]) as status:
        if backend == "golden":
            return GoldenBackend(load_weights(path, config, latent=latent), config, context=program.context)
        machine: Backend
        if backend == "board":
            machine = BoardAccelerator(opened, program, bitstream=bitstream)
        else:
            machine = SimulatedAccelerator(opened, program, timing=memory, waves=waves, status=status)
        if check:
            try:
                reference = GoldenBackend(load_weights(path, config, latent=latent), config, context=program.context)
                return CheckedBackend(machine, reference)
            except BaseException:
                machine.close()
                raise
        return machine
