"""`tellme run`: continues a prompt."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tellme.golden.config import AcceleratorConfig
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
from tellme.host.errors import CheckError, UserError
from tellme.host.image.model import Model, check_rows, find_model
from tellme.host.machine.backends import CheckedBackend
from tellme.host.machine.passes import Backend
from tellme.host.machine.program import Program, compile_program
from tellme.host.machine.screening import choose
from tellme.host.machine.simulation import check_simulator, memory_timing
from tellme.host.places import check_new_file
from tellme.host.provenance import json_line
from tellme.host.tables import grid, show
from tellme.host.talk.engine import Engine
from tellme.host.talk.generate import Generation, Report
from tellme.host.text.sampling import Sampling
from tellme.host.text.streams import checked
from tellme.host.text.tokenizer import Tokenizer

MinP = Annotated[float, typer.Option("--min-p", help="Draw from tokens at least p times as likely as the likeliest.")]
Logprobs = Annotated[
    bool, typer.Option("--logprobs", help="With --json: the logarithm of each new token's probability.")
]


def _json(
    report: Report, config: AcceleratorConfig, bit_exact: bool | None, *, machine: Backend, model: str, backend: str
) -> str:
    """The result of a run as one JSON object. The golden back end counts no cycles: null, [] and {}."""
    return json_line(
        {
            "prompt_ids": report.prompt_ids,
            "new_ids": report.new_ids,
            "text": report.text,
            "lanes": config.lanes,
            "beat_bytes": config.beat_bytes,
            "cycles_prefill": report.cycles_prefill,
            "cycles_decode": report.cycles_decode,
            "stalls": report.stalls,
            "bit_exact": bit_exact,
            "model": model,
            "backend": backend,
            "board": config.name,
            "clock_hz": config.clock_hz,
            "seconds": report.seconds,
            "head": machine.head.mode,
            "candidates": machine.head.candidates if machine.head.mode != "full" else None,
            "screened_passes": machine.screened,
            "fallbacks": machine.fallbacks,
            "kv": machine.kv.name,
            "hadamard": machine.kv.hadamard,
            "cached_tokens": report.cached,
            "logprobs": [c.logprob for c in report.chosen if c.logprob is not None] or None,
            "drafted": report.drafted,
            "accepted": report.accepted,
            "tokens_per_pass": report.tokens_per_pass,
        }
    )


def _guesses(report: Report, console: Console) -> None:
    """What speculation did, if it did something."""
    if report.drafted:
        console.print(
            f"guessed {report.drafted:,} tokens, {report.accepted:,} right; {report.tokens_per_pass or 0:.2f} tokens a decode pass",
            highlight=False,
        )


def _statistics(report: Report, config: AcceleratorConfig, console: Console, backend: str) -> None:
    """Cycles, stalls and rates of a run: at the board's clock when simulated, by the clock on the wall on a board."""
    n = len(report.prompt_ids)
    if report.cycles_prefill is None:
        console.print(
            f"golden model: {n} prompt and {len(report.new_ids)} new tokens in {report.seconds:.1f} s "
            "(no cycles are counted)"
        )
        return
    kind = "simulated" if backend == "sim" else "accelerator alone"
    title = (
        f"{'simulated ' if backend == 'sim' else ''}{config.name}: {config.lanes} lanes, {config.beat_bytes}-byte beat, "
        f"{config.clock_hz / 1e6:g} MHz"
    )
    rows = []
    for name, tokens, cycles in (
        ("prefill", n, report.cycles_prefill),
        ("decode", report.decoded if report.cycles_decode else 0, sum(report.cycles_decode)),
    ):
        if tokens:
            rate = f"{config.clock_hz * tokens / cycles:,.1f}" if cycles else "-"
            rows.append((name, tokens, cycles, f"{cycles / tokens:,.0f}", rate))
    show(grid(title, ("", "tokens", "cycles", "cycles/token", f"tokens/s ({kind})"), rows), console)
    total = report.cycles_prefill + sum(report.cycles_decode)
    causes = ", ".join(f"{cause} {cycles:,} ({cycles / max(total, 1):.1%})" for cause, cycles in report.stalls.items())
    console.print(f"cycles without a beat: {causes}", highlight=False)
    if backend == "sim":
        console.print(
            f"wall clock {report.seconds:.1f} s, {total / max(report.seconds, 1e-9):,.0f} simulated cycles a second"
        )
    else:
        seconds = report.seconds - report.seconds_prefill
        rate = f"{report.decoded / seconds:,.1f}" if report.decode else "-"
        console.print(
            f"wall clock: first token after {report.seconds_prefill:.3f} s, then {rate} tokens/s", highlight=False
        )


def _summary(report: Report, config: AcceleratorConfig, console: Console, backend: str, machine: Backend) -> None:
    """What is said of a run behind its text."""
    _statistics(report, config, console, backend)
    _guesses(report, console)
    if machine.screened and machine.spec is not None and machine.spec.ternary_head:
        console.print(
            f"ternary head: {machine.head.candidates} candidates in {machine.screened:,} passes", highlight=False
        )
    elif machine.screened:
        console.print(
            f"screened head: {machine.head.candidates} candidates in {machine.screened:,} passes, every row again in "
            f"{machine.fallbacks:,}",
            highlight=False,
        )
    if isinstance(machine, CheckedBackend):
        console.print(
            f"bit-exact: {machine.logits:,} logits of {machine.passes} passes equal the golden model's", highlight=False
        )


def _ids(text: str, vocab: int) -> list[int]:
    """Token ids of --prompt-ids."""
    try:
        ids = [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise UserError(f"--prompt-ids takes numbers with commas between, as 1,2,3, not {text!r}") from None
    if not ids:
        raise UserError("--prompt-ids names no token; give at least one, as 1,2,3")
    for token in ids:
        if not 0 <= token < vocab:
            raise UserError(f"--prompt-ids has token {token}, the model's are 0 to {vocab - 1}")
    return ids


def _prompt(
    prompt: str | None, prompt_tokens: str | None, tokenizer: Tokenizer | None, vocab: int, *, as_chat: bool
) -> list[int]:
    """Tokens of --prompt or --prompt-ids."""
    if prompt is None or tokenizer is None:
        return _ids(prompt_tokens or "", vocab)
    return tokenizer.encode_chat([{"role": "user", "content": prompt}]) if as_chat else tokenizer.encode(prompt)


def _check_lengths(name: str, program: Program, prompt: int, max_new_tokens: int) -> None:
    """Refuses what the context cannot hold, before a machine is opened."""
    if max_new_tokens < 1:
        raise UserError(f"max-new-tokens must be at least 1, not {max_new_tokens}")
    if prompt > program.context:
        raise UserError(
            f"the prompt has {prompt} tokens, but the context of {name} on board {program.config.name!r} "
            f"is {program.context} positions; shorten the prompt"
        )


def _say(generation: Generation, *, silent: bool) -> None:
    """Prints the text as it comes."""
    for piece in generation:
        if not silent:
            print(piece, end="", flush=True)


def _check_options(
    prompt: str | None,
    prompt_tokens: str | None,
    backend: str,
    *,
    text_only: bool,
    check: bool,
    stress: int | None,
    timing: str | None,
    waves: Path | None,
) -> None:
    """Refuses options that do not go together."""
    if prompt is None and prompt_tokens is None:
        raise UserError("Missing option '--prompt' (or --prompt-ids 1,2,3)")
    if prompt is not None and prompt_tokens is not None:
        raise UserError("give --prompt or --prompt-ids, not both")
    if prompt_tokens is not None and text_only:
        raise UserError("--prompt-ids works without text; leave --chat and --stop out")
    if stress is not None and timing is not None:
        raise UserError("--stress brings its own memory timing; leave --timing out")
    if stress is not None and stress < 0:
        raise UserError(f"--stress takes a seed of 0 or more, not {stress}")
    if backend == "golden" and check:
        raise UserError("--check needs --backend sim or board; the golden model is what they are checked against")
    if backend != "sim":
        for option, value in (("--stress", stress), ("--timing", timing), ("--waves", waves)):
            if value is not None:
                raise UserError(f"{option} needs --backend sim")
    if waves is not None:
        check_new_file(waves)


def command(
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Text to continue, or what to say with --chat.")
    ] = None,
    prompt_tokens: Annotated[
        str | None, typer.Option("--prompt-ids", help="Token ids to continue, as 1,2,3, instead of text; ids come out.")
    ] = None,
    backend: BackendName = "sim",
    model: Annotated[str, typer.Option("--model", help=MODEL_HELP)] = "demo",
    board_name: AnyBoard = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Most tokens to make.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", help="0: greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Draw from the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens that reach p.")] = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draws.")] = 0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Text that ends generation; repeatable.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare every logit with the golden model's.")] = False,
    stress: Annotated[int | None, typer.Option("--stress", help="Seed of random stalls on every channel.")] = None,
    timing: Annotated[str | None, typer.Option("--timing", help="Timing of the simulated memory.")] = None,
    waves: Annotated[Path | None, typer.Option("--waves", help="Write an FST wave file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
    as_chat: Annotated[
        bool, typer.Option("--chat", help="Give the prompt to the model's chat template, as a user.")
    ] = False,
    positions: Annotated[
        int | None, typer.Option("--context", help="Positions of the cache; all that fit if left out.")
    ] = None,
    head: HeadMode = None,
    candidates: Candidates = None,
    kv: Kv = "8",
    hadamard: Hadamard = False,
    embedding: OwnEmbedding = None,
    speculate: Speculate = False,
    prompt_cache: PromptCache = None,
    logprobs: Logprobs = False,
    latent: Latent = False,
    bitstream: Bitstream = None,
) -> None:
    """Continue a prompt, printing the text as it comes."""
    prompt = None if prompt is None else checked(prompt, "--prompt")
    stop = [checked(s, "--stop") for s in stop or ()]
    check_backend(backend, bitstream)
    _check_options(
        prompt,
        prompt_tokens,
        backend,
        text_only=as_chat or bool(stop),
        check=check,
        stress=stress,
        timing=timing,
        waves=waves,
    )
    if logprobs and not as_json:
        raise UserError("--logprobs needs --json")
    memory = memory_timing(timing, stress) if backend == "sim" else None
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    path = find_model(model)
    config = preset(board_name, backend, bitstream, path, config_file, settings)
    errors = Console(stderr=True)
    if backend == "sim":
        check_simulator(config, waves=waves is not None)
    with Model.open(path, config, latent=latent, show=True, prepare=preparation(head, config, embedding)) as opened:
        check_rows(opened, embedding)
        choice = choose(opened.name, opened.screen_facts, head, candidates, opened.spec.vocab)
        tokenizer = None if prompt is None else opened.tokenizer
        prompt_ids = _prompt(prompt, prompt_tokens, tokenizer, opened.spec.vocab, as_chat=as_chat)
        program = compile_program(opened, config, context=positions, kv=cache_format(kv, hadamard))
        _check_lengths(opened.name, program, len(prompt_ids), max_new_tokens)
        where = (backend, opened, path, program, errors)
        machine = open_machine(
            *where,
            memory=memory,
            waves=waves,
            check=check,
            bitstream=bitstream,
            latent=latent,
            head=choice,
        )
        with machine:
            engine = Engine(machine, whole_prompts=True)
            generation = Generation(
                engine,
                tokenizer,
                prompt_ids,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                eos_ids=opened.eos_ids,
                stops=stop,
                speculate=speculate,
                logprobs=logprobs,
            )
            report = generation.report
            config = machine.config  # on a board, at the clock that its bitstream was routed at
            result = partial(_json, report, config, machine=machine, model=opened.name, backend=backend)
            if not as_json and not as_chat and prompt is not None:
                print(prompt, end="", flush=True)
            try:
                with cached_in(prompt_cache, opened, engine):
                    _say(generation, silent=as_json)
            except CheckError:
                print(result(False) if as_json else "", flush=True)
                raise
    if as_json:
        print(result(True if check else None), flush=True)
    else:
        print(flush=True)
        _summary(report, config, errors, backend, machine)
    if report.stop == "context":
        print(f"tellme: stopped, the context of {machine.context} positions is full", file=sys.stderr)
