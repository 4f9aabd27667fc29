"""Configurations far from the presets elaborate, pass lint, and run the demo model bit-exactly. (Small ones: tests/machine.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.configurations import LARGE, SMALL, lint, speak


@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_a_configuration_speaks_bit_exactly(name: str, tmp_path: Path) -> None:
    changes = {**SMALL, **LARGE}[name]
    lint(changes, tmp_path)
    speak(changes, tokens=6)
