"""What `tellme info` says of a model: shape, parts, ternary statistics, and what boards make of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from tellme.golden import elementwise, layout
from tellme.golden.arith import ceil_div
from tellme.golden.boards import buffer_bytes, phases
from tellme.golden.config import PRESETS, AcceleratorConfig
from tellme.golden.kv import EIGHT, CacheFormat
from tellme.golden.model import ModelWeights
from tellme.golden.schedule import segments
from tellme.golden.screen import MULTIPLE, Screen
from tellme.golden.spec import MATRICES, ModelSpec
from tellme.host.checkpoints.checkpoint import golden_errors, is_checkpoint, open_checkpoint
from tellme.host.commands.common import MODEL_HELP, ConfigFile, Hadamard, Kv, Latent, Settings, board, cache_format
from tellme.host.errors import UserError
from tellme.host.image.file import Image, made_for
from tellme.host.image.model import Model, find_model
from tellme.host.image.screening import with_ternary_head
from tellme.host.machine.program import Program, compile_sections, planned_sections
from tellme.host.machine.screening import CANDIDATES
from tellme.host.progress import progress
from tellme.host.provenance import json_line
from tellme.host.tables import grid, pairs, show


@dataclass(frozen=True)
class Shares:
    """How often -1, 0 and +1 occur in the matrices of one kind, over all layers."""

    minus: int = 0
    zero: int = 0
    plus: int = 0

    @property
    def total(self) -> int:
        return self.minus + self.zero + self.plus

    def add(self, weights: NDArray[np.integer]) -> Shares:
        """With the weights of one more matrix, whatever the scales of its groups."""
        some, total = int(np.count_nonzero(weights)), int(np.sign(weights).sum(dtype=np.int64))
        minus, plus = (some - total) // 2, (some + total) // 2
        return Shares(self.minus + minus, self.zero + weights.size - some, self.plus + plus)


def ternary_statistics(weights: ModelWeights, *, show: bool = False) -> dict[str, Shares]:
    """Shares of every kind of matrix. Reads every layer once.

    Raises
    ------
    UserError : a layer cannot be read.
    """
    out = dict.fromkeys(MATRICES, Shares())
    with progress("counting weights", weights.spec.layers, show=show) as advance, golden_errors("the model"):
        for i in range(weights.spec.layers):
            layer = weights.layers[i]
            for kind in MATRICES:
                out[kind] = out[kind].add(layer.matrix(kind)[0])
            advance(1)
    return out


def decode_beats(program: Program, position: int, candidates: int = 0) -> int:
    """Beats that a decode pass at a position reads, with so many candidates of a screened head (0: the full head)."""
    rows = range(candidates)  # whichever
    parts = segments(program.config, program.code, program.program_address, [position], [0], 1, rows)
    return sum(s.beats for s in parts)


def try_program(
    name: str, spec: ModelSpec, config: AcceleratorConfig, planes: int = 0, kv: CacheFormat = EIGHT
) -> Program | UserError:
    """The program of such a model on an accelerator, or why there is none. `planes`: of the ternary copy of its head, 0: none.
    `kv`: elements of the cache."""
    try:
        with golden_errors(name):
            return compile_sections(name, spec, planned_sections(spec, config, planes), config, kv=kv)
    except UserError as e:
        return e


def _parts(
    spec: ModelSpec,
    config: AcceleratorConfig,
    shares: dict[str, Shares],
    files: int,
    ternary: Screen | None,
    own: NDArray[Any] | None,
) -> list[dict[str, Any]]:
    """Every part of an image: name, shape, element type, bytes; of ternary ones how many weights are -1, 0 and +1.
    `own` are the embedding's own rows, None if they are int8."""
    s, width = spec, config.beat_bytes
    out: list[dict[str, Any]] = []

    def part(name: str, shape: str, kind: str, size: int, share: Shares | None = None) -> None:
        counts = None if share is None else asdict(share)
        out.append({"part": name, "shape": shape, "as": kind, "bytes": size, "weights": counts})

    for kind, (rows, inputs) in s.matrices.items():
        size = s.layers * rows * layout.tiles(inputs, config) * width
        part(kind, f"{s.layers} x {rows} x {inputs}", config.packing.name, size, shares[kind])
    beats = s.layers * sum(layout.float_beats(n, config) for n in s.norms.values()) + layout.float_beats(
        s.hidden, config
    )
    part("norms", f"{s.layers} x {len(s.norms)} + 1", "float32", beats * width)
    blocks = ceil_div(s.vocab, config.key_block)
    size = blocks * layout.head_block_beats(s.hidden, config) * width
    if s.ternary_head and ternary is not None:
        size = layout.screen_beats(s.vocab, 1, s.hidden, config) * width
        share = Shares().add(np.sign(ternary.planes[:, 0]).astype(np.int8))
        part("head = embedding" if s.tied else "head", f"{s.vocab} x {s.hidden}", config.packing.name, size, share)
    else:
        part("head = embedding" if s.tied else "head", f"{s.vocab} x {s.hidden}", "int8", size)
    if ternary is not None and not s.ternary_head:
        size = layout.screen_beats(s.vocab, ternary.count, s.hidden, config) * width
        share = Shares().add(ternary.planes.reshape(-1, s.hidden))
        part("ternary copy of the head", f"{s.vocab} x {ternary.count} x {s.hidden}", "ternary", size, share)
        size = s.vocab * layout.row_beats(s.hidden, config) * width
        part("rows of the head, each by itself", f"{s.vocab} x {s.hidden}", "int8", size)
    if own is not None:
        kind = elementwise.row_type(own)
        part("embedding (host)", f"{s.vocab} x {s.hidden}", kind, own.nbytes)
    elif not s.tied or s.ternary_head:
        part("embedding (host)", f"{s.vocab} x {s.hidden}", "int8", s.vocab * (s.hidden + 4))
    part("tokenizer (host)", "", "JSON", files)
    return out


def _board(program: Program) -> dict[str, Any]:
    """What a preset makes of a model."""
    p, c = program, program.config
    width = c.beat_bytes
    candidates = min(CANDIDATES, p.spec.vocab // 2 // MULTIPLE * MULTIPLE) if p.screened else 0
    beats = decode_beats(p, p.context - 1, candidates)
    return {
        "board": c.name,
        "positions": p.context,
        "descriptors": p.length,
        "image_bytes": (p.logits_address - p.image_address) * width,
        "logits_bytes": (p.kv_address - p.logits_address) * width,
        "kv_cache_bytes": (p.window_beats - p.kv_address) * width,
        "buffer_bytes": buffer_bytes(c, p.window_beats, phases(c)),
        "last_pass_beats": beats,
        "tokens_per_s_at_most": c.clock_hz / beats,
    }


def _head(ternary: Screen | None) -> dict[str, Any] | None:
    """What is said of a ternary copy of the head, or of a ternary head."""
    if ternary is None:
        return None
    return {"planes": ternary.count, "margin": float(ternary.margin), **({"exact": True} if ternary.exact else {})}


def _planes(weights: ModelWeights) -> int:
    """Of the ternary copy of a head, or of a ternary head; 0: none."""
    return 0 if weights.screen is None else weights.screen.count


def examine(
    path: Path, config: AcceleratorConfig | None, *, verify: bool, latent: bool, kv: CacheFormat = EIGHT
) -> dict[str, Any]:
    """What a checkpoint or an image holds, and what the presets (or the one given) make of it, as `tellme info --json` says it.

    Parameters
    ----------
    verify : check an image against its checksums, too.
    latent : as in `host.checkpoints.checkpoint.read_checkpoint`.
    kv : elements of the presets' caches.

    Raises
    ------
    UserError : it cannot be read, or no preset has an image's beat geometry.
    """
    verified = None
    notes: tuple[str, ...] = ()
    if is_checkpoint(path):
        with Console(stderr=True).status(f"reading {path}"):
            checkpoint = open_checkpoint(path, latent=latent)
            configs = list(PRESETS.values()) if config is None else [config]
            made = {c.name: (with_ternary_head(checkpoint, c) or checkpoint).weights for c in configs}
        name, files, notes = checkpoint.name, checkpoint.tokenizer, checkpoint.notes
        kind = "GGUF checkpoint" if path.is_file() else "Hugging Face checkpoint"
        text = len(files.tokenizer) + len(files.config)
    else:
        image = Image(path, verify=False)
        if verify:
            with progress("checksums", image.bytes) as advance:
                image.verify(advance)
            verified = (
                f"checksums: {len(image.sections)} sections and {len(image.blobs)} parts are as they were written"
            )
        configs = made_for(image.geometry)
        if config is not None:
            image.require(config)
            configs = [config]
        if not configs:
            raise UserError(f"{path}: was made for beats of {image.geometry}, which none of {', '.join(PRESETS)} has")
        model = Model(image, configs[0])
        name, made = model.name, dict.fromkeys((c.name for c in configs), model.weights())
        kind = f".tlm image, {image.bytes:,} bytes, beats of {configs[0].ports} x {configs[0].port_bytes} bytes"
        text = image.blob_bytes("tokenizer.json") + image.blob_bytes("tokenizer_config.json")
    weights = made[configs[0].name]
    spec, ternary = weights.spec, weights.screen
    programs = {c.name: try_program(name, made[c.name].spec, c, _planes(made[c.name]), kv) for c in configs}
    return {
        "model": name,
        "kind": kind,
        "spec": asdict(spec),
        "assumed": list(map(str, map(UserError, notes))),
        "ternary_weights": spec.layers * spec.layer_weights,
        "laid_out_for": configs[0].name,
        "parts": _parts(spec, configs[0], ternary_statistics(weights, show=True), text, ternary, weights.inputs),
        "head": _head(ternary),
        "presets": [_board(p) for p in programs.values() if not isinstance(p, UserError)],
        "refused": {c: str(p) for c, p in programs.items() if isinstance(p, UserError)},
        "verified": verified,
    }


def print_info(facts: dict[str, Any], console: Console) -> None:
    """Prints what `examine` found, as tables."""
    shape = [*facts["spec"].items(), ("ternary weights", facts["ternary_weights"])]
    show(pairs(f"model {facts['model']}: {facts['kind']}", shape), console)
    for note in facts["assumed"]:
        console.print(f"note: {note}", highlight=False, soft_wrap=True, markup=False)
    parts = []
    for p in facts["parts"]:
        counts = p["weights"] or {}
        total = sum(counts.values())
        shares = [f"{counts[k] / total:.1%}" if counts else "" for k in ("minus", "zero", "plus")]
        parts.append((p["part"], p["shape"], p["as"], p["bytes"], *shares))
    header: tuple[str, ...] = ("part", "shape", "as", "bytes in an image", "-1", "0", "+1")
    show(grid(f"parts, laid out for {facts['laid_out_for']}", header, parts), console)
    if facts["head"] and facts["head"].get("exact"):
        console.print("ternary head: its logits are exact; no int8 rows", highlight=False)
    elif facts["head"]:
        console.print(
            f"screened head: {facts['head']['planes']} ternary plane(s), "
            + (f"margin {facts['head']['margin']:.3g}" if facts["head"]["margin"] else "not calibrated"),
            highlight=False,
        )
    if facts["presets"]:
        header = (
            "board", "positions", "descriptors", "image, bytes", "logits, bytes", "KV cache, bytes",
            "buffer, bytes", "beats of a last decode pass", "tokens/s at most, at a beat a cycle",
        )  # fmt: skip
        rows = [(*list(p.values())[:-1], f"{p['tokens_per_s_at_most']:,.1f}") for p in facts["presets"]]
        show(grid("presets that run it", header, rows), console)
    for preset, reason in facts["refused"].items():
        console.print(f"does not fit {preset}: {reason}", highlight=False, soft_wrap=True, markup=False)
    if facts["verified"]:
        console.print(facts["verified"], highlight=False, soft_wrap=True)


def command(
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP)] = None,
    board_name: Annotated[
        str | None, typer.Option("--board", help="Only this preset; of a model, all are shown if left out.")
    ] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check an image against its checksums.")] = False,
    latent: Latent = False,
    kv: Kv = "8",
    hadamard: Hadamard = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show a board's parameters, or a model's shape, parts and statistics and which presets run it."""
    console = Console()
    if model is None:
        config = board(board_name, config_file, settings, default="tiny")
        fields = {f: getattr(config, f) for f in config.__dataclass_fields__} | {"beat_bytes": config.beat_bytes}
        if as_json:
            print(json_line({"board": config.name, "parameters": fields}))
        else:
            show(pairs(f"board {config.name}", list(fields.items())), console)
        return
    only = board(board_name, config_file, settings) if board_name or config_file or settings else None
    facts = examine(find_model(model), only, verify=verify, latent=latent, kv=cache_format(kv, hadamard))
    if as_json:
        print(json_line(facts))
    else:
        print_info(facts, console)
