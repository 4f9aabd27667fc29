"""Text to token ids and back, incrementally, over the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as _Tokenizer

from host import vocabulary
from host.chat import ChatTemplate, Message
from host.errors import UserError
from host.tensors import read_json

REPLACEMENT = "\ufffd"


def _content(token: Any) -> str | None:
    """tokenizer_config.json names a token as a string or as {"content": string}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


@dataclass(frozen=True)
class Files:
    """The bytes a tokenizer is made from, as a checkpoint holds them and an image keeps them.

    `tokenizer` is a tokenizer.json, `config` a tokenizer_config.json with the chat template in it.
    """

    tokenizer: bytes
    config: bytes = b"{}"

    @staticmethod
    def read(folder: Path) -> Files:
        """From a checkpoint folder. A chat template in a file of its own is put into `config`, which it overrides.

        Raises
        ------
        UserError : there is no tokenizer, or a file cannot be read.
        """
        config = _read_config(folder)
        path, model = folder / "tokenizer.json", folder / "tokenizer.model"
        if path.exists() or not model.exists():
            try:
                text = path.read_bytes()
            except OSError as e:
                raise UserError(
                    f"{path}: cannot be read ({e.strerror}); a checkpoint needs its tokenizer.json or tokenizer.model"
                ) from e
        else:
            text = _convert_model(folder, config)
        return Files(text, json.dumps(config, ensure_ascii=False).encode())


_MAX_TEMPLATE = 1 << 20
_MAX_MODEL = 1 << 26
"""Bytes of a chat template, and of a sentencepiece model, that are read."""


def _read(path: Path, limit: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > limit:
            raise UserError(f"{path}: has {size:,} bytes, at most {limit:,} are read")
        return path.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e


def _read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json with chat_template.jinja (what newer checkpoints have) in it, and special tokens that only special_tokens_map.json
    names."""
    path, template, tokens = (
        folder / n for n in ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
    )
    config: dict[str, Any] = read_json(path) if path.exists() else {}
    if tokens.exists():
        config = {k: v for k, v in read_json(tokens).items() if k.endswith("_token")} | config
    if template.exists():
        try:
            config["chat_template"] = _read(template, _MAX_TEMPLATE).decode()
        except ValueError as e:
            raise UserError(f"{template}: cannot be read as UTF-8 text ({e})") from e
    return config


def _convert_model(folder: Path, config: dict[str, Any]) -> bytes:
    """tokenizer.model as tokenizer.json, with the tokens that a checkpoint added to it; fills in what `config` does not say."""
    path = folder / "tokenizer.model"
    model = vocabulary.read_sentencepiece(_read(path, _MAX_MODEL), str(path))
    added = folder / "added_tokens.json"
    extra: dict[int, tuple[str, bool]] = {}
    try:
        for text, i in (read_json(added) if added.exists() else {}).items():
            extra[int(i)] = (text, False)
        for number, token in (config.get("added_tokens_decoder") or {}).items():
            extra[int(number)] = (str(token["content"]), bool(token.get("special", False)))
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"{folder}: the added tokens of its tokenizer are damaged") from e
    pieces = list(model.pieces)
    for i, (text, special) in sorted(extra.items()):
        kind = vocabulary.Kind.CONTROL if special else vocabulary.Kind.USER_DEFINED
        if i == len(pieces):
            pieces.append(vocabulary.Piece(text, 0.0, kind))
        elif not 0 <= i < len(pieces) or pieces[i].text != text:
            raise UserError(
                f"{folder}: added token {i} ({text!r}) does not follow the {len(pieces)} tokens of tokenizer.model, nor is it one of them"
            )
        elif pieces[i].kind == vocabulary.Kind.NORMAL:
            pieces[i] = vocabulary.Piece(text, pieces[i].score, kind)
    for name, token in (("bos_token", model.bos), ("eos_token", model.eos)):
        if token >= 0:
            config.setdefault(name, pieces[token].text)
    model = replace(model, pieces=pieces, prefix=model.prefix and config.get("add_prefix_space", True) is not False)
    return vocabulary.sentencepiece_json(model, str(path), legacy=config.get("legacy", True) is not False)


class Tokenizer:
    """Encodes prompts and decodes what a model says.

    Parameters
    ----------
    files : contents of tokenizer.json and tokenizer_config.json.
    vocab : the model's vocabulary; a prompt with a token beyond it is refused.

    A prompt starts with the document-start token (`bos_token` of tokenizer_config.json) unless that file says
    `"add_bos_token": false`, or tokenizer.json's own post-processor has put it there.
    """

    def __init__(self, files: Files, vocab: int):
        try:
            self._tokenizer = _Tokenizer.from_buffer(files.tokenizer)
        except Exception as e:  # the library raises bare Exception
            raise UserError(f"tokenizer.json cannot be used: {' '.join(str(e).split())}") from e
        try:
            config = json.loads(files.config)
        except ValueError as e:
            raise UserError(f"tokenizer_config.json is not JSON: {e}") from e
        if not isinstance(config, dict):
            raise UserError("tokenizer_config.json is not a JSON object")
        self.vocab = vocab
        self.bos_id = self._id(config, "bos_token")
        self.eos_id = self._id(config, "eos_token")
        self._config = config
        self._add_bos = self.bos_id is not None and config.get("add_bos_token", True) is not False

    def _id(self, config: dict[str, Any], name: str) -> int | None:
        token = _content(config.get(name))
        return None if token is None else self._tokenizer.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, never empty.

        Raises
        ------
        UserError : the prompt is empty and there is no document-start token, or a token is beyond the vocabulary.
        """
        ids = self._encode(text, add_special_tokens=True)
        if self._add_bos and ids[:1] != [self.bos_id]:
            assert self.bos_id is not None
            ids.insert(0, self.bos_id)
        if not ids:
            raise UserError("the prompt is empty, and this model has no document-start token; give it some text")
        return self._check(ids)

    def encode_document(self, text: str) -> list[int]:
        """Token ids of a whole document: its text between the model's document-start and end tokens, where it has them.

        Raises
        ------
        UserError : a token is beyond the vocabulary.
        """
        ids = self._encode(text, add_special_tokens=False)
        begin = [] if self.bos_id is None else [self.bos_id]
        end = [] if self.eos_id is None else [self.eos_id]
        return self._check([*begin, *ids, *end])

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint came with a chat template."""
        return self._config.get("chat_template") is not None

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template, with the texts of its special tokens.

        Raises
        ------
        UserError : it has none, or it cannot be used.
        """
        names = [n for n in self._config if n.endswith("_token")]
        tokens = {name: text for name in names if (text := _content(self._config[name])) is not None}
        return ChatTemplate.from_config(self._config, tokens)

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, never empty. The template writes the document start where the model has one: nothing is
        added to its text, in which special tokens are read as such.

        Raises
        ------
        UserError : no chat template, or it refuses the messages; or a token beyond the vocabulary.
        """
        ids = self._encode(self.chat_template.render(messages, add_generation_prompt), add_special_tokens=False)
        if not ids:
            raise UserError("the chat template makes no text of this conversation")
        return self._check(ids)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        except Exception as e:
            raise UserError(f"the prompt cannot be encoded: {' '.join(str(e).split())}") from e

    def _check(self, ids: list[int]) -> list[int]:
        if max(ids) >= self.vocab:
            raise UserError(
                f"the prompt has token {max(ids)}, but the model's vocabulary is {self.vocab}; "
                "the tokenizer does not belong to this model"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self._tokenizer.decode([i for i in ids if i < self._tokenizer.get_vocab_size()])


class Detokenizer:
    """Turns ids into text as they come. A character whose bytes are not all there yet is held back.

    Sub-word decoders look at their neighbours (leading spaces, bytes of one character), so a piece is what a window of
    recent ids says with the new id less what it says without. `prompt` is what came before, so that the first piece
    keeps its leading space.
    """

    WINDOW = 8
    """Ids of the prompt that the first piece sees."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._ids = list(prompt[-self.WINDOW :])
        self._start = 0  # first id of the window
        self._read = len(self._ids)  # ids whose text has been given out

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is incomplete."""
        self._ids.append(token)
        return self._take(final=False)

    def finish(self) -> str:
        """What is left when no token will follow; bytes that make no character become U+FFFD."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        after = self._tokenizer.decode(self._ids[self._start :])
        if after.endswith(REPLACEMENT) and not final:
            return ""
        if len(after) <= len(before):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return after[len(before) :]
