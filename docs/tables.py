"""Writes the tables of docs/architecture.md from the code: `python -m docs.tables` (or `--check`)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from golden.config import PRESETS, AcceleratorConfig
from golden.program import FIELDS, Opcode
from golden.registers import BUSY, REGISTERS, STALLS, ErrorCode

PAGE = Path(__file__).parent / "architecture.md"


def _table(header: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows])


def registers() -> str:
    """Register map."""
    rows = [
        (f"0x{r.offset:03X}" + (f" + 4i, i < {r.count}" if r.count > 1 else ""), f"`{r.name}`", r.access, r.doc)
        for r in REGISTERS
    ]
    errors = ", ".join(f"{e.value} {e.name}" for e in ErrorCode)
    return (
        _table(("offset", "register", "access", "meaning"), rows)
        + f"\n\nErrors: {errors}.\n\nStall causes: {', '.join(STALLS)}. Busy units: {', '.join(BUSY)}."
    )


def descriptors() -> str:
    """Fields of every opcode."""
    rows = [
        (op.name, f"`{f.name}`", f.word, f"{f.lsb + f.width - 1}:{f.lsb}", ("binary32: " if f.is_float else "") + f.doc)
        for op in Opcode
        for f in FIELDS[op]
    ]
    return _table(("opcode", "field", "word", "bits", "meaning"), rows)


def presets() -> str:
    """Parameters and derived sizes of the presets."""
    names = [f.name for f in fields(AcceleratorConfig) if f.name != "name"]
    derived = ["beat_bytes", "beat_weights", "groups", "word", "cell", "keys_per_beat", "key_block", "scale_beats"]
    rows = [(f"`{n}`", *(getattr(c, n) for c in PRESETS.values())) for n in names + derived + ["row_width"]]
    return _table(("parameter", *PRESETS), rows)


TABLES: dict[str, Callable[[], str]] = {"presets": presets, "registers": registers, "descriptors": descriptors}


def render(text: str) -> str:
    """`text` with every marked table made anew."""

    def one(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- table: {name} -->\n{TABLES[name]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", one, text, flags=re.S)


def main() -> int:
    text = PAGE.read_text()
    new = render(text)
    if "--check" in sys.argv:
        return int(new != text)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
