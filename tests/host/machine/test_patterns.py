"""The patterns of `tellme doctor --selftest` are what they say, and see a wrong bit anywhere."""

from __future__ import annotations

import numpy as np
import pytest

from tellme.golden import ternary
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.host.errors import CheckError, DeviceError
from tellme.host.image.model import Model
from tellme.host.machine import patterns
from tellme.host.machine.driver import Driver
from tellme.host.machine.program import compile_program
from tests.host.machine.reference_machine import ReferenceMachine
from tests.host.support import DEMO, WORD


@pytest.mark.parametrize("config", [TINY, WORD, KV260], ids=lambda c: c.name)
def test_every_group_of_weights_takes_every_index_of_its_table(config: AcceleratorConfig) -> None:
    rows, inputs = 64, 2 * config.beat_weights
    w = patterns.counting(rows, inputs, config)
    for tile in range(2):
        part = w[:, tile * config.beat_weights : (tile + 1) * config.beat_weights]
        whole = part[:, : config.beat_weights // config.group_size * config.group_size]
        for of_group in ternary.indices(whole, config.group_size).T:
            assert set(of_group.tolist()) == set(range(3**config.group_size))


def test_every_bit_of_every_byte_of_a_beat_is_alone_in_some_row() -> None:
    """In even rows and in odd ones, of which a beat may hold one each."""
    rows = patterns.walking()
    for parity in (0, 1):
        bits = np.unpackbits(rows[parity::2].view(np.uint8), axis=1)
        assert (bits.sum(axis=1) == 1).all() and (bits.sum(axis=0) == 1).all()


def driver(config: AcceleratorConfig) -> tuple[Driver, ReferenceMachine]:
    with Model.open(DEMO, config) as model:
        machine = ReferenceMachine(config, compile_program(model, config).window_beats)
    return Driver(machine, config), machine


def test_a_good_machine_passes_with_every_logit() -> None:
    accelerator, _ = driver(TINY)
    outcome = patterns.run(accelerator)
    given = patterns.passes(TINY)
    assert outcome.passes == len(given) and outcome.logits == sum(p.lanes for p in given) * patterns.spec(TINY).vocab
    assert {p.lanes for p in given} >= {1, TINY.lanes}
    assert all(len(set(p.tokens)) == p.lanes for p in given)
    end = TINY.key_block + 1
    assert [at for p in given for at in p.positions] == [0, 0, *range(end), end, end + 1]
    assert max(p.positions[-1] for p in given) > TINY.key_block


@pytest.mark.parametrize("bit", [0, 77, 127])
def test_a_bit_of_a_port_that_is_stuck_is_found(bit: int) -> None:
    """One bit of the beat reads as 0, in weights, tables, keys and rows of the head."""
    accelerator, machine = driver(TINY)
    beats = machine.beats

    def stuck(address: int, count: int):  # type: ignore[no-untyped-def]
        out = beats(address, count).copy()
        if address == machine.get("program_address"):  # refused at once: nothing to find
            return out
        out[:, bit // 8] &= 255 - (1 << bit % 8)
        return out

    machine.beats = stuck  # type: ignore[method-assign]
    with pytest.raises((CheckError, DeviceError)):
        patterns.run(accelerator)
