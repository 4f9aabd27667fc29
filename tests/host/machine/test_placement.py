"""Under which name a placement is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tellme.golden.boards import BOARDS
from tellme.golden.config import KV260
from tellme.host.machine import placement

KIB = 1024


def test_what_is_not_stored_is_the_boards_own_with_its_modelled_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    found, board = placement.in_use(KV260, "board"), BOARDS["kv260"]
    assert found.phases == board.phases and found.rate == board.memory_rate is not None
    assert placement.in_use(replace(KV260, ports=2, score_words=4096), "board").rate is None


def test_ports_unlike_the_presets_have_a_placement_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    two = replace(KV260, ports=2, score_words=4096)
    placement.store(KV260, "board", [0, 4 * KIB, 8 * KIB, 12 * KIB], 1e9)
    placement.store(two, "board", [0, 8 * KIB], 2e9)
    assert list(json.loads(placement.path().read_text())) == ["kv260", "kv260:2x128"]
    assert placement.in_use(KV260, "board").kib == [0, 4, 8, 12] and placement.in_use(two, "board").kib == [0, 8]
    assert placement.in_use(two, "board").rate == 2e9 and "tellme tune" not in placement.in_use(two, "sim").source
