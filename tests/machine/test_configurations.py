"""Configurations far from the presets speak bit-exactly on their RTL. Larger ones: bench/test_configurations.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.configurations import SMALL, lint, speak


@pytest.mark.parametrize("name", SMALL)
def test_a_configuration_speaks_bit_exactly(name: str, tmp_path: Path) -> None:
    lint(SMALL[name], tmp_path)
    facts = speak(SMALL[name])
    ports, width = SMALL[name].get("ports", 1), SMALL[name].get("port_bytes", 16)
    assert facts["beat_bytes"] == ports * width  # type: ignore[operator]
