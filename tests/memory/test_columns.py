"""The memory of write columns against an array in Python, and the pieces it is cut into."""

from __future__ import annotations

import random

import pytest
from amaranth.sim import Simulator

from tellme.hw.memory.columns import ColumnMemory
from tellme.hw.synth.inventory import check_columns, inventory

SHAPES = [(1, 50), (1, 145), (2, 16), (4, 100), (8, 32), (8, 25), (3, 20), (9, 8), (5, 64), (3, 65), (2, 72), (2, 144)]


@pytest.mark.parametrize(("columns", "width"), SHAPES)
def test_every_column_is_written_alone_and_a_read_gives_the_old_word(columns: int, width: int) -> None:
    depth = 5
    dut = ColumnMemory(depth=depth, columns=columns, width=width)
    rng = random.Random(columns * 1000 + width)
    words = [[0] * columns for _ in range(depth)]

    async def bench(ctx):
        for _ in range(300):
            write, read = rng.randrange(depth), rng.randrange(depth)
            data = [rng.getrandbits(width) for _ in range(columns)]
            enables = rng.getrandbits(columns)
            ctx.set(dut.write_addr, write)
            ctx.set(dut.read_addr, read)
            ctx.set(dut.write_en, enables)
            ctx.set(dut.write_data, sum(d << i * width for i, d in enumerate(data)))
            wanted = list(words[read])
            for i, d in enumerate(data):
                if enables >> i & 1:
                    words[write][i] = d
            await ctx.tick()
            got = ctx.get(dut.read_data)
            assert [got >> i * width & ((1 << width) - 1) for i in range(columns)] == wanted

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize(
    ("columns", "width", "ultra"),
    [(4, 100, 6), (8, 32, 4), (8, 16, 2), (1, 50, 1), (2, 50, 2), (2, 144, 4), (3, 65, 3)],
)
def test_pieces_map_to_as_few_ultra_rams_as_bytes_allow(columns: int, width: int, ultra: int) -> None:
    found = inventory(ColumnMemory(depth=4096, columns=columns, width=width), None).memories
    check_columns(found)
    assert all(r.style == "ultra" and r.width <= 72 for r in found) and len(found) == ultra


@pytest.mark.parametrize("columns,width", SHAPES)
def test_pieces_of_every_shape_map(columns: int, width: int) -> None:
    check_columns(inventory(ColumnMemory(depth=4096, columns=columns, width=width), None).memories)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"depth": 1, "columns": 1, "width": 8}, "depth must be at least 2, not 1"),
        ({"depth": 8, "columns": 0, "width": 8}, "columns must be at least 1, not 0"),
        ({"depth": 8, "columns": 1, "width": 0}, "width must be at least 1, not 0"),
    ],
)
def test_refused_parameters_say_why(parameters: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColumnMemory(**parameters)
