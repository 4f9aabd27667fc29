"""Jobs for the attention unit with what golden says of them, and a cocotb bench that runs them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import cocotb
import numpy as np
from amaranth.lib import data
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from tellme.golden import attention, fp, head, schedule
from tellme.golden.config import PRESETS, AcceleratorConfig
from tellme.hw.attention.head import logit_layout
from tellme.hw.interfaces import phase_layout

CONFIGS = {
    "tiny": PRESETS["tiny"],
    "kv260": PRESETS["kv260"],
    # Two keys a beat, few lanes: small to build.
    "wide": AcceleratorConfig(
        name="wide", lanes=4, attention_lanes=4, key_tile=16, block_rows=64, max_hidden=256, max_features=1024,
        max_kv_dim=256, max_heads=16, max_head_dim=128, max_context=256, score_words=512, fifo_beats=128,
        max_descriptors=16, narrow_cache=True,
    ),
    # One key a beat, but cells of 32 dims; one query at a time.
    "half": AcceleratorConfig(
        name="half", ports=2, lanes=2, attention_lanes=1, key_tile=16, block_rows=64, max_hidden=256, max_features=1024,
        max_kv_dim=128, max_heads=16, max_head_dim=128, max_context=128, score_words=1024, fifo_beats=128,
        max_descriptors=16,
    ),
}  # fmt: skip


@dataclass
class Job:
    """A job's inputs and results. `results`: [lane] features, bit patterns; `logits` likewise in the head mode."""

    settings: dict[str, int]
    blocks: list[dict[str, int]]
    beats: list[bytes]
    queries: np.ndarray
    query_scales: np.ndarray
    own: np.ndarray
    own_scales: np.ndarray
    results: dict[int, np.ndarray]
    logits: dict[int, np.ndarray] = field(default_factory=dict)
    best: dict[int, tuple[int, int]] = field(default_factory=dict)


NARROW = {"8": (0, 0), "8-4": (0, 1), "4": (1, 1)}
"""k_narrow and v_narrow of the choices of cache."""


def tile(c: AcceleratorConfig, x: np.ndarray, narrow: int = 0) -> list[bytes]:
    """Keys [n, dims] of int8 as the beats of each cell, rows behind them random. narrow: elements are nibbles, in order."""
    keys = c.keys_per_beat << narrow
    beats = -(-len(x) // keys)
    rows = np.random.default_rng(len(x)).integers(-128, 128, (beats * keys, x.shape[1])).astype(np.int8)
    rows[: len(x)] = x
    out = []
    for cell in range(x.shape[1] // c.cell):
        part = rows[:, cell * c.cell : (cell + 1) * c.cell].reshape(beats, c.beat_bytes << narrow).astype(np.uint8)
        if narrow:
            part = part[:, ::2] & 15 | part[:, 1::2] << 4
        out += [b.tobytes() for b in part]
    return out


def scale_beats(c: AcceleratorConfig, s: np.ndarray, beats: int) -> list[bytes]:
    """Scales as beats; what follows them is garbage of all kinds (NaN, infinity, large values)."""
    pattern = np.random.default_rng(len(s)).integers(0, 1 << 32, beats * c.word, dtype=np.uint64).astype(np.uint32)
    pattern[1::3] = 0x7F800001
    pattern[2::3] = 0x7F7FFFFF
    pattern[: len(s)] = fp.bits(s)
    return [b.tobytes() for b in pattern.reshape(beats, c.word)]


def attention_job(c: AcceleratorConfig, case: dict[str, Any]) -> Job:
    """heads, kv_heads, dim, positions, slots; kind: normal, equal, saturated, wild (scales over many magnitudes); sink (a cached or an own
    key of nearly all the weight, its V scale 2^-30 of the others'), spike (the other way round), infinite and NaN (one V scale), nothing (V scales of 0,
    all of a slot's or all but one); most negative and most positive (every key of full weight, every value -128 or 127), dots (dot products from one end
    of their range to the other).
    kv: bits of the cache, a key of NARROW."""
    rng = np.random.default_rng(case.get("seed", 1))
    heads, kv_heads, dim = case["heads"], case["kv_heads"], case["dim"]
    positions, slots = case["positions"], case["slots"]
    assert kv_heads * dim <= c.max_kv_dim and heads * dim <= c.query_offset, "more than the configuration holds"
    kind = case.get("kind", "normal")
    lanes = len(positions)
    cells = dim // c.cell
    narrow = NARROW[case.get("kv", "8")]

    def int8(*shape: int) -> np.ndarray:
        return rng.integers(-128, 128, shape).astype(np.int8)

    def scales(*shape: int) -> np.ndarray:
        s = rng.uniform(0.01, 0.1, shape)
        if kind == "wild":
            s = 10.0 ** rng.uniform(-7, 1, shape)
        return s.astype(np.float32)

    q = int8(lanes, heads, dim)
    qs = scales(lanes, heads) * np.float32({"saturated": 1e4, "normal": 0.3, "nothing": 0.01}.get(kind, 1.0))
    if kind == "equal":
        q[:] = 1

    def kept(n: int) -> np.ndarray:
        """Keys and values as the quantiser leaves them, [2, kv_heads, n, dim]."""
        most = [7 if x else 128 for x in narrow]
        return np.stack([rng.integers(-x, min(x, 127) + 1, (kv_heads, n, dim)).astype(np.int8) for x in most])

    own = kept(c.lanes)
    own_scales = scales(2, kv_heads, c.lanes)
    if kind == "equal":
        own[0], own_scales[:] = 3, 0.5
    extreme = {"most negative": -128, "most positive": 127}.get(kind)

    def single(keys: np.ndarray, key_scales: np.ndarray) -> None:
        """One of the keys [2, kv_heads, n, dim] is unlike the others."""
        n = keys.shape[2]
        at = n * 2 // 3 if n else slice(0)
        if kind in ("sink", "spike"):
            q[:], qs[:] = np.abs(q.astype(np.int64)).clip(1, 127), 2.0**-7
            keys[0], key_scales[0] = keys[0] // 32, 2.0**-6
            keys[0, :, at] = 127 if kind == "sink" else -127
            key_scales[1, :, at] *= np.float32(2.0 ** (-30 if kind == "sink" else 30))
        elif kind in ("infinite", "NaN"):
            key_scales[1, :, at] = np.inf if kind == "infinite" else np.nan
        elif kind == "nothing":
            key_scales[1, :, np.arange(n) != at if n > 3 else slice(None)] = 0

    def push(keys: np.ndarray, key_scales: np.ndarray) -> None:
        """Brings [2, kv_heads, n, dim] of keys and values, and their scales, to the ends of their ranges."""
        if extreme is not None:
            # With this scale weights of equal keys are as large as they can be: 59,376 of WEIGHT_MAX.
            keys[0], keys[1], key_scales[0], key_scales[1] = -128, extreme, 0.5, 0.906
            keys.clip(-7, 7, out=keys, where=np.array(narrow, bool)[:, None, None, None])
        elif kind == "dots":
            # Key i is 127 in its first dimensions and -128 in the others: from -128 * -128 to -128 * 127 of each.
            count = keys.shape[2]
            share = np.linspace(0, dim, count).round()
            keys[0] = np.where(np.arange(dim) < share[:, None], *((7, -7) if narrow[0] else (127, -128)))
            key_scales[:] = 2.0**-9

    if extreme is not None or kind == "dots":
        q[:], qs[:] = -128, 2.0**-9
    push(own, own_scales)
    single(own[:, :, :lanes], own_scales[..., :lanes])
    caches = {}
    results = {}
    for lo, hi in schedule.groups(slots):
        n = positions[lo]
        keys = kept(n)
        key_scales = scales(2, kv_heads, n)
        if kind == "equal":
            keys[0], key_scales[:] = 3, 0.5
        push(keys, key_scales)
        single(keys, key_scales)
        caches[lo] = keys, key_scales
        k, v = (np.concatenate([keys[i], own[i, :, lo : hi + 1]], axis=1) for i in range(2))
        ks, vs = (np.concatenate([key_scales[i], own_scales[i, :, lo : hi + 1]], axis=1) for i in range(2))
        r = attention.attend(q[lo : hi + 1], qs[lo : hi + 1], k, ks, v, vs, n)
        assert extreme is None or r.weights.max() > 0.9 * attention.WEIGHT_MAX
        out = attention.merge_heads(r.out, hi - lo + 1)
        for lane in range(lo, hi + 1):
            results[lane] = fp.bits(out[lane - lo])

    blocks, beats = [], []
    for ph in schedule.phases(c, kv_heads, positions, slots, v_narrow=bool(narrow[1])):
        blocks.append({name: int(value) for name, value in vars(ph).items()})
        if ph.own:
            continue
        keys, key_scales = caches[ph.lane_lo]
        part = slice(ph.block * c.key_block, ph.block * c.key_block + ph.keys)
        if not ph.v:
            for i in range(2):
                beats += scale_beats(c, key_scales[i, ph.kv_head, part], -(-ph.keys * 4 // c.beat_bytes))
        beats += tile(c, keys[int(ph.v), ph.kv_head, part], narrow[ph.v])

    words = c.max_features // c.word
    buffer = int8(c.lanes, words * c.word)
    for lane in range(lanes):
        buffer[lane, c.query_offset : c.query_offset + heads * dim] = q[lane].reshape(-1)
    ram = (
        own.reshape(2, kv_heads, max(1, c.lanes // c.keys_per_beat), c.keys_per_beat, cells, c.cell)
        .transpose(0, 1, 4, 2, 3, 5)
        .reshape(-1, c.beat_bytes)
    )
    qscales = np.zeros((c.lanes, 256), np.float32)
    qscales[:lanes, :heads] = qs
    return Job(
        dict(head_mode=0, k_narrow=narrow[0], v_narrow=narrow[1], cells=cells, group=heads // kv_heads, kv_heads=kv_heads, head_first=0,
        head_count=0,
             vocabulary=0, write_logits=0),
        blocks, beats, buffer.reshape(c.lanes, words, c.word), qscales, ram, own_scales, results,
    )  # fmt: skip


def head_job(c: AcceleratorConfig, case: dict[str, Any]) -> Job:
    """inputs, rows (vocabulary), first, count; kind: normal, ties (rows repeat), zero, negative, extreme (rows of -128 and of 127
    against a lane of either)."""
    rng = np.random.default_rng(case.get("seed", 1))
    n, vocabulary, first, count = case["inputs"], case["rows"], case["first"], case["count"]
    blocks = -(-vocabulary // c.key_block)
    rows = rng.integers(-127, 128, (blocks * c.key_block, n)).astype(np.int8)
    row_scales = rng.uniform(0.001, 0.01, len(rows)).astype(np.float32)
    q = rng.integers(-128, 128, (c.lanes, n)).astype(np.int8)
    kind = case.get("kind", "normal")
    if kind in ("ties", "same"):  # between rows far from each other, and between neighbours
        rows[:], row_scales[:] = rows[np.arange(len(rows)) % (5 if kind == "ties" else 1)], row_scales[0]
    if kind == "zero":  # +0 and -0, and nothing else
        q[:], row_scales[::2] = 0, -0.5
    if kind == "negative":
        rows[:], q[:] = -np.abs(rows) - 0, np.abs(q.astype(np.int64)).clip(1, 127)
    if kind == "extreme":
        rows[:], rows[1::3] = -128, 127
        q[:], q[first + 1 :: 2] = -128, 127
    rows[vocabulary:] = 127
    row_scales[vocabulary:] = 100.0
    scale = rng.uniform(0.01, 0.1, c.lanes).astype(np.float32)
    logits = head.logits(q[first : first + count], scale[first : first + count], rows, row_scales)
    best = head.best(logits[:, :vocabulary])
    beats: list[bytes] = []
    for b in range(blocks):
        part = slice(b * c.key_block, (b + 1) * c.key_block)
        beats += scale_beats(c, row_scales[part], c.scale_beats) + tile(c, rows[part])
    words = c.max_features // c.word
    buffer = rng.integers(-128, 128, (c.lanes, words * c.word)).astype(np.int8)
    buffer[:, :n] = q
    qscales = np.zeros((c.lanes, 256), np.float32)
    qscales[:, 0] = scale
    write = case.get("write", 1)
    return Job(
        dict(head_mode=1, k_narrow=1, v_narrow=1, cells=n // c.cell, group=1, kv_heads=1, head_first=first, head_count=count,
             vocabulary=vocabulary, write_logits=write),
        [
            dict(v=0, own=0, first=int(b == 0), last=int(b == blocks - 1), final=int(b == blocks - 1), kv_head=0,
                 lane_lo=0, lane_hi=0, keys=c.key_block, base=0, unit_words=0, parity=0, block=b)
            for b in range(blocks)
        ],
        beats, buffer.reshape(c.lanes, words, c.word), qscales, np.zeros((1, c.beat_bytes), np.int8),
        np.zeros((2, 1, c.lanes), np.float32), {},
        {first + i: fp.bits(logits[i]) for i in range(count if write else 0)},
        {first + i: (int(best[i]), int(fp.bits(logits[i, best[i]]))) for i in range(count)},
    )  # fmt: skip


def pack(layout: data.StructLayout, values: dict[str, int]) -> int:
    """A payload port's value: structures are one vector in the Verilog."""
    return sum(value << layout[name].offset for name, value in values.items())


def unpack(layout: data.StructLayout, value: int) -> dict[str, int]:
    return {name: value >> f.offset & (1 << f.width) - 1 for name, f in layout}


@dataclass
class Run:
    """Cycles of a job: start to done, first to last beat (both counted), stalls."""

    cycles: int
    stream_cycles: int
    stall_memory: int
    stall_softmax: int


class Bench:
    """Drives the unit, one Python step a cycle."""

    def __init__(self, dut: Any, config: AcceleratorConfig):
        self.dut = dut
        self.config = config
        self.descriptor = phase_layout(config)
        self.logit = logit_layout(config)

    async def reset(self) -> None:
        dut = self.dut
        cocotb.start_soon(Clock(dut.clk, 10, "ns").start())
        for name in ("start", "blocks__valid", "beats__valid", "logits__ready", "screened__valid"):
            getattr(dut, name).value = 0
        dut.rst.value = 1
        for _ in range(4):
            await RisingEdge(dut.clk)
        dut.rst.value = 0

    async def run(self, job: Job, *, stall: float = 0.0, pause: int = 0, seed: int = 1, limit: int = 200_000) -> Run:
        """Runs a job, checks every result, and returns its cycles. `stall`: chance a cycle that a stream pauses; `pause`: cycles without a beat behind every
        seven."""
        dut, c = self.dut, self.config
        rng = random.Random(seed)
        for name, value in job.settings.items():
            getattr(dut, f"job__{name}").value = value
        q_words = [[w.tobytes() for w in lane] for lane in job.queries]
        own = [w.tobytes() for w in job.own]
        own_scales = fp.bits(job.own_scales).tolist()
        q_scales = fp.bits(job.query_scales).tolist()
        results: dict[int, list[tuple[int, list[int]]]] = {}
        logits: dict[int, dict[int, bytes]] = {}
        next_block = next_beat = 0
        first_beat = last_beat = paused = 0
        stalls = [0, 0]
        await RisingEdge(dut.clk)
        dut.start.value = 1
        block_valid = beat_valid = logits_ready = False
        cycle = -1
        while True:
            await RisingEdge(dut.clk)
            # What is read now is of the cycle that has just ended.
            cycle += 1
            assert cycle < limit, (
                f"no end: {next_block} of {len(job.blocks)} phases, {next_beat} of {len(job.beats)} beats"
            )
            if cycle == 0:
                dut.start.value = 0
            if block_valid and dut.blocks__ready.value:
                next_block += 1
                block_valid = False
            if beat_valid and dut.beats__ready.value:
                next_beat += 1
                beat_valid = False
                last_beat = cycle
                first_beat = first_beat or cycle
                paused = 0 if next_beat % 7 else cycle + pause
            if not block_valid:
                block_valid = next_block < len(job.blocks) and rng.random() >= stall
                if block_valid:
                    dut.blocks__payload.value = pack(self.descriptor, job.blocks[next_block])
                dut.blocks__valid.value = block_valid
            if not beat_valid:
                beat_valid = next_beat < len(job.beats) and cycle >= paused and rng.random() >= stall
                if beat_valid:
                    dut.beats__payload.value = int.from_bytes(job.beats[next_beat], "little")
                dut.beats__valid.value = beat_valid
            if dut.int8__en.value:
                word = q_words[int(dut.int8__lane.value)][int(dut.int8__word.value)]
                dut.int8__data.value = int.from_bytes(word, "little")
            dut.query_scales__data.value = q_scales[int(dut.query_scales__lane.value)][
                int(dut.query_scales__head.value)
            ]
            if dut.own__en.value:
                dut.own__data.value = int.from_bytes(own[int(dut.own__address.value)], "little")
            if dut.own_scales__en.value:
                v, h, lane = (int(getattr(dut, f"own_scales__{n}").value) for n in ("v", "head", "lane"))
                dut.own_scales__data.value = own_scales[v][h][lane]
            if dut.chunks__valid.value:
                packed = int(dut.chunks__data.value)
                values = [packed >> 32 * i & 0xFFFFFFFF for i in range(4)]
                results.setdefault(int(dut.chunks__lane.value), []).append((int(dut.chunks__chunk.value), values))
            if job.settings["head_mode"]:
                if logits_ready and dut.logits__valid.value:
                    got_logits = unpack(self.logit, int(dut.logits__payload.value))
                    lane, beat = got_logits["lane"], got_logits["beat"]
                    value = got_logits["data"].to_bytes(c.beat_bytes, "little")
                    assert beat not in logits.setdefault(lane, {}), f"logits {lane} {beat} twice"
                    logits[lane][beat] = value
                logits_ready = rng.random() >= stall
                dut.logits__ready.value = logits_ready
            stalls[0] += int(dut.stall_memory.value)
            stalls[1] += int(dut.stall_softmax.value)
            if dut.done.value:
                break
            assert dut.busy.value == (cycle > 0), "busy is from the start to the end"
        assert not dut.busy.value
        assert (next_block, next_beat) == (len(job.blocks), len(job.beats))
        assert results.keys() == job.results.keys()
        for lane, expected in job.results.items():
            got = results[lane]
            assert [chunk for chunk, _ in got] == list(range(len(expected) // 4)), f"order of lane {lane}"
            values = np.array([v for _, v in got], np.uint32).reshape(-1)
            assert (values == expected).all(), (
                f"lane {lane}: {np.flatnonzero(values != expected)[:8]} of {len(expected)} differ, "
                f"{[hex(x) for x in values[values != expected][:4]]} for "
                f"{[hex(x) for x in expected[values != expected][:4]]}"
            )
        assert logits.keys() == job.logits.keys()
        for lane, expected in job.logits.items():
            assert sorted(logits[lane]) == list(range(len(expected) // c.word))
            values = np.frombuffer(b"".join(logits[lane][i] for i in sorted(logits[lane])), np.uint32)
            assert (values == expected).all(), f"logits of lane {lane}: {np.flatnonzero(values != expected)[:8]} differ"
        if job.best:
            index, value = int(dut.best_index.value), int(dut.best_value.value)
            for lane, expected_best in job.best.items():
                got_best = (index >> 32 * lane & 0xFFFFFFFF, value >> 32 * lane & 0xFFFFFFFF)
                assert got_best == expected_best, f"best of lane {lane}: {got_best}, not {expected_best}"
        return Run(cycle, last_beat - first_beat + 1, *stalls)
