"""Chat templates render as `transformers` renders them, and hostile ones end in one line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import processors

from tellme.host.errors import UserError
from tellme.host.text.template import MAX_SOURCE, ChatTemplate
from tellme.host.text.tokenizer import Files, Tokenizer
from tests.host.support import DEMO
from tests.oracle.chat_cases import BOS, CONVERSATIONS, EOS, TEMPLATES, VECTORS

CASES = json.loads(VECTORS.read_text(encoding="utf-8"))["cases"]
TOKENS = {"bos_token": BOS, "eos_token": EOS}
USER = [{"role": "user", "content": "Hi"}]


def with_template(template: Any, **config: Any) -> Tokenizer:
    values = {"bos_token": BOS, "eos_token": {"content": EOS}, "chat_template": template} | config
    return Tokenizer(Files((DEMO / "tokenizer.json").read_bytes(), json.dumps(values).encode()), 1024)


def render(source: str) -> str:
    return ChatTemplate(source, TOKENS).render(USER)


def test_vectors_cover_every_template_and_conversation():
    assert {(c["template"], c["conversation"]) for c in CASES} == {(t, c) for t in TEMPLATES for c in CONVERSATIONS}
    assert sum(c["text"] is None for c in CASES) <= len(CASES) // 4


@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c['template']}-{c['conversation']}-{c['add_generation_prompt']}"
)
def test_text_and_ids_equal_transformers(case: dict[str, Any]):
    tokenizer, messages = with_template(TEMPLATES[case["template"]]), CONVERSATIONS[case["conversation"]]
    if case["text"] is None:
        with pytest.raises(UserError, match="^the chat template (refuses|fails)"):
            tokenizer.encode_chat(messages, case["add_generation_prompt"])
        return
    assert tokenizer.chat_template.render(messages, case["add_generation_prompt"]) == case["text"]
    assert tokenizer.encode_chat(messages, case["add_generation_prompt"]) == case["ids"]


def test_document_start_stands_once():
    t = with_template(TEMPLATES["bitnet-2b-4t"])
    ids = t.encode_chat(USER)
    assert ids[0] == t.bos_id and ids.count(t.bos_id) == 1
    assert with_template(TEMPLATES["chatml"]).encode_chat(USER).count(t.bos_id) == 0


def test_a_post_processor_adds_no_second_document_start():
    library = Library.from_file(str(DEMO / "tokenizer.json"))
    library.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    config = json.dumps({"bos_token": BOS, "chat_template": "{{ bos_token }}{{ messages[0].content }}"}).encode()
    t = Tokenizer(Files(library.to_str().encode(), config), 1024)
    # Nor does what it puts behind a text belong behind a prompt, which is continued.
    assert t.encode("Hi") == [0, *t.encode_chat(USER)[1:]] == t.encode_chat(USER)
    assert t.encode("<s>Hi") == t.encode("Hi") and t.encode("") == [0]
    assert t.encode_chat(USER).count(0) == 1 and 1 not in t.encode_chat(USER)


def test_named_templates_give_the_default():
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert with_template(named).chat_template.render(USER) == "plain"
    with pytest.raises(
        UserError, match=r"no chat template named 'default' \(there are: tool_use\); continue text with tellme run"
    ):
        with_template(named[:1]).encode_chat(USER)


def test_a_template_in_its_own_file_is_read(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": BOS, "chat_template": "old"}))
    assert Tokenizer(Files.read(tmp_path), 1024).chat_template.render(USER) == "old"
    (tmp_path / "chat_template.jinja").write_text("new: {{ bos_token }}{{ messages[0].content }}é\n", encoding="utf-8")
    assert Tokenizer(Files.read(tmp_path), 1024).chat_template.render(USER) == "new: <s>Hié"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="chat_template.jinja: cannot be read as UTF-8 text"):
        Files.read(tmp_path)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the model has no chat template; leave --chat out"),
        (7, "chat_template of tokenizer_config.json is neither a text nor a list"),
        ([7, {"name": "x"}], r"no chat template named 'default' \(there are: none\)"),
        ("{% if %}", "the chat template cannot be compiled: line 1: "),
        ("\n\n{{ x | nofilter }}", "the chat template cannot be compiled: line 3: No filter named 'nofilter'"),
        ("{% for m in messages %}", "the chat template cannot be compiled: line 1: Unexpected end of template"),
        ("(" * 10 + "{{ " + "(" * 3000 + ")" * 3000 + " }}", "the chat template cannot be compiled: "),
        ("x" * (MAX_SOURCE + 1), "the chat template has 262,145 characters; at most 262,144 are supported"),
        ("", "the chat template makes no text of this conversation"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(template: Any, message: str):
    with pytest.raises(UserError, match=message) as e:
        with_template(template).encode_chat(USER)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no\n system') }}", "refuses this conversation: no system"),
        ("{{ missing.field }}", "refuses this conversation: 'missing' is undefined"),
        ("{{ 1 / 0 }}", "fails: division by zero"),
        ("{{ messages + 1 }}", "fails: "),
        # the sandbox
        ("{{ ''.__class__.__mro__ }}", "was stopped: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "was stopped: "),
        ("{{ messages[0].update(a=1) }}", "was stopped: "),
        ("{{ cycler.__init__.__globals__ }}", "was stopped: "),
        ("{{ (messages | attr('pop'))() }}", "was stopped: "),
        # size
        ("{{ 'x' * 2000000 }}", "was stopped: it makes more than 1,048,576 characters"),
        ("{{ 2000000 * 'x' }}", "was stopped: it makes more than"),
        ("{{ [1] * 2000000 }}", "was stopped: it makes more than"),
        ("{{ 9 ** (9 ** 9) }}", "was stopped: it makes a number of more than 4,096 bits"),
        ("{{ '%99999999d' % 1 }}", "was stopped: it formats to a width"),
        ("{{ 'a'.ljust(10000000000) }}", "was stopped: it calls a function with the number"),
        ("{{ '{:>99999999}'.format(1) }}", "was stopped: it formats to a width"),
        ("{{ '%99999999d' | format(1) }}", "was stopped: it formats to a width"),
        ("{{ 'a' | center(1000000000) }}", "was stopped: it calls a function with the number"),
        ("{{ ('aaaaaaaaaa' * 100000) | replace('a', 'aaaaaaaaaaaa') }}", "was stopped: it makes more than"),
        ("{% for i in range(1000000000) %}{% endfor %}", "was stopped: "),
        ("{% for i in range(99999) %}0123456789012345{% endfor %}", "was stopped: it makes more than"),
        ("{% set s = namespace(x='ab') %}{% for i in range(99) %}{% set s.x = s.x ~ s.x %}{% endfor %}", "was stopped"),
        ("{% set s = namespace(x='ab') %}{% for i in range(99) %}{% set s.x = s.x + s.x %}{% endfor %}", "was stopped"),
        (
            "{% set s = namespace(x='ab') %}{% for i in range(99) %}{% set t %}{{ s.x }}{{ s.x }}{% endset %}"
            "{% set s.x = t %}{% endfor %}",
            "was stopped",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "was stopped: maximum recursion depth"),
    ],
)
def test_templates_that_fail_or_leave_their_bounds_are_stopped_in_one_line(source: str, message: str):
    start = time.monotonic()
    with pytest.raises(UserError, match=f"^the chat template {message}") as e:
        render(source)
    assert "\n" not in str(e.value)
    assert time.monotonic() - start < 3


def test_a_template_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tellme.host.text.template.MAX_SECONDS", 0.2)
    loops = "".join(f"{{% for i{k} in range(9999) %}}" for k in range(4)) + "{% endfor %}" * 4
    start = time.monotonic()
    with pytest.raises(UserError, match="was stopped: it takes longer than 0.2 s"):
        render(loops)
    assert time.monotonic() - start < 2


def test_messages_are_left_as_they_were_and_none_is_refused():
    messages = [{"role": "user", "content": "x", "name": None}]
    assert ChatTemplate("{{ messages[0] | tojson }}", {}).render(messages) == '{"role": "user", "content": "x"}'
    assert messages == [{"role": "user", "content": "x", "name": None}]
    with pytest.raises(UserError, match="at least one message"):
        ChatTemplate("x", {}).render([])
