"""What a pass costs, roughly, from shapes alone: enough to weigh one more lane against the token it may give.

The plan (hw/plan.py) says it exactly, but needs the generator, which a board does not have; a test holds the two together. Where passes
count their cycles, what they took corrects the estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

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
        self._sweep = config.attention_lanes
        self._measured: dict[tuple[int, int], float] = {}
        # Asked for several times a pass, of the same conversations.
        self._attention = lru_cache(4096)(self._attention_of)

    def _sweeps(self, heads: int) -> int:
        return ceil_div(heads, self._sweep)

    def _attention_of(self, first: int, lanes: int) -> int:
        """Of neighbouring lanes of one slot, the first at position `first`."""
        s, c = self._spec, self._config
        sets = ceil_div(lanes * (s.heads // s.kv_heads), c.attention_lanes >> self._kv.v_narrow)
        keys = first + lanes
        beats = sum(ceil_div(keys, c.keys_per_beat << n) for n in (self._kv.k_narrow, self._kv.v_narrow))
        return s.layers * s.kv_heads * sets * (beats * self._cells + ROUND)

    def _formula(self, positions: Sequence[int], slots: Sequence[int], heads: int) -> float:
        lanes = len(slots)
        total = self._matrices + self._head * self._sweeps(heads) + self._lane * lanes
        # As golden.schedule.groups, which takes longer than the rest.
        first, attention = 0, self._attention
        for lane in range(1, lanes + 1):
            if lane == lanes or slots[lane] != slots[first]:
                total += attention(positions[first], lane - first)
                first = lane
        return total

    def cycles(self, positions: Sequence[int], slots: Sequence[int], heads: int) -> float:
        """Of a pass with these lanes, `heads` of which have logits. What counts is how passes compare."""
        formula = self._formula(positions, slots, heads)
        known = self._measured
        factor = known.get((len(slots), self._sweeps(heads)))
        if factor is None:
            factor = sum(known.values()) / len(known) if known else 1.0
        return formula * factor

    def measured(self, positions: Sequence[int], slots: Sequence[int], heads: int, cycles: int) -> None:
        """Counts in what a pass took."""
        key = (len(slots), self._sweeps(heads))
        factor = cycles / self._formula(positions, slots, heads)
        self._measured[key] = self._measured.get(key, factor) * (1 - RECENT) + factor * RECENT
