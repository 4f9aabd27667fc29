"""How answers are written that the demo model never gives: calls of tools, and silence. The shapes are held against those of OpenAI's client."""

from __future__ import annotations

import asyncio
import contextlib
import json
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from starlette.requests import Request

from tellme.host.serve import app
from tellme.host.serve.app import Answer
from tellme.host.serve.service import Ended, Piece

CALL = '<tool_call>{"name": "weather", "arguments": {"place": "Zürich", "days": 2}}</tool_call>'


def chat(text: str, *, tools: bool = True) -> Any:
    asked = SimpleNamespace(
        tools=[{}] if tools else None, top_logprobs=None, usage=True, choices=1, chat=True, calls=False
    )
    job = SimpleNamespace(prompt=[1, 2, 3, 4], new=5, cached=3)
    answer = Answer(0, job, text=text, reason="stop")  # type: ignore[arg-type]
    return app._Chat(SimpleNamespace(name="m"), asked, [answer])  # type: ignore[arg-type]


def test_calls_of_tools_are_told_from_text() -> None:
    shape = chat(f'Let me see.\n{CALL}\n<tool_call>\n{{"name": "time", "parameters": "{{}}"}}\n</tool_call>')
    whole = ChatCompletion.model_validate(shape.whole(), strict=True)
    message = whole.choices[0].message
    assert message.content == "Let me see." and whole.choices[0].finish_reason == "tool_calls"
    first, second = message.tool_calls or []
    assert first.type == second.type == "function"
    assert (first.function.name, json.loads(first.function.arguments)) == ("weather", {"place": "Zürich", "days": 2})
    assert (second.function.name, second.function.arguments) == ("time", "{}") and first.id != second.id
    assert whole.usage is not None and whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == 3 and whole.usage.total_tokens == 9
    # Streamed: nothing before the end, when it is known what it is.
    assert shape.piece(shape.choices[0], Piece("Let", 1)) == []
    last = ChatCompletionChunk.model_validate(shape.last(shape.choices[0]), strict=True)
    assert last.choices[0].finish_reason == "tool_calls" and last.choices[0].delta.content == "Let me see."
    assert [(c.index, c.function.name) for c in last.choices[0].delta.tool_calls or [] if c.function] == [
        (0, "weather"),
        (1, "time"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "no call at all",
        "<tool_call>{nothing}</tool_call>",
        '<tool_call>["weather"]</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": 3}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": 7}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"x": NaN}}</tool_call>',
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
        CALL[: -len("</tool_call>")],
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    whole = ChatCompletion.model_validate(chat(text).whole(), strict=True)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (text, "stop")
    assert whole.choices[0].message.tool_calls is None


def test_half_a_surrogate_pair_goes_back_as_the_escape_that_it_came_as() -> None:
    shape = chat('<tool_call>{"name": "weather", "arguments": "\\ud83d"}</tool_call>')
    written = app.encoded(shape.whole())
    assert b'"\\ud83d"' in written
    call = json.loads(written)["choices"][0]["message"]["tool_calls"][0]
    assert call["function"]["arguments"] == "\ud83d"
    assert b'"\\ud83d"' in app._event(shape.last(shape.choices[0]))
    assert app.encoded({"é": "\U0001f98a"}) == '{"é":"\U0001f98a"}'.encode()


def test_a_stream_that_nobody_reads_ends_what_it_is_of() -> None:
    """The client has gone when the answer begins: its generator is never started, so that nothing in it could end anything."""
    ended = []

    async def content() -> Any:
        yield b"never"

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise OSError("closed")

    async def run() -> None:
        response = app.Streamed(content(), lambda: ended.append(True), {})
        with contextlib.suppress(BaseException):
            await response({"type": "http", "asgi": {"spec_version": "2.3"}}, gone, send)

    asyncio.run(run())
    assert ended == [True]


def test_without_tools_nothing_is_taken_for_a_call() -> None:
    whole = ChatCompletion.model_validate(chat(CALL, tools=False).whole(), strict=True)
    assert whole.choices[0].message.content == CALL and whole.choices[0].message.tool_calls is None


def test_a_stream_says_that_it_lives_while_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "PING_S", 0.02)

    async def play() -> list[bytes]:
        events: asyncio.Queue[Any] = asyncio.Queue()
        shape = chat("", tools=False)
        shape.choices[0].job.events = events
        server = SimpleNamespace(_cancel=lambda choices: None)
        out = []

        async def prefill() -> None:
            await asyncio.sleep(0.15)
            events.put_nowait(Piece("Once", 1))
            events.put_nowait(Ended("length"))

        task = asyncio.create_task(prefill())
        async for event in app.Server._stream(server, shape):  # type: ignore[arg-type]
            out.append(event)
        await task
        return out

    events = asyncio.run(play())
    first = next(i for i, e in enumerate(events) if b"Once" in e)
    pings = [i for i, e in enumerate(events) if e == b": ping\n\n"]
    assert len(pings) >= 3 and max(pings) < first
    assert events[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize("length", ["²", "-1", "1e3", "9" * 5000, ""])
def test_a_body_whose_length_is_no_number_is_refused(length: str) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", length.encode("latin-1"))]
    server = SimpleNamespace(limits=app.Limits())
    with pytest.raises(app.Failure, match="longer than"):
        asyncio.run(app.Server._json(server, Request({"type": "http", "headers": headers})))  # type: ignore[arg-type]
