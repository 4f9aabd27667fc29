"""A conversation on one cache slot: what the cache already holds is not computed again."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tellme.host.errors import UserError
from tellme.host.machine.passes import Backend
from tellme.host.places import replacing
from tellme.host.talk.engine import Engine
from tellme.host.talk.generate import Generation, Report
from tellme.host.talk.power import Meter
from tellme.host.text.sampling import Sampling
from tellme.host.text.streams import checked
from tellme.host.text.tokenizer import Tokenizer

Messages = list[dict[str, str]]
KIND, VERSION = "tellme conversation", 1
"""Of saved conversations."""


@dataclass(kw_only=True)
class Totals:
    """Sums over the answers of a session. Tokens, seconds, joules (None where nothing measures them)."""

    answers: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    seconds_prefill: float = 0.0
    seconds_decode: float = 0.0
    decode_tokens: int = 0
    joules: float | None = None

    def add(self, turn: Turn) -> None:
        """Counts an answer in."""
        report = turn.report
        self.answers += 1
        self.prompt_tokens += len(report.prompt_ids)
        self.cached_tokens += turn.cached
        self.new_tokens += len(report.new_ids)
        self.seconds_prefill += report.seconds_prefill
        self.seconds_decode += report.seconds - report.seconds_prefill
        self.decode_tokens += report.decoded
        if turn.joules is not None:
            self.joules = (self.joules or 0.0) + turn.joules


class Turn:
    """An answer: iterate to get its text as it is made; `stop()` from anywhere ends it at the next token.

    Attributes
    ----------
    report : filled while it runs.
    dropped : messages (or tokens, without a template) that were left out because the context is full.
    joules : energy from the start of the prefill to the last token; None if nothing measures it.
    """

    def __init__(self, session: Session, generation: Generation, dropped: int):
        self._session = session
        self._generation = generation
        self.report: Report = generation.report
        self.dropped = dropped
        self.joules: float | None = None
        self._stop = False

    @property
    def cached(self) -> int:
        """Tokens of the prompt that were not computed again."""
        return self.report.cached

    def stop(self) -> None:
        """Ends the answer at the next token. The session goes on."""
        self._stop = True

    def __iter__(self) -> Iterator[str]:
        self._session.meter.start()
        try:
            for piece in self._generation:
                yield piece
                if self._stop:
                    self.report.stop = "interrupted"
                    break
        finally:
            self.joules = self._session.meter.stop()
            self._session._end(self)


class Session:
    """A conversation.

    Parameters
    ----------
    backend : what runs the passes; its cache slots are the session's.
    tokenizer : of the model.
    max_new_tokens : most tokens of an answer.
    sampling : how they are chosen; every answer continues with another seed.
    eos_ids, stops : what ends an answer, beside the tokenizer's `end_ids`.
    system : a system message; needs a chat template.
    speculate : guess tokens and check several in a pass, where it pays; the text is the same.

    With a chat template a message is a user's turn. Without one it is text that the model continues.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        *,
        max_new_tokens: int = 256,
        sampling: Sampling | None = None,
        eos_ids: Collection[int] = (),
        stops: Sequence[str] = (),
        system: str | None = None,
        speculate: bool = False,
    ):
        if max_new_tokens < 1:
            raise UserError(f"max-new-tokens must be at least 1, not {max_new_tokens}")
        if system is not None and not tokenizer.has_chat_template:
            raise UserError(
                "a system message needs a chat template, which this model does not have; leave --system out"
            )
        self.backend, self.tokenizer = backend, tokenizer
        self.engine = Engine(backend, whole_prompts=True)
        self.speculate = speculate
        self.max_new_tokens = max_new_tokens
        self.sampling = sampling or Sampling()
        self.eos_ids, self.stops = frozenset(eos_ids) | tokenizer.end_ids, tuple(stops)
        self.meter = Meter()
        self.totals = Totals()
        self._system: Messages = [] if system is None else [{"role": "system", "content": system}]
        self._messages: Messages = []
        self._ids: list[int] = []  # the text so far, without a template
        self._before: tuple[Messages, list[int]] = ([], [])  # the conversation before the last message
        self._said: str | None = None  # that message

    @property
    def templated(self) -> bool:
        """Whether messages go through a chat template."""
        return self.tokenizer.has_chat_template

    def reset(self) -> None:
        """Starts a new conversation; the system message stays."""
        self._messages, self._ids, self._said = [], [], None

    def retry(self) -> Turn:
        """Answers the last message once more, with another seed.

        Raises
        ------
        UserError : nothing was said yet.
        """
        if self._said is None:
            raise UserError("there is nothing to answer again; say something first")
        self._messages, self._ids = self._before
        return self.ask(self._said)

    def save(self, path: Path) -> None:
        """Writes the conversation to a JSON file.

        Raises
        ------
        UserError : it cannot be written.
        """
        data: dict[str, Any] = {"kind": KIND, "version": VERSION}
        data |= {"messages": [*self._system, *self._messages]} if self.templated else {"ids": self._ids}
        with replacing(path) as whole:
            whole.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")

    def load(self, path: Path) -> int:
        """Goes on with a conversation that `save` wrote.

        Returns
        -------
        int : its messages, or without a template its tokens.

        Raises
        ------
        UserError : it cannot be read, or is none that this model can go on with; the conversation is as before.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror})") from e
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}: is no conversation ({e})") from e
        if not isinstance(data, dict) or data.get("kind") != KIND or data.get("version") != VERSION:
            raise UserError(f"{path}: is no conversation that this tellme reads")
        found = data.get("messages" if self.templated else "ids")
        if not isinstance(found, list):
            raise UserError(f"{path}: is of a model {'without' if self.templated else 'with'} a chat template")
        if self.templated:
            if not all(
                isinstance(m, dict) and all(isinstance(m.get(k), str) for k in ("role", "content")) for m in found
            ):
                raise UserError(f"{path}: has a message without role or content")
            messages = [{k: checked(m[k], path) for k in ("role", "content")} for m in found]
            first = [m for m in messages[:1] if m["role"] == "system"]
            self._system, self._messages = first, messages[len(first) :]
        else:
            if not all(type(t) is int and 0 <= t < self.backend.vocab for t in found):
                raise UserError(f"{path}: has a token outside the vocabulary of {self.backend.vocab}")
            self._ids = found
        self._said = None
        return len(found)

    def ask(self, text: str) -> Turn:
        """Says something; the answer is made while the result is iterated.

        Raises
        ------
        UserError : the message alone does not fit the context; the conversation is as before.
        """
        context = self.backend.context
        before = list(self._messages), list(self._ids)
        # Room for an answer; a quarter of a small context is enough to say something.
        room = context - min(self.max_new_tokens, max(1, context // 4))
        if self.templated:
            ids, dropped = self._render(text, room)
        else:
            ids, dropped = self._append(text, room)
        self._before, self._said = before, text
        generation = Generation(
            self.engine,
            self.tokenizer,
            ids,
            max_new_tokens=self.max_new_tokens,
            sampling=replace(self.sampling, seed=self.sampling.seed + self.totals.answers),
            eos_ids=self.eos_ids,
            stops=self.stops,
            speculate=self.speculate,
        )
        return Turn(self, generation, dropped)

    def _render(self, text: str, room: int) -> tuple[list[int], int]:
        """Tokens of the conversation with `text` said; the oldest exchanges go until it fits."""
        messages = [*self._messages, {"role": "user", "content": text}]
        dropped = 0
        while True:
            ids = self.tokenizer.encode_chat([*self._system, *messages])
            if len(ids) <= room:
                self._messages = messages
                return ids, dropped
            if len(messages) == 1:
                raise self._too_long(len(ids), room)
            messages, dropped = messages[2:], dropped + 2

    def _append(self, text: str, room: int) -> tuple[list[int], int]:
        """Tokens of the text so far and `text`; the oldest tokens go until it fits."""
        new = self.tokenizer.encode_more(text) if self._ids else self.tokenizer.encode(text)
        if len(new) > room:
            raise self._too_long(len(new), room)
        ids = [*self._ids, *new]
        if len(ids) <= room:
            return ids, 0
        head = self._ids[:1] if self._ids[:1] == [self.tokenizer.bos_id] else []
        whole = len(head) + len(new)
        if whole > room:
            raise self._too_long(whole, room)
        # Half of the room, so that this does not happen at every message again; the message is never cut.
        keep = max(whole, room // 2)
        return [*head, *ids[len(ids) - keep + len(head) :]], len(ids) - keep

    def _too_long(self, tokens: int, room: int) -> UserError:
        return UserError(
            f"the message has {tokens} tokens, at most {room} of the context of {self.backend.context} are for it; "
            "shorten it, or allow fewer new tokens"
        )

    def _end(self, turn: Turn) -> None:
        """Remembers what was said."""
        report = turn.report
        if self.templated:
            self._messages.append({"role": "assistant", "content": report.text})
        else:
            ends = report.new_ids[-1:] if report.new_ids and report.new_ids[-1] in self.eos_ids else []
            self._ids = [*report.prompt_ids, *report.new_ids[: len(report.new_ids) - len(ends)]]
        self.totals.add(turn)
