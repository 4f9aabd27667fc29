"""Generation: a prompt goes in, pieces of text come out as they are made."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from tellme.host.errors import UserError
from tellme.host.machine.passes import Backend
from tellme.host.talk.engine import Chosen, Engine, Ran
from tellme.host.text.sampling import Sampling
from tellme.host.text.streams import checked
from tellme.host.text.tokenizer import Detokenizer, Tokenizer


@dataclass(kw_only=True)
class Report:
    """What a generation did; filled while it runs.

    Parameters
    ----------
    prompt_ids, new_ids : tokens in, tokens out (the end token too, if it came).
    text : of the new tokens, special tokens left out, cut before a stop string.
    prefill, decode : every pass, in order.
    stop : why it ended: 'length', 'end' (end token), 'stop' (stop string), 'context' (cache full).
    cached : tokens of the prompt that were not computed again.
    drafted, accepted : tokens that were guessed, and how many of the guesses came true.
    chosen : the new tokens, with the logarithm of the probability of each if that was asked for.
    seconds : wall clock of the whole.
    seconds_prefill : until the first new token was known.
    """

    prompt_ids: list[int]
    new_ids: list[int] = field(default_factory=list)
    text: str = ""
    prefill: list[Ran] = field(default_factory=list)
    decode: list[Ran] = field(default_factory=list)
    stop: str = ""
    seconds: float = 0.0
    seconds_prefill: float = 0.0
    cached: int = 0
    drafted: int = 0
    accepted: int = 0
    chosen: list[Chosen] = field(default_factory=list)

    @property
    def decoded(self) -> int:
        """New tokens that decode passes made: all but the first."""
        return max(0, len(self.new_ids) - 1)

    @property
    def tokens_per_pass(self) -> float | None:
        """Of decoding; 1 without speculation."""
        return self.decoded / len(self.decode) if self.decode else None

    @property
    def cycles_prefill(self) -> int | None:
        """Cycles of all prefill passes; None where nothing counts them."""
        cycles = [r.cycles for r in self.prefill]
        return None if not cycles or None in cycles else sum(c for c in cycles if c is not None)

    @property
    def cycles_decode(self) -> list[int]:
        """Cycles of each decode pass; empty where nothing counts them."""
        return [r.cycles for r in self.decode if r.cycles is not None]

    @property
    def stalls(self) -> dict[str, int]:
        """Cycles without a beat by cause, all passes together."""
        total: dict[str, int] = {}
        for r in [*self.prefill, *self.decode]:
            for cause, cycles in r.stalls.items():
                total[cause] = total.get(cause, 0) + cycles
        return total


class StopStrings:
    """Passes text on, but keeps back what may yet become a stop string. Special tokens are not part of the text, but may be of a stop string:
    they are pushed as hidden."""

    def __init__(self, stops: Sequence[str]):
        if "" in stops:
            raise UserError("a stop string must not be empty")
        self._stops = tuple(checked(stop, "a stop string") for stop in stops)
        self._held = ""
        self._shown: list[bool] = []  # of each held character
        self.found = False

    def _take(self, n: int) -> str:
        """Lets go of the first `n` characters: those of the text."""
        out = "".join(c for c, shown in zip(self._held[:n], self._shown[:n], strict=True) if shown)
        self._held, self._shown = self._held[n:], self._shown[n:]
        return out

    def push(self, text: str, *, hidden: bool = False) -> str:
        """Text that is certain to be outside a stop string; sets `found` when one came."""
        self._held += text
        self._shown += [not hidden] * len(text)
        hits = [i for i in (self._held.find(s) for s in self._stops) if i >= 0]
        if hits:
            self.found = True
            out = self._take(min(hits))
            self._held, self._shown = "", []
            return out
        keep = max(
            (n for s in self._stops for n in range(1, min(len(s), len(self._held) + 1)) if self._held.endswith(s[:n])),
            default=0,
        )
        return self._take(len(self._held) - keep)

    def finish(self) -> str:
        """What was kept back when no text will follow."""
        return self._take(len(self._held))


class Numbers:
    """Instead of a tokenizer where ids are wanted: a token's text is its number, with a space between two. Nothing is special."""

    end_ids: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self._first = True

    def push(self, token: int) -> str:
        """The text of `token`."""
        text, self._first = str(token) if self._first else f" {token}", False
        return text

    def finish(self) -> str:
        """Nothing is ever left."""
        return ""

    def name(self, token: int) -> str:
        """No token has a name."""
        return ""

    def hidden_text(self, token: int) -> str:
        """No token is hidden."""
        return ""


class TextStream:
    """Turns the tokens of one answer into text, up to an end token or a stop string.

    Parameters
    ----------
    tokenizer : of the model; None: the text is the tokens' numbers.
    prompt_ids : tokens before the answer.
    eos_ids : tokens that end the text, beside the tokenizer's `end_ids`.
    stops : strings that end it; they are not part of the text. They may name special tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt_ids: Sequence[int],
        eos_ids: Collection[int] = (),
        stops: Sequence[str] = (),
    ):
        numbers = Numbers()
        self._tokenizer: Tokenizer | Numbers = numbers if tokenizer is None else tokenizer
        self._detokenizer = numbers if tokenizer is None else Detokenizer(tokenizer, prompt_ids)
        self.ends = frozenset(eos_ids) | self._tokenizer.end_ids
        self._stops = StopStrings(stops)

    @property
    def found(self) -> bool:
        """Whether a stop string came."""
        return self._stops.found

    def push(self, token: int) -> str:
        """Text that is certain after `token`."""
        if token in self.ends:
            text, hidden = self._detokenizer.finish(), self._tokenizer.name(token)
        else:
            text, hidden = self._detokenizer.push(token), self._tokenizer.hidden_text(token)
        out = self._stops.push(text)
        if not self.found and hidden:
            out += self._stops.push(hidden, hidden=True)
        return out

    def finish(self) -> str:
        """What was kept back when no token will follow."""
        if self.found:
            return ""
        out = self._stops.push(self._detokenizer.finish())
        return out + self._stops.finish()


class Generation:
    """One sequence: iterate to get its text piece by piece; `report` holds the rest.

    Parameters
    ----------
    backend : what runs the passes; or an engine, whose slots may hold some of the prompt already. No other conversation may be in it.
    tokenizer : of the model; None: the text is the new tokens' numbers.
    prompt_ids : tokens of the prompt, `tokenizer.encode(text)`.
    max_new_tokens : most tokens to make, at least 1.
    sampling : how they are chosen. Greedy takes the back end's arg-max and fetches no logits.
    eos_ids : tokens that end the text, beside the tokenizer's `end_ids`.
    stops : strings that end it; they are not part of the text. They may name special tokens.
    all_logits : compute the head for every token of the prompt too (checking does).
    slot : cache slot to use, of a back end.
    cached : first tokens of the prompt whose keys and values the slot already holds; fewer than the prompt has.
    speculate : guess tokens and check several in a pass, where it pays; the text is the same.
    logprobs : keep the logarithms of the probabilities of every new token.
    """

    def __init__(
        self,
        backend: Backend | Engine,
        tokenizer: Tokenizer | None,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        eos_ids: Collection[int] = (),
        stops: Sequence[str] = (),
        all_logits: bool = False,
        slot: int = 0,
        cached: int = 0,
        speculate: bool = False,
        logprobs: bool = False,
    ):
        if isinstance(backend, Engine):
            engine = backend
        else:
            engine = Engine(backend, whole_prompts=True, all_logits=all_logits)
            engine.scheduler.only(slot, prompt_ids[:cached])
        if max_new_tokens < 1:
            raise UserError(f"max-new-tokens must be at least 1, not {max_new_tokens}")
        context = engine.backend.context
        if len(prompt_ids) > context:
            raise UserError(f"the prompt has {len(prompt_ids)} tokens, the context holds {context}; shorten the prompt")
        self.report = Report(prompt_ids=list(prompt_ids), cached=engine.scheduler.held(prompt_ids))
        self._engine = engine
        self._max = max_new_tokens
        self._sampling = sampling
        self._text = TextStream(tokenizer, prompt_ids, eos_ids, stops)
        self._speculate, self._logprobs = speculate, logprobs

    def __iter__(self) -> Iterator[str]:
        self._begun = begun = time.monotonic()
        try:
            for piece in self._pieces():
                if piece:
                    self.report.text += piece
                    yield piece
        finally:
            self.report.seconds = time.monotonic() - begun

    def _pieces(self) -> Iterator[str]:
        report, text = self.report, self._text
        ticket = self._engine.submit(
            report.prompt_ids,
            max_new_tokens=self._max,
            sampling=self._sampling,
            end_ids=text.ends,
            speculate=self._speculate,
            logprobs=self._logprobs,
        )
        report.prefill, report.decode = ticket.prefill, ticket.decode
        try:
            while not ticket.ended:
                for _, new in self._engine.step():
                    if not report.new_ids:
                        report.seconds_prefill = time.monotonic() - self._begun
                        report.cached = ticket.conversation.cached
                    report.drafted, report.accepted = ticket.drafted, ticket.accepted
                    for chosen in new:
                        report.new_ids.append(chosen.token)
                        report.chosen.append(chosen._replace(logprobs=None))
                        yield text.push(chosen.token)
                        if text.found:
                            report.stop = "stop"
                            return
            report.stop = ticket.stop
            yield text.finish()
            if text.found:
                report.stop = "stop"
        finally:
            self._engine.cancel(ticket)
