"""Draws, compiled (`_sampling.c`)."""

import numpy as np
from numpy.typing import NDArray

def draw(
    logits: NDArray[np.float32],
    first: int,
    largest: list[float],
    settings: list[tuple[float, int, float, float, int]],
    turns: list[int],
    far: float,
    tries: int,
    /,
) -> list[int]:
    """What the rows of logits float32[sequences, n], contiguous, from `first` on give: places of tokens, -1 where that is for `sampling` to say.

    Parameters
    ----------
    largest : the largest logit of each, as many as there are rows to draw from.
    settings : temperature, top-k, top-p, min-p and `Sampler.key` of each.
    turns : which of its sampler's tokens each is.
    far, tries : see `sampling.FAR`, `sampling.TRIES`.

    Raises
    ------
    TypeError, ValueError, IndexError : something else was given.
    """
