"""A search over configurations: speed by the plan (hw/plan.py), area by the model (hw/synth/estimate.py), nothing built.

The space is the product of lists of values, one for each parameter that is varied; what cannot be built is left out. It is
walked whole, so the front is that of the space and not of a search's luck.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from tellme.golden.boards import Board, check
from tellme.golden.config import AcceleratorConfig, ConfigError
from tellme.golden.spec import ModelSpec
from tellme.hw.plan import Memory, predict, steps

RESOURCES = ("lut", "ff", "dsp", "ramb36", "uram")

Space = Mapping[str, Sequence[int]]
"""Values of each parameter that is varied."""


@dataclass(frozen=True)
class Workload:
    """What is to be fast.

    Parameters
    ----------
    context : cached keys of each sequence when it is decoded. sequences : decoded together, at most `lanes` of a pass.
    """

    context: int = 128
    sequences: int = 1


@dataclass(frozen=True)
class Speed:
    """tokens_per_s : of all sequences together. ttft_s : of the prompt; None if there is none."""

    tokens_per_s: float
    ttft_s: float | None


def default_space(base: AcceleratorConfig, board: Board | None) -> dict[str, tuple[int, ...]]:
    """What is varied unless told otherwise: lanes, group size, attention lanes, ports, depth of the stream FIFO."""
    ports = len(board.memory_ports) if board is not None else base.ports
    return {
        "ports": tuple(p for p in (1, 2, 4) if p <= ports),
        "lanes": (1, 4, 8, 16, 32),
        "group_size": (2, 3, 4, 5),
        "attention_lanes": tuple(sorted({base.attention_lanes // 2 or 1, base.attention_lanes, 16})),
        "fifo_beats": tuple(sorted({512, base.fifo_beats})),
    }


def candidates(base: AcceleratorConfig, space: Space, board: Board | None) -> Iterator[AcceleratorConfig]:
    """Every configuration of a space that can be built, the base first. The score RAM is made as deep as it must be.

    Parameters
    ----------
    board : which it must be for; None: for none.
    """
    yield base
    seen = {base}
    for values in product(*space.values()):
        changes: dict[str, Any] = dict(zip(space, values, strict=True))
        for words in (base.score_words, 2 * base.score_words, 4 * base.score_words):
            try:
                config = replace(base, **{"score_words": words, **changes})
                if board is not None:
                    check(config, board)
            except ConfigError:
                continue
            if config not in seen:
                seen.add(config)
                yield config
            break


def speed(
    spec: ModelSpec,
    config: AcceleratorConfig,
    memory: Memory,
    workload: Workload,
    prompt: Sequence[tuple[int, int]] = (),
) -> Speed:
    """Speed of a configuration, by its plan.

    Parameters
    ----------
    prompt : (first position, lanes) of each pass of a prompt.

    """
    n = min(workload.sequences, config.lanes)
    decode = predict(steps(spec, config, [workload.context] * n, list(range(n)), n), config, memory)
    many = [
        predict(steps(spec, config, range(at, at + k), [0] * k, int(i + 1 == len(prompt))), config, memory).cycles
        for i, (at, k) in enumerate(prompt)
    ]
    return Speed(n * config.clock_hz / decode.cycles, sum(many) / config.clock_hz if many else None)


def fits(resources: Mapping[str, float], board: Board, margin: float) -> dict[str, float]:
    """What of the chip is too little: part used of each resource that is over. LUTs and flip-flops up to `margin`, the rest whole."""
    has = {"lut": board.luts, "ff": board.ffs, "dsp": board.dsps, "ramb36": board.bram36, "uram": board.urams}
    limit = {"lut": margin, "ff": margin}
    part = {m: resources[m] / has[m] if has[m] else float(resources[m] > 0) * 2 for m in RESOURCES}
    return {m: p for m, p in part.items() if p > limit.get(m, 1.0)}


def front(points: Iterable[Mapping[str, Any]], over: Sequence[str] = RESOURCES) -> list[int]:
    """Which points no other is better than: as fast with less of nothing, by `tokens_per_s` and the resources `over`."""
    rows = [(-p["tokens_per_s"], *(p[m] for m in over)) for p in points]
    out = []
    for i, a in enumerate(rows):
        better = any(
            all(x <= y for x, y in zip(b, a, strict=True)) and (b != a or j < i) for j, b in enumerate(rows) if j != i
        )
        if not better:
            out.append(i)
    return out


__all__ = [
    "RESOURCES", "Space", "Speed", "Workload", "candidates", "default_space", "fits", "front", "speed",
]  # fmt: skip
