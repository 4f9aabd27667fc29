"""Chat templates in the style of the published models, and conversations to render with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parent / "vectors" / "chat.json"

BOS, EOS = "<s>", "</s>"
"""Of the demo model's tokenizer, with which the vectors' token ids are made."""

TEMPLATES = {
    # BitNet b1.58 2B-4T: capitalised role, colon, trimmed content, end of turn.
    "bitnet-2b-4t": (
        "{% for message in messages %}"
        "{% set text = message['role'] | capitalize + ': ' + message['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.first %}{% set text = bos_token + text %}{% endif %}"
        "{{ text }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
    ),
    # Llama 3: headers with special tokens, a system block with dates when there are tools or not.
    "llama-3": (
        "{{- bos_token }}\n"
        "{%- if date_string is not defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}\n"
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content'] | trim %}\n"
        "    {%- set messages = messages[1:] %}\n"
        "{%- else %}\n"
        "    {%- set system_message = '' %}\n"
        "{%- endif %}\n"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}\n"
        "{%- if tools is not none %}{{- 'Environment: ipython\\n' }}{%- endif %}\n"
        "{{- 'Today Date: ' + date_string + '\\n\\n' }}\n"
        "{{- system_message }}\n"
        "{{- '<|eot_id|>' }}\n"
        "{%- for message in messages %}\n"
        "    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}\n"
        "        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + "
        "'<|eot_id|>' }}\n"
        "    {%- elif 'tool_calls' in message %}\n"
        "        {%- if not message.tool_calls | length == 1 %}\n"
        '            {{- raise_exception("This model only supports single tool-calls at once!") }}\n'
        "        {%- endif %}\n"
        "        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
        "        {{- message.tool_calls[0].function | tojson }}\n"
        "        {{- '<|eot_id|>' }}\n"
        "    {%- else %}\n"
        "        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}\n"
        "        {{- message.content | tojson if message.content is mapping else message.content }}\n"
        "        {{- '<|eot_id|>' }}\n"
        "    {%- endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
        "{%- endif %}\n"
    ),
    # Falcon 3: tags of the role, end token behind each answer, no document start.
    "falcon-3": (
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}"
        "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{% if not loop.last %}{{ '<|assistant|>\n' + message['content'] + eos_token + '\n' }}"
        "{% else %}{{ '<|assistant|>\n' + message['content'] + eos_token }}{% endif %}"
        "{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
        "{% endfor %}"
    ),
    # ChatML, laid out over lines: whitespace around blocks goes.
    "chatml": (
        "{% for message in messages %}\n"
        "    {% if loop.first and message['role'] != 'system' %}\n"
        "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}\n"
        "    {% endif %}\n"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}\n"
        "{{ '<|im_start|>assistant\\n' }}\n"
        "{% endif %}\n"
    ),
    # Llama 2 style: strict turns, a namespace, loop controls, document start and end around each exchange.
    "llama-2": (
        "{% set ns = namespace(system='', turns=0) %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' %}{% set ns.system = message['content'] %}{% continue %}{% endif %}"
        "{% if (message['role'] == 'user') != (ns.turns % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + ('<<SYS>>\n' ~ ns.system ~ '\n<</SYS>>\n\n' if ns.system and ns.turns == 0 else '')"
        " ~ message['content'].strip() + ' [/INST]' }}"
        "{% else %}{% generation %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}"
        "{% set ns.turns = ns.turns + 1 %}"
        "{% endfor %}"
    ),
    # Filters and functions: JSON without HTML escapes, in every form, and a macro.
    "json": (
        "{% macro turn(m) -%}{{ m | tojson }}|{{ m | tojson(indent=2, sort_keys=true) }}|{{ m.content | upper }}{%- endmacro %}"
        "{% for m in messages %}{{ turn(m) }}{% if loop.index0 >= 3 %}{% break %}{% endif %}\n{% endfor %}"
        "{{ unk_token is defined }} {{ (strftime_now('%Y') | int) > 2000 }} {{ dict(a=1) | tojson }} {{ range(3) | list }}"
    ),
}


def _turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [_turn("user", "How are you?")],
    "system": [_turn("system", " You are <b>kind</b> & short. "), _turn("user", "  Hello,\n\tworld!  ")],
    "long": [
        _turn("system", "Be brief."),
        _turn("user", "naïve café – “quotes”, 東京 🙂👩‍👩‍👧"),
        _turn("assistant", "Yes: {{ 7 * 7 }} {% if %} </s> <s>"),
        _turn("user", "a \"quoted\" \\ line\r\n\r\nand 'more'"),
        _turn("assistant", "Fine."),
        _turn("user", ""),
    ],
    "wrong order": [_turn("assistant", "I was first."), _turn("user", "No.")],
    "tools": [
        _turn("user", "Weather?"),
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "w", "arguments": {"city": "Zürich <1>"}}}],
        },
        _turn("ipython", "12 °C"),
    ],
}
