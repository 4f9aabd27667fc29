"""What several commands share: their options, the preset that is meant, opening a back end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console

from tellme.golden.config import PRESETS, AcceleratorConfig
from tellme.golden.kv import CACHE_FORMATS, CacheFormat
from tellme.golden.screen import MAX_PLANES, MULTIPLE, Screen
from tellme.golden.shapes import SHAPES
from tellme.golden.spec import ModelSpec
from tellme.host.checkpoints.checkpoint import Checkpoint, with_int8_inputs
from tellme.host.configuration import resolve
from tellme.host.errors import UserError
from tellme.host.image.model import DEMOS, Model, preset_of, weight_format_of
from tellme.host.image.screening import with_head
from tellme.host.machine.backends import CheckedBackend, GoldenBackend, load_weights
from tellme.host.machine.board import BoardAccelerator
from tellme.host.machine.passes import Backend
from tellme.host.machine.program import Program
from tellme.host.machine.screening import CANDIDATES, FULL, HeadChoice, check_mode, choose
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.host.places import check_new_file
from tellme.host.progress import Status
from tellme.host.talk import prompt_cache
from tellme.host.talk.engine import Engine

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
Clock = Annotated[
    float | None, typer.Option("--clock", help="Clock of the accelerator, MHz; the preset's if not given.")
]
Latent = Annotated[
    bool,
    typer.Option("--latent", help="Quantise floating-point weights that nothing declares to be latent ternary ones."),
]
EMBEDDINGS = ("exact", "int8")
Embedding = Annotated[
    str,
    typer.Option(
        "--embedding",
        help="Rows that tokens begin with: exact, as the checkpoint has them; int8, which takes less space.",
    ),
]


OwnEmbedding = Annotated[
    str | None,
    typer.Option(
        "--embedding", help="Rows that tokens begin with: exact or int8; default: exact, or what an image has."
    ),
]


def check_embedding(name: str | None) -> None:
    """Raises UserError unless it is one of `EMBEDDINGS`, or nothing."""
    if name is not None and name not in EMBEDDINGS:
        raise UserError(f"--embedding must be {' or '.join(EMBEDDINGS)}, not {name!r}")


SHAPE_HELP = (
    f"Shape: {', '.join(SHAPES)}, or that of {' or '.join(DEMOS)}, a config.json, a .gguf file or a .tlm image."
)
MODEL_HELP = f"{', '.join(DEMOS)}, a Hugging Face folder, a .gguf file, or a .tlm image."

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

HeadMode = Annotated[
    str | None,
    typer.Option(
        "--head",
        help="full: score every row of the head; screened: only candidates that its ternary copy chooses; auto: every row "
        "where these are in doubt. Default: auto if the image has a calibrated copy, else full. A head that is ternary is exact in each: "
        "full gives every logit, the others (default) those of the candidates.",
    ),
]
Candidates = Annotated[
    int | None,
    typer.Option(
        "--candidates", help=f"Candidates of a screened head, a multiple of {MULTIPLE}. Default: {CANDIDATES}."
    ),
]

Kv = Annotated[
    str,
    typer.Option(
        "--kv",
        help="Bits of keys and values in the cache: 8; 8-4, keys in 8 and values in 4; or 4, which may be far off at rare "
        "positions, less so with --hadamard.",
    ),
]

Hadamard = Annotated[
    bool,
    typer.Option(
        "--hadamard/--no-hadamard",
        help="Turn queries and keys by a Hadamard matrix, which makes the errors of 4-bit keys smaller; only on accelerators "
        "built with hadamard=true.",
    ),
]

_ONE_IN_A_HUNDRED = "of 4 bits, which changes one or two likeliest tokens in a hundred of the demo's and more of some models; tellme eval"
NARROW_WARNINGS = {
    "8-4": f"values of the cache are {_ONE_IN_A_HUNDRED} --kv 8-4 --reference tells it of yours",
    "8-4 --hadamard": f"values of the cache are {_ONE_IN_A_HUNDRED} --kv 8-4 --hadamard --reference tells it of yours",
    "4 --hadamard": f"keys and values of the cache are {_ONE_IN_A_HUNDRED} --kv 4 --hadamard --reference tells it of yours",
    "4": "keys and values of the cache are of 4 bits: text may go another way, and rare positions may be far off; "
    "tellme eval --kv 4 --reference tells it of your model",
}
"""What is said before a model runs so, by what `--kv` is given (docs/measurements/kv.md)."""

Context = Annotated[int, typer.Option("--context", help="Cached keys of the decode pass.")]
Prompt = Annotated[int, typer.Option("--prompt", help="Tokens to prefill; 0: none.")]
Timing = Annotated[str, typer.Option("--timing", help="Timing of the memory.")]
BenchHead = Annotated[
    str, typer.Option("--head", help="full: every row of the head; screened: candidates that its ternary copy chooses.")
]
Planes = Annotated[int, typer.Option("--planes", help="Ternary planes of that copy, 1 or 2.")]
Speculate = Annotated[
    bool,
    typer.Option(
        "--speculate",
        help="Guess tokens from what was said and check several in a pass, where it pays; the text is the same.",
    ),
]
PromptCache = Annotated[
    Path | None,
    typer.Option(
        "--prompt-cache", help="File that keeps the cache: read at the start if it is there, written at the end."
    ),
]
RepetitionPenalty = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1: tokens that were there already become less likely.")
]


def cache_format(name: str, hadamard: bool = False) -> CacheFormat:
    """The elements that `--kv` and `--hadamard` choose.

    Raises
    ------
    UserError : there are none of that name.
    """
    if name not in CACHE_FORMATS:
        raise UserError(
            f"--kv must be {', '.join(list(CACHE_FORMATS)[:-1])} or {list(CACHE_FORMATS)[-1]}, not {name!r}"
        )
    return replace(CACHE_FORMATS[name], hadamard=hadamard)


def bench_candidates(head: str, candidates: int | None, planes: int, spec: ModelSpec) -> int:
    """Candidates that a shape is measured with, 0: the full head, of a ternary one every logit."""
    if head not in ("full", "screened"):
        raise UserError(f"--head of a shape must be full or screened, not {head!r}; nothing falls back here")
    if not 1 <= planes <= MAX_PLANES:
        raise UserError(f"--planes must be 1 or {MAX_PLANES}, not {planes}")
    if spec.ternary_head and planes != 1:
        raise UserError("--planes is of a ternary copy of the head; this model's head is ternary itself, leave it out")
    some = np.zeros((0, planes), np.uint16)
    ternary = Screen(np.zeros((0, planes, 0), np.int8), some, np.float32(1))
    choice = choose("the shape", ternary, head, candidates, spec.vocab)
    return choice.candidates if head == "screened" else 0


def preparation(
    mode: str | None, config: AcceleratorConfig, embedding: str | None = None
) -> Callable[[Checkpoint], Checkpoint]:
    """What `--head` and `--embedding` ask to be done to a checkpoint before it is converted."""
    check_mode(mode)
    check_embedding(embedding)

    def prepare(checkpoint: Checkpoint) -> Checkpoint:
        if embedding == "int8":
            checkpoint = with_int8_inputs(checkpoint)
        return with_head(checkpoint, config, mode)

    return prepare


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
    as or that the image was made for, with the format of weights that the image or the demo model has; with neither kv260 on a board
    and tiny elsewhere."""
    if name is None and file is None and bitstream is not None:
        parts = bitstream.stem.split("-")
        name = parts[1] if len(parts) == 3 and parts[0] == "tellme" else None
    if name is None and file is None and model is not None:
        name = preset_of(model)
        if kind := weight_format_of(model):
            settings = [f"weight_format={kind}", *(settings or ())]
    return board(name, file, settings, default="kv260" if backend == "board" else "tiny")


@contextmanager
def cached_in(file: Path | None, model: Model, engine: Engine) -> Iterator[None]:
    """Begins with the keys and values of a file, if it is there, and writes it at the end."""
    if file is None:
        yield
        return
    if file.exists():
        prompt_cache.load(file, model, engine)
    else:
        check_new_file(file)
    yield
    prompt_cache.save(file, model, engine)


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
    head: HeadChoice = FULL,
) -> Backend:
    """Opens a back end with a model loaded, which runs `head`; says what a cache of 4 bits may cost."""
    if warning := NARROW_WARNINGS.get(program.kv.cache.options):
        console.print(f"tellme: {warning}", highlight=False, soft_wrap=True)
    machine = _opened_machine(
        backend,
        opened,
        path,
        program,
        console,
        memory=memory,
        waves=waves,
        check=check,
        bitstream=bitstream,
        latent=latent,
    )
    machine.head = head
    return machine


def _opened_machine(
    backend: str,
    opened: Model,
    path: Path,
    program: Program,
    console: Console,
    *,
    memory: Any,
    waves: Path | None,
    check: bool,
    bitstream: Path | None,
    latent: bool,
) -> Backend:
    config = program.config

    def golden() -> GoldenBackend:
        # A ternary head, and int8 rows of the embedding, are in the image alone.
        weights = (
            opened.weights()
            if opened.planes or opened.embedding_type == "int8"
            else load_weights(path, config, latent=latent)
        )
        return GoldenBackend(weights, config, context=program.context, slots=program.slots, kv=program.kv.cache)

    if backend == "board":
        signal.signal(signal.SIGTERM, terminate)
    what = {"golden": "opening the model", "sim": "building the simulation", "board": "loading bitstream and model"}
    with Status(console, what[backend]) as status:
        if backend == "golden":
            return golden()
        machine: Backend
        if backend == "board":
            machine = BoardAccelerator(opened, program, bitstream=bitstream)
        else:
            machine = SimulatedAccelerator(opened, program, timing=memory, waves=waves, status=status)
        if check:
            try:
                return CheckedBackend(machine, golden())
            except BaseException:
                machine.close()
                raise
        return machine
