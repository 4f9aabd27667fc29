"""Models of the families beside BitNet at their real shapes, on the RTL of the KV260's configurations for them, in cycles.

Run by `make bench`; writes docs/measurements/families.md and families.json. Every pass is held against golden. A run that was
measured stands in families.json, so that single ones can be measured anew: `pytest bench/test_families.py -k falcon`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tellme.golden.boards import MIB, buffer_bytes, phases
from tellme.golden.config import AcceleratorConfig
from tellme.golden.shapes import SHAPES
from tellme.host.configuration import resolve
from tellme.host.machine.measurement import Measurement, measure
from tellme.host.machine.passes import chunks
from tellme.host.machine.program import compile_sections, planned_sections
from tellme.host.machine.screening import CANDIDATES
from tellme.hw.plan import predict, steps
from tellme.sim.stream import SustainedMemory
from tellme.sim.timing import timing

DOCS = Path(__file__).parent.parent / "docs"
CONFIGURATIONS = DOCS / "examples" / "configurations"
PAGE, FIGURES = DOCS / "measurements" / "families.md", DOCS / "measurements" / "families.json"
KEYS = 128
"""Cached keys of the decode pass."""
CACHE = 2048
"""Positions of the cache in the table of memory."""
SHARE = 0.95
"""At least so much of the beats that the memory gives is taken in every decode pass."""
MEMORY = timing("kv260")


@dataclass(frozen=True)
class Run:
    """A model on a configuration (a file of `CONFIGURATIONS`), and what is to be reached there: tokens/s of decode and of prefill."""

    model: str
    configuration: str
    decode: float
    prefill: float = 0
    prompt: int = 0
    candidates: int = CANDIDATES

    @property
    def config(self) -> AcceleratorConfig:
        return resolve(None, CONFIGURATIONS / f"{self.configuration}.toml", ()).config

    def planned(self, positions: Sequence[int] = (KEYS,), head_count: int = 1, ternary: bool = True) -> int:
        """Cycles of a pass as `tellme plan` predicts them; `ternary`: with the model's head as it is, if it is that."""
        candidates = self.candidates if head_count else 0
        spec = SHAPES[self.model]
        spec = replace(spec, ternary_head=spec.ternary_head and ternary)
        todo = steps(spec, self.config, positions, [0] * len(positions), head_count, candidates)
        return predict(todo, self.config, SustainedMemory(MEMORY)).cycles

    @property
    def memory_rate(self) -> float:
        """Beats a cycle that the memory gives."""
        return SustainedMemory(MEMORY).rate(self.config)


RUNS = {
    "bonsai-1.7b": Run("bonsai-1.7b", "kv260_bonsai", decode=31),
    "bonsai-1.7b-prefill": Run("bonsai-1.7b", "kv260_bonsai", decode=31, prefill=480, prompt=128, candidates=16),
    "bonsai-4b": Run("bonsai-4b", "kv260_bonsai_large", decode=13),
    "bonsai-8b": Run("bonsai-8b", "kv260_bonsai_large", decode=6.3),
    "falcon-e-1b": Run("falcon-e-1b", "kv260_large", decode=40),
}
"""By name; all with candidates of the head: of a ternary one, or of a screened one of int8 rows."""


@cache
def measured(name: str) -> Measurement:
    run = RUNS[name]
    found = measure(
        run.model,
        run.config,
        MEMORY,
        context=KEYS,
        prompt=run.prompt,
        candidates=run.candidates,
        logits=False,
        say=lambda text: print(text, flush=True),
    )
    reports = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    reports[name] = found.report()
    FIGURES.write_text(json.dumps({n: reports[n] for n in RUNS if n in reports}, indent=1) + "\n")
    return found


@pytest.mark.parametrize("name", RUNS)
def test_the_target_is_reached(name: str) -> None:
    r, run = measured(name).report(), RUNS[name]
    assert r["tokens_per_s"] >= run.decode
    assert not run.prompt or r["prefill_tokens_per_s"] >= run.prefill


@pytest.mark.parametrize("name", RUNS)
def test_decode_takes_what_the_memory_gives(name: str) -> None:
    assert measured(name).report()["share_of_beat_rate"] >= SHARE * RUNS[name].memory_rate


@pytest.mark.parametrize("name", RUNS)
def test_the_plan_is_within_three_percent(name: str) -> None:
    m, run = measured(name), RUNS[name]
    assert run.planned() == pytest.approx(m.decode.cycles, rel=0.03)
    for p in m.prefill:
        positions = range(p.position, p.position + p.lanes)
        assert run.planned(positions, int(p is m.prefill[-1])) == pytest.approx(p.cost.cycles, rel=0.03)


def page(reports: dict[str, dict[str, Any]]) -> str:
    """families.md, of the runs that there are."""
    lines = [
        "# Families beside BitNet: simulated RTL of the KV260's configurations",
        "",
        "`make bench` (bench/test_families.py), or for one row `tellme bench --config docs/examples/configurations/kv260_bonsai.toml --model bonsai-1.7b --head screened --candidates 16`. "
        f"Synthetic weights; timing `kv260`, 250 MHz; {KEYS} cached keys; a token's candidates from the head, which is ternary itself, or int8 rows screened by a ternary copy. Every pass equals the golden model's, bit for bit. No board has run.",
        "",
        "| model | configuration | head | candidates | tokens/s | to reach | cycles a token | GB/s | of the beats that the memory gives | planned cycles (`tellme plan`) | without a beat |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in reports.items():
        ternary = r.get("ternary_head", False)
        run, predicted = RUNS[name], RUNS[name].planned(ternary=ternary)
        stalls = ", ".join(f"{k} {v:,}" for k, v in r["stalls"].items() if v)
        lines.append(
            f"| {run.model} | {run.configuration} | {'ternary' if ternary else 'int8, screened'} | {run.candidates} | {r['tokens_per_s']:.2f} | {run.decode:g} | {r['cycles_per_pass']:,} | {r['gb_per_s']:.2f} | "
            f"{r['share_of_beat_rate'] / run.memory_rate:.2%} | {predicted:,} ({predicted / r['cycles_per_pass'] - 1:+.2%}) | {stalls} |"
        )
    lines += [
        "",
        "| model | prompt | TTFT, s | tokens/s | to reach | passes: cycles |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in reports.items():
        if r["prefill"]:
            run, cycles = RUNS[name], ", ".join(format(p["cycles"], ",") for p in r["prefill"])
            lines.append(
                f"| {run.model} | {run.prompt} | {r['ttft_s']:.4f} | {r['prefill_tokens_per_s']:.0f} | {run.prefill:g} | {cycles} |"
            )
    return "\n".join([*lines, *plans()]) + "\n"


PLANS = (
    ("Ternary Bonsai 1.7B", "bonsai-1.7b", "kv260_bonsai"),
    ("Ternary Bonsai 4B", "bonsai-4b", "kv260_bonsai_large"),
    ("Ternary Bonsai 8B", "bonsai-8b", "kv260_bonsai_large"),
    ("Falcon-E 1B", "falcon-e-1b", "kv260_large"),
    ("Falcon-E 3B", "falcon-e-3b", "kv260_large"),
    ("Falcon3 1B", "falcon3-1b", "kv260_large"),
    ("Falcon3 3B", "falcon3-3b", "kv260_large"),
    ("Llama3-8B-1.58", "llama3-8b", "kv260_large"),
)
"""What runs where: name, shape, configuration."""


def plans() -> list[str]:
    """What runs where, how fast by the plan, with how much memory."""
    lines = [
        "",
        "## What runs where",
        "",
        f"By `tellme plan` with {KEYS} keys (not simulated but where it stands above), and the buffer in the board's memory with a cache of {CACHE:,} positions of 8 bits: of the full head, every logit written; and with {CANDIDATES} candidates, of a ternary head (Ternary Bonsai) from the same buffer, of one of int8 rows with its ternary copy. Buffers above 2,048 MiB are longer than one piece of the board's memory: these do not run there yet ([boards](../boards.md)).",
        "",
        "| model | configuration | full head: tokens/s | buffer, MiB | candidates: tokens/s | buffer, MiB | a token reads, MB | prefill of 128, tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, name, configuration in PLANS:
        spec, config = SHAPES[name], resolve(None, CONFIGURATIONS / f"{configuration}.toml", ()).config
        memory, cells = SustainedMemory(MEMORY), []
        for planes in (0, 1):
            candidates = CANDIDATES if planes else 0
            token = predict(steps(spec, config, [KEYS], [0], 1, candidates), config, memory)
            program = compile_sections(name, spec, planned_sections(spec, config, planes), config, context=CACHE)
            size = buffer_bytes(config, program.window_beats, phases(config)) / MIB
            cells += [f"{config.clock_hz / token.cycles:.1f}", f"{size:,.0f}"]
        passes = chunks(config, spec.heads // spec.kv_heads, KEYS)
        cycles = sum(
            predict(
                steps(spec, config, range(at, at + n), [0] * n, int(at + n == KEYS), candidates), config, memory
            ).cycles
            for at, n in passes
        )
        read = token.beats * config.beat_bytes / 1e6
        rate = KEYS * config.clock_hz / cycles
        lines.append(f"| {title} | {configuration} | {' | '.join(cells)} | {read:,.0f} | {rate:.0f} |")
    return lines


def test_write_the_page() -> None:
    """Last: everything is measured by now."""
    PAGE.write_text(page(json.loads(FIGURES.read_text())))
