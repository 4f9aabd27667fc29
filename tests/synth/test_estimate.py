"""Area without synthesis, held against what Yosys gave."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest

from bench.area import PLACES, place
from tellme.golden.config import TINY
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
        ((80, 128, ""), (1.5, 0)),
        ((288, 4096, ""), (0, 4)),
        ((132, 2048, ""), (7.5, 0)),
        ((24, 8192, "ultra"), (0, 1)),
        ((48, 8192, "ultra"), (0, 2)),
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


def test_memories_and_multipliers_follow_exactly() -> None:
    """DSPs, block RAM and UltraRAM of every block of every point, as Yosys mapped them."""
    known = points()
    assert len(known) >= 10
    for p in known:
        for name, found in p.counts.items():
            exact = {m: p.blocks[name][m] for m in ("dsp", "ramb36", "uram")}
            assert {m: found[m] for m in exact} == exact, (p.config, name)


def test_points_are_counted_as_now() -> None:
    """What a small block is written of in its point is what it is counted as; a change of the counting needs new points."""
    for p in (p for p in points() if p.config.name != "kv260"):
        for name in {"registers", "reader", "program", "tlmm"} & p.counts.keys():
            if p.config.beat_bytes == 16:
                now = counts(p.config, [name])[name]
                assert p.counts[name] == {k: round(v, 2) for k, v in now.items()}, (p.config, name)


def test_points_that_were_left_out_are_predicted() -> None:
    """Each large block of each point, from the other points. Figures: docs/measurements/explore.md."""
    found = [e for e in left_out(points()) if e["measured"] > 1000 and e["others"]]
    errors = {m: [abs(e["error"]) for e in found if e["metric"] == m] for m in ("lut", "ff")}
    assert len(errors["lut"]) >= 50
    assert median(errors["ff"]) <= 0.01 and max(errors["ff"]) <= 0.10
    assert median(errors["lut"]) <= 0.03 and max(errors["lut"]) <= 0.10
    assert median([abs(e["error"]) for e in found if e["metric"] in METRICS]) <= 0.03


def test_the_whole_is_near_what_was_synthesised() -> None:
    """The KV260, of which every block is a point."""
    whole = next(p for p in points() if p.config.name == "kv260")
    blocks = model().blocks(whole.config)
    for m in METRICS:
        measured = sum(b[m] for b in whole.blocks.values())
        assert abs(sum(b[m] for b in blocks.values()) - measured) <= 0.05 * measured, m


def test_points_are_places_of_the_bench() -> None:
    known = [place(preset, changes) for preset, changes, _ in PLACES]
    assert all(p.config in known for p in points())


def test_a_block_is_counted_by_all_that_it_is_made_of() -> None:
    """Counts are kept; what differs must not be taken for the same."""
    turned = counts(replace(TINY, hadamard=True), ["elementwise"])["elementwise"]
    assert turned["dsp"] > counts(TINY, ["elementwise"])["elementwise"]["dsp"]
    without = counts(replace(TINY, ternary_head=False), ["screened_head"])["screened_head"]
    assert counts(TINY, ["screened_head"])["screened_head"]["lut_ram"] > without["lut_ram"]
