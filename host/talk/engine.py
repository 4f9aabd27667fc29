"""Runs conversations on a back end, a pass at a time: what the scheduler decides goes through the model, and every new token is chosen."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tellme.host.errors import CheckError, UserError
from tellme.host.machine.costs import Costs
from tellme.host.machine.passes import Backend, PassResult
from tellme.host.talk.drafts import NO_DRAFT, Draft, Drafts
from tellme.host.talk.scheduler import RISE, Conversation, Part, Planned, Scheduler, common
from tellme.host.text.sampling import Sampler, Sampling, draw, penalised


class Constraint(Protocol):
    """What the next token may be."""

    def allowed(self) -> NDArray[np.bool_]:
        """bool[vocab], at least one of them True."""
        ...

    def take(self, token: int) -> None:
        """The token was chosen."""
        ...


class Chosen(NamedTuple):
    """A new token. If asked for, natural logarithms of the model's own probabilities (temperature 1, nothing left out): `logprob` of the token, `logprobs`
    float64[vocab] of all, which only the step that made it gives."""

    token: int
    logprob: float | None = None
    logprobs: NDArray[np.float64] | None = None


chosen_of = partial(tuple.__new__, Chosen)
"""A new token from its fields, in fewer steps than the class's own way takes."""


class Ran(NamedTuple):
    """What is kept of a pass: its counters, as in `PassResult`."""

    cycles: int | None
    beats: int | None
    writes: int | None
    stalls: dict[str, int]
    busy: dict[str, int]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities of logits float32[n]."""
    v = logits.astype(np.float64)
    v -= v.max()
    return np.asarray(v - np.log(np.exp(v).sum()))


def _check(result: PassResult, lane: int, tokens: int, first: bool) -> None:
    """Whether the logits of head lane `lane`, behind so many tokens, are finite: the largest, and of the first token of an answer all.

    Raises
    ------
    CheckError : they are not.
    """
    best = result.best_value[lane]
    if not math.isfinite(best) or (first and result.logits is not None and not np.isfinite(result.logits[lane]).all()):
        raise CheckError(
            f"a logit behind token {tokens} is not finite (the largest is {best}); the model or its conversion is broken"
        )


def draws(result: PassResult, samplers: Sequence[Sampler], firsts: Sequence[int], counts: Sequence[int]) -> list[int]:
    """What sequences draw from so many neighbouring head lanes each, ascending: at once, which is much cheaper. `Sampler.take` says how many are kept."""
    lanes = list(range(firsts[0], firsts[-1] + counts[-1]))
    all_of_them = len(lanes) == sum(counts)
    if not all_of_them:
        lanes = [first + i for first, count in zip(firsts, counts, strict=True) for i in range(count)]
    if result.before is None:
        assert result.logits is not None
        logits = result.logits[lanes[0] : lanes[-1] + 1] if all_of_them else result.logits[lanes]  # of all no copy
        places = draw(logits, samplers, [float(result.best_value[lane]) for lane in lanes], counts)
        return places if result.candidates is None else result.candidates[lanes, places].tolist()
    # Some lanes have every row, others candidates.
    out = []
    for sampler, first, count in zip(samplers, firsts, counts, strict=True):
        for ahead in range(count):
            row, ids = result.of_lane(first + ahead)
            [place] = draw(row[None], [sampler], [float(result.best_value[first + ahead])], ahead=ahead)
            out.append(place if ids is None else int(ids[place]))
    return out


class Choice:
    """Chooses the tokens of one conversation, in order; what it draws does not depend on how they came to be in passes.

    Parameters
    ----------
    sampling : how.
    prompt : tokens before the first one, which the repetition penalty counts.
    constraint : what may come; None: anything.
    logprobs : give them.

    Attributes
    ----------
    needs_logits : the arg-max alone does not do.
    needs_all : the candidates of a screened head do not do. What it chooses without depends on no other token.
    draws : it draws from the logits as they are, and that is all.
    sampler : with which it draws.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int] = (),
        *,
        constraint: Constraint | None = None,
        logprobs: bool = False,
    ):
        self.sampling = sampling
        self.sampler = Sampler(sampling)
        self._said = set(prompt)
        self._constraint = constraint
        self._logprobs = logprobs
        self.needs_all = logprobs or constraint is not None or sampling.repetition_penalty != 1.0
        self.needs_logits = self.needs_all or not sampling.greedy
        self.draws = not (self.needs_all or sampling.greedy)

    def __call__(self, result: PassResult, lane: int) -> Chosen:
        """The next token, from head lane `lane` of a pass."""
        if not self.needs_logits or result.logits is None:
            return self._take(Chosen(result.best_index[lane]))
        logits, ids = result.of_lane(lane)
        values = penalised(logits, self._said, self.sampling.repetition_penalty)
        if self._constraint is not None:
            allowed = np.flatnonzero(self._constraint.allowed())
            token = self.sampler(values[allowed], allowed)
        else:
            token = self.sampler(values, ids)
        if not self._logprobs:
            return self._take(Chosen(token))
        logprobs = log_softmax(logits)
        return self._take(Chosen(token, float(logprobs[token]), logprobs))

    def _take(self, chosen: Chosen) -> Chosen:
        self._said.add(chosen.token)
        if self._constraint is not None:
            self._constraint.take(chosen.token)
        return chosen


@dataclass(eq=False)
class Ticket:
    """A request in the engine.

    Attributes
    ----------
    stop : why it ended, '' while it runs: 'length', 'end' (end token), 'context' (cache full), 'cancelled'.
    new : tokens made, the end token too.
    prefill, decode : the passes that it had lanes in: until its first token, and after.
    drafted, accepted : tokens guessed for it, and how many came true.
    """

    conversation: Conversation
    choice: Choice
    ends: frozenset[int]
    most: int
    speculate: bool
    new: list[Chosen] = field(default_factory=list)
    stop: str = ""
    prefill: list[Ran] = field(default_factory=list)
    decode: list[Ran] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0

    @property
    def ended(self) -> bool:
        return bool(self.stop)


@dataclass
class Counts:
    """Sums over the passes of an engine."""

    passes: int = 0
    lanes: int = 0
    tokens: int = 0
    cycles: int = 0
    stalls: dict[str, int] = field(default_factory=dict)


class Engine:
    """Conversations side by side.

    Parameters
    ----------
    backend : what runs the passes; all its cache slots are the engine's.
    queue : most requests that may wait for a slot.
    rise : what the time between two tokens of a conversation may rise to on average while others' prompts go through.
    whole_prompts : a prompt goes through as a whole while nobody else is there (the golden model does that faster); who comes meanwhile waits for it.
    all_logits : compute the head for every token of such a prompt.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        queue: int = 64,
        rise: float = RISE,
        whole_prompts: bool = False,
        all_logits: bool = False,
    ):
        self.backend = backend
        self.costs = None if backend.spec is None else Costs(backend.spec, backend.config, backend.kv)
        self.scheduler = Scheduler(
            backend.config,
            backend.group,
            backend.context,
            backend.slots,
            queue=queue,
            rise=rise,
            cost=None if self.costs is None else self.costs.cycles,
            kv=backend.kv,
        )
        self.drafts = Drafts()
        self._ran: tuple[Planned, int] | None = None
        """A pass and its cycles, which `costs` has still to learn of."""
        self._to_do = False
        backend.meanwhile = self._meanwhile
        self.counts = Counts()
        self.last: Planned | None = None
        self._tickets: dict[Conversation, Ticket] = {}
        self._whole = whole_prompts
        self._all = all_logits

    # ---- requests ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        end_ids: Collection[int] = (),
        speculate: bool = False,
        logprobs: bool = False,
        constraint: Constraint | None = None,
    ) -> Ticket:
        """A new request.

        Raises
        ------
        UserError : it can never be served; scheduler.Refused: the queue is full.
        """
        for token in prompt_ids:
            if not 0 <= token < self.backend.vocab:
                raise UserError(f"token {token} is outside the vocabulary of {self.backend.vocab}")
        head, top_k = self.backend.head, (sampling or Sampling()).top_k
        if head.mode != "full" and top_k > head.candidates:
            raise UserError(
                f"top-k is {top_k}, the screened head gives {head.candidates} candidates; ask for more candidates"
            )
        conversation = self.scheduler.submit(prompt_ids, max_new_tokens)
        choice = Choice(sampling or Sampling(), prompt_ids, constraint=constraint, logprobs=logprobs)
        ticket = Ticket(conversation, choice, frozenset(end_ids), max_new_tokens, speculate)
        self._tickets[conversation] = ticket
        if speculate:
            self.drafts.extend(conversation.key, prompt_ids)
        return ticket

    def cancel(self, ticket: Ticket, why: str = "cancelled") -> None:
        """Ends a request; nothing happens if it has ended."""
        if not ticket.ended:
            self._end(ticket, why)

    def _end(self, ticket: Ticket, why: str) -> None:
        ticket.stop = why
        self.scheduler.end(ticket.conversation)
        self.drafts.end(ticket.conversation.key)
        del self._tickets[ticket.conversation]

    @property
    def busy(self) -> bool:
        """Whether a pass would do something."""
        return bool(self._tickets)

    # ---- passes ------------------------------------------------------------------------------------------------------

    def step(self) -> list[tuple[Ticket, list[Chosen]]]:
        """One pass.

        Returns
        -------
        list : the new tokens of each request that got some; a request that ended has `stop` set.

        Raises
        ------
        CheckError : logits that are not finite.
        """
        if self.scheduler.waiting:
            self._admit()
        guess, logits = None, False
        for ticket in self._tickets.values():
            if ticket.speculate:
                guess = self._guess
            if ticket.choice.needs_logits:
                logits = True
        planned = self.scheduler.plan(guess, logits=logits)
        self.last = planned
        if planned is None:
            return []
        self._to_do = True
        # A pass that fails has written only where nothing certain is: what the slots are known to hold stays so.
        return self._finish(*self._run(planned))

    def _meanwhile(self) -> None:
        """What no pass has to wait for, once in each."""
        if not self._to_do:
            return
        self._to_do = False
        self.drafts.remember()
        if self.costs is not None and self._ran is not None:
            planned, cycles = self._ran
            self.costs.measured(*planned.lanes, cycles)
            self._ran = None

    def _admit(self) -> None:
        for conversation, source in self.scheduler.admit():
            if source is None:
                continue
            held = self.scheduler.slots[source].tokens
            n = common(conversation.tokens[:-1], held)
            assert conversation.slot is not None
            self.backend.copy_cache(source, conversation.slot, n)
            self.scheduler.copied(conversation, n)

    def _guess(self, conversation: Conversation, most: int) -> Draft:
        return self.drafts.guess(conversation.key, most) if self._tickets[conversation].speculate else NO_DRAFT

    def _run(self, planned: Planned) -> tuple[Planned, list[PassResult]]:
        """Takes a pass through the model; or, where that is wanted and only one prompt is there, the whole of it."""
        only = planned.parts[0].conversation
        full = self.backend.head.mode == "full"
        if (
            not self._whole
            or len(self._tickets) > 1
            or only.decoding
            or (not full and (self._tickets[only].choice.needs_all or not self._candidates(1)))
        ):
            result = self._run_pass(planned)
            self._meanwhile()  # on a machine that the host waits for it was called in the pass
            if result.cycles:
                self._ran = planned, result.cycles
            return planned, [result]
        assert only.slot is not None
        rest = only.tokens[only.computed :]
        results = self.backend.prefill(
            rest,
            start=only.computed,
            slot=only.slot,
            all_logits=self._all,
            logits=self._tickets[only].choice.needs_logits,
        )
        self._meanwhile()
        return Planned(planned.given, (Part(only, 0, len(rest), True),)), results

    def _run_pass(self, planned: Planned) -> PassResult:
        """A pass, with a screened head where that is wanted. What a conversation draws from must not depend on who else is there: its candidates, or
        every row where they are in doubt, or where it needs every row."""
        given = planned.given
        first, count = given.head
        candidates = self._candidates(count)
        if not candidates:
            return self.backend.run_pass(given)
        tickets = self._tickets
        needs_all = [tickets[p.conversation].choice.needs_all for p in planned.parts for _ in range(p.lanes)]
        needs_all = needs_all[first : first + count]
        some = any(needs_all)
        if some and (all(needs_all) or self._certain()):
            return self.backend.run_pass(given)
        result = self.backend.run_pass(given.screened(candidates))
        again = result.before is not None
        # Nobody needs more; or every lane was in doubt, so that it is the full head's.
        if not some or (result.candidates is None and not again):
            return result
        before, kept = result if result.before is None else result.before, result.certain or (True,) * len(needs_all)
        whole = result if again else self.backend.run_pass(given).behind(result)
        return whole.keeping(before, tuple(k and not n for k, n in zip(kept, needs_all, strict=True)))

    def _certain(self) -> bool:
        """Whether all that is chosen are arg-maxima that are the full head's, or seen not to be."""
        return self.backend.head.mode == "auto" and all(t.choice.sampling.greedy for t in self._tickets.values())

    def _candidates(self, lanes: int) -> int:
        """Candidates of a pass with so many head lanes, 0 for the full head; where tokens are drawn always or never, so that it does not matter how full a pass is."""
        head, b = self.backend.head, self.backend
        if head.mode == "full":
            return 0
        if not self._certain():
            most = 1 if b.slots == 1 and not next(iter(self._tickets.values())).speculate else b.config.lanes
            if not head.wanted(most, b.vocab, b.config.screen_entries):
                return 0
        return head.wanted(lanes, b.vocab, b.config.screen_entries)

    def _finish(self, planned: Planned, results: list[PassResult]) -> list[tuple[Ticket, list[Chosen]]]:
        ran = [Ran(r.cycles, r.beats, r.writes, r.stalls, r.busy) for r in results]
        result = results[-1]
        # Behind a prompt that went through in several passes is the last lane.
        first, whole = result.head_first, len(results) > 1
        choosing: list[tuple[Part, Ticket, int]] = []
        counts, lanes = self.counts, 0
        for part in planned.parts:
            ticket = self._tickets[part.conversation]
            (ticket.decode if ticket.new else ticket.prefill).extend(ran)
            lanes += part.count + part.drafted
            if part.chooses:
                lane = result.head_count - 1 if whole else part.first + part.count - 1 - first
                choosing.append((part, ticket, lane))
        made = self._choose(choosing, result)
        said = {part.conversation: tokens for (part, _, _), (tokens, _) in zip(choosing, made, strict=True)}
        self.scheduler.complete(planned, said)
        counts.passes += len(results)
        counts.lanes += lanes
        for r in ran:
            counts.cycles += r.cycles or 0
            for cause, n in r.stalls.items():
                counts.stalls[cause] = counts.stalls.get(cause, 0) + n
        out = []
        for (part, ticket, _), (tokens, new) in zip(choosing, made, strict=True):
            conversation = part.conversation
            counts.tokens += len(tokens)
            ticket.new += new if new[0].logprobs is None else [c._replace(logprobs=None) for c in new]
            if ticket.speculate:
                self.drafts.extend(conversation.key, tokens)
            out.append((ticket, new))
            if tokens[-1] in ticket.ends:
                self._end(ticket, "end")
            elif len(conversation.tokens) == conversation.limit:
                self._end(ticket, "length" if len(ticket.new) == ticket.most else "context")
        return out

    def _choose(
        self, choosing: Sequence[tuple[Part, Ticket, int]], result: PassResult
    ) -> list[tuple[list[int], list[Chosen]]]:
        """The token behind the known ones of each, from its head lane, and one more for each guess that it confirms; and what is told of them."""
        given = result.logits is not None
        finite = all(map(math.isfinite, result.best_value))
        samplers: list[Sampler] = []
        firsts: list[int] = []
        counts: list[int] = []
        for part, ticket, lane in choosing:
            drafted, choice = part.drafted, ticket.choice
            if not (finite and ticket.new):
                for depth in range(drafted + 1):
                    _check(result, lane + depth, len(part.conversation.tokens) + depth, not ticket.new and not depth)
            if given and choice.draws:
                samplers.append(choice.sampler)
                firsts.append(lane)
                counts.append(drafted + 1)
        chosen = list(result.best_index)
        if samplers:
            drawn = iter(draws(result, samplers, firsts, counts))
            for lane, count in zip(firsts, counts, strict=True):
                chosen[lane : lane + count] = islice(drawn, count)
        out = []
        for part, ticket, lane in choosing:
            drafted, choice = part.drafted, ticket.choice
            if given and choice.needs_all:
                new = self._one_by_one(part, ticket, lane, result)
                out.append(([c.token for c in new], new))
                continue
            right = 0
            if drafted:
                guesses, ends = part.draft.tokens, ticket.ends
                while right < drafted and chosen[lane + right] == guesses[right] and guesses[right] not in ends:
                    right += 1
                self._learn(part, ticket, right, chosen[lane + right])
            if given and choice.draws:
                choice.sampler.take(right + 1)
            tokens = chosen[lane : lane + right + 1]
            out.append((tokens, [chosen_of((token, None, None)) for token in tokens]))
        return out

    def _one_by_one(self, part: Part, ticket: Ticket, lane: int, result: PassResult) -> list[Chosen]:
        """What a conversation chooses where each token depends on those before it."""
        new = [ticket.choice(result, lane)]
        guesses = part.draft.tokens[: part.drafted]
        right = 0
        while right < len(guesses) and new[-1].token == guesses[right] and new[-1].token not in ticket.ends:
            right += 1
            new.append(ticket.choice(result, lane + right))
        if guesses:
            self._learn(part, ticket, right, new[-1].token)
        return new

    def _learn(self, part: Part, ticket: Ticket, right: int, last: int) -> None:
        """So many guesses came true, and behind them came `last`; guesses behind the end were not looked at."""
        drafted = part.drafted
        self.drafts.learn(part.draft, drafted, right + (right < drafted and last not in ticket.ends), right)
        ticket.drafted += drafted
        ticket.accepted += right
