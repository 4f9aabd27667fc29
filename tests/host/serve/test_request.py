"""What a request may say, to both ends of every range, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from tellme.host.serve.request import MOST_CHOICES, MOST_LOGPROBS, MOST_MESSAGES, MOST_STOPS, Asked, Invalid, read
from tellme.host.text.sampling import Sampling

DEFAULT = Sampling(temperature=0.7, top_p=0.9, top_k=40, min_p=0.05, seed=5, repetition_penalty=1.1)
MESSAGE = {"role": "user", "content": "x"}
FUNCTION = {"type": "function", "function": {"name": "f"}}


def asked(*, chat: bool = True, **fields: Any) -> Asked:
    given = {"messages": [MESSAGE]} if chat else {"prompt": "x"}
    return read(given | fields, chat=chat, default=DEFAULT, model="m")


def value(a: Asked, name: str) -> Any:
    places = {
        "max_tokens": a.most, "max_completion_tokens": a.most, "n": a.choices, "top_logprobs": a.top_logprobs,
        "logprobs": a.top_logprobs,
    }  # fmt: skip
    return places[name] if name in places else getattr(a.sampling, name)


@pytest.mark.parametrize(
    ("name", "low", "high", "step", "chat"),
    [
        ("temperature", 0.0, 100.0, 0.01, True),
        ("top_p", 0.0, 1.0, 1e-9, True),
        ("min_p", 0.0, 1.0, 0.001, True),
        ("repetition_penalty", 0.01, 100.0, 0.001, True),
        ("top_k", -1, 1 << 31, 1, True),
        ("max_tokens", 1, 1 << 31, 1, False),
        ("max_completion_tokens", 1, 1 << 31, 1, True),
        ("n", 1, MOST_CHOICES, 1, True),
        ("logprobs", 0, MOST_LOGPROBS, 1, False),
        ("top_logprobs", 0, MOST_LOGPROBS, 1, True),
        ("seed", -(1 << 63), (1 << 63) - 1, 1, True),
    ],
)
def test_numbers_have_both_ends(name: str, low: Any, high: Any, step: Any, chat: bool) -> None:
    more: dict[str, Any] = {"logprobs": True} if name == "top_logprobs" else {}
    got = [value(asked(chat=chat, **more, **{name: v}), name) for v in (low, high)]
    if name == "top_p":
        assert got == [1e-9, high]  # 0: the likeliest token
    elif name not in ("seed", "top_k"):
        assert got == [low, high]
    for bad in (low - step, high + step, "1", True, [1], low + 0.5 if isinstance(low, int) else float("nan")):
        with pytest.raises(Invalid, match=rf"^{name} must be ") as e:
            asked(chat=chat, **more, **{name: bad})
        assert e.value.param == name


def test_what_is_not_said_is_the_server_s() -> None:
    a = asked()
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
        assert getattr(a.sampling, name) == getattr(DEFAULT, name), name
        assert getattr(asked(**{name: None}).sampling, name) == getattr(DEFAULT, name)
    assert (a.most, a.choices, a.stops, a.stream, a.usage, a.top_logprobs) == (None, 1, (), False, False, None)
    assert (a.tools, a.schema, a.chat, a.prompts) == (None, None, True, [])
    # A seed of its own for each request, unless one is asked for; 0 is one.
    assert len({asked().sampling.seed for _ in range(8)}) > 1 and asked(seed=0).sampling.seed == 0
    assert asked(seed=-1).sampling.seed == (1 << 63) - 1 and asked(seed=7).sampling.seed == 7
    # What clients send for "no limit".
    assert asked(top_k=-1).sampling.top_k == asked(top_k=0).sampling.top_k == 0
    # The newer name counts.
    assert asked(max_tokens=3, max_completion_tokens=5).most == 5 and asked(max_tokens=3).most == 3


def test_names_that_change_nothing_are_taken_and_others_refused() -> None:
    asked(user="u", metadata={}, parallel_tool_calls=True, frequency_penalty=0, presence_penalty=0.0, logit_bias={})
    asked(chat=False, suffix="", best_of=1, echo=False, frequency_penalty=None)
    for chat, name, bad in (
        (True, "frequency_penalty", 0.1), (True, "presence_penalty", False), (True, "logit_bias", {"1": 1}), (False, "suffix", "x"),
        (False, "best_of", 2), (False, "best_of", True), (False, "echo", True), (False, "echo", 0),
    ):  # fmt: skip
        with pytest.raises(Invalid, match=f"^{name} is not supported; leave it out$"):
            asked(chat=chat, **{name: bad})
    for chat, name in ((True, "prompt"), (False, "messages"), (False, "tools"), (True, "x")):
        with pytest.raises(Invalid, match=f"'{name}' is not known here"):
            asked(chat=chat, **{name: "x"})
    assert asked(model="m").chat and asked(model=None).chat
    for data in ([], None, "x"):
        with pytest.raises(Invalid, match="the body must be a JSON object"):
            read(data, chat=True, default=DEFAULT, model="m")


def test_stop_strings_are_one_or_as_many_as_may_be() -> None:
    assert asked(stop="a").stops == ("a",) and asked(stop=["a", "b"]).stops == ("a", "b") and asked(stop=[]).stops == ()
    assert len(asked(stop=["a"] * MOST_STOPS).stops) == MOST_STOPS
    for bad in (["a"] * (MOST_STOPS + 1), 3, {"a": 1}):
        with pytest.raises(Invalid, match="a list of at most 16 texts"):
            asked(stop=bad)
    for bad, words in ([["a", ""], "must not be empty"], [["a", 1], "a stop string must be text, not int"]):
        with pytest.raises(Invalid, match=words):
            asked(stop=bad)


def test_messages_have_a_role_and_something_in_them() -> None:
    call = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    got = asked(
        messages=[
            {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": call, "name": None, "other": 1},
            {"role": "tool", "content": "", "tool_call_id": "1"},
        ]
    ).messages
    assert got == [
        {"role": "system", "content": "ab"},
        {"role": "assistant", "content": "", "tool_calls": call},
        {"role": "tool", "content": "", "tool_call_id": "1"},
    ]
    assert len(asked(messages=[MESSAGE] * MOST_MESSAGES).messages) == MOST_MESSAGES
    for bad, words in (
        ([MESSAGE] * (MOST_MESSAGES + 1), "there are 1001 messages; at most 1000 are read"),
        ("x", "at least one message"),
        ([MESSAGE, "x"], r"messages\[1\] must be an object"),
        ([{"content": "x"}], r"messages\[0\].role must be text"),
        ([{"role": "user", "content": 5}], "text or a list of text parts"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "a part's text must be text"),
        ([{"role": "user", "content": ["x"]}], "a part that is no text"),
    ):
        with pytest.raises(Invalid, match=words):
            asked(messages=bad)


def test_tools_and_schemas() -> None:
    assert asked(tools=[FUNCTION]).tools == [FUNCTION] == asked(tools=[FUNCTION], tool_choice="auto").tools
    assert asked(tools=[FUNCTION], tool_choice="none").tools is None and asked(tools=[]).tools is None
    for bad in (FUNCTION, [FUNCTION, {}], [{"type": "x", "function": {"name": "f"}}], [{"type": "function"}], [{"type": "function", "function": {"name": 1}}]):  # fmt: skip
        with pytest.raises(Invalid, match="tools must be a list of"):
            asked(tools=bad)
    assert asked(tools=[FUNCTION], tool_choice="required").tools == [FUNCTION]
    for bad in ("sometimes", 1, {}, {"type": "function"}):
        with pytest.raises(Invalid, match="tool_choice must be"):
            asked(tools=[FUNCTION], tool_choice=bad)
    with pytest.raises(Invalid, match="'required' needs tools"):
        asked(tool_choice="required")
    assert asked(response_format={"type": "text"}).schema is None
    assert asked(response_format={"type": "json_object"}).schema == {"type": "object"}
    schema = {"type": "integer"}
    assert asked(response_format={"type": "json_schema", "json_schema": {"schema": schema}}).schema == schema
    for bad in ({"type": "json_schema", "json_schema": None}, {"type": "json_schema", "json_schema": []}, {}, "text"):
        with pytest.raises(Invalid, match="response_format"):
            asked(response_format=bad)


def test_prompts_streams_and_logprobs() -> None:
    for prompt, want in (("x", ["x"]), ([1, 2], [[1, 2]]), (["a", [3]], ["a", [3]])):
        assert asked(chat=False, prompt=prompt).prompts == want
    for bad in (None, [], [[]], [1, "a"], [True], [[1], []], [1.5], {}):
        with pytest.raises(Invalid, match="prompt must be a text, a list of tokens, or a list of these"):
            asked(chat=False, prompt=bad)
    assert asked(stream=True).stream and not asked(stream=True).usage and not asked(stream=None).stream
    assert asked(stream=True, stream_options={"include_usage": True}).usage
    for options in ({"stream_options": {}}, {"stream": True, "stream_options": []}):
        with pytest.raises(Invalid, match="stream_options must be an object"):
            asked(**options)
    for bad in (1, 0, "true"):
        with pytest.raises(Invalid, match="stream must be true or false"):
            asked(stream=bad)
    assert asked(logprobs=True).top_logprobs == 0 and asked(logprobs=True, top_logprobs=2).top_logprobs == 2
    assert asked(logprobs=False, top_logprobs=0).top_logprobs is None
    with pytest.raises(Invalid, match="top_logprobs needs logprobs: true"):
        asked(top_logprobs=1)
