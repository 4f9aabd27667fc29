"""Logits and settings whose distributions are held against those of `transformers`."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellme.host.text.sampling import Sampling

VECTORS = Path(__file__).parent / "vectors" / "sampling.npz"
TOKENS = 300
SETTINGS = [
    Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    for temperature, top_k, top_p, min_p, penalty in itertools.product(
        (0.6, 1.0, 1.7), (0, 1, 20, TOKENS), (1.0, 0.9, 0.4), (0.0, 0.02, 0.3), (1.0, 1.3)
    )
]


def logits(case: int) -> NDArray[np.float32]:
    """Logits float32[TOKENS] of a case, no two alike."""
    return (2.5 * np.random.default_rng([7, case]).normal(size=TOKENS)).astype(np.float32)


def said(case: int) -> list[int]:
    """Tokens that the text of a case holds already; some of them are likely."""
    likely = np.argsort(-logits(case))[:10:3]
    return [*likely.tolist(), *range(case % 50, TOKENS, 50)]
