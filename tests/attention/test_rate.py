"""The unit takes a beat a cycle at full width."""

from __future__ import annotations

from typing import Any

import cocotb

from tellme.hw.attention import AttentionUnit
from tellme.hw.attention.cycles import expected_cycles
from tellme.sim.runner import parameters, simulate
from tests.attention.bench import CONFIGS, NARROW, Bench, attention_job


@cocotb.test()
async def check_rate(dut: Any) -> None:
    c = CONFIGS["kv260"]
    bench = Bench(dut, c)
    await bench.reset()
    slow = []
    for case in parameters()["cases"]:
        job = attention_job(c, case)
        r = await bench.run(job)
        rate = len(job.beats) / r.stream_cycles
        names = {
            "heads": "heads",
            "kv_heads": "kv_heads",
            "head_dim": "dim",
            "positions": "positions",
            "slots": "slots",
        }
        k_narrow, v_narrow = map(bool, NARROW[case.get("kv", "8")])
        expected = expected_cycles(c, **{k: case[v] for k, v in names.items()}, k_narrow=k_narrow, v_narrow=v_narrow)
        line = f"{case}: {r}, {len(job.beats)} beats, rate {rate:.4f}, expected {expected} cycles"
        dut._log.info(line)
        if rate < case["rate"] or abs(expected - r.cycles) > 0.02 * r.cycles:
            slow.append(line)
    assert not slow, "\n".join(slow)


def test_a_beat_a_cycle_over_1024_keys() -> None:
    """The KV heads of the two reference models, and a full set of queries."""
    one = {"positions": [1024], "slots": [0], "rate": 0.98}
    cases = [
        dict(heads=20, kv_heads=5, dim=128, **one),
        dict(heads=16, kv_heads=16, dim=96, **one),
        # As many queries as attention lanes: the softmax (2 at a time) is just as fast as the stream, and what the
        # first and the last unit cannot hide shows.
        dict(heads=32, kv_heads=4, dim=128, **{**one, "rate": 0.93}),
        dict(heads=10, kv_heads=5, dim=128, positions=[64 + i for i in range(16)], slots=[0] * 16, rate=0),
        # Of 4 bits: a beat is twice the keys, and what a unit cannot hide is twice the share.
        dict(heads=20, kv_heads=5, dim=128, kv="8-4", **{**one, "rate": 0.94}),
        dict(heads=20, kv_heads=5, dim=128, kv="4", **{**one, "rate": 0.87}),
        dict(heads=16, kv_heads=2, dim=96, positions=[64 + i for i in range(5)], slots=[0] * 5, kv="8-4", rate=0),
    ]
    simulate(AttentionUnit(CONFIGS["kv260"]), __name__, testcase="check_rate", parameters={"cases": cases})
