"""Tokenizers of checkpoint folders as they are published and saved, and texts to encode with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.models import DEMO

VECTORS = Path(__file__).parent / "vectors" / "tokenizers.json"
PIECES = 500
MODELS = {
    "prefix": Path(__file__).parent / "vectors" / "prefix.tokenizer.model",
    "plain": Path(__file__).parent / "vectors" / "plain.tokenizer.model",
}
"""Sentencepiece models (BPE, byte fallback) of PIECES pieces, with and without a space that begins a text."""

TEXTS = [
    "One day, a small fox", "One day<|end|>\n\ny", "One day <|end|> x", "a<|end|>b", "a <|end|> <|end|> b", "<|end|>", "x<|end|>y z",
    " <|user|> hi", "a</s> b", "a </s>b", "<|user|>\nHi <|end|>\n<|user|>", "a<pad> b",
]  # fmt: skip

Files = dict[str, Any]
"""Files of a folder: bytes, or what is written as JSON."""


def token(content: str, **flags: bool) -> dict[str, Any]:
    """An added token as tokenizer_config.json has it."""
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    return {"content": content, **plain, **flags}


FLAGS: dict[str, dict[str, bool]] = {
    "plain": {},
    "rstrip": {"rstrip": True},
    "lstrip": {"lstrip": True},
    "both": {"lstrip": True, "rstrip": True},
    "word": {"single_word": True},
    "text": {"special": False},
    "normalized": {"normalized": True},
    "all": {"lstrip": True, "rstrip": True, "normalized": True, "special": False},
}
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _decoder(first: int, **flags: bool) -> dict[str, Any]:
    return {str(first): token("<|user|>"), str(first + 1): token("<|end|>", **flags)}


def _sentencepiece() -> dict[str, Files]:
    cases: dict[str, Files] = {}
    for model, path in MODELS.items():
        data = path.read_bytes()

        def case(name: str, config: Files, data: bytes = data, model: str = model, **files: Any) -> None:
            cases[f"{model}-{name}"] = {"tokenizer.model": data, "tokenizer_config.json": config, **files}

        # transformers' LlamaTokenizer puts a space before a text whatever the model says; sentencepiece and llama.cpp do not, and nor do we.
        for cls in ("LlamaTokenizer", "PreTrainedTokenizerFast")[model == "plain" :]:
            base: Files = {"tokenizer_class": cls, "add_bos_token": True, **NAMES}
            short = cls[:5]
            for legacy in (None, True, False):
                said = {} if legacy is None else {"legacy": legacy}
                for name, flags in FLAGS.items():
                    case(f"{short}-{legacy}-{name}", base | said | {"added_tokens_decoder": _decoder(PIECES, **flags)})
            case(f"{short}-no-bos", base | {"add_bos_token": False})
            case(f"{short}-eos", base | {"add_eos_token": True})
            case(f"{short}-builtin", base | {"added_tokens_decoder": {"2": token("</s>", rstrip=True)}})
            numbers = {"<|user|>": PIECES, "<|end|>": PIECES + 1}
            for name, found in {
                "none": {},
                "named": {"eos_token": token("<|end|>", rstrip=True)},
                "list": {"additional_special_tokens": [token("<|end|>", rstrip=True)]},
            }.items():
                case(
                    f"{short}-added-{name}",
                    dict(base),
                    **{"added_tokens.json": numbers, "special_tokens_map.json": found},
                )
            pad = token("<pad>", rstrip=True)
            case(f"{short}-map-pad", dict(base), **{"special_tokens_map.json": {"pad_token": pad}})
            case(f"{short}-config-pad", base | {"pad_token": {"__type": "AddedToken", **pad}})
            case(
                f"{short}-config-list",
                base | {"additional_special_tokens": ["<|user|>", "<|end|>"], "pad_token": "<pad>"},
            )
            case(f"{short}-unknown", base | {"unk_token": {"__type": "AddedToken", **token("<unk>", rstrip=True)}})
    return cases


def _bytes() -> dict[str, Files]:
    demo = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8")) | {"post_processor": None}
    a, start, end = (
        {"Sequence": {"id": "A", "type_id": 0}},
        *({"SpecialToken": {"id": t, "type_id": 0}} for t in ("<s>", "</s>")),
    )
    names = {t: {"id": t, "ids": [i], "tokens": [t]} for i, t in enumerate(("<s>", "</s>"))}
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}

    def template(*parts: Any) -> Files:
        pair = [*parts, {"Sequence": {"id": "B", "type_id": 0}}]
        return {"type": "TemplateProcessing", "single": list(parts), "pair": pair, "special_tokens": names}

    processors: dict[str, Any] = {
        "none": None,
        "bytes": level,
        "bos": template(start, a),
        "bos-eos": template(start, a, end),
        "llama-3": {"type": "Sequence", "processors": [level, template(start, a)]},
    }
    cases: dict[str, Files] = {}
    for cls in (
        "PreTrainedTokenizerFast",
        "TokenizersBackend",
        "LlamaTokenizer",
        "LlamaTokenizerFast",
        "GPT2Tokenizer",
        None,
    ):
        for add in (None, True, False):
            for name, processor in processors.items():
                config: Files = {"bos_token": "<s>", "eos_token": "</s>"} | ({"tokenizer_class": cls} if cls else {})
                config |= {} if add is None else {"add_bos_token": add, "add_eos_token": add}
                files: Files = {"tokenizer.json": demo | {"post_processor": processor}, "tokenizer_config.json": config}
                cases[f"bytes-{cls}-{add}-{name}"] = files
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    fill = {"direction": "Left", "pad_id": 1, "pad_type_id": 0, "pad_token": "</s>", "pad_to_multiple_of": None}
    for name, saved in {
        "truncation": {"truncation": cut},
        "truncation-left": {"truncation": cut | {"direction": "Left"}},
        "padding-fixed": {"padding": fill | {"strategy": {"Fixed": 16}, "direction": "Right"}},
        "padding-longest": {"padding": fill | {"strategy": "BatchLongest", "pad_to_multiple_of": 8}},
        "both": {"truncation": cut, "padding": fill | {"strategy": {"Fixed": 16}}},
    }.items():
        for post in ("none", "bos"):
            files = {
                "tokenizer.json": demo | saved | {"post_processor": processors[post]},
                "tokenizer_config.json": config,
            }
            cases[f"bytes-{name}-{post}"] = files
    tokens = demo["added_tokens"]
    for name, flags in FLAGS.items():
        changed = [tokens[0], {"id": 1, **token("</s>", **flags)}]
        saved = demo | {"added_tokens": changed}
        cases[f"bytes-saved-{name}"] = {"tokenizer.json": saved, "tokenizer_config.json": config}
        said = config | {"added_tokens_decoder": {"0": token("<s>"), "1": token("</s>", **flags)}}
        cases[f"bytes-said-{name}"] = {"tokenizer.json": demo, "tokenizer_config.json": said}
        said = config | {"added_tokens_decoder": {"0": token("<s>"), "1": token("</s>")}}
        cases[f"bytes-unsaid-{name}"] = {"tokenizer.json": saved, "tokenizer_config.json": said}
        said = config | {"added_tokens_decoder": _decoder(1024, **flags)}
        cases[f"bytes-more-{name}"] = {"tokenizer.json": demo, "tokenizer_config.json": said}
    more = {"<|user|>": 1024, "<|end|>": 1025}
    cases["bytes-file"] = {"tokenizer.json": demo, "tokenizer_config.json": config, "added_tokens.json": more}
    return cases


def cases() -> dict[str, Files]:
    """Every folder, by name."""
    return _sentencepiece() | _bytes()


def write(folder: Path, files: Files) -> Path:
    """Writes a folder."""
    folder.mkdir(parents=True)
    for name, value in files.items():
        (folder / name).write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return folder
