"""What a configuration refuses: the value, the limit, in one line, before anything is generated."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

import pytest

from tellme.golden.config import KV260, PRESETS, TINY, ConfigError


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("group_size", 2.5, "group_size must be a whole number from 2 to 5, not 2.5"),
        ("group_size", 3.0, "group_size must be a whole number from 2 to 5, not 3.0"),
        ("group_size", 1, "group_size must be a whole number from 2 to 5, not 1"),
        ("group_size", "3", "group_size must be a whole number from 2 to 5, not '3'"),
        ("clock_hz", 0, "clock_hz must be a whole number from 1,000,000 to 1,000,000,000, not 0"),
        ("clock_hz", -250_000_000, "clock_hz must be a whole number"),
        ("clock_hz", 250, "clock_hz must be a whole number from 1,000,000"),
        ("clock_hz", 250e6, "clock_hz must be a whole number"),
        ("clock_hz", None, "not None"),
        ("name", "", "name must be letters, digits"),
        ("name", " ", "name must be letters, digits"),
        ("name", "../kv260", "not '../kv260'"),
        ("name", "kv260\n", "name must be letters, digits"),
        ("name", 7, "name must be letters, digits"),
        ("max_heads", 0, "max_heads must be a whole number from 1 to 255, not 0"),
        ("max_heads", 256, "max_heads must be a whole number from 1 to 255, not 256"),
        ("max_heads", True, "max_heads must be a whole number from 1 to 255, not True"),
        ("lanes", True, "lanes must be a power of two from 1 to 32, not True"),
        ("lanes", 12, "lanes must be a power of two from 1 to 32, not 12"),
        ("lanes", 16.0, "lanes must be a power of two from 1 to 32, not 16.0"),
        ("ports", 0, "ports must be a power of two from 1 to 8, not 0"),
        ("port_bytes", None, "port_bytes must be a power of two from 8 to 16, not None"),
        ("ports", 8, "ports * port_bytes must be 16, 32 or 64, not 128"),
        ("max_hidden", 0, "max_hidden must be a positive multiple of 32 up to 65,536, not 0"),
        ("max_hidden", 2560.0, "max_hidden must be a positive multiple of 32 up to 65,536, not 2560.0"),
        ("max_hidden", -32, "max_hidden must be a positive multiple of 32 up to 65,536, not -32"),
        ("max_head_dim", 48, "max_head_dim must be a positive multiple of 32 up to 65,536, not 48"),
        ("max_kv_dim", 96, "max_kv_dim (96) must hold one head: at least max_head_dim (128)"),
        ("max_context", 0, "max_context must be a whole number from 1 to 65,536, not 0"),
        ("max_context", 3968.0, "max_context must be a whole number from 1 to 65,536, not 3968.0"),
        ("max_context", 1000, "max_context must be a multiple of 128"),
        ("max_features", 4096, "max_features (4096) must be at least twice max_hidden"),
        ("narrow_cache", 1, "narrow_cache must be true or false, not 1"),
        ("narrow_cache", "true", "narrow_cache must be true or false, not 'true'"),
        ("burst_beats", 512, "burst_beats must be a power of two from 2 to 256, not 512"),
        ("burst_beats", 1, "burst_beats must be a power of two from 2 to 256, not 1"),
        ("outstanding", 1, "outstanding must be a power of two from 2 to 64, not 1"),
        ("fifo_beats", 64, "fifo_beats must be at least two bursts (128), not 64"),
        ("hadamard", 1, "hadamard must be true or false, not 1"),
        ("hadamard", "no", "hadamard must be true or false, not 'no'"),
    ],
)
def test_a_parameter_outside_its_range_is_refused_by_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        replace(KV260, **{field: value})


POWERS = {
    "ports": (1, 8), "port_bytes": (8, 16), "lanes": (1, 32), "attention_lanes": (1, 32), "key_tile": (16, 256), "block_rows": (64, 4096),
    "max_features": (256, 65536), "score_words": (64, 65536), "fifo_beats": (64, 65536), "burst_beats": (2, 256), "outstanding": (2, 64),
    "max_descriptors": (16, 4096), "screen_entries": (64, 65536),
}  # fmt: skip


@pytest.mark.parametrize(("field", "low", "high"), [(k, *v) for k, v in POWERS.items()])
def test_ranges_hold_their_ends(field: str, low: int, high: int) -> None:
    words = f"{field} must be a power of two from {low} to {high}, not "
    for bad in (low // 2, 2 * high, low + 1 if low > 1 else 3):
        with pytest.raises(ConfigError, match=re.escape(f"{words}{bad}")):
            replace(KV260, **{field: bad})
    for good in (low, high):
        try:
            assert getattr(replace(KV260, **{field: good}), field) == good
        except ConfigError as e:  # another parameter's limit
            assert words not in str(e), e


def test_parameters_that_limit_each_other_may_be_equal() -> None:
    assert replace(TINY, max_hidden=512).max_features == 1024
    with pytest.raises(ConfigError, match=re.escape("max_features (1024) must be at least twice max_hidden (544)")):
        replace(TINY, max_hidden=544)
    assert replace(TINY, max_kv_dim=128).max_head_dim == 128
    assert replace(TINY, max_kv_dim=65536, max_head_dim=65536).max_head_dim == 65536
    assert (TINY.cell, replace(TINY, ports=2).cell, KV260.cell) == (16, 32, 32)
    with pytest.raises(ConfigError, match=re.escape("max_kv_dim (96) must hold one head")):
        replace(TINY, max_kv_dim=96)
    assert replace(TINY, port_bytes=16, burst_beats=256).burst_beats == 256
    assert replace(TINY, narrow_cache=True, attention_lanes=2).narrow_cache
    # One key of a set of queries a word: as many words as positions and lanes.
    assert replace(TINY, lanes=32, max_context=2016).score_words == 2048
    with pytest.raises(ConfigError, match=re.escape("score_words (2048) must hold max_context + lanes keys of one set of queries, 1 a word: at least 2080")):  # fmt: skip
        replace(TINY, lanes=32, max_context=2048)
    for field, low, high in (("group_size", 2, 5), ("max_heads", 1, 255), ("clock_hz", 1_000_000, 1_000_000_000)):
        for value in (low, high):
            assert getattr(replace(TINY, **{field: value}), field) == value
    assert replace(KV260, max_context=65536, score_words=65536).max_context == 65536
    for field in ("max_hidden", "max_kv_dim", "max_head_dim"):
        with pytest.raises(ConfigError, match=f"{field} must be a positive multiple of 32 up to 65,536, not 65568"):
            replace(KV260, **{field: 65568})


@pytest.mark.parametrize("field", [f for f in KV260.__dataclass_fields__ if f != "name"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "16", None, float("nan")])
def test_no_parameter_takes_what_is_no_positive_whole_number(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(KV260, **{field: value})


def test_the_lanes_of_a_pass_fit_a_block_of_the_cache() -> None:
    small = dict(ports=1, key_tile=16, score_words=4096)
    assert replace(KV260, lanes=16, **small).key_block == 16
    with pytest.raises(
        ConfigError, match=re.escape("lanes (32) must be at most a block of the cache (16 keys): use a larger key_tile")
    ):
        replace(KV260, lanes=32, **small)


def test_a_narrow_cache_needs_two_halves_of_the_attention_lanes() -> None:
    with pytest.raises(ConfigError, match="narrow_cache needs attention_lanes of at least 2"):
        replace(KV260, narrow_cache=True, attention_lanes=1)


def test_values_of_4_bits_double_the_context_as_far_as_the_score_memory_holds_it() -> None:
    for board in PRESETS.values():
        c = replace(board, narrow_cache=True)
        most = c.context_limit(v_narrow=True)
        assert c.context_limit() == c.max_context <= most == c.most_context <= 2 * c.max_context
        assert most % c.key_block == 0 and most + c.lanes <= 2 * c.keys_per_beat * c.score_words
    assert replace(KV260, narrow_cache=True).most_context == 7936
    # As full as the score memory may be, and the registers' limit.
    full = replace(KV260, narrow_cache=True, lanes=1, max_context=3968, score_words=2048, key_tile=16)
    assert replace(full, max_context=4064).most_context == 8128 and replace(full, lanes=32).most_context == 7936
    assert replace(KV260, narrow_cache=True, max_context=65536 - 128, score_words=32768).most_context == 65536
    rng, seen = random.Random(1), 0
    while seen < 200:
        tile, words, lanes = (1 << rng.randrange(*r) for r in ((4, 9), (6, 13), (0, 6)))
        ports = rng.choice((1, 2, 4))
        most = max(1, (words * max(1, ports // 2) - lanes) // (tile * max(1, ports // 2))) * tile * max(1, ports // 2)
        try:
            c = replace(full, ports=ports, key_tile=tile, score_words=words, lanes=lanes, max_context=most)
        except ConfigError:
            continue
        seen += 1
        assert c.most_context == min(2 * c.max_context, 65536) and c.most_context % c.key_block == 0
        assert c.most_context + c.lanes <= 2 * c.keys_per_beat * c.score_words


def test_the_presets_are_what_their_names_say() -> None:
    assert all(name == c.name for name, c in PRESETS.items())
