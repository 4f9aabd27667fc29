"""Where K and V lie, against docs/formats.md written out beat by beat, in ints and as the hardware computes it."""

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator

from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.kv import KvGeometry
from tellme.golden.layout import KvLayout

HALF = AcceleratorConfig(
    name="half", ports=2, port_bytes=16, lanes=4, key_tile=16, max_hidden=256, max_features=1024, max_context=256
)
CONFIGS = pytest.mark.parametrize("config", [TINY, HALF, KV260], ids=lambda c: c.name)


def block_of(config: AcceleratorConfig, cells: int) -> list[str]:
    """What each beat of a block is, in order."""
    scales = -(-config.key_block * 4 // config.beat_bytes)
    data = cells * config.key_block * min(32, config.beat_bytes) // config.beat_bytes
    return ["k scales"] * scales + ["v scales"] * scales + ["k"] * data + ["v"] * data


@CONFIGS
@pytest.mark.parametrize("cells", [1, 2, 3, 4])
def test_a_block_is_scales_then_data(config: AcceleratorConfig, cells: int) -> None:
    g, beats = KvGeometry(config), block_of(config, cells)
    assert g.block_stride(cells) == len(beats)
    for part, at in (("k scales", g.k_scales), ("v scales", g.v_scales), ("k", g.k_data), ("v", g.v_data(cells))):
        assert beats.index(part) == at
    assert g.data_beats(cells) == beats.count("k") == beats.count("v")


@CONFIGS
def test_reads_of_a_block_are_what_its_first_keys_take(config: AcceleratorConfig) -> None:
    g, kv = KvGeometry(config), KvLayout(config, 96, 1, config.key_block)
    for keys in (1, 2, 3, config.keys_per_beat, config.word + 1, config.key_block - 1, config.key_block):
        places = [kv.k_scale(0, 0, p)[0] for p in range(keys)]
        assert g.scale_reads(keys) == len(set(places)) == max(places) - min(places) + 1
        places = [kv.v_cell(0, 0, p, 1)[0] for p in range(keys)]
        assert g.cell_reads(keys) == len(set(places)) == max(places) - min(places) + 1
    for positions in (1, config.key_block, config.key_block + 1):
        assert g.blocks(positions) == len({(p // config.key_block) for p in range(positions)})


@CONFIGS
def test_every_cell_and_lane_has_its_own_place(config: AcceleratorConfig) -> None:
    g = KvGeometry(config)
    dim = 32
    kv_heads, cells = config.max_kv_dim // dim, dim // config.cell
    seen = np.zeros((g.own_depth, config.keys_per_beat), int)
    for v in range(2):
        for head in range(kv_heads):
            for cell in range(cells):
                row = v * g.own_values(kv_heads, cells) + g.own_head(head, cells) + cell
                for lane in range(config.lanes):
                    seen[g.own_address(row, lane // config.keys_per_beat), lane % config.keys_per_beat] += 1
    assert (seen[:, : min(config.lanes, config.keys_per_beat)] == 1).all()


@CONFIGS
def test_the_hardware_may_compute_it(config: AcceleratorConfig) -> None:
    g = KvGeometry(config)
    cells, row, lane, keys = Signal(16), Signal(16), Signal(8), Signal(16)
    pairs = [
        (g.block_stride(cells), g.block_stride(3)),
        (g.v_data(cells), g.v_data(3)),
        (g.own_address(row, lane), g.own_address(5, 1)),
        (g.scale_reads(keys), g.scale_reads(config.key_block - 1)),
        (g.cell_reads(keys), g.cell_reads(config.key_block - 1)),
    ]

    async def bench(ctx: object) -> None:
        for signal, value in ((cells, 3), (row, 5), (lane, 1), (keys, config.key_block - 1)):
            ctx.set(signal, value)  # type: ignore[attr-defined]
        for got, want in pairs:
            assert ctx.get(got) == want  # type: ignore[attr-defined]

    sim = Simulator(Module())
    sim.add_testbench(bench)
    sim.run()
