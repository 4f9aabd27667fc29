"""What a screened head would have done at the positions of a text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden import screen
from tellme.golden.screen import Screen
from tellme.host.machine.screening import HeadChoice

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

NUCLEUS = 0.95
"""Top-p of which it is counted how often candidates do without some of it."""
MUCH = 0.01
"""Probability cut off that is counted as much."""


@dataclass
class ScreenFigures:
    """Ranks, doubt and what is cut off, of every position whose logits were computed.

    Parameters
    ----------
    choice : candidates, and the margin below which a pass would be run again.
    planes : of the model's ternary head.
    ternary : the head itself, None where only the machine has it: then candidates and bounds are the machine's, and ranks are not known.
    exact : the model's head is ternary, so that nothing is in doubt.
    """

    choice: HeadChoice
    planes: int
    ternary: Screen | None = None
    exact: bool = False
    _ranks: list[I64] = field(default_factory=list)
    _missed: list[NDArray[np.bool_]] = field(default_factory=list)
    _margins: list[F64] = field(default_factory=list)
    _outside: list[F64] = field(default_factory=list)
    _nucleus: list[NDArray[np.bool_]] = field(default_factory=list)

    def add(self, q: NDArray[np.int8], act_scale: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
        """Counts positions in: the head's inputs [positions, features], their scales, all logits [positions, vocab]."""
        assert self.ternary is not None
        values = screen.scores(q, self.ternary)
        chosen = screen.select(values, self.choice.candidates)
        self._ranks.append(screen.ranks(values, logits.argmax(axis=-1)))
        self.add_chosen(chosen, screen.bounds(values, chosen, act_scale, self.ternary), logits)

    def add_chosen(self, chosen: I64, bound: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
        """Counts positions in: candidates [positions, N], their bounds [positions], all logits [positions, vocab]."""
        self._missed.append(~(chosen == logits.argmax(axis=-1)[:, None]).any(axis=-1))
        inside = np.take_along_axis(logits, chosen, axis=-1)
        self._margins.append(inside.max(axis=-1).astype(np.float64) - bound)
        p = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        kept = np.take_along_axis(p, chosen, axis=-1)
        self._outside.append(np.maximum(0.0, 1 - kept.sum(axis=-1)))
        np.put_along_axis(p, chosen, 0.0, axis=-1)
        # A token belongs to the nucleus if what is likelier than it is less than top-p.
        left = p.max(axis=-1, keepdims=True)
        above = (kept * (kept > left)).sum(axis=-1)
        self._nucleus.append((left[:, 0] > 0) & (above < NUCLEUS))

    def report(self) -> dict[str, Any]:
        """What `tellme eval --json` says of it. Ranks count from 1.

        worst_rank : of the true arg-max among the scores; None where only the machine knows it. missed : positions whose true arg-max is no
        candidate. fallbacks : positions in doubt. wrong : missed and not in doubt.
        outside_mean, outside_max : probability, at temperature 1, of all tokens that are no candidates, which sampling therefore cuts off;
        outside_much : positions at which it is more than 1 %. nucleus_cut : positions at which a token of top-p 0.95 is no candidate.
        """
        missed, nucleus = np.concatenate(self._missed), np.concatenate(self._nucleus)
        margins, outside = np.concatenate(self._margins), np.concatenate(self._outside)
        doubt = ~(margins >= self.choice.margin) if self.choice.mode == "auto" else np.zeros(len(missed), bool)
        return {
            "head": self.choice.mode,
            "candidates": self.choice.candidates,
            "planes": self.planes,
            "exact": self.exact,
            "margin": self.choice.margin,
            "positions": len(missed),
            "worst_rank": int(np.concatenate(self._ranks).max()) + 1 if self._ranks else None,
            "missed": int(missed.sum()),
            "fallbacks": int(doubt.sum()),
            "wrong": int((missed & ~doubt).sum()),
            "least_margin": float(margins.min()),
            "outside_mean": float(outside.mean()),
            "outside_max": float(outside.max()),
            "outside_much": int((outside > MUCH).sum()),
            "nucleus_cut": int(nucleus.sum()),
        }


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The report for people."""
    n = figures["positions"]
    head = ("screened head", f"{figures['candidates']} candidates, {figures['planes']} ternary plane(s)")
    if figures["exact"]:
        head = ("ternary head", f"{figures['candidates']} candidates")
    return [
        head,
        *(
            [("lowest rank of the true arg-max", f"{figures['worst_rank']:,} of {n:,} positions")]
            if figures["worst_rank"] is not None
            else []
        ),
        ("true arg-max no candidate", f"{figures['missed']:,}, without a fallback {figures['wrong']:,}"),
        ("fallbacks to the full head", f"{figures['fallbacks']:,} ({figures['fallbacks'] / n:.2%})"),
        ("probability cut off, mean and largest", f"{figures['outside_mean']:.2e}, {figures['outside_max']:.2e}"),
        (f"more than {MUCH:.0%} cut off", f"{figures['outside_much']:,} positions"),
        (f"a token of top-p {NUCLEUS} cut off", f"{figures['nucleus_cut']:,} positions"),
    ]
