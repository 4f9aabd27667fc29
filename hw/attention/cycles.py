"""Cycles of the attention unit, from the schedule: run by run, with the waits that its parts have for each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tellme.golden.arith import ceil_div
from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import KvGeometry
from tellme.golden.schedule import Phase, phases
from tellme.hw.attention.block import SCORE_SPACING
from tellme.hw.attention.unit import AttentionUnit
from tellme.hw.queues import ShortQueue

REGISTER = 1
"""What is counted (runs, phases, units, free halves) is known a cycle behind the pulse that counts it."""
STATE = 1
"""A state machine passes through its first state between two phases."""
LONG_AGO = -100


@lru_cache(maxsize=16)
def _unit(config: AcceleratorConfig, pipes: int | None) -> AttentionUnit:
    """Whose parts say their delays."""
    return AttentionUnit(config, pipes=pipes)


@dataclass(frozen=True)
class _Work:
    """A phase in numbers. queries : of each set. beats : of a run. rows : of keys_per_beat keys, for the softmax."""

    phase: Phase
    lanes: int
    beats: int
    rows: int
    queries: list[int]


class _Model:
    """The parts' times, in cycles since `start`; a name ending in _free or _ready is the first cycle in which it
    holds."""

    def __init__(
        self,
        config: AcceleratorConfig,
        pipes: int | None,
        cells: int,
        group: int,
        head_mode: bool,
        narrow: tuple[bool, bool] = (False, False),
    ):
        self.config = config
        self.narrow = narrow  # K, V
        self.split = narrow[1]
        self.unit = _unit(config, pipes)
        self.sizes = self.unit.sizes
        self.cells = cells
        self.group = group
        self.head_mode = head_mode
        self.available = 2  # to the parts: the phase
        self.taken: list[int] = []  # phases, by the player
        self.load = 0  # the loader's next cycle
        self.scales_free = [0, 0]
        self.loaded = 0  # beats
        self.freed: list[tuple[int, int]] = []  # beats freed so far, cycle from which on
        self.looked_at = 0  # of `freed`
        self.play = 0  # the player's next issue
        self.swap = LONG_AGO
        self.half = 0  # of the next K phase
        self.scored = [0, 0]
        self.score_end = 0
        self.weights_ready: list[int] = []  # of units
        self.weight_end = 0
        self.summed_units = 0
        self.dumped: list[int] = []  # runs
        self.dump = 0  # the accumulator's next cycle
        self.emitted: list[int] = []  # units
        self.done = 0

    def run(self, order: Sequence[Phase], lanes: tuple[int, int] | None = None) -> int:
        """Cycles of a job. `lanes`: first and last of all phases; by default each phase has its own."""
        for phase in order:
            work = self._work(phase, *(lanes or (phase.lane_lo, phase.lane_hi)))
            self._queue()
            arrivals, scales_ready = self._load(work)
            if phase.v:
                self._play_values(work, arrivals)
                self._give(work)
            else:
                self._play_keys(work, arrivals)
                self._score(work, scales_ready)
        return self.done

    def _work(self, phase: Phase, first: int, last: int) -> _Work:
        keys, at_once = self.config.keys_per_beat, self.config.attention_lanes >> self.split
        rows = last // keys - first // keys + 1 if phase.own else ceil_div(phase.keys, keys)
        narrow = self.narrow[phase.v] and not phase.own
        queries = (last - first + 1) * self.group
        return _Work(
            phase,
            last - first + 1,
            ceil_div(rows, 1 + narrow),
            rows + rows % 2 if self.split else rows,
            [min(at_once, queries - done) for done in range(0, queries, at_once)],
        )

    def _queue(self) -> None:
        """When the parts have the phase."""
        queue = self.unit.phases
        self.available += queue.spacing
        index = len(self.taken)
        if index >= queue.depth:
            self.available = max(
                self.available, self.taken[index - queue.depth] + ShortQueue.room_delay + ShortQueue.delay
            )

    def _load(self, work: _Work) -> tuple[list[tuple[int, int]], int]:
        """When the first and the last beat of each cell are in the store, and when the scales of own keys are."""
        loader, phase = self.unit.loader, work.phase
        self.load = max(self.load, self.available)  # the cycle before the first beat
        scales_ready = 0
        if not phase.v:
            self.load = max(self.load, self.scales_free[self.half])
            if phase.own:
                self.load += loader.own_scale_cycles * work.lanes + STATE
                scales_ready = self.load + loader.scale_delay
            elif self.head_mode:
                self.load += self.config.scale_beats
            else:
                self.load += 2 * ceil_div(phase.keys * 4, self.config.beat_bytes)
        self.load += 1
        if phase.own:
            return [], scales_ready
        arrivals = []
        for _ in range(self.cells):
            first = self._room(self.loaded + 1, self.load)
            last = self._room(self.loaded + work.beats, first + work.beats - 1)
            # A tile of a single beat is taken to cost no cycle of its own: up to three too few, where the loader is late.
            self.load = last + (work.beats > 1)
            self.loaded += work.beats
            arrivals.append((first + loader.store_delay, last + loader.store_delay))
        return arrivals, scales_ready

    def _room(self, beat: int, cycle: int) -> int:
        """When the store takes a beat (counted from 1), at `cycle` at the earliest."""
        depth = self.unit.loader.depth
        while beat > depth + (self.freed[self.looked_at - 1][0] if self.looked_at else 0):
            if self.looked_at == len(self.freed):  # the run itself frees: cannot be, a run fits the ring
                break
            self.looked_at += 1
        if beat > depth and self.looked_at:
            return max(cycle, self.freed[self.looked_at - 1][1])
        return cycle

    def _begin_play(self) -> None:
        self.play = max(self.play, self.available + 1)
        self.taken.append(self.play - 1)

    def _free(self, work: _Work) -> None:
        """The beats of a cell, behind its last run."""
        if not work.phase.own:
            self.freed.append(((self.freed[-1][0] if self.freed else 0) + work.beats, self.play))

    def _play_keys(self, work: _Work, arrivals: list[tuple[int, int]]) -> None:
        """A run waits for its query operands and for its beats, the first for a free half of the dot products, too."""
        queries = self.unit.queries
        self._begin_play()
        first_run = True
        for cell in range(self.cells):
            first_beat, last_beat = arrivals[cell] if arrivals else (0, 0)
            for active in work.queries:
                reading = self.swap + queries.reload
                if first_run:
                    reading = max(reading + STATE, self.available + 1)
                last_read = reading + active * self.sizes.cell_words - 1
                start = max(self.play, last_read + queries.delay, first_beat)
                if first_run:
                    start = max(start, self.scored[self.half])
                self.swap = start
                self.play = max(start + max(work.beats, SCORE_SPACING), last_beat + 1)
                first_run = False
            self._free(work)

    def _play_values(self, work: _Work, arrivals: list[tuple[int, int]]) -> None:
        """A run waits for its first bundle of beats, its last bundle for the others and for a free half of the sums; the
        unit's first run for the weights."""
        depth = self.sizes.depth
        last_bundle = (ceil_div(work.beats, depth) - 1) * depth
        self._begin_play()
        if work.phase.first:
            self.play = max(self.play, self.weights_ready[self.summed_units])
        for cell in range(self.cells):
            first_beat, last_beat = arrivals[cell] if arrivals else (0, 0)
            for active in work.queries:
                start = max(self.play, first_beat + min(work.beats, depth) - 1)
                half_free = self.dumped[-2] if len(self.dumped) > 1 else 0
                self.play = max(start + last_bundle, last_beat, half_free) + depth
                self._add(work, active)
            self._free(work)

    def _add(self, work: _Work, active: int) -> None:
        """A run's sums to those before."""
        summed = self.play - 1 + self.unit.issue_delay + self.unit.array.sum_delay
        begin = max(summed + REGISTER, self.dump)
        adding = ceil_div(active, self.sizes.pair) * self.sizes.depth << self.split
        self.dump = begin + adding
        if self.emitted and begin < self.emitted[-1]:  # results wait while a run is added
            self.emitted[-1] += (adding >> 1 if self.split else 0) if work.phase.first else adding
        self.dumped.append(self.dump)

    def _give(self, work: _Work) -> None:
        """Results behind the last phase of a unit, once those of the unit before are out."""
        sums = self.unit.sums
        if work.phase.last:
            self.dump = max(self.dump, self.emitted[-1] if self.emitted else 0) + 1
            emitted = self.dump + sums.settle + sum(work.queries) * self.cells * self.sizes.depth
            self.emitted.append(emitted)
            self.done = emitted - 1 + sums.finish_delay + self.unit.done_delay
            self.summed_units += 1
        self.dump += STATE

    def _score(self, work: _Work, scales_ready: int) -> None:
        """First pass of the softmax: batches of queries, each of at least as many cycles as queries."""
        score, pipes = self.unit.score, self.sizes.pipes
        complete = self.play - 1 + self.unit.issue_delay + self.unit.dots.delay + REGISTER
        left = sum(work.queries)
        take = max(self.score_end + STATE, complete, scales_ready) + min(pipes, left) + score.batches.delay
        end = take
        while left > 0:
            now = min(pipes, left)
            left -= now
            end = take + max(work.rows, pipes) * (now if self.head_mode else 1)
            take = max(end, take + min(pipes, max(left, 1)) + score.batches.delay)
        self.score_end = end
        self.scored[self.half] = self.scales_free[self.half] = end + score.free_delay + REGISTER
        self.half ^= 1
        if self.head_mode:
            self.done = end + score.logit_delay + self.unit.head.end_delay + REGISTER + self.unit.done_delay
        elif work.phase.last:
            self._weigh(work, end)

    def _weigh(self, work: _Work, scored: int) -> None:
        """Second pass of the softmax, of a unit; factors of two units are kept."""
        weight = self.unit.weight
        begun = max(scored + self.unit.score.settle + REGISTER, self.weight_end)
        index = len(self.weights_ready)
        if index >= 2:
            begun = max(begun, self.emitted[index - 2])
        rows = max(work.phase.unit_words << self.split, self.sizes.pipes)
        last = begun + ceil_div(sum(work.queries), self.sizes.pipes) * rows
        self.weight_end = last + 1
        self.weights_ready.append(last + weight.settle + REGISTER)


def expected_cycles(
    config: AcceleratorConfig,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    positions: Sequence[int],
    slots: Sequence[int],
    k_narrow: bool = False,
    v_narrow: bool = False,
    pipes: int | None = None,
) -> int:
    """Cycles from `start` to `done` of an attention job whose beats and phases are always there.

    Parameters
    ----------
    positions, slots : of each lane.
    k_narrow, v_narrow : 4-bit keys, values in the cache.

    See `golden.schedule.phases` for what is done in which order.
    """
    cells = KvGeometry(config).cells(head_dim)
    model = _Model(config, pipes, cells, heads // kv_heads, False, (k_narrow, v_narrow))
    return model.run(phases(config, kv_heads, positions, slots, v_narrow))


def expected_head_cycles(
    config: AcceleratorConfig, *, inputs: int, vocabulary: int, head_count: int, pipes: int | None = None
) -> int:
    """Cycles of one sweep of the output head over `vocabulary` rows for `head_count` lanes; logits are always taken."""
    blocks = ceil_div(vocabulary, config.key_block)
    model = _Model(config, pipes, KvGeometry(config).cells(inputs), 1, True)
    block = Phase(False, False, False, False, False, 0, 0, 0, config.key_block, 0, 0, 0, 0)
    return model.run([block] * blocks, (0, head_count - 1))
