"""The unit takes a beat a cycle at full width."""

from __future__ import annotations

from typing import Any

import cocotb

from hw.attention import AttentionUnit
from sim.runner import parameters, simulate
from tests.attention.bench import CONFIGS, Bench, attention_job


@cocotb.test()
async def check_rate(dut: Any) -> None:
    c = CONFIGS["kv260"]
    bench = Bench(dut, c)
    await bench.reset()
    for case in parameters()["cases"]:
        job = attention_job(c, case)
        r = await bench.run(job)
        rate = len(job.beats) / r.stream_cycles
        dut._log.info(f"{case}: {r}, {len(job.beats)} beats, rate {rate:.4f}")
        assert rate >= 0.98, f"{rate:.4f} beats a cycle, {r}"


def test_a_beat_a_cycle_over_1024_keys() -> None:
    cases = [
        dict(heads=12, kv_heads=3, dim=128, positions=[1024], slots=[0]),
        dict(heads=3, kv_heads=3, dim=96, positions=[1024], slots=[0]),
    ]
    simulate(AttentionUnit(CONFIGS["kv260"]), __name__, testcase="check_rate", parameters={"cases": cases})
