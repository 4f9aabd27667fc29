"""Patterns for a board's own check: a small model whose weights, keys and logits go through every unit at its extremes (`tellme doctor --selftest`).

- Walking ones in each port: the head has, for every dimension and every bit of int8, two neighbouring rows with that bit alone, so that each bit of each byte of a
  beat is 1 by itself once, in whichever half of the beat a row lies; a logit shows each.
- Every table index: neighbouring rows of a matrix count through all 3^g values of a group of weights, each group with an offset of its own.
- Attention: a layer whose scores saturate, one whose scores are all equal, and one as they usually are; contexts of one key, and on both sides of a key block's end.
- One lane alone and all lanes together, every logit of every lane compared with golden bit by bit.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden.config import AcceleratorConfig
from tellme.golden.model import LayerWeights, ModelWeights
from tellme.golden.spec import MATRICES, ModelSpec
from tellme.host.checkpoints.checkpoint import Checkpoint
from tellme.host.checkpoints.synthetic import random_weights
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.driver import Driver
from tellme.host.machine.passes import Pass, lanes_that_fit
from tellme.host.machine.program import compile_program
from tellme.host.text.tokenizer import Files

HIDDEN = 64
BITS = (1, 2, 4, 8, 16, 32, 64, -128)
"""int8 values of one bit each."""
SCORES = (40.0, 1e-6, 1.0)
"""Times the usual size of queries and keys, by layer: scores saturate, are all equal, are as usual."""
SEED = 1


@dataclass(frozen=True)
class Outcome:
    """What was compared: passes, logits, cycles of all passes."""

    passes: int
    logits: int
    cycles: int


def spec(config: AcceleratorConfig) -> ModelSpec:
    """The model's shape: two rows of the head for each dimension and bit, and a context of two key blocks."""
    return ModelSpec(
        hidden=HIDDEN, layers=len(SCORES), heads=2, kv_heads=1, head_dim=32, ffn=96, vocab=2 * HIDDEN * len(BITS), tied=False,
        max_context=min(config.max_context, 2 * config.key_block),
    )  # fmt: skip


def counting(rows: int, inputs: int, config: AcceleratorConfig) -> NDArray[np.int8]:
    """Ternary weights [rows, inputs] of which 3^group_size neighbouring rows take every group through every index of its table."""
    size = config.group_size
    place = np.arange(inputs) % config.beat_weights  # groups begin anew with each tile
    group, digit = place // size, place % size
    index = (np.arange(rows)[:, None] + 7 * group) % 3**size
    return (index // 3**digit % 3 - 1).astype(np.int8)


def walking() -> NDArray[np.int8]:
    """Head rows [2 * HIDDEN * 8, HIDDEN], each with one bit of one byte, every one twice."""
    rows = np.zeros((HIDDEN, len(BITS), 2, HIDDEN), np.int8)
    for dim in range(HIDDEN):
        for bit, value in enumerate(BITS):
            rows[dim, bit, :, dim] = value
    return rows.reshape(-1, HIDDEN)


def weights(config: AcceleratorConfig) -> ModelWeights:
    """The model."""
    shape = spec(config)
    plain = random_weights(shape, SEED)
    layers: list[LayerWeights] = []
    for layer, times in zip(plain.layers, SCORES, strict=True):
        matrices: dict[str, Any] = {name: counting(*shape.matrices[name], config) for name in MATRICES}
        layers.append(replace(layer, **matrices, q_scale=layer.q_scale * times, k_scale=layer.k_scale * times))
    head = walking()
    return replace(plain, layers=layers, head=head, head_scales=np.full(len(head), 1 / 64, np.float32))


def passes(config: AcceleratorConfig) -> list[Pass]:
    """Single tokens, a prompt that fills the lanes up to the second key block, then single tokens behind it."""
    shape = spec(config)
    group = shape.heads // shape.kv_heads
    out = [Pass.of([3 + n], [0], head=(0, 1), write_logits=True) for n in range(2)]
    at, end = 0, min(shape.max_context - 1, config.key_block + 1)
    while at < end:
        n = lanes_that_fit(config, group, at, end - at)
        out.append(
            Pass.of(
                [(5 * p + 7) % shape.vocab for p in range(at, at + n)],
                range(at, at + n),
                head=(0, n),
                write_logits=True,
            )
        )
        at += n
    out += [Pass.of([11 + p], [p], head=(0, 1), write_logits=True) for p in range(end, min(end + 2, shape.max_context))]
    return out


def run(accelerator: Driver) -> Outcome:
    """Loads the patterns into an accelerator in the place of its model, and compares every logit with golden.

    Raises
    ------
    CheckError : a bit differs; names the pass, lane and row: row // 16 is the dimension, row // 2 % 8 the bit of the head's pattern.
    DeviceError : the accelerator stops a pass. UserError : its buffer is too small.
    """
    config = accelerator.config
    made = weights(config)
    with tempfile.TemporaryDirectory(prefix="tellme-patterns-") as folder:
        image = Path(folder) / "patterns.tlm"
        convert(
            Checkpoint(name="patterns", weights=made, tokenizer=Files.read(demo_folder()), eos_ids=()), image, config
        )
        with Model.open(image, config) as model:
            accelerator.load(model, compile_program(model, config))
            checked = CheckedBackend(accelerator, GoldenBackend(made, config))
            cycles = sum(checked.run_pass(p).cycles or 0 for p in passes(config))
    return Outcome(checked.passes, checked.logits, cycles)
