"""Analysis of the weight buffer: when the engines ask for beats, what the memory gives, and how deep the FIFO between
them must be. From a model's shape, a configuration and what a memory gives in the long run; nothing is simulated here.

A pass is a list of steps: in each, the engines take some beats in at least so many cycles. The memory fills the FIFO at
its sustained rate whatever the engines do. So a step without beats (a quantiser's lead, a drain) fills the FIFO, and a step
that takes a beat a cycle empties it by what the memory lacks. What a step waits for beats is a memory stall; the cycles of a
step beyond its beats are stalls of the engine named as its cause. Writes are left out: the cache is written behind matmuls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from tellme.golden import layout
from tellme.golden.arith import ceil_div
from tellme.golden.boards import BOARDS
from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import EIGHT, CacheFormat, KvGeometry
from tellme.golden.program import DESCRIPTOR_BYTES, Kind
from tellme.golden.registers import STALLS
from tellme.golden.schedule import phases
from tellme.golden.screen import MULTIPLE
from tellme.golden.spec import STEPS, ModelSpec
from tellme.hw.attention import cycles as attention
from tellme.hw.control.check import ProgramCheck
from tellme.hw.control.lanes import LaneCheck
from tellme.hw.elementwise.elementwise import Elementwise
from tellme.hw.elementwise.quantiser import quantiser_delay
from tellme.hw.elementwise.scales import ScaleUnit
from tellme.hw.elementwise.statistics import Statistics
from tellme.hw.head.score import RowScorer
from tellme.hw.head.unit import ScreenedHead
from tellme.hw.queues import COLUMN_BITS, ULTRA_DEPTH
from tellme.hw.tlmm import engine

URAM_DEPTH, BRAM_DEPTH = 4096, 512
"""Words of 72 bits in a URAM288 and in a RAMB36 (UG573); a column of the FIFO (hw/queues.py) takes one word."""
ROUND_TRIP = 12
"""Cycles from a read's request to its first beat besides the memory's latency: registers of reader and memory."""
STEP_OVER = 6
"""Cycles of the executor between two descriptors (hw/control/execute.py)."""


class Memory(Protocol):
    """What a plan asks of a memory (sim.stream.SustainedMemory says it of a board's)."""

    def rate(self, config: AcceleratorConfig, burst: float | None = None) -> float:
        """Beats a cycle in the long run, at most 1, in bursts of `burst` beats on average (`burst_beats` if None)."""
        ...

    def latency(self, config: AcceleratorConfig) -> float:
        """Cycles from a read's address to its first beat, on average, in an idle memory."""
        ...


@dataclass(frozen=True)
class Step:
    """`beats` that the engines take in `cycles` cycles at least; `cause` of the cycles beyond the beats.

    `bursts` is in how many reads the beats come.
    """

    name: str
    cause: str
    cycles: int
    beats: int
    bursts: int = 0


@dataclass(frozen=True)
class Prediction:
    """A pass as predicted.

    Attributes
    ----------
    cycles, beats : of the pass.
    stalls : cycles without a beat, by cause (`golden.registers.STALLS`).
    """

    cycles: int
    beats: int
    stalls: dict[str, int]


def fifo_memory(config: AcceleratorConfig) -> tuple[int, int]:
    """(URAM288, RAMB36) of the stream FIFOs. UltraRAM only where the FIFO is deep enough for it, and not on boards whose
    chip has none."""
    columns = config.ports * config.port_bytes * 8 // COLUMN_BITS
    ultra = config.fifo_beats >= ULTRA_DEPTH and (config.name not in BOARDS or BOARDS[config.name].urams > 0)
    words = columns * ceil_div(config.fifo_beats, URAM_DEPTH if ultra else BRAM_DEPTH)
    return (words, 0) if ultra else (0, words)


# ---- steps -----------------------------------------------------------------------------------------------------------


def _linear(
    config: AcceleratorConfig, name: str, kind: Kind, rows: int, inputs: int, gain: int, lanes: int, dim: int
) -> list[Step]:
    tiles = layout.tiles(inputs, config)
    block = layout.row_block(rows, config)
    last = rows - (ceil_div(rows, block) - 1) * block
    beats = tiles * rows
    # The first word of the quantiser, then the first tile's tables, while the gain is on its way.
    stream = engine.expected_cycles(config, tiles=tiles, rows=rows, block_rows=block, lanes=lanes)
    lead = max(0, 2 + ScaleUnit.delay + quantiser_delay(config) + stream - beats - gain)
    epilogue = Elementwise.expected_epilogue_cycles(
        config, kind=kind, rows=last, lanes=lanes, head_dim=dim, head_norm=kind is Kind.QKV and gain > 0
    )
    return [
        Step(f"{name} gain", "control", STEP_OVER + gain, gain),
        Step(f"{name} lead", "elementwise", lead, 0),
        Step(f"{name} stream", "elementwise", beats, beats),
        Step(f"{name} drain", "drain", max(0, epilogue - last), 0),
    ]


def _bursts(config: AcceleratorConfig, runs: Sequence[tuple[int, int]]) -> int:
    """Bursts of reads (first beat, beats): those that follow one another are one, cut at multiples of `burst_beats`."""
    size, count, end = config.burst_beats, 0, -1
    for first, beats in runs:
        # A burst that the one before has begun in the same block is not counted again.
        count += (first + beats - 1) // size - first // size + int(first != end or first % size == 0)
        end = first + beats
    return count


def _screened(
    spec: ModelSpec, config: AcceleratorConfig, lanes: int, head_count: int, candidates: int, planes: int
) -> list[Step]:
    """The screened head: its matrix, then the rows of the candidates."""
    tiles, rows = layout.tiles(spec.hidden, config), layout.screen_rows(spec.vocab, planes)
    beats = layout.screen_beats(spec.vocab, planes, spec.hidden, config)
    stream = engine.expected_cycles(config, tiles=tiles, rows=rows, block_rows=config.block_rows, lanes=lanes)
    lead = max(0, 2 + ScaleUnit.delay + quantiser_delay(config) + stream - tiles * rows)
    choice = ScreenedHead.expected_cycles(
        config, tiles=tiles, rows=spec.vocab, planes=planes, candidates=candidates, lanes=head_count
    )
    chosen = candidates * head_count
    scored = RowScorer.expected_cycles(config, inputs=spec.hidden, rows=chosen, lanes=head_count)
    n = layout.row_beats(spec.hidden, config)
    return [
        Step("screened head lead", "elementwise", STEP_OVER + lead, 0),
        Step("screened head", "epilogue", max(choice, beats), beats),
        Step("candidates", "attention", scored, chosen * n, chosen * ceil_div(n, config.burst_beats)),
    ]


def _ternary_head(
    spec: ModelSpec, config: AcceleratorConfig, lanes: int, head_count: int, candidates: int
) -> list[Step]:
    """A head that is ternary: its matrix; then its candidates, of which nothing is read. Without any every logit is written."""
    tiles, rows = layout.tiles(spec.hidden, config), layout.screen_rows(spec.vocab, 1)
    beats = layout.screen_beats(spec.vocab, 1, spec.hidden, config)
    stream = engine.expected_cycles(config, tiles=tiles, rows=rows, block_rows=config.block_rows, lanes=lanes)
    lead = max(0, 2 + ScaleUnit.delay + quantiser_delay(config) + stream - tiles * rows)
    kept = candidates or MULTIPLE
    choice = ScreenedHead.expected_cycles(
        config, tiles=tiles, rows=spec.vocab, planes=1, candidates=kept, lanes=head_count, every=not candidates
    )
    scored = RowScorer.exact_cycles(config, rows=kept * head_count, lanes=head_count)
    return [
        Step("ternary head lead", "elementwise", STEP_OVER + lead, 0),
        Step("ternary head", "epilogue", max(choice, beats), beats),
        Step("candidates", "attention", scored, 0),
    ]


def steps(
    spec: ModelSpec,
    config: AcceleratorConfig,
    positions: Sequence[int],
    slots: Sequence[int],
    head_count: int,
    candidates: int = 0,
    planes: int = 1,
    kv: CacheFormat = EIGHT,
) -> list[Step]:
    """What a pass asks of the memory, in order.

    Parameters
    ----------
    spec : the model; it must fit the configuration.
    positions, slots : of each lane. head_count : lanes whose logits are computed.
    candidates : of the screened head, for each of these; 0: the full head, of a ternary one every logit written. planes : of its ternary copy.
    kv : elements of the cache.
    """
    n = len(positions)
    width = config.word

    def floats(count: int) -> int:
        return ceil_div(count, width)

    descriptors = 3 + len(STEPS) * spec.layers + (candidates > 0 and not spec.ternary_head)
    length = descriptors * DESCRIPTOR_BYTES // config.beat_bytes
    # Before anything is read or executed: lanes, then all descriptors, of one slot.
    checks = LaneCheck.expected_cycles(lanes=n) + ProgramCheck.expected_cycles(
        config,
        descriptors=descriptors,
        attentions=spec.layers,
        kv_heads=spec.kv_heads,
        context=min(spec.max_context, config.context_limit(kv.v_narrow)),
        slots=1,
    )
    x = n * floats(spec.hidden)
    rope = n * floats(spec.head_dim)
    out = [
        Step("program", "control", length + STEP_OVER + checks, length),
        Step(
            "load",
            "elementwise",
            floats(spec.hidden) + x * width // 4 + rope + 3 * STEP_OVER,
            floats(spec.hidden) + x + rope,
        ),
    ]
    at = KvGeometry(config)
    cells = at.cells(spec.head_dim)
    reads: list[int] = []
    bursts = 0
    for p in phases(config, spec.kv_heads, positions, slots, kv.v_narrow):
        if not p.own:
            narrow = kv.v_narrow if p.v else kv.k_narrow
            keys, scales = at.cell_reads(p.keys, narrow), at.scale_reads(p.keys)
            data = 0 if p.v else 2 * config.scale_beats
            runs = [] if p.v else [(0, scales), (config.scale_beats, scales)]
            runs += [(data + cell * at.cell_beats(narrow), keys) for cell in range(cells)]
            reads += [beats for _, beats in runs]
            bursts += _bursts(config, runs)
    attend = attention.expected_cycles(
        config,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        positions=positions,
        slots=slots,
        **(kv.fields if kv.v_narrow else {}),
    )
    layer: list[Step] = []
    for step in STEPS.values():
        gain = floats(step.gains(spec))
        if step.matrices:
            kind, dim = step.kind(spec), spec.head_dim if step.kind(spec) is Kind.QKV else 32
            layer += _linear(config, step.name, kind, step.rows(spec), step.inputs(spec), gain, n, dim)
        else:
            layer.append(Step("attention gain", "control", STEP_OVER + gain, gain))
            layer.append(Step("attention", "attention", attend + Statistics.settle_delay, sum(reads), bursts))
    out += layer * spec.layers
    if head_count and spec.ternary_head:
        out += _ternary_head(spec, config, n, head_count, candidates)
    elif head_count and candidates:
        out += _screened(spec, config, n, head_count, candidates, planes)
    elif head_count:
        tiles = layout.tiles(spec.hidden, config)
        lead = Elementwise.expected_quantise_cycles(config, tiles=tiles, lanes=n)
        out.append(Step("head lead", "elementwise", STEP_OVER + lead, 0))
        beats = ceil_div(spec.vocab, config.key_block) * layout.head_block_beats(spec.hidden, config)
        for first in range(0, head_count, config.attention_lanes):
            count = min(config.attention_lanes, head_count - first)
            sweep = attention.expected_head_cycles(config, inputs=spec.hidden, vocabulary=spec.vocab, head_count=count)
            out.append(Step("head", "attention", sweep, beats))
    return out


def predict(todo: Sequence[Step], config: AcceleratorConfig, memory: Memory) -> Prediction:
    """Plays steps against the memory's sustained rate and the FIFO, a few beats at a time."""
    part = min(256, config.fifo_beats // 4)
    ahead = config.fifo_beats // part  # parts that the FIFO holds
    start = 2.0 * (memory.latency(config) + ROUND_TRIP)  # the program, and then what it asks for
    read = now = start  # when the last part was in the FIFO, and when the engines had taken it
    taken = [0.0] * ahead  # when the engines had taken the latest parts, as a ring
    parts = 0
    stalls = dict.fromkeys(STALLS, 0.0)
    stalls["memory"] += start
    for s in todo:
        stalls[s.cause] += s.cycles - s.beats
        if not s.beats:
            now += s.cycles
            continue
        rate = memory.rate(config, s.beats / s.bursts if s.bursts else None)
        pace = s.cycles / s.beats
        for first in range(0, s.beats, part):
            n = min(part, s.beats - first)
            read = max(read, taken[parts % ahead]) + n / rate
            end = max(now + n * pace, read)
            stalls["memory"] += end - now - n * pace
            now = end
            taken[parts % ahead] = now
            parts += 1
    beats = sum(s.beats for s in todo)
    return Prediction(round(now), beats, {k: round(v) for k, v in stalls.items()})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The weight buffer of a model on a board.

    Attributes
    ----------
    decode : a token with `context` cached keys. prefill : the passes of a prompt, empty if none was asked for.
    depth : least FIFO depth, a power of two, whose cycles (decode and prefill) are within 0.1 % of the deepest's.
    depths : (depth, (URAM288, RAMB36), cycles of decode) of each depth that was looked at.
    """

    config: AcceleratorConfig
    context: int
    decode: Prediction
    prefill: tuple[Prediction, ...]
    rate: float
    depth: int
    depths: tuple[tuple[int, tuple[int, int], int], ...]

    @property
    def tokens_per_s(self) -> float:
        return self.config.clock_hz / self.decode.cycles

    @property
    def ttft_s(self) -> float | None:
        return sum(p.cycles for p in self.prefill) / self.config.clock_hz if self.prefill else None


DEPTHS = tuple(1 << n for n in range(8, 16))


def plan(
    spec: ModelSpec,
    config: AcceleratorConfig,
    memory: Memory,
    *,
    context: int,
    prompt: Sequence[tuple[int, int]] = (),
    candidates: int = 0,
    planes: int = 1,
    kv: CacheFormat = EIGHT,
) -> Plan:
    """Analyses a model on a configuration.

    Parameters
    ----------
    context : cached keys of the decode pass.
    prompt : (first position, lanes) of each pass of a prompt.
    candidates, planes, kv : as in `steps`.
    """
    one = steps(spec, config, [context], [0], 1, candidates, planes, kv)
    many = [
        steps(spec, config, range(at, at + n), [0] * n, int(i + 1 == len(prompt)), candidates, planes, kv)
        for i, (at, n) in enumerate(prompt)
    ]

    def cycles(depth: int) -> tuple[int, int]:
        c = replace(config, fifo_beats=depth)
        return predict(one, c, memory).cycles, sum(predict(m, c, memory).cycles for m in many)

    table = [(d, fifo_memory(replace(config, fifo_beats=d)), *cycles(d)) for d in DEPTHS if d >= 2 * config.burst_beats]
    best = table[-1]
    depth = next(d for d, _, a, b in table if a <= 1.001 * best[2] and b <= 1.001 * best[3])
    return Plan(
        config=config,
        context=context,
        decode=predict(one, config, memory),
        prefill=tuple(predict(m, config, memory) for m in many),
        rate=memory.rate(config),
        depth=depth,
        depths=tuple((d, u, a) for d, u, a, _ in table),
    )
