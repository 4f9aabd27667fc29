"""Memories of every preset map to the RAMs that are counted; a write column that would not is refused by name."""

from __future__ import annotations

import pytest
from amaranth.hdl import Elaboratable, Module
from amaranth.lib.memory import Memory

from tellme.hw.synth.inventory import ColumnError, check_columns, inventory
from tests.primitives.designs import designs


class OneMemory(Elaboratable):
    """A memory of `width` bits, written in columns."""

    def __init__(self, width: int, column: int, style: str = "", domain: str = "sync") -> None:
        self.width, self.column, self.style, self.domain = width, column, style, domain

    def elaborate(self, platform: object) -> Module:
        m = Module()
        attrs = {"ram_style": self.style} if self.style else {}
        m.submodules.store = memory = Memory(shape=self.width, depth=4096, init=[], attrs=attrs)
        memory.write_port(granularity=self.column)
        memory.read_port(domain=self.domain)
        return m


def test_write_columns_of_every_preset_map_to_byte_enables() -> None:
    for name, design in designs().items():
        check_columns(design.memories)
        if name != "fp":
            assert any(r.column < r.width and r.registered for r in design.memories), f"{name} has columns somewhere"
    # 8 queries of 2 keys: scores of 25 bits, weights of 16.
    ultra = {r.name: r.width for r in designs()["kv260"].memories if r.style == "ultra"}
    assert sum(-(-w // 72) for n, w in ultra.items() if n.startswith("attention.scores")) == 6
    assert sum(-(-w // 72) for n, w in ultra.items() if n.startswith("attention.weights")) == 4


@pytest.mark.parametrize(
    ("circuit", "message"),
    [
        (
            (416, 104, "ultra"),
            "memory store: 416 bits with write columns of 104; in UltraRAM at most 72 bits have columns",
        ),
        ((144, 72, "ultra"), "144 bits with write columns of 72"),
        ((50, 25, "ultra"), "write columns of 25 bits; a RAM's are a multiple of 8 or 9 bits"),
        ((72, 12, "ultra"), "write columns of 12 bits"),
        ((40, 4, "block"), "write columns of 4 bits"),
        ((100, 50), "write columns of 50 bits"),
    ],
)
def test_columns_that_would_not_map_are_refused(circuit: tuple[int, int, str], message: str) -> None:
    with pytest.raises(ColumnError, match=message):
        check_columns(inventory(OneMemory(*circuit), None).memories)


@pytest.mark.parametrize(
    "circuit",
    [
        (72, 9, "ultra"),
        (72, 36, "ultra"),
        (64, 8, "ultra"),
        (72, 8, "ultra"),
        (100, 100, "ultra"),
        (512, 128),
        (36, 18, "block"),
        (50, 25, "distributed"),
        (50, 25, "", "comb"),
    ],
)
def test_columns_that_map_pass(circuit: tuple[int, int, str]) -> None:
    check_columns(inventory(OneMemory(*circuit), None).memories)
