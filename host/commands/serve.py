"""`tellme serve`: a model for programs, by OpenAI's interface, and for people, by a page."""

from __future__ import annotations

import gc
import ipaddress
import os
from typing import Annotated

import typer
from rich.console import Console

from tellme.golden.project import advice
from tellme.host.commands.common import (
    MODEL_HELP,
    AnyBoard,
    BackendName,
    Bitstream,
    Candidates,
    ConfigFile,
    Hadamard,
    HeadMode,
    Kv,
    Latent,
    OwnEmbedding,
    Settings,
    cache_format,
    check_backend,
    open_machine,
    preparation,
    preset,
)
from tellme.host.errors import TellmeError, UserError
from tellme.host.image.model import Model, check_rows, find_model
from tellme.host.machine.program import compile_program
from tellme.host.machine.screening import choose
from tellme.host.machine.simulation import check_simulator, memory_timing
from tellme.host.talk.engine import Engine
from tellme.host.talk.scheduler import RISE
from tellme.host.text.defaults import sampling_of

KEY = "TELLME_API_KEY"
"""Environment variable with the API key: unlike an option, it is not shown to everybody who lists processes."""


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def command(
    backend: BackendName = "sim",
    model: Annotated[str, typer.Option("--model", help=MODEL_HELP)] = "demo",
    board_name: AnyBoard = None,
    bitstream: Bitstream = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; 0.0.0.0: all, for everybody.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen at.")] = 8000,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model for clients; default: the file's.")
    ] = None,
    slots: Annotated[int, typer.Option("--slots", help="Conversations at once, each with its own cache slot.")] = 4,
    context: Annotated[int | None, typer.Option("--context", help="Positions of a slot; default: all.")] = None,
    queue: Annotated[int, typer.Option("--queue", help="Requests that may wait for a slot; more are refused.")] = 64,
    max_body: Annotated[int, typer.Option("--max-body", help="Bytes of a request.")] = 4 << 20,
    max_seconds: Annotated[float, typer.Option("--max-seconds", help="Seconds that an answer may take.")] = 600.0,
    grace: Annotated[
        int, typer.Option("--grace", help="Seconds that answers have to end when the server is told to.")
    ] = 30,
    rise: Annotated[
        float,
        typer.Option("--rise", help="Times as long as usual that others may wait for a token while a prompt is read."),
    ] = RISE,
    speculate: Annotated[bool, typer.Option("--speculate/--no-speculate", help="Guess tokens where it pays.")] = True,
    head: HeadMode = None,
    candidates: Candidates = None,
    kv: Kv = "8",
    hadamard: Hadamard = False,
    embedding: OwnEmbedding = None,
    latent: Latent = False,
) -> None:
    """Serve a model: OpenAI's interface at /v1, a page at /. The variable TELLME_API_KEY sets a key that clients must send."""
    try:
        from tellme.host.serve.app import Limits, Server
        from tellme.host.serve.listen import listen
        from tellme.host.serve.service import Service
    except ImportError as e:
        raise UserError(
            f"tellme serve needs {(e.name or str(e)).split('.')[0]}, which is not installed; install it: {advice('serve')}"
        ) from e

    for what, value, low in (
        ("--port", port, 0),
        ("--queue", queue, 0),
        ("--max-body", max_body, 1),
        ("--max-seconds", max_seconds, 1),
        ("--grace", grace, 0),
        ("--rise", rise, 1),
    ):
        if not value >= low or (what == "--port" and value > 65535):
            raise UserError(
                f"{what} must be {'from 0 to 65535' if what == '--port' else f'at least {low}'}, not {value}"
            )
    key = os.environ.get(KEY) or None
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{KEY} must be printable ASCII without spaces")
    console = Console(stderr=True)
    if key is None and not _loopback(host):
        console.print(f"tellme: everybody who reaches {host} can use the model; {KEY} sets a key", highlight=False)
    check_backend(backend, bitstream)
    cache = cache_format(kv, hadamard)
    path = find_model(model)
    config = preset(board_name, backend, bitstream, path, config_file, settings)
    memory = memory_timing(None, None) if backend == "sim" else None
    if backend == "sim":
        check_simulator(config)
    with Model.open(path, config, latent=latent, prepare=preparation(head, config, embedding)) as opened:
        check_rows(opened, embedding)
        choice = choose(opened.name, opened.screen_facts, head, candidates, opened.spec.vocab)
        tokenizer = opened.tokenizer
        program = compile_program(opened, config, context=context, slots=slots, kv=cache)
        with open_machine(
            backend, opened, path, program, console, memory=memory, bitstream=bitstream, latent=latent, head=choice
        ) as machine:
            ends = frozenset(opened.eos_ids) | tokenizer.end_ids
            service = Service(
                Engine(machine, queue=queue, rise=rise), tokenizer, ends, speculate=speculate, limit_s=max_seconds
            )
            hosts = ("localhost", "127.0.0.1", "[::1]", host) if _loopback(host) else ("*",)
            shown = name or (model if model == "demo" else opened.name)
            server = Server(
                service, shown, sampling=sampling_of(path), limits=Limits(body=max_body, key=key), hosts=hosts
            )
            # What is there by now stays: a full collection of it takes a board as long as a pass.
            gc.freeze()
            what = f"{shown} on {backend} {config.name}, {slots} slots of {program.context} positions"
            try:
                if not listen(
                    server.app,
                    host,
                    port,
                    grace,
                    lambda at: console.print(f"{what}: {at}", highlight=False, soft_wrap=True),
                ):
                    raise TellmeError(f"cannot listen at {host} port {port}; is another server there?")
            finally:
                service.stop()
