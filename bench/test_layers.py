"""One full-width layer of each reference shape on the RTL of the kv260 preset, bit for bit against golden.

Run by `make bench`; writes docs/measurements/layers.md.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tellme.golden.config import KV260
from tellme.golden.shapes import BITNET_07B, BITNET_2B
from tellme.host.checkpoints.checkpoint import Checkpoint
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.passes import Pass
from tellme.host.machine.program import compile_program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.host.text.tokenizer import Files
from tellme.sim.timing import timing
from tests.models import random_weights

CONTEXT = 128
PAGE = Path(__file__).parent.parent / "docs" / "measurements" / "layers.md"

SHAPES = {
    "0.73B": replace(BITNET_07B, layers=1, vocab=1024),
    "2B-4T": replace(BITNET_2B, layers=1, vocab=1024),
}
"""One layer of each, with a vocabulary cut to that of the demo model: the head has tests of its own."""


@pytest.fixture(scope="module")
def rows() -> list[str]:
    lines = [
        "# One full-width layer on the RTL, `kv260` preset, `kv260-ideal` memory timing",
        "",
        "`make bench` (bench/test_layers.py). Simulated cycles; random ternary weights; every logit of every pass compared with golden, bit for bit.",
        "",
        "| shape | lanes | cached keys | cycles | beats | share of the beat rate | stalls |",
        "|---|---|---|---|---|---|---|",
    ]
    return lines


@pytest.mark.parametrize("name", SHAPES)
def test_a_layer_is_bit_exact(name: str, tmp_path: Path, rows: list[str]) -> None:
    spec = SHAPES[name]
    weights = random_weights(spec, seed=7)
    path = tmp_path / "layer.tlm"
    convert(Checkpoint(name=name, weights=weights, tokenizer=Files.read(demo_folder()), eos_ids=()), path, KV260)
    ids = np.random.default_rng(1).integers(0, spec.vocab, CONTEXT + 1).tolist()
    with (
        Model.open(path, KV260) as model,
        SimulatedAccelerator(model, compile_program(model, KV260), timing=timing("kv260-ideal")) as machine,
    ):
        both = CheckedBackend(machine, GoldenBackend(weights, KV260))
        position = 0
        while position <= CONTEXT:
            n = min(16, CONTEXT - position) or 1
            start = time.monotonic()
            r = both.run_pass(
                Pass.of(ids[position : position + n], range(position, position + n), head=(0, n), write_logits=True)
            )
            assert r.cycles is not None and r.beats is not None
            stalls = ", ".join(f"{k} {v:,}" for k, v in r.stalls.items() if v)
            rows.append(
                f"| {name} | {n} | {position} | {r.cycles:,} | {r.beats:,} | {r.beats / r.cycles:.1%} | {stalls} |"
            )
            print(rows[-1], f"{r.cycles / (time.monotonic() - start) / 1e3:.0f} kHz", flush=True)
            position += n
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(rows) + "\n")
