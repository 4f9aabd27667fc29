"""Python in the documentation, to be run by tests: the blocks of a page are one program."""

from __future__ import annotations

import re
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[str]:
    """Pages with blocks of Python, from the repository."""
    every = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "demo").rglob("*.md")]
    return sorted(str(p.relative_to(ROOT)) for p in every if BLOCK.search(p.read_text()))


def program(page: str, instead: dict[str, str] | None = None) -> CodeType:
    """A page's program; each line has its number in the page.

    Parameters
    ----------
    instead : texts of it, and what stands there in the test; each must be found.
    """
    text = (ROOT / page).read_text()
    lines: list[str] = []
    for found in BLOCK.finditer(text):
        lines += [""] * (text[: found.start(1)].count("\n") - len(lines)) + found[1].splitlines()
    source = "\n".join(lines) + "\n"
    for here, there in (instead or {}).items():
        assert here in source, f"{page}: no {here!r}"
        source = source.replace(here, there)
    return compile(source, str(ROOT / page), "exec")
