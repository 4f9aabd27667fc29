"""What each approximation of the accelerator costs on the held-out stories, against PyTorch's vectors.

``python -m tests.oracle.contributions`` prints the table. Any change of a rounding, however small, flips some int8
codes near a tie and moves the mean by a few hundredths of a percent in either direction: differences of that size are
noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tellme.golden.config import KV260
from tellme.golden.model import GoldenModel
from tests.models import load_demo
from tests.oracle.heldout import VECTORS, stories
from tests.reference import Options, forward, nll

Logits = Callable[[NDArray[np.int64]], NDArray[np.floating]]

REFERENCE = {
    "float64": Options(),
    "int8 K and V": Options(cache=True),
    "int8 K, V and queries": Options(cache=True, query=True),
    "int8 embedding": Options(embedding=True),
    "int8 head and its inputs": Options(head=True),
    "all int8": Options(query=True, cache=True, embedding=True, head=True),
}
"""Variants of the float64 reference."""


@dataclass(frozen=True)
class Score:
    """Mean negative log-likelihood, nats a token, and most likely token of every position."""

    nll: float
    best: NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One line of the table: change of NLL and agreement of next tokens, both relative to another variant."""

    name: str
    against: str
    change: float
    agreement: float


def measure(logits: Logits) -> Score:
    """Scores of a model over the stories."""
    losses, best = [], []
    for ids in stories():
        values = logits(ids)[:-1]
        losses.append(nll(values, ids[1:]))
        best.append(values.argmax(-1))
    return Score(float(np.concatenate(losses).mean()), np.concatenate(best))


@cache
def scores() -> dict[str, Score]:
    """Scores of PyTorch (from the vectors), the variants of the reference and golden, by name."""
    weights, embedding = load_demo()

    def golden(ids: NDArray[np.int64]) -> NDArray[np.floating]:
        model, parts = GoldenModel(weights, KV260), []
        for i in range(0, len(ids), KV260.lanes):
            part = ids[i : i + KV260.lanes]
            parts.append(model.run_pass(part, range(i, i + len(part)), [0] * len(part)).logits)
        return np.concatenate(parts)

    def reference(options: Options) -> Logits:
        return lambda ids: forward(weights, ids, options, embedding)

    vectors = np.load(VECTORS)
    out = {"PyTorch": Score(float(vectors["nll"].astype(np.float64).mean()), vectors["best"].astype(np.int64))}
    out |= {name: measure(reference(options)) for name, options in REFERENCE.items()}
    return out | {"golden": measure(golden)}


def table() -> list[Row]:
    """Each approximation against the reference without it; arithmetic is golden against the reference in all int8."""
    s = scores()

    def row(name: str, variant: str, against: str) -> Row:
        a, b = s[variant], s[against]
        return Row(name, against, a.nll / b.nll - 1, float((a.best == b.best).mean()))

    return [
        row("float64 reference", "float64", "PyTorch"),
        *(row(name, name, "float64") for name in REFERENCE if name != "float64"),
        row("arithmetic", "golden", "all int8"),
        row("golden", "golden", "PyTorch"),
    ]


def main() -> None:
    """Prints the table."""
    pytorch = scores()["PyTorch"]
    print(f"{len(pytorch.best)} positions, NLL of PyTorch {pytorch.nll:.5f}\n")
    print("| what | against | NLL | same next token |\n|---|---|---|---|")
    for r in table():
        print(f"| {r.name} | {r.against} | {r.change:+.3%} | {r.agreement:.2%} |")


if __name__ == "__main__":
    main()
