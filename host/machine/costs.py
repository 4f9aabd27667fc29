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
        group, sets = spec.heads // spec.kv_heads, config.attention_lanes >> kv.v_narrow
        self._sets = [spec.layers * spec.kv_heads * ceil_div(n * group, sets) for n in range(config.lanes + 1)]
        self._k_keys, self._v_keys = (config.keys_per_beat << n for n in (kv.k_narrow, kv.v_narrow))

    def _formula(self, firsts: Sequence[int], lanes: Sequence[int], sweeps: int) -> int:
        attention = sum(map(self._attention, firsts, lanes))
        return self._matrices + self._head * sweeps + self._lane * sum(lanes) + attention

    def _attention_of(self, first: int, lanes: int) -> int:
        """Of neighbouring lanes of one slot, the first at position `first`."""
        keys = first + lanes
        beats = ceil_div(keys, self._k_keys) + ceil_div(keys, self._v_keys)
        return self._sets[lanes] * (beats * self._cells + ROUND)

    def cycles(self, firsts: Sequence[int], lanes: Sequence[int], heads: int) -> float:
        """Of a pass with so many lanes of each conversation, the first of them at these positions; `heads` of all have logits. What counts is how passes
        compare."""
        sweeps = ceil_div(heads, self._sweep)
        formula = self._formula(firsts, lanes, sweeps)
        known = self._measured
        factor = known.get((sum(lanes), sweeps))
        if factor is None:
            factor = sum(known.values()) / len(known) if known else 1.0
        return formula * factor

    def measured(self, firsts: Sequence[int], lanes: Sequence[int], heads: int, cycles: int) -> None:
        """Counts in what a pass took; the others as of `cycles`."""
        sweeps = ceil_div(heads, self._sweep)
        key = (sum(lanes), sweeps)
        factor = cycles / self._formula(firsts, lanes, sweeps)
        self._measured[key] = self._measured.get(key, factor) * (1 - RECENT) + factor * RECENT
