"""A device that interprets the program from the buffer with golden's functions: what the hardware does, without RTL.

Everything comes from the memory image by the addresses in registers and descriptors; nothing from the host's objects.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tellme.golden import (
    attention,
    check,
    elementwise,
    fp,
    hadamard,
    head,
    layout,
    registers,
    schedule,
    screen,
    ternary,
)
from tellme.golden.boards import phases, place
from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import CACHE_FORMATS
from tellme.golden.program import DESCRIPTOR_BYTES, Kind, Opcode, decode
from tellme.golden.registers import ErrorCode, Register

GATES = {Kind.GATE_RELU2: elementwise.gate_relu2, Kind.GATE_SILU: elementwise.gate_silu}


class Stop(Exception):
    """The pass stops with an error code and an address."""

    def __init__(self, code: int, address: int = 0):
        self.code, self.address = code, address


class ReferenceMachine:
    """A `host.machine.device.Device`.

    Parameters
    ----------
    beats : beats of the buffer.
    dirty : fill the buffer with random bytes first, as DDR is.
    cached : the host sees the buffer through caches that are not coherent: what it writes reaches the accelerator by `flush`
        alone, and what that writes reaches the host by `invalidate` alone.
    """

    def __init__(self, config: AcceleratorConfig, beats: int, *, dirty: bool = True, cached: bool = False):
        self.config = config
        shape = (config.ports, beats, config.port_bytes)
        rng = np.random.Generator(np.random.PCG64(1))
        self.memory: NDArray[np.uint8] = (
            rng.integers(0, 256, shape, dtype=np.uint8) if dirty else np.zeros(shape, dtype=np.uint8)
        )
        self.dram = rng.integers(0, 256, shape, dtype=np.uint8) if cached else self.memory
        # Far apart, above 4 GiB, each at its phase.
        self.port_bases = tuple(
            place((i + 1) << 32 | i << 20, 0, 1, phases(config)[i : i + 1])[0] for i in range(config.ports)
        )
        self.values: dict[int, int] = {}
        self.set("identity", registers.IDENTITY)
        self.set("version", registers.VERSION)
        self.set("geometry", registers.geometry(config))
        self.set("build", registers.build_hash(config))
        self.injected: Stop | None = None
        self.hang = False
        self.resets = 0
        self.closed = False

    # ---- device ------------------------------------------------------------------------------------------------------

    def set(self, name: str, value: int, index: int = 0) -> None:
        self.values[registers.offset(name, index)] = value

    def get(self, name: str, index: int = 0) -> int:
        return self.values.get(registers.offset(name, index), 0)

    def _register(self, offset: int) -> Register:
        for r in registers.REGISTERS:
            if r.offset <= offset < r.offset + 4 * r.count and offset % 4 == 0:
                return r
        raise AssertionError(f"no register at {offset:#x}")

    def read(self, offset: int) -> int:
        self._register(offset)
        return self.values.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        r = self._register(offset)
        assert r.access == "rw", f"{r.name} is read-only"
        assert 0 <= value < 1 << 32, f"{r.name} written with {value}"
        if r.name != "control":
            self.values[offset] = value
        elif registers.unpack("control", value)["soft_reset"]:
            self.resets += 1
            self.set("status", 0)
        elif registers.unpack("control", value)["start"]:
            self._start()

    def flush(self, start: int, beats: int) -> None:
        assert 0 <= start <= start + beats <= self.memory.shape[1]
        self.dram[:, start : start + beats] = self.memory[:, start : start + beats]

    def invalidate(self, start: int, beats: int) -> None:
        assert 0 <= start <= start + beats <= self.memory.shape[1]
        self.memory[:, start : start + beats] = self.dram[:, start : start + beats]

    def wait_done(self, timeout_s: float) -> bool:
        return bool(registers.unpack("status", self.get("status"))["done"])

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> ReferenceMachine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- execution ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self.hang:
            self.set("status", registers.pack("status", busy=1))
            return
        try:
            if self.injected is not None:
                stop, self.injected = self.injected, None
                raise stop
            self._run()
            self.set("status", registers.pack("status", done=1))
        except Stop as e:
            self.set("status", registers.pack("status", done=1, error=e.code))
            self.set("error_address", e.address)

    def beats(self, address: int, count: int) -> NDArray[np.uint8]:
        """Reads beats, inside the window."""
        if address + count > self.get("window_beats"):
            raise Stop(ErrorCode.READ_WINDOW, address)
        self.read_beats += count
        return layout.unstripe(self.dram[:, address : address + count])

    def put(self, address: int, beats: NDArray[np.uint8]) -> None:
        """Writes beats, inside the window."""
        if address + len(beats) > self.get("window_beats"):
            raise Stop(ErrorCode.WRITE_WINDOW, address)
        self.dram[:, address : address + len(beats)] = layout.stripe(beats, self.config)

    def _floats(self, address: int, lanes: int, count: int) -> NDArray[np.float32]:
        n = layout.float_beats(count, self.config)
        return layout.unpack_floats(self.beats(address, lanes * n), count, self.config)

    def _run(self) -> None:
        c = self.config
        self.read_beats = 0
        self.chosen: list[int] = []
        for i, base in enumerate(self.port_bases):
            if (self.get("base_low", i) | self.get("base_high", i) << 32) != base:
                raise Stop(ErrorCode.READ_DECERR, 0)
        lanes = self.get("lanes")
        if not 1 <= lanes <= c.lanes:
            raise Stop(ErrorCode.BAD_LANES)
        self.positions = [self.get("position", i) for i in range(lanes)]
        self.slots = [self.get("slot", i) for i in range(lanes)]
        heads = registers.unpack("head_lanes", self.get("head_lanes"))
        context, slots = self.get("context"), self.get("slots")
        if check.bad_lanes(
            c,
            lanes=lanes,
            head=(heads["first"], heads["count"]),
            context=context,
            slots=slots,
            positions=self.positions,
            slot=self.slots,
        ):
            raise Stop(ErrorCode.BAD_LANES)
        length = self.get("program_length") * DESCRIPTOR_BYTES
        code = self.beats(self.get("program_address"), -(-length // c.beat_bytes)).tobytes()[:length]
        candidates = self.get("candidates")
        found = check.problem(code, c, context=context, slots=slots, candidates=candidates, head_lanes=heads["count"])
        if found is not None:
            raise Stop(ErrorCode.BAD_DESCRIPTOR, found[0])
        for i in range(0, length, DESCRIPTOR_BYTES):
            try:
                opcode, f = decode(code[i : i + DESCRIPTOR_BYTES])
            except ValueError:
                raise Stop(ErrorCode.BAD_DESCRIPTOR, i // DESCRIPTOR_BYTES) from None
            if opcode is Opcode.END:
                break
            self.index = i // DESCRIPTOR_BYTES
            gain = None
            if f.get("gain_out"):
                if opcode is Opcode.LOAD:
                    n = f["inputs"]
                elif opcode is Opcode.ATTENTION:
                    n = f["heads"] * f["head_dim"]
                else:
                    n = {Kind.QKV: 2 * f["head_dim"], Kind.RESIDUAL: f["rows"]}.get(Kind(f["kind"]), f["rows"] // 2)
                assert f["gain_beats"] == layout.float_beats(n, c)
                gain = self._floats(f["address"], 1, n)[0]
            else:
                assert f.get("gain_beats", 0) == 0
            getattr(self, f"_{opcode.name.lower()}")(f, gain)
        else:
            raise Stop(ErrorCode.BAD_DESCRIPTOR, self.index)
        chosen = self.chosen if candidates else []
        expected = schedule.segments(
            c, code, self.get("program_address"), self.positions, self.slots, heads["count"], chosen
        )
        self.set("cycles", sum(s.beats for s in expected))
        self.set("beats", sum(s.beats for s in expected))
        for i in range(len(registers.STALLS)):
            self.set("stall", i + 1, i)

    def _load(self, f: dict, gain: NDArray[np.float32] | None) -> None:
        assert f["x_beats"] == layout.float_beats(f["inputs"], self.config)
        self.x = self._floats(f["x_address"], len(self.positions), f["inputs"])
        tables = [
            layout.unpack_rope(
                self.beats(f["rope_address"] + p * f["rope_beats"], f["rope_beats"]), f["head_dim"], self.config
            )
            for p in self.positions
        ]
        self.cos = np.concatenate([t[0] for t in tables])
        self.sin = np.concatenate([t[1] for t in tables])
        self.stats = elementwise.statistics(self.x, gain)

    def _linear(self, f: dict, gain: NDArray[np.float32] | None) -> None:
        c, lanes = self.config, len(self.positions)
        assert np.float32(f["inv_n"]) == elementwise.inverse_count(f["inputs"])
        assert f["block_rows"] <= c.block_rows and f["inputs"] <= c.max_features
        assert self.stats.u.shape[-1] == f["inputs"]
        data = self.beats(f["address"] + f["gain_beats"], f["tiles"] * f["rows"])
        try:
            weights = layout.unpack_linear(data, f["rows"], f["inputs"], c, f["block_rows"])
        except ternary.WeightError:
            raise Stop(ErrorCode.BAD_WEIGHT, self.index) from None
        q, scale = elementwise.quantise(self.stats, norm=bool(f["norm_in"]), eps=f["eps"])
        acc = ternary.linear(weights, q)
        kind = Kind(f["kind"])
        if kind is Kind.QKV:
            d, heads, kv_heads = f["head_dim"], f["heads"], f["kv_heads"]
            scales = np.repeat(
                np.float32([f["scale0"], f["scale1"], f["scale2"]]), [heads * d, kv_heads * d, kv_heads * d]
            )
            y = elementwise.scale(acc, scales, scale).reshape(lanes, -1, d)
            rotated = heads + kv_heads
            turn = self.cos[:, None], self.sin[:, None]
            most = [127, 7 if f["k_narrow"] else 127, 7 if f["v_narrow"] else 127]
            largest = np.repeat(most, [heads, kv_heads, kv_heads])
            codes, head_scales = elementwise.quantise_head(y, largest)  # of V, and without a gain of the others too
            if gain is None:
                codes[:, :rotated], head_scales[:, :rotated] = elementwise.quantise_head(
                    elementwise.rope(y[:, :rotated], *turn), largest[:rotated]
                )
            else:
                gains = np.repeat(gain.reshape(2, d), [heads, kv_heads], axis=0)
                normed = elementwise.head_statistics(y[:, :rotated], gains, *turn)
                codes[:, :rotated], head_scales[:, :rotated] = elementwise.quantise(
                    normed, norm=True, eps=f["eps"], largest=largest[:rotated]
                )
            self.query, self.key, self.value = codes[:, :heads], codes[:, heads:rotated], codes[:, rotated:]
            head_scales[:, :heads] = fp.mul(head_scales[:, :heads], np.float32(f["q_scale"]))
            if f["hadamard"]:
                assert c.hadamard
                u = elementwise.rope(y[:, :rotated], *turn) if gain is None else normed.u
                ss = np.zeros(u.shape[:2], np.float32) if gain is None else normed.ss
                codes[:, :rotated], head_scales[:, :rotated] = hadamard.quantise(
                    elementwise.Statistics(ss, fp.max_abs(u), u), norm=gain is not None, eps=f["eps"], largest=largest[:rotated],
                    factor=np.repeat(np.float32([f["q_scale"], 1]), [heads, kv_heads]),
                )  # fmt: skip
            self.query_scale = head_scales[:, :heads]
            self.key_scale, self.value_scale = head_scales[:, heads:rotated], head_scales[:, rotated:]
        elif kind is Kind.RESIDUAL:
            self.x = elementwise.residual(self.x, elementwise.scale(acc, np.float32(f["scale0"]), scale))
            self.stats = elementwise.statistics(self.x, gain)
        else:
            scales = np.tile(np.float32([f["scale0"], f["scale1"]]), f["rows"] // 2)
            z = elementwise.scale(acc, scales, scale)
            self.stats = elementwise.statistics(GATES[kind](z[:, 0::2], z[:, 1::2]), gain)

    def _attention(self, f: dict, gain: NDArray[np.float32] | None) -> None:
        c, d, kv_heads = self.config, f["head_dim"], f["kv_heads"]
        assert f["group"] == f["heads"] // kv_heads
        names = {(0, 0): "8", (0, 1): "8-4", (1, 1): "4"}
        cache = CACHE_FORMATS[names[f["k_narrow"], f["v_narrow"]]]
        kv = layout.KvLayout(c, d, kv_heads, c.context_limit(cache.v_narrow), cache)
        # With narrow values every second attention lane takes the other half of a word's keys.
        halves = 2 if cache.v_narrow else 1
        word_keys = halves * c.keys_per_beat
        out = np.empty((len(self.positions), f["heads"] * d), np.float32)
        for lo, hi in schedule.groups(self.slots):
            mine, start = slice(lo, hi + 1), self.positions[lo]
            sets = -(-(hi - lo + 1) * f["group"] // (c.attention_lanes // halves))
            own = -(-(hi // c.keys_per_beat - lo // c.keys_per_beat + 1) // halves)
            assert sets * (own - -start // word_keys) <= c.score_words

            def block(kv_head: int, b: int, slot: int = self.slots[lo]) -> int:
                base = f["kv_address"] + slot * f["slot_stride"] + kv_head * f["head_stride"]
                return base + b * kv.block_stride

            caches = []
            for h in range(kv_heads):
                parts = [
                    kv.unpack_block(self.beats(block(h, b), kv.block_stride)) for b in range(-(-start // c.key_block))
                ]
                own_part = (self.key[mine, h], self.key_scale[mine, h], self.value[mine, h], self.value_scale[mine, h])
                cached = [np.concatenate([p[j] for p in parts])[:start] if parts else None for j in range(4)]
                caches.append(
                    [o if p is None else np.concatenate([p, o]) for p, o in zip(cached, own_part, strict=True)]
                )
            k, ks, v, vs = (np.stack([cache[j] for cache in caches]) for j in range(4))
            result = attention.attend(self.query[mine], self.query_scale[mine], k, ks, v, vs, start)
            out[mine] = attention.merge_heads(result.out, hi - lo + 1)
            for lane in range(lo, hi + 1):
                b, i = divmod(self.positions[lane], c.key_block)
                for h in range(kv_heads):
                    content = kv.unpack_block(self.beats(block(h, b), kv.block_stride))
                    for array, own_value in zip(
                        content, (self.key, self.key_scale, self.value, self.value_scale), strict=True
                    ):
                        array[i] = own_value[lane, h]
                    kd, ksd, vd, vsd = content
                    self.put(block(h, b), kv.pack_block(kd, ksd, vd, vsd))
        self.stats = elementwise.statistics(out, gain)

    def _head(self, f: dict, gain: NDArray[np.float32] | None) -> None:
        c, lanes = self.config, registers.unpack("head_lanes", self.get("head_lanes"))
        first, count = lanes["first"], lanes["count"]
        if first + count > len(self.positions):
            raise Stop(ErrorCode.BAD_LANES)
        if not count or self.get("candidates"):
            return
        assert f["tiles"] == layout.tiles(f["inputs"], c)
        data = self.beats(f["address"], f["blocks"] * layout.head_block_beats(f["inputs"], c))
        rows, scales = layout.unpack_head(data, f["rows"], f["inputs"], c)
        mine = slice(first, first + count)
        stats = elementwise.Statistics(self.stats.ss[mine], self.stats.amax[mine], self.stats.u[mine])
        q, scale = elementwise.quantise(stats, norm=True, eps=f["eps"])
        logits = head.logits(q, scale, rows, scales)
        for i, best in enumerate(head.best(logits)):
            self.set("best_index", int(best), first + i)
            self.set("best_value", int(fp.bits(logits[i, best])), first + i)
            if self.get("write_logits"):
                padded = np.zeros((1, f["blocks"] * c.key_block), np.float32)
                padded[0, : f["rows"]] = logits[i]
                self.put(f["logits_address"] + (first + i) * f["logits_stride"], layout.pack_floats(padded, c))

    def _exact(self, f: dict, first: int, candidates: int, r: screen.Screened) -> None:
        """A ternary head: candidates, or every logit."""
        assert r.every is not None
        for i, own in enumerate(r.indices):
            self.set("best_index", int(r.best[i]), first + i)
            self.set("best_value", int(fp.bits(r.every[i, r.best[i]])), first + i)
            self.set("bound", int(fp.bits(r.bound[i])), first + i)
            values = r.every[i]
            if candidates:
                values = (
                    np.stack([fp.bits(r.logits[i]), own.astype(np.uint32)], axis=1)
                    .astype("<u4")
                    .reshape(-1)
                    .view("<f4")
                )
            if self.get("write_logits"):
                self.put(
                    f["logits_address"] + (first + i) * f["logits_stride"],
                    layout.pack_floats(values[None], self.config),
                )

    def _screen(self, f: dict, gain: NDArray[np.float32] | None) -> None:
        c, lanes = self.config, registers.unpack("head_lanes", self.get("head_lanes"))
        first, count, candidates = lanes["first"], lanes["count"], self.get("candidates")
        if not count or not (candidates or f["exact"]):
            return
        n, rows = f["inputs"], f["rows"]
        data = self.beats(f["address"], layout.screen_beats(rows, f["planes"], n, c))
        weights, scales = layout.unpack_screen(data, rows, f["planes"], n, c, bool(f["exact"]))
        mine = slice(first, first + count)
        stats = elementwise.Statistics(self.stats.ss[mine], self.stats.amax[mine], self.stats.u[mine])
        q, act_scale = elementwise.quantise(stats, norm=True, eps=f["eps"])
        if f["exact"]:
            ternary = screen.Screen(weights, scales, np.float32(f["bound_unit"]), exact=True)
            self._exact(f, first, candidates, screen.exact(q, act_scale, ternary, candidates))
            return
        unit = np.float32(f["bound_unit"]) / np.float32(1 << screen.BOUND_SHIFT)
        ternary = screen.Screen(weights, scales, unit)
        values = screen.scores(q, ternary)
        chosen = screen.select(values, candidates)
        for i, (own, bound) in enumerate(zip(chosen, screen.bounds(values, chosen, act_scale, ternary), strict=True)):
            beats = layout.row_beats(n, c)
            records = np.stack([self.beats(f["row_address"] + row * beats, beats) for row in own.tolist()])
            tails = np.ascontiguousarray(records[:, -1, :8])
            assert (tails.view("<u4")[:, 1] == own).all()
            int8 = records[:, :-1].reshape(candidates, -1)[:, :n].view(np.int8)
            logits = head.logits(q[i : i + 1], act_scale[i : i + 1], int8, tails.view("<f4")[:, 0])[0]
            best = int(head.best(logits[None])[0])
            self.set("best_index", int(own[best]), first + i)
            self.set("best_value", int(fp.bits(logits[best])), first + i)
            self.set("bound", int(fp.bits(bound)), first + i)
            self.chosen += own.tolist()
            if self.get("write_logits"):
                order = np.random.default_rng(i).permutation(candidates)  # any order will do
                pairs = np.stack([fp.bits(logits), own.astype(np.uint32)], axis=1)[order].astype("<u4")
                self.put(
                    f["logits_address"] + (first + i) * f["logits_stride"],
                    layout.pack_floats(pairs.reshape(1, -1).view("<f4"), c),
                )
