"""Texts that are known go through scheduler and guesses as if a model wrote them: which passes there would be, without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import EIGHT, CacheFormat
from tellme.host.talk.drafts import Draft, Drafts
from tellme.host.talk.scheduler import Conversation, Cost, Planned, Scheduler


@dataclass
class Replay:
    """Passes in which every conversation decodes.

    Attributes
    ----------
    passes : how many of each, by the lanes of the conversations, most first.
    tokens : made by them. drafted, accepted : of the guesses in them.
    """

    passes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / self.passes.total()


def answered(planned: Planned, answers: dict[Conversation, Sequence[int]]) -> dict[Conversation, list[int]]:
    """The tokens that each conversation chooses in a pass whose answers are known."""
    chosen: dict[Conversation, list[int]] = {}
    for part in planned.parts:
        c = part.conversation
        if not part.chooses:
            continue
        coming = answers[c][len(c.tokens) - c.prompt :]
        right = 0
        for guessed, true in zip(part.draft.tokens[: part.drafted], coming, strict=False):
            if guessed != true:
                break
            right += 1
        chosen[c] = list(coming[: right + 1])
    return chosen


def replay(
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    config: AcceleratorConfig,
    group: int,
    cost: Cost,
    *,
    speculate: bool = True,
    kv: CacheFormat = EIGHT,
) -> Replay:
    """Conversations side by side, until the first has said its answer.

    Parameters
    ----------
    texts : tokens of prompt and answer of each conversation; no more than lanes.
    group : query heads of a KV head.
    cost : what a pass costs.
    kv : elements of the cache.
    """
    context = max(len(prompt) + len(answer) for prompt, answer in texts)
    scheduler = Scheduler(config, group, context, len(texts), cost=cost, kv=kv)
    drafts = Drafts()
    answers: dict[Conversation, Sequence[int]] = {}
    for prompt, answer in texts:
        c = scheduler.submit(prompt, len(answer))
        answers[c] = answer
        drafts.extend(c.key, prompt)
    list(scheduler.admit())
    out = Replay()

    def guess(c: Conversation, most: int) -> Draft:
        return drafts.guess(c.key, most) if speculate else Draft()

    while True:
        planned = scheduler.plan(guess)
        assert planned is not None
        decoding = all(c.decoding for c in answers)
        chosen = answered(planned, answers)
        for part in planned.parts:
            new = chosen.get(part.conversation)
            if new is not None and part.drafted:
                right = len(new) - 1
                drafts.learn(part.draft, part.drafted, min(right + 1, part.drafted), right)
                if decoding:
                    out.drafted += part.drafted
                    out.accepted += right
        scheduler.complete(planned, chosen)
        drafts.remember()
        for c, new in chosen.items():
            drafts.extend(c.key, new)
        if decoding:
            out.passes[tuple(sorted((p.lanes for p in planned.parts), reverse=True))] += 1
            out.tokens += sum(map(len, chosen.values()))
        if any(len(c.tokens) == c.limit for c in answers):
            return out
