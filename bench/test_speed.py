"""The whole models at their real shapes on the RTL of the kv260 preset, in cycles, beside the published systems.

Run by `make bench`; writes docs/measurements/speed.md, speed.json and pictures. Every pass is held against golden.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tellme.golden.boards import clock_floor
from tellme.golden.config import KV260
from tellme.golden.shapes import SHAPES
from tellme.host.commands.pictures import draw
from tellme.host.machine.measurement import Measurement, measure
from tellme.hw.plan import predict, steps
from tellme.sim.stream import SustainedMemory
from tellme.sim.timing import timing

FOLDER = Path(__file__).parent.parent / "docs" / "measurements"
FAST, SLOW = "250 MHz", "200 MHz"
CLOCKS = {FAST: KV260, SLOW: replace(KV260, clock_hz=clock_floor(KV260))}
"""The preset's clock, and the floor that a build may fall to. Both under the timing `kv260`."""
TIMING = timing("kv260")

RUNS: dict[tuple[str, int], dict[str, Any]] = {
    ("bitnet-0.7b", 1): {},
    ("bitnet-0.7b", 128): {"prompt": 64, "complete": True, "trace": True, "logits": True},
    ("bitnet-0.7b", 1024): {"prompt": 128},
    ("bitnet-2b", 1): {},
    ("bitnet-2b", 128): {},
    ("bitnet-2b", 250): {"prompt": 128, "complete": True, "trace": True, "logits": True},
    ("bitnet-2b", 1024): {},
}
"""(model, cached keys of the decode pass): what else is run. `prompt` is prefilled from an empty cache."""

TARGETS = (
    ("0.73B decode, 128 keys, tokens/s", "25-27", "bitnet-0.7b", 128, "tokens_per_s", 70.0),
    ("0.73B decode, 1,024 keys, tokens/s", "9 (v1)", "bitnet-0.7b", 1024, "tokens_per_s", 52.0),
    ("0.73B TTFT, 64 tokens, s", "0.45", "bitnet-0.7b", 128, "ttft_s", -0.06),
    ("0.73B TTFT, 128 tokens, s", "0.96", "bitnet-0.7b", 1024, "ttft_s", -0.092),
    ("2B-4T decode, 250 keys, tokens/s", "18.57", "bitnet-2b", 250, "tokens_per_s", 18.6),
    ("2B-4T prefill, 128 tokens, tokens/s", "28.8", "bitnet-2b", 250, "prefill_tokens_per_s", 450.0),
    ("0.73B share of the beat rate, decode, 128 keys", "0.796", "bitnet-0.7b", 128, "share_of_beat_rate", 0.90),
)
"""Name, published, run, key of the report, what is to be reached (negative: at most)."""


@cache
def measured(model: str, context: int, clock: str) -> Measurement:
    options = {"logits": False} | RUNS[model, context]
    if clock == SLOW:
        options = {k: v for k, v in options.items() if k == "prompt"} | {"logits": False}
    return measure(model, CLOCKS[clock], TIMING, context=context, **options, say=lambda text: print(text, flush=True))


@pytest.mark.parametrize(("model", "context"), RUNS)
@pytest.mark.parametrize("clock", CLOCKS)
def test_the_plan_is_within_three_percent(model: str, context: int, clock: str) -> None:
    m = measured(model, context, clock)
    spec, config = SHAPES[model], CLOCKS[clock]
    predicted = predict(steps(spec, config, [context], [0], 1), config, SustainedMemory(TIMING))
    print(f"{model} {context} {clock}: {m.decode.cycles:,} cycles, planned {predicted.cycles:,}", flush=True)
    assert predicted.cycles == pytest.approx(m.decode.cycles, rel=0.03)
    for p in m.prefill:
        todo = steps(spec, config, range(p.position, p.position + p.lanes), [0] * p.lanes, int(p is m.prefill[-1]))
        assert predict(todo, config, SustainedMemory(TIMING)).cycles == pytest.approx(p.cost.cycles, rel=0.03)


@pytest.mark.parametrize(("model", "context"), [run for run, options in RUNS.items() if options.get("complete")])
def test_multiplying_layers_is_exact_within_half_a_percent(model: str, context: int) -> None:
    error = measured(model, context, FAST).complete_error
    assert error is not None and abs(error) < 0.005


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t[0])
def test_the_target_is_reached(target: tuple[str, str, str, int, str, float]) -> None:
    _, _, model, context, key, bound = target
    value = measured(model, context, FAST).report()[key]
    assert value >= bound if bound > 0 else value <= -bound


def test_write_the_page() -> None:
    """Last: everything is measured by now."""
    FOLDER.mkdir(exist_ok=True)
    lines = [
        "# Speed at real shapes: simulated RTL of the `kv260` preset, timing `kv260`",
        "",
        "`make bench` (bench/test_speed.py), or for one row `tellme bench --model bitnet-0.7b --context 128 --prompt 64`. Synthetic weights, the board's memory timing "
        "(`sim/timing.py`); every pass equals the golden model's, bit for bit. No board has run: published figures are of boards, these are simulated.",
        "",
        "| | published, board | to reach | 250 MHz | 200 MHz (floor) |",
        "|---|---|---|---|---|",
    ]
    for name, published, model, context, key, bound in TARGETS:
        values = [measured(model, context, clock).report()[key] for clock in CLOCKS]
        lines.append(
            f"| {name} | {published} | {bound:g} | {values[0]:.4g} | {values[1]:.4g} |".replace("| -", "| <= ")
        )
    lines += [
        "",
        "## Decode",
        "",
        "| model | keys | clock | cycles a token | tokens/s | GB/s | share of the beat rate | planned cycles (`tellme plan`) | without a beat |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, context in RUNS:
        for clock in CLOCKS:
            r = measured(model, context, clock).report()
            predicted = predict(
                steps(SHAPES[model], CLOCKS[clock], [context], [0], 1), CLOCKS[clock], SustainedMemory(TIMING)
            ).cycles
            stalls = ", ".join(f"{k} {v:,}" for k, v in r["stalls"].items() if v)
            lines.append(
                f"| {model} | {context} | {clock} | {r['cycles_per_pass']:,} | {r['tokens_per_s']:.2f} | {r['gb_per_s']:.2f} | "
                f"{r['share_of_beat_rate']:.2%} | {predicted:,} ({predicted / r['cycles_per_pass'] - 1:+.2%}) | {stalls} |"
            )
    lines += [
        "",
        "## Prefill",
        "",
        "| model | tokens | clock | TTFT, s | tokens/s | passes: cycles |",
        "|---|---|---|---|---|---|",
    ]
    for (model, context), options in RUNS.items():
        if "prompt" in options:
            for clock in CLOCKS:
                r = measured(model, context, clock).report()
                passes = ", ".join(f"{p['cycles']:,}" for p in r["prefill"])
                lines.append(
                    f"| {model} | {r['prompt']} | {clock} | {r['ttft_s']:.4f} | {r['prefill_tokens_per_s']:.0f} | {passes} |"
                )
    lines += ["", "## Multiplied layers against all layers run", "", "| model | keys | multiplied | all run | error |"]
    lines += ["|---|---|---|---|---|"]
    for (model, context), options in RUNS.items():
        if options.get("complete"):
            r = measured(model, context, FAST).report()
            lines.append(
                f"| {model} | {context} | {r['cycles_per_pass']:,} | {r['complete_cycles_per_pass']:,} | {r['complete_error']:+.4%} |"
            )
            draw(measured(model, context, FAST), FOLDER / "pictures")
    for (model, _), options in RUNS.items():
        if options.get("trace"):
            lines += ["", f"## {model}", ""]
            lines += [f"![{p}](pictures/{model}-{p}.svg)" for p in ("roofline", "breakdown", "fifo")]
    (FOLDER / "speed.md").write_text("\n".join(lines) + "\n")
    reports = [measured(model, context, clock).report() for model, context in RUNS for clock in CLOCKS]
    (FOLDER / "speed.json").write_text(json.dumps(reports, indent=1) + "\n")
