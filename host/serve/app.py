"""The server's endpoints: OpenAI's, and those that look after the server.

On Starlette, the part of FastAPI that does the work: it is pure Python and brings no pydantic, of which the boards' images hold version 1 for PYNQ.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tellme.host.errors import TellmeError, UserError
from tellme.host.serve.grammar import Grammars
from tellme.host.serve.request import MOST_SHOWN, Asked, Invalid, Unknown, read, shown
from tellme.host.serve.service import Ended, Job, Logprob, Piece, Service
from tellme.host.talk.scheduler import Refused
from tellme.host.text.sampling import Sampling

PAGE = Path(__file__).parent / "page.html"
PING_S = 5.0
"""Silence after which a stream gets a comment, seconds: nobody on the way takes it for dead."""
REASONS = {
    "end": "stop",
    "stop": "stop",
    "length": "length",
    "context": "length",
    "time": "length",
    "cancelled": "length",
}
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.S)
_OPEN = {"/", "/health"}
"""Paths that need no key."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may ask for. body : bytes. key : API key, None for none."""

    body: int = 4 << 20
    key: str | None = None


class Json(JSONResponse):
    """JSON, whatever is in its texts: half a surrogate pair, which a client or a model may write as an escape, goes back as one."""

    def render(self, content: Any) -> bytes:
        return encoded(content)


def encoded(data: Any) -> bytes:
    """JSON of it, in UTF-8."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


class Streamed(StreamingResponse):
    """A stream that says when it has ended, though nothing of it was ever asked for: a client may have gone before."""

    def __init__(self, content: AsyncIterator[bytes], ended: Callable[[], None], headers: dict[str, str]):
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


class Failure(Exception):
    """An answer that is an error, as OpenAI writes it."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None):  # fmt: skip
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def response(self) -> Response:
        headers = {"Retry-After": "1"} if self.status == 429 else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Json(self.body, self.status, headers=headers)


def failure_of(error: Exception) -> Failure:
    """What to tell a client of an error."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, Refused):
        return Failure(429, str(error), "rate_limit_error", code="queue_full")
    if isinstance(error, Unknown):
        return Failure(404, str(error), param=error.param, code="model_not_found")
    if isinstance(error, Invalid):
        return Failure(400, str(error), param=error.param)
    if isinstance(error, UserError):
        code = "context_length_exceeded" if "the context holds" in str(error) else None
        return Failure(400, str(error), code=code)
    if isinstance(error, TellmeError):
        return Failure(500, str(error), "server_error")
    raise error


class Guard:
    """The API key, before anything else is done."""

    def __init__(self, app: ASGIApp, key: str | None):
        self._app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._key is not None and scope["type"] == "http" and scope["path"] not in _OPEN:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {self._key}".encode()):
                refused = Failure(
                    401,
                    "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                    code="invalid_api_key",
                )
                await refused.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


@dataclass
class Answer:
    """One of the answers of a request (a *choice* of OpenAI's), as far as it is."""

    index: int
    job: Job
    text: str = ""
    reason: str | None = None
    logprobs: list[Logprob] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)


class Server:
    """Endpoints over a service.

    Parameters
    ----------
    name : of the model, as clients see it.
    sampling : of requests that do not say how.
    hosts : names under which the server may be reached ('*': any); a page elsewhere cannot reach it under another one.
    """

    def __init__(
        self, service: Service, name: str, *, sampling: Sampling, limits: Limits, hosts: Sequence[str] = ("*",)
    ):
        self.service, self.name, self.sampling, self.limits = service, name, sampling, limits
        self.tokenizer = service.tokenizer
        self.grammars = Grammars(self.tokenizer.to_json(), service.engine.backend.vocab, service.ends)
        self.created = int(time.time())
        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/slots", self.slots),
            Route("/live", self.live),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
        ]
        self.app = Starlette(
            routes=routes,
            middleware=[
                Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)),
                Middleware(Guard, key=limits.key),
            ],
            exception_handlers={
                Failure: self._failed,
                TellmeError: self._failed,
                404: self._missing,
                405: self._missing,
                Exception: self._broken,
            },
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self.service.stop)

    async def _failed(self, request: Request, error: Exception) -> Response:
        return failure_of(error).response()

    async def _missing(self, request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        response = Failure(
            status, f"there is no {request.method} {request.url.path[:200]} here", code="not_found"
        ).response()
        response.headers.update(getattr(error, "headers", None) or {})  # Allow
        return response

    async def _broken(self, request: Request, error: Exception) -> Response:
        """What should not be: the client gets what errors look like, the log the rest."""
        return Failure(500, f"the server failed: {type(error).__name__}", "server_error").response()

    async def _json(self, request: Request) -> Any:
        """The body, within its limit."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a form of a page elsewhere cannot send that
            raise Failure(415, f"the body must be application/json, not {kind[:60] or 'without a type'}")
        most = self.limits.body
        too_long = Failure(413, f"the body is longer than {most:,} bytes", code="body_too_large")
        length = request.headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,18}", length) or int(length) > most:
            raise too_long
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise too_long
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as e:
            raise Failure(400, f"the body is not JSON: {' '.join(str(e).split())[:200]}") from e

    # ---- looking after the server ------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """The page to talk to the model."""
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
        return HTMLResponse(
            await asyncio.to_thread(PAGE.read_text, "utf-8"), headers={"Content-Security-Policy": policy}
        )

    async def health(self, request: Request) -> Response:
        """200 while passes succeed, 503 when the last one failed."""
        failure = self.service.failure
        return Json({"status": "ok" if failure is None else "error", "error": failure}, 200 if failure is None else 503)

    async def metrics(self, request: Request) -> Response:
        """Figures for Prometheus."""
        self.service.refresh()
        return Response(self.service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def slots(self, request: Request) -> Response:
        """Every cache slot."""
        return Json(self.service.slots())

    async def live(self, request: Request) -> Response:
        """What the page shows."""
        return Json(self.service.live())

    def _model(self) -> dict[str, Any]:
        backend = self.service.engine.backend
        return {
            "id": self.name, "object": "model", "created": self.created, "owned_by": "tellme", "context_length": backend.context,
            "chat": self.tokenizer.has_chat_template,
        }  # fmt: skip

    async def models(self, request: Request) -> Response:
        """The one model."""
        return Json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """A model by name."""
        if request.path_params["name"] != self.name:
            raise Failure(
                404,
                f"model {request.path_params['name'][:60]!r} is not served here; {self.name!r} is",
                code="model_not_found",
            )
        return Json(self._model())

    async def tokenize(self, request: Request) -> Response:
        """Tokens of `content` (or `prompt`); `add_special` (default true) puts before it what a prompt begins with."""
        data = await self._json(request)
        text = data.get("content", data.get("prompt")) if isinstance(data, dict) else None
        if not isinstance(text, str):
            raise Failure(400, "content must be text", param="content")
        special = data.get("add_special", True)
        if not isinstance(special, bool):
            raise Failure(400, f"add_special must be true or false, not {shown(special)}", param="add_special")
        if special:
            ids = self.tokenizer.encode(text)
        else:
            ids = self.tokenizer.encode_more(text) if text else []
        return Json({"tokens": ids, "count": len(ids), "max_model_len": self.service.engine.backend.context})

    async def detokenize(self, request: Request) -> Response:
        """Text of `tokens`."""
        data = await self._json(request)
        ids = data.get("tokens") if isinstance(data, dict) else None
        vocab = self.service.engine.backend.vocab
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < vocab for i in ids):
            raise Failure(400, f"tokens must be a list of numbers from 0 to {vocab - 1}", param="tokens")
        return Json({"content": self.tokenizer.decode(ids)})

    # ---- answers -----------------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """The next message of a conversation."""
        asked = read(await self._json(request), chat=True, default=self.sampling, model=self.name)
        if not self.tokenizer.has_chat_template:
            raise Invalid("this model has no chat template; use /v1/completions", "messages")
        if asked.tools and not self.tokenizer.chat_template.has_tools:
            raise Invalid("this model's chat template has no place for tools; leave tools out", "tools")
        prompt = await asyncio.to_thread(self.tokenizer.encode_chat, asked.messages, True, asked.tools)
        return await self._serve(request, asked, [prompt])

    async def completions(self, request: Request) -> Response:
        """The continuation of a text."""
        asked = read(await self._json(request), chat=False, default=self.sampling, model=self.name)
        vocab = self.service.engine.backend.vocab
        for token in (t for p in asked.prompts if not isinstance(p, str) for t in p):
            if not 0 <= token < vocab:
                raise Invalid(f"token {str(token)[:MOST_SHOWN]} is outside the vocabulary of {vocab}", "prompt")
        prompts = [self.tokenizer.encode(p) if isinstance(p, str) else p for p in asked.prompts]
        return await self._serve(request, asked, prompts)

    async def _begin(self, asked: Asked, prompts: Sequence[list[int]]) -> list[Answer]:
        choices: list[Answer] = []
        try:
            for prompt in prompts:
                for n in range(asked.choices):
                    constraint = None
                    if asked.schema is not None:
                        constraint = await asyncio.to_thread(self.grammars.schema, asked.schema)
                    job = await self.service.ask(
                        prompt,
                        most=asked.most,
                        sampling=replace(asked.sampling, seed=(asked.sampling.seed + n) % (1 << 63)),
                        stops=asked.stops,
                        top_logprobs=asked.top_logprobs,
                        constraint=constraint,
                    )
                    choices.append(Answer(len(choices), job))
        except BaseException:
            self._cancel(choices)
            raise
        return choices

    def _cancel(self, choices: Sequence[Answer]) -> None:
        for choice in choices:
            self.service.cancel(choice.job)

    async def _serve(self, request: Request, asked: Asked, prompts: Sequence[list[int]]) -> Response:
        choices = await self._begin(asked, prompts)
        shape = _Chat(self, asked, choices) if asked.chat else _Text(self, asked, choices)
        if asked.stream:
            return Streamed(
                self._stream(shape),
                lambda: self._cancel(choices),
                {"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        try:
            done = asyncio.ensure_future(_collect(choices))
            gone = asyncio.ensure_future(_gone(request))
            try:
                await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not done.done():
                    return Response(status_code=499)  # nobody reads it
                done.result()
            finally:
                gone.cancel()
                done.cancel()
        finally:
            self._cancel(choices)
        return Json(shape.whole())

    async def _stream(self, shape: _Shape) -> AsyncIterator[bytes]:
        """Server-sent events."""
        for first in shape.begin():
            yield _event(first)
        async for choice, event in _events(shape.choices):
            if event is None:
                yield b": ping\n\n"
            elif isinstance(event, Ended):
                if event.error is not None:
                    yield _event(failure_of(event.error).body)
                    return
                yield _event(shape.last(choice))
            elif event.text or event.logprobs:
                for chunk in shape.piece(choice, event):
                    yield _event(chunk)
        if shape.asked.usage:
            yield _event(shape.frame([], usage=shape.usage()))
        yield b"data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + encoded(data) + b"\n\n"


async def _gone(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _note(choice: Answer, event: Piece | Ended) -> None:
    """Adds an event to what is known of an answer."""
    if isinstance(event, Piece):
        choice.text += event.text
        choice.logprobs += event.logprobs
    elif event.error is None:
        choice.reason = REASONS[event.why]


async def _collect(choices: Sequence[Answer]) -> None:
    async for _, event in _events(choices):
        if isinstance(event, Ended) and event.error is not None:
            raise event.error


async def _events(choices: Sequence[Answer]) -> AsyncIterator[tuple[Answer, Piece | Ended | None]]:
    """Events of all answers as they come, until each has ended; None after some silence."""
    waits = {asyncio.ensure_future(c.job.events.get()): c for c in choices}
    try:
        while waits:
            ready, _ = await asyncio.wait(waits, timeout=PING_S, return_when=asyncio.FIRST_COMPLETED)
            if not ready:
                yield choices[0], None
            for task in ready:
                choice = waits.pop(task)
                event = task.result()
                _note(choice, event)
                if not isinstance(event, Ended):
                    waits[asyncio.ensure_future(choice.job.events.get())] = choice
                yield choice, event
    finally:
        for task in waits:
            task.cancel()


def _function(text: str) -> dict[str, str] | None:
    """Name and arguments (JSON, as text) of a call that a model wrote; None where it is none, and stays text."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        return None
    arguments = data.get("arguments", data.get("parameters", {}))
    if not isinstance(arguments, (dict, str)):
        return None
    try:
        written = (
            arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        )
    except ValueError:  # NaN and infinities, which JSON has not
        return None
    return {"name": data["name"], "arguments": written}


class _Shape(ABC):
    """How a response is written."""

    kind = ""
    chunk_kind = ""
    prefix = ""

    def __init__(self, server: Server, asked: Asked, choices: list[Answer]):
        self.server, self.asked, self.choices = server, asked, choices
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def frame(
        self, choices: list[dict[str, Any]], *, usage: dict[str, Any] | None = None, whole: bool = False
    ) -> dict[str, Any]:
        out: dict[str, Any] = {
            "id": self.id, "object": self.kind if whole else self.chunk_kind, "created": self.created,
            "model": self.server.name, "choices": choices,
        }  # fmt: skip
        if whole or self.asked.usage:
            out["usage"] = usage
        return out

    def usage(self) -> dict[str, Any]:
        """Tokens of all choices; a prompt is counted once."""
        firsts = self.choices[:: self.asked.choices]
        prompt = sum(len(c.job.prompt) for c in firsts)
        new = sum(c.job.new for c in self.choices)
        return {
            "prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": sum(c.job.cached for c in firsts)},
        }  # fmt: skip

    def name(self, token: int) -> str:
        tokenizer = self.server.tokenizer
        return tokenizer.hidden_text(token) or tokenizer.decode([token]) or tokenizer.name(token)

    def begin(self) -> list[dict[str, Any]]:
        return []

    @abstractmethod
    def piece(self, choice: Answer, piece: Piece) -> list[dict[str, Any]]:
        """Events of new text."""

    @abstractmethod
    def last(self, choice: Answer) -> dict[str, Any]:
        """The last event of a choice."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """All of it at once."""


class _Chat(_Shape):
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def _logprobs(self, found: Sequence[Logprob]) -> dict[str, Any] | None:
        if self.asked.top_logprobs is None:
            return None

        def entry(token: int, value: float) -> dict[str, Any]:
            text = self.name(token)
            return {"token": text, "logprob": value, "bytes": list(text.encode())}

        return {
            "content": [{**entry(p.token, p.value), "top_logprobs": [entry(*t) for t in p.top]} for p in found],
            "refusal": None,
        }

    def _chunk(
        self, choice: Answer, delta: dict[str, Any], reason: str | None = None, found: Sequence[Logprob] | None = None
    ) -> dict[str, Any]:
        logprobs = None if found is None else self._logprobs(found)
        return self.frame([{"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}])

    def begin(self) -> list[dict[str, Any]]:
        return [self._chunk(c, {"role": "assistant", "content": ""}) for c in self.choices]

    def piece(self, choice: Answer, piece: Piece) -> list[dict[str, Any]]:
        if self.asked.tools:  # whether it is a call is known at the end
            return []
        return [self._chunk(choice, {"content": piece.text}, found=piece.logprobs)]

    def _calls(self, choice: Answer) -> tuple[str, list[dict[str, Any]]]:
        """Text and calls of an answer: `<tool_call>{"name": ..., "arguments": ...}</tool_call>`, as models are trained."""
        calls: list[dict[str, Any]] = []

        def take(text: str) -> bool:
            if (found := _function(text)) is not None:
                calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": found})
            return found is not None

        if self.asked.calls and choice.reason == "stop" and take(choice.text):
            return "", calls
        rest = choice.text
        if self.asked.tools:
            rest = _CALL.sub(lambda match: "" if take(match[1]) else match[0], rest)
        return (rest.strip() if calls else rest), calls

    def last(self, choice: Answer) -> dict[str, Any]:
        if not self.asked.tools:
            return self._chunk(choice, {}, choice.reason)
        text, calls = self._calls(choice)
        delta: dict[str, Any] = {"content": text} if text else {}
        if calls:
            delta["tool_calls"] = [{"index": i, **c} for i, c in enumerate(calls)]
        return self._chunk(choice, delta, "tool_calls" if calls else choice.reason, choice.logprobs)

    def whole(self) -> dict[str, Any]:
        out = []
        for c in self.choices:
            text, calls = self._calls(c)
            message: dict[str, Any] = {
                "role": "assistant",
                "content": text if text or not calls else None,
                "refusal": None,
            }
            if calls:
                message["tool_calls"] = calls
            reason = "tool_calls" if calls else c.reason
            out.append(
                {"index": c.index, "message": message, "logprobs": self._logprobs(c.logprobs), "finish_reason": reason}
            )
        return self.frame(out, usage=self.usage(), whole=True)


class _Text(_Shape):
    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def _logprobs(self, found: Sequence[Logprob], offset: int) -> dict[str, Any] | None:
        if self.asked.top_logprobs is None:
            return None
        names = [self.name(p.token) for p in found]
        offsets = []
        for name in names:
            offsets.append(offset)
            offset += len(name)
        top = [{self.name(t): v for t, v in p.top} for p in found]
        return {
            "tokens": names,
            "token_logprobs": [p.value for p in found],
            "top_logprobs": top,
            "text_offset": offsets,
        }

    def piece(self, choice: Answer, piece: Piece) -> list[dict[str, Any]]:
        before = len(choice.text) - len(piece.text)
        entry = {
            "index": choice.index,
            "text": piece.text,
            "logprobs": self._logprobs(piece.logprobs, before),
            "finish_reason": None,
        }
        return [self.frame([entry])]

    def last(self, choice: Answer) -> dict[str, Any]:
        return self.frame([{"index": choice.index, "text": "", "logprobs": None, "finish_reason": choice.reason}])

    def whole(self) -> dict[str, Any]:
        out = [
            {"index": c.index, "text": c.text, "logprobs": self._logprobs(c.logprobs, 0), "finish_reason": c.reason}
            for c in self.choices
        ]
        return self.frame(out, usage=self.usage(), whole=True)
