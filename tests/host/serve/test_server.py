"""`tellme serve` against OpenAI's own client, curl, and those who do not behave."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlparse

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from tellme.golden.config import TINY
from tellme.host import cli
from tellme.host.image.model import Model, demo_folder
from tellme.host.machine.backends import GoldenBackend
from tellme.host.talk.generate import Generation
from tests.host.serve.conftest import Running, serve
from tests.programs import program

HELLO: list[Any] = [{"role": "user", "content": "Once upon a time"}]
DAYS = {
    "type": "object",
    "properties": {"day": {"$ref": "#/$defs/day"}},
    "required": ["day"],
    "additionalProperties": False,
    "$defs": {"day": {"enum": ["today", "tomorrow"]}},
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": DAYS}}
SCHEMA: Any = {"type": "json_schema"}


def client(server: Running, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.url}/v1", **({"api_key": "none", "max_retries": 0, "timeout": 300} | options)
    )


def test_the_page_s_client_is_one_that_runs(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    here = {"http://127.0.0.1:8000": server.url, '"demo"': '"story"'}
    exec(program("docs/serve.md", here), {"__name__": "page"})
    text = client(server).completions.create(model="story", prompt="One day, a small fox", max_tokens=60, temperature=0)
    assert capsys.readouterr().out == text.choices[0].text != ""


def curl(server: Running, path: str, *options: str, data: Any = None) -> tuple[int, str]:
    """Status and body."""
    body = [] if data is None else ["--json", json.dumps(data)]
    command = [
        "curl",
        "--silent",
        "--max-time",
        "300",
        "--write-out",
        "\n%{http_code}",
        *body,
        *options,
        server.url + path,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text, _, status = done.stdout.rpartition("\n")
    return int(status), text


def refused(server: Running, path: str, *options: str, data: Any = None) -> tuple[int, dict[str, Any]]:
    status, text = curl(server, path, *options, data=data)
    return status, json.loads(text)["error"]


def test_a_text_is_what_the_model_says_alone_streamed_and_not(server: Running) -> None:
    with Model.open(demo_folder(), TINY) as model:
        prompt = model.tokenizer.encode("Once upon a time")
        generation = Generation(
            GoldenBackend(model.weights(), TINY), model.tokenizer, prompt, max_new_tokens=12, eos_ids=model.eos_ids
        )
        want = "".join(generation)
    c = client(server)
    whole = c.completions.create(model="story", prompt="Once upon a time", max_tokens=12)
    assert whole.choices[0].text == want and whole.choices[0].finish_reason == "length"
    assert whole.usage is not None and whole.usage.prompt_tokens == len(prompt) and whole.usage.completion_tokens == 12
    stream = list(
        c.completions.create(
            model="story", prompt=prompt, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(s.choices[0].text for s in stream if s.choices) == want
    assert [s.choices[0].finish_reason for s in stream if s.choices][-1] == "length"
    usage = stream[-1].usage
    assert usage is not None and not stream[-1].choices and usage.completion_tokens == 12
    assert usage.prompt_tokens_details is not None and usage.prompt_tokens_details.cached_tokens == len(prompt) - 1


def test_a_chat_streams_what_it_says_and_its_choices_have_their_own_seeds(server: Running) -> None:
    c = client(server)
    options: dict[str, Any] = {
        "model": "story",
        "messages": HELLO,
        "max_tokens": 8,
        "temperature": 1.5,
        "seed": 7,
        "n": 2,
    }
    whole = c.chat.completions.create(**options)
    texts = [choice.message.content for choice in whole.choices]
    assert all(choice.logprobs is None for choice in whole.choices)
    assert texts[0] != texts[1] and all(texts)
    parts = ["", ""]
    roles, reasons = [], []
    for chunk in c.chat.completions.create(**options, stream=True):
        choice = chunk.choices[0]
        parts[choice.index] += choice.delta.content or ""
        roles += [choice.delta.role] if choice.delta.role else []
        reasons += [choice.finish_reason] if choice.finish_reason else []
        assert chunk.usage is None
    assert parts == texts and roles == ["assistant"] * 2 and reasons == ["length"] * 2
    again = c.chat.completions.create(**(options | {"seed": 8, "n": 1}))
    assert again.choices[0].message.content == texts[1]
    parted = [{"role": "user", "content": [{"type": "text", "text": "Once upon"}, {"type": "text", "text": " a time"}]}]
    once = c.chat.completions.create(**(options | {"messages": parted, "n": 1, "extra_body": {"top_k": 0, "min_p": 0}}))
    assert once.choices[0].message.content == texts[0]


def test_stop_strings_and_logprobs(server: Running) -> None:
    c = client(server)
    plain = c.completions.create(model="story", prompt="Once upon a time", max_tokens=12, logprobs=3)
    choice = plain.choices[0]
    assert choice.logprobs is not None and choice.logprobs.tokens is not None and len(choice.logprobs.tokens) == 12
    assert "".join(choice.logprobs.tokens) == choice.text
    for token, value, top in zip(
        choice.logprobs.tokens, choice.logprobs.token_logprobs or [], choice.logprobs.top_logprobs or [], strict=True
    ):
        assert top[token] == value == max(top.values()) <= 0 and len(top) == 3
    stop = choice.text[9:14]
    cut = c.completions.create(model="story", prompt="Once upon a time", max_tokens=12, stop=[stop, "never"])
    assert cut.choices[0].text == choice.text[: choice.text.index(stop)] and cut.choices[0].finish_reason == "stop"
    chat = c.chat.completions.create(model="story", messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2)
    logprobs = chat.choices[0].logprobs
    assert (
        logprobs is not None
        and logprobs.content is not None
        and [len(p.top_logprobs) for p in logprobs.content] == [2] * 3
    )
    assert all(bytes(p.bytes or []).decode() == p.token for p in logprobs.content)
    for top in ({}, {"top_logprobs": 0}):
        alone = c.chat.completions.create(model="story", messages=HELLO, max_tokens=2, logprobs=True, **top)
        found = alone.choices[0].logprobs
        assert found is not None and [p.top_logprobs for p in found.content or []] == [[], []]


def test_an_answer_follows_a_schema(server: Running) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["fox", "mouse"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["kind", "count"],
        "additionalProperties": False,
    }
    c = client(server)
    for temperature in (0, 1):
        answer = c.chat.completions.create(
            model="story",
            messages=HELLO,
            max_tokens=80,
            temperature=temperature,
            seed=3,
            response_format={"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}},
        )
        assert answer.choices[0].finish_reason == "stop"
        found = json.loads(answer.choices[0].message.content or "")
        assert found["kind"] in ("fox", "mouse") and 0 <= found["count"] <= 99 and len(found) == 2
    with pytest.raises(openai.BadRequestError, match="the JSON schema cannot be used"):
        c.chat.completions.create(
            model="story",
            messages=HELLO,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}},
        )


def test_tools_reach_the_template(server: Running) -> None:
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    c = client(server)
    plain = c.chat.completions.create(model="story", messages=HELLO, max_tokens=2)
    told = c.chat.completions.create(model="story", messages=HELLO, max_tokens=2, tools=[tool])
    assert plain.usage is not None and told.usage is not None and told.usage.prompt_tokens > plain.usage.prompt_tokens
    assert told.choices[0].message.tool_calls is None
    quiet = c.chat.completions.create(model="story", messages=HELLO, max_tokens=2, tools=[tool], tool_choice="none")
    assert quiet.usage is not None and quiet.usage.prompt_tokens == plain.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_tool_that_must_be_called_is(server: Running, stream: bool, temperature: float) -> None:
    """One that is named, or any of them; the arguments follow its parameters, also where these refer to definitions of theirs."""
    clock: Any = {"type": "function", "function": {"name": "clock"}}
    c = client(server)
    for choice, names in (
        ("required", {"weather", "clock"}),
        ({"type": "function", "function": {"name": "weather"}}, {"weather"}),
    ):
        asked: Any = {
            "model": "story", "messages": HELLO, "max_tokens": 120, "temperature": temperature, "seed": 5,
            "tools": [WEATHER, clock], "tool_choice": choice,
        }  # fmt: skip
        if stream:
            choices = [p.choices[0] for p in c.chat.completions.create(**asked, stream=True)]
            assert not any(p.delta.content for p in choices)
            calls: Any = [call for p in choices for call in p.delta.tool_calls or []]
            reason: Any = choices[-1].finish_reason
        else:
            whole = c.chat.completions.create(**asked).choices[0]
            assert whole.message.content is None
            calls, reason = whole.message.tool_calls, whole.finish_reason
        if reason == "length":  # the clock's arguments may be any object
            assert not calls and names == {"weather", "clock"}
            continue
        assert reason == "tool_calls" and len(calls) == 1 and calls[0].function.name in names
        arguments = json.loads(calls[0].function.arguments)
        if calls[0].function.name == "weather":
            assert arguments["day"] in ("today", "tomorrow") and set(arguments) == {"day"}


def test_a_developer_is_who_was_the_system_and_parts_are_joined(server: Running) -> None:
    c = client(server)

    def say(*messages: Any) -> Any:
        found = c.chat.completions.create(model="story", messages=messages, max_tokens=4)  # type: ignore[arg-type]
        assert found.usage is not None
        return found.choices[0].message.content, found.usage.prompt_tokens

    before = {"role": "system", "content": "Be kind."}
    assert say(before | {"role": "developer"}, *HELLO) == say(before, *HELLO)
    parts = [{"type": "text", "text": "Once upon"}, {"type": "text", "text": " a time"}]
    assert say({"role": "user", "content": parts}) == say(*HELLO)
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert say(*HELLO, said, {"role": "tool", "tool_call_id": "1", "content": "rain"})[1] > say(*HELLO)[1]


def test_top_p_of_0_takes_the_likeliest(server: Running) -> None:
    c = client(server)
    ask: Any = {"model": "story", "prompt": "Once upon a time", "max_tokens": 8}
    greedy = c.completions.create(**ask, temperature=0).choices[0].text
    assert c.completions.create(**ask, temperature=1, top_p=0).choices[0].text == greedy


def test_what_looks_after_the_server(server: Running) -> None:
    c = client(server)
    assert [m.id for m in c.models.list()] == ["story"] and c.models.retrieve("story").id == "story"
    with pytest.raises(openai.NotFoundError, match="model 'other' is not served here; 'story' is"):
        c.models.retrieve("other")
    status, text = curl(server, "/tokenize", data={"content": "One day, a small fox"})
    tokens = json.loads(text)["tokens"]
    assert status == 200 and json.loads(text)["count"] == len(tokens) > 3
    status, text = curl(server, "/detokenize", data={"tokens": tokens})
    assert json.loads(text) == {"content": "One day, a small fox"}
    for bad in ("x", None, [1.5], [True], [-1], [1024], ["1"]):
        status, error = refused(server, "/detokenize", data={"tokens": bad})
        assert status == 400 and "tokens must be a list of numbers from 0 to 1023" in error["message"]
    c.completions.create(model="story", prompt="One", max_tokens=2)
    status, text = curl(server, "/slots")
    assert status == 200 and len(json.loads(text)) == 4 and any(s["tokens"] for s in json.loads(text))
    status, text = curl(server, "/metrics")
    figures = {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples if not s.labels}
    assert status == 200 and figures["tellme_generated_tokens_total"] >= 2 and figures["tellme_passes_total"] >= 2
    assert figures["tellme_first_token_seconds_count"] >= 1
    c.completions.create(model="story", prompt="Two", max_tokens=3)
    _, text = curl(server, "/metrics")
    later = {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples if not s.labels}
    assert later["tellme_generated_tokens_total"] - figures["tellme_generated_tokens_total"] == 3
    assert later["tellme_passes_total"] - figures["tellme_passes_total"] >= 3
    assert later["tellme_first_token_seconds_count"] - figures["tellme_first_token_seconds_count"] == 1
    status, text = curl(server, "/live")
    assert status == 200 and json.loads(text)["lanes"] == TINY.lanes
    status, text = curl(server, "/")
    assert status == 200 and "<title>tellme</title>" in text
    assert curl(server, "/health") == (200, '{"status":"ok","error":null}')


@pytest.mark.parametrize(
    ("change", "message", "param"),
    [
        ({"temperature": "hot"}, "temperature must be a number from 0 to 100, not 'hot'", "temperature"),
        ({"top_p": -0.1}, "top_p must be a number", "top_p"),
        ({"temperature": [1] * 5000}, "not [1, 1", "temperature"),
        ({"seed": 1.5}, "seed must be a whole number", "seed"),
        ({"n": 0}, "n must be a whole number from 1 to 16, not 0", "n"),
        ({"max_tokens": True}, "max_tokens must be a whole number", "max_tokens"),
        ({"stop": ["a", 3]}, "a stop string must be text", "stop"),
        ({"stop": 5}, "stop must be a text or a list of at most", "stop"),
        ({"stop": ["a"] * 1000}, "stop must be a text or a list of at most", "stop"),
        ({"stop": ""}, "a stop string must not be empty", "stop"),
        ({"stop": "\ud800"}, "half of a surrogate pair", "stop"),
        ({"stream": "yes"}, "stream must be true or false", "stream"),
        ({"frobnicate": 1}, "'frobnicate' is not known here", "frobnicate"),
        ({"\udc00": 1}, "'\\udc00' is not known here", "\udc00"),
        ({"logit_bias": {"3": 1}}, "logit_bias is not supported", "logit_bias"),
        ({"messages": []}, "messages must be a list with at least one message", "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0] has no content", "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part that is no text", "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role must be one of system, ", "messages[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "tool_calls must be a list", "messages[0]"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]},
            "tool_calls must be a list",
            "messages[0]",
        ),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs: true", "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type must be", "response_format"),
        ({"response_format": {"type": "json_schema"}}, "must be a JSON schema", "response_format"),
        (
            {"response_format": SCHEMA | {"json_schema": {"schema": {"x-guidance": 5}}}},
            "x-guidance must be an object",
            None,
        ),
        ({"tools": ["hammer"]}, "tools must be a list of", "tools"),
        (
            {"tools": [WEATHER | {"function": {"name": "f", "parameters": 3}}]},
            "parameters must be a JSON schema",
            "tools",
        ),
        ({"tool_choice": "required"}, "tool_choice 'required' needs tools", "tool_choice"),
        ({"tool_choice": "hammer", "tools": [WEATHER]}, "tool_choice must be 'none', 'auto', ", "tool_choice"),
        (
            {"tool_choice": {"type": "function"}, "tools": [WEATHER]},
            "tool_choice must be 'none', 'auto', ",
            "tool_choice",
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": "x"}}, "tools": [WEATHER]},
            "tool_choice names 'x', which is none of tools",
            "tool_choice",
        ),
        (
            {"tool_choice": "required", "tools": [WEATHER], "response_format": {"type": "json_object"}},
            "can have no response_format",
            "response_format",
        ),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "include_usage must be", "stream_options"),
        ({"stream_options": {}}, "needs stream: true", "stream_options"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    server: Running, change: dict[str, Any], message: str, param: str | None
) -> None:
    status, error = refused(server, "/v1/chat/completions", data={"messages": HELLO} | change)
    assert status == 400 and message in error["message"] and error["param"] == param
    assert error["type"] == "invalid_request_error" and len(error["message"]) < 300


def test_a_model_that_is_not_served_is_not_found(server: Running) -> None:
    c = client(server)
    with pytest.raises(openai.NotFoundError, match="model 'gpt' is not served here; 'story' is") as e:
        c.chat.completions.create(model="gpt", messages=HELLO)
    assert e.value.code == "model_not_found" and e.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        c.completions.create(model="gpt", prompt="x")


def test_bodies_and_paths_that_are_none(server: Running) -> None:
    path = "/v1/completions"
    for options, status, message in (
        (["--data", '{"prompt": "x"}'], 415, "the body must be application/json"),
        (["--json", "{"], 400, "the body is not JSON"),
        (["--json", "[1]"], 400, "the body must be a JSON object"),
        (["--json", "[" * 15000], 400, "the body is not JSON"),
        (["--json", '{"prompt": "' + "x" * 20000 + '"}'], 413, "the body is longer than 20,000 bytes"),
        (["--json", '{"prompt": "' + "x" * 20000 + '"}', "--header", "Transfer-Encoding: chunked"], 413, "longer than"),
        (["--json", '{"prompt": [1, 99999]}'], 400, "token 99999 is outside the vocabulary of 1024"),
        (["--json", '{"prompt": [true]}'], 400, "prompt must be a text"),
        (["--json", '{"prompt": ' + str([5] * 300) + "}"], 400, "the prompt has 300 tokens, the context holds 256"),
        (["--request", "GET"], 405, "there is no GET /v1/completions here"),
    ):
        found, error = refused(server, path, *options)
        assert (found, message in error["message"]) == (status, True), error
    assert refused(server, "/nothing")[0] == 404
    assert refused(server, "/tokenize", data={"content": "x", "add_special": "no"})[0] == 400
    head = curl(server, "/v1/completions", "--head")[1]
    assert " 405 " in head and "allow: POST" in head
    assert curl(server, "/health", "--header", "Host: evil.example")[0] == 400
    # And whatever is no HTTP at all.
    place = urlparse(server.url)
    for data in (
        b"\x00\xff" * 500,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 50\r\n",
    ):
        with socket.create_connection((place.hostname, place.port), timeout=60) as s:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            try:
                while s.recv(4096):
                    pass
            except ConnectionError:
                pass
    assert curl(server, "/health")[0] == 200


def busy(server: Running) -> int:
    return sum(s["state"] != "idle" for s in json.loads(curl(server, "/slots")[1]))


def idle(server: Running) -> None:
    end = time.monotonic() + 60
    while busy(server):
        assert time.monotonic() < end, "a slot is never given back"
        time.sleep(0.1)


def test_eight_at_once_with_disconnects_and_slow_readers_say_what_each_says_alone(server: Running) -> None:
    c = client(server)
    prompts = ["One day, a small fox", "Once upon a time", "The mouse said", "Two birds flew over the sea"]
    asks = [
        {
            "model": "story",
            "prompt": prompts[i % 4],
            "max_tokens": 10,
            "temperature": 0.9 * (i % 2),
            "seed": i,
            "stop": [". T"],
        }
        for i in range(8)
    ]
    alone = [c.completions.create(**ask).choices[0].text for ask in asks]  # type: ignore[call-overload]

    def one(i: int) -> str | None:
        ask, rng = asks[i], random.Random(i)
        mine = client(server)
        if i % 4 == 3:  # goes away in the middle, first of all
            stream = mine.completions.create(**(ask | {"max_tokens": 200, "stream": True}))  # type: ignore[call-overload]
            for _ in range(2):
                next(iter(stream))
            stream.close()
        if i % 2:
            return mine.completions.create(**ask).choices[0].text  # type: ignore[call-overload, no-any-return]
        text = ""
        for part in mine.completions.create(**ask, stream=True):  # type: ignore[call-overload]
            text += part.choices[0].text
            time.sleep(rng.random() * 0.2)
        return text

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == alone
    idle(server)


def test_a_client_that_goes_at_once_leaves_nothing_behind(server: Running) -> None:
    """While the request waits to be taken, or before the first byte is sent."""
    place = urlparse(server.url)
    for i in range(30):
        body = json.dumps({"prompt": "One day", "max_tokens": 240, "stream": True, "n": 1 + i % 3, "temperature": 1})
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((place.hostname, place.port), timeout=60) as s:
            s.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            time.sleep(0.002 * (i % 6))
    idle(server)
    assert json.loads(curl(server, "/live")[1])["waiting"] == 0


def test_a_client_that_goes_ends_its_answer_streamed_or_not(server: Running) -> None:
    idle(server)
    for stream in (True, False):
        body = json.dumps(
            {"prompt": "One day", "max_tokens": 240, "stream": stream, "temperature": 1, "repetition_penalty": 1.2}
        )
        command = ["curl", "--silent", "--no-buffer", "--json", body, server.url + "/v1/completions"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        end = time.monotonic() + 60
        while not busy(server):
            assert time.monotonic() < end
        process.kill()
        process.communicate()
        idle(server)
    _, text = curl(server, "/metrics")
    outcomes = {
        s.labels["outcome"]: s.value
        for f in text_string_to_metric_families(text)
        for s in f.samples
        if s.name == "tellme_requests_total"
    }
    assert outcomes["cancelled"] >= 2


def test_a_key_a_full_queue_and_an_end_that_waits() -> None:
    server = serve("--slots", "1", "--queue", "0", "--grace", "300", TELLME_API_KEY="secret")
    try:
        with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"):
            client(server).models.list()
        with pytest.raises(openai.AuthenticationError) as refusal:
            client(server, api_key="another").models.list()
        assert refusal.value.response.headers["www-authenticate"] == "Bearer"
        assert curl(server, "/metrics")[0] == 401 and curl(server, "/health")[0] == 200 and curl(server, "/")[0] == 200
        c = client(server, api_key="secret")
        assert [m.id for m in c.models.list()] == ["demo"]
        with pytest.raises(openai.BadRequestError, match="this model has no chat template; use /v1/completions"):
            c.chat.completions.create(model="demo", messages=HELLO)
        stream = iter(c.completions.create(model="demo", prompt="One day", max_tokens=30, temperature=0, stream=True))
        text = next(stream).choices[0].text
        with pytest.raises(
            openai.RateLimitError, match="all 1 cache slots are in use and 0 requests wait already"
        ) as e:
            c.completions.create(model="demo", prompt="Two", max_tokens=1)
        assert e.value.response.headers["retry-after"] == "1"
        ended = threading.Thread(target=server.stop)
        ended.start()
        reasons = []
        for part in stream:
            text += part.choices[0].text
            reasons.append(part.choices[0].finish_reason)
        ended.join()
        assert reasons[-1] == "length" and len(text) > 40
        assert server.process.returncode == 0
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--port", "65536", "--port must be from 0 to 65535, not 65536"),
        ("--max-seconds", "nan", "--max-seconds must be at least 1, not nan"),
        ("--rise", "0.9", "--rise must be at least 1, not 0.9"),
        ("--rise", "nan", "--rise must be at least 1, not nan"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: str, message: str) -> None:
    done = CliRunner().invoke(cli.app, ["serve", "--backend", "golden", option, value])
    assert done.exit_code == 2 and message in " ".join(done.stderr.split())
