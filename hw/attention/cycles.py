"""Cycles of the attention unit, from the schedule: run by run, with the waits that its parts have for each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tellme.golden.config import AcceleratorConfig
from tellme.golden.schedule import Phase, phases
from tellme.hw.attention.block import PIPES, SCORE_SPACING, Sizes, log2
from tellme.hw.attention.queries import QueryLoader
from tellme.hw.fp import Exp2Mantissa, FloatToFixed, IntToFloat, Multiplier, Reciprocal

PHASE_CYCLES = 5
"""PhaseQueue: from one phase to the next."""

QUEUED = 4
"""Phases that the queue of a part holds."""


@dataclass
class _Job:
    """The parts' times. All in cycles since `start`; a name ending in _free or _ready is the first cycle in which it
    holds."""

    config: AcceleratorConfig
    pipes: int
    cells: int
    group: int
    head: bool

    def __post_init__(self) -> None:
        c = self.config
        z = self.z = Sizes(c, self.pipes)
        self.hold = QueryLoader(z).hold
        self.dot_delay = z.depth + 5
        multiply, reciprocal = Multiplier.delay, Reciprocal.delay
        score = 2 + 2 * multiply
        self.score_settle = score + FloatToFixed.delay + reciprocal + multiply + self.pipes + 6
        both = max(4 + Exp2Mantissa.delay + 1, 2 + multiply + FloatToFixed.delay + 1)
        factor = max(multiply, IntToFloat(z.total_bits + 1).delay + reciprocal) + 2 * multiply
        self.weight_settle = both + 2 + 1 + factor + self.pipes + 1
        self.emit_delay = 2 + IntToFloat(z.sum_bits).delay + multiply
        self.head_delay = score + 1 + log2(c.keys_per_beat) + 3

    def run(self, order: Sequence[Phase], lanes: tuple[int, int] | None = None) -> int:
        c, z = self.config, self.z
        kpb, depth, pipes = c.keys_per_beat, z.depth, self.pipes
        ring = 4 * c.key_tile

        available = 2
        taken = []  # by the player
        load = 0  # the loader's next cycle
        scales_free = [0, 0]
        freed: list[tuple[int, int]] = []  # beats freed so far, cycle from which on
        free_at = 0
        count = 0  # beats loaded
        swap = -100
        play = 0  # the player's next issue
        scored = [0, 0]
        score_end = 0
        weights: list[int] = []
        weight_end = 0
        emitted: list[int] = []
        dumps: list[int] = []
        dump = 0  # the accumulator's next cycle
        half = 0
        v_unit = 0
        done = 0
        for index, p in enumerate(order):
            lo, hi = lanes or (p.lane_lo, p.lane_hi)
            queries = (hi - lo + 1) * self.group
            n = hi // kpb - lo // kpb + 1 if p.own else -(-p.keys // kpb)
            sets = -(-queries // c.attention_lanes)
            available += PHASE_CYCLES
            if index >= QUEUED:
                available = max(available, taken[index - QUEUED] + 4)

            # Loader: the cycle before its first beat, then when each run's first and last beat are in the store.
            load = max(load, available)
            scales_ready = 0
            if not p.v:
                load = max(load, scales_free[half])
                if p.own:
                    load += 2 * (hi - lo + 1) + 1
                    scales_ready = load + 2
                elif self.head:
                    load += c.scale_beats
                else:
                    load += 2 * -(-p.keys * 4 // c.beat_bytes)
            load += 1
            arrive = []
            if not p.own:
                for _ in range(self.cells):
                    for which in (1, n):
                        beat = count + which
                        x = load if which == 1 else load + n - 1
                        while beat > ring + (freed[free_at - 1][0] if free_at else 0):
                            free_at += 1
                            if free_at > len(freed):  # the run itself frees: cannot be, a run fits the ring
                                free_at = len(freed)
                                break
                        if beat > ring and free_at:
                            x = max(x, freed[free_at - 1][1])
                        arrive.append(x + 2)
                        load = x if which == 1 else x + 1
                    count += n

            # Player.
            play = max(play, available + 1)
            taken.append(play - 1)
            active = [min(c.attention_lanes, queries - s * c.attention_lanes) for s in range(sets)]
            first_run = True
            for cell in range(self.cells):
                first_beat, last_beat = (0, 0) if p.own else arrive[2 * cell : 2 * cell + 2]
                for s in range(sets):
                    if p.v:
                        start = play
                        if first_run and p.first:
                            start = max(start, weights[v_unit])
                        length = -(-n // depth) * depth
                        last_group = length - depth
                        start = max(start, first_beat + min(n, depth) - 1)
                        late = max(start + last_group, last_beat, dumps[-2] if len(dumps) > 1 else 0)
                        play = late + depth
                        begin = max(play - 1 + depth + 9, dump)
                        summing = -(-active[s] // z.pair) * depth
                        dump = begin + summing
                        if emitted and begin < emitted[-1] and not p.first:  # results wait while a run is added
                            emitted[-1] += summing
                        dumps.append(dump)
                    else:
                        ready = (
                            swap + max(1, self.hold) + 1
                            if not first_run
                            else max(swap + max(1, self.hold) + 2, available + 1)
                        )
                        start = max(play, ready + active[s] * z.cell_words + 2, first_beat)
                        if first_run:
                            start = max(start, scored[half])
                        swap = start
                        play = max(start + max(n, SCORE_SPACING), last_beat + 1)
                    first_run = False
                if not p.own:
                    freed.append(((freed[-1][0] if freed else 0) + n, play))
            if p.v:
                if p.last:
                    dump = max(dump, emitted[-1] if emitted else 0) + 1
                    emit = dump + 2 + queries * self.cells * depth
                    emitted.append(emit)
                    dump += 1
                    done = emit - 1 + self.emit_delay + 2
                    v_unit += 1
                else:
                    dump += 1
                continue

            # Softmax, first pass.
            check = max(score_end + 1, play - 1 + depth + 10, scales_ready)
            take = check
            per_group = 1
            left = queries
            length = max(n, pipes)
            take += min(pipes, left) + 2
            while left > 0:
                now = min(pipes, left)
                left -= now
                issue = length * (now if self.head else per_group)
                end = take + issue
                take = max(end, take + min(pipes, max(left, 1)) + 2)
            score_end = end
            scored[half] = end + 2
            scales_free[half] = end + 2
            half ^= 1
            if self.head:
                done = end + self.head_delay + 2
            elif p.last:
                unit = len(weights)
                begun = max(end + self.score_settle, weight_end)
                if unit >= 2:
                    begun = max(begun, emitted[unit - 2])
                weight_end = begun + -(-queries // pipes) * max(p.unit_words, pipes) + 1
                weights.append(weight_end + self.weight_settle)
        return done


def _pipes(config: AcceleratorConfig, pipes: int | None) -> int:
    return min(PIPES, config.attention_lanes) if pipes is None else pipes


def expected_cycles(
    config: AcceleratorConfig,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    positions: Sequence[int],
    slots: Sequence[int],
    pipes: int | None = None,
) -> int:
    """Cycles from `start` to `done` of an attention job whose beats and phases are always there.

    Parameters
    ----------
    positions, slots : of each lane.

    See `golden.schedule.phases` for what is done in which order.
    """
    job = _Job(config, _pipes(config, pipes), head_dim // config.cell, heads // kv_heads, False)
    return job.run(phases(config, kv_heads, positions, slots))


def expected_head_cycles(
    config: AcceleratorConfig, *, inputs: int, vocabulary: int, head_count: int, pipes: int | None = None
) -> int:
    """Cycles of one sweep of the output head over `vocabulary` rows for `head_count` lanes; logits are always taken."""
    blocks = -(-vocabulary // config.key_block)
    job = _Job(config, _pipes(config, pipes), inputs // config.cell, 1, True)
    block = Phase(False, False, False, False, False, 0, 0, 0, config.key_block, 0, 0, 0, 0)
    return job.run([block] * blocks, (0, head_count - 1))
