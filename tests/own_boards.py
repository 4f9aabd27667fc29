"""Boards of configuration files in tests: known for the time of one test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tellme.golden.boards import BOARDS
from tellme.golden.config import PRESETS

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "docs" / "examples").glob("*.toml"))


@contextmanager
def forgotten() -> Iterator[None]:
    """What is added to boards and presets inside is gone behind it."""
    boards, presets = dict(BOARDS), dict(PRESETS)
    try:
        yield
    finally:
        for known, before in ((BOARDS, boards), (PRESETS, presets)):
            known.clear()  # type: ignore[attr-defined]
            known.update(before)  # type: ignore[attr-defined]
