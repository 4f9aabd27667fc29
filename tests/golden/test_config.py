"""What a configuration refuses: the value, the limit, in one line, before anything is generated."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from tellme.golden.config import KV260, PRESETS, ConfigError


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
        ("hadamard", 1, "hadamard must be true or false, not 1"),
        ("hadamard", "no", "hadamard must be true or false, not 'no'"),
        ("burst_beats", 512, "burst_beats must be a power of two from 1 to 256, not 512"),
    ],
)
def test_a_parameter_outside_its_range_is_refused_by_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        replace(KV260, **{field: value})


@pytest.mark.parametrize("field", [f for f in KV260.__dataclass_fields__ if f != "name"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "16", None, float("nan")])
def test_no_parameter_takes_what_is_no_positive_whole_number(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        replace(KV260, **{field: value})


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
    # The score memory's limit, and the registers'.
    full = replace(KV260, narrow_cache=True, lanes=1, max_context=3968, score_words=2048, key_tile=16)
    assert replace(full, max_context=4064).most_context == 8128 and replace(full, lanes=32).most_context == 7936
    assert replace(KV260, narrow_cache=True, max_context=65536 - 128, score_words=32768).most_context == 65536


def test_the_presets_are_what_their_names_say() -> None:
    assert all(name == c.name for name, c in PRESETS.items())
