"""The search over configurations: its space, what fits a chip, and what is best."""

from __future__ import annotations

from dataclasses import replace

from tellme.golden.boards import BOARDS
from tellme.golden.config import KV260, PYNQ_Z2
from tellme.hw.explore import candidates, default_space, fits, front


def test_every_candidate_can_be_built_once_and_the_base_is_first() -> None:
    for name in BOARDS:
        board = BOARDS[name]
        found = list(candidates(board.config, default_space(board.config, board), board))
        assert found[0] == board.config and len(set(found)) == len(found) > 50
        ports = {p for p in (1, 2, 4) if p <= len(board.memory_ports)}
        assert {c.ports for c in found} <= ports
        assert {c.ports for c in found} == ports or board.port_bits == 64
    space = {"ports": (1, 2, 8), "lanes": (3, 8), "max_context": (3968,)}
    found = list(candidates(KV260, space, BOARDS["kv260"]))
    assert {(c.ports, c.lanes, c.score_words) for c in found[1:]} == {(1, 8, 4096), (2, 8, 4096)}


def test_one_narrow_port_is_no_machine() -> None:
    assert {c.ports for c in candidates(PYNQ_Z2, {"ports": (1, 2)}, BOARDS["pynq_z2"])} == {2}


def test_what_is_over_is_said() -> None:
    board = BOARDS["ultra96v2"]
    full = {"lut": board.luts, "ff": 0.5 * board.ffs, "dsp": board.dsps, "ramb36": board.bram36, "uram": 0}
    assert set(fits(full, board, 0.85)) == {"lut"} and fits(full, board, 1.0) == {}
    assert set(fits({**full, "uram": 1, "ramb36": 217}, board, 1.0)) == {"uram", "ramb36"}


def test_the_front_has_what_nothing_is_better_than() -> None:
    def point(tokens: float, lut: float, uram: float = 0) -> dict[str, float]:
        return {"tokens_per_s": tokens, "lut": lut, "ff": 0, "dsp": 0, "ramb36": 0, "uram": uram}

    points = [
        point(10, 100),
        point(10, 90),
        point(20, 200),
        point(20, 300, 0),
        point(5, 90),
        point(20, 250, -1),
        point(10, 90),
    ]
    assert front(points) == [1, 2, 5], "of equals the first"
    assert front([]) == []


def test_candidates_differ_from_the_base_only_in_the_space() -> None:
    found = list(candidates(KV260, {"lanes": (1, 2), "group_size": (5,)}, None))
    assert len(found) == 3
    for c in found:
        assert replace(c, lanes=KV260.lanes, group_size=KV260.group_size) == KV260
