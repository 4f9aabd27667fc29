"""Recordings of passes. Whole ones: tests/machine/test_bench.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tellme.sim import trace


def test_a_recording_without_a_pass_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="no pass was recorded"):
        trace.read(tmp_path / "empty", [])
