"""Guesses of the tokens that come next, from what was said before: no second model.

The longest run of tokens that ends the text and has come before, in it or in another conversation, is followed by what followed it then. The latest
place wins, so that what the model last said after the same tokens is tried first.

What was said, and what became of guesses, counts from the next `Drafts.remember` on: that is most of the work, and can be done while the accelerator runs.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

LONGEST = 5
"""Tokens of the longest run that is looked for."""
SHORTEST = 2
TOKEN = array("i").itemsize
"""Bytes."""
LAST = [slice(-TOKEN * n, None) for n in range(LONGEST + 1)]
"""The last so many tokens of a run."""
LOOKED_FOR = [[(n, LAST[n]) for n in range(most, SHORTEST - 1, -1)] for most in range(LONGEST + 1)]
"""Lengths of runs of a text with so many tokens, the longest first, and the tokens."""
MEMORY = 1 << 16
"""Tokens of ended conversations that are remembered."""
STEP = 512
"""Tokens that are remembered while a pass runs, at most, and a quarter of the runs of ended conversations: a third of a pass of 0.73B on a Cortex-A53 (estimated)."""
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
draft_of = partial(tuple.__new__, Draft)
"""A draft from its fields, in fewer steps than the class's own way takes."""


class History:
    """One text. A run of tokens is their bytes: a dictionary of bytes is nothing that the garbage collector looks at.

    Attributes
    ----------
    tokens : what was said.
    runs : every run that is remembered, and where the token behind its latest place is.
    """

    def __init__(self) -> None:
        self.tokens = array("i")
        self.runs: dict[bytes, int] = {}
        self._remembered = 0

    def remember(self, most: int) -> int:
        """Runs can be found that a token is behind, of at most so many tokens more; how many."""
        runs, begin = self.runs, self._remembered
        end = min(len(self.tokens), begin + most)
        first = max(0, begin - LONGEST)
        said = self.tokens[first:end].tobytes()
        for at in range(max(begin, SHORTEST), end):
            run = said[max(0, at - first - LONGEST) * TOKEN : (at - first) * TOKEN]
            runs[run] = at
            for last in LAST[SHORTEST:LONGEST]:
                runs[run[last]] = at
        self._remembered = end
        return end - begin


class Drafts:
    """Guesses for any number of conversations, and what became of them.

    Attributes
    ----------
    drafted, accepted : tokens guessed, and how many of them came true.
    """

    def __init__(self) -> None:
        self._open: dict[int, History] = {}
        self._ending: deque[tuple[int, History]] = deque()
        """Those that have ended, and are not found yet."""
        self._finding: Iterator[bool] | None = None
        """Puts one of them where it is found."""
        self._ended: OrderedDict[int, History] = OrderedDict()
        self._latest: dict[bytes, int] = {}
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
        history.tokens.extend(tokens)

    def remember(self) -> None:
        """What was said can be found, `STEP` tokens at most, and so much of a conversation that has ended; and what became of guesses counts."""
        left = STEP
        for history in [*self._open.values(), *[history for _, history in self._ending]]:
            left -= history.remember(left)
        if self._ending and left and self._finding is None:
            self._finding = self._find(*self._ending.popleft())
        if self._finding is not None and next(self._finding, True):
            self._finding = None
        for n, right, tried in self._learnt:
            for good in [True] * right + [False] * (right < tried):
                self._right[n] = self._right[n] * FORGET + good
                self._tried[n] = self._tried[n] * FORGET + 1
        self._learnt.clear()

    def _find(self, key: int, history: History) -> Iterator[bool]:
        """A conversation that has ended is found by others, until newer ones need the room. In steps of `4 * STEP` runs."""
        self._ended[key] = history
        self._size += len(history.tokens)
        runs = iter(history.runs)
        while some := list(islice(runs, 4 * STEP)):
            self._latest.update(dict.fromkeys(some, key))
            yield False
        while self._size > MEMORY:
            gone, oldest = self._ended.popitem(last=False)
            self._size -= len(oldest.tokens)
            runs = iter(oldest.runs)
            while some := list(islice(runs, 4 * STEP)):
                for run in some:
                    if self._latest.get(run) == gone:
                        del self._latest[run]
                yield False

    def end(self, key: int) -> None:
        """Conversation `key` has ended; it is remembered for others."""
        history = self._open.pop(key, None)
        if history is not None:
            self._ending.append((key, history))

    def chance(self, length: int) -> float:
        """How often the next token behind a run of so many tokens was right, lately."""
        return self._right[length] / self._tried[length]

    def guess(self, key: int, most: int) -> Draft:
        """The next tokens of conversation `key`, at most `most`."""
        own = self._open.get(key)
        if own is None or most < 1:
            return NO_DRAFT
        runs, latest, tokens = own.runs, self._latest, own.tokens
        ending = tokens[-LONGEST:].tobytes()
        for n, last in LOOKED_FOR[len(ending) // TOKEN]:
            run = ending[last]
            at, where = runs.get(run), own
            if at is None and run in latest:
                where = self._ended.get(latest[run], own)  # it may be leaving
                at = where.runs.get(run)
            if at is None:
                continue
            found = where.tokens[at : at + most]
            if len(found) < most and where is own:
                # The text repeats itself: what follows its end is what followed the run.
                period = len(tokens) - at
                found = array("i", [tokens[at + i % period] for i in range(most)])
            return draft_of((tuple(found), self._right[n] / self._tried[n], n))
        return NO_DRAFT

    def learn(self, draft: Draft, sent: int, tried: int, right: int) -> None:
        """Of the `sent` tokens of a draft the first `right` came true, and `tried` were looked at: those behind the first wrong one say nothing."""
        self.drafted += sent
        self.accepted += right
        self._learnt.append((draft.length, right, tried))
