"""What a screened head would have done at the positions of a text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden import screen
from tellme.golden.screen import Screen
from tellme.host.machine.screening import HeadChoice


@dataclass
class ScreenFigures:
    """Ranks, doubt and what is cut off, of every position whose logits were computed.

    Parameters
    ----------
    choice : candidates, and the margin below which a pass would be run again.
    ternary : of the model.
    """

    choice: HeadChoice
    ternary: Screen
    _ranks: list[NDArray[np.int64]] = field(default_factory=list)
    _margins: list[NDArray[np.float64]] = field(default_factory=list)
    _outside: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, q: NDArray[np.int8], act_scale: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
        """Counts positions in: the head's inputs [positions, features], their scales, all logits [positions, vocab]."""
        values = screen.scores(q, self.ternary)
        chosen = screen.select(values, self.choice.candidates)
        inside = np.take_along_axis(logits, chosen, axis=-1)
        self._ranks.append(screen.ranks(values, logits.argmax(axis=-1)))
        bound = screen.bounds(values, chosen, act_scale, self.ternary)
        self._margins.append(inside.max(axis=-1).astype(np.float64) - bound)
        p = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
        kept = np.take_along_axis(p, chosen, axis=-1).sum(axis=-1)
        self._outside.append(np.maximum(0.0, 1 - kept / p.sum(axis=-1)))

    def report(self) -> dict[str, Any]:
        """What `tellme eval --json` says of it. Ranks count from 1.

        missed : positions whose true arg-max is no candidate. fallbacks : positions in doubt. wrong : missed and not in doubt.
        outside_mean, outside_max : probability of all tokens that are no candidates.
        """
        ranks, margins, outside = (np.concatenate(x) for x in (self._ranks, self._margins, self._outside))
        missed = ranks >= self.choice.candidates
        doubt = ~(margins >= self.choice.margin) if self.choice.mode == "auto" else np.zeros(len(ranks), bool)
        return {
            "head": self.choice.mode,
            "candidates": self.choice.candidates,
            "planes": self.ternary.count,
            "margin": self.choice.margin,
            "positions": len(ranks),
            "worst_rank": int(ranks.max()) + 1,
            "missed": int(missed.sum()),
            "fallbacks": int(doubt.sum()),
            "wrong": int((missed & ~doubt).sum()),
            "least_margin": float(margins.min()),
            "outside_mean": float(outside.mean()),
            "outside_max": float(outside.max()),
        }


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    n = figures["positions"]
    return [
        ("screened head", f"{figures['candidates']} candidates, {figures['planes']} ternary plane(s)"),
        ("lowest rank of the true arg-max", f"{figures['worst_rank']:,} of {n:,} positions"),
        ("true arg-max no candidate", f"{figures['missed']:,}, without a fallback {figures['wrong']:,}"),
        ("fallbacks to the full head", f"{figures['fallbacks']:,} ({figures['fallbacks'] / n:.2%})"),
        ("probability cut off, mean and largest", f"{figures['outside_mean']:.2e}, {figures['outside_max']:.2e}"),
    ]
