"""One full-width layer of each reference shape on the RTL of the kv260 preset, or of the configuration that the shape needs, bit for bit
against golden.

Run by `make bench`; writes docs/measurements/layers.md. Rows of shapes that are not run stay there: `pytest bench/test_layers.py -k Falcon`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tellme.golden.config import KV260, AcceleratorConfig
from tellme.golden.shapes import (
    BITNET_07B,
    BITNET_2B,
    BONSAI_4B,
    BONSAI_8B,
    BONSAI_17B,
    FALCON3_1B,
    FALCON_E_1B,
    FALCON_E_3B,
    LLAMA3_8B,
)
from tellme.golden.spec import ModelSpec
from tellme.host.checkpoints.checkpoint import Checkpoint
from tellme.host.configuration import resolve
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.passes import Pass
from tellme.host.machine.program import compile_program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.host.text.tokenizer import Files
from tellme.sim.timing import timing
from tests.models import random_weights

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "measurements" / "layers.md"
HEADER = [
    "# One full-width layer on the RTL, `kv260` preset or configuration of it, `kv260-ideal` memory timing",
    "",
    "`make bench` (bench/test_layers.py). Simulated cycles; random ternary weights; every logit of every pass compared with golden, bit for bit.",
    "Shapes beside BitNet run on their [configurations](../own-board.md#configurations-and-boards-of-your-own), those of wide models with 8 lanes.",
    "",
    "| shape | lanes | cached keys | cycles | beats | share of the beat rate | stalls |",
    "|---|---|---|---|---|---|---|",
]


@dataclass(frozen=True)
class Layer:
    """One layer of a shape, with a vocabulary cut to that of the demo model: the head has tests of its own.

    configuration : a file of docs/examples/configurations; None: the preset. context : cached keys of the last pass, of one lane; the
    passes before it have as many lanes as there are.
    """

    shape: ModelSpec
    configuration: str | None = None
    context: int = 16

    @property
    def config(self) -> AcceleratorConfig:
        if self.configuration is None:
            return KV260
        return resolve(None, DOCS / "examples" / "configurations" / f"{self.configuration}.toml", ()).config


LAYERS = {
    "0.73B": Layer(BITNET_07B, context=128),
    "2B-4T": Layer(BITNET_2B, context=128),
    "Bonsai 1.7B": Layer(BONSAI_17B, "kv260_bonsai"),
    "Bonsai 4B": Layer(BONSAI_4B, "kv260_bonsai_large", context=8),
    "Bonsai 8B": Layer(BONSAI_8B, "kv260_bonsai_large", context=8),
    "Falcon-E 1B": Layer(FALCON_E_1B, "kv260_large"),
    "Falcon-E 3B": Layer(FALCON_E_3B, "kv260_large", context=8),
    "Falcon3 1B": Layer(FALCON3_1B, "kv260_large", context=8),
    "Llama3-8B": Layer(LLAMA3_8B, "kv260_large", context=8),
}


def record(name: str, rows: list[str]) -> None:
    """Puts the rows of a shape into the page, in place of those it had."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text().splitlines() if PAGE.exists() else []:
        if line.startswith("| ") and not line.startswith("| shape"):
            found.setdefault(line.split("|")[1].strip(), []).append(line)
    found[name] = rows
    PAGE.parent.mkdir(exist_ok=True)
    missing = [n for n in LAYERS if n not in found]
    behind = ["", f"Not run yet: {', '.join(missing)}."] if missing else []
    PAGE.write_text("\n".join([*HEADER, *(row for n in LAYERS for row in found.get(n, [])), *behind]) + "\n")


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_bit_exact(name: str, tmp_path: Path) -> None:
    layer = LAYERS[name]
    config, context = layer.config, layer.context
    spec = replace(layer.shape, layers=1, vocab=1024)
    weights = random_weights(spec, seed=7)
    path = tmp_path / "layer.tlm"
    convert(Checkpoint(name=name, weights=weights, tokenizer=Files.read(demo_folder()), eos_ids=()), path, config)
    ids = np.random.default_rng(1).integers(0, spec.vocab, context + 1).tolist()
    rows = []
    with (
        Model.open(path, config) as model,
        SimulatedAccelerator(model, compile_program(model, config), timing=timing("kv260-ideal")) as machine,
    ):
        both = CheckedBackend(machine, GoldenBackend(weights, config))
        position = 0
        while position <= context:
            n = min(config.lanes, context - position) or 1
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
    record(name, rows)
