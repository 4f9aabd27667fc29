"""What `tellme info` says of a model: shape, parts, ternary statistics, and what boards make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from golden import layout
from golden.config import PRESETS, AcceleratorConfig
from golden.model import ModelSpec, ModelWeights
from golden.schedule import segments
from host.checkpoint import golden_errors, is_checkpoint, open_checkpoint
from host.errors import UserError
from host.image import Image, geometry_of
from host.model import Model
from host.program import Program, compile_sections, planned_sections
from host.progress import progress

KINDS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Shares:
    """How often -1, 0 and +1 occur in the matrices of one kind, over all layers."""

    minus: int = 0
    zero: int = 0
    plus: int = 0

    @property
    def total(self) -> int:
        return self.minus + self.zero + self.plus

    def add(self, weights: NDArray[np.int8]) -> Shares:
        """With the weights of one more matrix."""
        some, total = int(np.count_nonzero(weights)), int(weights.sum(dtype=np.int64))
        minus, plus = (some - total) // 2, (some + total) // 2
        return Shares(self.minus + minus, self.zero + weights.size - some, self.plus + plus)


def ternary_statistics(weights: ModelWeights, *, show: bool = False) -> dict[str, Shares]:
    """Shares of every kind of matrix. Reads every layer once.

    Raises
    ------
    UserError : a layer cannot be read.
    """
    out = dict.fromkeys(KINDS, Shares())
    with progress("counting weights", weights.spec.layers, show=show) as advance, golden_errors("the model"):
        for i in range(weights.spec.layers):
            layer = weights.layers[i]
            for kind in KINDS:
                out[kind] = out[kind].add(getattr(layer, kind))
            advance(1)
    return out


def decode_beats(program: Program, position: int) -> int:
    """Beats that a decode pass at a position reads."""
    parts = segments(program.config, program.code, program.program_address, [position], [0], 1)
    return sum(s.beats for s in parts)


def try_program(name: str, spec: ModelSpec, config: AcceleratorConfig) -> Program | UserError:
    """The program of such a model on an accelerator, or why there is none."""
    try:
        with golden_errors(name):
            return compile_sections(name, spec, planned_sections(spec, config), config)
    except UserError as e:
        return e


def _print(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table below its title."""
    table = Table(show_header=bool(header))
    for i in range(len(rows[0])):
        table.add_column(header[i] if header else "", justify="right" if i else "left", no_wrap=True)
    for row in rows:
        cells = (f"{c:,}" if isinstance(c, int) and not isinstance(c, bool) else str(c) for c in row)
        table.add_row(*cells)
    console.print(title, highlight=False, soft_wrap=True, markup=False)
    console.print(table)


def _parts(spec: ModelSpec, config: AcceleratorConfig, shares: dict[str, Shares], files: int) -> list[list[object]]:
    """Rows of the table of parts."""
    s, width = spec, config.beat_bytes
    shapes = {
        "q": (s.q_dim, s.hidden),
        "k": (s.kv_dim, s.hidden),
        "v": (s.kv_dim, s.hidden),
        "o": (s.hidden, s.q_dim),
        "gate": (s.ffn, s.hidden),
        "up": (s.ffn, s.hidden),
        "down": (s.hidden, s.ffn),
    }
    out: list[list[object]] = []
    for kind, (rows, inputs) in shapes.items():
        share = shares[kind]
        counts = [f"{n / share.total:.1%}" for n in (share.minus, share.zero, share.plus)]
        size = s.layers * rows * layout.tiles(inputs, config) * width
        out.append([kind, f"{s.layers} x {rows} x {inputs}", "ternary", size, *counts])
    gains = [s.hidden, s.hidden] + [s.q_dim] * s.attn_sub_norm + [s.ffn] * s.ffn_sub_norm
    beats = s.layers * sum(layout.float_beats(n, config) for n in gains) + layout.float_beats(s.hidden, config)
    out.append(["norms", f"{s.layers} x {len(gains)} + 1", "float32", beats * width, "", "", ""])
    blocks = -(-s.vocab // config.key_block)
    name = "head = embedding" if s.tied else "head"
    size = blocks * layout.head_block_beats(s.hidden, config) * width
    out.append([name, f"{s.vocab} x {s.hidden}", "int8", size, "", "", ""])
    if not s.tied:
        out.append(["embedding (host)", f"{s.vocab} x {s.hidden}", "int8", s.vocab * (s.hidden + 4), "", "", ""])
    return [*out, ["tokenizer (host)", "", "JSON", files, "", "", ""]]


def _boards(name: str, spec: ModelSpec, configs: Sequence[AcceleratorConfig]) -> tuple[list[list[object]], list[str]]:
    """A row for every accelerator that runs the model, and why the others do not."""
    rows: list[list[object]] = []
    reasons: list[str] = []
    for c in configs:
        p = try_program(name, spec, c)
        if isinstance(p, UserError):
            reasons.append(f"does not fit {c.name}: {p}")
            continue
        width = c.beat_bytes
        beats = decode_beats(p, p.context - 1)
        rows.append(
            [
                c.name,
                p.context,
                p.length,
                (p.logits_address - p.image_address) * width,
                (p.kv_address - p.logits_address) * width,
                (p.window_beats - p.kv_address) * width,
                p.window_beats * width,
                beats,
                f"{c.clock_hz / beats:,.1f}",
            ]
        )
    return rows, reasons


def print_info(path: Path, config: AcceleratorConfig | None, *, verify: bool, latent: bool, console: Console) -> None:
    """Prints what a checkpoint or an image holds, and what the presets (or the one given) make of it.

    Parameters
    ----------
    verify : check an image against its checksums, too.
    latent : as in `host.checkpoint.read_checkpoint`.

    Raises
    ------
    UserError : it cannot be read, or no preset has an image's beat geometry.
    """
    if is_checkpoint(path):
        with Console(stderr=True).status(f"reading {path}"):
            checkpoint = open_checkpoint(path, latent=latent)
        name, weights, files = checkpoint.name, checkpoint.weights, checkpoint.tokenizer
        kind = "GGUF checkpoint" if path.is_file() else "Hugging Face checkpoint"
        configs = list(PRESETS.values()) if config is None else [config]
        text = len(files.tokenizer) + len(files.config)
        verified = ""
    else:
        image = Image(path, verify=False)
        if verify:
            with progress("checksums", image.bytes) as advance:
                image.verify(advance)
        verified = f"checksums: {len(image.sections)} sections and {len(image.blobs)} parts are as they were written"
        configs = [c for c in PRESETS.values() if geometry_of(c) == image.geometry]
        if config is not None:
            image.require(config)
            configs = [config]
        if not configs:
            raise UserError(f"{path}: was made for beats of {image.geometry}, which none of {', '.join(PRESETS)} has")
        model = Model(image, configs[0])
        name, weights = model.name, model.weights()
        kind = f".tlm image, {image.bytes:,} bytes, beats of {configs[0].ports} x {configs[0].port_bytes} bytes"
        text = image.blob_bytes("tokenizer.json") + image.blob_bytes("tokenizer_config.json")
    spec = weights.spec
    shape = [[field, getattr(spec, field)] for field in spec.__dataclass_fields__]
    total = spec.layers * spec.layer_weights
    shares = ternary_statistics(weights, show=True)
    _print(console, f"model {name}: {kind}", (), [*shape, ["ternary weights", total]])
    header = ("part", "shape", "as", "bytes in an image", "-1", "0", "+1")
    _print(console, f"parts, laid out for {configs[0].name}", header, _parts(spec, configs[0], shares, text))
    rows, reasons = _boards(name, spec, configs)
    if rows:
        columns = (
            "board", "positions", "descriptors", "image, bytes", "logits, bytes", "KV cache, bytes",
            "buffer, bytes", "beats of a last decode pass", "tokens/s at most, at a beat a cycle",
        )  # fmt: skip
        _print(console, "presets that run it", columns, rows)
    for reason in reasons:
        console.print(reason, highlight=False, soft_wrap=True, markup=False)
    if verify and verified:
        console.print(verified, highlight=False, soft_wrap=True)
