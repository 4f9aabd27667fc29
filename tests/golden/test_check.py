"""What the rules of programs and lanes take and refuse, at their limits: numbers of the tiny preset, worked out by hand."""

from __future__ import annotations

import pytest

from tellme.golden.check import bad_lanes, problem
from tellme.golden.config import TINY
from tellme.golden.program import FIELDS, Opcode, decode
from tellme.golden.registers import MAX_SLOTS
from tests.control.programs import compiled, split, with_field
from tests.models import small_spec

SPEC = small_spec(
    layers=1, vocab=300
)  # 64 wide, 4 query and 2 key-value heads of 32, 96 features of the feed-forward part
SLOTS = 3  # of 64 positions: two blocks of 144 beats a head
PLAIN, SCREENED = compiled(SPEC, TINY, slots=SLOTS).code, compiled(SPEC, TINY, slots=SLOTS, planes=1).code
LOAD, QKV, ATTENTION, OUTPUT, GATE, DOWN, HEAD, END = range(8)
SCREEN = next(i for i, d in enumerate(split(SCREENED)) if decode(d)[0] is Opcode.SCREEN)
TOP = 1 << 32


def verdict(
    changes: dict[int, dict[str, int]],
    code: bytes = PLAIN,
    *,
    context: int = 64,
    slots: int = SLOTS,
    candidates: int = 0,
    head_lanes: int = 1,
) -> int | None:
    """The descriptor that is refused of a program with these fields changed; None: it runs."""
    parts = split(code)
    for i, fields in changes.items():
        for name, value in fields.items():
            field = next(f for f in FIELDS[decode(parts[i])[0]] if f.name == name)
            parts[i] = with_field(parts[i], field, value)
    found = problem(b"".join(parts), TINY, context=context, slots=slots, candidates=candidates, head_lanes=head_lanes)
    return None if found is None else found[0]


def test_programs_as_they_are_compiled_run() -> None:
    assert [decode(d)[0].name for d in split(PLAIN)] == "LOAD LINEAR ATTENTION LINEAR LINEAR LINEAR HEAD END".split()
    assert verdict({}) is None and verdict({}, SCREENED) is None


@pytest.mark.parametrize(
    ("at", "fields"),
    [
        *((LOAD, f) for f in (
            {"inputs": 0}, {"inputs": 62}, {"x_beats": 15}, {"x_beats": 17}, {"head_dim": 0}, {"head_dim": 16}, {"head_dim": 48, "rope_beats": 12},
            {"head_dim": 160, "rope_beats": 40}, {"rope_beats": 7}, {"rope_beats": 9}, {"gain_beats": 15}, {"gain_beats": 17}, {"gain_out": 0}, {"gain_beats": 0},
            {"inputs": 260, "x_beats": 65, "gain_beats": 65}, {"inputs": 66, "x_beats": 17, "gain_beats": 17},
        )),
        *((QKV, f) for f in (
            {"inputs": 0}, {"inputs": 60}, {"inputs": 68}, {"tiles": 0}, {"tiles": 2}, {"rows": 0}, {"rows": 248}, {"rows": 264}, {"rows": 252}, {"block_rows": 0},
            {"block_rows": 4}, {"block_rows": 12}, {"block_rows": 136}, {"heads": 3}, {"heads": 5}, {"kv_heads": 1}, {"kv_heads": 3}, {"head_dim": 64, "rows": 512},
            {"heads": 0, "kv_heads": 4}, {"heads": 8, "kv_heads": 0}, {"heads": 17, "rows": 672}, {"heads": 14, "kv_heads": 9, "rows": 1024}, {"gain_out": 1}, {"gain_beats": 1},
            {"heads": 16, "kv_heads": 9, "rows": 1088},
        )),
        *((ATTENTION, f) for f in (
            {"group": 0}, {"group": 1}, {"group": 3}, {"head_dim": 64}, {"heads": 2, "group": 1}, {"kv_heads": 4, "group": 1}, {"heads": 8, "group": 4}, {"head_stride": 287},
            {"head_stride": 289}, {"slot_stride": 575}, {"kv_address": TOP - SLOTS * 576 + 1}, {"gain_beats": 31}, {"gain_beats": 33}, {"gain_out": 0},
        )),
        *((OUTPUT, f) for f in (
            {"rows": 56, "gain_beats": 14}, {"rows": 72, "gain_beats": 18}, {"gain_beats": 15}, {"gain_beats": 17}, {"tiles": 1}, {"tiles": 3}, {"inputs": 96}, {"inputs": 160},
            {"gain_out": 0},
        )),
        *((GATE, f) for f in ({"rows": 2064, "gain_beats": 258}, {"rows": 0, "gain_beats": 0}, {"rows": 196}, {"gain_beats": 23}, {"gain_beats": 25}, {"gain_out": 0})),
        *((HEAD, f) for f in (
            {"blocks": 0}, {"blocks": 9}, {"blocks": 11}, {"rows": 0}, {"rows": 321}, {"logits_stride": 79}, {"logits_address": TOP - 4 * 80 + 1}, {"tiles": 0}, {"tiles": 2},
            {"inputs": 48}, {"inputs": 80}, {"gain_out": 1}, {"gain_beats": 1},
        )),
    ],
)  # fmt: skip
def test_what_is_beyond_a_limit_is_refused_where_it_is(at: int, fields: dict[str, int]) -> None:
    assert verdict({at: fields}) == at


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        # At a limit: taken where it stands; refused, if at all, by the first descriptor that does not go with it.
        ({LOAD: {"inputs": 256, "x_beats": 64, "gain_beats": 64}}, QKV),
        ({LOAD: {"head_dim": 128, "rope_beats": 32}}, QKV),
        ({LOAD: {"gain_out": 0, "gain_beats": 0}}, None),
        ({QKV: {"heads": 16, "kv_heads": 8, "rows": 1024}}, ATTENTION),
        ({QKV: {"heads": 1, "kv_heads": 1, "rows": 96}}, ATTENTION),
        ({QKV: {"block_rows": 8}}, None),
        ({QKV: {"block_rows": 120}}, None),
        ({ATTENTION: {"head_stride": 289, "slot_stride": 578}}, None),
        ({ATTENTION: {"slot_stride": 577}}, None),
        ({ATTENTION: {"kv_address": TOP - SLOTS * 576}}, None),
        ({ATTENTION: {"gain_out": 0, "gain_beats": 0}}, None),
        ({OUTPUT: {"block_rows": 128}}, None),
        # 1,024 features are 13 tiles of 80, the last of which reaches beyond the buffer.
        ({GATE: {"rows": 1920, "gain_beats": 240}, DOWN: {"inputs": 960, "tiles": 12}}, None),
        ({GATE: {"rows": 1936, "gain_beats": 242}, DOWN: {"inputs": 968, "tiles": 13}}, None),
        ({GATE: {"rows": 2048, "gain_beats": 256}, DOWN: {"inputs": 1024, "tiles": 13}}, None),
        ({GATE: {"rows": 2048, "gain_beats": 256}, DOWN: {"inputs": 1024, "tiles": 14}}, DOWN),
        ({GATE: {"rows": 2048, "gain_beats": 256}}, DOWN),
        ({HEAD: {"blocks": 11, "logits_stride": 88}}, None),
        ({HEAD: {"rows": 320}}, None),
        ({HEAD: {"rows": 1}}, None),
        ({HEAD: {"logits_stride": 81}}, None),
        ({HEAD: {"logits_address": TOP - 4 * 80}}, None),
    ],
)
def test_what_is_at_a_limit_is_taken(changes: dict[int, dict[str, int]], refused: int | None) -> None:
    assert verdict(changes) == refused


def test_the_cache_has_room_for_every_position_of_every_slot() -> None:
    assert verdict({}, context=1) is None and verdict({}, context=65) == ATTENTION
    high = {ATTENTION: {"kv_address": TOP - 4 * 576}}
    assert verdict(high, slots=4) is None and verdict(high, slots=5) == ATTENTION


def test_descriptors_of_one_kind_do_not_stand_in_for_others() -> None:
    parts = split(PLAIN)
    for at in range(END):
        # What is left out is missed by the first that builds on it.
        rest = b"".join(parts[:at] + parts[at + 1 :])
        found = problem(rest, TINY, context=64, slots=SLOTS)
        assert (found[0] if found else None) == {GATE: GATE, HEAD: None}.get(at, at), at
        strange = b"".join(parts[:at]) + bytes([6]) + b"".join(parts[at:])[1:]
        found = problem(strange, TINY, context=64, slots=SLOTS)
        assert found is not None and found[0] == at and "6" in found[1]
    assert problem(b"".join(parts[:END]), TINY, context=64, slots=SLOTS) == (7, "none of the 7 descriptors is END")
    assert problem(PLAIN + bytes([9] * 64), TINY, context=64, slots=SLOTS) is None  # behind END
    assert problem(b"", TINY, context=64, slots=SLOTS) == (0, "none of the 0 descriptors is END")


@pytest.mark.parametrize(
    ("candidates", "head_lanes", "taken"),
    [
        (0, 1, True), (0, 4, True), (16, 1, True), (144, 1, True), (128, 4, True), (160, 1, False), (8, 1, False), (24, 1, False), (144, 4, False), (144, 0, True),
    ],
)  # fmt: skip
def test_candidates(candidates: int, head_lanes: int, taken: bool) -> None:
    """A multiple of 16, at most half of the 300 rows, and 512 of all lanes; without a head lane nothing is chosen."""
    assert verdict({}, SCREENED, candidates=candidates, head_lanes=head_lanes) == (None if taken else SCREEN)
    assert verdict({}, PLAIN, candidates=candidates, head_lanes=head_lanes) == (
        END if candidates and head_lanes else None
    )


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        ({"planes": 0}, False), ({"planes": 2}, True), ({"planes": 3}, False), ({"rows": 0}, False), ({"rows": 1}, True), ({"rows": (1 << 20) + 1, "logits_stride": 1 << 19}, False),
        ({"rows": 1 << 20, "logits_stride": 1 << 18}, True), ({"rows": 1 << 20, "logits_stride": (1 << 18) - 1}, False), ({"tiles": 0}, False), ({"tiles": 2}, False),
        ({"inputs": 48}, False), ({"gain_out": 1}, False), ({"gain_beats": 1}, False), ({"logits_address": TOP - 1}, False),
    ],
)  # fmt: skip
def test_a_screening_descriptor(fields: dict[str, int], taken: bool) -> None:
    assert verdict({SCREEN: fields}, SCREENED) == (None if taken else SCREEN)


@pytest.mark.parametrize(
    ("changes", "bad"),
    [
        ({}, False),
        ({"lanes": 0}, True),
        ({"lanes": 5, "positions": range(5), "slot": [0] * 5}, True),
        ({"lanes": 4, "positions": range(4), "slot": [0] * 4, "head": (0, 4)}, False),
        ({"lanes": 4, "positions": range(4), "slot": [0] * 4, "head": (3, 1)}, False),
        ({"lanes": 4, "positions": range(4), "slot": [0] * 4, "head": (3, 2)}, True),
        ({"lanes": 4, "positions": range(4), "slot": [0] * 4, "head": (4, 0)}, False),
        ({"head": (0, 2)}, True),
        ({"head": (1, 1)}, True),
        ({"context": 0}, True),
        ({"context": 256, "positions": [255]}, False),
        ({"context": 255, "positions": [255]}, True),
        ({"context": 512, "positions": [511]}, False),
        ({"context": 513}, True),
        ({"slots": 0}, True),
        ({"slots": MAX_SLOTS, "slot": [MAX_SLOTS - 1]}, False),
        ({"slots": MAX_SLOTS + 1}, True),
        ({"slots": 2, "slot": [2]}, True),
        ({"positions": [0, 999], "slot": [0, 999]}, False),  # of a lane that is idle
        ({"lanes": 2, "positions": [4, 5], "slot": [1, 1]}, False),
        ({"lanes": 2, "positions": [4, 4], "slot": [1, 1]}, True),
        ({"lanes": 2, "positions": [4, 6], "slot": [1, 1]}, True),
        ({"lanes": 2, "positions": [5, 4], "slot": [1, 1]}, True),
        ({"lanes": 2, "positions": [4, 4], "slot": [1, 0]}, False),
        ({"lanes": 3, "positions": [4, 5, 7], "slot": [0, 0, 0]}, True),
        ({"lanes": 3, "positions": [0, 4, 5], "slot": [0, 1, 1]}, False),
        ({"lanes": 3, "positions": [0, 4, 1], "slot": [0, 1, 0]}, True),
        ({"lanes": 3, "positions": [0, 0, 999], "slot": [0, 1, 2]}, True),
        ({"lanes": 3, "positions": [0, 0, 0], "slot": [0, 1, 3]}, True),
    ],
)
def test_lanes(changes: dict, bad: bool) -> None:
    given: dict = {"lanes": 1, "head": (0, 1), "context": 16, "slots": 3, "positions": [3], "slot": [0]} | changes
    assert bad_lanes(TINY, **given) is bad
