"""Guesses of the tokens that come next, from what was said before: no second model.

The longest run of tokens that ends the text and has come before, in it or in another conversation, is followed by what followed it then. The latest
place wins, so that what the model last said after the same tokens is tried first.

What was said, and what became of guesses, counts from the next `Drafts.remember` on: that is most of the work, and can be done while the accelerator runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

LONGEST = 5
"""Tokens of the longest run that is looked for."""
SHORTEST = 2
TOKEN_BITS = 24
"""Of a token in a run; none is 0 there."""
LAST = [(1 << TOKEN_BITS * n) - 1 for n in range(LONGEST + 1)]
"""Masks of the last so many tokens of a run."""
MEMORY = 1 << 16
"""Tokens of ended conversations that are remembered."""
START = (1.0, 2.0)
"""Guesses that came true and guesses made, before any was: half of them."""
FORGET = 0.98
"""What a guess counts for after the next one."""


class Draft(NamedTuple):
    """Guessed tokens, and how likely each is if all before it are right."""

    tokens: tuple[int, ...] = ()
    chance: float = 0.0
    length: int = 0
    """Tokens of the run that was found."""


NO_DRAFT = Draft()


def joined(run: int, token: int) -> int:
    """A run of tokens with another behind it, the last `LONGEST` of both. As an integer: a dictionary of integers is nothing that the garbage collector looks at."""
    return (run << TOKEN_BITS | token + 1) & LAST[LONGEST]


class History:
    """One text.

    Attributes
    ----------
    tokens : what was said.
    ending : the run that ends it.
    runs : every run that is remembered, and where the token behind its latest place is.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ending = 0
        self.runs: dict[int, int] = {}
        self._remembered = 0
        self._before = 0
        """The run before the first token that is not remembered."""

    def say(self, tokens: Sequence[int]) -> None:
        """Appends tokens."""
        self.tokens += tokens
        for token in tokens[-LONGEST:]:
            self.ending = joined(self.ending, token)

    def remember(self) -> None:
        """Runs can be found that a token is behind."""
        runs, tokens, run = self.runs, self.tokens, self._before
        lasts = LAST[SHORTEST:LONGEST]
        for at in range(self._remembered, len(tokens)):
            if at >= SHORTEST:
                runs[run] = at
                for last in lasts:
                    runs[run & last] = at
            run = joined(run, tokens[at])
        self._before, self._remembered = run, len(tokens)


class Drafts:
    """Guesses for any number of conversations, and what became of them.

    Attributes
    ----------
    drafted, accepted : tokens guessed, and how many of them came true.
    """

    def __init__(self) -> None:
        self._open: dict[int, History] = {}
        self._ended: OrderedDict[int, History] = OrderedDict()
        self._said: set[History] = set()
        """Those with something to remember."""
        self._latest: dict[int, int] = {}
        """The ended conversation that said a run last."""
        self._size = 0
        self._right = dict.fromkeys(range(SHORTEST, LONGEST + 1), START[0])
        self._tried = dict.fromkeys(range(SHORTEST, LONGEST + 1), START[1])
        self._learnt: list[tuple[int, int, int]] = []
        """Of drafts: length of the run, tokens that were right, and that were tried."""
        self.drafted = self.accepted = 0

    def extend(self, key: int, tokens: Sequence[int]) -> None:
        """Tells what conversation `key` says next."""
        history = self._open.get(key)
        if history is None:
            history = self._open[key] = History()
        history.say(tokens)
        self._said.add(history)

    def remember(self) -> None:
        """What was said can be found, and what became of guesses counts."""
        while self._said:
            self._said.pop().remember()
        for n, right, tried in self._learnt:
            for good in [True] * right + [False] * (right < tried):
                self._right[n] = self._right[n] * FORGET + good
                self._tried[n] = self._tried[n] * FORGET + 1
        self._learnt.clear()

    def end(self, key: int) -> None:
        """Conversation `key` has ended; it is remembered until newer ones need the room."""
        history = self._open.pop(key, None)
        if history is None:
            return
        history.remember()
        self._ended[key] = history
        self._size += len(history.tokens)
        self._latest.update(dict.fromkeys(history.runs, key))
        while self._size > MEMORY:
            gone, oldest = self._ended.popitem(last=False)
            self._size -= len(oldest.tokens)
            for run in oldest.runs:
                if self._latest.get(run) == gone:
                    del self._latest[run]

    def chance(self, length: int) -> float:
        """How often the next token behind a run of so many tokens was right, lately."""
        return self._right[length] / self._tried[length]

    def guess(self, key: int, most: int) -> Draft:
        """The next tokens of conversation `key`, at most `most`."""
        own = self._open.get(key)
        if own is None or most < 1:
            return NO_DRAFT
        find, latest, ending = own.runs.get, self._latest, own.ending
        shortest = ending & LAST[SHORTEST]
        if find(shortest) is None and shortest not in latest:
            return NO_DRAFT  # nor has a longer one come before
        for n in range(min(len(own.tokens), LONGEST), SHORTEST - 1, -1):
            run = ending & LAST[n]
            at = find(run)
            where = own
            if at is None and (key_of := latest.get(run)) is not None:
                where = self._ended[key_of]
                at = where.runs.get(run)
            if at is not None:
                found = where.tokens[at : at + most]
                if where is own and len(found) < most:
                    # The text repeats itself: what follows its end is what followed the run.
                    period = len(own.tokens) - at
                    found = [own.tokens[at + i % period] for i in range(most)]
                return Draft(tuple(found), self.chance(n), n)
        return NO_DRAFT

    def learn(self, draft: Draft, sent: int, tried: int, right: int) -> None:
        """Of the `sent` tokens of a draft the first `right` came true, and `tried` were looked at: those behind the first wrong one say nothing."""
        self.drafted += sent
        self.accepted += right
        self._learnt.append((draft.length, right, tried))
