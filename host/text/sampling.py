"""The next token from logits: greedy, or drawn with temperature, top-k, top-p and min-p from a seeded generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellme.host.errors import UserError

LIKELY = 512
"""Tokens that are sorted for top-p at first; mostly they reach it."""
EXACTLY = 8192
"""Tokens whose probabilities are all computed in double precision for top-p."""
TINY = 1e-200
"""Temperature below which a quotient may overflow."""
BLOCK = 64
"""Tokens whose largest logit is looked at for all of them."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Parameters
    ----------
    temperature : 0 takes the most likely token (the lowest id of equals); otherwise logits are divided by it.
    top_k : draw from the k most likely tokens only; 0 for all.
    top_p : draw from the fewest most likely tokens whose probabilities reach p; 1 for all.
    min_p : draw from tokens only that are at least so many times as likely as the likeliest; 0 for all.
    repetition_penalty : logits of tokens that prompt or answer already hold are divided by it if positive and multiplied if
        negative; 1 for none.
    seed : of the generator; the same seed and logits give the same tokens.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0.0 <= self.temperature < float("inf")):
            raise UserError(f"temperature must be 0 (greedy) or a positive number, not {self.temperature}")
        if self.top_k < 0:
            raise UserError(f"top-k must be 0 (all tokens) or more, not {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if not 0.0 <= self.min_p <= 1.0:
            raise UserError(f"min-p must be from 0 (all tokens) to 1, not {self.min_p}")
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise UserError(f"repetition-penalty must be a positive number, not {self.repetition_penalty}")
        if self.seed < 0:
            raise UserError(f"seed must be 0 or more, not {self.seed}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def _first(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest, largest first; equal ones in the order of their places. Sorts no more than these."""
    n = len(values)
    if count >= n:
        chosen = np.arange(n)
    else:
        blocks = n // BLOCK
        at_least = values.min()
        if count <= blocks:  # so many blocks have a value that is no less than this one, which few others reach
            best = values[: blocks * BLOCK].reshape(BLOCK, blocks).max(axis=0)
            at_least = np.partition(best, blocks - count)[blocks - count]
        some = np.flatnonzero(values >= at_least)
        least = np.partition(values[some], len(some) - count)[len(some) - count]
        above = some[values[some] > least]
        chosen = np.concatenate([above, some[values[some] == least][: count - len(above)]])
        chosen.sort()
    return chosen[np.argsort(-values[chosen], kind="stable")]


def _weights(values: NDArray[np.float32], largest: np.float32, temperature: float) -> NDArray[np.float64]:
    """Probabilities but for a factor; 1 for the largest."""
    out = values.astype(np.float64)
    out -= np.float64(largest)
    if temperature < TINY:  # makes -inf of every logit below the largest, as it should
        with np.errstate(over="ignore"):
            out /= temperature
    else:
        out /= temperature
    return np.asarray(np.exp(out, out=out))


def _likeliest(
    values: NDArray[np.float32], largest: np.float32, s: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The fewest likeliest tokens that reach top-p."""
    if len(values) <= EXACTLY:
        every = _weights(values, largest, s.temperature).sum()
    else:  # in single precision: seven digits of what p is a share of are enough, and it is many times as fast
        with np.errstate(over="ignore"):
            every = np.exp((values - largest) / np.float32(max(s.temperature, 1e-30))).sum(dtype=np.float64)
    count = LIKELY
    while True:  # more of them until they reach it
        order = _first(values, count)
        p = _weights(values[order], largest, s.temperature) / every
        total = np.cumsum(p)
        if total[-1] >= s.top_p or count >= len(values):
            # The token that crosses p is kept, so at least one is.
            keep = int(np.searchsorted(total, s.top_p)) + 1
            return order[:keep], p[:keep]
        count *= 4


def _kept(values: NDArray[np.float32], s: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Places that may be drawn, ascending, and the probability of each."""
    largest = values.max()
    if s.top_k:
        order = _first(values, s.top_k)
        p = _weights(values[order], largest, s.temperature)
        p /= p.sum()
        if s.top_p < 1.0:
            # The token that crosses p is kept, so at least one is.
            keep = int(np.searchsorted(np.cumsum(p), s.top_p)) + 1
            order, p = order[:keep], p[:keep]
    elif s.top_p < 1.0:
        order, p = _likeliest(values, largest, s)
    else:
        order, p = np.arange(len(values)), _weights(values, largest, s.temperature)
    if s.min_p > 0.0:
        inside = p >= s.min_p * p.max()
        order, p = order[inside], p[inside]
    if s.top_k or s.top_p < 1.0:
        ascending = np.argsort(order)
        order, p = order[ascending], p[ascending]
    p /= p.sum()
    return order, p


def distribution(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """Probabilities float64[n] that `Sampler` draws from, of tokens with logits float32[n] in the order of their ids; one-hot at
    the arg-max when greedy.

    Equal logits rank by id, lowest first, so that the cut of top-k and top-p is defined. Top-k cuts first, then top-p, then min-p.
    """
    values = _checked(logits)
    out = np.zeros(values.shape)
    if sampling.greedy:
        out[int(np.argmax(values))] = 1.0
        return out
    places, p = _kept(values, sampling)
    out[places] = p
    return out


def _checked(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    values = np.asarray(logits)
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(f"the logit of token {bad} is {values[bad]}; the model's weights or scales are broken")
    return values


class Sampler:
    """Draws tokens. One uniform number a token, whatever the settings."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self._generator = np.random.Generator(np.random.PCG64(sampling.seed))

    def __call__(self, logits: NDArray[np.float32], ids: NDArray[np.int64] | None = None) -> int:
        """The next token id from logits float32[n].

        ids : ascending, of the tokens that the logits are of; None: of the whole vocabulary.
        """
        place = self._place(logits)
        return place if ids is None else int(ids[place])

    def _place(self, logits: NDArray[np.float32]) -> int:
        values = _checked(logits)
        if self.sampling.greedy:
            return int(np.argmax(values))
        places, p = _kept(values, self.sampling)
        cumulative = np.cumsum(p)
        u = self._generator.random() * cumulative[-1]
        return int(places[np.searchsorted(cumulative, u, side="right")])
