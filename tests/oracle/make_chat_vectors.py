"""Renders the conversations with `transformers` and writes what it makes of them; `make oracle` runs this."""

from __future__ import annotations

import json
import sys
from typing import Any

import transformers

from tests.models import DEMO
from tests.oracle.chat_cases import BOS, CONVERSATIONS, EOS, TEMPLATES, VECTORS


def main() -> int:
    """Writes the vectors: per template, conversation and ending the text and its ids, or null where it is refused."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(DEMO / "tokenizer.json"), bos_token=BOS, eos_token=EOS
    )
    cases: list[dict[str, Any]] = []
    for name, template in TEMPLATES.items():
        for title, messages in CONVERSATIONS.items():
            for prompt in (True, False):
                case: dict[str, Any] = {"template": name, "conversation": title, "add_generation_prompt": prompt}
                options: dict[str, Any] = {"chat_template": template, "add_generation_prompt": prompt}
                try:
                    case["text"] = tokenizer.apply_chat_template(messages, tokenize=False, **options)
                    case["ids"] = tokenizer.apply_chat_template(messages, return_dict=False, **options)
                except Exception as e:
                    print(f"{name}, {title}: {' '.join(str(e).split())}")
                    case["text"] = case["ids"] = None
                cases.append(case)
    out = {"versions": f"transformers {transformers.__version__}", "cases": cases}
    VECTORS.write_text(json.dumps(out, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(f"{VECTORS}: {VECTORS.stat().st_size} bytes, {len(cases)} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
