"""Drives Elementwise from cocotb and holds what it leaves against the golden functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from tellme.golden import elementwise as golden
from tellme.golden import fp, hadamard
from tellme.golden.config import CHUNK, AcceleratorConfig
from tellme.golden.program import Kind
from tellme.golden.ternary import EXPONENT_STEP, GROUP

TIMEOUT = 200_000


def f32(x: float) -> int:
    """Pattern of a float."""
    return int(fp.bits(np.float32(x)))


def pack(values: Iterable[int], width: int) -> int:
    """Integers side by side, the first in the low bits."""
    out = 0
    for i, v in enumerate(values):
        out |= (int(v) & (1 << width) - 1) << i * width
    return out


def floats(values: Any) -> int:
    """float32 values side by side."""
    return int.from_bytes(np.ascontiguousarray(values, np.float32).tobytes(), "little")


def same(name: str, got: Any, want: Any) -> None:
    """Raises unless two arrays are equal bit for bit."""
    g, w = np.asarray(got), np.asarray(want)
    if w.dtype == np.float32:
        g, w = fp.bits(g), fp.bits(w)
    if g.shape != w.shape or not np.array_equal(g, w):
        where = np.argwhere(g != w)[:4].tolist() if g.shape == w.shape else (g.shape, w.shape)
        first = tuple(where[0]) if g.shape == w.shape else ()
        raise AssertionError(f"{name}: {len(np.argwhere(g != w))} differ, first at {where}: {g[first]!r} {w[first]!r}")


@dataclass
class Bench:
    """An Elementwise under test: `stall` is the share of cycles in which a stream has nothing to give."""

    dut: Any
    config: AcceleratorConfig
    rng: np.random.Generator
    stall: float = 0.0
    lanes: int = 1
    job: dict[str, Any] = field(default_factory=dict)
    stats: golden.Statistics | None = None
    x: Any = None
    act: Any = None
    cycles: dict[str, int] = field(default_factory=dict)

    async def start(self) -> None:
        """Clock and reset."""
        cocotb.start_soon(Clock(self.dut.clk, 10, unit="ns").start())
        d = self.dut
        for name in ("gain", "x", "rope", "quantise", "epilogue", "attention"):
            getattr(d, f"start_{name}").value = 0
        for name in ("load__valid", "rows_in__valid", "chunks__valid", "int8__en"):
            getattr(d, name).value = 0
        self.set(
            kind=0, norm_in=0, gain_out=0, gain_beats=0, inputs=0, tiles=0, rows=0, inv_n=0, eps=0, scale0=0, scale1=0
        )
        self.set(scale2=0, q_scale=0, head_dim=32, heads=1, kv_heads=1, x_beats=0, rope_beats=0, lanes=1)
        d.rst.value = 1
        for _ in range(4):
            await self.edge()
        d.rst.value = 0
        await self.edge()

    def set(self, **fields: Any) -> None:
        """Job parameters; floats become patterns."""
        for name, v in fields.items():
            getattr(self.dut, f"job__{name}").value = f32(v) if isinstance(v, (float, np.floating)) else int(v)

    async def edge(self) -> None:
        await RisingEdge(self.dut.clk)

    async def pulse(self, *names: str) -> None:
        """Starts jobs together; on return their busy flags can be seen."""
        for n in names:
            getattr(self.dut, f"start_{n}").value = 1
        await self.edge()
        for n in names:
            getattr(self.dut, f"start_{n}").value = 0
        await self.edge()

    async def idle(self, name: str) -> int:
        """Waits until a unit is not busy; the cycles it was busy, when called right behind `pulse`."""
        flag = getattr(self.dut, f"{name}_busy")
        for n in range(TIMEOUT):
            await self.edge()
            if not int(flag.value):
                return n + 1
        raise AssertionError(f"{name} stays busy")

    async def send(self, stream: str, payloads: Iterable[int]) -> None:
        """Gives payloads to a stream, with stalls."""
        d = self.dut
        valid, ready, payload = (getattr(d, f"{stream}__{s}") for s in ("valid", "ready", "payload"))
        for p in payloads:
            while self.stall and self.rng.random() < self.stall:
                valid.value = 0
                await self.edge()
            valid.value, payload.value = 1, p
            await self.edge()
            waited = 0
            while not int(ready.value):
                await self.edge()
                waited += 1
                assert waited < TIMEOUT, f"{stream} is never ready"
        valid.value = 0

    def beats(self, values: Any) -> list[int]:
        """float32 values as beats, padded with zeros."""
        e = self.config.word
        v = np.asarray(values, np.float32)
        v = np.concatenate([v, np.zeros(-len(v) % e, np.float32)]).reshape(-1, e)
        return [floats(b) for b in v]

    # ---- jobs

    async def load(self, x: Any, gain: Any, cos: Any, sin: Any) -> None:
        """Gain (or None), input features [lanes, n], rotary table [lanes, D/2]."""
        n, dim = x.shape[1], 2 * cos.shape[1]
        e = self.config.word
        table = np.stack([cos, sin], -1).reshape(self.lanes, -1)
        g = self.beats(gain) if gain is not None else []
        rows = [self.beats(v) for v in x]
        ropes = [self.beats(v) for v in table]
        self.set(gain_out=gain is not None, gain_beats=len(g), inputs=n, x_beats=len(rows[0]))
        self.set(rope_beats=len(ropes[0]), head_dim=dim, lanes=self.lanes)
        assert len(ropes[0]) == dim // e
        cocotb.start_soon(self.send("load", g + sum(rows, []) + sum(ropes, [])))
        await self.pulse("gain", "x", "rope")
        await self.idle("rope")
        await self.idle("x")
        assert not int(self.dut.gain_busy.value)
        self.x, self.stats = x, golden.statistics(x, gain)
        self.cos, self.sin = cos, sin

    async def words(self, count: int, tiles: int) -> dict[int, bytes]:
        """Reads the int8 words as the TLMM engine does: each as soon as it is counted."""
        d, c = self.dut, self.config
        out = {}
        s, pending = 0, None
        for _ in range(TIMEOUT):
            if pending is not None:
                await self.edge()
                out[pending] = int(d.int8__data.value).to_bytes(c.word, "little")
                if c.packing.group:
                    out[pending] += int(d.int8__exponent.value).to_bytes(1, "little")
                pending = None
                continue
            await self.edge()
            if s == count:
                return out
            d.int8__en.value = 0
            if int(d.quantised.value) > s:
                per_tile = self.lanes * c.tile_words
                t, rest = divmod(s, per_tile)
                lane, w = divmod(rest, c.tile_words)
                d.int8__lane.value = lane
                d.int8__word.value = (t * c.tile_words + w) % (c.max_features // c.word)
                d.int8__en.value = 1
                await self.edge()
                d.int8__en.value = 0
                pending = s
                s += 1
        raise AssertionError(f"only {s} of {count} words came")

    async def quantised(self, kind: Kind, *, norm: bool, eps: float, grouped: bool = False) -> None:
        """Waits for start_quantise's words and compares them."""
        c, n = self.config, self.stats.u.shape[1]
        tiles = -(-n // c.beat_weights)
        count = tiles * self.lanes * c.tile_words
        words = await self.words(count, tiles)
        await self.idle("quantise")
        assert int(self.dut.quantised.value) == count
        if grouped:
            q, exponents, scales = golden.quantise_groups(self.stats, norm=norm, eps=eps)
        else:
            q, scales = golden.quantise(self.stats, norm=norm, eps=eps)
            exponents = np.zeros((self.lanes, -(-n // GROUP)), np.int8)
        got = np.zeros((tiles, self.lanes, c.tile_words, c.word), np.int8)
        codes = np.zeros((tiles, self.lanes, c.tile_words), np.int8)
        for s, data in words.items():
            t, rest = divmod(s, self.lanes * c.tile_words)
            got[t, rest // c.tile_words, rest % c.tile_words] = np.frombuffer(data[: c.word], np.int8)
            codes[t, rest // c.tile_words, rest % c.tile_words] = data[-1] if c.packing.group else 0
        got = got.transpose(1, 0, 2, 3).reshape(self.lanes, -1)[:, :n]
        same("int8 inputs", got, q)
        if c.packing.group:
            each = np.repeat(exponents // EXPONENT_STEP, GROUP // c.word, axis=1)[:, : -(-n // c.word)]
            same("exponents", codes.transpose(1, 0, 2).reshape(self.lanes, -1)[:, : each.shape[1]], each)
        if kind != Kind.QKV:  # whose first query scale may have taken its place
            same("activation scale", await self.query_scales(1), scales[:, None])
        self.act = scales

    async def query_scales(self, heads: int) -> Any:
        d = self.dut
        out = np.zeros((self.lanes, heads), np.uint32)
        for lane in range(self.lanes):
            for h in range(heads):
                d.query_scales__lane.value, d.query_scales__head.value = lane, h
                await self.edge()
                await self.edge()
                await self.edge()
                out[lane, h] = int(d.query_scales__data.value)
        return fp.from_bits(out)

    async def linear(
        self,
        kind: Kind,
        acc: Any,
        scales: tuple[float, float, float],
        *,
        norm: bool = True,
        eps: float = 1e-5,
        gain: Any = None,
        heads: tuple[int, int, int] = (1, 1, 32),
        q_scale: float = 0.2,
        head: bool = False,
        narrow: tuple[int, int] = (0, 0),
        turn: bool = False,
    ) -> Any:
        """A LINEAR: quantises what is there, then runs the epilogue of the accumulators acc [lanes, rows]; `head`: quantises as for a HEAD."""
        c = self.config
        grouped = c.packing.group > 0 and not head
        if c.packing.group:
            self.set(grouped=grouped)
        n, rows = self.stats.u.shape[1], acc.shape[1]
        g = self.beats(gain) if gain is not None else []
        self.set(kind=kind, norm_in=norm, gain_out=gain is not None, gain_beats=len(g), inputs=n)
        self.set(tiles=-(-n // c.beat_weights), rows=rows, inv_n=golden.inverse_count(n), eps=float(eps))
        self.set(scale0=float(scales[0]), scale1=float(scales[1]), scale2=float(scales[2]), q_scale=float(q_scale))
        self.set(heads=heads[0], kv_heads=heads[1], head_dim=heads[2], k_narrow=narrow[0], v_narrow=narrow[1])
        if c.hadamard:
            self.set(hadamard=turn)
        cocotb.start_soon(self.send("load", g))
        # Rows of lanes that the pass does not carry are arbitrary.
        wide = self.rng.integers(-999, 999, (rows, c.lanes))
        wide[:, : self.lanes] = acc.T
        payloads = [pack(r, c.row_width) for r in wide]
        cocotb.start_soon(self.send("rows_in", payloads))
        await self.pulse(*(["gain"] if g else []), "quantise", "epilogue")
        await self.quantised(kind, norm=norm, eps=eps, grouped=grouped)
        await self.idle("epilogue")
        assert not int(self.dut.gain_busy.value)
        return self.golden_linear(kind, acc, scales, gain, heads)

    async def timed(
        self, kind: Kind, *, rows: int, heads: tuple[int, int, int], n: int, gain_out: bool = False
    ) -> tuple[int, int]:
        """Cycles of quantise_busy and of epilogue_busy, one after the other, when rows are always ready."""
        tiles = -(-n // self.config.beat_weights)
        self.set(kind=kind, norm_in=1, gain_out=gain_out, gain_beats=0, inputs=n, tiles=tiles)
        self.set(rows=rows, lanes=self.lanes)
        self.set(heads=heads[0], kv_heads=heads[1], head_dim=heads[2])
        await self.pulse("quantise")
        quantise = await self.idle("quantise")
        cocotb.start_soon(self.send("rows_in", [0] * rows))
        await self.pulse("epilogue")
        return quantise, await self.idle("epilogue")

    def golden_linear(self, kind: Kind, acc: Any, scales: Any, gain: Any, heads: tuple[int, int, int]) -> Any:
        """Golden result of a LINEAR; keeps the statistics and the residual stream up to date.

        Of QKV: the heads before their quantiser, and with a gain (of a query's dimensions, then of a key's) the statistics
        of queries and keys.
        """
        if kind == Kind.QKV:
            h, kv, dim = heads
            w = np.repeat(np.array(scales, np.float32), [h * dim, kv * dim, kv * dim])
            y = golden.scale(acc, w, self.act).reshape(self.lanes, h + 2 * kv, dim)
            turn = self.cos[:, None], self.sin[:, None]
            if gain is None:
                turned, normed = golden.rope(y[:, : h + kv], *turn), None
            else:
                of_heads = np.repeat(np.reshape(gain, (2, dim)), [h, kv], axis=0)
                normed = golden.head_statistics(y[:, : h + kv], of_heads, *turn)
                turned = normed.u
            return np.concatenate([turned, y[:, h + kv :]], 1), normed
        if kind == Kind.RESIDUAL:
            self.x = golden.residual(self.x, golden.scale(acc, np.float32(scales[0]), self.act))
            self.stats = golden.statistics(self.x, gain)
            return self.x
        w = np.tile(np.array(scales[:2], np.float32), acc.shape[1] // 2)
        y = golden.scale(acc, w, self.act)
        gate = golden.gate_relu2 if kind == Kind.GATE_RELU2 else golden.gate_silu
        h = gate(y[:, 0::2], y[:, 1::2])
        self.stats = golden.statistics(h, gain)
        return h

    async def check_heads(
        self,
        made: Any,
        heads: tuple[int, int, int],
        q_scale: float,
        eps: float = 1e-5,
        narrow: tuple[int, int] = (0, 0),
        turn: bool = False,
    ) -> None:
        """Compares queries, keys, values and their scales with what `linear` made of heads [lanes, heads, dim]. narrow: keys, values are
        of 4 bits. turn: queries and keys pass the Hadamard transform."""
        d, c = self.dut, self.config
        h, kv, dim = heads
        y, normed = made
        most = np.repeat([127, *(7 if x else 127 for x in narrow)], [h, kv, kv])
        q, scales = golden.quantise_head(y, most)
        if normed is not None:
            q[:, : h + kv], scales[:, : h + kv] = golden.quantise(normed, norm=True, eps=eps, largest=most[: h + kv])
        scales[:, :h] = fp.mul(scales[:, :h], np.float32(q_scale))
        if turn:
            u = y[:, : h + kv]
            stats = normed or golden.Statistics(np.zeros(u.shape[:2], np.float32), fp.max_abs(u), u)
            factor = np.repeat(np.array([q_scale, 1], np.float32), [h, kv])
            turned = hadamard.quantise(stats, norm=normed is not None, eps=eps, largest=most[: h + kv], factor=factor)
            q[:, : h + kv], scales[:, : h + kv] = turned
        same("query scales", await self.query_scales(h), scales[:, :h])
        got = np.zeros((self.lanes, h * dim // c.word, c.word), np.int8)
        d.int8__en.value = 1
        for lane in range(self.lanes):
            for w in range(got.shape[1]):
                d.int8__lane.value, d.int8__word.value = lane, c.query_offset // c.word + w
                await self.edge()
                await self.edge()
                await self.edge()
                got[lane, w] = np.frombuffer(int(d.int8__data.value).to_bytes(c.word, "little"), np.int8)
        d.int8__en.value = 0
        same("queries", got.reshape(self.lanes, h, dim), q[:, :h])

        cells, beats = dim // c.cell, max(1, c.lanes // c.keys_per_beat)
        own = np.zeros((2 * kv, cells, beats, c.keys_per_beat, c.cell), np.int8)
        for a in range(own[..., 0, 0].size):
            d.own__address.value = a
            await self.edge()
            await self.edge()
            await self.edge()
            raw = int(d.own__data.value).to_bytes(c.beat_bytes, "little")
            own.reshape(-1, c.beat_bytes)[a] = np.frombuffer(raw, np.int8)
        own = own.reshape(2 * kv, cells, -1, c.cell).transpose(2, 0, 1, 3).reshape(-1, 2 * kv, dim)
        same("keys and values", own[: self.lanes], q[:, h:])

        got_scales = np.zeros((self.lanes, 2 * kv), np.uint32)
        for lane in range(self.lanes):
            for k in range(2 * kv):
                d.own_scales__lane.value, d.own_scales__v.value, d.own_scales__head.value = lane, k // kv, k % kv
                await self.edge()
                await self.edge()
                await self.edge()
                got_scales[lane, k] = int(d.own_scales__data.value)
        same("key and value scales", fp.from_bits(got_scales), scales[:, h:])

    async def attention(self, out: Any, heads: tuple[int, int, int], gain: Any = None) -> None:
        """Attention output [lanes, heads * dim] in chunks: head by head, lane by lane, with pauses."""
        d = self.dut
        h, kv, dim = heads
        g = self.beats(gain) if gain is not None else []
        # The descriptor of an ATTENTION has no kind and no inputs.
        self.set(kind=0, gain_out=gain is not None, gain_beats=len(g), inputs=0, heads=h, kv_heads=kv, head_dim=dim)
        await self.pulse("attention", *(["gain"] if g else []))
        await self.send("load", g)
        for _ in range(3):
            await self.edge()
        for head in range(h):
            for lane in range(self.lanes):
                for k in range(head * dim // CHUNK, (head + 1) * dim // CHUNK):
                    while self.stall and self.rng.random() < self.stall:
                        d.chunks__valid.value = 0
                        await self.edge()
                    d.chunks__valid.value, d.chunks__lane.value, d.chunks__chunk.value = 1, lane, k
                    d.chunks__data.value = floats(out[lane, CHUNK * k : CHUNK * k + CHUNK])
                    await self.edge()
                    assert int(d.attention_busy.value)
        d.chunks__valid.value = 0
        await self.idle("attention")
        self.stats = golden.statistics(out, gain)
