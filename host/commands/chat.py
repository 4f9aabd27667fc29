"""`tellme chat`: a conversation in a terminal or a pipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console

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
    PromptCache,
    RepetitionPenalty,
    Settings,
    Speculate,
    cache_format,
    cached_in,
    check_backend,
    open_machine,
    preparation,
    preset,
)
from tellme.host.image.model import Model, check_rows, find_model
from tellme.host.machine.program import compile_program
from tellme.host.machine.screening import choose
from tellme.host.machine.simulation import check_simulator, memory_timing
from tellme.host.talk.session import Session
from tellme.host.talk.terminal import Chat
from tellme.host.text.defaults import sampling_of
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
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="0: greedy. Default of this and the next: the model's, else greedy."),
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw from the k likeliest tokens; 0: all.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Draw from the likeliest tokens that reach p.")] = None,
    min_p: Annotated[
        float | None, typer.Option("--min-p", help="Draw from tokens at least p times as likely as the likeliest.")
    ] = None,
    repetition_penalty: RepetitionPenalty | None = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draws.")] = 0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Text that ends an answer; repeatable.")] = None,
    context: Annotated[int | None, typer.Option("--context", help="Positions of the cache; default: all.")] = None,
    head: HeadMode = None,
    candidates: Candidates = None,
    kv: Kv = "8",
    hadamard: Hadamard = False,
    embedding: OwnEmbedding = None,
    speculate: Speculate = False,
    prompt_cache: PromptCache = None,
    latent: Latent = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each answer; for what is refused, its error.")
    ] = False,
) -> None:
    """Talk to a model, a message a line; /help lists commands. Reads a pipe as well as a terminal."""
    system = None if system is None else checked(system, "--system")
    stop = [checked(s, "--stop") for s in stop or ()]
    check_backend(backend, bitstream)
    cache = cache_format(kv, hadamard)
    path = find_model(model)
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    wanted: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    sampling = replace(sampling_of(path, Sampling()), **wanted, seed=seed)
    config = preset(board_name, backend, bitstream, path, config_file, settings)
    memory = memory_timing(None, None) if backend == "sim" else None
    if backend == "sim":
        check_simulator(config)
    with Model.open(path, config, latent=latent, prepare=preparation(head, config, embedding)) as opened:
        check_rows(opened, embedding)
        choice = choose(opened.name, opened.screen_facts, head, candidates, opened.spec.vocab)
        tokenizer = opened.tokenizer
        program = compile_program(opened, config, context=context, kv=cache)
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
                speculate=speculate,
            )
            with cached_in(prompt_cache, opened, session.engine):
                refused = Chat(session, backend, model=opened.name, as_json=as_json).run()
    if refused:
        raise SystemExit(2)
