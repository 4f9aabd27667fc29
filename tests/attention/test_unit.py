"""The attention unit equals golden.attention and golden.head bit for bit."""

from __future__ import annotations

from typing import Any

import cocotb

from hw.attention import AttentionUnit
from sim.runner import parameters, simulate
from tests.attention.bench import CONFIGS, Bench, attention_job, head_job


def case(dim: int, positions: list[int], *, heads: int = 1, kv_heads: int = 1, slots: list[int] | None = None, **more: Any):
    return {
        "heads": heads,
        "kv_heads": kv_heads,
        "dim": dim,
        "positions": positions,
        "slots": slots or [0] * len(positions),
        **more,
    }


def run(config: str, cases: list[dict[str, Any]], *, stall: float = 0.0, seed: int = 1) -> None:
    simulate(
        AttentionUnit(CONFIGS[config]),
        __name__,
        testcase="check_jobs",
        parameters={"config": config, "cases": cases, "stall": stall, "seed": seed},
    )


@cocotb.test()
async def check_jobs(dut: Any) -> None:
    p = parameters()
    c = CONFIGS[p["config"]]
    bench = Bench(dut, c)
    await bench.reset()
    for i, x in enumerate(p["cases"]):
        job = (head_job if "rows" in x else attention_job)(c, {"seed": p["seed"] + i, **x})
        dut._log.info(f"job {i}: {x}")
        r = await bench.run(job, stall=p["stall"], seed=p["seed"] + i)
        dut._log.info(f"job {i}: {r}")


def test_first_token() -> None:
    run("tiny", [case(32, [0])])
