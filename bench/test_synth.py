"""Synthesis of the whole accelerators of three boards, of the KV260's configurations for other models, and two small blocks routed on an ECP5.

Run by `make bench`; writes docs/measurements/synth.md and synth.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "measurements"
BOARDS = {"kv260": ["--ecp5"], "ultra96v2": [], "pynq_z2": []}
"""Other boards have the design of the KV260 in a chip with at least as much of everything (tests/platforms)."""
CONFIGURATIONS = ("kv260_decode", "kv260_bonsai", "kv260_bonsai_large", "kv260_large")
"""Files of docs/examples/configurations; they have the limits of the KV260."""
COLUMNS = ("lut_logic", "lut_memory", "lut", "ff", "carry", "dsp", "ramb36", "uram", "levels")
LIMITS = {"lut": 88_000, "ff": 164_000, "dsp": 1_000, "ramb36": 116, "uram": 60, "levels": 6}
"""What the accelerator of the KV260 may take at most."""


def command(name: str) -> list[str]:
    """Of a board, or of a configuration."""
    if name in CONFIGURATIONS:
        return ["synth", "--config", f"docs/examples/configurations/{name}.toml", "--jobs", "2", "--json"]
    return ["synth", "--board", name, *BOARDS[name], "--jobs", "2", "--json"]


@cache
def report(board: str) -> dict[str, Any]:
    out = subprocess.run(
        [sys.executable, "-c", "from tellme.host.cli import main; main()", *command(board)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=FOLDER.parent.parent,
    )
    return dict(json.loads(out.stdout))


@pytest.mark.parametrize("board", BOARDS)
def test_the_accelerator_is_inside_its_chip(board: str) -> None:
    total, chip = report(board)["total"], report(board)["chip"]
    print(board, total, flush=True)
    over = {c: (total[c], chip[c]) for c in chip if total[c] > chip[c]}
    assert not over, f"more than the chip has: {over}"


def test_write_the_page() -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "synth.json").write_text(json.dumps([report(b) for b in BOARDS], indent=1) + "\n")
    (FOLDER / "synth.md").write_text(page())


@pytest.mark.parametrize("column", LIMITS)
@pytest.mark.parametrize("name", ["kv260", *CONFIGURATIONS])
def test_the_kv260_is_within_its_limits(name: str, column: str) -> None:
    assert report(name)["total"][column] <= LIMITS[column]


def page() -> str:
    """The tables as a document."""
    lines = [
        "# Synthesis",
        "",
        f"`make bench` (bench/test_synth.py), or `tellme synth --board kv260`. {report('kv260')['tool']}, `synth_xilinx`, each block flattened, then joined.",
        "Estimated: Yosys's cells, not a placed design, and without the processing system's interconnect. LUT as memory counts the LUTs that a LUT-RAM or shift",
        "register occupies; ramb36 counts two RAMB18 as one. Levels: the longest path between registers that ends in the block, in LUT levels; a carry",
        "chain of up to 32 bits counts as two, besides the LUT in front of it, and the clock-to-out of an UltraRAM as four, of a block RAM as three",
        "(`hw/synth/levels.py`).",
    ]
    for board in (*BOARDS, *CONFIGURATIONS):
        r = report(board)
        total, chip = r["total"], r["chip"]
        lines += [
            "",
            f"## {board}",
            "",
            f"`tellme {' '.join(command(board))}`",
            "",
            "| block | " + " | ".join(COLUMNS) + " |",
            "|---|" + "---|" * len(COLUMNS),
        ]
        for name, record in sorted(r["blocks"].items(), key=lambda item: -item[1]["lut"]):
            lines.append(row(name, record))
        lines.append(row("**total**", total))
        share = ["" if not chip.get(c) else f"{total[c] / chip[c]:.1%}" for c in COLUMNS]
        lines.append("| of the chip | " + " | ".join(share) + " |")
        if board.startswith("kv260"):
            lines.append("| at most | " + " | ".join(f"{LIMITS[c]:,}" if c in LIMITS else "" for c in COLUMNS) + " |")
    lines += [
        "",
        "## ECP5",
        "",
        "Routed by nextpnr on an ECP5-85F, speed grade 8 (40 nm, LUT4), with a 16-byte beat and two lanes:",
        "",
        "| block | Fmax, MHz | LUT4 | FF | MULT18X18D | DP16KD |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in report("kv260")["ecp5"].items():
        lines.append(f"| {name} | {r['fmax_mhz']:g} | {r['lut4']:,} | {r['ff']:,} | {r['dsp']} | {r['ram']} |")
    return "\n".join(lines) + "\n"


def row(name: str, record: dict[str, float]) -> str:
    return f"| {name} | " + " | ".join(f"{record[c]:,g}" for c in COLUMNS) + " |"
