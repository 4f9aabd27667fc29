"""The attention unit equals golden.attention and golden.head bit for bit."""

from __future__ import annotations

from typing import Any

import cocotb
import pytest

from tellme.golden.config import AcceleratorConfig
from tellme.hw.attention import AttentionUnit
from tellme.hw.attention.cycles import expected_cycles, expected_head_cycles
from tellme.sim.runner import parameters, simulate
from tests.attention.bench import CONFIGS, NARROW, Bench, attention_job, head_job


def case(
    dim: int, positions: list[int], *, heads: int = 1, kv_heads: int = 1, slots: list[int] | None = None, **more: Any
):
    return {
        "heads": heads,
        "kv_heads": kv_heads,
        "dim": dim,
        "positions": positions,
        "slots": slots or [0] * len(positions),
        **more,
    }


def run(
    config: str, cases: list[dict[str, Any]], *, stall: float = 0.0, pause: int = 0, seed: int = 1, form: str = "rtl"
) -> None:
    simulate(
        AttentionUnit(CONFIGS[config]),
        __name__,
        testcase="check_jobs",
        parameters={"config": config, "cases": cases, "stall": stall, "pause": pause, "seed": seed},
        form=form,
    )


def predicted(c: AcceleratorConfig, x: dict[str, Any]) -> int:
    if "rows" in x:
        return expected_head_cycles(c, inputs=x["inputs"], vocabulary=x["rows"], head_count=x["count"])
    names = {"heads": "heads", "kv_heads": "kv_heads", "head_dim": "dim", "positions": "positions", "slots": "slots"}
    narrow = dict(zip(("k_narrow", "v_narrow"), map(bool, NARROW[x.get("kv", "8")]), strict=True))
    return expected_cycles(c, **{k: x[v] for k, v in names.items()}, **narrow)


@cocotb.test()
async def check_jobs(dut: Any) -> None:
    p = parameters()
    c = CONFIGS[p["config"]]
    bench = Bench(dut, c)
    await bench.reset()
    wrong = []
    for i, x in enumerate(p["cases"]):
        job = (head_job if "rows" in x else attention_job)(c, {"seed": p["seed"] + i, **x})
        dut._log.info(f"job {i}: {x}")
        r = await bench.run(job, stall=p["stall"], pause=p["pause"], seed=p["seed"] + i)
        expected = predicted(c, x)
        dut._log.info(f"job {i}: {r}, expected {expected}")
        if abs(r.cycles - expected) > 0.02 * r.cycles:
            wrong.append(f"job {i}, {x}: {r.cycles} cycles, expected {expected}")
    assert p["stall"] or p["pause"] or not wrong, "\n".join(wrong)


STALLS = [0.0, 0.4]


def edges(key_block: int) -> list[int]:
    """Cached keys around the edges of key blocks."""
    return [0, 1, 2, key_block - 1, key_block, key_block + 1, 3 * key_block + 5]


@pytest.mark.parametrize("stall", STALLS)
def test_contexts_of_one_lane_at_the_edges_of_key_blocks(stall: float) -> None:
    run("tiny", [case(32, [n], heads=2, kv_heads=2) for n in edges(32)], stall=stall)


@pytest.mark.parametrize("stall", STALLS)
def test_head_dimensions_and_groups(stall: float) -> None:
    cases = [
        case(dim, [40 + i for i in range(lanes)], heads=group * kv_heads, kv_heads=kv_heads)
        for dim, group, kv_heads, lanes in [
            (32, 1, 2, 4),
            (64, 2, 2, 3),
            (96, 1, 2, 1),
            (96, 4, 1, 4),
            (128, 4, 1, 3),
            (64, 8, 1, 4),
            (32, 4, 3, 1),
        ]
    ]
    run("tiny", cases, stall=stall)


@pytest.mark.parametrize("stall", STALLS)
def test_slots(stall: float) -> None:
    cases = [
        case(32, [33, 34, 5, 6], slots=[0, 0, 3, 3], heads=4, kv_heads=2),
        case(64, [0, 70, 0, 1], slots=[1, 0, 2, 2], heads=2, kv_heads=1),
        case(32, [9, 8, 7, 6], slots=[0, 1, 2, 3], heads=1, kv_heads=1),
        case(32, [5, 31, 32, 33], slots=[0, 1, 1, 1], heads=4, kv_heads=1),
    ]
    run("tiny", cases, stall=stall)


def test_scores_that_saturate_are_equal_or_differ_by_magnitudes() -> None:
    cases = [
        case(32, [45 + i for i in range(lanes)], heads=2, kv_heads=1, kind=kind)
        for kind in ("equal", "saturated", "wild")
        for lanes in (1, 4)
    ]
    run("tiny", cases)


def test_keys_unlike_the_others() -> None:
    """Attention sinks and their opposite; V scales that are zero or not finite."""
    kinds = ("sink", "spike", "infinite", "NaN", "nothing")
    run(
        "tiny",
        [case(32, n, heads=2, kv_heads=1, kind=kind) for kind in kinds for n in ([70], [41, 42, 43, 44], [0, 1])],
    )


def test_keys_unlike_the_others_with_two_keys_a_beat() -> None:
    kinds = ("sink", "spike", "infinite", "NaN", "nothing")
    run("wide", [case(64, n, heads=4, kv_heads=2, kind=kind) for kind in kinds for n in ([71, 72], [9, 10, 11, 12])])


def test_full_context() -> None:
    run("tiny", [case(32, [252, 253, 254, 255], heads=2, kv_heads=1), case(64, [255], heads=1, kv_heads=1)])


def test_the_largest_sums_fit_their_accumulators() -> None:
    """Every key of a full context at full weight with every value at one end of int8; dot products at both ends of theirs."""
    full = [252, 253, 254, 255]
    cases = [case(32, full, heads=1, kv_heads=1, kind=kind) for kind in ("most negative", "most positive", "dots")]
    cases += [
        case(128, full[-1:], heads=2, kv_heads=1, kind=kind) for kind in ("most negative", "most positive", "dots")
    ]
    heads = [{"inputs": n, "rows": 33, "first": 0, "count": 2, "kind": "extreme"} for n in (256, 32)]
    run("tiny", [*cases, *heads])


def test_the_largest_sums_fit_with_two_keys_a_beat() -> None:
    cases = [
        case(64, [252, 253, 254, 255], heads=1, kv_heads=1, kind=kind) for kind in ("most negative", "most positive")
    ]
    cases += [case(128, [255], heads=2, kv_heads=1, kind="dots")]
    run("wide", [*cases, {"inputs": 256, "rows": 33, "first": 1, "count": 2, "kind": "extreme"}])


def test_values_that_come_slower_than_they_are_used() -> None:
    """More beats than the tile store holds: every run of the V part waits for its beats."""
    run("tiny", [case(128, [n], heads=2, kv_heads=2) for n in (67, 200)], stall=0.6)


def test_memory_that_stops_for_longer_than_all_that_it_gave_lasts() -> None:
    """Whatever waits for a beat finds none for many cycles: of keys, of values, of own ones."""
    run("tiny", [case(32, [n], heads=2, kv_heads=2) for n in (5, 67)], pause=150)


@pytest.mark.parametrize("stall", STALLS)
def test_head(stall: float) -> None:
    cases = [
        {"inputs": 64, "rows": 96, "first": 0, "count": 1},
        {"inputs": 256, "rows": 101, "first": 1, "count": 2},
        {"inputs": 32, "rows": 33, "first": 3, "count": 1, "write": 0},
        {"inputs": 32, "rows": 64, "first": 2, "count": 2, "kind": "ties"},
        {"inputs": 32, "rows": 64, "first": 1, "count": 2, "kind": "same"},
        {"inputs": 32, "rows": 40, "first": 0, "count": 2, "kind": "zero"},
        {"inputs": 32, "rows": 70, "first": 0, "count": 2, "kind": "negative"},
        case(32, [3], heads=2, kv_heads=1),
    ]
    run("tiny", cases, stall=stall)


def test_head_with_two_keys_a_beat() -> None:
    """Two rows' logits are compared at once: the lower wins where they are equal."""
    kinds = ("same", "ties", "zero", "negative")
    run("wide", [{"inputs": 32, "rows": 64, "first": 1, "count": 2, "kind": kind} for kind in kinds])


@pytest.mark.parametrize("stall", STALLS)
def test_results_are_given_out_while_the_next_head_is_summed(stall: float) -> None:
    """Several KV heads of one set of queries and of three, even and odd numbers of them, with and without a cache."""
    lanes = [[0, 1, 2, 3], [0, 1, 2], [30, 31, 32], [62, 63, 64, 65]]
    cases = [case(64, x, heads=n * group, kv_heads=n) for x in lanes for n, group in ((3, 1), (2, 3))]
    run("wide", [*cases, case(128, [5, 6, 0, 1], slots=[0, 0, 1, 1], heads=4, kv_heads=2)], stall=stall)


@pytest.mark.parametrize("stall", STALLS)
def test_two_keys_a_beat(stall: float) -> None:
    cases = [
        case(32, [0]),
        *(case(64, [n], heads=4, kv_heads=2) for n in (1, 2, 31, 32, 33)),
        case(96, [62, 63, 64], heads=1, kv_heads=1),
        case(32, [7, 8, 50, 51], slots=[0, 0, 1, 1], heads=8, kv_heads=1),
        case(32, [7, 50, 51, 52], slots=[0, 1, 1, 1], heads=3, kv_heads=1, kind="wild"),
        {"inputs": 64, "rows": 77, "first": 0, "count": 4},
        {"inputs": 64, "rows": 64, "first": 1, "count": 3, "kind": "ties"},
    ]
    run("wide", cases, stall=stall, form="primitives" if stall else "rtl")


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize("kv", ["8-4", "4"])
@pytest.mark.parametrize("config", ["tiny", "wide"])
def test_caches_below_8_bits(config: str, kv: str, stall: float) -> None:
    """Around the edges of beats, score words and key blocks, own keys that begin in any half of a word; a head between."""
    block = CONFIGS[config].key_block
    cases = [
        *(case(32, [n], heads=2, kv_heads=2, kv=kv) for n in [*range(6), *edges(block)]),
        case(96, [62, 63, 64], heads=1, kv_heads=1, kv=kv),
        case(64, [7, 50, 51, 52], slots=[0, 1, 1, 1], heads=6, kv_heads=2, kv=kv, kind="wild"),
        case(32, [7, 8, 50, 51], slots=[0, 0, 1, 1], heads=8, kv_heads=1, kv=kv),
        {"inputs": 64, "rows": 77, "first": 0, "count": 2},
        case(32, [9, 8, 7, 6], slots=[0, 1, 2, 3], heads=3, kv_heads=1, kv=kv),
        case(64, [35], heads=4, kv_heads=2),
        case(128, [33, 34, 35], heads=4, kv_heads=2, kv=kv),
        *(case(32, [245, 246], heads=1, kv_heads=1, kind=kind, kv=kv) for kind in ("most negative", "dots", "equal")),
    ]
    run(config, cases, stall=stall, form="primitives" if stall and config == "wide" else "rtl")


def test_one_query_at_a_time() -> None:
    cases = [
        case(32, [0]),
        case(64, [35, 36], heads=4, kv_heads=2),
        {"inputs": 64, "rows": 20, "first": 1, "count": 1},
    ]
    run("half", cases)
