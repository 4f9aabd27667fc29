"""Chat templates: conversations to the text a model was trained on.

A template is a jinja2 program that came with a checkpoint, so nobody here has read it. It runs in jinja2's immutable sandbox, with the
names that `transformers` gives it (`raise_exception`, `strftime_now`, `tojson` without HTML escapes, loop controls, `{% generation %}`)
and within bounds of time and size, so that a broken or hostile one ends in a message.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from types import FrameType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tellme.host.errors import UserError

Message = Mapping[str, Any]

MAX_SOURCE = 1 << 18
"""Characters of a template. The longest published ones have some 20,000."""
MAX_TEXT = 1 << 20
"""Characters that a template may make, at the end or on the way."""
MAX_SECONDS = 5.0
"""Seconds that rendering may take; it takes milliseconds."""

_FORMAT = re.compile(r"[%{][^%{}]{0,20}\d{5}")
"""A format (of `%` or `format`) with a width of five digits."""


class _OutOfBounds(SecurityError):
    """A template wants more time or space than it may have."""


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training; the text inside is ordinary."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _bounded_join(parts: Iterable[Any]) -> str:
    out, size = [], 0
    for part in parts:
        text = str(part)
        size += len(text)
        if size > MAX_TEXT:
            raise _OutOfBounds(f"it makes more than {MAX_TEXT:,} characters")
        out.append(text)
    return "".join(out)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _check_arguments(*values: Any) -> None:
    """Refuses numbers and format widths that would make a huge text."""
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_TEXT:
            raise _OutOfBounds(f"it calls a function with the number {value}")
        if isinstance(value, str) and _FORMAT.search(value):
            raise _OutOfBounds("it formats to a width of more than 9,999 characters")


def _check_result(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > MAX_TEXT:
        raise _OutOfBounds(f"it makes more than {MAX_TEXT:,} characters")
    return value


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with its arguments and result checked."""

    @wraps(function)  # keeps jinja2's mark of a filter that takes the environment
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(*args, *kwargs.values())
        return _check_result(function(*args, **kwargs))

    return bounded


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with bounds on what an operator, a call or a concatenation may make."""

    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension])
        self.filters["tojson"] = _tojson
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        self.filters["_concatenate"] = _bounded_join
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    concat = staticmethod(_bounded_join)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        # jinja2 compiles a ~ b to a function that no environment can replace; a filter can be bounded.
        _Concatenations().visit(tree)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for text, count in ((left, right), (right, left)):
                if isinstance(text, (str, list, tuple)) and isinstance(count, int) and len(text) * count > MAX_TEXT:
                    raise _OutOfBounds(f"it makes more than {MAX_TEXT:,} characters")
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > 4096:
                raise _OutOfBounds("it makes a number of more than 4,096 bits")
        elif operator == "%":
            _check_arguments(left)
        return _check_result(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        _check_arguments(getattr(value, "__self__", None))
        return super().wrap_str_format(value)

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        _check_arguments(getattr(function, "__self__", None), *args, *kwargs.values())
        return _check_result(super().call(context, function, *args, **kwargs))


class _Concatenations:
    """Replaces `a ~ b` by a filter over [a, b]."""

    def visit(self, node: nodes.Node) -> nodes.Node:
        for name, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                setattr(node, name, self.visit(value))
            elif isinstance(value, list):
                setattr(node, name, [self.visit(v) if isinstance(v, nodes.Node) else v for v in value])
        if isinstance(node, nodes.Concat):
            items = nodes.List(node.nodes, lineno=node.lineno)
            return nodes.Filter(items, "_concatenate", [], [], None, None, lineno=node.lineno)
        return node


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Raises _OutOfBounds in this thread when Python code has run for so long. Only a trace function can stop a loop."""
    end = time.monotonic() + seconds

    def check(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if time.monotonic() > end:
            raise _OutOfBounds(f"it takes longer than {seconds:g} s")
        return check

    before = sys.gettrace()
    sys.settrace(check)
    try:
        yield
    finally:
        sys.settrace(before)


class ChatTemplate:
    """A checkpoint's chat template.

    Parameters
    ----------
    source : the jinja2 text.
    tokens : special tokens by the names templates use (`bos_token`, `eos_token`, ...).

    Raises
    ------
    UserError : the template cannot be compiled.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]):
        if len(source) > MAX_SOURCE:
            raise UserError(f"the chat template has {len(source):,} characters; at most {MAX_SOURCE:,} are supported")
        self._tokens = dict(tokens)
        self.has_tools = "tools" in source
        """Whether the template has a place for functions that the model may call."""
        try:
            self._template = _Environment().from_string(source)
        except TemplateSyntaxError as e:
            raise UserError(f"the chat template cannot be compiled: line {e.lineno}: {_line(e)}") from e
        except (RecursionError, MemoryError, SyntaxError, TemplateError, ValueError, TypeError) as e:
            raise UserError(f"the chat template cannot be compiled: {_line(e)}") from e

    @staticmethod
    def from_config(config: Mapping[str, Any], tokens: Mapping[str, str]) -> ChatTemplate:
        """From tokenizer_config.json: `chat_template` is a text, or a list of {name, template} with a 'default'.

        Raises
        ------
        UserError : there is none, or it cannot be used.
        """
        source = config.get("chat_template")
        if isinstance(source, list):
            named = {t["name"]: t["template"] for t in source if isinstance(t, dict) and {"name", "template"} <= set(t)}
            if "default" not in named:
                names = ", ".join(map(str, named)) or "none"
                raise UserError(
                    f"the model has no chat template named 'default' (there are: {names}); continue text with tellme run, without --chat"
                )
            source = named["default"]
        if source is None:
            raise UserError("the model has no chat template; leave --chat out, or use a model that was made for chats")
        if not isinstance(source, str):
            raise UserError("chat_template of tokenizer_config.json is neither a text nor a list of named templates")
        return ChatTemplate(source, tokens)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Text of a conversation.

        Parameters
        ----------
        messages : each {"role": "system" | "user" | "assistant" | ..., "content": text}, oldest first.
        add_generation_prompt : end with what starts the assistant's turn.
        tools : functions that the model may call, as OpenAI describes them.

        Raises
        ------
        UserError : no messages, or the template refuses them, fails, or leaves its bounds.
        """
        if not messages:
            raise UserError("a conversation needs at least one message")
        data = _plain([{k: v for k, v in m.items() if v is not None} for m in messages])
        try:
            with _deadline(MAX_SECONDS):
                return _bounded_join(
                    self._template.generate(
                        messages=data,
                        tools=None if tools is None else _plain(list(tools)),
                        documents=None,
                        add_generation_prompt=add_generation_prompt,
                        **self._tokens,
                    )
                )
        except (SecurityError, MemoryError, RecursionError, OverflowError) as e:
            raise UserError(f"the chat template was stopped: {_line(e)}") from e
        except TemplateError as e:
            raise UserError(f"the chat template refuses this conversation: {_line(e)}") from e
        except Exception as e:  # a template can raise whatever Python can
            raise UserError(f"the chat template fails: {_line(e)}") from e


def _plain(value: Any) -> Any:
    """JSON types only: nothing whose methods the sandbox does not know."""
    return json.loads(json.dumps(value))


def _line(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:300]
    return text or type(error).__name__
