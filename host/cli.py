"""The `tellme` command. Every refused input is one line on stderr and exit code 2, a failed check 1."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup
from typer.exceptions import TyperException

from golden.config import PRESETS, AcceleratorConfig
from golden.schedule import segments
from host.backends import CheckedBackend, GoldenBackend, load_weights
from host.checkpoint import read_checkpoint
from host.errors import CheckError, TellmeError, UserError
from host.generate import Generation, Report
from host.model import Model, convert, find_model
from host.passes import Backend
from host.program import Program, compile_program
from host.sampling import Sampling
from host.simulation import SimulatedAccelerator, memory_timing
from host.synth import synth
from host.tokenizer import Tokenizer

BACKENDS = ("sim", "golden")


def _fail(message: object, code: int) -> NoReturn:
    print(f"tellme: {message}", file=sys.stderr)
    raise SystemExit(code)


class _Group(TyperGroup):
    """Reports errors, usage errors too, in one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except TellmeError as e:
            _fail(e, e.exit_code)
        except TyperException as e:
            if not e.format_message():  # help was shown because nothing was asked for
                raise SystemExit(e.exit_code) from None
            _fail(f"{' '.join(e.format_message().split())} (see tellme --help)", e.exit_code)
        except (KeyboardInterrupt, typer.Abort):
            _fail("interrupted", 130)
        except BrokenPipeError:
            # Whoever read our output has gone; nothing may be flushed to it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except RuntimeError as e:
            runner = sys.modules.get("sim.runner")
            if runner is None or not isinstance(e, runner.SimulationError):
                raise
            _fail(f"the simulation failed: {e}", 1)
        raise SystemExit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=_Group,
    help="Ternary language models on a generated accelerator.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def board(name: str) -> AcceleratorConfig:
    """The preset of a board."""
    if name not in PRESETS:
        raise UserError(f"board {name!r} is unknown; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]


Board = Annotated[str, typer.Option("--board", help=f"Preset of the accelerator: {', '.join(sorted(PRESETS))}.")]


# ---- run -------------------------------------------------------------------------------------------------------------


def _json(report: Report, config: AcceleratorConfig, bit_exact: bool | None) -> str:
    """The result of a run as one JSON object. The golden back end counts no cycles: null, [] and {}."""
    return json.dumps(
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
        },
        ensure_ascii=False,
    )


def _statistics(report: Report, config: AcceleratorConfig, console: Console) -> None:
    """Cycles, stalls and rates of a run, at the board's clock."""
    n = len(report.prompt_ids)
    if report.cycles_prefill is None:
        console.print(
            f"golden model: {n} prompt and {len(report.new_ids)} new tokens in {report.seconds:.1f} s "
            "(no cycles are counted)"
        )
        return
    table = Table(
        title=f"simulated {config.name}: {config.lanes} lanes, {config.beat_bytes}-byte beat, "
        f"{config.clock_hz / 1e6:g} MHz",
        title_justify="left",
    )
    for name in ("", "tokens", "cycles", "cycles/token", "tokens/s (simulated)"):
        table.add_column(name, justify="left" if not name else "right")
    rows = [("prefill", n, report.cycles_prefill)]
    if report.cycles_decode:
        rows.append(("decode", len(report.cycles_decode), sum(report.cycles_decode)))
    for name, tokens, cycles in rows:
        rate = f"{config.clock_hz * tokens / cycles:,.1f}" if cycles else "-"
        table.add_row(name, f"{tokens:,}", f"{cycles:,}", f"{cycles / tokens:,.0f}", rate)
    console.print(table)
    total = report.cycles_prefill + sum(report.cycles_decode)
    causes = ", ".join(f"{cause} {cycles:,} ({cycles / max(total, 1):.1%})" for cause, cycles in report.stalls.items())
    console.print(f"cycles without a beat: {causes}", highlight=False)
    console.print(
        f"wall clock {report.seconds:.1f} s, {total / max(report.seconds, 1e-9):,.0f} simulated cycles a second"
    )


@app.command()
def run(
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")],
    backend: Annotated[str, typer.Option("--backend", help="sim: the RTL under Verilator; golden: NumPy.")] = "sim",
    model: Annotated[str, typer.Option("--model", help="demo, a checkpoint folder, or a .tlm image.")] = "demo",
    board_name: Board = "tiny",
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
) -> None:
    """Continue a prompt, printing the text as it comes."""
    if backend not in BACKENDS:
        raise UserError(f"backend {backend!r} is unknown; there are {', '.join(BACKENDS)}")
    if stress is not None and timing is not None:
        raise UserError("--stress brings its own memory timing; leave --timing out")
    if stress is not None and stress < 0:
        raise UserError(f"--stress takes a seed of 0 or more, not {stress}")
    if backend == "golden":
        for option, value in (("--check", check), ("--stress", stress), ("--timing", timing), ("--waves", waves)):
            if value is not None and value is not False:
                raise UserError(
                    f"{option} needs --backend sim; the golden model is what simulations are checked against"
                )
    if waves is not None and not waves.resolve().parent.is_dir():
        raise UserError(f"{waves}: its folder does not exist")
    memory = memory_timing(timing, stress) if backend == "sim" else None
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    config = board(board_name)
    path = find_model(model)
    errors = Console(stderr=True)
    with Model.open(path, config) as opened:
        tokenizer: Tokenizer = opened.tokenizer
        prompt_ids = tokenizer.encode(prompt)
        eos = set(opened.eos_ids) | ({tokenizer.eos_id} if tokenizer.eos_id is not None else set())
        if max_new_tokens < 1:
            raise UserError(f"max-new-tokens must be at least 1, not {max_new_tokens}")
        context = compile_program(opened, config).context
        if len(prompt_ids) > context:
            raise UserError(
                f"the prompt has {len(prompt_ids)} tokens, but the context of {opened.name} on board {config.name!r} "
                f"is {context} positions; shorten the prompt"
            )
        with errors.status("opening the model" if backend == "golden" else "building the simulation"):
            if memory is None:
                machine: Backend = GoldenBackend(load_weights(path, config), config)
            else:
                machine = SimulatedAccelerator(opened, config, timing=memory, waves=waves)
                if check:
                    try:
                        machine = CheckedBackend(machine, GoldenBackend(load_weights(path, config), config))
                    except BaseException:
                        machine.close()
                        raise
        with machine:
            generation = Generation(
                machine,
                tokenizer,
                prompt_ids,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                eos_ids=eos,
                stops=stop or (),
            )
            report = generation.report
            if not as_json:
                print(prompt, end="", flush=True)
            try:
                for piece in generation:
                    if not as_json:
                        print(piece, end="", flush=True)
            except CheckError:
                print(_json(report, config, False) if as_json else "", flush=True)
                raise
    if as_json:
        print(_json(report, config, True if check else None), flush=True)
    else:
        print(flush=True)
        _statistics(report, config, errors)
        if isinstance(machine, CheckedBackend):
            errors.print(
                f"bit-exact: {machine.logits:,} logits of {machine.passes} passes equal the golden model's",
                highlight=False,
            )
    if report.stop == "context":
        print(f"tellme: stopped, the context of {machine.context} positions is full", file=sys.stderr)


# ---- convert, info, verilog ------------------------------------------------------------------------------------------


@app.command("convert")
def convert_command(
    source: Annotated[Path, typer.Argument(help="Hugging Face checkpoint folder, or demo.")],
    out: Annotated[Path, typer.Argument(help="The .tlm image to write.")],
    board_name: Board = "tiny",
) -> None:
    """Convert a checkpoint into an image for one board."""
    config = board(board_name)
    path = find_model(str(source))
    if not path.is_dir():
        raise UserError(f"{path}: is not a checkpoint folder; images are made from checkpoints only")
    if out.suffix != ".tlm":
        raise UserError(f"{out}: an image's name ends in .tlm")
    if out.is_dir():
        raise UserError(f"{out}: is a folder; give the name of a file")
    if not out.resolve().parent.is_dir():
        raise UserError(f"{out}: its folder does not exist")
    checkpoint = read_checkpoint(path)
    convert(checkpoint, out, config)
    print(f"{out}: {checkpoint.name} for {config.name}, {out.stat().st_size:,} bytes")


def _rows(title: str, rows: Sequence[tuple[str, object]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
    return table


def _decode_beats(program: Program, position: int) -> int:
    """Beats that a decode pass at a position reads."""
    parts = segments(program.config, program.code, program.program_address, [position], [0], 1)
    return sum(s.beats for s in parts)


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="demo, a checkpoint folder, or a .tlm image.")] = None,
    board_name: Board = "tiny",
) -> None:
    """Show a board's parameters, and a model's shape and memory on it."""
    config = board(board_name)
    console = Console()
    if model is None:
        fields = [(f, getattr(config, f)) for f in config.__dataclass_fields__]
        console.print(_rows(f"board {config.name}", [*fields, ("beat_bytes", config.beat_bytes)]))
        return
    with Model.open(find_model(model), config) as opened:
        spec = opened.spec
        shape = [(name, getattr(spec, name)) for name in spec.__dataclass_fields__]
        weights = spec.layers * spec.layer_weights
        console.print(_rows(f"model {opened.name}", [*shape, ("ternary weights", weights)]))
        program = compile_program(opened, config)
        width = config.beat_bytes
        beats = _decode_beats(program, program.context - 1)
        console.print(
            _rows(
                f"on board {config.name}",
                [
                    ("positions of a cache slot", program.context),
                    ("descriptors", program.length),
                    ("image, bytes", opened.image.beats * width),
                    ("logits, bytes", (program.kv_address - program.logits_address) * width),
                    ("KV cache, bytes", (program.window_beats - program.kv_address) * width),
                    ("buffer, bytes", program.window_beats * width),
                    ("beats read by a decode pass, last position", beats),
                    ("tokens/s at most, at a beat a cycle", f"{config.clock_hz / beats:,.1f}"),
                ],
            )
        )


@app.command("verilog")
def verilog_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the Verilog.")],
    board_name: Board = "kv260",
) -> None:
    """Generate the Verilog of an accelerator."""
    config = board(board_name)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder")
    try:
        from hw.top import to_verilog
    except ImportError as e:
        raise UserError(f"the generator cannot be loaded ({e}); install the project with its dependencies") from e
    text = to_verilog(config)
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix="tellme.v.", dir=out)
        with os.fdopen(handle, "w") as f:
            f.write(text)
        os.chmod(name, 0o644)
        os.replace(name, out / "tellme.v")
    except OSError as e:
        raise UserError(f"{out}: cannot be written ({e.strerror})") from e
    print(f"{out / 'tellme.v'}: {config.name}, module tellme, {len(text):,} bytes")


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


def main() -> None:
    """Entry point of the `tellme` command."""
    app()
