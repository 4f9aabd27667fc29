"""A search over configurations: speed by the plan (hw/plan.py), area by the model (hw/synth/estimate.py), nothing built.

The space is the product of lists of values, one for each parameter that is varied; what cannot be built is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from tellme.golden.boards import BOARDS, Board, add, check
from tellme.golden.config import AcceleratorConfig, ConfigError
from tellme.golden.kv import EIGHT, CacheFormat
from tellme.golden.spec import ModelSpec
from tellme.hw.plan import Memory, predict, steps
from tellme.hw.synth.estimate import METRICS, AreaModel, model

RESOURCES = METRICS

Space = Mapping[str, Sequence[Any]]
"""Values of each parameter that is varied."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to be fast.

    Parameters
    ----------
    context : cached keys of each conversation when it is decoded. conversations : decoded together, at most `lanes` of a pass.
    candidates, planes : of the screened head, 0: the full head. kv : elements of the cache.
    """

    context: int = 128
    conversations: int = 1
    candidates: int = 0
    planes: int = 1
    kv: CacheFormat = EIGHT


@dataclass(frozen=True)
class Speed:
    """How fast a configuration is.

    Parameters
    ----------
    tokens_per_s : of all conversations together, tokens/s.
    ttft_s : of the prompt, s; None if there is none.
    bytes_per_s : read in decode, bytes/s.
    """

    tokens_per_s: float
    ttft_s: float | None
    bytes_per_s: float


@dataclass(frozen=True)
class Task:
    """A configuration to be looked at, and all that it takes; it goes to other processes.

    Parameters
    ----------
    board : which it is for. prompt : (first position, lanes) of each pass of a prompt.
    """

    config: AcceleratorConfig
    board: Board
    spec: ModelSpec
    memory: Memory
    workload: Workload
    prompt: tuple[tuple[int, int], ...] = ()


def default_space(base: AcceleratorConfig, board: Board | None) -> dict[str, tuple[int, ...]]:
    """What is varied unless told otherwise: ports, lanes, group size, attention lanes, depth of the stream FIFO."""
    ports = len(board.memory_ports) if board is not None else base.ports
    return {
        "ports": tuple(p for p in (1, 2, 4) if p <= ports),
        "lanes": (1, 2, 4, 8, 16),
        "group_size": (2, 3, 4, 5),
        "attention_lanes": tuple(
            sorted({base.attention_lanes // 2 or 1, base.attention_lanes, 2 * base.attention_lanes})
        ),
        "fifo_beats": tuple(sorted({512, base.fifo_beats})),
    }


def candidate(base: AcceleratorConfig, changes: Mapping[str, Any], board: Board | None) -> AcceleratorConfig | None:
    """A configuration with changes, its score RAM as deep as it must be; None if it cannot be built (on the board)."""
    for words in (base.score_words, 2 * base.score_words, 4 * base.score_words):
        try:
            config = replace(base, **{"score_words": words, **changes})
            if board is not None:
                check(config, board)
        except ConfigError:
            continue
        return config
    return None


def candidates(base: AcceleratorConfig, space: Space, board: Board | None) -> Iterator[AcceleratorConfig]:
    """Every configuration of a space that can be built, the base first.

    Parameters
    ----------
    board : which it must be for; None: for none.
    """
    yield base
    seen = {base}
    for values in product(*space.values()):
        config = candidate(base, dict(zip(space, values, strict=True)), board)
        if config is not None and config not in seen:
            seen.add(config)
            yield config


def speed(task: Task) -> Speed:
    """Speed of a configuration, by its plan."""
    config, w = task.config, task.workload
    n = min(w.conversations, config.lanes)
    todo = steps(task.spec, config, [w.context] * n, list(range(n)), n, w.candidates, w.planes, w.kv)
    decode = predict(todo, config, task.memory)
    many = [
        steps(
            task.spec, config, range(at, at + k), [0] * k, int(i + 1 == len(task.prompt)), w.candidates, w.planes, w.kv
        )
        for i, (at, k) in enumerate(task.prompt)
    ]
    cycles = sum(predict(m, config, task.memory).cycles for m in many)
    bytes_per_s = decode.beats * config.beat_bytes * config.clock_hz / decode.cycles
    return Speed(n * config.clock_hz / decode.cycles, cycles / config.clock_hz if many else None, bytes_per_s)


IDLE_W = 3.8
"""Board that does nothing, W: a KV260 (docs/measurements/silicon)."""

PICOJOULE_A_BIT = 15.0
"""Of the DRAM, its lines and its controller."""

NANOJOULE = {"lut": 3e-5, "ff": 1e-5, "dsp": 2e-3, "ramb36": 1e-2, "uram": 2.5e-2}
"""Of a resource in a cycle: round figures of a 16 nm FPGA."""


def watts(resources: Mapping[str, float], clock_hz: float, bytes_per_s: float) -> float:
    """Power while decoding, W: a rough estimate, for choosing between points. No board has been measured with it."""
    logic = sum(NANOJOULE[m] * resources[m] for m in RESOURCES) * clock_hz * 1e-9
    return IDLE_W + logic + 8 * bytes_per_s * PICOJOULE_A_BIT * 1e-12


def evaluate(task: Task, area: AreaModel | None = None) -> dict[str, float | None]:
    """Of a configuration, estimated: tokens_per_s, ttft_s and bytes_per_s as of `Speed`, and how many of each of RESOURCES.

    Parameters
    ----------
    area : another model of area than that of the committed points.
    """
    if task.board.name not in BOARDS:  # a board of a file, in another process
        add(task.board, task.config)
    s = speed(task)
    resources = {m: round(v, 1) for m, v in (area or model()).total(task.config).items()}
    return {"tokens_per_s": s.tokens_per_s, "ttft_s": s.ttft_s, "bytes_per_s": s.bytes_per_s, **resources}


def fits(resources: Mapping[str, float], board: Board, margin: float) -> dict[str, float]:
    """What of the chip is too little: part used of each resource that is over. LUTs and flip-flops up to `margin`, the rest whole."""
    has = {"lut": board.luts, "ff": board.ffs, "dsp": board.dsps, "ramb36": board.bram36, "uram": board.urams}
    limit = {"lut": margin, "ff": margin}
    part = {m: resources[m] / has[m] if has[m] else float(resources[m] > 0) * 2 for m in RESOURCES}
    return {m: p for m, p in part.items() if p > limit.get(m, 1.0)}


def front(points: Iterable[Mapping[str, Any]], over: Sequence[str] = RESOURCES) -> list[int]:
    """Which points no other is better than: as fast with less of nothing, by `tokens_per_s`, `ttft_s` (if any) and the
    resources `over`; speed counts to four digits."""
    rows = [(-_coarse(p["tokens_per_s"]), _coarse(p.get("ttft_s") or 0), *(p[m] for m in over)) for p in points]
    out = []
    for i, a in enumerate(rows):
        better = any(
            all(x <= y for x, y in zip(b, a, strict=True)) and (b != a or j < i) for j, b in enumerate(rows) if j != i
        )
        if not better:
            out.append(i)
    return out


def _coarse(x: float) -> float:
    return float(f"{x:.4g}")
