"""The next token from logits: greedy, or drawn with temperature, top-k, top-p and min-p from a seeded generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellme.host.errors import UserError


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


def distribution(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """Probabilities float64[n] that `Sampler` draws from, of tokens with logits float32[n] in the order of their ids; one-hot at
    the arg-max when greedy.

    Equal logits rank by id, lowest first, so that the cut of top-k and top-p is defined. Top-k cuts first, then top-p, then min-p.
    """
    values = np.asarray(logits, dtype=np.float64)
    if not np.all(np.isfinite(values)):
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(f"the logit of token {bad} is {values[bad]}; the model's weights or scales are broken")
    out = np.zeros(values.shape)
    if sampling.greedy:
        out[int(np.argmax(values))] = 1.0
        return out
    order = np.argsort(-values, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    with np.errstate(over="ignore"):  # a tiny temperature makes -inf of every logit below the largest, as it should
        p = np.exp((values[order] - values[order[0]]) / sampling.temperature)
    p /= p.sum()
    if sampling.top_p < 1.0:
        # The token that crosses p is kept, so at least one is.
        keep = int(np.searchsorted(np.cumsum(p), sampling.top_p)) + 1
        order, p = order[:keep], p[:keep] / p[:keep].sum()
    if sampling.min_p > 0.0:
        keep = int(np.count_nonzero(p >= sampling.min_p * p[0]))  # likeliest first, so the rest is behind
        order, p = order[:keep], p[:keep] / p[:keep].sum()
    out[order] = p
    return out


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
        p = distribution(logits, self.sampling)
        if self.sampling.greedy:
            return int(np.argmax(p))
        cumulative = np.cumsum(p)
        u = self._generator.random() * cumulative[-1]
        return int(np.searchsorted(cumulative, u, side="right"))
