"""The whole models at their real shapes on the RTL of the kv260 preset, in cycles, beside the published systems.

Run by `make bench`; writes docs/measurements/speed.md, speed.json and pictures. Every pass is held against golden.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tellme.golden.boards import clock_floor
from tellme.golden.config import KV260
from tellme.golden.kv import CACHE_FORMATS
from tellme.golden.shapes import SHAPES
from tellme.host.commands.pictures import draw
from tellme.host.machine.measurement import Measurement, measure
from tellme.hw.plan import predict, steps
from tellme.sim.stream import SustainedMemory
from tellme.sim.timing import timing

FOLDER = Path(__file__).parent.parent / "docs" / "measurements"
FAST, SLOW, IDEAL = "250 MHz", "200 MHz", "250 MHz, ideal"
CONDITIONS = {
    FAST: (KV260, timing("kv260")),
    SLOW: (replace(KV260, clock_hz=clock_floor(KV260)), timing("kv260")),
    IDEAL: (KV260, timing("kv260-ideal")),
}
"""The preset's clock, and the floor that a build may fall to, with the board's memory; and a memory without banks, for which
figures were given before rates of boards were known."""

CANDIDATES = 256
"""Of the screened head."""


class Run(NamedTuple):
    """A decode pass behind so many cached keys; `head` full, or screened with 256 candidates; `kv` as `--kv`."""

    model: str
    context: int
    head: str = "full"
    kv: str = "8"

    def __str__(self) -> str:
        return f"{self.model}, {self.context:,} keys, {self.head} head, KV {self.kv}"


RUNS: dict[Run, dict[str, Any]] = {
    Run("bitnet-0.7b", 1): {},
    Run("bitnet-0.7b", 128): {"prompt": 128, "complete": True, "trace": True, "logits": True},
    Run("bitnet-0.7b", 1024): {"prompt": 64},
    Run("bitnet-0.7b", 128, "screened", "8-4"): {},
    Run("bitnet-0.7b", 1024, "screened", "8-4"): {},
    Run("bitnet-0.7b", 1024, "screened", "4"): {},
    Run("bitnet-2b", 1): {},
    Run("bitnet-2b", 128): {},
    Run("bitnet-2b", 250): {"prompt": 128, "complete": True, "trace": True, "logits": True},
    Run("bitnet-2b", 1024): {},
    Run("bitnet-2b", 250, "screened"): {},
    Run("bitnet-2b", 3900, "screened", "4"): {},
}
"""What else is run. `prompt` is prefilled from an empty cache."""
TABLED = [run for run, options in RUNS.items() if "prompt" in options]
"""Runs under every condition; the others under the first one alone."""

TARGETS = (
    ("0.73B decode, 128 keys, tokens/s", "44.2", Run("bitnet-0.7b", 128), "tokens_per_s", 70.0),
    ("0.73B decode, 1,024 keys, tokens/s", "35.0", Run("bitnet-0.7b", 1024), "tokens_per_s", 52.0),
    ("0.73B decode, 128 keys, screened head, KV 8-4", "44.2", Run("bitnet-0.7b", 128, "screened", "8-4"), "tokens_per_s", 86.0),
    ("0.73B decode, 1,024 keys, screened head, KV 8-4", "35.0", Run("bitnet-0.7b", 1024, "screened", "8-4"), "tokens_per_s", 67.0),
    ("0.73B decode, 1,024 keys, screened head, KV 4", "35.0", Run("bitnet-0.7b", 1024, "screened", "4"), "tokens_per_s", 74.0),
    ("0.73B TTFT, 64 tokens, s", "0.45", Run("bitnet-0.7b", 1024), "ttft_s", -0.06),
    ("0.73B TTFT, 128 tokens, s", "0.96", Run("bitnet-0.7b", 128), "ttft_s", -0.092),
    ("2B-4T decode, 250 keys, tokens/s", "18.57", Run("bitnet-2b", 250), "tokens_per_s", 18.6),
    ("2B-4T decode, 250 keys, screened head", "18.57", Run("bitnet-2b", 250, "screened"), "tokens_per_s", 28.0),
    ("2B-4T decode, 3,900 keys, screened head, KV 4", "-", Run("bitnet-2b", 3900, "screened", "4"), "tokens_per_s", 24.0),
    ("2B-4T prefill, 128 tokens, tokens/s", "28.8", Run("bitnet-2b", 250), "prefill_tokens_per_s", 450.0),
    ("0.73B share of the beat rate, decode, 128 keys", "0.796", Run("bitnet-0.7b", 128), "share_of_beat_rate", 0.90),
)  # fmt: skip
"""Name, the fastest that is published of a KV260, run, key of the report, what is to be reached (negative: at most)."""

Reports = dict[tuple[Run, str], dict[str, Any]]
"""What `tellme bench --json` says of a run under a condition."""


@cache
def measured(run: Run, condition: str) -> Measurement:
    options = {"logits": False} | RUNS[run]
    if condition != FAST:
        options = {"logits": False, "prompt": options["prompt"]}
    config, memory = CONDITIONS[condition]
    options |= {"candidates": CANDIDATES * (run.head == "screened"), "kv": CACHE_FORMATS[run.kv]}
    return measure(run.model, config, memory, context=run.context, **options, say=lambda text: print(text, flush=True))


EVERY = [(run, condition) for run in RUNS for condition in CONDITIONS if condition == FAST or run in TABLED]


def planned(run: Run, condition: str, positions: Sequence[int], head_count: int) -> int:
    """Cycles of a pass as `tellme plan` predicts them."""
    config, memory = CONDITIONS[condition]
    candidates = CANDIDATES * (run.head == "screened" and head_count > 0)
    todo = steps(
        SHAPES[run.model], config, positions, [0] * len(positions), head_count, candidates, kv=CACHE_FORMATS[run.kv]
    )
    return predict(todo, config, SustainedMemory(memory)).cycles


@pytest.mark.parametrize(("run", "condition"), EVERY, ids=str)
def test_the_plan_is_within_three_percent(run: Run, condition: str) -> None:
    m = measured(run, condition)
    predicted = planned(run, condition, [run.context], 1)
    print(f"{run}, {condition}: {m.decode.cycles:,} cycles, planned {predicted:,}", flush=True)
    assert predicted == pytest.approx(m.decode.cycles, rel=0.03)
    for p in m.prefill:
        positions = range(p.position, p.position + p.lanes)
        head = int(p is m.prefill[-1])
        assert planned(run, condition, positions, head) == pytest.approx(p.cost.cycles, rel=0.03)


@pytest.mark.parametrize("run", [run for run, options in RUNS.items() if options.get("complete")], ids=str)
def test_multiplying_layers_is_exact_within_half_a_percent(run: Run) -> None:
    error = measured(run, FAST).complete_error
    assert error is not None and abs(error) < 0.005


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t[0])
def test_the_target_is_reached(target: tuple[str, str, Run, str, float]) -> None:
    _, _, run, key, bound = target
    value = measured(run, FAST).report()[key]
    assert value >= bound if bound > 0 else value <= -bound


def page(reports: Reports) -> str:
    """speed.md, of the runs that there are."""
    lines = [
        "# Speed at real shapes: simulated RTL of the `kv260` preset",
        "",
        "`make bench` (bench/test_speed.py), or for one row `tellme bench --model bitnet-0.7b --context 128 --prompt 128 --clock 200`. Synthetic weights; the board's memory (`--timing kv260`, "
        "[held against boards](memory.md)) at the preset's clock and at the floor that a build may fall to, and once `--timing kv260-ideal`, a memory without banks, for which figures were given "
        "before rates of boards were known. Every pass equals the golden model's, bit for bit. No board has run: published figures are of boards, these are simulated.",
        "",
        f"| | published, board | to reach | {' | '.join(CONDITIONS)} |",
        "|---|---|---|" + "---|" * len(CONDITIONS),
    ]
    for name, published, run, key, bound in TARGETS:
        values = [f"{r[key]:.4g}" if (r := reports.get((run, c))) and r[key] is not None else "-" for c in CONDITIONS]
        lines.append(f"| {name} | {published} | {bound:g} | {' | '.join(values)} |".replace("| -0", "| <= 0"))
    if left := [str(run) for run in RUNS if (run, FAST) not in reports]:
        lines += ["", f"Not run: {'; '.join(left)}."]
    lines += [
        "",
        "## Decode",
        "",
        "| model | keys | head, KV | | cycles a token | tokens/s | GB/s | share of the beat rate | planned cycles (`tellme plan`) | without a beat |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (run, condition), r in reports.items():
        predicted = planned(run, condition, [run.context], 1)
        stalls = ", ".join(f"{k} {v:,}" for k, v in r["stalls"].items() if v)
        lines.append(
            f"| {run.model} | {run.context} | {run.head}, {run.kv} | {condition} | {r['cycles_per_pass']:,} | {r['tokens_per_s']:.2f} | {r['gb_per_s']:.2f} | "
            f"{r['share_of_beat_rate']:.2%} | {predicted:,} ({predicted / r['cycles_per_pass'] - 1:+.2%}) | {stalls} |"
        )
    lines += [
        "",
        "## Prefill",
        "",
        "| model | tokens | | TTFT, s | tokens/s | passes: cycles | planned, in all |",
        "|---|---|---|---|---|---|---|",
    ]
    for (run, condition), r in reports.items():
        if r["prefill"]:
            passes, last = r["prefill"], r["prefill"][-1]
            total = sum(p["cycles"] for p in passes)
            predicted = sum(
                planned(run, condition, range(p["position"], p["position"] + p["lanes"]), int(p is last))
                for p in passes
            )
            lines.append(
                f"| {run.model} | {r['prompt']} | {condition} | {r['ttft_s']:.4f} | {r['prefill_tokens_per_s']:.0f} | "
                f"{', '.join(format(p['cycles'], ',') for p in passes)} | {predicted / total - 1:+.2%} |"
            )
    complete = {key: r for key, r in reports.items() if r["complete_error"] is not None}
    if complete:
        lines += [
            "",
            "## Multiplied layers against all layers run",
            "",
            "| model | keys | multiplied | all run | error |",
        ]
        lines += ["|---|---|---|---|---|"]
    for (run, _), r in complete.items():
        lines.append(
            f"| {run.model} | {run.context} | {r['cycles_per_pass']:,} | {r['complete_cycles_per_pass']:,} | {r['complete_error']:+.4%} |"
        )
    for model in sorted({run.model for run, _ in reports}):
        lines += ["", f"## {model}", ""]
        lines += [f"![{p}](pictures/{model}-{p}.svg)" for p in ("roofline", "breakdown", "fifo")]
    return "\n".join(lines) + "\n"


def test_write_the_page() -> None:
    """Last: everything is measured by now."""
    FOLDER.mkdir(exist_ok=True)
    reports = {key: measured(*key).report() for key in EVERY}
    for run, options in RUNS.items():
        if options.get("trace"):
            beside = [measured(r, FAST) for r in RUNS if r.model == run.model and r.head == "screened"]
            draw(measured(run, FAST), FOLDER / "pictures", beside)
    (FOLDER / "speed.md").write_text(page(reports))
    (FOLDER / "speed.json").write_text(json.dumps(list(reports.values()), indent=1) + "\n")
