"""Synthesis of the whole kv260 accelerator, and two small blocks routed on an ECP5.

Run by `make bench`; writes docs/measurements/synth.md and synth.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hw.synth.netlist import CHIP

FOLDER = Path(__file__).parent.parent / "docs" / "measurements"
COMMAND = ["synth", "--board", "kv260", "--ecp5", "--json"]
COLUMNS = ("lut_logic", "lut_memory", "lut", "ff", "carry", "dsp", "ramb36", "uram", "levels")


def test_kv260_is_synthesised_and_small_blocks_are_routed() -> None:
    out = subprocess.run(
        [sys.executable, "-c", "from host.cli import main; main()", *COMMAND],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    report = json.loads(out.stdout)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "synth.json").write_text(out.stdout)
    (FOLDER / "synth.md").write_text(page(report))
    assert all(report["total"][c] < CHIP[c] for c in CHIP), "it does not fit the chip"


def page(report: dict) -> str:
    """The tables as a document."""
    lines = [
        "# Synthesis",
        "",
        f"`tellme {' '.join(COMMAND)}` (bench/test_synth.py); {report['tool']}, `synth_xilinx -family xcup`, each block flattened, then joined. ",
        "Estimated: Yosys's cells, not a placed design. LUT as memory counts the LUTs that a LUT-RAM or shift register",
        "occupies; ramb36 counts two RAMB18 as one. Levels: the longest path between registers that ends in the block, in",
        "LUT levels; a carry chain of up to 32 bits counts as two, besides the LUT in front of it (`hw/synth/levels.py`).",
        "",
        "| block | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]

    def row(name: str, record: dict) -> str:
        return f"| {name} | " + " | ".join(f"{record[c]:,g}" for c in COLUMNS) + " |"

    for name, record in sorted(report["blocks"].items(), key=lambda item: -item[1]["lut"]):
        lines.append(row(name, record))
    total = report["total"]
    lines.append(row("**total**", total))
    share = [f"{total[c] / CHIP[c]:.1%}" if c in CHIP else "" for c in COLUMNS]
    lines.append("| of the chip | " + " | ".join(share) + " |")
    lines += [
        "",
        "Routed by nextpnr on an ECP5-85F, speed grade 8 (40 nm, LUT4), with a 16-byte beat and two lanes:",
        "",
        "| block | Fmax, MHz | LUT4 | FF | MULT18X18D | DP16KD |",
        "|---|---|---|---|---|---|",
    ]
    for name, r in report["ecp5"].items():
        lines.append(f"| {name} | {r['fmax_mhz']:g} | {r['lut4']:,} | {r['ff']:,} | {r['dsp']} | {r['ram']} |")
    return "\n".join(lines) + "\n"
