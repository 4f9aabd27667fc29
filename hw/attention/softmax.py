"""Softmax in two passes: scores with the running maximum, then integer weights relative to the final one."""

from __future__ import annotations

import struct

from amaranth import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tellme.golden.attention import RATIO_MAX, SCORE_FRAC
from tellme.golden.config import clog2
from tellme.hw.attention.block import SCORE_BITS, Sizes, log2
from tellme.hw.attention.scores import DotAccumulator
from tellme.hw.fp import Exp2Mantissa, FloatToFixed, IntToFloat, Multiplier, Reciprocal
from tellme.hw.pipeline import delay_line
from tellme.hw.queues import ShortQueue


def float_const(x: float) -> Const:
    """Pattern of the binary32 nearest to x."""
    return Const(struct.unpack("<I", struct.pack("<f", x))[0], 32)


def unit_layout(z: Sizes) -> data.StructLayout:
    """What the second pass needs of a unit. groups: of `pipes` queries, less one. last_word: words, at least `pipes`,
    less one."""
    return data.StructLayout(
        {
            "parity": 1,
            "groups": clog2(-(-z.max_queries // z.pipes)),
            "queries": z.query_bits + 1,
            "words": z.word_bits,
            "last_word": z.word_bits,
        }
    )


def score_layout(z: Sizes) -> data.ArrayLayout:
    """A query's scores in a score word; a key that the query does not attend to is not valid."""
    return data.ArrayLayout(data.StructLayout({"score": signed(SCORE_BITS), "valid": 1}), z.config.keys_per_beat)


def statistic_layout(z: Sizes) -> data.ArrayLayout:
    """Largest score and V scale of `pipes` queries."""
    return data.ArrayLayout(data.StructLayout({"m": signed(SCORE_BITS), "vmax": 32}), z.pipes)


class ScorePass(wiring.Component):
    """First pass, over the dot products of a K phase: T of every (query, key), the running maximum, the largest V
    scale.

    `pipes` queries x keys_per_beat keys a cycle, phase by phase; in the head mode one lane's logits instead of scores.
    A phase takes groups * max(beats, pipes) cycles and about `pipes` + 5 more, groups = ceil(queries / pipes).

    Interface attributes
    --------------------
    phases : K phases. phase_end : pulse, a phase's dot products are complete. scales_ready, scale_free : see Loader.
    scored : pulse, dot products and scales of the phase are read. read_* : port of the DotAccumulator.
    score_* : write port of the score RAM: word address, enables of `pipes` queries each. value_scale_*: of the V scale RAM.
    statistic_write, statistic_read_* -> statistic : maxima, P queries a word at {parity, group}; the second pass reads.
    inverse : 65535 / vmax of the same queries, with `statistic`.
    unit, unit_ready : stream of units whose scores are complete, valid once everything of them can be read.
    logit_* : valid, the lane (index), its beat, logits of keys_per_beat rows (head mode); `logit_new`: its first beat;
    `logit_first`: first block; `logit_end`: last logit of the job.
    credit : a beat of logits may be begun; `spend`: it is.
    """

    def __init__(self, sizes: Sizes, dots: DotAccumulator):
        self.sizes = sizes
        c = sizes.config
        lane = clog2(c.lanes)
        self.group_bits = clog2(-(-sizes.max_queries // sizes.pipes))
        self.t_delay = 2 + 2 * Multiplier.delay
        """Cycles from the issue to t."""
        self.delay = self.t_delay + FloatToFixed.delay
        """Cycles from the issue to T."""
        super().__init__(
            {
                "head_mode": In(1),
                "write_logits": In(1),
                "group": In(8),
                "phases": In(stream.Signature(sizes.phase)),
                "phase_end": In(1),
                "scales_ready": In(2),
                "scale_free": Out(2),
                "scored": Out(1),
                "read_half": Out(1),
                "read_address": Out(clog2(sizes.tile_words)),
                "read_data": In(dots.read_data.shape()),
                "scale_address": Out(1 + log2(c.key_tile)),
                "k_scales": In(data.ArrayLayout(32, c.keys_per_beat)),
                "v_scales": In(data.ArrayLayout(32, c.keys_per_beat)),
                "qscale_lane": Out(lane),
                "qscale_head": Out(8),
                "qscale_data": In(32),
                "score_en": Out(c.attention_lanes // sizes.pipes),
                "score_address": Out(sizes.word_bits),
                "score_data": Out(data.ArrayLayout(score_layout(sizes), c.attention_lanes)),
                "value_scale_en": Out(1),
                "value_scale_address": Out(sizes.word_bits),
                "value_scale_data": Out(data.ArrayLayout(32, c.keys_per_beat)),
                "statistic_address": In(1 + self.group_bits),
                "statistic": Out(statistic_layout(sizes)),
                "inverse": Out(data.ArrayLayout(32, sizes.pipes)),
                "unit": Out(stream.Signature(unit_layout(sizes))),
                "logit_valid": Out(1),
                "logit_lane": Out(lane),
                "logit_block": Out(16),
                "logit_beat": Out(log2(c.key_tile)),
                "logit_first": Out(1),
                "logit_new": Out(1),
                "logit_end": Out(1),
                "logits": Out(data.ArrayLayout(32, c.keys_per_beat)),
                "credit": In(1),
                "spend": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        z = self.sizes
        c = z.config
        pipes, kpb, lanes = z.pipes, c.keys_per_beat, c.attention_lanes
        assert kpb <= 2  # the maxima compare the keys of a beat in pairs
        subs = lanes // pipes
        lane_bits = clog2(c.lanes)
        p = self.phases.payload

        end = Signal()
        complete = Signal(2)
        m.d.sync += complete.eq(complete + self.phase_end - end)

        # ---- the walker prepares the next group of queries: lanes and scales ----------------------
        walking = Signal()
        lane = Signal(lane_bits)
        g = Signal(8)
        last_g = Signal(8)
        m.d.sync += last_g.eq(self.group - 1)
        query = Signal(z.query_bits + 1)
        slot = Signal(range(max(2, pipes)))
        end_query = Signal()
        m.d.comb += [
            slot.eq(query & (pipes - 1)) if pipes & (pipes - 1) == 0 else slot.eq(query % pipes),
            end_query.eq(query == p.last_query),
            self.qscale_lane.eq(lane),
            self.qscale_head.eq(p.first_head + g),
        ]
        next_lane = [Signal(lane_bits, name=f"next_lane_{i}", reset_less=True) for i in range(pipes)]
        next_scale = [Signal(32, name=f"next_scale_{i}", reset_less=True) for i in range(pipes)]
        next_active = Signal(pipes)
        next_end = Signal()
        next_valid = Signal()
        arriving = delay_line(m, walking, 1, "arriving", reset_less=False)
        arriving_slot = delay_line(m, slot, 1, "arriving_slot")
        arriving_end = delay_line(m, (slot == pipes - 1) | end_query, 1, "arriving_end")
        arriving_last = delay_line(m, end_query, 1, "arriving_last")
        for i in range(pipes):
            with m.If(walking & (slot == i)):
                m.d.sync += next_lane[i].eq(lane)
            with m.If(arriving & (arriving_slot == i)):
                m.d.sync += next_scale[i].eq(self.qscale_data)
        with m.If(arriving):
            m.d.sync += next_active.bit_select(arriving_slot, 1).eq(1)
            with m.If(arriving_slot == 0):
                m.d.sync += next_active.eq(1)
            with m.If(arriving_end):
                m.d.sync += [next_valid.eq(1), next_end.eq(arriving_last)]
        # ---- the issuer ----------------------------------------------------------------------------
        active = Signal()
        cur_lane = [Signal(lane_bits, name=f"lane_{i}", reset_less=True) for i in range(pipes)]
        cur_span = [Signal(lane_bits + 1, name=f"span_{i}", reset_less=True) for i in range(pipes)]
        cur_scale = [Signal(32, name=f"scale_{i}", reset_less=True) for i in range(pipes)]
        cur_active = Signal(pipes)
        cur_end = Signal()
        o = Signal(z.beat_bits)
        last_o = Signal(z.beat_bits)
        sub = Signal(range(max(2, subs)))
        run_set = Signal(z.set_bits)
        group = Signal(self.group_bits)
        word = Signal(z.word_bits)
        turn = Signal(range(max(2, pipes)))
        go = Signal()
        take = Signal()
        last_beat = Signal()
        last_turn = Signal()
        group_first = Signal()
        m.d.comb += [
            last_beat.eq(o == last_o),
            last_turn.eq(~self.head_mode | (turn == pipes - 1) | ~(cur_active >> (turn + 1))[0]),
            go.eq(active & (~self.head_mode | ~self.write_logits | (o[: log2(z.depth)] != 0) | self.credit)),
            self.spend.eq(go & self.head_mode & self.write_logits & (o[: log2(z.depth)] == 0)),
            end.eq(go & last_beat & last_turn & cur_end),
            take.eq(next_valid & ((go & last_beat & last_turn & ~cur_end) | ~active)),
        ]
        with m.FSM():
            with m.State("Idle"):
                m.d.sync += [
                    lane.eq(p.lane_lo),
                    g.eq(0),
                    query.eq(0),
                    sub.eq(0),
                    run_set.eq(0),
                    group.eq(0),
                    word.eq(Cat(p.base, p.parity)),
                    last_o.eq(Mux(p.last_beat < pipes - 1, pipes - 1, p.last_beat)),
                    group_first.eq(1),
                ]
                with m.If(self.phases.valid & (complete != 0) & self.scales_ready.bit_select(p.half, 1)):
                    m.next = "Walk"
            with m.State("Walk"):
                m.d.comb += walking.eq(1)
                m.d.sync += [query.eq(query + 1), g.eq(g + 1)]
                with m.If(g == last_g):
                    m.d.sync += [g.eq(0), lane.eq(lane + 1)]
                with m.If((slot == pipes - 1) | end_query):
                    m.next = "Wait"
            with m.State("Wait"):
                with m.If(take):
                    m.next = "Walk"
                    with m.If(next_end):
                        m.next = "Last"
            with m.State("Last"):
                with m.If(end):
                    m.d.comb += self.phases.ready.eq(1)
                    m.next = "Idle"
        with m.If(go):
            m.d.sync += o.eq(o + 1)
            with m.If(last_beat):
                m.d.sync += [o.eq(0), turn.eq(turn + 1)]
                with m.If(last_turn):
                    m.d.sync += [active.eq(0), turn.eq(0), group_first.eq(0), group.eq(group + 1), sub.eq(sub + 1)]
                    with m.If(sub == subs - 1):
                        m.d.sync += [sub.eq(0), run_set.eq(run_set + 1), word.eq(word + p.unit_words)]
        with m.If(take):
            m.d.sync += [active.eq(1), cur_active.eq(next_active), cur_end.eq(next_end), next_valid.eq(0)]
            for i in range(pipes):
                m.d.sync += [
                    cur_lane[i].eq(next_lane[i]),
                    cur_span[i].eq(next_lane[i] - (p.lane_lo >> log2(kpb) << log2(kpb))),
                    cur_scale[i].eq(next_scale[i]),
                ]
        free = delay_line(m, end, 1, "free", reset_less=False)
        m.d.comb += [self.scored.eq(free), self.scale_free.eq(Mux(free, 1 << delay_line(m, p.half, 1, "freed"), 0))]

        # ---- reads: the data come a cycle later ----------------------------------------------------
        real = go & (o < p.beats)
        m.d.comb += [
            self.read_half.eq(p.half),
            self.read_address.eq(Cat(o[: log2(c.key_tile)], run_set)),
            self.scale_address.eq(Cat(o[: log2(c.key_tile)], p.half)),
        ]
        # Which keys a query attends to, by the beat: of a cache block those that are valid, of the own ones those from the
        # group's first lane (in beat 0) to its own. The bounds are registers: a phase stands still for some cycles first.
        valid = []
        beats_of = [Signal(z.beat_bits, name=f"beats_of_{k}", reset_less=True) for k in range(kpb)]
        m.d.sync += [beats_of[k].eq((p.keys + (kpb - 1 - k)) >> log2(kpb)) for k in range(kpb)]
        for i in range(pipes):
            valid.append([])
            for k in range(kpb):
                v = Signal(name=f"valid_{i}_{k}", reset_less=True)
                from_first = (o != 0) | (p.lane_lo[: log2(kpb)] <= k) if k < kpb - 1 else Const(1)
                m.d.sync += v.eq(
                    cur_active[i]
                    & Mux(p.own, from_first & (Cat(Const(k, log2(kpb)), o) <= cur_span[i]), o < beats_of[k])
                )
                valid[i].append(v)

        def late(signal: Signal, cycles: int, name: str, flag: bool = False) -> Signal:
            return delay_line(m, signal, cycles, name, reset_less=not flag)

        sub_1 = late(sub, 1, "sub_1")
        ks = Signal.like(self.k_scales, reset_less=True)
        vs = Signal.like(self.v_scales, reset_less=True)
        m.d.sync += [ks.eq(self.k_scales), vs.eq(self.v_scales)]
        t = []
        score = []
        for i in range(pipes):
            qs = late(cur_scale[i], 2, f"qs_{i}")
            t.append([])
            score.append([])
            for k in range(kpb):
                dot = Signal(signed(z.dot_bits), name=f"dot_{i}_{k}", reset_less=True)
                m.d.sync += dot.eq(Array(self.read_data[(s * pipes + i) * kpb + k] for s in range(subs))[sub_1])
                m.submodules[f"float_{i}_{k}"] = to_float = IntToFloat(z.dot_bits)
                m.submodules[f"scale_{i}_{k}"] = scale = Multiplier()
                m.submodules[f"multiply_{i}_{k}"] = multiply = Multiplier()
                m.submodules[f"fixed_{i}_{k}"] = fixed = FloatToFixed(SCORE_FRAC, SCORE_BITS)
                m.d.comb += [
                    to_float.i.eq(dot),
                    scale.a.eq(qs),
                    scale.b.eq(ks[k]),
                    multiply.a.eq(late(to_float.o, scale.delay - to_float.delay, f"f_{i}_{k}")),
                    multiply.b.eq(scale.o),
                    fixed.i.eq(multiply.o),
                ]
                t[i].append(multiply.o)
                score[i].append(fixed.o)

        # ---- V scales of the unit, once ------------------------------------------------------------
        base_word = Signal(z.word_bits)
        m.d.comb += base_word.eq(Cat(p.base, p.parity) + o)
        m.d.comb += [
            self.value_scale_en.eq(late(real & group_first & ~self.head_mode, 2, "value_scale", True)),
            self.value_scale_address.eq(late(base_word, 2, "value_word")),
            self.value_scale_data.eq(vs),
        ]

        # ---- scores and maxima ---------------------------------------------------------------------
        d = self.delay
        real_d = late(real & ~self.head_mode, d, "real", True)
        word_d = late((word + o)[: z.word_bits], d, "word")
        sub_d = late(sub, d, "sub")
        m.d.comb += self.score_address.eq(word_d)
        statistics = Signal(statistic_layout(z), reset_less=True)
        m.submodules.statistics = memory = Memory(shape=statistic_layout(z), depth=2 << self.group_bits, init=[])
        write, own, other = memory.write_port(), memory.read_port(), memory.read_port()
        where = Signal(1 + self.group_bits)
        m.d.comb += where.eq(Cat(group, p.parity))
        # The largest of a beat's keys first, then that of all: a comparison a cycle.
        compared = d + 1
        # A group's maxima are read again five cycles behind its last beat at the earliest (the walker's states), and are there
        # after four.
        at = late(where, compared - 2, "at")
        at_1 = late(at, 3, "at_1")
        held = Signal(statistic_layout(z), reset_less=True)
        start = late(o == 0, compared, "start")
        fresh = late(p.first, compared, "fresh")
        stop = late(go & last_beat & ~self.head_mode, compared + 1, "stop", True)
        real_compared = late(real_d, 1, "real_compared", True)
        lowest = Const(-(1 << SCORE_BITS - 1), signed(SCORE_BITS))
        m.d.comb += [
            own.addr.eq(at),
            other.addr.eq(self.statistic_address),
            self.statistic.eq(other.data),
            write.addr.eq(at_1),
            write.data.eq(statistics),
            write.en.eq(stop),
        ]
        m.d.sync += held.eq(own.data)
        for i in range(pipes):
            largest = Signal(signed(SCORE_BITS), name=f"largest_{i}", reset_less=True)
            vlargest = Signal(32, name=f"vlargest_{i}", reset_less=True)
            before_m = Signal(signed(SCORE_BITS), name=f"before_m_{i}")
            before_v = Signal(32, name=f"before_v_{i}")
            m.d.comb += [before_m.eq(statistics[i].m), before_v.eq(statistics[i].vmax)]
            with m.If(start):
                m.d.comb += [
                    before_m.eq(Mux(fresh, lowest, held[i].m)),
                    before_v.eq(Mux(fresh, 0, held[i].vmax)),
                ]
            best_m, best_v, some = lowest, Const(0, 32), Const(0, 1)
            for k in range(kpb):
                ok = late(valid[i][k], d - 1, f"ok_{i}_{k}")
                v = late(vs[k], d - 2, f"v_{i}_{k}")
                s = score[i][k]
                for a in range(subs):
                    m.d.comb += [
                        self.score_data[a * pipes + i][k].score.eq(s),
                        self.score_data[a * pipes + i][k].valid.eq(ok),
                    ]
                next_m, next_v = Signal(signed(SCORE_BITS), name=f"m_{i}_{k}"), Signal(32, name=f"vm_{i}_{k}")
                m.d.comb += [next_m.eq(Mux(ok, s, lowest)), next_v.eq(Mux(ok, v, 0))]
                if k > 0:  # the comparison beside the flags, not behind them
                    before_s, before_vs = score[i][k - 1], late(vs[k - 1], d - 2, f"v_{i}_{k - 1}_beside")
                    with m.If(some & ~(ok & (s > before_s))):
                        m.d.comb += next_m.eq(best_m)
                    with m.If(some & ~(ok & (v > before_vs))):
                        m.d.comb += next_v.eq(best_v)
                best_m, best_v, some = next_m, next_v, ok
            m.d.sync += [largest.eq(best_m), vlargest.eq(best_v)]
            with m.If(real_compared):
                m.d.sync += [
                    statistics[i].m.eq(Mux(largest > before_m, largest, before_m)),
                    statistics[i].vmax.eq(Mux(vlargest > before_v, vlargest, before_v)),
                ]
        # Of queries that the group does not have, too: nothing reads those.
        for a in range(subs):
            m.d.comb += self.score_en[a].eq(real_d & (sub_d == a))

        # ---- 65535 / vmax, one query after the other -----------------------------------------------
        turn_left = Signal(pipes)
        vmaxima = [Signal(32, name=f"vmax_{i}", reset_less=True) for i in range(pipes)]
        with m.If(stop):
            m.d.sync += turn_left.eq((1 << pipes) - 1)
            m.d.sync += [vmaxima[i].eq(statistics[i].vmax) for i in range(pipes)]
        with m.Else():
            m.d.sync += turn_left.eq(turn_left >> 1)
            m.d.sync += [vmaxima[i].eq(vmaxima[i + 1]) for i in range(pipes - 1)]
        m.submodules.reciprocal = reciprocal = Reciprocal()
        m.submodules.inverse = inverse = Multiplier()
        m.d.comb += [
            reciprocal.i.eq(vmaxima[0]),
            inverse.a.eq(float_const(RATIO_MAX)),
            inverse.b.eq(reciprocal.o),
        ]
        at_hold = Signal.like(at_1, reset_less=True)
        with m.If(stop):
            m.d.sync += at_hold.eq(at_1)
        spread = reciprocal.delay + inverse.delay
        left_d = late(turn_left, spread, "left", True)
        at_d = late(at_hold, spread, "at_inverse")
        for i in range(pipes):
            m.submodules[f"inverse_{i}"] = memory = Memory(shape=32, depth=2 << self.group_bits, init=[])
            write, read = memory.write_port(), memory.read_port()
            # Query i leaves when i shifts of the flags are done: pipes - i of them are left.
            here = left_d[pipes - 1 - i] & ((left_d >> (pipes - i)) == 0)
            m.d.comb += [
                write.en.eq(here),
                write.addr.eq(at_d),
                write.data.eq(inverse.o),
                read.addr.eq(self.statistic_address),
                self.inverse[i].eq(read.data),
            ]

        # ---- units ---------------------------------------------------------------------------------
        m.submodules.units = units = ShortQueue(unit_layout(z), 4)
        unit = Signal(unit_layout(z))
        last_unit_word = Signal(z.word_bits)
        m.d.sync += last_unit_word.eq(Mux(p.unit_words < pipes, pipes - 1, p.unit_words - 1))
        ready_units = Signal(3)
        unit_end = end & p.last & ~self.head_mode
        settled = late(unit_end, compared + spread + pipes + 4, "settled", True)
        m.d.comb += [
            unit.parity.eq(p.parity),
            unit.groups.eq(group),
            unit.queries.eq(p.queries),
            unit.words.eq(p.unit_words),
            unit.last_word.eq(last_unit_word),
            units.payload.eq(unit),
            units.write.eq(unit_end),
            self.unit.payload.eq(units.out.payload),
            self.unit.valid.eq(units.out.valid & (ready_units != 0)),
            units.out.ready.eq((ready_units != 0) & self.unit.ready),
        ]
        m.d.sync += ready_units.eq(ready_units + settled - (self.unit.valid & self.unit.ready))

        # ---- logits --------------------------------------------------------------------------------
        td = self.t_delay
        lane_now = Array(cur_lane)[turn]
        m.d.comb += [
            self.logit_valid.eq(late(go & self.head_mode, td, "logit_valid", True)),
            self.logit_lane.eq(late(lane_now, td, "logit_lane")),
            self.logit_block.eq(late(p.index, td, "logit_block")),
            self.logit_beat.eq(late(o[: log2(c.key_tile)], td, "logit_beat")),
            self.logit_first.eq(late(p.first, td, "logit_first")),
            self.logit_new.eq(late(o == 0, td, "logit_new")),
            self.logit_end.eq(late(end & p.final & self.head_mode, td, "logit_end", True)),
        ]
        turn_d = late(turn, td, "turn_d")
        for k in range(kpb):
            m.d.comb += self.logits[k].eq(Array(t[i][k] for i in range(pipes))[turn_d])
        return m


class WeightPass(wiring.Component):
    """Second pass, over the scores of a unit: integer weights Pq, their sum, and the factor of the unit's results.

    `pipes` queries x keys_per_beat keys a cycle; a unit takes groups * max(words, pipes) cycles and one more, then `settle` until
    its
    weights and factors can be read.

    Interface attributes
    --------------------
    units : see ScorePass. hold : level, do not begin a unit (the factors of the one before last are still in use).
    begun : pulse. ready_units : pulse, a unit's weights and factors are complete.
    score_address -> scores, value_scales : read ports, 1 cycle; value_address is the unit's first set's.
    statistic_address -> statistic, inverse : 1 cycle.
    weight_* : write port of the weight RAM, a query's part each.
    factor_address -> factor : so at {parity, query}, 1 cycle.
    """

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        c = sizes.config
        self.group_bits = clog2(-(-sizes.max_queries // sizes.pipes))
        super().__init__(
            {
                "unit": In(stream.Signature(unit_layout(sizes))),
                "hold": In(1),
                "begun": Out(1),
                "ready_units": Out(1),
                "score_address": Out(sizes.word_bits),
                "scores": In(data.ArrayLayout(score_layout(sizes), c.attention_lanes)),
                "value_address": Out(sizes.word_bits),
                "value_scales": In(data.ArrayLayout(32, c.keys_per_beat)),
                "statistic_address": Out(1 + self.group_bits),
                "statistic": In(statistic_layout(sizes)),
                "inverse": In(data.ArrayLayout(32, sizes.pipes)),
                "weight_en": Out(c.attention_lanes),
                "weight_address": Out(sizes.word_bits),
                "weight_data": Out(data.ArrayLayout(16, c.attention_lanes * c.keys_per_beat)),
                "factor_address": In(1 + sizes.query_bits),
                "factor": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        z = self.sizes
        c = z.config
        pipes, kpb, lanes = z.pipes, c.keys_per_beat, c.attention_lanes
        subs = lanes // pipes

        def late(signal: Signal, cycles: int, name: str, flag: bool = False) -> Signal:
            return delay_line(m, signal, cycles, name, reset_less=not flag)

        # ---- issue ---------------------------------------------------------------------------------
        active = Signal()
        unit = Signal(unit_layout(z))
        o = Signal(z.word_bits)
        set_word = Signal(z.word_bits)
        sub = Signal(range(max(2, subs)))
        group = Signal(self.group_bits)
        last_word, last_group = Signal(), Signal()
        first_query = Signal(z.query_bits + 1)
        left = Signal(z.query_bits + 1)
        m.d.comb += [
            last_word.eq(o == unit.last_word),
            last_group.eq(group == unit.groups),
            first_query.eq(group * pipes),
            self.unit.ready.eq(~self.hold & ~active),
            self.begun.eq(self.unit.valid & self.unit.ready),
            self.score_address.eq(set_word + o),
            self.value_address.eq(Cat(o[:-1], unit.parity)),
            self.statistic_address.eq(Cat(group, unit.parity)),
        ]
        with m.If(active):
            m.d.sync += o.eq(o + 1)
            with m.If(last_word):
                m.d.sync += [o.eq(0), group.eq(group + 1), sub.eq(sub + 1), left.eq(left - pipes)]
                with m.If(sub == subs - 1):
                    m.d.sync += [sub.eq(0), set_word.eq(set_word + unit.words)]
                with m.If(last_group):
                    m.d.sync += active.eq(0)
        n = self.unit.payload
        with m.If(self.begun):
            m.d.sync += [
                active.eq(1),
                unit.eq(n),
                o.eq(0),
                group.eq(0),
                sub.eq(0),
                left.eq(n.queries),
                set_word.eq(Cat(Const(0, z.word_bits - 1), n.parity)),
            ]
        real = active & (o < unit.words)
        present = [left > i for i in range(pipes)]

        # ---- P and Pq ------------------------------------------------------------------------------
        e_in = 4  # cycles from the issue to the fraction
        p_at = e_in + Exp2Mantissa.delay + 1
        r_at = 2 + Multiplier.delay + FloatToFixed.delay + 1
        both = max(p_at, r_at)
        out = both + 3
        sub_1 = late(sub, 1, "sub_1")
        powers = []
        for i in range(pipes):
            maximum = Signal(signed(SCORE_BITS), name=f"maximum_{i}", reset_less=True)
            inverse = Signal(32, name=f"inverse_{i}", reset_less=True)
            m.d.sync += [maximum.eq(self.statistic[i].m), inverse.eq(self.inverse[i])]
            powers.append([])
            for k in range(kpb):
                name = f"{i}_{k}"
                score = Signal(self.scores[0][0].shape(), name=f"score_{name}", reset_less=True)
                m.d.sync += score.eq(Array(self.scores[s * pipes + i][k].as_value() for s in range(subs))[sub_1])
                vs = late(self.value_scales[k], 1, f"vs_{name}")
                difference = Signal(SCORE_BITS + 1, name=f"difference_{name}", reset_less=True)
                m.d.sync += difference.eq(maximum - score.score)
                whole = Signal(SCORE_BITS + 2 - SCORE_FRAC, name=f"whole_{name}", reset_less=True)
                fraction = Signal(SCORE_FRAC, name=f"fraction_{name}", reset_less=True)
                m.d.sync += [
                    whole.eq((difference + ((1 << SCORE_FRAC) - 1)) >> SCORE_FRAC),
                    fraction.eq(-difference),
                ]
                m.submodules[f"exp2_{name}"] = exp2 = Exp2Mantissa()
                m.d.comb += exp2.f.eq(Cat(Const(0, 20 - SCORE_FRAC), fraction))
                none = Signal(name=f"none_{name}")
                m.d.comb += none.eq((whole > 25) | ~late(score.valid, 2, f"valid_{name}"))
                none_d = late(none, exp2.delay, f"none_{name}")
                shift = late(whole[:5], exp2.delay, f"shift_{name}")
                power = Signal(25, name=f"power_{name}", reset_less=True)
                m.d.sync += power.eq(Mux(none_d, 0, Cat(Const(0, 1), exp2.o) >> shift))

                m.submodules[f"ratio_{name}"] = multiply = Multiplier()
                m.submodules[f"fixed_{name}"] = fixed = FloatToFixed(0, 18)
                m.d.comb += [multiply.a.eq(vs), multiply.b.eq(inverse), fixed.i.eq(multiply.o)]
                ratio = Signal(16, name=f"clipped_{name}", reset_less=True)
                m.d.sync += ratio.eq(Mux(fixed.o < 0, 0, Mux(fixed.o > RATIO_MAX, RATIO_MAX, fixed.o)))

                power = late(power, both - p_at, f"power_{name}")
                ratio = late(ratio, both - r_at, f"ratio_{name}")
                product = Signal(41, name=f"product_{name}", reset_less=True)
                product_1 = Signal(41, name=f"product_1_{name}", reset_less=True)
                weight = Signal(16, name=f"weight_{name}", reset_less=True)
                m.d.sync += [
                    product.eq(power * ratio),
                    product_1.eq(product),
                    weight.eq((product_1 + (1 << 23)) >> 24),
                ]
                for s in range(subs):
                    m.d.comb += self.weight_data[(s * pipes + i) * kpb + k].eq(weight)
                powers[i].append(power)
            write = late(real & present[i], out, f"write_{i}", True)
            sub_d = late(sub, out, f"sub_{i}")
            for s in range(subs):
                m.d.comb += self.weight_en[s * pipes + i].eq(write & (sub_d == s))
        m.d.comb += self.weight_address.eq(late((set_word + o)[: z.word_bits], out, "weight_word"))

        # ---- L -------------------------------------------------------------------------------------
        start = late(o == 0, both + 1, "start")
        counts = late(real, both + 1, "counts", True)
        totals = []
        for i in range(pipes):
            sum_k = Signal(25 + log2(kpb), name=f"sum_{i}", reset_less=True)
            total = Signal(z.total_bits, name=f"total_{i}", reset_less=True)
            m.d.sync += sum_k.eq(sum(powers[i]))
            with m.If(counts):
                m.d.sync += total.eq(sum_k + Mux(start, 0, total))
            totals.append(total)
        stop = late(active & last_word, both + 2, "stop", True)

        # ---- so, one query after the other ---------------------------------------------------------
        left_turns = Signal(pipes)
        waiting = [Signal(z.total_bits, name=f"waiting_{i}", reset_less=True) for i in range(pipes)]
        vmaxima = [Signal(32, name=f"vmax_{i}", reset_less=True) for i in range(pipes)]
        at = Signal(1 + z.query_bits, reset_less=True)
        first_at = late(Cat(first_query[: z.query_bits], unit.parity), both + 2, "first_at")
        vmax_late = [late(self.statistic[i].vmax, both + 1, f"vmax_late_{i}") for i in range(pipes)]
        with m.If(stop):
            m.d.sync += [left_turns.eq((1 << pipes) - 1), at.eq(first_at)]
            m.d.sync += [w.eq(v) for w, v in zip(waiting + vmaxima, totals + vmax_late, strict=True)]
        with m.Else():
            m.d.sync += [left_turns.eq(left_turns >> 1), at.eq(at + 1)]
            for i in range(pipes - 1):
                m.d.sync += [waiting[i].eq(waiting[i + 1]), vmaxima[i].eq(vmaxima[i + 1])]
        m.submodules.total_float = to_float = IntToFloat(z.total_bits + 1)
        m.submodules.reciprocal = reciprocal = Reciprocal()
        m.submodules.weight_scale = scale = Multiplier()
        m.submodules.factor_multiply = multiply = Multiplier()
        m.submodules.factor_shift = shifted = Multiplier()
        m.d.comb += [
            to_float.i.eq(waiting[0]),
            reciprocal.i.eq(to_float.o),
            scale.a.eq(vmaxima[0]),
            scale.b.eq(float_const(1 / RATIO_MAX)),
        ]
        up, down = scale.delay, to_float.delay + reciprocal.delay
        m.d.comb += [
            multiply.a.eq(late(scale.o, max(0, down - up), "scaled")),
            multiply.b.eq(late(reciprocal.o, max(0, up - down), "inverted")),
            shifted.a.eq(multiply.o),
            shifted.b.eq(float_const(1 << 24)),
        ]
        factor_delay = max(up, down) + multiply.delay + shifted.delay
        m.submodules.factors = memory = Memory(shape=32, depth=2 << z.query_bits, init=[])
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [
            write.en.eq(late(left_turns[0], factor_delay, "factor_write", True)),
            write.addr.eq(late(at, factor_delay, "factor_at")),
            write.data.eq(shifted.o),
            read.addr.eq(self.factor_address),
            self.factor.eq(read.data),
        ]
        self.settle = both + 2 + 1 + factor_delay + pipes + 1
        m.d.comb += self.ready_units.eq(late(active & last_word & last_group, self.settle, "settled", True))
        return m
