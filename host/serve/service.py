"""The thread that runs the engine, and the requests that wait for what it says."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tellme.host.errors import TellmeError, UserError
from tellme.host.serve.metrics import Metrics
from tellme.host.talk.engine import Chosen, Constraint, Engine, Ticket
from tellme.host.talk.generate import TextStream
from tellme.host.talk.power import rails
from tellme.host.text.sampling import Sampling
from tellme.host.text.tokenizer import Tokenizer

RECENT_S = 10.0
"""What the live view's rates are of, seconds."""


@dataclass(frozen=True)
class Logprob:
    """A new token: its id, the logarithm of its probability, and the likeliest tokens with theirs."""

    token: int
    value: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """Text that is certain, and the tokens that came with it."""

    text: str
    tokens: int
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The last event of a job. why: 'end', 'stop', 'length', 'context', 'cancelled', 'time', or 'error' with what went wrong."""

    why: str
    error: TellmeError | None = None


class Job:
    """One answer that is being made. `events` is read by the client's task, and filled by the engine's thread."""

    def __init__(self, prompt: Sequence[int], text: TextStream, top_logprobs: int | None, limit_s: float):
        self.prompt = list(prompt)
        self.events: asyncio.Queue[Piece | Ended] = asyncio.Queue()
        self.ticket: Ticket | None = None
        self.began = time.monotonic()
        self.latest = self.began
        self.deadline = self.began + limit_s
        self.new = 0
        self.cached = 0
        self._loop = asyncio.get_running_loop()
        self._text = text
        self._top = top_logprobs

    def put(self, event: Piece | Ended) -> None:
        """From any thread."""
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody listens
            pass

    def take(self, chosen: Sequence[Chosen]) -> bool:
        """Makes text of new tokens. True when a stop string came."""
        text, logprobs, count = "", [], 0
        for c in chosen:
            text += self._text.push(c.token)
            count += 1
            if c.logprob is not None and c.logprobs is not None and self._top is not None:
                order = np.argsort(-c.logprobs, kind="stable")[: self._top]
                top = tuple((int(i), float(c.logprobs[i])) for i in order)
                logprobs.append(Logprob(c.token, c.logprob, top))
            if self._text.found:
                break
        self.new += count
        self.put(Piece(text, count, tuple(logprobs)))
        return self._text.found

    def finish(self, why: str) -> None:
        """Says what was kept back, and that it has ended."""
        rest = self._text.finish() if why in ("end", "length", "context") else ""
        if rest:
            self.put(Piece(rest, 0))
        self.put(Ended("stop" if self._text.found else why))


class Service:
    """Answers requests, any number at a time.

    Parameters
    ----------
    engine : its back end is used by the service's thread alone.
    tokenizer : of the model.
    ends : tokens that end an answer.
    speculate : guess tokens where it pays.
    limit_s : wall clock that an answer may take, seconds.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        ends: frozenset[int],
        *,
        speculate: bool = True,
        limit_s: float = 600.0,
    ):
        self.engine, self.tokenizer, self.ends = engine, tokenizer, ends
        self.speculate, self.limit_s = speculate, limit_s
        self.metrics = Metrics()
        self.failure: str | None = None
        self._condition = threading.Condition()
        self._todo: deque[Callable[[], None]] = deque()
        self._jobs: dict[Ticket, Job] = {}
        self._stopping = False
        self._recent: deque[tuple[float, int, int]] = deque()
        self._rails = rails()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, seconds: float = 60.0) -> None:
        """Ends every answer and the thread; a pass that runs is waited for."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join(seconds)

    # ---- from the event loop -----------------------------------------------------------------------------------------

    async def ask(
        self,
        prompt: Sequence[int],
        *,
        most: int | None,
        sampling: Sampling,
        stops: Sequence[str] = (),
        top_logprobs: int | None = None,
        constraint: Constraint | None = None,
    ) -> Job:
        """A new answer; its events follow.

        Raises
        ------
        UserError : it cannot be served; scheduler.Refused: the queue is full.
        """
        job = Job(prompt, TextStream(self.tokenizer, prompt, self.ends, stops), top_logprobs, self.limit_s)
        context = self.engine.backend.context

        def submit() -> Ticket:
            return self.engine.submit(
                prompt,
                max_new_tokens=most if most is not None else context + 1,
                sampling=sampling,
                end_ids=self.ends,
                speculate=self.speculate,
                logprobs=top_logprobs is not None,
                constraint=constraint,
            )

        def accept() -> None:
            try:
                job.ticket = submit()
            except Exception as e:
                self._answer(answer, error=e)
                return
            self._jobs[job.ticket] = job
            self.metrics.prompt.inc(len(prompt))
            self._answer(answer)

        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._call(accept)
        try:
            await answer
        except asyncio.CancelledError:
            self.cancel(job)
            raise
        return job

    @staticmethod
    def _answer(future: asyncio.Future[None], error: Exception | None = None) -> None:
        def put() -> None:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)

        try:
            future.get_loop().call_soon_threadsafe(put)
        except RuntimeError:
            pass

    def _call(self, function: Callable[[], None]) -> None:
        with self._condition:
            if self._stopping:
                raise UserError("the server is stopping")
            self._todo.append(function)
            self._condition.notify()

    def cancel(self, job: Job) -> None:
        """Ends an answer at the next token; nothing happens if it has ended."""

        def end() -> None:
            if job.ticket in self._jobs:
                self._end(job, "cancelled")

        try:
            self._call(end)
        except UserError:
            pass  # all are ended anyway

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._todo and not self.engine.busy and not self._stopping:
                    self._condition.wait()
                todo, self._todo = self._todo, deque()
                stopping = self._stopping
            for function in todo:
                function()
            if stopping:
                for job in list(self._jobs.values()):
                    self._end(job, "cancelled")
                return
            now = time.monotonic()
            for job in [j for j in self._jobs.values() if now > j.deadline]:
                self._end(job, "time")
            if self.engine.busy:
                self._step()

    def _step(self) -> None:
        before = self._counts()
        try:
            made = self.engine.step()
            self.failure = None
        except Exception as e:
            # Nobody can know which request a broken pass was for.
            error = e if isinstance(e, TellmeError) else TellmeError(f"a pass failed: {type(e).__name__}: {e}")
            if not isinstance(e, UserError):
                self.failure = str(error)
            for job in list(self._jobs.values()):
                self._end(job, "error", error)
            return
        now = time.monotonic()
        for ticket, new in made:
            job = self._jobs[ticket]
            if not job.new:
                job.cached = ticket.conversation.cached
                self.metrics.cached.inc(job.cached)
                self.metrics.first.observe(now - job.began)
            else:
                for _ in new:
                    self.metrics.between.observe((now - job.latest) / len(new))
            job.latest = now
            if job.take(new):
                self._end(job, "stop")
            elif ticket.ended:
                self._end(job, ticket.stop)
        self._count(before, now)

    def _end(self, job: Job, why: str, error: TellmeError | None = None) -> None:
        assert job.ticket is not None
        del self._jobs[job.ticket]
        self.engine.cancel(job.ticket)
        if error is None:
            job.finish(why)
        else:
            job.put(Ended("error", error))
        self.metrics.requests.labels(why).inc()

    # ---- figures -----------------------------------------------------------------------------------------------------

    def _counts(self) -> dict[str, int]:
        c, d = self.engine.counts, self.engine.drafts
        stalls = {f"stall {cause}": n for cause, n in c.stalls.items()}
        return {
            "passes": c.passes, "lanes": c.lanes, "new": c.tokens, "cycles": c.cycles, "drafted": d.drafted,
            "accepted": d.accepted, **stalls,
        }  # fmt: skip

    def _count(self, before: dict[str, int], now: float) -> None:
        m = self.metrics
        after = self._counts()
        for name, value in after.items():
            grown = value - before.get(name, 0)
            if name.startswith("stall "):
                m.stalls.labels(name.removeprefix("stall ")).inc(grown)
            else:
                getattr(m, name).inc(grown)
        self._recent.append((now, after["new"] - before["new"], after["lanes"] - before["lanes"]))
        while self._recent[0][0] < now - RECENT_S:
            self._recent.popleft()

    def watts(self) -> float | None:
        """Power of the board now, None where nothing measures it."""
        try:
            return sum(rail.watts() for rail in self._rails) if self._rails else None
        except (OSError, ValueError):
            return None

    def refresh(self) -> None:
        """Sets the gauges."""
        m, s = self.metrics, self.engine.scheduler
        m.active.set(len(s.active))
        m.waiting.set(len(s.waiting))
        if (watts := self.watts()) is not None:
            m.watts.set(watts)

    def live(self) -> dict[str, Any]:
        """What the page shows: rates of the last seconds, and sums."""
        s, c, d = self.engine.scheduler, self.engine.counts, self.engine.drafts
        now = time.monotonic()
        recent = [r for r in list(self._recent) if r[0] >= now - RECENT_S]
        span = max(now - recent[0][0], 0.05) if recent else 1.0
        config = self.engine.backend.config
        return {
            "tokens_per_s": round(sum(r[1] for r in recent) / span, 2) if recent else 0.0,
            "lanes_per_pass": round(sum(r[2] for r in recent) / len(recent), 2) if recent else 0.0,
            "lanes": config.lanes,
            "active": len(s.active),
            "waiting": len(s.waiting),
            "slots": len(s.slots),
            "context": s.context,
            "drafted": d.drafted,
            "accepted": d.accepted,
            "passes": c.passes,
            "tokens": c.tokens,
            "cycles": c.cycles,
            "clock_hz": config.clock_hz,
            "stalls": dict(c.stalls),
            "watts": self.watts(),
        }

    def slots(self) -> list[dict[str, Any]]:
        """Every cache slot: what it holds, and what is done in it."""
        out = []
        for i, slot in enumerate(list(self.engine.scheduler.slots)):
            c = slot.holder
            state = "idle" if c is None else "decoding" if c.decoding else "prefill"
            entry: dict[str, Any] = {
                "id": i,
                "state": state,
                "tokens": len(slot.tokens),
                "context": self.engine.backend.context,
            }
            if c is not None:
                entry |= {"request": c.key, "prompt": c.prompt, "new": len(c.tokens) - c.prompt, "cached": c.cached}
            out.append(entry)
        return out
