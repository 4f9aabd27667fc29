"""The netlists that Yosys maps, simulated with its models of the vendor's cells, pass the tests of their RTL.

Run by `make bench`: the builds take minutes. Memories are distributed RAM here (`hw.synth.mapped`).
"""

from __future__ import annotations

from tests.attention import test_unit as attention
from tests.elementwise.test_units import run_features
from tests.tlmm import test_engine as tlmm
from tests.tlmm.bench import run


def test_tlmm() -> None:
    parameters = {"preset": "one", "seed": 13, "beats": 230, "rows": 180, "quantised": 180}
    run(tlmm.CONFIGS["one"], tlmm.__name__, "check_grid", tlmm.WIDE, form="netlist", **parameters)


def test_dot_engine() -> None:
    """The multiplier array in its unit: scores, weighted sums, logits."""
    cases = [
        attention.case(32, [33, 34], heads=4, kv_heads=2),
        attention.case(96, [40], heads=2, kv_heads=1),
        attention.case(32, [45, 46, 47, 48], heads=2, kv_heads=1, kind="saturated"),
        {"inputs": 64, "rows": 96, "first": 0, "count": 2},
    ]
    attention.run("tiny", cases, form="netlist")


def test_epilogue_and_statistics() -> None:
    run_features("netlist")
