"""A pass through a model, and what every back end offers: passes, prefill in chunks of lanes, decode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import ne, sub

import numpy as np
from numpy.typing import NDArray

from tellme.golden import screen
from tellme.golden.arith import ceil_div
from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import EIGHT, CacheFormat, largest
from tellme.golden.schedule import groups
from tellme.golden.spec import ModelSpec
from tellme.host.errors import UserError
from tellme.host.machine.screening import FULL, HeadChoice


@dataclass(frozen=True)
class Pass:
    """What goes through a model at once: a token, a position and a cache slot for each lane.

    Parameters
    ----------
    tokens, positions, slots : of each lane. Lanes of one slot are neighbours with consecutive ascending positions, and
        attend to what the slot holds below the first of them.
    head : first lane whose logits are computed, and how many; 0: none.
    write_logits : return every logit of those lanes (of a screened head: its candidates), not only the arg-max.
    candidates : rows that a screened head scores exactly for each of those lanes; 0: the full head.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    slots: tuple[int, ...]
    head: tuple[int, int] = (0, 0)
    write_logits: bool = False
    candidates: int = 0

    @classmethod
    def of(
        cls,
        tokens: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int] | None = None,
        *,
        head: tuple[int, int] = (0, 0),
        write_logits: bool = False,
        candidates: int = 0,
    ) -> Pass:
        """A pass of any sequences; slots default to 0."""
        own = (0,) * len(tokens) if slots is None else tuple(slots)
        return cls(tuple(tokens), tuple(positions), own, head, write_logits, candidates)

    def screened(self, candidates: int) -> Pass:
        """The same with so many candidates; quicker than `replace`."""
        return Pass(self.tokens, self.positions, self.slots, self.head, self.write_logits, candidates)

    @property
    def lanes(self) -> int:
        return len(self.tokens)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """(first, last) lane of each run of lanes of one slot."""
        return groups(self.slots)


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """Outcome of one pass.

    Parameters
    ----------
    head_first, head_count : lanes whose logits were computed, [head_first, head_first + head_count).
    best_index, best_value : arg-max token and its logit, an entry for each head lane.
    logits : float32[head_count, vocab], of a screened head [head_count, candidates]; None unless they were asked for.
    candidates : int64[head_count, candidates], the rows of these logits, ascending; None: all rows.
    bound : smallest score of a candidate as a logit, an entry for each head lane; None from the full head.
    before, certain : of a pass that was run again with the full head: the screened one, and which head lanes keep its logits. So what a lane gives
        depends on no other lane.
    cycles, beats, writes : counters of the accelerator, None from the golden model.
    stalls, busy : cycles by cause and by unit, empty from the golden model.
    """

    head_first: int
    head_count: int
    best_index: tuple[int, ...]
    best_value: tuple[np.float32, ...]
    logits: NDArray[np.float32] | None = None
    candidates: NDArray[np.int64] | None = None
    bound: tuple[np.float32, ...] | None = None
    before: PassResult | None = None
    certain: tuple[bool, ...] = ()
    cycles: int | None = None
    beats: int | None = None
    writes: int | None = None
    stalls: dict[str, int] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)

    def of_lane(self, lane: int) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Logits of a head lane, and the rows that they are of; None: all."""
        if self.before is not None and self.certain[lane]:
            return self.before.of_lane(lane)
        assert self.logits is not None
        return self.logits[lane], None if self.candidates is None else self.candidates[lane]

    def keeping(self, before: PassResult, certain: tuple[bool, ...]) -> PassResult:
        """This result, of a pass that was run again, but for the head lanes that keep what the screened one gave."""
        of = [before if kept else self for kept in certain]
        return replace(
            self,
            before=before,
            certain=certain,
            best_index=tuple(r.best_index[i] for i, r in enumerate(of)),
            best_value=tuple(r.best_value[i] for i, r in enumerate(of)),
        )

    def behind(self, before: PassResult) -> PassResult:
        """This result, with the counters of a pass before it counted in."""

        def total(a: int | None, b: int | None) -> int | None:
            return None if a is None or b is None else a + b

        return replace(
            self,
            cycles=total(self.cycles, before.cycles),
            beats=total(self.beats, before.beats),
            writes=total(self.writes, before.writes),
            stalls={k: v + before.stalls[k] for k, v in self.stalls.items()},
            busy={k: v + before.busy[k] for k, v in self.busy.items()},
        )


@dataclass(frozen=True)
class Cache:
    """Keys and values of the first positions of a sequence, the same from every back end.

    Parameters
    ----------
    k, v : int8[layers, kv_heads, positions, head_dim].
    k_scales, v_scales : float32[layers, kv_heads, positions].
    """

    k: NDArray[np.int8]
    k_scales: NDArray[np.float32]
    v: NDArray[np.int8]
    v_scales: NDArray[np.float32]

    @property
    def positions(self) -> int:
        return int(self.k.shape[2])

    def check(self, spec: ModelSpec, kv: CacheFormat = EIGHT) -> None:
        """Refuses another model's, or elements that `kv` has no room for, with a UserError."""
        want = (spec.layers, spec.kv_heads, self.positions, spec.head_dim)
        shapes = ((self.k, want), (self.v, want), (self.k_scales, want[:3]), (self.v_scales, want[:3]))
        for array, shape in shapes:
            if array.shape != shape:
                raise UserError(f"a cache of shape {array.shape} is not this model's, which has {shape}")
        for array, narrow, what in ((self.k, kv.k_narrow, "keys"), (self.v, kv.v_narrow, "values")):
            most = largest(narrow)
            if narrow and array.size and not (-most <= array.min() and array.max() <= most):
                raise UserError(f"the {what} of a cache of 4 bits are from -{most} to {most}; these have 8 bits")


def fits_scores(
    config: AcceleratorConfig, group: int, cached: int, lanes: int, first_lane: int = 0, kv: CacheFormat = EIGHT
) -> bool:
    """Whether the score memory holds a group of lanes of one slot.

    Parameters
    ----------
    group : query heads of a KV head.
    cached : keys of the slot below the first lane's position.
    lanes, first_lane : the lanes of the slot.
    kv : elements of the cache. With narrow values a score word holds twice the keys, of half the queries.
    """
    sets = ceil_div(lanes * group, config.attention_lanes >> kv.v_narrow)
    kpb = config.keys_per_beat
    own_words = ceil_div((first_lane + lanes - 1) // kpb - first_lane // kpb + 1, 1 << kv.v_narrow)
    return sets * (own_words + ceil_div(cached, kpb << kv.v_narrow)) <= config.score_words


def always_fit(config: AcceleratorConfig, group: int, context: int, kv: CacheFormat = EIGHT) -> int:
    """Cached keys, up to `context`, with which the score memory holds any lanes of a slot; -1: with none."""
    n = -1
    while n < context and fits_scores(config, group, n + 1, config.lanes, config.keys_per_beat - 1, kv):
        n += 1
    return n


def lanes_that_fit(config: AcceleratorConfig, group: int, cached: int, wanted: int, kv: CacheFormat = EIGHT) -> int:
    """Most lanes, up to `wanted`, that a pass of one sequence may carry with `cached` keys before it; at least 1."""
    n = min(wanted, config.lanes)
    while n > 1 and not fits_scores(config, group, cached, n, kv=kv):
        n -= 1
    return n


def chunks(
    config: AcceleratorConfig, group: int, tokens: int, start: int = 0, kv: CacheFormat = EIGHT
) -> list[tuple[int, int]]:
    """(first position, lanes) of the passes that take `tokens` tokens of one sequence from position `start` on."""
    out = []
    at, end = start, start + tokens
    while at < end:
        n = lanes_that_fit(config, group, at, end - at, kv)
        out.append((at, n))
        at += n
    return out


class Backend(ABC):
    """Something that runs passes of one loaded model: an accelerator, the golden model, or both compared.

    Attributes
    ----------
    config : the accelerator's configuration; `config.lanes` is the most lanes of a pass.
    vocab : tokens of the vocabulary.
    context : positions of a cache slot.
    slots : cache slots.
    can_screen : the model has a ternary head.
    head : which head `prefill` and `decode` run, and when a screened pass is followed by one of the full head.
    screened, fallbacks : screened passes so far, and how many of them were.
    group : query heads of a KV head.
    spec : of the loaded model; None where nobody says.
    kv : elements of the cache.
    meanwhile : called by machines that leave the host idle during a pass, once in each.
    """

    config: AcceleratorConfig
    group: int
    head: HeadChoice = FULL
    screened = 0
    fallbacks = 0
    spec: ModelSpec | None = None
    kv: CacheFormat = EIGHT
    vocab: int
    context: int
    slots: int
    can_screen: bool = False
    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    @abstractmethod
    def _pass(self, given: Pass) -> PassResult:
        """A pass that is valid."""

    def run_pass(self, given: Pass) -> PassResult:
        """Takes tokens through the model, one a lane.

        Raises
        ------
        UserError : something of the pass is outside what the machine or the model has; the message says which and the
            limit.
        """
        self._check_pass(given)
        if given.write_logits and not given.head[1]:
            given = replace(given, write_logits=False)
        result = self._pass(given)
        if given.candidates and given.head[1]:
            # The same positions again: what was written to the cache is written once more.
            return self._certain(result, lambda: self._pass(replace(given, candidates=0)).behind(result))
        return result

    def _certain(self, screened: PassResult, full: Callable[[], PassResult]) -> PassResult:
        """The result of a screened pass; for lanes in which a row that was left out may be larger that of the full head."""
        self.screened += 1
        certain = tuple(not doubt for doubt in self.head.doubts(screened.best_value, screened.bound))
        if all(certain):
            return screened
        self.fallbacks += 1
        again = full()
        if not any(certain):
            return again
        return again.keeping(screened, certain)

    def _check_pass(self, given: Pass) -> None:
        n, positions, slots = given.lanes, given.positions, given.slots
        if not 1 <= n <= self.config.lanes:
            raise UserError(f"a pass has from 1 to {self.config.lanes} lanes, not {n}")
        if len(positions) != n or len(slots) != n:
            raise UserError(f"{n} tokens need {n} positions and slots, not {len(positions)} and {len(slots)}")
        for t in (min(given.tokens), max(given.tokens)):
            if not 0 <= t < self.vocab:
                raise UserError(f"token {t} is outside the vocabulary of {self.vocab}")
        for p in (min(positions), max(positions)):
            self._check_position(p)
        for s in (min(slots), max(slots)):
            if not 0 <= s < self.slots:
                raise UserError(f"cache slot {s} does not exist; there are {self.slots}")
        # Mostly lanes of a slot are neighbours whose positions follow each other, and all fit.
        own = len(set(slots))
        good = max(positions) <= self._roomy and (
            own == n
            or own
            == len(set(zip(slots, map(sub, positions, range(n)), strict=True)))
            == 1 + sum(map(ne, slots[1:], slots))
        )
        of = [] if good else given.groups
        if own < len(of):
            slot = next(slots[first] for first, _ in of if slots[first] in slots[:first])
            raise UserError(f"lanes of slot {slot} must be neighbours")
        for first, last in of:
            for i in range(first + 1, last + 1):
                if positions[i] != positions[i - 1] + 1:
                    raise UserError(
                        f"lanes {i - 1} and {i} share slot {slots[i]}, so their positions must follow each other, "
                        f"not {positions[i - 1]}, {positions[i]}"
                    )
        for first, last in of if max(positions) > self._roomy else ():
            lanes = last - first + 1
            if not fits_scores(self.config, self.group, positions[first], lanes, first, self.kv):
                raise UserError(
                    f"{lanes} lanes at position {positions[first]} need more than the {self.config.score_words} words "
                    "of score memory; send fewer lanes in a pass"
                )
        first, count = given.head
        if first < 0 or count < 0 or first + count > n:
            raise UserError(f"head lanes {first}..{first + count - 1} are not lanes of a pass of {n}")
        if given.candidates and count:
            if not self.can_screen:
                raise UserError(
                    "the model's image has no ternary head to choose candidates with; convert it with --head screened"
                )
            if why := screen.problem(given.candidates, count, self.vocab, self.config.screen_entries):
                raise UserError(why)

    @cached_property
    def _roomy(self) -> int:
        return always_fit(self.config, self.group, self.context, self.kv)

    def _check_prompt(self, tokens: Sequence[int], start: int) -> None:
        if not tokens:
            raise UserError("there is nothing to prefill: the prompt has no tokens")
        self._check_position(start)
        self._check_position(start + len(tokens) - 1)

    def _check_position(self, position: int) -> None:
        if not 0 <= position < self.context:
            raise UserError(
                f"position {position} is beyond the context of {self.context} positions; shorten the prompt, "
                "generate fewer tokens, or take a board with a larger context"
            )

    def prefill(
        self, tokens: Sequence[int], *, start: int = 0, slot: int = 0, all_logits: bool = False, logits: bool = False
    ) -> list[PassResult]:
        """A prompt at positions start, start + 1, ..., in passes of as many lanes as the score memory allows.

        The head runs for the last token only, or with `all_logits` for every one; `logits` returns every logit of the
        last token. Refused as a whole, before the first pass, if it does not fit the context.
        """
        self._check_prompt(tokens, start)
        results: list[PassResult] = []
        for at, n in chunks(self.config, self.group, len(tokens), start, self.kv):
            i = at - start
            head = (0, n) if all_logits else (n - 1, 1) if i + n == len(tokens) else (0, 0)
            results.append(
                self.run_pass(
                    Pass.of(
                        tokens[i : i + n],
                        range(at, at + n),
                        [slot] * n,
                        head=head,
                        write_logits=all_logits or logits,
                        candidates=0 if all_logits else self._candidates(head[1]),
                    )
                )
            )
        return results

    def decode(self, token: int, position: int, *, slot: int = 0, logits: bool = False) -> PassResult:
        """One token of one sequence."""
        return self.run_pass(Pass((token,), (position,), (slot,), (0, 1), logits, self._candidates(1)))

    def _candidates(self, lanes: int) -> int:
        """Candidates of a pass with so many head lanes, 0 for the full head."""
        return self.head.wanted(lanes, self.vocab, self.config.screen_entries)

    def read_cache(self, slot: int, positions: int) -> Cache:
        """What a slot holds of its first positions."""
        raise UserError("this back end does not give its cache away")

    def write_cache(self, slot: int, cache: Cache) -> None:
        """Puts keys and values into a slot, from position 0 on.

        Raises
        ------
        UserError : they are another model's, or more than a slot holds.
        """
        raise UserError("this back end takes no cache from elsewhere")

    def copy_cache(self, source: int, target: int, positions: int) -> None:
        """Copies the first positions of a slot to another one."""
        self.write_cache(target, self.read_cache(source, positions))

    def _check_cache(self, slot: int, positions: int) -> None:
        if not 0 <= slot < self.slots:
            raise UserError(f"cache slot {slot} does not exist; there are {self.slots}")
        if not 0 <= positions <= self.context:
            raise UserError(f"{positions} positions are more than the context of {self.context}")

    def close(self) -> None:  # noqa: B027 - most back ends hold nothing
        """Gives back what the back end holds."""

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
