"""Transposer, epilogue and statistics: float32 values bit for bit, before any quantiser rounds them."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
from amaranth.hdl import Module, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from tellme.golden import elementwise as golden
from tellme.golden import fp
from tellme.golden.config import CHUNK, TINY
from tellme.golden.program import Kind
from tellme.hw.elementwise.buffers import BankedBuffer, BeatTable
from tellme.hw.elementwise.common import CHUNK_LAYOUT, chunk_bits, lane_bits
from tellme.hw.elementwise.epilogue import Epilogue
from tellme.hw.elementwise.statistics import Statistics
from tellme.sim.runner import parameters, simulate
from tests.elementwise.bench import f32, floats, pack, same


class Features(wiring.Component):
    """Epilogue and statistics, with x, the rotary table and the activation scales as test memories."""

    def __init__(self) -> None:
        c = TINY
        self._chunks = c.max_hidden // CHUNK
        super().__init__(
            {
                "kind": In(2),
                "rows": In(16),
                "lanes": In(3),
                "scale0": In(32),
                "scale1": In(32),
                "scale2": In(32),
                "gain_out": In(1),
                "head_dim": In(16),
                "heads": In(8),
                "kv_heads": In(8),
                "start": In(1),
                "captured": In(1),
                "rows_in": In(stream.Signature(data.ArrayLayout(signed(c.row_width), c.lanes))),
                "load_lane": In(lane_bits(c)),
                "load_chunk": In(chunk_bits(c)),
                "load_act": In(1),
                "load_x": In(1),
                "load_rope": In(1),
                "load_gain": In(1),
                "load_data": In(32 * CHUNK),
                "valid": Out(1),
                "last": Out(1),
                "head_last": Out(1),
                "lane": Out(lane_bits(c)),
                "chunk": Out(chunk_bits(c)),
                "v": Out(CHUNK_LAYOUT),
                "u_write": Out(1),
                "u_lane": Out(lane_bits(c)),
                "u_chunk": Out(chunk_bits(c)),
                "u": Out(CHUNK_LAYOUT),
                "settled": Out(1),
                "read": In(1),
                "read_half": In(1),
                "read_lane": In(lane_bits(c)),
                "ss": Out(32),
                "amax": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = TINY
        m.submodules.epilogue = e = Epilogue(c)
        m.submodules.statistics = s = Statistics(c)
        m.submodules.x = x = BankedBuffer(
            depth=c.lanes * self._chunks, parts=1, part_width=32 * CHUNK, output_register=True
        )
        m.submodules.rope = rope = BeatTable(beats=c.lanes * c.max_head_dim // CHUNK, word=c.word)
        m.submodules.act = act = memory.Memory(shape=32, depth=c.lanes, init=[])
        write, read = act.write_port(), act.read_port(domain="comb")
        connect(m, flipped(self.rows_in), e.rows_in)
        for name in "start kind rows lanes scale0 scale1 scale2 gain_out head_dim heads kv_heads captured".split():
            m.d.comb += getattr(e, name).eq(getattr(self, name))
        for name in "u_write u_lane u_chunk u settled ss amax".split():
            m.d.comb += getattr(self, name).eq(getattr(s, name))
        m.d.comb += [
            e.go.eq(1),
            write.addr.eq(self.load_lane),
            write.data.eq(self.load_data),
            write.en.eq(self.load_act),
            read.addr.eq(e.act_lane),
            e.act_scale.eq(read.data),
            x.write.eq(self.load_x),
            x.write_addr.eq(self.load_lane * self._chunks + self.load_chunk),
            x.write_data.eq(self.load_data),
            x.read.eq(1),
            x.read_addr.eq(e.x_lane * self._chunks + e.x_chunk),
            e.x.eq(x.read_data),
            rope.write.eq(self.load_rope),
            rope.write_addr.eq(self.load_lane * (c.max_head_dim // CHUNK) + self.load_chunk),
            rope.write_data.eq(self.load_data),
            rope.read_addr.eq(e.rope_lane * (c.max_head_dim // CHUNK) + e.rope_chunk),
            e.rope.eq(rope.read_data),
            s.gain_write.eq(self.load_gain),
            s.gain_addr.eq(self.load_chunk),
            s.gain_data.eq(self.load_data),
            e.gained.eq(s.gained),
            s.turned.eq(e.turned),
            s.read.eq(self.read),
            s.read_half.eq(self.read_half),
            s.read_lane.eq(self.read_lane),
            s.present.eq(~0),
            self.valid.eq(e.valid),
            self.last.eq(e.last),
            self.head_last.eq(e.head_last),
            self.lane.eq(e.info.lane),
            self.chunk.eq(e.info.chunk),
            self.v.eq(e.v),
        ]
        for name in "valid last head_last info gain_chunk v".split():  # the register where sources meet
            m.d.sync += getattr(s, name).eq(getattr(e, name))
        return m


@cocotb.test()
async def check_features(dut: Any) -> None:
    p = parameters()
    c, rng = TINY, np.random.default_rng(p["seed"])
    clock = RisingEdge(dut.clk)
    cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
    for name in "start captured load_act load_x load_rope load_gain read rows_in__valid".split():
        getattr(dut, name).value = 0
    dut.rst.value = 1
    for _ in range(4):
        await clock
    dut.rst.value = 0

    async def load(what: str, lane: int, values: Any) -> None:
        strobe = getattr(dut, f"load_{what}")
        for k, v in enumerate(np.asarray(values, np.float32).reshape(-1, CHUNK)):
            strobe.value, dut.load_lane.value, dut.load_chunk.value, dut.load_data.value = 1, lane, k, floats(v)
            await clock
        strobe.value = 0

    for kind, lanes, rows, gained, values, heads in p["cases"]:
        h, kv, dim = heads
        kind = Kind(kind)
        top = 1 << c.row_width - 1
        acc = rng.integers(-5000, 5000, (lanes, rows))
        acc[rng.random(acc.shape) < 0.05] = top - 1
        acc[rng.random(acc.shape) < 0.05] = -top
        acc[rng.random(acc.shape) < 0.05] = 0
        # Scales from products that vanish to products that overflow.
        weight = np.array([1e-30, 1e-36, 1e-20] if values == "tiny" else [1e30, 1e34, 1e35], np.float32)
        if values == "usual":
            weight = np.array([0.01, 0.02, 0.03], np.float32)
        act = rng.uniform(0.01, 0.05, lanes).astype(np.float32) * np.float32(1e-3 if values == "tiny" else 1)
        x = rng.normal(0, 1, (lanes, c.max_hidden)).astype(np.float32)
        angle = rng.uniform(0, 7, (lanes, dim // 2))
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        gain = rng.normal(1, 0.5, c.max_features).astype(np.float32)
        for lane in range(lanes):
            await load("act", lane, [act[lane], 0, 0, 0])
            await load("x", lane, x[lane])
            await load("rope", lane, np.stack([cos[lane], sin[lane]], -1))
        await load("gain", 0, gain)
        await clock

        for name, v in zip(
            "kind rows lanes gain_out head_dim heads kv_heads".split(),
            (kind, rows, lanes, gained, dim, h, kv),
            strict=True,
        ):
            getattr(dut, name).value = int(v)
        for i in range(3):
            getattr(dut, f"scale{i}").value = f32(weight[i])
        dut.start.value = 1
        await clock
        dut.start.value = 0

        n = rows // 2 if kind >= Kind.GATE_RELU2 else rows
        got, got_u = np.zeros((2, lanes, n // CHUNK, CHUNK), np.uint32)
        seen = np.zeros((2, lanes, n // CHUNK), int)
        sent, lasts, head_lasts, quiet, wait = 0, 0, 0, 0, 0
        while quiet < 120:
            if sent < rows and not wait:
                wide = np.full(c.lanes, 77)
                wide[:lanes] = acc[:, sent]
                dut.rows_in__valid.value, dut.rows_in__payload.value = 1, pack(wide, c.row_width)
            else:
                dut.rows_in__valid.value = 0
            await clock
            dut.captured.value = 0
            if wait:
                wait -= 1
            elif sent < rows and int(dut.rows_in__ready.value):
                sent += 1
                wait = int(rng.integers(0, 12)) if rng.random() < p["stall"] else 0
            quiet += 1
            if int(dut.valid.value):
                quiet = 0
                lane, k = int(dut.lane.value), int(dut.chunk.value)
                raw = int(dut.v.value).to_bytes(16, "little")
                got[lane, k] = np.frombuffer(raw, np.uint32)
                seen[0, lane, k] += 1
                lasts += int(dut.last.value)
                if int(dut.head_last.value):
                    head_lasts += 1
                    dut.captured.value = 1
                assert not int(dut.last.value) or (lane, k) == (lanes - 1, n // CHUNK - 1)
            if int(dut.u_write.value):
                lane, k = int(dut.u_lane.value), int(dut.u_chunk.value)
                got_u[lane, k] = np.frombuffer(int(dut.u.value).to_bytes(16, "little"), np.uint32)
                seen[1, lane, k] += 1
        assert sent == rows and lasts == 1 and (seen == 1).all(), (sent, lasts, np.unique(seen))

        if kind == Kind.QKV:
            assert head_lasts == h + 2 * kv
            y = golden.scale(acc, np.repeat(weight, [h * dim, kv * dim, kv * dim]), act).reshape(lanes, -1, dim)
            gains = np.repeat(gain[: 2 * dim].reshape(2, dim), [h, kv], axis=0) if gained else np.ones(dim, np.float32)
            heads_u = golden.head_statistics(y[:, : h + kv], gains, cos[:, None], sin[:, None]).u
            turned = np.concatenate([heads_u, y[:, h + kv :]], 1).reshape(lanes, rows)
            want = y.reshape(lanes, rows)
        elif kind == Kind.RESIDUAL:
            want = golden.residual(x[:, :n], golden.scale(acc, weight[0], act))
        else:
            y = golden.scale(acc, np.tile(weight[:2], n), act)
            gate = golden.gate_relu2 if kind == Kind.GATE_RELU2 else golden.gate_silu
            want = gate(y[:, 0::2], y[:, 1::2])
        name = f"{kind.name}, {lanes} lanes, {values}"
        same(f"features, {name}", fp.from_bits(got.reshape(lanes, n)), want)
        stats = golden.statistics(want, gain[:n] if gained and kind != Kind.QKV else None)
        same(f"u, {name}", fp.from_bits(got_u.reshape(lanes, n)), turned if kind == Kind.QKV else stats.u)
        if kind == Kind.QKV or n < 32:
            continue
        for lane in range(lanes):
            dut.read_lane.value, dut.read.value, dut.read_half.value = lane, 1, 0
            await clock
            dut.read_half.value = 1
            await clock
            dut.read.value = 0
            for _ in range(Statistics.read_delay):
                await clock
            same(f"sum of squares, {name}", fp.from_bits(np.uint32(int(dut.ss.value))), stats.ss[lane])
            same(f"largest, {name}", fp.from_bits(np.uint32(int(dut.amax.value))), stats.amax[lane])


def run_features(form: str = "rtl") -> None:
    """Every kind of epilogue, with and without stalls."""
    cases = [
        (int(kind), lanes, rows, gained, values, [2, 1, 32])
        for kind in Kind
        for lanes, rows, gained, values in (
            (1, 128, 1, "usual"),
            (3, 128, 0, "usual"),
            (4, 128, 1, "usual"),
            (4, 128, 1, "tiny"),
            (2, 128, 1, "huge"),
        )
    ] + [(int(Kind.QKV), 2, 5 * dim, 0, "usual", [3, 1, dim]) for dim in (64, 96, 128)]
    for stall in (0.0, 0.2):
        simulate(
            Features(),
            __name__,
            testcase="check_features",
            parameters={"seed": 4, "stall": stall, "cases": cases},
            form=form,
        )


def test_features_and_statistics_equal_golden() -> None:
    run_features()
