"""The vocabulary of a GGUF file as a tokenizer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.host.checkpoints.gguf.header import Header
from tellme.host.errors import UserError
from tellme.host.text.tokenizer import Files, Tokenizer
from tellme.host.text.vocabulary import (
    MAX_PIECES,
    SPLITS,
    TURN_ENDS,
    Kind,
    Piece,
    SentencePiece,
    byte_level_json,
    sentencepiece_json,
)

_NO_TOKEN = (-1, 0xFF, 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF)
"""-1 in an integer of any kind; only beyond the vocabulary does it mean that there is no such token."""
_UNUSED = ("unknown", "padding")
"""Special tokens that say nothing of where a text begins or ends: beyond the vocabulary, as a padding token that was added behind it,
they are left out with a word, as llama.cpp does."""


def _pieces(g: Header, vocab: int) -> list[Piece]:
    texts = g.texts("tokenizer.ggml.tokens")
    if not 0 < len(texts) <= min(vocab, MAX_PIECES):
        raise UserError(f"{g.path}: its vocabulary has {len(texts):,} tokens, token_embd.weight {vocab:,} rows")

    def numbers(name: str, default: int, kinds: str) -> NDArray[Any]:
        value = g.fields.get(f"tokenizer.ggml.{name}", np.full(len(texts), default))
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or len(value) != len(texts):
            raise UserError(f"{g.path}: tokenizer.ggml.{name} must hold {len(texts):,} numbers, one for each token")
        return value

    scores, kinds = numbers("scores", 0, "fiu"), numbers("token_type", Kind.NORMAL, "iu")
    if len(kinds) and not (kinds.min() >= min(Kind) and kinds.max() <= max(Kind)):
        bad = int(np.argwhere((kinds < min(Kind)) | (kinds > max(Kind)))[0, 0])
        raise UserError(
            f"{g.path}: tokenizer.ggml.token_type[{bad}] is {kinds[bad]}; types are {min(Kind):d} to {max(Kind):d}"
        )
    return [Piece(t, float(s), Kind(int(k))) for t, s, k in zip(texts, scores, kinds, strict=True)]


def read_tokenizer(g: Header, vocab: int, notes: list[str]) -> tuple[Files, tuple[int, ...]]:
    """The vocabulary as tokenizer.json, what tokenizer_config.json would say, and the tokens that end a text; what was left out goes to `notes`."""
    model = g.text("tokenizer.ggml.model")
    pieces = _pieces(g, vocab)

    def token(name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in g.fields:
            return None
        i = g.fields[key]
        if type(i) is int and i in _NO_TOKEN and not 0 <= i < len(pieces):
            return None
        if type(i) is int and i >= len(pieces) and name in _UNUSED:
            notes.append(
                f"{g.path}: {key} is {i}, but the vocabulary has {len(pieces):,} tokens; it is left out, as no text needs it"
            )
            return None
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(pieces):
            raise UserError(f"{g.path}: {key} is {str(i)[:50]!r}; the vocabulary has {len(pieces):,} tokens")
        return i

    def or_control(i: int | None, default: int, kind: Kind = Kind.CONTROL) -> int | None:
        """llama.cpp's default for vocabularies of the Llama kind, if that is such a token."""
        return default if i is None and default < len(pieces) and pieces[default].kind == kind else i

    bos, eos, unknown = token("bos"), token("eos"), token("unknown")
    if model == "llama":
        if "tokenizer.ggml.scores" not in g.fields:
            raise UserError(f"{g.path}: tokenizer.ggml.scores is missing; a vocabulary of the kind 'llama' needs it")
        bos, eos, unknown = or_control(bos, 1), or_control(eos, 2), or_control(unknown, 0, Kind.UNKNOWN)
        add_bos = True
        source = SentencePiece(
            pieces,
            prefix=g.flag("tokenizer.ggml.add_space_prefix", True),
            squeeze=g.flag("tokenizer.ggml.remove_extra_whitespaces", False),
            unknown=-1 if unknown is None else unknown,
        )

        def make(begin: int) -> bytes:
            return sentencepiece_json(source, str(g.path), begin=begin)

    elif model == "gpt2":
        # Early files of bitnet-b1.58-2B-4T do not say how words are cut; its vocabulary is Llama 3's.
        default = "llama-bpe" if any(p.text == "<|begin_of_text|>" for p in pieces) else "default"
        split = g.text("tokenizer.ggml.pre", default)
        add_bos = split in SPLITS and SPLITS[split].bos

        def make(begin: int) -> bytes:
            return byte_level_json(pieces, g.texts("tokenizer.ggml.merges"), split, str(g.path), begin=begin)

    else:
        raise UserError(f"{g.path}: tokenizer.ggml.model is {model!r}; supported are 'llama' and 'gpt2'")
    add_bos = g.flag("tokenizer.ggml.add_bos_token", add_bos)
    if "tokenizer.huggingface.json" in g.fields:
        data = g.text("tokenizer.huggingface.json").encode()
    else:
        data = make(bos if add_bos and bos is not None else -1)
    config: dict[str, Any] = {
        "add_bos_token": add_bos,
        "add_eos_token": g.flag("tokenizer.ggml.add_eos_token", False),
    }
    for name, i in (("bos", bos), ("eos", eos), ("unk", unknown), ("pad", token("padding"))):
        if i is not None:
            config[f"{name}_token"] = pieces[i].text
    templates = _templates(g)
    if templates is not None:
        config["chat_template"] = templates
    files = Files(data, json.dumps(config, ensure_ascii=False).encode())
    Tokenizer(files, vocab)  # raises if it cannot be used
    ends = [eos, token("eot"), token("eom")]
    ends += [i for i, p in enumerate(pieces) if p.text in TURN_ENDS]
    return files, tuple(dict.fromkeys(i for i in ends if i is not None))


def _templates(g: Header) -> str | list[dict[str, str]] | None:
    """The chat template, or all of them by name."""
    key = "tokenizer.chat_template"
    main = g.text(key) if key in g.fields else None
    named = {k.removeprefix(f"{key}."): g.text(k) for k in g.fields if k.startswith(f"{key}.")}
    if not named:
        return main
    if main is not None:
        named = {"default": main} | named
    return [{"name": name, "template": template} for name, template in named.items()]
