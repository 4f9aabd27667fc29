"""What a pass costs, roughly, from shapes alone: enough to weigh one more lane against the token it may give.

The plan (hw/plan.py) says it exactly, but needs the generator, which a board does not have; a test holds the two together. Where passes
count their cycles, what they took corrects the estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import add, mul

from tellme.golden import layout
from tellme.golden.arith import ceil_div
from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import EIGHT, CacheFormat, KvGeometry
from tellme.golden.spec import STEPS, ModelSpec

LEAD = 20
"""Cycles a lane of each matrix before its first beat: the tables of the first tile (hw/tlmm/engine.py)."""
ROUND = 60
"""Cycles that a set of queries takes beyond its beats: the softmax behind the last key (hw/attention/cycles.py)."""
RECENT = 0.2
"""Weight of the newest pass in what the passes before it have taught."""


SWEEP_BITS = 8
"""Of the number of sweeps, below that of lanes."""


class Costs:
    """Cycles of passes.

    Parameters
    ----------
    spec : the model.
    config : the accelerator.
    kv : elements of the cache.
    """

    def __init__(self, spec: ModelSpec, config: AcceleratorConfig, kv: CacheFormat = EIGHT):
        self._spec, self._config, self._kv = spec, config, kv
        rows = sum(
            layout.tiles(step.inputs(spec), config) * step.rows(spec) for step in STEPS.values() if step.matrices
        )
        self._matrices = rows * spec.layers
        self._head = ceil_div(spec.vocab, config.key_block) * layout.head_block_beats(spec.hidden, config)
        self._cells = int(KvGeometry(config).cells(spec.head_dim))
        self._lane = spec.layers * (4 * LEAD + ceil_div(spec.hidden + spec.ffn, config.word))
        self._sweeps = [ceil_div(n, config.attention_lanes) for n in range(config.lanes + 1)]
        self._measured: dict[int, float] = {}
        """By lanes and sweeps of the head (`SWEEP_BITS`): what passes took, as a factor."""
        self._usual = 1.0
        group, sets = spec.heads // spec.kv_heads, config.attention_lanes >> kv.v_narrow
        self._sets = [spec.layers * spec.kv_heads * ceil_div(n * group, sets) for n in range(config.lanes + 1)]
        self._set: list[int] = []
        """Cycles that a set of queries takes, by the position behind its last."""
        self._k_keys, self._v_keys = (config.keys_per_beat << n for n in (kv.k_narrow, kv.v_narrow))

    def _sets_of(self, end: int) -> list[int]:
        """Cycles of a set of queries whose last is at position end - 1, and of those behind it up to the next that takes more."""
        keys = min(self._k_keys, self._v_keys)
        last = max(0, end - 1) // keys * keys
        cycles = (last // self._k_keys + last // self._v_keys + 2) * self._cells + ROUND
        return [cycles] * (last + keys + 1 - end)

    def _rising(
        self, firsts: Sequence[int], lanes: Sequence[int], heads: int, more: Sequence[int]
    ) -> list[tuple[int, int]]:
        """Of the passes of `cycles`: which of those that were measured it is like, and cycles before what passes have taught. The further lanes of a
        conversation have as many keys as its first ones."""
        head, lane, sweeps_of, sets = self._head, self._lane, self._sweeps, self._sets
        of, n = list(lanes), sum(lanes)
        ends = list(map(add, firsts, of))
        while len(self._set) <= max(ends):
            self._set += self._sets_of(len(self._set))
        each = list(map(self._set.__getitem__, ends))
        others = self._matrices + sum(map(mul, map(sets.__getitem__, of), each))
        sweeps = sweeps_of[heads]
        out = [(n << SWEEP_BITS | sweeps, others + head * sweeps + lane * n)]
        for i in more:
            k = of[i]
            of[i] = k + 1
            n += 1
            heads += 1
            others += (sets[k + 1] - sets[k]) * each[i]
            sweeps = sweeps_of[heads]
            out.append((n << SWEEP_BITS | sweeps, others + head * sweeps + lane * n))
        return out

    def cycles(self, firsts: Sequence[int], lanes: Sequence[int], heads: int, more: Sequence[int] = ()) -> list[float]:
        """Of a pass with so many lanes of each conversation, the first of them at these positions; `heads` of all have logits. Then with one lane more of
        conversation `more[0]`, which has logits, with another of `more[1]`, and so on. What counts is how passes compare.

        Returns
        -------
        list : 1 + len(more) cycles.
        """
        known, usual = self._measured.get, self._usual
        return [known(like, usual) * formula for like, formula in self._rising(firsts, lanes, heads, more)]

    def measured(self, firsts: Sequence[int], lanes: Sequence[int], heads: int, cycles: int) -> None:
        """Counts in what a pass took; the others as of `cycles`."""
        [(like, formula)] = self._rising(firsts, lanes, heads, ())
        factor, known = cycles / formula, self._measured
        known[like] = known.get(like, factor) * (1 - RECENT) + factor * RECENT
        self._usual = sum(known.values()) / len(known)
