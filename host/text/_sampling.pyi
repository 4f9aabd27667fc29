"""Draws, compiled (`_sampling.c`)."""

import numpy as np
from numpy.typing import NDArray

REFUSED: int
"""The number fell on nothing that may be drawn: the next one is to be tried."""
UNDECIDED: int
"""Where it fell is for `sampling` to say."""

def draw(
    logits: NDArray[np.float32],
    rows: list[int],
    largest: list[float],
    settings: list[tuple[float, int, float, float]],
    numbers: list[float],
    far: float,
    /,
) -> list[int]:
    """The place that a number falls on, `REFUSED` or `UNDECIDED`, of each of some rows of logits float32[sequences, n], contiguous.

    Parameters
    ----------
    rows : which. largest, numbers : the largest logit, and the number from 0 to 1 (excluded), of each.
    settings : temperature, top-k, top-p and min-p of each.
    far : see `sampling.FAR`.

    Raises
    ------
    TypeError, IndexError : something else was given.
    """
