"""The `tellme` command. Every refused input is one line on stderr and exit code 2, a failed check 1."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup
from typer.exceptions import TyperException

from tellme.golden.config import PRESETS, AcceleratorConfig
from tellme.golden.project import advice
from tellme.golden.shapes import SHAPES
from tellme.host.checkpoints.checkpoint import is_checkpoint, open_checkpoint
from tellme.host.commands.bench import Measurement, measure, shape
from tellme.host.commands.boards import show_boards
from tellme.host.commands.build import NAMES as BUILDABLE
from tellme.host.commands.build import at_clock, build
from tellme.host.commands.doctor import Examination
from tellme.host.commands.evaluate import evaluate, tables
from tellme.host.commands.info import examine, print_info, try_program
from tellme.host.commands.synth import synth
from tellme.host.commands.tune import (
    LONG_FIFOS,
    SHORT,
    Measured,
    StreamMeter,
    read_offsets,
    region_beats,
    show_tuned,
    tune,
)
from tellme.host.commands.tune import TIMEOUT_S as TUNE_TIMEOUT_S
from tellme.host.errors import CheckError, TellmeError, UserError
from tellme.host.files import peek
from tellme.host.image.model import Model, convert, find_model, preset_of
from tellme.host.machine.backends import CheckedBackend, GoldenBackend, load_weights
from tellme.host.machine.board import BoardAccelerator, open_board
from tellme.host.machine.passes import Backend, chunks
from tellme.host.machine.placement import in_use
from tellme.host.machine.program import check_fits, compile_program, usable_context
from tellme.host.machine.simulation import (
    SimulatedAccelerator,
    check_simulator,
    memory_timing,
    open_simulated,
    unloadable,
)
from tellme.host.places import check_new_file, check_new_folder, replacing
from tellme.host.progress import Status
from tellme.host.provenance import commit, json_line, version
from tellme.host.tables import grid, pairs, show
from tellme.host.talk.generate import Generation, Report
from tellme.host.talk.session import Session
from tellme.host.talk.terminal import Chat
from tellme.host.text.sampling import Sampling
from tellme.host.text.streams import checked, drop_output, finish_output, output_failed, prepare_streams
from tellme.host.text.tokenizer import Tokenizer

BACKENDS = ("sim", "golden", "board")


def _fail(message: object, code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        print(f"tellme: {message}", file=sys.stderr, flush=True)
    raise SystemExit(code)


_FAILURES = (
    ("tellme.sim.runner", "SimulationError", "the simulation failed: ", 1),
    ("tellme.hw.cache", "CacheError", "", 2),
)
"""Errors of packages that are not imported here: module, class, words in front, exit code."""


class _Group(TyperGroup):
    """Reports errors, usage errors too, in one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        prepare_streams()
        try:
            code = super().main(*args, **kwargs)
            finish_output()
        except TellmeError as e:
            _fail(e, e.exit_code)
        except TyperException as e:
            if not e.format_message():  # help was shown because nothing was asked for
                raise SystemExit(e.exit_code) from None
            _fail(f"{' '.join(e.format_message().split())} (see tellme --help)", e.exit_code)
        except (KeyboardInterrupt, typer.Abort):
            _fail("interrupted", 130)
        except BrokenPipeError:
            drop_output()  # whoever read it has gone
            raise SystemExit(1) from None
        except OSError as e:
            if not output_failed(e):
                raise
            drop_output()
            _fail(f"standard output cannot be written ({e.strerror})", 1)
        except RuntimeError as e:
            for module, name, what, exit_code in _FAILURES:
                if isinstance(e, getattr(sys.modules.get(module), name, ())):
                    _fail(f"{what}{e}", exit_code)
            raise
        if code == 130:  # typer turns Ctrl-C into this code, without a word
            _fail("interrupted", 130)
        raise SystemExit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=_Group,
    help="Ternary language models on a generated accelerator.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tellme {version()}" + (f" ({commit()})" if commit() else ""))
        raise typer.Exit


@app.callback()
def _options(
    shown: Annotated[
        bool, typer.Option("--version", help="Print version and commit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def board(name: str) -> AcceleratorConfig:
    """The preset of a board."""
    if name not in PRESETS:
        raise UserError(f"board {name!r} is unknown; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


def _preset(name: str | None, backend: str, bitstream: Path | None, model: Path | None = None) -> AcceleratorConfig:
    """The preset of `--board`; without it the one that the bitstream was built as or that the image was made for; with
    neither kv260 on a board and tiny elsewhere."""
    if name is None and bitstream is not None:
        parts = bitstream.stem.split("-")
        name = parts[1] if len(parts) == 3 and parts[0] == "tellme" else None
    if name is None and model is not None:
        name = preset_of(model)
    return board(name or ("kv260" if backend == "board" else "tiny"))


Board = Annotated[str, typer.Option("--board", help=f"Preset of the accelerator: {', '.join(sorted(PRESETS))}.")]
Clock = Annotated[
    float | None, typer.Option("--clock", help="Clock of the accelerator, MHz; the preset's if not given.")
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


# ---- run -------------------------------------------------------------------------------------------------------------


def _json(report: Report, config: AcceleratorConfig, bit_exact: bool | None, *, model: str, backend: str) -> str:
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
        }
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
        ("decode", len(report.cycles_decode), sum(report.cycles_decode)),
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
        rate = f"{len(report.decode) / seconds:,.1f}" if report.decode else "-"
        console.print(
            f"wall clock: first token after {report.seconds_prefill:.3f} s, then {rate} tokens/s", highlight=False
        )


def _check_backend(backend: str, bitstream: Path | None) -> None:
    if backend not in BACKENDS:
        raise UserError(f"backend {backend!r} is unknown; there are {', '.join(BACKENDS)}")
    if bitstream is not None and backend != "board":
        raise UserError("--bitstream needs --backend board")


def _terminate(number: int, frame: Any) -> NoReturn:
    """SIGTERM: leave through every `finally`, so that a board is stopped before its memory goes."""
    raise SystemExit(128 + number)


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


def _machine(
    backend: str,
    opened: Model,
    path: Path,
    config: AcceleratorConfig,
    console: Console,
    *,
    memory: Any = None,
    waves: Path | None = None,
    check: bool = False,
    bitstream: Path | None = None,
    context: int | None = None,
    latent: bool = False,
) -> Backend:
    """Opens a back end with a model loaded."""
    if backend == "board":
        signal.signal(signal.SIGTERM, _terminate)
    what = {"golden": "opening the model", "sim": "building the simulation", "board": "loading bitstream and model"}
    with Status(console, what[backend]) as status:
        if backend == "golden":
            return GoldenBackend(load_weights(path, config, latent=latent), config, context=context)
        machine: Backend
        if backend == "board":
            machine = BoardAccelerator(opened, config, bitstream=bitstream, context=context)
        else:
            machine = SimulatedAccelerator(opened, config, timing=memory, waves=waves, context=context, status=status)
        if check:
            try:
                reference = GoldenBackend(load_weights(path, config, latent=latent), config, context=machine.context)
                return CheckedBackend(machine, reference)
            except BaseException:
                machine.close()
                raise
        return machine


@app.command()
def run(
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Text to continue, or what to say with --chat.")
    ] = None,
    prompt_tokens: Annotated[
        str | None, typer.Option("--prompt-ids", help="Token ids to continue, as 1,2,3, instead of text; ids come out.")
    ] = None,
    backend: BackendName = "sim",
    model: Annotated[str, typer.Option("--model", help=MODEL_HELP)] = "demo",
    board_name: AnyBoard = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Most tokens to make.")] = 64,
    temperature: Annotated[float, typer.Option("--temperature", help="0: greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Draw from the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens that reach p.")] = 1.0,
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
    latent: Latent = False,
    bitstream: Bitstream = None,
) -> None:
    """Continue a prompt, printing the text as it comes."""
    prompt = None if prompt is None else checked(prompt, "--prompt")
    stop = [checked(s, "--stop") for s in stop or ()]
    _check_backend(backend, bitstream)
    if prompt is None and prompt_tokens is None:
        raise UserError("Missing option '--prompt' (or --prompt-ids 1,2,3)")
    if prompt is not None and prompt_tokens is not None:
        raise UserError("give --prompt or --prompt-ids, not both")
    if prompt_tokens is not None and (as_chat or stop):
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
    memory = memory_timing(timing, stress) if backend == "sim" else None
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    path = find_model(model)
    config = _preset(board_name, backend, bitstream, path)
    errors = Console(stderr=True)
    if backend == "sim":
        check_simulator(config, waves=waves is not None)
    with Model.open(path, config, latent=latent, show=True) as opened:
        tokenizer: Tokenizer | None = None
        if prompt is None:
            prompt_ids = _ids(prompt_tokens or "", opened.spec.vocab)
        else:
            tokenizer = opened.tokenizer
            if as_chat:
                prompt_ids = tokenizer.encode_chat([{"role": "user", "content": prompt}])
            else:
                prompt_ids = tokenizer.encode(prompt)
        if max_new_tokens < 1:
            raise UserError(f"max-new-tokens must be at least 1, not {max_new_tokens}")
        context = compile_program(opened, config, context=positions).context
        if len(prompt_ids) > context:
            raise UserError(
                f"the prompt has {len(prompt_ids)} tokens, but the context of {opened.name} on board {config.name!r} "
                f"is {context} positions; shorten the prompt"
            )
        machine = _machine(
            backend,
            opened,
            path,
            config,
            errors,
            memory=memory,
            waves=waves,
            check=check,
            bitstream=bitstream,
            context=positions,
            latent=latent,
        )
        with machine:
            generation = Generation(
                machine,
                tokenizer,
                prompt_ids,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                eos_ids=opened.eos_ids,
                stops=stop,
            )
            report = generation.report
            config = machine.config  # on a board, at the clock that its bitstream was routed at
            if not as_json and not as_chat and prompt is not None:
                print(prompt, end="", flush=True)
            try:
                for piece in generation:
                    if not as_json:
                        print(piece, end="", flush=True)
            except CheckError:
                print(_json(report, config, False, model=opened.name, backend=backend) if as_json else "", flush=True)
                raise
    if as_json:
        print(_json(report, config, True if check else None, model=opened.name, backend=backend), flush=True)
    else:
        print(flush=True)
        _statistics(report, config, errors, backend)
        if isinstance(machine, CheckedBackend):
            errors.print(
                f"bit-exact: {machine.logits:,} logits of {machine.passes} passes equal the golden model's",
                highlight=False,
            )
    if report.stop == "context":
        print(f"tellme: stopped, the context of {machine.context} positions is full", file=sys.stderr)


# ---- eval ------------------------------------------------------------------------------------------------------------


@app.command("eval")
def eval_command(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    text: Annotated[Path, typer.Option("--text", help="UTF-8 text to score.")],
    backend: Annotated[str, typer.Option("--backend", help="golden: NumPy; sim: the RTL under Verilator.")] = "golden",
    reference: Annotated[str | None, typer.Option("--reference", help="Another model, to compare with.")] = None,
    reference_backend: Annotated[
        str, typer.Option("--reference-backend", help="golden, or torch: the checkpoint in float32.")
    ] = "golden",
    board_name: AnyBoard = None,
    documents: Annotated[
        bool, typer.Option("--documents", help="Each line is a text of its own, between document start and end.")
    ] = False,
    context: Annotated[int | None, typer.Option("--context", help="Tokens of a window; default: all.")] = None,
    stride: Annotated[int | None, typer.Option("--stride", help="From window to window; default: half.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Take so many tokens of the text.")] = None,
    latent: Latent = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Score a text: negative log-likelihood, perplexity, and where a model parts from a reference."""
    config = _preset(board_name, backend, None, find_model(model))
    if backend == "sim":
        check_simulator(config)
    result = evaluate(
        model,
        text,
        config,
        backend=backend,
        reference_name=reference,
        reference_backend=reference_backend,
        context=context,
        stride=stride,
        max_tokens=max_tokens,
        documents=documents,
        latent=latent,
        show=not as_json,
    )
    if as_json:
        print(json_line(result))
        return
    console = Console()
    for table in tables(result):
        show(table, console)


# ---- chat, doctor ----------------------------------------------------------------------------------------------------


@app.command()
def chat(
    backend: BackendName = "sim",
    model: Annotated[str, typer.Option("--model", help=MODEL_HELP)] = "demo",
    board_name: AnyBoard = None,
    bitstream: Bitstream = None,
    system: Annotated[str | None, typer.Option("--system", help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0: greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Draw from the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens that reach p.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draws.")] = 0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Text that ends an answer; repeatable.")] = None,
    context: Annotated[int | None, typer.Option("--context", help="Positions of the cache; default: all.")] = None,
    latent: Latent = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object for each answer; for what is refused, its error.")
    ] = False,
) -> None:
    """Talk to a model, a message a line; /help lists commands. Reads a pipe as well as a terminal."""
    system = None if system is None else checked(system, "--system")
    stop = [checked(s, "--stop") for s in stop or ()]
    _check_backend(backend, bitstream)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    path = find_model(model)
    config = _preset(board_name, backend, bitstream, path)
    memory = memory_timing(None, None) if backend == "sim" else None
    if backend == "sim":
        check_simulator(config)
    with Model.open(path, config, latent=latent) as opened:
        tokenizer = opened.tokenizer
        compile_program(opened, config, context=context)
        with _machine(
            backend,
            opened,
            path,
            config,
            Console(stderr=True),
            memory=memory,
            bitstream=bitstream,
            context=context,
            latent=latent,
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


@app.command()
def doctor(
    board_name: AnyBoard = None,
    bitstream: Bitstream = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a board; every line that fails says what to do."""
    config = _preset(board_name, "board", bitstream)
    signal.signal(signal.SIGTERM, _terminate)
    tell = None if as_json else lambda check: print(check.line(), flush=True)
    examination = Examination(config, bitstream=bitstream, tell=tell)
    ok = examination.run()
    if as_json:
        print(json_line({"ok": ok, "board": config.name, "checks": [c.record() for c in examination.checks]}))
    if not ok:
        raise SystemExit(1)


@app.command("tune")
def tune_command(
    backend: Annotated[
        str, typer.Option("--backend", help="board: a board, through PYNQ; sim: the RTL under Verilator.")
    ] = "board",
    board_name: Annotated[
        str | None, typer.Option("--board", help="Preset. Default: what the bitstream is for, else kv260.")
    ] = None,
    bitstream: Bitstream = None,
    offsets: Annotated[
        Path | None,
        typer.Option(
            "--offsets",
            help="CSV with columns hp0_offset_kib and so on: the published experiment at these offsets, instead of a search.",
        ),
    ] = None,
    timing: Annotated[
        str | None, typer.Option("--timing", help="Timing of the simulated memory. Default: the board's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Measure what the memory gives for a few dozen placements of the ports' regions, and keep the best for the board."""
    if backend not in ("sim", "board"):
        raise UserError(f"backend {backend!r} cannot be tuned; there are sim, board")
    if bitstream is not None and backend != "board":
        raise UserError("--bitstream needs --backend board")
    if timing is not None and backend != "sim":
        raise UserError("--timing needs --backend sim")
    config = _preset(board_name or (None if bitstream else "kv260"), "board", bitstream)
    given = None if offsets is None else read_offsets(offsets, config.ports)
    in_use(config, backend)  # what is stored must be readable before anything is measured
    beats = region_beats(config, max(SHORT, LONG_FIFOS * config.fifo_beats))
    signal.signal(signal.SIGTERM, _terminate)
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(Status(Console(stderr=True), "opening the accelerator"))
        device = (
            open_simulated(config, beats, timing, status) if backend == "sim" else open_board(config, beats, bitstream)
        )
        stack.callback(device.close)
        meter = StreamMeter(device, config, timeout_s=TUNE_TIMEOUT_S)
        total = "" if given is None else f" of {len(given)}"
        count = 0

        def done(point: Measured) -> None:
            nonlocal count
            count += 1
            status(f"{count}{total} placements measured")

        tuned = tune(meter, backend, offsets=given, done=done)
    if as_json:
        facts = {
            "board": config.name,
            "backend": backend,
            "simulated": backend == "sim",
            "clock_hz": config.clock_hz,
            "points": [m.record() for m in tuned.points],
            "best": tuned.best.record(),
            "in_use_before": tuned.before.record(),
            "stored": None if tuned.stored is None else str(tuned.stored),
        }
        print(json_line(facts))
        return
    show_tuned(tuned, config, backend, Console())


# ---- convert, info, verilog ------------------------------------------------------------------------------------------


@app.command("convert")
def convert_command(
    source: Annotated[Path, typer.Argument(help="Hugging Face folder, .gguf file, or demo.")],
    out: Annotated[Path, typer.Argument(help="The .tlm image to write.")],
    board_name: Board = "kv260",
    latent: Latent = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Convert a checkpoint into an image for one board (and those with the same beats)."""
    config = board(board_name)
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


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP)] = None,
    board_name: Annotated[
        str | None, typer.Option("--board", help="Only this preset; of a model, all are shown if left out.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check an image against its checksums.")] = False,
    latent: Latent = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show a board's parameters, or a model's shape, parts and statistics and which presets run it."""
    console = Console()
    if model is None:
        config = board(board_name or "tiny")
        fields = {f: getattr(config, f) for f in config.__dataclass_fields__} | {"beat_bytes": config.beat_bytes}
        if as_json:
            print(json_line({"board": config.name, "parameters": fields}))
        else:
            show(pairs(f"board {config.name}", list(fields.items())), console)
        return
    only = None if board_name is None else board(board_name)
    facts = examine(find_model(model), only, verify=verify, latent=latent)
    if as_json:
        print(json_line(facts))
    else:
        print_info(facts, console)


# ---- bench -----------------------------------------------------------------------------------------------------------


@app.command("bench")
def bench_command(
    model: Annotated[str, typer.Option("--model", help=f"Shape: {', '.join(SHAPES)}.")],
    board_name: Board = "kv260",
    context: Annotated[int, typer.Option("--context", help="Cached keys of the decode pass.")] = 128,
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens to prefill; 0: none.")] = 0,
    timing: Annotated[str, typer.Option("--timing", help="Timing of the simulated memory.")] = "kv260",
    clock: Clock = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Run every layer too, against multiplying them.")
    ] = False,
    trace: Annotated[Path | None, typer.Option("--trace", help="Write a trace for Perfetto or Chrome (JSON).")] = None,
    pictures: Annotated[Path | None, typer.Option("--pictures", help="Folder for pictures (SVG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Measure a model's real shape on the simulated accelerator, with synthetic weights."""
    config = at_clock(board(board_name), clock)
    memory = memory_timing(timing, None)
    if trace is not None:
        check_new_file(trace)
    if pictures is not None:
        from tellme.host.commands.pictures import draw, prepare

        prepare(pictures)
    shape(model)
    check_simulator(config)
    errors = Console(stderr=True)
    with Status(errors, "starting", lines=True) as status:
        measured = measure(
            model,
            config,
            memory,
            context=context,
            prompt=prompt,
            complete=complete,
            trace=trace is not None or pictures is not None,
            say=status,
            status=status,
        )
    # Figures first: they are there even if a file cannot be written.
    if as_json:
        print(json_line(measured.report()), flush=True)
    else:
        _bench_tables(measured, Console())
    if trace is not None:
        from tellme.sim.trace import write_chrome

        assert measured.trace is not None
        title = f"{model}, two layers, {context} keys, simulated {config.name}"
        with replacing(trace) as whole:
            write_chrome(measured.trace, whole, clock_hz=config.clock_hz, title=title)
    if pictures is not None:
        draw(measured, pictures)


@app.command("plan")
def plan_command(
    model: Annotated[str, typer.Option("--model", help=f"Shape: {', '.join(SHAPES)}.")],
    board_name: Board = "kv260",
    context: Annotated[int, typer.Option("--context", help="Cached keys of the decode pass.")] = 128,
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens to prefill; 0: none.")] = 128,
    timing: Annotated[str, typer.Option("--timing", help="Timing of the memory.")] = "kv260",
    clock: Clock = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Analyse the weight buffer: FIFO depth, its memory, predicted stalls and tokens/s. Estimated, nothing is simulated."""
    config = at_clock(board(board_name), clock)
    spec = shape(model)
    check_fits(spec, config, model)
    memory = memory_timing(timing, None)
    usable = usable_context(spec, config)
    for what, value in (("context", context), ("prompt", prompt)):
        if not 0 <= value < usable:
            raise UserError(f"{what} must be from 0 to {usable - 1} for {model} on {config.name!r}, not {value}")
    try:
        from tellme.sim.plan import fifo_memory, plan
    except ImportError as e:
        raise unloadable(e, "") from e

    passes = chunks(config, spec.heads // spec.kv_heads, prompt)
    placement = in_use(config, "sim")
    result = plan(spec, config, memory, context=context, prompt=passes, regions=placement.phases or None)
    if as_json:
        uram, ramb36 = fifo_memory(config)
        print(
            json_line(
                {
                    "model": model,
                    "board": config.name,
                    "clock_hz": config.clock_hz,
                    "timing": memory.name,
                    "estimated": True,
                    "context": context,
                    "prompt": prompt,
                    "tokens_per_s": result.tokens_per_s,
                    "ttft_s": result.ttft_s,
                    "cycles_per_pass": result.decode.cycles,
                    "bytes_per_pass": result.decode.beats * config.beat_bytes,
                    "share_of_beat_rate": result.decode.beats / result.decode.cycles,
                    "stalls": result.decode.stalls,
                    "memory_rate": result.rate,
                    "phases_kib": placement.kib,
                    "fifo_beats": config.fifo_beats,
                    "fifo_beats_needed": result.depth,
                    "uram": uram,
                    "ramb36": ramb36,
                    "depths": [
                        {"beats": d, "uram": u, "ramb36": b, "cycles_per_pass": c} for d, (u, b), c in result.depths
                    ],
                }
            )
        )
        return
    console = Console()
    d = result.decode
    rows: list[tuple[str, object]] = [
        ("ports' regions at", _regions(placement.kib)),
        ("memory, beats a cycle", f"{result.rate:.4f}"),
        ("tokens/s", f"{result.tokens_per_s:.1f}"),
        ("cycles a token", d.cycles),
        ("share of the beat rate", f"{d.beats / d.cycles:.1%}"),
        *((f"without a beat: {k}", f"{v:,} ({v / d.cycles:.2%})") for k, v in d.stalls.items()),
    ]
    if result.ttft_s is not None:
        rows.append((f"TTFT of {prompt} tokens, s", f"{result.ttft_s:.4f}"))
    rows += [("FIFO built, beats", config.fifo_beats), ("FIFO needed (within 0.1 %), beats", result.depth)]
    show(pairs(f"{model} on {config.name}, estimated, timing {memory.name}: {context} keys", rows), console)
    depths = [(f"{d:,}", f"{u} URAM288" if u else f"{b} RAMB36", c) for d, (u, b), c in result.depths]
    show(grid("FIFO depth", ("beats", "memory", "cycles a token"), depths), console)


def _regions(kib: list[int]) -> str:
    return f"{', '.join(map(str, kib))} KiB modulo 64" if kib else "one behind the other"


def _bench_tables(measured: Measurement, console: Console) -> None:
    r = measured.report()
    cycles = r["cycles_per_pass"]
    rows: list[tuple[str, object]] = [
        ("tokens/s", f"{r['tokens_per_s']:.1f}"),
        ("cycles a token", cycles),
        ("bytes read a token", r["bytes_per_pass"]),
        ("GB/s", f"{r['gb_per_s']:.2f}"),
        ("ports' regions at", _regions(r["phases_kib"])),
        ("share of the beat rate", f"{r['share_of_beat_rate']:.1%}"),
        *((f"without a beat: {k}", f"{v:,} ({v / cycles:.2%})") for k, v in r["stalls"].items()),
        *((f"busy: {k}", f"{v:.1%}") for k, v in r["busy"].items()),
    ]
    if r["complete_error"] is not None:
        rows.append(("cycles with every layer run", r["complete_cycles_per_pass"]))
        rows.append(("error of multiplying layers", f"{r['complete_error']:+.3%}"))
    title = f"{measured.model} on {r['board']}, simulated, timing {r['timing']}"
    show(pairs(f"{title}: decode with {r['context']} keys", rows), console)
    if r["ttft_s"] is not None:
        passes = []
        for p in r["prefill"]:
            stalls = ", ".join(f"{k} {v:,}" for k, v in p["stalls"].items() if v)
            passes.append((p["position"], p["lanes"], p["cycles"], f"{p['share_of_beat_rate']:.1%}", stalls))
        header = ("position", "lanes", "cycles", "share of the beat rate", "stalls")
        show(grid(f"prefill of {r['prompt']} tokens", header, passes, left=("stalls",)), console)
        console.print(f"TTFT {r['ttft_s']:.4f} s, {r['prefill_tokens_per_s']:.1f} tokens/s", highlight=False)
    console.print("every pass equals the golden model's, bit for bit", highlight=False)


@app.command("verilog")
def verilog_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the Verilog.")],
    board_name: Board = "kv260",
) -> None:
    """Generate the Verilog of an accelerator."""
    config = board(board_name)
    check_new_folder(out)
    if out.is_dir():
        check_new_file(out / "tellme.v")
    try:
        from tellme.hw.top import to_verilog
    except ImportError as e:
        raise UserError(f"the generator cannot be loaded ({e}); install it: {advice('generate')}") from e
    with Console(stderr=True).status(f"generating the Verilog of {config.name}"):
        text = to_verilog(config)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{out}: cannot be written ({e.strerror})") from e
    with replacing(out / "tellme.v") as whole:
        whole.write_text(text)
    print(f"{out / 'tellme.v'}: {config.name}, module tellme, {len(text):,} bytes")


# ---- boards, build ---------------------------------------------------------------------------------------------------


@app.command("boards")
def boards_command(
    clock: Clock = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the tables.")] = False,
) -> None:
    """List the boards: what is on them, what is built for them, and which models fit."""
    show_boards(as_json=as_json, clock=clock, console=Console())


@app.command("build")
def build_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the project; new, empty, or an earlier build of it.")],
    board_name: Annotated[str, typer.Option("--board", help=f"One of {', '.join(BUILDABLE)}.")] = "kv260",
    jobs: Annotated[int, typer.Option("--jobs", help="Processes that Vivado may use.")] = 4,
    clock: Clock = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Write a board's FPGA project, and make its bitstream if the tools are at hand."""
    built = build(board_name, out, jobs=jobs, clock=clock, console=Console(stderr=True))
    if as_json:
        print(built.json())
        return
    print(f"{built.out}: {built.name}, {len(built.files)} files")
    if "fmax_mhz" in built.facts:
        f = built.facts
        how = f.get("strategy", "nextpnr-ecp5")
        print(f"routed: {f['fmax_mhz']:.1f} MHz at most, it runs at {f['clock_mhz']:g} MHz ({how})")
    if "comb" in built.facts:
        print(f"used: {f['comb']:,} LUT4, {f['ff']:,} flip-flops, {f['ram']} block RAMs")
    if built.bitstream is not None:
        print(f"bitstream: {built.bitstream}")
    if built.command is not None:
        print(
            f"no bitstream yet: vivado is not on PATH. Run, where it is (2022.1 or newer, the folder may be copied):\n"
            f"  {built.command}"
        )


@app.command("synth")
def synth_command(
    board_name: Board = "kv260",
    block: Annotated[
        list[str] | None, typer.Option("--block", help="Only this block, or part of one (attention.array); repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", help="Yosys processes at a time.")] = 1,
    paths: Annotated[int, typer.Option("--paths", help="Longest paths shown of each block.")] = 1,
    ecp5: Annotated[bool, typer.Option("--ecp5", help="Also place and route two small blocks on an ECP5.")] = False,
) -> None:
    """Synthesise an accelerator: resources and logic levels, estimated by Yosys."""
    synth(board(board_name), blocks=block or (), as_json=as_json, jobs=jobs, paths=paths, routed=ecp5)


# ---- cache -----------------------------------------------------------------------------------------------------------

cache_app = typer.Typer(
    help="What is built once and kept: simulators and syntheses. Without a command: show it.",
    invoke_without_command=True,
)
app.add_typer(cache_app, name="cache")


@cache_app.callback()
def cache_command(
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


@cache_app.command("clear")
def cache_clear(
    unused_days: Annotated[
        float, typer.Option("--unused-days", help="Only what was not used for so many days.", min=0)
    ] = 0.0,
) -> None:
    """Remove what is in the cache, but for what a process uses now."""
    from tellme.hw import cache

    gone, kept = cache.clear(unused_days)
    still = f"; {len(kept)} in use stay" if kept else ""
    print(f"{cache.root()}: {len(gone)} entries removed, {sum(e.bytes for e in gone) / 1e6:,.1f} MB{still}")


def main() -> None:
    """Entry point of the `tellme` command."""
    app()


if __name__ == "__main__":
    main()
