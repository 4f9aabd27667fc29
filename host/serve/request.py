"""What a client asks for, read from JSON and checked: OpenAI's names, and those that others added."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tellme.host.errors import UserError
from tellme.host.text.sampling import Sampling
from tellme.host.text.streams import checked

MOST_CHOICES = 16
MOST_STOPS = 16
MOST_LOGPROBS = 20
MOST_MESSAGES = 1000
MOST_SHOWN = 60
"""Characters of a value in an error."""
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_SHARED = {
    "model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "n", "stream",
    "stream_options", "logprobs",
}  # fmt: skip
_CHAT = {"messages", "max_completion_tokens", "top_logprobs", "response_format", "tools", "tool_choice"}
_TEXT = {"prompt", "echo"}
_IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls", "prediction",
}  # fmt: skip
"""Accepted, and of no effect here."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0, 0.0),
    "presence_penalty": (None, 0, 0.0),
    "logit_bias": (None, {}),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "echo": (None, False),
}
"""Taken only with the value that changes nothing."""


class Invalid(UserError):
    """A request that cannot be used; `param` is the field that is wrong."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class Unknown(Invalid):
    """A request for a model that is not served."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request.

    Parameters
    ----------
    chat : of a conversation, not of a text to continue.
    messages, tools : of a chat. prompts : texts, or tokens, to continue.
    sampling : its seed is that of the first choice; each other one has the next.
    most : most new tokens of a choice; None: what the context has room for.
    top_logprobs : likeliest tokens to tell of every place; None: no logprobs at all.
    schema : JSON schema that an answer must follow; {} for any JSON object, None for any text.
    calls : the answer must be the call of a tool; then `schema` is the call's.
    """

    chat: bool
    sampling: Sampling
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    prompts: list[str | list[int]] = field(default_factory=list)
    most: int | None = None
    choices: int = 1
    stops: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False
    top_logprobs: int | None = None
    schema: dict[str, Any] | None = None
    calls: bool = False


def shown(value: Any) -> str:
    """What a client sent, as an error tells it."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."


class _Fields:
    """Takes values of a JSON object, and says what is wrong with them."""

    def __init__(self, data: Mapping[str, Any]):
        self.data = data

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.data.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise Invalid(f"{name} must be a number from {low:g} to {high:g}, not {shown(value)}", name)
        return float(value)

    def whole(self, name: str, default: int | None, low: int, high: int) -> int | None:
        value = self.data.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Invalid(f"{name} must be a whole number from {low} to {high}, not {shown(value)}", name)
        return value

    def flag(self, name: str) -> bool:
        value = self.data.get(name)
        if value not in (None, True, False) or isinstance(value, (int, float)) and not isinstance(value, bool):
            raise Invalid(f"{name} must be true or false, not {shown(value)}", name)
        return bool(value)


def _text(value: Any, what: str, param: str) -> str:
    if not isinstance(value, str):
        raise Invalid(f"{what} must be text, not {type(value).__name__}", param)
    try:
        return checked(value, what)
    except UserError as e:
        raise Invalid(str(e), param) from e


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        raise Invalid(f"stop must be a text or a list of at most {MOST_STOPS} texts", "stop")
    out = tuple(_text(s, "a stop string", "stop") for s in stops)
    if "" in out:
        raise Invalid("a stop string must not be empty", "stop")
    return out


def _content(value: Any, param: str) -> str | None:
    """Text of a message: itself, or its parts joined."""
    if value is None or isinstance(value, str):
        return value if value is None else _text(value, "a message's content", param)
    if isinstance(value, list):
        parts = []
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "refusal"):  # what an assistant refused is what it said
                raise Invalid("content has a part that is no text; this model reads text alone", param)
            parts.append(_text(part.get(kind), "a part's text", param))
        return "".join(parts)
    raise Invalid("a message's content must be text or a list of text parts", param)


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise Invalid("messages must be a list with at least one message", "messages")
    if len(value) > MOST_MESSAGES:
        raise Invalid(f"there are {len(value)} messages; at most {MOST_MESSAGES} are read", "messages")
    out = []
    for i, message in enumerate(value):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise Invalid(f"{where} must be an object with role and content", where)
        role = _text(message.get("role"), f"{where}.role", where)
        if role not in ROLES:
            raise Invalid(f"{where}.role must be one of {', '.join(ROLES)}, not {shown(role)}", where)
        content = _content(message.get("content"), where)
        if content is None and not message.get("tool_calls"):
            raise Invalid(f"{where} has no content", where)
        _said_calls(message.get("tool_calls"), where)
        kept = {k: message[k] for k in ("tool_calls", "tool_call_id", "name") if message.get(k) is not None}
        # Templates know the name that it had before.
        known = "system" if role == "developer" else role
        out.append({"role": known, "content": content if content is not None else "", **kept})
    return out


def _said_calls(value: Any, where: str) -> None:
    """Calls that an earlier answer made."""
    if value is None:
        return
    functions = (
        [c.get("function") if isinstance(c, dict) else None for c in value] if isinstance(value, list) else [None]
    )
    for f in functions:
        if not isinstance(f, dict) or not isinstance(f.get("name"), str) or not isinstance(f.get("arguments"), str):
            raise Invalid(
                f"{where}.tool_calls must be a list of {{id, type: 'function', function: {{name, arguments (text)}}}}",
                where,
            )


def _tools(data: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    tools = data.get("tools")
    if not tools:
        return None
    if not isinstance(tools, list) or not all(
        isinstance(t, dict) and t.get("type") == "function" and isinstance(t.get("function"), dict) and isinstance(t["function"].get("name"), str)
        for t in tools
    ):  # fmt: skip
        raise Invalid("tools must be a list of {type: 'function', function: {name, ...}}", "tools")
    if not all(isinstance(t["function"].get("parameters") or {}, dict) for t in tools):
        raise Invalid("a tool's parameters must be a JSON schema (an object)", "tools")
    return tools


def _called(choice: Any, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Functions one of which must be called, as tool_choice says; none: the model may."""
    if choice in (None, "none", "auto"):
        return []
    functions = [t["function"] for t in tools or []]
    if choice == "required":
        if not functions:
            raise Invalid("tool_choice 'required' needs tools", "tool_choice")
        return functions
    named = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = named.get("name") if isinstance(named, dict) else None
    if not isinstance(name, str):
        raise Invalid(
            "tool_choice must be 'none', 'auto', 'required' or {type: 'function', function: {name}}", "tool_choice"
        )
    found = [f for f in functions if f["name"] == name]
    if not found:
        raise Invalid(f"tool_choice names {shown(name)}, which is none of tools", "tool_choice")
    return found


def _call_schema(functions: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a call of one of these: its name, and arguments that follow its parameters."""

    def call(number: int, f: dict[str, Any]) -> dict[str, Any]:
        # An id of its own, so that what it refers to (#/$defs/...) is looked for in it.
        arguments = {"$id": f"urn:tool:{number}", "type": "object", **(f.get("parameters") or {})}
        return {
            "type": "object",
            "properties": {"name": {"const": f["name"]}, "arguments": arguments},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }

    calls = [call(number, f) for number, f in enumerate(functions)]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _schema(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema":
        schema = (value.get("json_schema") or {}) if isinstance(value.get("json_schema"), dict | None) else {}
        if isinstance(schema.get("schema"), dict):
            return dict(schema["schema"])
        raise Invalid("response_format.json_schema.schema must be a JSON schema (an object)", "response_format")
    raise Invalid("response_format.type must be 'text', 'json_object' or 'json_schema'", "response_format")


def _prompts(value: Any) -> list[str | list[int]]:
    def ids(v: Any) -> bool:
        return isinstance(v, list) and bool(v) and all(isinstance(t, int) and not isinstance(t, bool) for t in v)

    if isinstance(value, str):
        return [_text(value, "prompt", "prompt")]
    if ids(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(v, str) or ids(v) for v in value):
        return [_text(v, "prompt", "prompt") if isinstance(v, str) else v for v in value]
    raise Invalid("prompt must be a text, a list of tokens, or a list of these", "prompt")


def _logprobs(data: Mapping[str, Any], fields: _Fields, chat: bool) -> int | None:
    if not chat:
        return fields.whole("logprobs", None, 0, MOST_LOGPROBS)
    wanted = fields.flag("logprobs")
    top = fields.whole("top_logprobs", 0, 0, MOST_LOGPROBS)
    if data.get("top_logprobs") and not wanted:
        raise Invalid("top_logprobs needs logprobs: true", "top_logprobs")
    return top if wanted else None


def read(data: Any, *, chat: bool, default: Sampling, model: str) -> Asked:
    """A request's JSON.

    Parameters
    ----------
    default : sampling of what the request leaves open.
    model : what the server serves; a request for another one is refused.

    Raises
    ------
    Invalid : says which field, and what it may be.
    """
    if not isinstance(data, dict):
        raise Invalid("the body must be a JSON object")
    known = _SHARED | (_CHAT if chat else _TEXT) | _IGNORED | _NEUTRAL.keys()
    for name in data:
        if name not in known:
            raise Invalid(f"{shown(name)} is not known here; leave it out", name[:MOST_SHOWN])
    for name, neutral in _NEUTRAL.items():
        if (
            name in data
            and (data[name] not in neutral or isinstance(data[name], bool) != (name == "echo"))
            and data[name] is not None
        ):
            raise Invalid(f"{name} is not supported; leave it out", name)
    if data.get("model") not in (None, model):
        raise Unknown(f"model {shown(data['model'])} is not served here; {model!r} is", "model")
    fields = _Fields(data)
    sampling = replace(
        default,
        temperature=fields.number("temperature", default.temperature, 0.0, 100.0),
        top_p=max(fields.number("top_p", default.top_p, 0.0, 1.0), 1e-9),  # 0: the likeliest token
        top_k=max(0, fields.whole("top_k", default.top_k, -1, 1 << 31) or 0),
        min_p=fields.number("min_p", default.min_p, 0.0, 1.0),
        repetition_penalty=fields.number("repetition_penalty", default.repetition_penalty, 0.01, 100.0),
        seed=(fields.whole("seed", None, -(1 << 63), (1 << 63) - 1) or 0) % (1 << 63)
        if data.get("seed") is not None
        else secrets.randbits(32),
    )
    most = fields.whole("max_tokens", None, 1, 1 << 31)
    if chat:
        most = fields.whole("max_completion_tokens", most, 1, 1 << 31)
    options = data.get("stream_options")
    if options is not None and (not isinstance(options, dict) or not data.get("stream")):
        raise Invalid("stream_options must be an object, and needs stream: true", "stream_options")
    if (options or {}).get("include_usage") not in (None, True, False):
        raise Invalid("stream_options.include_usage must be true or false", "stream_options")
    shared: dict[str, Any] = {
        "chat": chat,
        "sampling": sampling,
        "most": most,
        "choices": fields.whole("n", 1, 1, MOST_CHOICES),
        "stops": _stops(data.get("stop")),
        "stream": fields.flag("stream"),
        "usage": bool((options or {}).get("include_usage")),
        "top_logprobs": _logprobs(data, fields, chat),
    }
    if chat:
        tools, schema, choice = _tools(data), _schema(data.get("response_format")), data.get("tool_choice")
        called = _called(choice, tools)
        if called and schema is not None:
            raise Invalid("an answer that must be a call can have no response_format of its own", "response_format")
        return Asked(
            **shared,
            messages=_messages(data.get("messages")),
            tools=None if choice == "none" else tools,
            schema=_call_schema(called) if called else schema,
            calls=bool(called),
        )
    return Asked(**shared, prompts=_prompts(data.get("prompt")))
