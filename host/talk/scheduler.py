"""Which tokens go through the model in the next pass: decisions alone, no model and no clock.

A conversation waits for a slot, then its prompt goes through in chunks, then it is decoded. A pass gets

1. a lane of every decoding conversation; where they are more than lanes, those that were left out longest;
2. in the lanes that are left, chunks of waiting prompts, the one that was served longest ago first; one lane at least is theirs. Between two passes with decoding conversations
   there is one of prompts alone, which is a cheap one as it needs no head, as often as the time between the tokens of those who decode rises on average to `RISE` times what it is
   without prompts. A prompt whose rest fits one pass goes at once, and the time is made up for behind it;
3. in the lanes that are still left, guesses of the decoding conversations' next tokens, as long as they pay.

So a decoding conversation waits for no prompt longer than a pass, and a prompt for no other prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import EIGHT, CacheFormat
from tellme.host.errors import UserError
from tellme.host.machine.passes import Pass, always_fit, fits_scores
from tellme.host.talk.drafts import NO_DRAFT, Draft

Cost = Callable[[Sequence[int], Sequence[int], int, Sequence[int]], Sequence[float]]
"""What passes cost: of each conversation in one the first position and how many lanes, and the head lanes of all; then with one more lane, with a head, of the
conversation at each of these places in turn."""
WAITED = attrgetter("served", "key")
"""Of conversations: who was left out longest is first."""
PROBE = 32
"""Passes without a guess after which a conversation may guess one token again, though it has not paid."""
RISE = 1.5
"""What the time between two tokens of a decoding conversation may rise to on average while prompts go through."""


def singly(cost: Callable[[Sequence[int], Sequence[int], int], float]) -> Cost:
    """`Cost` from what one pass costs."""

    def costs(firsts: Sequence[int], lanes: Sequence[int], heads: int, more: Sequence[int]) -> list[float]:
        out, of = [cost(firsts, lanes, heads)], list(lanes)
        for n, i in enumerate(more, heads + 1):
            of[i] += 1
            out.append(cost(firsts, of, n))
        return out

    return costs


class Refused(UserError):
    """The queue is full: the request may come again."""


@dataclass(eq=False)
class Conversation:
    """One request.

    Attributes
    ----------
    key : its number, in the order of arrival.
    tokens : of the prompt, then those made.
    prompt : how many the prompt has.
    limit : tokens that it may have in the end.
    slot : cache slot, None while it waits.
    computed : first tokens whose keys and values the slot holds.
    cached : how many of the prompt were there already.
    served : last pass that it had a lane in.
    """

    key: int
    tokens: list[int]
    prompt: int
    limit: int
    slot: int | None = None
    computed: int = 0
    cached: int = 0
    served: int = 0
    guessed: int = 0

    @property
    def decoding(self) -> bool:
        """Whether its prompt has been through."""
        return len(self.tokens) > self.prompt


@dataclass(eq=False, slots=True)
class Part:
    """Neighbouring lanes of one conversation: `count` tokens that are known, then those of a draft."""

    conversation: Conversation
    first: int
    count: int
    chooses: bool
    """The last known lane's logits give a new token."""
    draft: Draft = NO_DRAFT
    drafted: int = 0

    @property
    def lanes(self) -> int:
        return self.count + self.drafted


@dataclass(eq=False, slots=True)
class Planned:
    """A pass, and whose lanes they are."""

    given: Pass
    parts: tuple[Part, ...]

    @property
    def lanes(self) -> tuple[list[int], list[int], int]:
        """What it is for `Cost`."""
        at = self.given.positions
        return [at[p.first] for p in self.parts], [p.lanes for p in self.parts], self.given.head[1]


@dataclass
class Slot:
    """A cache slot: the tokens whose keys and values it holds, who has it, and when it was last used."""

    tokens: list[int] = field(default_factory=list)
    holder: Conversation | None = None
    used: int = 0


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


class Scheduler:
    """Fills passes.

    Parameters
    ----------
    config : lanes and score memory.
    group : query heads of a KV head.
    context : positions of a slot. slots : how many there are.
    queue : most conversations that may wait for a slot.
    cost : what a pass costs; guesses and passes of prompts alone are weighed with it.
    rise : see `RISE`.
    kv : elements of the cache.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        group: int,
        context: int,
        slots: int,
        *,
        queue: int = 64,
        cost: Cost | None = None,
        rise: float = RISE,
        kv: CacheFormat = EIGHT,
    ):
        self.config, self.group, self.context, self.queue, self.kv = config, group, context, queue, kv
        self.slots = [Slot() for _ in range(slots)]
        self.waiting: deque[Conversation] = deque()
        self.active: list[Conversation] = []
        self.cost: Cost = cost or singly(lambda firsts, lanes, heads: 1.0 + 0.01 * sum(lanes))
        self.passes = 0
        self._arrived = 0
        self.rise = rise
        self._roomy = always_fit(config, group, context, kv)
        self._alone = False
        self._spare = 0.0
        """Of `cost`: what passes of prompts alone may still take of those who decode; below 0: what they have had too much."""

    def only(self, slot: int, tokens: Sequence[int] = ()) -> None:
        """Uses one slot alone, which holds the keys of these tokens."""
        if not 0 <= slot < len(self.slots):
            raise UserError(f"cache slot {slot} does not exist; there are {len(self.slots)}")
        nobody = Conversation(0, [], 0, 0)
        for i, s in enumerate(self.slots):
            s.holder = None if i == slot else nobody
        self.slots[slot].tokens = list(tokens)

    def held(self, tokens: Sequence[int]) -> int:
        """First tokens of a prompt that some slot holds; the last token always goes through the model."""
        return max(common(tokens[:-1], s.tokens) for s in self.slots)

    # ---- arrival and departure ---------------------------------------------------------------------------------------

    def submit(self, tokens: Sequence[int], max_new_tokens: int) -> Conversation:
        """A new request; it waits until it is admitted.

        Raises
        ------
        UserError : it can never be served; Refused : not now.
        """
        if max_new_tokens < 1:
            raise UserError(f"max-new-tokens must be at least 1, not {max_new_tokens}")
        if not tokens:
            raise UserError("there is nothing to prefill: the prompt has no tokens")
        if len(tokens) > self.context:
            raise UserError(
                f"the prompt has {len(tokens)} tokens, the context holds {self.context}; shorten the prompt"
            )
        free = sum(s.holder is None for s in self.slots) - len(self.waiting)
        if free <= 0 and len(self.waiting) >= self.queue:
            raise Refused(
                f"all {len(self.slots)} cache slots are in use and {len(self.waiting)} requests wait already; try again later"
            )
        self._arrived += 1
        # The last token is chosen, but needs no place in the cache.
        limit = min(len(tokens) + max_new_tokens, self.context + 1)
        conversation = Conversation(self._arrived, list(tokens), len(tokens), limit)
        self.waiting.append(conversation)
        return conversation

    def end(self, conversation: Conversation) -> None:
        """Takes a conversation out, whatever it does; its slot remembers what it holds."""
        if conversation in self.waiting:
            self.waiting.remove(conversation)
        if conversation in self.active:
            self.active.remove(conversation)
            assert conversation.slot is not None
            self.slots[conversation.slot].holder = None

    def admit(self) -> Iterator[tuple[Conversation, int | None]]:
        """Gives free slots to those who wait, in the order of arrival: the slot that holds most of their prompt, or else the one unused for longest.

        Yields
        ------
        who was admitted, and the slot that holds so many more of the prompt's keys than the one given that they should be copied
        (`copied` must be told), or None. Copy before the next is asked for, who may be given that slot.
        """
        while self.waiting:
            free = [i for i, s in enumerate(self.slots) if s.holder is None]
            if not free:
                break
            conversation = self.waiting.popleft()
            prompt = conversation.tokens[:-1]  # at least one token goes through
            shared = [common(prompt, s.tokens) for s in self.slots]
            best = max(free, key=lambda i: (shared[i], -self.slots[i].used, -i))
            # What another prompt may still want stays: one that shares little takes the slot unused for longest.
            if 2 * shared[best] < len(self.slots[best].tokens):
                best = min(free, key=lambda i: (len(self.slots[i].tokens) > 0, self.slots[i].used, i))
            slot = self.slots[best]
            conversation.slot, slot.holder = best, conversation
            conversation.served = self.passes
            self._rebind(conversation, shared[best])
            self.active.append(conversation)
            source = max(range(len(shared)), key=lambda i: (shared[i], -i))
            # A copy has to save a pass at least.
            yield conversation, source if shared[source] - shared[best] >= self.config.lanes else None

    def copied(self, conversation: Conversation, held: int) -> None:
        """The slot holds the first `held` tokens of the prompt now."""
        self._rebind(conversation, held)

    def _rebind(self, conversation: Conversation, held: int) -> None:
        assert conversation.slot is not None
        slot = self.slots[conversation.slot]
        slot.tokens = conversation.tokens[:held]
        slot.used = self.passes
        conversation.computed = conversation.cached = held

    # ---- passes ------------------------------------------------------------------------------------------------------

    def plan(
        self, guess: Callable[[Conversation, int], Draft] | None = None, *, logits: bool = False
    ) -> Planned | None:
        """The next pass; None if nobody is active.

        Parameters
        ----------
        guess : next tokens of a decoding conversation, at most so many.
        logits : the pass returns every logit.
        """
        if not self.active:
            return None
        lanes = self.config.lanes
        order = sorted(self.active, key=WAITED)
        decoding: list[Conversation] = []
        prompts: list[Conversation] = []
        for c in order:
            (decoding if len(c.tokens) > c.prompt else prompts).append(c)
        self._alone = self._prompts_alone(prompts, decoding[:lanes])
        if self._alone:
            decoding = []
        reserved = 1 if prompts else 0
        if decoding and lanes == 1:
            reserved = 1 if prompts and prompts[0].served <= decoding[0].served else 0
        decoding = decoding[: lanes - reserved]
        counts = self._chunks(prompts, lanes - len(decoding))
        left = lanes - len(decoding) - sum(counts.values())
        # Chunks that need no head first, so that the lanes that do are neighbours.
        inner = [c for c in counts if c.computed + counts[c] < len(c.tokens)]
        last = [c for c in counts if c.computed + counts[c] == len(c.tokens)]
        parts = [Part(c, 0, counts[c], False) for c in inner]
        parts += [Part(c, 0, counts[c], True) for c in last]
        parts += [Part(c, 0, 1, True) for c in decoding]
        if guess and left and decoding:
            self._add_drafts(parts, len(decoding), len(last) + len(decoding), left, guess)
        return self._arrange(parts, logits)

    @staticmethod
    def _chunks(prompts: Sequence[Conversation], lanes: int) -> dict[Conversation, int]:
        """Tokens of each prompt that go into so many lanes."""
        counts: dict[Conversation, int] = {}
        for c in prompts:
            n = min(lanes, len(c.tokens) - c.computed)
            if n:
                counts[c] = n
                lanes -= n
        return counts

    def _cost_of(self, counts: Mapping[Conversation, int]) -> float:
        """Of a pass with so many lanes of each."""
        heads = sum([c.computed + n == len(c.tokens) for c, n in counts.items()])
        return self.cost([c.computed for c in counts], list(counts.values()), heads, ())[0]

    def _prompts_alone(self, prompts: Sequence[Conversation], decoding: Sequence[Conversation]) -> bool:
        """Whether those who decode are left out of the next pass, and what that leaves for the ones behind it."""
        if not decoding:
            return False
        if not prompts and self._spare >= 0.0:
            self._spare = 0.0  # what was not used is not kept for the next prompt
            return False
        lanes = self.config.lanes
        waiting = sum(len(c.tokens) - c.computed for c in prompts)
        room = max(1, lanes - len(decoding))
        usual = self._cost_of(dict.fromkeys(decoding, 1))
        if not prompts:  # what was too much is made up for
            self._spare = min(0.0, self._spare + (self.rise - 1.0) * usual)
            return False
        mixed = {**self._chunks(prompts, room), **dict.fromkeys(decoding[: lanes - min(1, waiting)], 1)}
        gain = self.rise * usual - self._cost_of(mixed)
        if waiting > room and not self._alone:
            price = self._cost_of(self._chunks(prompts, lanes))
            # A pass with those who decode follows, so that what it leaves counts.
            if self._spare + gain >= (0.0 if waiting <= lanes else price):
                self._spare -= price
                return True
        self._spare = min(self._spare + gain, 2.0 * usual)
        return False

    def _add_drafts(
        self,
        parts: list[Part],
        decoding: int,
        heads: int,
        left: int,
        guess: Callable[[Conversation, int], Draft],
    ) -> None:
        """How many guesses go along: one more is taken as long as tokens a cycle rise. The last so many parts decode, the last so many have a head."""
        first = len(parts) - decoding
        own = parts[first:]
        # Of those with guesses: place, how many guesses, how likely each is, and what the next one may give. The most is taken first.
        places: list[int] = []
        most: list[int] = []
        chances: list[float] = []
        for place, part in enumerate(own, first):
            c = part.conversation
            part.draft = tokens, chance, _ = guess(c, min(left, c.limit - len(c.tokens) - 1))
            if tokens:
                places.append(place)
                most.append(len(tokens))
                chances.append(chance)
        if not places:
            return
        gives = chances.copy()
        whose: list[int] = []
        gained: list[float] = []
        for _ in range(left):
            if not (gain := max(gives)):
                break
            i = gives.index(gain)
            whose.append(places[i])
            gained.append(gain)
            most[i] -= 1
            gives[i] = gain * chances[i] if most[i] else 0.0
        costs = self.cost([p.conversation.computed for p in parts], [p.count for p in parts], heads, whose)
        expected = float(decoding)
        best, best_rate = 0, expected / costs[0]
        # Over a step (another sweep of the head) several may pay where one does not.
        for n, (gain, cost) in enumerate(zip(gained, costs[1:], strict=False), 1):
            expected += gain
            if (rate := expected / cost) > best_rate:
                best, best_rate = n, rate
        for place in whose[:best]:
            part = parts[place]
            part.drafted += 1
            part.conversation.guessed = self.passes
        if best:
            return
        for part in own:
            if part.draft.tokens and self.passes - part.conversation.guessed >= PROBE:
                part.conversation.guessed = self.passes
                part.drafted = 1
                return

    def _arrange(self, parts: list[Part], logits: bool) -> Planned:
        """Lanes in this order, fewer where the score memory is full."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        begin = end = 0
        for part in parts:
            c, count, drafted = part.conversation, part.count, part.drafted
            first, computed, slot = len(tokens), c.computed, c.slot
            assert slot is not None
            if computed > self._roomy:
                while count + drafted > 1 and not fits_scores(
                    self.config, self.group, computed, count + drafted, first, self.kv
                ):
                    drafted, count = (drafted - 1, count) if drafted else (0, count - 1)
                if count < part.count:
                    part.chooses = False
                part.count, part.drafted = count, drafted
            part.first, lanes = first, count + drafted
            if part.chooses:
                begin, end = begin if end else first + count - 1, first + lanes
            if lanes == 1:  # mostly, and this is quicker
                tokens.append(c.tokens[computed])
                positions.append(computed)
                slots.append(slot)
                continue
            tokens += c.tokens[computed : computed + count]
            tokens += part.draft.tokens[:drafted]
            positions += range(computed, computed + lanes)
            slots += [slot] * lanes
        head = begin, end - begin
        given = Pass(tuple(tokens), tuple(positions), tuple(slots), head, logits and end > 0)
        return Planned(given, tuple(parts))

    def complete(self, planned: Planned, chosen: Mapping[Conversation, Sequence[int]]) -> None:
        """What a pass gave: the new tokens of each conversation that chose some. The first is behind its known tokens, each
        other one behind a draft that it confirmed."""
        self.passes += 1
        for part in planned.parts:
            c = part.conversation
            new = chosen.get(c, ())
            c.served = self.passes
            c.computed += part.count + (len(new) - 1 if new else 0)
            c.tokens += new
            assert c.slot is not None
            slot = self.slots[c.slot]
            slot.tokens += c.tokens[len(slot.tokens) : c.computed]
            slot.used = self.passes
