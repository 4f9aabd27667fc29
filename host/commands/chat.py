"""`tellme chat`: a conversation in a terminal or a pipe."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from tellme.host.commands.common import (
    MODEL_HELP,
    AnyBoard,
    BackendName,
    Bitstream,
    Candidates,
    ConfigFile,
    HeadMode,
    Latent,
    Settings,
    check_backend,
    open_machine,
    preparation,
    preset,
)
from tellme.host.image.model import Model, find_model
from tellme.host.machine.program import compile_program
from tellme.host.machine.screening import choose
from tellme.host.machine.simulation import check_simulator, memory_timing
from tellme.host.talk.session import Session
from tellme.host.talk.terminal import Chat
from tellme.host.text.sampling import Sampling
from tellme.host.text.streams import checked


def command(
    backend: BackendName = "sim",
    model: Annotated[str, typer.Option("--model", help=MODEL_HELP)] = "demo",
    board_name: AnyBoard = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    bitstream: Bitstream = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0: greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Draw from the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens that reach p.")] = 1.0,
    min_p: Annotated[
        float, typer.Option("--min-p", help="Draw from tokens at least p times as likely as the likeliest.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draws.")] = 0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Text that ends an answer; repeatable.")] = None,
    context: Annotated[int | None, typer.Option("--context", help="Positions of the cache; default: all.")] = None,
    head: HeadMode = None,
    candidates: Candidates = None,
    latent: Latent = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each answer; for what is refused, its error.")
    ] = False,
) -> None:
    """Talk to a model, a message a line; /help lists commands. Reads a pipe as well as a terminal."""
    system = None if system is None else checked(system, "--system")
    stop = [checked(s, "--stop") for s in stop or ()]
    check_backend(backend, bitstream)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    path = find_model(model)
    config = preset(board_name, backend, bitstream, path, config_file, settings)
    memory = memory_timing(None, None) if backend == "sim" else None
    if backend == "sim":
        check_simulator(config)
    with Model.open(path, config, latent=latent, prepare=preparation(head, config)) as opened:
        choice = choose(opened.name, opened.screen_facts, head, candidates, opened.spec.vocab)
        tokenizer = opened.tokenizer
        program = compile_program(opened, config, context=context)
        with open_machine(
            backend,
            opened,
            path,
            program,
            Console(stderr=True),
            memory=memory,
            bitstream=bitstream,
            latent=latent,
            head=choice,
        ) as machine:
            session = Session(
                machine,
                tokenizer,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                eos_ids=opened.eos_ids,
                stops=stop,
                system=system,
            )
            refused = Chat(session, backend, model=opened.name, as_json=as_json).run()
    if refused:
        raise SystemExit(2)
