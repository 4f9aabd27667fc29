"""Area without synthesis, held against what Yosys gave."""

from __future__ import annotations

from statistics import median

import pytest

from tellme.hw.synth.estimate import METRICS, counts, left_out, model, points, ram


@pytest.mark.parametrize(
    "memory,found",
    [
        # Of `tellme synth --board kv260` and of small machines: blocks whose memories are few.
        ((512, 512, ""), (7.5, 0)),
        ((128, 768, ""), (4, 0)),
        ((32, 1024, ""), (1, 0)),
        ((32, 512, ""), (0.5, 0)),
        ((352, 512, ""), (5, 0)),
        ((88, 256, ""), (1.5, 0)),
        ((76, 128, ""), (0, 0)),
        ((128, 10240, "ultra"), (0, 6)),
        ((64, 8192, "ultra"), (0, 2)),
    ],
)
def test_memories_take_what_yosys_gives_them(memory: tuple[int, int, str], found: tuple[float, float]) -> None:
    width, depth, style = memory
    assert ram(width, depth, style, ultra=True)[1:] == found
    assert ram(width, depth, "distributed", ultra=True)[1:] == (0, 0)
    if style == "ultra":
        assert ram(width, depth, style, ultra=False)[2] == 0 < ram(width, depth, style, ultra=False)[1]


def test_counts_are_those_of_the_points() -> None:
    """DSPs and memories of every block that is the same as when it was measured."""
    for p in points():
        found = counts(p.config, p.blocks)
        for name in ("tlmm", "elementwise", "program"):
            if name in p.blocks:
                assert {m: found[name][m] for m in ("dsp", "ramb36", "uram")} == {
                    m: p.blocks[name][m] for m in ("dsp", "ramb36", "uram")
                }, (p.config, name)


def test_left_out_points_are_predicted() -> None:
    errors = [abs(e["error"]) for e in left_out(points()) if e["metric"] in ("lut", "ff") and e["measured"] > 1000]
    assert median(errors) < 0.10, errors


def test_the_whole_is_near_what_was_synthesised() -> None:
    whole = points()[0]
    found = model().total(whole.config)
    for m in METRICS:
        measured = sum(b[m] for b in whole.blocks.values())
        assert abs(found[m] - measured) <= 0.05 * measured, m
