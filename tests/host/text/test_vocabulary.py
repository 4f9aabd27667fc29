"""Converted vocabularies split texts as the sentencepiece library does, and damaged ones are refused in one line."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from tellme.host.errors import UserError
from tellme.host.text import vocabulary
from tellme.host.text.tokenizer import Detokenizer, Files, Tokenizer
from tellme.host.text.vocabulary import (
    SPACE,
    Kind,
    Piece,
    SentencePiece,
    byte_level_json,
    read_sentencepiece,
    sentencepiece_json,
)
from tests.host.support import DEMO
from tests.oracle.tokenizer_cases import TEXTS as TEXTS_OF_FOLDERS
from tests.oracle.tokenizer_cases import VECTORS, cases, write

STORIES = [line for line in (DEMO.parent / "heldout.txt").read_text(encoding="utf-8").splitlines() if line][:400]
TEXTS = [
    "", " ", "  ", "hello world", " hello", "hello ", "a  b   c", "\n", "a\nb\t c\r\n", "\r\n\r\n", "x \n y",
    "naïve café – “quotes”", "東京 🙂👩‍👩‍👧", "e\u0301 ﬁ ①", f"{SPACE}x {SPACE}", "\u3000x\u00a0y", "\u0000\u0001\x7f", "𝕏𝕐",
    "Once upon a time", "don't stop: 1,234.5 (67)", *STORIES[:20],
]  # fmt: skip
ALPHABET = [*map(chr, range(32, 127)), *"éß東🙂\n\t", SPACE, "  ", " the", "\r\n", "\u0301"]


@cache
def train(kind: str, rule: str, squeeze: bool, fallback: bool, prefix: bool, symbols: str = "") -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(STORIES),
        model_writer=out,
        vocab_size=500 if fallback else 300,
        model_type=kind,
        byte_fallback=fallback,
        normalization_rule_name=rule,
        remove_extra_whitespaces=squeeze,
        add_dummy_prefix=prefix,
        user_defined_symbols=symbols,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return out.getvalue()


def random_texts(n: int) -> list[str]:
    rng = np.random.default_rng(7)
    return ["".join(rng.choice(ALPHABET, rng.integers(1, 40))) for _ in range(n)]


def both(data: bytes, **options: Any) -> tuple[sentencepiece.SentencePieceProcessor, Library]:
    converted = sentencepiece_json(read_sentencepiece(data, "m"), "m", **options)
    return sentencepiece.SentencePieceProcessor(model_proto=data), Library.from_str(converted.decode())


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize(
    ("rule", "squeeze"), [("identity", False), ("identity", True), ("nmt_nfkc", True), ("nmt_nfkc", False)]
)
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_converted_models_split_as_sentencepiece(kind: str, rule: str, squeeze: bool, fallback: bool, prefix: bool):
    reference, converted = both(train(kind, rule, squeeze, fallback, prefix))
    # A combining character joins the grapheme before it, which the library normalises as one.
    texts = [*TEXTS, *(t for t in random_texts(200) if rule == "identity" or "\u0301" not in t)]
    for text in texts:
        assert converted.encode(text).ids == reference.encode(text), repr(text)
    for text in TEXTS:
        ids = reference.encode(text)
        if reference.unk_id() not in ids and SPACE not in text:
            assert converted.decode(ids) == reference.decode(ids), repr(text)


def test_the_model_file_is_read_as_the_library_reads_it():
    for kind in ("bpe", "unigram"):
        data = train(kind, "nmt_nfkc", True, True, True, "<sep>")
        reference, model = sentencepiece.SentencePieceProcessor(model_proto=data), read_sentencepiece(data, "m")
        n = reference.vocab_size()
        assert [(p.text, np.float32(p.score)) for p in model.pieces] == [
            (reference.id_to_piece(i), np.float32(reference.get_score(i))) for i in range(n)
        ]
        assert (model.bos, model.eos, model.unknown) == (reference.bos_id(), reference.eos_id(), reference.unk_id())
        for i, p in enumerate(model.pieces):
            assert (p.kind == Kind.CONTROL) == reference.is_control(i)
            assert (p.kind == Kind.BYTE) == reference.is_byte(i)
        assert model.pieces[3] == Piece("<sep>", 0.0, Kind.USER_DEFINED)
        assert model.unigram == (kind == "unigram") and model.squeeze and model.prefix and model.charsmap


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_special_tokens_are_read_as_such_and_texts_between_them_begin_anew(kind: str):
    reference, converted = both(train(kind, "identity", False, True, True, "<sep>"))
    for parts in (["", "hello"], ["a b", " c"], ["one", "", "two\n"]):
        for token in ("<s>", "</s>", "<unk>", "<sep>"):
            want: list[int] = []
            for i, part in enumerate(parts):
                want += ([reference.piece_to_id(token)] if i else []) + reference.encode(part)
            assert converted.encode(token.join(parts)).ids == want


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_without_legacy_only_a_text_begins_with_a_space(kind: str):
    reference, converted = both(train(kind, "identity", False, True, True, "<sep>"), legacy=False)
    for text in (*TEXTS, *random_texts(100), "one<sep>two<sep><sep> three"):
        if not text.startswith((" ", SPACE)):
            assert converted.encode(text).ids == reference.encode(text), repr(text)
    assert converted.encode("a</s>b").tokens[-2:] == ["</s>", "b"]


def test_unused_pieces_are_never_made():
    for unigram in (False, True):
        pieces = [
            Piece("<unk>", 0, Kind.UNKNOWN),
            *(Piece(c, -5) for c in f"{SPACE}ab"),
            Piece("ab", 9, Kind.UNUSED),
            Piece("ba", -1),
        ]
        t = Library.from_str(sentencepiece_json(SentencePiece(pieces, unigram=unigram, unknown=0), "m").decode())
        assert t.encode("abab").ids == [1, 2, 5, 3]


def test_the_name_of_a_byte_is_text():
    reference, converted = both(train("bpe", "identity", False, True, True))
    assert converted.encode("<0x41>").ids == reference.encode("<0x41>") and len(reference.encode("<0x41>")) > 2


# ---- folders ---------------------------------------------------------------------------------------------------------


def folder(path: Path, **files: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "tokenizer.model").write_bytes(train("bpe", "identity", False, True, True))
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def test_a_folder_with_only_a_sentencepiece_model_is_enough(tmp_path: Path):
    reference = sentencepiece.SentencePieceProcessor(model_proto=train("bpe", "identity", False, True, True))
    t = Tokenizer(Files.read(folder(tmp_path / "m")), 1000)
    assert (t.bos_id, t.eos_id) == (1, 2)
    for text in TEXTS:
        assert t.encode(text) == [1, *reference.encode(text)]
        assert t.decode(t.encode(text)) == text.replace(SPACE, " ")
    ids = t.encode("One day 🙂")
    d = Detokenizer(t, ids[:3])
    assert t.decode(ids[:3]) + "".join(d.push(i) for i in ids[3:]) + d.finish() == "One day 🙂"


def test_tokenizer_config_wins_and_added_tokens_follow(tmp_path: Path):
    n = len(read_sentencepiece(train("bpe", "identity", False, True, True), "m").pieces)
    files = {
        "tokenizer_config": {
            "bos_token": {"content": "<|begin|>"},
            "add_bos_token": True,
            "added_tokens_decoder": {
                "0": {"content": "<unk>", "special": True},
                str(n + 1): {"content": "<|begin|>", "special": True},
            },
        },
        "added_tokens": {"<pad>": n},
        "special_tokens_map": {"bos_token": "<s>", "eos_token": "<pad>"},
    }
    t = Tokenizer(Files.read(folder(tmp_path / "m", **files)), 1000)
    assert (t.bos_id, t.eos_id) == (n + 1, n)
    assert t.encode("<pad>")[:2] == [n + 1, n]
    assert t.decode([n + 1, n]) == "<pad>"
    # A byte that is named among them is a byte still.
    byte = next(
        i
        for i, p in enumerate(read_sentencepiece(train("bpe", "identity", False, True, True), "m").pieces)
        if p.text == "<0xF0>"
    )
    named = {"added_tokens_decoder": {str(byte): {"content": "<0xF0>", "special": False}}}
    b = Tokenizer(Files.read(folder(tmp_path / "b", tokenizer_config=named)), 1000)
    assert byte in b.encode("🙂") and b.decode(b.encode("🙂")) == "🙂"
    assert (
        Tokenizer(Files.read(folder(tmp_path / "n", tokenizer_config={"add_bos_token": False})), 1000).encode("a")[0]
        != 1
    )
    plain = Tokenizer(Files.read(folder(tmp_path / "o", tokenizer_config={"add_prefix_space": False})), 1000)
    assert plain.decode(plain.encode(" a")) == " a"


VECTORS_OF = json.loads(VECTORS.read_text(encoding="utf-8"))


def test_vectors_cover_every_folder_and_text():
    assert list(VECTORS_OF["ids"]) == list(cases()) and VECTORS_OF["texts"] == TEXTS_OF_FOLDERS


@pytest.mark.parametrize("kind", ["prefix", "plain", "bytes"])
def test_folders_encode_as_transformers(tmp_path: Path, kind: str):
    """Document starts, white space around added tokens, saved truncation and padding. What a template puts behind a text is left out."""
    seen = 0
    for name, files in cases().items():
        if not name.startswith(f"{kind}-"):
            continue
        t = Tokenizer(Files.read(write(tmp_path / name, files)), 2000)
        ending = name.endswith("-eos")
        for text, ids in zip(TEXTS_OF_FOLDERS, VECTORS_OF["ids"][name], strict=True):
            if ending:
                assert ids.pop() == t.eos_id
            assert t.encode(text) == ids, (name, text)
        seen += 1
    assert seen >= 30


def test_a_sentencepiece_model_without_a_word_on_it_begins_with_the_document_start(tmp_path: Path):
    said: dict[str, Any] = {}
    for name, config in {"none": said, "true": {"add_bos_token": True}, "false": {"add_bos_token": False}}.items():
        t = Tokenizer(
            Files.read(folder(tmp_path / name, tokenizer_config={"tokenizer_class": "LlamaTokenizer"} | config)), 1000
        )
        assert (t.encode("One")[0] == 1) is (name != "false")
        assert t.encode("<s>One").count(1) == 1


def test_flags_of_a_tokenizer_json_are_kept_where_no_file_says_others(tmp_path: Path):
    saved = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    saved["added_tokens"][1]["rstrip"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"</s>": 1}))
    assert Files.read(tmp_path).tokenizer == (tmp_path / "tokenizer.json").read_bytes()
    assert Tokenizer(Files.read(tmp_path), 1024).encode("One</s> day")[-2:] == [69, 302]


def test_an_added_token_that_belongs_nowhere_is_refused(tmp_path: Path):
    shutil.copyfile(DEMO / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": 2000}))
    with pytest.raises(
        UserError, match=r"added token 2000 \('<x>'\) does not follow the 1,024 tokens of tokenizer.json"
    ):
        Files.read(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    said = {"added_tokens_decoder": {"1": {"content": "<s>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"added token 1 \('<s>'\) does not follow"):
        Files.read(tmp_path)


@pytest.mark.parametrize("kind", [Kind.NORMAL, Kind.USER_DEFINED, Kind.CONTROL])
@pytest.mark.parametrize("end", ["<|eot_id|>", "<end_of_turn>", "<|im_end|>"])
def test_an_end_of_turn_is_a_special_token_whatever_its_kind(kind: Kind, end: str):
    pieces, rules, _ = demo_pieces()
    pieces.append(Piece(end, 0.0, kind))
    t = Tokenizer(Files(byte_level_json(pieces, rules, "gpt-2", "m")), 2000)
    assert t.encode(f"One{end}")[-1] == 1024 and t.decode([899, 1024]) == t.decode([899])
    assert t.end_ids == {1, 1024}
    model = read_sentencepiece(train("bpe", "identity", False, True, True), "m")
    n = len(model.pieces)
    t = Tokenizer(Files(sentencepiece_json(replace(model, pieces=[*model.pieces, Piece(end, 0.0, kind)]), "m")), 2000)
    assert t.encode(f"One{end}")[-1] == n and t.end_ids == {2, n}


def test_tokenizer_json_is_preferred(tmp_path: Path):
    path = folder(tmp_path / "m")
    shutil.copyfile(DEMO / "tokenizer.json", path / "tokenizer.json")
    assert Files.read(path).tokenizer == (DEMO / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens": {"<x>": 9999}}, r"added token 9999 \('<x>'\) does not follow the \d+ tokens"),
        ({"added_tokens": {"<x>": 5}}, r"added token 5 \('<x>'\) does not follow"),
        ({"added_tokens": {"<x>": "no"}}, "the added tokens of its tokenizer are damaged"),
        ({"added_tokens": {"<x>": None}}, "the added tokens of its tokenizer are damaged"),
        ({"added_tokens": {"<x>": float("inf")}}, "the added tokens of its tokenizer are damaged"),
        ({"tokenizer_config": {"added_tokens_decoder": {"7": "x"}}}, "the added tokens of its tokenizer are damaged"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "the added tokens of its tokenizer are damaged"),
        ({"tokenizer_config": [1]}, "tokenizer_config.json: is not a JSON object"),
    ],
)
def test_folders_that_cannot_be_used_are_refused(tmp_path: Path, files: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        Files.read(folder(tmp_path / "m", **files))


def test_a_folder_without_tokenizer_says_what_it_needs(tmp_path: Path):
    with pytest.raises(UserError, match=r"tokenizer.json: cannot be read .* its tokenizer.json or tokenizer.model"):
        Files.read(tmp_path)


# ---- damaged models --------------------------------------------------------------------------------------------------


def field(number: int, value: int | bytes | float) -> bytes:
    """A field of a protocol buffer."""

    def varint(v: int) -> bytes:
        out = b""
        while v >= 0x80:
            out += bytes([v & 0x7F | 0x80])
            v >>= 7
        return out + bytes([v])

    if isinstance(value, float):
        return varint(number << 3 | 5) + np.float32(value).tobytes()
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def piece(text: bytes, **more: Any) -> bytes:
    return field(1, field(1, text) + b"".join(field({"score": 2, "kind": 3}[k], v) for k, v in more.items()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "m: has 0 pieces; a vocabulary has 1 to 1,048,576"),
        (b"\x0a", "m: is not a sentencepiece model, or is damaged"),
        (b"\x0a\xff\xff\xff\xff\x0f", "m: is not a sentencepiece model, or is damaged"),
        (b"\xff" * 20, "m: is not a sentencepiece model, or is damaged"),
        (b'{"version": "1.0"}', "m: is not a sentencepiece model, or is damaged"),
        (field(1, 5), "m: is not a sentencepiece model, or is damaged"),
        (field(1, b""), "m: piece 0 is damaged"),
        (piece(b"a") + piece(b"\xff"), "m: piece 1 is damaged"),
        (piece(b"a", kind=9), "m: piece 0 is damaged"),
        (piece(b"a", score=1), r"m: is not a sentencepiece model, or is damaged \(score\)"),
        (piece(b"a") + field(2, field(3, 3)), "m: its model type is 3; supported are unigram"),
        (piece(b"a") + field(2, field(24, 1)), "m: models with spaces behind words"),
        (piece(b"a") + field(3, field(5, 0)), "m: models with spaces behind words"),
        (piece(b"a") + piece(b"a"), "m: tokens 0 and 1 of the vocabulary are both 'a'"),
        (piece(b"a") + piece(b""), "m: token 1 of the vocabulary is empty"),
        (piece(b"a", score=float("nan")), "m: the score of token 0 of the vocabulary is nan"),
        (piece(b"a") + field(3, field(2, b"xyz")), "m: its vocabulary cannot be used: "),
    ],
)
def test_damaged_models_are_refused_in_one_line(data: bytes, message: str):
    with pytest.raises(UserError, match=f"^{message}") as e:
        sentencepiece_json(read_sentencepiece(data, "m"), "m")
    assert "\n" not in str(e.value)


@given(st.data())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_mutated_models_convert_or_are_refused(data: st.DataObject):
    raw = bytearray(b"".join([piece(b"<unk>", kind=2), *(piece(c.encode(), score=-1.0) for c in f"{SPACE}abcd"), piece(b"ab", score=0.5)])
                    + field(2, field(3, 2)) + field(3, field(3, 1)))  # fmt: skip
    for _ in range(data.draw(st.integers(1, 4))):
        i = data.draw(st.integers(0, len(raw) - 1))
        raw[i : i + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        Library.from_str(sentencepiece_json(read_sentencepiece(bytes(raw), "m"), "m").decode()).encode("abba cd")
    except UserError as e:
        assert "\n" not in str(e)


# ---- byte-level BPE --------------------------------------------------------------------------------------------------


def demo_pieces() -> tuple[list[Piece], list[str], Library]:
    """The demo model's byte-level vocabulary, as a GGUF file holds it."""
    t = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    special = {a["content"] for a in t["added_tokens"]}
    texts = sorted(t["model"]["vocab"], key=t["model"]["vocab"].get)
    rules = [" ".join(m) if isinstance(m, list) else m for m in t["model"]["merges"]]
    pieces = [Piece(x, 0.0, Kind.CONTROL if x in special else Kind.NORMAL) for x in texts]
    return pieces, rules, Library.from_file(str(DEMO / "tokenizer.json"))


def test_byte_level_vocabularies_split_as_the_tokenizer_they_came_from():
    pieces, rules, reference = demo_pieces()
    converted = Library.from_str(byte_level_json(pieces, rules, "gpt-2", "m").decode())
    for text in (*TEXTS, *random_texts(200), "<s>a</s>"):
        ids = reference.encode(text, add_special_tokens=False).ids
        assert converted.encode(text).ids == ids, repr(text)
        assert converted.decode(ids) == reference.decode(ids)


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("llama-bpe", ["It", "'S", " ", " a", "\tb", " ", "123", "4", " x", "!!\n\n", " ", " y"]),
        ("falcon3", ["It", "'S", " ", " a", "\tb", " ", "123", "4", " x", "!!\n\n", " ", " y"]),
        ("qwen2", ["It", "'S", " ", " a", "\tb", " ", "1", "2", "3", "4", " x", "!!\n\n", " ", " y"]),
        ("gpt-2", ["It", "'", "S", " ", " a", "\t", "b", " 1234", " x", "!!", "\n\n ", " y"]),
        ("smollm", ["It", "'", "S", " ", " a", "\t", "b", " ", "1", "2", "3", "4", " x", "!!", "\n\n ", " y"]),
        ("default", ["It", "'", "S", " ", " a", "\t", "b", " ", "123", "4", " x", "!!", "\n\n ", " y"]),
    ],
)
def test_words_of_the_known_splits(split: str, words: list[str]):
    pieces, rules, _ = demo_pieces()
    converted = Library.from_str(byte_level_json(pieces, rules, split, "m").decode())
    text = "It'S  a\tb 1234 x!!\n\n  y"
    found = converted.pre_tokenizer.pre_tokenize_str(text)
    assert [text[a:b] for _, (a, b) in found] == words


def test_a_word_that_is_a_token_is_taken_whole_by_llama_3():
    pieces = [Piece(c) for c in "abc"] + [Piece("ab"), Piece("bc"), Piece("abc")]
    rules = ["b c", "a b"]
    for split, ids in (("llama-bpe", [5]), ("qwen2", [0, 4])):
        assert Library.from_str(byte_level_json(pieces, rules, split, "m").decode()).encode("abc").ids == ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "klingon"}, "m: tokenizer.ggml.pre is 'klingon'; supported are default, gpt-2"),
        ({"merges": ["ab"]}, "m: merge 0 of the vocabulary, 'ab', does not join two tokens into a third"),
        ({"merges": ["a z"]}, "m: merge 0 of the vocabulary, 'a z', does not join"),
        ({"merges": ["a b", "b a"]}, "m: merge 1 of the vocabulary, 'b a', does not join"),
        ({"pieces": [Piece("a"), Piece("a")]}, "m: tokens 0 and 1 of the vocabulary are both 'a'"),
    ],
)
def test_damaged_byte_level_vocabularies_are_refused(change: dict[str, Any], message: str):
    values: dict[str, Any] = {
        "pieces": [Piece("a"), Piece("b"), Piece("ab")],
        "merges": ["a b"],
        "split": "gpt-2",
    } | change
    with pytest.raises(UserError, match=f"^{message}"):
        byte_level_json(values["pieces"], values["merges"], values["split"], "m")


def test_merges_follow_the_scores_not_the_order():
    pieces = [Piece(c, -9) for c in f"{SPACE}abc"] + [Piece("ab", -2), Piece("bc", -1)]
    model = SentencePiece(pieces, prefix=False)
    assert Library.from_str(sentencepiece_json(model, "m").decode()).encode("abc").ids == [1, 5]
    swapped = [replace(p, score=-3 - p.score) if len(p.text) == 2 else p for p in pieces]
    assert Library.from_str(sentencepiece_json(replace(model, pieces=swapped), "m").decode()).encode("abc").ids == [
        4,
        3,
    ]
    assert vocabulary.MAX_PIECES >= 262_144
