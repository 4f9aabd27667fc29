"""What this generator predicts for published design points, beside what was published: `python -m bench.papers` (or `--check`).

Writes docs/measurements/papers.md. Speed is that of `tellme plan`, area that of the fitted model: nothing is simulated.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tellme.golden.config import KV260, AcceleratorConfig
from tellme.golden.shapes import SHAPES
from tellme.host.configuration import resolve
from tellme.host.machine.exploration import Question, task_of
from tellme.hw.explore import Speed, Workload, speed
from tellme.hw.synth.estimate import METRICS, model
from tellme.sim.timing import timing

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "measurements" / "papers.md"
FOLDER = ROOT / "docs" / "examples" / "configurations"
MODEL = "bitnet-0.7b"


@dataclass(frozen=True)
class Published:
    """A system of a paper on a KV260, and its configuration here.

    Parameters
    ----------
    decode : tokens/s, the most that is stated; with how many keys is not.
    first : s until the first token, by tokens of the prompt. area : None: not found.
    """

    name: str
    paper: str
    file: str
    decode: float
    first: Mapping[int, float]
    area: Mapping[str, float] | None

    @property
    def config(self) -> AcceleratorConfig:
        return resolve(None, FOLDER / self.file, ()).config


PUBLISHED = (
    Published(
        "TeLLMe v2", "arXiv 2510.15926", "tellme_v2.toml", 25.0, {64: 0.45, 128: 0.96},
        {"lut": 98_300, "ff": 136_700, "dsp": 610, "ramb36": 98.5, "uram": 60},
    ),
    Published("PD-Swap", "arXiv 2512.11550", "pd_swap.toml", 27.0, {768: 8.80}, None),
)  # fmt: skip

CONTEXTS = (128, 512, 1000)
"""Cached keys that decode is predicted with."""


@cache
def predicted(config: AcceleratorConfig, context: int, prompt: int = 0) -> Speed:
    """Speed of a configuration."""
    question = Question(MODEL, SHAPES[MODEL], config, {}, Workload(context=context), timing("kv260"), prompt)
    return speed(task_of(question, config))


def estimated(config: AcceleratorConfig) -> list[str]:
    """Area of a configuration, to two or three digits."""
    found = model().total(config)
    return [f"{round(found[m], -2):,.0f}" if m in ("lut", "ff") else f"{found[m]:,.0f}" for m in METRICS]


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _table(header: tuple[str, ...], rows: list[str]) -> list[str]:
    return [_row(*header), "|" + "---|" * len(header), *rows]


def rows(p: Published | None) -> tuple[list[str], list[str], list[str]]:
    """Of a configuration, None: the preset: its lines of the tables of decode, prefill and area."""
    config = KV260 if p is None else p.config
    file = "kv260" if p is None else f"[{p.file.removesuffix('.toml')}](../examples/configurations/{p.file})"
    rates = (f"{predicted(config, c).tokens_per_s:.1f}" for c in CONTEXTS)
    first = []
    for tokens, seconds in (p.first if p else {t: None for q in PUBLISHED for t in q.first}).items():
        ttft = predicted(config, 128, tokens).ttft_s
        assert ttft is not None
        said = f"{p.name}: {seconds:.2f} s, {tokens / seconds:.0f}" if p and seconds else ""
        first.append(_row(file, tokens, f"{ttft:.2f} s, {tokens / ttft:.0f}", said))
    area = [_row(f"{p.name}, published", *(f"{p.area[m]:,}" for m in METRICS))] if p and p.area else []
    area.append(_row(f"{file}, estimated", *estimated(config)))
    return [_row(file, *rates, f"{p.name}: {p.decode:.0f}" if p else "")], first, area


def page() -> str:
    """Text of the page."""
    every = [rows(p) for p in (*PUBLISHED, None)]
    decode, first, area = (sum((r[i] for r in every), []) for i in range(3))
    papers = " and ".join(f"{p.name} ({p.paper})" for p in PUBLISHED)
    return "\n".join(
        [
            "# Design points of the papers",
            "",
            f"{papers} run BitNet 0.73B on the KV260 too. Their parameters, as far as they are stated, are configurations here; each file says what is published and what assumed.",
            "What this generator predicts for them, by `tellme plan` with the memory of the KV260 and by the fitted model of area, stands beside what was published. **Predicted is not measured**: nothing here ran on a board,",
            "while the papers' speeds are of silicon. This page is made by `python -m bench.papers`.",
            "",
            "Not stated where we could read (abstracts, and quotations of the papers): ports and tile sizes, group size, tokens a pass, the number of keys that decode was measured with. The papers' own machines differ besides: there the output",
            "head is partly the CPU's work, prefill and decode have attention units of their own (PD-Swap's are swapped by partial reconfiguration), weights are buffered on the chip. So rows with a paper's name say what *this* architecture does",
            "with as much memory as the paper seems to use, not what the paper's should do. `kv260` is this project's preset on the same chip: four ports, 16 lanes.",
            "",
            "## Decode, tokens/s",
            "",
            *_table(("configuration", *(f"{c:,} keys" for c in CONTEXTS), "published, at most"), decode),
            "",
            "## Prefill: first token after, and tokens/s of the prompt",
            "",
            *_table(("configuration", "prompt, tokens", "predicted", "published"), first),
            "",
            "PD-Swap's 8.80 s are from a talk about the paper, which gives 11.10 s for the unit that is not swapped; the abstract's 20 to 25 % agree.",
            "",
            "## Area",
            "",
            *_table(("", "LUT", "FF", "DSP", "BRAM36", "UltraRAM"), area),
            "",
        ]
    )  # fmt: skip


def main() -> int:
    text = page()
    if "--check" in sys.argv:
        return int(not PAGE.exists() or PAGE.read_text() != text)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
