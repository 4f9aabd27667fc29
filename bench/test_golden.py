"""Speed and peak memory of the golden model at the published shapes, each in a process of its own.

Run by `make bench`; writes docs/measurements/golden.md.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellme.golden.shapes import SHAPES

PAGE = Path(__file__).parent.parent / "docs" / "measurements" / "golden.md"

LIMITS = {"bitnet-0.7b": (20.0, 1.0, 3.0), "bitnet-2b": (5.0, 0.5, 6.0)}
"""Least tokens/s of prefill and of decode on two cores, and most GiB. A loaded machine gets a share of it."""

CASES = [("bitnet-0.7b", 256), ("bitnet-0.7b", 1024), ("bitnet-2b", 256)]


def processor() -> str:
    """What the machine calls its processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


@pytest.fixture(scope="module")
def rows() -> list[str]:
    return [
        "# Speed and memory of the golden model",
        "",
        "`make bench` (bench/test_golden.py; one line of it: `python -m bench.golden_speed bitnet-0.7b --prompt 256`).",
        "Random ternary weights of the exact shapes on `kv260` limits; a prompt in an empty cache, then 16 tokens decoded one by one.",
        f"{processor()}, NumPy {np.__version__}. Load is the machine's one-minute average before and after; tokens/s shrink with it, "
        "processor seconds (all threads) hardly do.",
        "",
        "| shape | prompt | prefill, tokens/s | prefill, CPU s/token | decode, tokens/s | decode, CPU s/token | peak memory | cores | load |",
        "|---|---|---|---|---|---|---|---|---|",
    ]


@pytest.mark.parametrize(("name", "prompt"), CASES)
def test_golden_is_usable_at_published_shapes(name: str, prompt: int, rows: list[str]) -> None:
    assert name in SHAPES
    command = [sys.executable, "-m", "bench.golden_speed", name, "--prompt", str(prompt)]
    r: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    rows.append(
        f"| {name} | {prompt:,} | {r['prefill_tokens_per_s']:.1f} | {r['prefill_cpu_s_per_token']:.3f} "
        f"| {r['decode_tokens_per_s']:.2f} | {r['decode_cpu_s_per_token']:.2f} | {r['peak_gib']:.2f} GiB "
        f"| {r['cores']} | {r['load'][0]:.1f}, {r['load'][1]:.1f} |"
    )
    print(rows[-1], flush=True)
    PAGE.write_text("\n".join(rows) + "\n")
    prefill, decode, memory = LIMITS[name]
    share = 1 / max(1.0, max(r["load"]) / r["cores"])
    assert r["prefill_tokens_per_s"] >= prefill * share and r["decode_tokens_per_s"] >= decode * share
    assert r["peak_gib"] < memory
