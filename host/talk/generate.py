"""Generation: a prompt goes in, pieces of text come out as they are made."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from tellme.host.errors import UserError
from tellme.host.machine.passes import Backend, PassResult
from tellme.host.text.sampling import Sampler, Sampling
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
    seconds : wall clock of the whole.
    seconds_prefill : until the first new token was known.
    """

    prompt_ids: list[int]
    new_ids: list[int] = field(default_factory=list)
    text: str = ""
    prefill: list[PassResult] = field(default_factory=list)
    decode: list[PassResult] = field(default_factory=list)
    stop: str = ""
    seconds: float = 0.0
    seconds_prefill: float = 0.0

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


class Generation:
    """One sequence: iterate to get its text piece by piece; `report` holds the rest.

    Parameters
    ----------
    backend : what runs the passes.
    tokenizer : of the model; None: the text is the new tokens' numbers.
    prompt_ids : tokens of the prompt, `tokenizer.encode(text)`.
    max_new_tokens : most tokens to make, at least 1.
    sampling : how they are chosen. Greedy takes the back end's arg-max and fetches no logits.
    eos_ids : tokens that end the text, beside the tokenizer's `end_ids`.
    stops : strings that end it; they are not part of the text. They may name special tokens.
    all_logits : compute the head for every token of the prompt too (checking does).
    slot : cache slot to use.
    cached : first tokens of the prompt whose keys and values the slot already holds; fewer than the prompt has.
    """

    def __init__(
        self,
        backend: Backend,
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
    ):
        if max_new_tokens < 1:
            raise UserError(f"max-new-tokens must be at least 1, not {max_new_tokens}")
        if len(prompt_ids) > backend.context:
            raise UserError(
                f"the prompt has {len(prompt_ids)} tokens, the context holds {backend.context}; shorten the prompt"
            )
        head, top_k = backend.head, (sampling or Sampling()).top_k
        if head.mode != "full" and top_k > head.candidates:
            raise UserError(
                f"top-k is {top_k}, the screened head gives {head.candidates} candidates; ask for more candidates"
            )
        self.report = Report(prompt_ids=list(prompt_ids))
        self._backend = backend
        self._max = max_new_tokens
        self._sampling = sampling or Sampling()
        self._sampler = Sampler(self._sampling)
        numbers = Numbers()
        self._tokenizer: Tokenizer | Numbers = numbers if tokenizer is None else tokenizer
        self._detokenizer = numbers if tokenizer is None else Detokenizer(tokenizer, prompt_ids)
        self._eos = frozenset(eos_ids) | self._tokenizer.end_ids
        self._stops = StopStrings(stops)
        self._all = all_logits
        self._slot = slot
        self._cached = cached

    def __iter__(self) -> Iterator[str]:
        self._begun = begun = time.monotonic()
        try:
            for piece in self._pieces():
                if piece:
                    self.report.text += piece
                    yield piece
        finally:
            self.report.seconds = time.monotonic() - begun

    def _choose(self, result: PassResult) -> int:
        if self._sampling.greedy or result.logits is None:
            return result.best_index[-1]
        return self._sampler(result.logits[-1], None if result.candidates is None else result.candidates[-1])

    def _pieces(self) -> Iterator[str]:
        report, wanted = self.report, not self._sampling.greedy
        report.prefill = self._backend.prefill(
            report.prompt_ids[self._cached :],
            start=self._cached,
            slot=self._slot,
            all_logits=self._all,
            logits=wanted,
        )
        report.seconds_prefill = time.monotonic() - self._begun
        result = report.prefill[-1]
        position = len(report.prompt_ids)
        while True:
            token = self._choose(result)
            report.new_ids.append(token)
            if token in self._eos:
                report.stop = "end"
                yield self._stops.push(self._detokenizer.finish())
                if not self._stops.found:
                    yield self._stops.push(self._tokenizer.name(token), hidden=True)
                break
            yield self._stops.push(self._detokenizer.push(token))
            if not self._stops.found and (hidden := self._tokenizer.hidden_text(token)):
                yield self._stops.push(hidden, hidden=True)
            if self._stops.found:
                report.stop = "stop"
                return
            if len(report.new_ids) == self._max:
                report.stop = "length"
                break
            if position == self._backend.context:
                report.stop = "context"
                break
            result = self._backend.decode(token, position, slot=self._slot, logits=wanted)
            report.decode.append(result)
            position += 1
        if not self._stops.found:
            yield self._stops.push(self._detokenizer.finish())
        if self._stops.found:
            report.stop = "stop"
        yield self._stops.finish()
