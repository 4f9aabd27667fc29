"""The next token from logits: greedy, or drawn with temperature, top-k, top-p and min-p from a seeded generator.

A draw takes the exponential of few logits. Those far below the largest weigh no more than the threshold that they are below, so that all of them
together are at most `E`, far less than the others' sum `S`. A uniform number below S + E falls on a token that is near, on one that is far (which then has to
come true by its own weight, out of the threshold's), or on nothing. It is drawn again where it fell on nothing, or on what top-k, top-p or min-p leave out. What top-p is a share of lies between S and S + E; where that does not tell whether
a token is in, fewer are taken for far, and in the end none. So what is drawn follows `distribution`, exactly (rejection sampling: Devroye, *Non-Uniform Random Variate Generation*, 1986, II.3).
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.host.errors import UserError

try:
    from tellme.host.text import _sampling
except ImportError:  # installed without a C compiler or Python's headers
    _sampling = None  # type: ignore[assignment]
COMPILED = _sampling is not None
"""Whether draws are; else NumPy makes them, which takes several times as long."""

LIKELY = 512
"""Tokens that are sorted for top-p at first; mostly they reach it."""
EXACTLY = 8192
"""Tokens whose probabilities are all computed in double precision for top-p."""
TINY = 1e-200
"""Temperature below which a quotient may overflow."""
BLOCK = 64
"""Tokens whose largest logit is looked at for all of them."""
FAR = 4.0
"""A token is far where its weight, times the tokens that may be drawn, is less than the likeliest one's over e to this."""
COLD = 1e-30
"""Temperature below which everything is weighed: far logits would be none in single precision."""
TRIES = 32
"""Numbers behind the first that fall on nothing, one after the other, before everything is weighed."""
TURN = 64
"""Random numbers that a token may have."""
BITS_64 = (1 << 64) - 1
LONG = 1 << 15
"""Logits for which a thread of its own pays."""
THREADS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""That look through logits, with the one that draws."""
WIDE = 1024
"""Near tokens of a lane from which on it is drawn for itself."""


Setting = tuple[float, int, float, float, int]
"""See `Sampler.setting`."""


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


def penalised(logits: NDArray[np.float32], said: Collection[int], penalty: float) -> NDArray[np.float32]:
    """Logits float32[n] with those of tokens that were said divided by the penalty if positive, and multiplied if negative."""
    if penalty == 1.0:
        return logits
    values, ids, by = logits.copy(), np.fromiter(said, np.int64), np.float32(penalty)
    values[ids] = np.where(values[ids] > 0, values[ids] / by, values[ids] * by)
    return values


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
    """Draws tokens of one sequence.

    Attributes
    ----------
    seen : whether it has been given logits. All of the first ones must be finite; later -inf is a token that never comes.
    key : of 64 bits, from the seed.
    setting : temperature, top-k, top-p, min-p and key.
    turn : tokens that were kept.
    """

    def __init__(self, sampling: Sampling):
        self.sampling = s = sampling
        self.key = int.from_bytes(blake2b(b"%d" % s.seed, digest_size=8).digest(), "little")
        self.setting = s.temperature, s.top_k, s.top_p, s.min_p, self.key
        self.seen, self.turn = False, 0

    def number(self, ahead: int = 0, tried: int = 0) -> float:
        """From 0 to 1 (excluded), for the token so many behind the next one, where so many numbers before did not do. One of no other token: SplitMix64 at a
        place of its own (Steele, Lea, Flood, *Fast Splittable Pseudorandom Number Generators*, 2014)."""
        z = self.key + ((self.turn + ahead) * TURN + tried + 1) * 0x9E3779B97F4A7C15 & BITS_64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & BITS_64
        z = (z ^ z >> 27) * 0x94D049BB133111EB & BITS_64
        return ((z ^ z >> 31) >> 11) / (1 << 53)

    def take(self, count: int = 1) -> None:
        """The next tokens were drawn, and are kept."""
        self.turn += count

    def __call__(self, logits: NDArray[np.float32], ids: NDArray[np.int64] | None = None) -> int:
        """The next token id from logits float32[n].

        ids : ascending, of the tokens that the logits are of; None: of the whole vocabulary.
        """
        values = np.asarray(logits)[None]
        place = draw(values, [self], [float(values.max())])[0]
        self.take()
        return place if ids is None else int(ids[place])


def draw(
    logits: NDArray[np.float32],
    samplers: Sequence[Sampler],
    largest: Sequence[float],
    counts: Sequence[int] | None = None,
    ahead: int = 0,
) -> list[int]:
    """The next tokens of several sequences at once. `Sampler.take` says how many are kept.

    Parameters
    ----------
    logits : float32[rows, n]. largest : logit of each row.
    samplers : one a sequence; what each draws does not depend on the others.
    counts : rows of each sequence, which follow each other: of the next token, of the one behind it (of a guess), and so on. 1 by default.
    ahead : how many tokens behind the next one the first row of each sequence is.

    Returns
    -------
    list : for each row the place of its token among the n.

    Raises
    ------
    UserError : a logit is not finite.
    """
    counts = counts or [1] * len(samplers)
    settings: list[Setting] = []
    turns: list[int] = []
    for s, count in zip(samplers, counts, strict=True):
        if not s.seen:
            _checked(logits[len(turns)])
            s.seen = True
        settings += [s.setting] * count
        turns += range(s.turn + ahead, s.turn + ahead + count)
    if not math.isfinite(sum(largest)):
        for row, value in zip(logits, largest, strict=True):
            if not math.isfinite(value):
                _checked(row)
    warm, out = min(settings)[0] >= COLD, [-1] * len(turns)
    if warm and _sampling is not None:
        out = _compiled(np.ascontiguousarray(logits, np.float32), list(largest), settings, turns)
        if min(out) >= 0:
            return out
    rows = [(s, ahead + i) for s, count in zip(samplers, counts, strict=True) for i in range(count)]
    if warm and max(out) < 0:
        return _Near(logits, rows, largest).draw()
    for i, (s, behind) in enumerate(rows):
        if out[i] < 0:
            one = slice(i, i + 1)
            if s.sampling.temperature >= COLD:
                [out[i]] = _Near(logits[one], rows[one], largest[one]).draw()
            elif s.sampling.greedy:
                out[i] = int(np.argmax(logits[i]))
            else:
                out[i] = _exactly(logits[i], s.sampling, s.number(behind))
    return out


def _exactly(values: NDArray[np.float32], sampling: Sampling, number: float) -> int:
    """The place that a number falls on, by everything's weight."""
    places, p = _kept(values, sampling)
    cumulative = np.cumsum(p)
    return int(places[np.searchsorted(cumulative, number * cumulative[-1], side="right")])


@cache
def _helpers() -> SimpleQueue[Any]:
    """What threads beside the one that draws take work from: arguments of `_sampling.draw`, a place, and a queue for that with what it gave or raised. An
    executor takes 60,000 instructions a call, 15 times as many."""
    asked: SimpleQueue[Any] = SimpleQueue()

    def serve() -> None:
        while True:
            arguments, place, done = asked.get()
            try:
                given: list[int] | Exception = _sampling.draw(*arguments)
            except Exception as e:
                given = e
            done.put((place, given))
            del arguments, place, done, given

    for _ in range(THREADS - 1):
        Thread(target=serve, name="draws", daemon=True).start()
    return asked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # which has none of the threads


def _compiled(
    logits: NDArray[np.float32], largest: list[float], settings: list[Setting], turns: list[int]
) -> list[int]:
    """`_sampling.draw` of all rows, by several threads, some rows each, where that pays."""
    count = len(largest)
    parts = min(THREADS, count, logits.size // LONG)
    if parts <= 1:
        return _sampling.draw(logits, 0, largest, settings, turns, FAR, TRIES)
    cuts = [count * i // parts for i in range(parts + 1)]
    work = [
        (logits, a, largest[a:b], settings[a:b], turns[a:b], FAR, TRIES) for a, b in zip(cuts, cuts[1:], strict=False)
    ]
    helpers = _helpers()
    done: SimpleQueue[tuple[int, list[int] | Exception]] = SimpleQueue()
    for i in range(1, parts):
        helpers.put((work[i], i, done))
    found = [_sampling.draw(*work[0])] * parts
    for _ in range(1, parts):
        i, given = done.get()
        if isinstance(given, Exception):
            raise given
        found[i] = given
    return [place for some in found for place in some]


class _Near:
    """Weights of the tokens that are not far, in rows as long as the longest; weight 0 behind a row's last.

    logits : float32[rows, n]. rows : the sampler of each, and how many tokens behind its next one. largest : of each. far : see `FAR`.
    """

    def __init__(
        self,
        logits: NDArray[np.float32],
        rows: Sequence[tuple[Sampler, int]],
        largest: Sequence[float],
        far: float = FAR,
    ):
        self._logits, self._rows, self._largest = logits, rows, largest
        self._settings = [s.sampling for s, _ in rows]
        n = logits.shape[1]
        self._topped = any([s.top_p < 1.0 for s in self._settings])
        self._most = most = [s.top_k if 0 < s.top_k < n else n for s in self._settings]
        warmth = [s.temperature for s in self._settings]
        below = {k: math.log(k) + far for k in set(most)}
        low = [m - t * below[k] for m, t, k in zip(largest, warmth, most, strict=True)]
        limits = np.array(low, np.float32)
        self._low: list[float] = limits.tolist()
        found = np.flatnonzero(~(logits < limits[:, None]))  # what is not a number is among them
        starts = found.searchsorted(np.arange(0, logits.size + 1, n))
        ends: list[int] = starts.tolist()
        self._counts = counts = [b - a for a, b in zip(ends, ends[1:], strict=False)]
        width = max(counts)
        self._wide = width > WIDE and len(rows) > 1
        if self._wide:
            return
        self._found, self._starts = found, ends
        near = logits.ravel().take(found)
        if min(counts) == width:
            self._values = near.reshape(len(counts), width)
        else:
            self._values = np.full((len(counts), width), -np.inf, np.float32)
            self._values[np.arange(width) < np.array(counts)[:, None]] = near
        if any([count > k for count, k in zip(counts, most, strict=True)]):
            self._cut()
        weights = self._values.astype(np.float64)
        weights -= np.array(largest)[:, None]
        weights /= warmth[0] if len(set(warmth)) == 1 else np.array(warmth)[:, None]
        self._weights = np.exp(weights, out=weights)
        self._sums = np.add.accumulate(weights, axis=1)
        self._near: list[float] = self._sums[:, -1].tolist()
        if not math.isfinite(sum(self._near)):
            for row in logits:
                _checked(row)
        self._unit = [math.exp((w - m) / t) for w, m, t in zip(self._low, largest, warmth, strict=True)]
        self._far = [
            (k - count) * unit if count < k else 0.0 for k, count, unit in zip(most, counts, self._unit, strict=True)
        ]

    def _cut(self) -> None:
        """Makes the weight of all but the `most` largest 0; of equal ones the first stay."""
        ordered = np.sort(self._values, axis=1)
        more = [lane for lane, (count, most) in enumerate(zip(self._counts, self._most, strict=True)) if count > most]
        least = np.full(len(ordered), -np.inf, np.float32)
        ends = [ordered.shape[1] - self._most[lane] for lane in more]
        least[more] = ordered[more, ends]
        self._values[self._values < least[:, None]] = -np.inf
        for lane, end in zip(more, ends, strict=True):
            if ordered[lane, end - 1] == ordered[lane, end]:
                equal = np.flatnonzero(self._values[lane] == least[lane])
                stay = self._most[lane] - np.count_nonzero(self._values[lane] > least[lane])
                self._values[lane, equal[stay:]] = -np.inf

    def _alone(self, lane: int, far: float = FAR) -> _Near:
        """One row, for itself."""
        one = slice(lane, lane + 1)
        return _Near(self._logits[one], self._rows[one], self._largest[one], far)

    def draw(self) -> list[int]:
        """Places of the tokens."""
        if self._wide:
            return [self._alone(lane).draw()[0] for lane in range(len(self._rows))]
        out = [-1] * len(self._rows)
        for tried in range(TRIES + 2):
            left = [lane for lane, place in enumerate(out) if place < 0]
            if not left:
                break
            numbers = [s.number(ahead, tried) for s, ahead in (self._rows[lane] for lane in left)]
            if tried <= TRIES:
                places = self._try(left, numbers)
            else:
                of = zip(left, numbers, strict=True)
                places = [_exactly(self._logits[lane], self._settings[lane], number) for lane, number in of]
            for lane, place in zip(left, places, strict=True):
                out[lane] = place
        return out

    def _try(self, lanes: list[int], numbers: list[float]) -> list[int]:
        """Places that the numbers fall on; -1: on nothing that may be drawn."""
        settings, values, weights, sums = self._settings, self._values, self._weights, self._sums
        if len(lanes) < len(values):
            # Mostly one is tried again, and a slice is not copied.
            of = lanes if len(lanes) > 1 else slice(lanes[0], lanes[0] + 1)
            values, weights, sums = values[of], weights[of], sums[of]
        drawn = [u * (self._near[i] + self._far[i]) for u, i in zip(numbers, lanes, strict=True)]
        column = (sums > np.array(drawn)[:, None]).argmax(axis=1)
        at = np.arange(len(lanes)), column
        above = [0.0] * len(lanes)
        if self._topped:
            value = values[at][:, None]
            higher = values > value
            equal = values == value
            if np.count_nonzero(equal) > len(lanes):
                higher |= equal & (np.arange(values.shape[1]) < column[:, None])
            # Sums one after the other, so that they do not depend on how long the rows are.
            above = np.add.accumulate(np.where(higher, weights, 0.0), axis=1)[:, -1].tolist()
        out = []
        n = self._logits.shape[1]
        on: list[int] = column.tolist()
        for i, (lane, number, one, mass) in enumerate(zip(lanes, drawn, on, above, strict=True)):
            s, near = settings[lane], self._near[lane]
            if number >= near:
                out.append(self._distant(lane, number - near))
                continue
            place = int(self._found[self._starts[lane] + one]) - lane * n
            if (s.min_p == 0.0 or weights[i, one] >= s.min_p) and (
                s.top_p == 1.0 or mass < s.top_p * near or self._in(lane, place, mass)
            ):
                out.append(place)
            else:
                out.append(-1)
        return out

    def _in(self, lane: int, place: int, above: float) -> bool:
        """Whether top-p has room for a near token where those above it weigh so much."""
        room = self._reaches(lane, above)
        if room is None:  # with fewer far ones
            room = self._alone(lane, 2 * FAR)._reaches(0, above)
        return self._stays(lane, place) if room is None else room

    def _reaches(self, lane: int, above: float) -> bool | None:
        """Whether top-p has room for a token where those above it weigh so much; None: what is far decides that."""
        p, near = self._settings[lane].top_p, self._near[lane]
        return True if above < p * near else None if above < p * (near + self._far[lane]) else False

    def _stays(self, lane: int, place: int) -> bool:
        """Whether a token may be drawn, by everything's weight."""
        return bool((_kept(self._logits[lane], self._settings[lane])[0] == place).any())

    def _distant(self, lane: int, beyond: float) -> int:
        """The far token that a number fell on that is so much more than what all near ones weigh; -1: nothing that may be drawn."""
        s, unit = self._settings[lane], self._unit[lane]
        if s.min_p >= unit or (s.top_p < 1.0 and self._reaches(lane, self._near[lane]) is False):
            return -1  # all near ones are likelier
        count, values = self._counts[lane], self._logits[lane]
        which = min(int(beyond / unit), self._most[lane] - count - 1)
        if s.top_k:
            place = int(_first(values, s.top_k)[count + which])
        else:
            near = self._found[self._starts[lane] :][:count] - lane * len(values) - np.arange(count)
            place = which + int(np.searchsorted(near, which, side="right"))
        share = beyond / unit - which
        if share >= math.exp((float(values[place]) - self._low[lane]) / s.temperature):
            return -1
        return place if (s.top_p == 1.0 and s.min_p == 0.0) or self._stays(lane, place) else -1
