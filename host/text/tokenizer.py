"""Text to token ids and back, incrementally, over the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tellme.host.errors import UserError, missing_package
from tellme.host.files import read_json
from tellme.host.text import vocabulary
from tellme.host.text.streams import checked
from tellme.host.text.template import ChatTemplate, Message
from tellme.host.text.vocabulary import Kind, Piece

try:
    from tokenizers import AddedToken, Encoding
    from tokenizers import Tokenizer as _Tokenizer
except ImportError as e:  # 32-bit boards have none, and need none for ids
    _missing: ImportError | None = e
else:
    _missing = None

REPLACEMENT = "\ufffd"


def _need_library(what: object) -> None:
    """Refuses `what` where there is no tokenizers library."""
    if _missing is not None:
        raise missing_package(_missing, what) from _missing


def _content(token: Any) -> str | None:
    """tokenizer_config.json names a token as a string or as {"content": string}."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


@dataclass(frozen=True)
class Files:
    """The bytes a tokenizer is made from, as a checkpoint holds them and an image keeps them.

    `tokenizer` is a tokenizer.json, `config` a tokenizer_config.json with the chat template in it. The post-processor of the first says what is put
    before a text; what the second says of that (`add_bos_token`) has been heeded where it counts, when a sentencepiece model was converted.
    """

    tokenizer: bytes
    config: bytes = b"{}"

    @staticmethod
    def read(folder: Path) -> Files:
        """From a checkpoint folder. A chat template in a file of its own is put into `config`, which it overrides.

        Raises
        ------
        UserError : there is no tokenizer, or a file cannot be read, or what it holds cannot be used.
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
            text = _with_added(text, folder, config)
        else:
            text = _convert_model(folder, config)
        files = Files(text, json.dumps(config, ensure_ascii=False).encode())
        if _missing is None:  # where there is no library it has been converted, or is not needed
            try:
                Tokenizer(files, 1)
            except UserError as e:
                raise UserError(f"{folder}: {e}") from e
        return files


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


_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""Special tokens in the order in which transformers adds those that a vocabulary lacks."""


def _flagged(token: Any, *, special: bool) -> Piece:
    """An added token: a string, or an object with "content" and flags; `special` if it does not say, and looked for in normalised text if it neither
    says so nor is special, as in transformers."""
    values = {"content": token} if isinstance(token, str) else dict(token)
    special = values.get("special", special) is True
    flags = {"normalized": not special} | {name: values[name] is True for name in _FLAGS if name in values}
    return Piece(str(values["content"]), kind=Kind.CONTROL if special else Kind.USER_DEFINED, **flags)


def _added_tokens(folder: Path, config: dict[str, Any], *, flagged: bool | None = None) -> dict[int, Piece]:
    """Tokens that a checkpoint adds to its vocabulary: those of `added_tokens_decoder`, with flags, and those of added_tokens.json, without; only
    one of the two kinds if `flagged` says which.

    Raises
    ------
    UserError : they are damaged.
    """
    path, found = folder / "added_tokens.json", dict[int, Piece]()
    try:
        if flagged is not True and path.exists():
            found |= {int(i): _flagged(str(text), special=False) for text, i in read_json(path).items()}
        if flagged is not False:
            decoder = config.get("added_tokens_decoder") or {}
            found |= {int(i): _flagged(dict(token), special=False) for i, token in decoder.items()}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as e:  # int(Infinity)
        raise UserError(f"{folder}: the added tokens of its tokenizer are damaged") from e
    return found


def _with_added(text: bytes, folder: Path, config: dict[str, Any]) -> bytes:
    """A tokenizer.json with the added tokens that tokenizer_config.json gives other flags, or that only a checkpoint's other files have; as it was if
    there are none."""
    said, listed = (_added_tokens(folder, config, flagged=flagged) for flagged in (True, False))
    if not said and not listed:
        return text
    try:
        values = json.loads(text)
        have = {t["content"]: (t["id"], _flagged(t, special=False)) for t in values.get("added_tokens") or ()}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return text  # whoever opens it says what is wrong with it
    added = {i: p for i, p in listed.items() if p.text not in have} | said
    changed = [(i, p) for i, p in sorted(added.items()) if have.get(p.text) != (i, p)]
    if not changed:
        return text
    where = folder / "tokenizer.json"
    _need_library(where)
    try:
        tokenizer = _Tokenizer.from_buffer(text)
        for i, p in changed:
            known, size = tokenizer.token_to_id(p.text), tokenizer.get_vocab_size()
            if known != i and (known is not None or i != size):
                raise UserError(
                    f"{folder}: added token {i} ({p.text!r}) does not follow the {size:,} tokens of tokenizer.json, nor is it one of them"
                )
            flags = {f: getattr(p, f) for f in _FLAGS}
            tokenizer.add_tokens([AddedToken(p.text, special=p.kind == Kind.CONTROL, **flags)])
        return str(tokenizer.to_str()).encode()
    except UserError:
        raise
    except Exception as e:  # the library raises bare Exception
        raise UserError(f"{where}: cannot be used: {' '.join(str(e).split())[:300]}") from e


def _convert_model(folder: Path, config: dict[str, Any]) -> bytes:
    """tokenizer.model as tokenizer.json, with the tokens that a checkpoint added to it; fills in what `config` does not say."""
    path = folder / "tokenizer.model"
    _need_library(path)
    model = vocabulary.read_sentencepiece(_read(path, _MAX_MODEL), str(path))
    pieces = list(model.pieces)
    for i, token in sorted(_added_tokens(folder, config).items()):
        if model.prefix:  # each part between added tokens gets a prefix of its own: they are found in the text as it is
            token = replace(token, normalized=False)
        if i == len(pieces):
            pieces.append(token)
        elif not 0 <= i < len(pieces) or pieces[i].text != token.text:
            raise UserError(
                f"{folder}: added token {i} ({token.text!r}) does not follow the {len(pieces)} tokens of tokenizer.model, nor is it one of them"
            )
        elif pieces[i].kind in (Kind.NORMAL, Kind.CONTROL, Kind.USER_DEFINED):
            special = Kind.CONTROL in (token.kind, pieces[i].kind)
            pieces[i] = replace(token, score=pieces[i].score, kind=Kind.CONTROL if special else Kind.USER_DEFINED)
        elif pieces[i].kind == Kind.UNKNOWN:
            pieces[i] = replace(token, score=pieces[i].score, kind=Kind.UNKNOWN)
    for name, i in (("bos_token", model.bos), ("eos_token", model.eos)):
        if i >= 0:
            config.setdefault(name, pieces[i].text)
    index = {p.text: i for i, p in enumerate(pieces)}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    named = [config.get(name) for name in _NAMED]
    for value in [*named, *(extra if isinstance(extra, list) else [])]:
        text = _content(value)
        if text and text not in index:
            index[text] = len(pieces)
            pieces.append(replace(_flagged(value, special=True), normalized=False, kind=Kind.CONTROL))
    kind = str(config.get("tokenizer_class")).removesuffix("Fast")
    llama = kind in ("LlamaTokenizer", "CodeLlamaTokenizer")
    bos = _content(config.get("bos_token"))
    begin = index.get(bos, -1) if bos is not None and config.get("add_bos_token", True) is not False else -1
    model = replace(model, pieces=pieces, prefix=model.prefix and config.get("add_prefix_space", True) is not False)
    legacy = config.get("legacy")
    return vocabulary.sentencepiece_json(
        model, str(path), legacy=not llama if legacy is None else legacy is not False, llama=llama, begin=begin
    )


class Tokenizer:
    """Encodes prompts and decodes what a model says.

    Parameters
    ----------
    files : contents of tokenizer.json and tokenizer_config.json.
    vocab : the model's vocabulary; a prompt with a token beyond it is refused.

    A prompt begins with what tokenizer.json's post-processor puts there, as in transformers, whatever `add_bos_token` says. What it puts behind a text
    is left out: a prompt is continued. What a trainer left in the file is turned off: truncation, padding, random merges (dropout).
    """

    def __init__(self, files: Files, vocab: int):
        _need_library("text")
        try:
            self._tokenizer = _Tokenizer.from_buffer(files.tokenizer)
        except Exception as e:  # the library raises bare Exception
            raise UserError(f"tokenizer.json cannot be used: {' '.join(str(e).split())}") from e
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if getattr(self._tokenizer.model, "dropout", None) is not None:
            self._tokenizer.model.dropout = None
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
        self._special = {i: t.content for i, t in self._tokenizer.get_added_tokens_decoder().items() if t.special}

    def _id(self, config: dict[str, Any], name: str) -> int | None:
        token = _content(config.get(name))
        return None if token is None else self._tokenizer.token_to_id(token)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text or a turn: `eos_token`, and those with the name of one."""
        named = (self._tokenizer.token_to_id(name) for name in vocabulary.TURN_ENDS)
        ends = {i for i in (self.eos_id, *named) if i is not None}
        return frozenset(ends | {i for i, text in self._special.items() if text == vocabulary.TEXT_END})

    def hidden_text(self, token: int) -> str:
        """What a special token is called, "" of any other: decoded text leaves it out, but a stop string may name it."""
        return self._special.get(token, "")

    def name(self, token: int) -> str:
        """What a token is called in the vocabulary, "" beyond it."""
        return self._tokenizer.id_to_token(token) or ""

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, never empty. A document-start token that the text brings itself is not put before it once more.

        Raises
        ------
        UserError : the prompt is empty and nothing is put before it, or a token is beyond the vocabulary.
        """
        found = self._encoding(text, add_special_tokens=True)
        ids, inside = list(found.ids), [i for i, part in enumerate(found.sequence_ids) if part is not None]
        if inside:
            ids = ids[: inside[-1] + 1]
            if inside[0] and ids[inside[0] - 1] == ids[inside[0]] and ids[inside[0]] in self._special:
                del ids[inside[0]]
        else:
            ids = ids[:1] if ids[:1] == [self.bos_id] else []
        if not ids:
            raise UserError(
                "the prompt is empty, and this model has no document-start token put before it; give it some text"
            )
        return self._check(ids)

    def encode_more(self, text: str) -> list[int]:
        """Token ids of a text that follows another: nothing is put before it.

        Raises
        ------
        UserError : a token is beyond the vocabulary, or there is none.
        """
        ids = self._encode(text, add_special_tokens=False)
        if not ids:
            raise UserError("there is nothing to say; give some text")
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

    def encode_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Token ids of a conversation, never empty. The template writes the document start where the model has one: nothing is
        added to its text, in which special tokens are read as such.

        Raises
        ------
        UserError : no chat template, or it refuses the messages; or a token beyond the vocabulary.
        """
        ids = self._encode(self.chat_template.render(messages, add_generation_prompt, tools), add_special_tokens=False)
        if not ids:
            raise UserError("the chat template makes no text of this conversation")
        return self._check(ids)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self._encoding(text, add_special_tokens=add_special_tokens).ids)

    def _encoding(self, text: str, *, add_special_tokens: bool) -> Encoding:
        text = checked(text, "the prompt")
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except Exception as e:
            raise UserError(f"the prompt cannot be encoded: {' '.join(str(e).split())}") from e

    def _check(self, ids: list[int]) -> list[int]:
        if max(ids) >= self.vocab:
            raise UserError(
                f"the prompt has token {max(ids)}, but the model's vocabulary is {self.vocab}; "
                "the tokenizer does not belong to this model"
            )
        return ids

    def to_json(self) -> str:
        """tokenizer.json as it is used here."""
        return str(self._tokenizer.to_str())

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
