"""Vocabularies that are not a tokenizer.json, made into one: sentencepiece models and what GGUF files hold.

So there is one tokenizer at run time, the `tokenizers` library's, and one blob in an image. A sentencepiece model is a protocol buffer
(`sentencepiece_model.proto`) of which a dozen fields matter; they are read here, because the sentencepiece library says nothing of how
it normalises, and its message classes need the protobuf package. The tests hold every conversion against that library.

Differences that a tokenizer.json cannot avoid: special tokens in a text are read as such (sentencepiece reads them as characters), and what
follows one begins with the space that begins a text, as in llama.cpp and in transformers' `legacy` tokenizers.

Whether a prompt begins with the document-start token is said in one place, tokenizer.json's post-processor, whatever a model came as.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tellme.host.errors import UserError

try:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
except ImportError:  # as on 32-bit boards; whoever makes a tokenizer.json asks first (host/text/tokenizer.py)
    pass

SPACE = "\u2581"
"""What sentencepiece writes for a space."""
MAX_PIECES = 1 << 20
"""Pieces of a vocabulary. The longest published ones have some 262,000."""
_MAX_PIECE = 1 << 8
"""Characters of a piece that is made by merges; longer ones cannot be (a merge rule for each way to cut it would take too long to find)."""
_IMPOSSIBLE = -1e6
"""Score of a piece that text must not be split into."""
TURN_ENDS = frozenset(
    (
        "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<|endoftext|>", "<|end_of_text|>",
        "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|EOT|>", "<|eot|>", "<end_of_utterance>",
        "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "<turn|>",
    )
)  # fmt: skip
"""Tokens that end a turn or a text by their names, whatever a file's metadata says of them: what llama.cpp takes for such, and the ends of
published chat formats that it finds in metadata."""
TEXT_END = "</s>"
"""Ends a text where it is a special token; elsewhere it may be HTML."""


class Kind(IntEnum):
    """What a piece is; the numbers of sentencepiece's `Type` and of GGUF's `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """An entry of a vocabulary; its index is the token.

    `lstrip`, `rstrip`: white space before or behind it goes when it is found in a text; `single_word`: it is not found inside of a word;
    `normalized`: it is looked for in normalised text. These say something of tokens that are found before a text is split.
    """

    text: str
    score: float = 0.0
    kind: Kind = Kind.NORMAL
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class SentencePiece:
    """A sentencepiece model.

    Attributes
    ----------
    pieces : the vocabulary.
    unigram : whether texts are split by the likeliest pieces (Viterbi); else by merging the pair of highest score.
    prefix : whether a text begins with a space that it does not have.
    squeeze : whether leading, trailing and repeated spaces go.
    charsmap : compiled normalisation of characters, b"" if there is none.
    bos, eos, unknown : tokens, or -1.
    """

    pieces: Sequence[Piece]
    unigram: bool = False
    prefix: bool = True
    squeeze: bool = False
    charsmap: bytes = b""
    bos: int = -1
    eos: int = -1
    unknown: int = -1


# ---- sentencepiece's model file --------------------------------------------------------------------------------------


def _fields(data: memoryview, where: str) -> Iterator[tuple[int, int, Any]]:
    """(number, wire type, value) of a protocol buffer message: int, 4 or 8 bytes, or a part of `data`."""

    def broken() -> UserError:
        return UserError(f"{where}: is not a sentencepiece model, or is damaged")

    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(data):
                raise broken()
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise broken()

    while at < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, wire, varint()
            continue
        if wire not in (1, 2, 5) or number == 0:
            raise broken()
        size = varint() if wire == 2 else 8 if wire == 1 else 4
        if size > len(data) - at:
            raise broken()
        yield number, wire, data[at : at + size]
        at += size


def _values(data: memoryview, where: str, wanted: dict[int, tuple[str, int]]) -> dict[str, Any]:
    """The last value of each wanted field {number: (name, wire type)}; fields of another type make the message unreadable."""
    out: dict[str, Any] = {}
    for number, wire, value in _fields(data, where):
        if number in wanted:
            name, kind = wanted[number]
            if wire != kind:
                raise UserError(f"{where}: is not a sentencepiece model, or is damaged ({name})")
            out[name] = value
    return out


def _signed(value: int) -> int:
    """An int32 of a protocol buffer."""
    return value - (1 << 64) if value >= 1 << 63 else value


def read_sentencepiece(data: bytes, where: str) -> SentencePiece:
    """A sentencepiece model file (`tokenizer.model`).

    Raises
    ------
    UserError : it is damaged, or of a kind that cannot be converted.
    """
    parts: dict[int, list[memoryview]] = {1: [], 2: [], 3: []}
    for number, wire, value in _fields(memoryview(data), where):
        if number in parts:
            if wire != 2:
                raise UserError(f"{where}: is not a sentencepiece model, or is damaged")
            parts[number].append(value)
    if not parts[1] or len(parts[1]) > MAX_PIECES:
        raise UserError(f"{where}: has {len(parts[1]):,} pieces; a vocabulary has 1 to {MAX_PIECES:,}")
    pieces = []
    for i, part in enumerate(parts[1]):
        value = _values(part, where, {1: ("piece", 2), 2: ("score", 5), 3: ("type", 0)})
        try:
            (score,) = struct.unpack("<f", value["score"]) if "score" in value else (0.0,)
            pieces.append(Piece(bytes(value["piece"]).decode(), score, Kind(value.get("type", 1))))
        except (KeyError, ValueError) as e:
            raise UserError(f"{where}: piece {i} is damaged") from e
    trainer = _values(
        memoryview(b"".join(parts[2])),
        where,
        {
            3: ("model_type", 0), 24: ("suffix", 0), 40: ("unk_id", 0), 41: ("bos_id", 0), 42: ("eos_id", 0),
        },
    )  # fmt: skip
    normaliser = _values(
        memoryview(b"".join(parts[3])),
        where,
        {2: ("charsmap", 2), 3: ("prefix", 0), 4: ("squeeze", 0), 5: ("escape", 0)},
    )
    model_type = trainer.get("model_type", 1)
    if model_type not in (1, 2):
        raise UserError(f"{where}: its model type is {model_type}; supported are unigram (1) and BPE (2)")
    if trainer.get("suffix", 0) or not normaliser.get("escape", 1):
        raise UserError(f"{where}: models with spaces behind words, or without {SPACE} for spaces, are not supported")

    def token(name: str, kind: Kind, default: int) -> int:
        i = _signed(trainer.get(name, default))
        return i if 0 <= i < len(pieces) and pieces[i].kind == kind else -1

    return SentencePiece(
        pieces,
        unigram=model_type == 1,
        prefix=bool(normaliser.get("prefix", 1)),
        squeeze=bool(normaliser.get("squeeze", 1)),
        charsmap=bytes(normaliser.get("charsmap", b"")),
        bos=token("bos_id", Kind.CONTROL, 1),
        eos=token("eos_id", Kind.CONTROL, 2),
        unknown=token("unk_id", Kind.UNKNOWN, 0),
    )


# ---- to tokenizer.json -----------------------------------------------------------------------------------------------


def _library_error(where: str, error: Exception) -> UserError:
    return UserError(f"{where}: its vocabulary cannot be used: {' '.join(str(error).split())[:200]}")


def _index(pieces: Sequence[Piece], where: str) -> dict[str, int]:
    index: dict[str, int] = {}
    for i, piece in enumerate(pieces):
        if not piece.text:
            raise UserError(f"{where}: token {i} of the vocabulary is empty")
        if index.setdefault(piece.text, i) != i:
            raise UserError(f"{where}: tokens {index[piece.text]} and {i} of the vocabulary are both {piece.text!r}")
        if not -float("inf") < piece.score < float("inf"):
            raise UserError(f"{where}: the score of token {i} of the vocabulary is {piece.score}")
    return index


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Merge rules that do what merging the pair with the highest score does: every way to cut a piece in two, best piece first."""
    normal = {p.text for p in pieces if p.kind == Kind.NORMAL}
    order = sorted(
        (-p.score, i) for i, p in enumerate(pieces) if p.kind == Kind.NORMAL and 1 < len(p.text) <= _MAX_PIECE
    )
    return [
        (text[:cut], text[cut:])
        for text in (pieces[i].text for _, i in order)
        for cut in range(1, len(text))
        if text[:cut] in normal and text[cut:] in normal
    ]


def _added(pieces: Sequence[Piece]) -> list[AddedToken]:
    """Tokens that are found in a text before it is split; special ones are left out of decoded text. An end of turn is one, whatever its kind:
    converters have filed `<|eot_id|>` as USER_DEFINED and NORMAL."""
    kinds = (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
    return [
        AddedToken(
            p.text,
            lstrip=p.lstrip,
            rstrip=p.rstrip,
            single_word=p.single_word,
            normalized=p.normalized,
            special=p.kind != Kind.USER_DEFINED or p.text in TURN_ENDS,
        )
        for p in pieces
        if p.kind in kinds or p.text in TURN_ENDS
    ]


def _text(tokenizer: Tokenizer, pieces: Sequence[Piece], begin: int) -> bytes:
    if begin >= 0:
        start = pieces[begin].text
        tokenizer.post_processor = processors.TemplateProcessing([start, "$A"], [start, "$A", "$B"], [(start, begin)])
    return str(tokenizer.to_str()).encode()


def sentencepiece_json(
    model: SentencePiece, where: str, *, legacy: bool = True, llama: bool = False, begin: int = -1
) -> bytes:
    """A sentencepiece model as tokenizer.json.

    Parameters
    ----------
    model : the model. CONTROL, UNKNOWN and USER_DEFINED pieces are found in a text before it is split.
    where : names the file in messages.
    legacy : what follows a special token begins with a space, as a text does; else only a text does, and not one that begins with a
        space itself, as with `"legacy": false` in tokenizer_config.json.
    llama : with `legacy`, what begins with a space is given no second one, as the class LlamaTokenizer does it.
    begin : token that the post-processor puts before a text; -1: none.

    Raises
    ------
    UserError : the vocabulary cannot be used.
    """
    index = _index(model.pieces, where)
    fallback = any(p.kind == Kind.BYTE for p in model.pieces)
    unknown = model.unknown if model.unknown >= 0 else None
    try:
        if model.unigram:
            library: Any = models.Unigram(_scores(model.pieces), unk_id=unknown, byte_fallback=fallback)
        else:
            name = None if unknown is None else model.pieces[unknown].text
            library = models.BPE(index, _merges(model.pieces), unk_token=name, fuse_unk=True, byte_fallback=fallback)
        tokenizer = Tokenizer(library)
        steps = _charsmap(model.charsmap)
        if model.squeeze:
            steps += [
                normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""),
                normalizers.Replace(Regex(" {2,}"), " "),
            ]
        if not llama and (legacy or not model.prefix):
            steps += [normalizers.Prepend(SPACE)] if model.prefix else []
            steps += [normalizers.Replace(" ", SPACE)]
        else:
            scheme = "never" if not model.prefix else "always" if legacy else "first"
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
        if steps:
            tokenizer.normalizer = normalizers.Sequence(steps)
        decode: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(decode + ([decoders.Strip(" ", 1, 0)] if model.prefix else []))
        tokenizer.add_tokens(_added(model.pieces))
        return _text(tokenizer, model.pieces, begin)
    except Exception as e:  # the library raises bare Exception
        raise _library_error(where, e) from e


def _scores(pieces: Sequence[Piece]) -> list[tuple[str, float]]:
    """Pieces of a unigram model. The library matches every piece: unused ones get a space, which no normalised text has, bytes a score
    that loses against any other way to write their name."""
    return [
        (p.text + " ", 0.0) if p.kind == Kind.UNUSED else (p.text, _IMPOSSIBLE if p.kind == Kind.BYTE else p.score)
        for p in pieces
    ]


def _charsmap(charsmap: bytes) -> list[Any]:
    """Normalisers for a compiled map of characters. The library looks up a whole grapheme, of which CR LF is one, and drops its LF."""
    if not charsmap:
        return []
    step = normalizers.Precompiled(charsmap)
    return [normalizers.Replace("\r\n", step.normalize_str("\r") + step.normalize_str("\n")), step]


# ---- byte-level BPE --------------------------------------------------------------------------------------------------

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class _Split:
    """How a text is cut into words: by each expression in turn; `whole`: a word that is a token is taken as it is."""

    expressions: tuple[str, ...]
    whole: bool = False
    bos: bool = False
    """Whether such models begin a text with their document-start token, unless they say otherwise."""


_LLAMA3 = _Split((_WORDS % "{1,3}",), whole=True, bos=True)
_DIGITS = _Split((r"\p{N}", _GPT2))
SPLITS = {
    "default": _Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": _Split((_GPT2,)),
    "qwen2": _Split((_WORDS % "",)),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
} | dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "falcon_e", "pixtral"), _LLAMA3)
"""Names of `tokenizer.ggml.pre`, and the expressions of llama.cpp for them."""


def byte_level_json(
    pieces: Sequence[Piece], merges: Sequence[str], split: str, where: str, *, begin: int = -1
) -> bytes:
    """A byte-level BPE vocabulary (GPT-2's way: bytes as printable characters) as tokenizer.json.

    Parameters
    ----------
    pieces : the vocabulary.
    merges : rules "left right", best first.
    split : a name of SPLITS.
    where : names the file in messages.
    begin : token that the post-processor puts before a text; -1: none.

    Raises
    ------
    UserError : the vocabulary cannot be used.
    """
    if split not in SPLITS:
        raise UserError(f"{where}: tokenizer.ggml.pre is {split!r}; supported are {', '.join(SPLITS)}")
    index = _index(pieces, where)
    rules: list[Any] = [tuple(rule.split(" ", 1)) for rule in merges]
    for i, rule in enumerate(rules):
        if len(rule) != 2 or not all(part in index for part in (*rule, "".join(rule))):
            raise UserError(
                f"{where}: merge {i} of the vocabulary, {merges[i][:60]!r}, does not join two tokens into a third"
            )
    try:
        tokenizer = Tokenizer(models.BPE(index, rules, ignore_merges=SPLITS[split].whole))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(e), "isolated") for e in SPLITS[split].expressions]
            + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_tokens(_added(pieces))
        return _text(tokenizer, pieces, begin)
    except Exception as e:
        raise _library_error(where, e) from e
