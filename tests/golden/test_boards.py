"""Where the ports' regions lie: at their phases whatever the allocator gave, in a buffer that is large enough and no larger."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tellme.golden.boards import BOARDS, PAGE, PHASE_PERIOD, buffer_bytes, check_phases, phases, place, region_bytes
from tellme.golden.config import KV260, PRESETS, TINY, AcceleratorConfig
from tellme.golden.registers import BASE_ALIGNMENT

PAGES = PHASE_PERIOD // PAGE
PORTS = {
    1: replace(KV260, name="one", ports=1, max_context=256),
    2: replace(KV260, name="two", ports=2, max_context=256),
    4: KV260,
}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(PORTS)), st.integers(1, 40_000), st.data())
def test_regions_find_their_phases_in_a_buffer_at_any_page(ports: int, beats: int, data: st.DataObject) -> None:
    config = PORTS[ports]
    wanted = [PAGE * data.draw(st.integers(0, PAGES - 1)) for _ in range(ports)]
    size = region_bytes(config, beats)
    assert size % PAGE == 0 and 0 <= size - beats * config.port_bytes < PAGE
    ends = []
    for base in range(0x8_0000_0000, 0x8_0000_0000 + PHASE_PERIOD, PAGE):
        bases = place(base, size, ports, wanted)
        assert [b % PHASE_PERIOD for b in bases] == wanted
        assert all(b % BASE_ALIGNMENT == 0 for b in bases)
        assert bases[0] >= base and all(b >= a + size for a, b in zip(bases, bases[1:], strict=False))
        ends.append(bases[-1] + size - base)
    assert max(ends) == buffer_bytes(config, beats, wanted) <= ports * (size + PHASE_PERIOD - PAGE)


def test_without_phases_regions_lie_one_behind_the_other() -> None:
    size = region_bytes(KV260, 1000)
    assert place(0x1000, size, 4, ()) == tuple(0x1000 + i * size for i in range(4))
    assert buffer_bytes(KV260, 1000, ()) == 4 * size


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_phases_of_every_preset_are_a_placement(config: AcceleratorConfig) -> None:
    found = phases(config)
    if found:
        check_phases(found, config.ports)
        assert len(set(found)) == config.ports
    assert bool(found) == (config.name not in ("tiny", "pynq_z2"))
    # A configuration that has borrowed a board's name has other ports.
    if config.ports > 2:
        assert phases(replace(config, ports=2, max_context=256)) == ()


def test_phases_that_are_none_are_refused() -> None:
    for wrong, message in (((0,), "of 2 ports, not 1"), ((0, 100), "not 0.0976562 KiB"), ((0, -4096), "not -4 KiB")):
        with pytest.raises(ValueError, match=message):
            check_phases(wrong, 2)
    assert all(b.memory_rate <= min(b.ddr_peak, b.config.clock_hz * b.config.beat_bytes) for b in BOARDS.values())
    assert phases(TINY) == ()
