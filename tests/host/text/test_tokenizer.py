"""Text survives tokens, also piece by piece and with characters of several bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from tellme.host.errors import UserError
from tellme.host.text.tokenizer import REPLACEMENT, Detokenizer, Files, Tokenizer
from tests.host.support import DEMO

TEXTS = [
    "Once upon a time there was a kind girl.",
    "naïve café – “quotes”, 東京 🙂👩‍👩‍👧 ✓ \u00e9e\u0301",
    "🙂",
    " leading and trailing \n\t ",
    "",
]


def demo() -> Tokenizer:
    return Tokenizer(Files.read(DEMO), 1024)


def metaspace() -> Tokenizer:
    """A tokenizer whose decoder strips the first space of a text, as Llama's does."""
    words = {"<s>": 0, "\u2581the": 1, "\u2581cat": 2, "s": 3, "\u2581": 4}
    t = Library(models.WordLevel(words, unk_token="\u2581"))
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    return Tokenizer(Files(t.to_str().encode()), 5)


@pytest.mark.parametrize("text", TEXTS)
def test_incremental_text_equals_the_text_at_once(text: str):
    t = demo()
    ids = t.encode(text)
    assert ids[0] == 0
    d = Detokenizer(t)
    pieces = [d.push(i) for i in ids]
    assert not any(REPLACEMENT in p for p in pieces)
    assert "".join(pieces) + d.finish() == text == t.decode(ids)


def test_a_character_comes_with_its_last_byte_and_not_before():
    t = demo()
    ids = t.encode("a🙂b")[1:]
    assert len(ids) == 6  # four byte tokens of the emoji
    d = Detokenizer(t)
    assert [d.push(i) for i in ids] == ["a", "", "", "", "🙂", "b"]
    assert d.finish() == ""


def test_bytes_that_make_no_character_come_at_the_end_as_replacement():
    t = demo()
    first = t.encode("🙂")[1]
    d = Detokenizer(t)
    assert [d.push(t.encode("a")[1]), d.push(first)] == ["a", ""]
    assert d.finish() == REPLACEMENT
    assert d.finish() == ""


def test_a_broken_character_does_not_hold_up_what_follows():
    t = demo()
    broken, ok = t.encode("🙂")[1], t.encode("ok then")[1:]
    d = Detokenizer(t)
    text = "".join(d.push(i) for i in [broken, *ok]) + d.finish()
    assert text == REPLACEMENT + "ok then"


def test_random_ids_give_the_same_text_both_ways():
    t = demo()
    rng = np.random.default_rng(4)
    for _ in range(50):
        ids = [int(i) for i in rng.integers(0, 1024, 40)]
        d = Detokenizer(t)
        assert "".join(d.push(i) for i in ids) + d.finish() == t.decode(ids)


def test_the_first_piece_keeps_its_space_behind_a_prompt():
    t = metaspace()
    assert t.decode([1, 2]) == "the cat"
    d = Detokenizer(t, [1])
    assert [d.push(2), d.push(3), d.push(1)] == [" cat", "s", " the"]
    d = Detokenizer(t)
    assert [d.push(1), d.push(2)] == ["the", " cat"]


def test_a_long_prompt_leaves_the_same_text():
    t = demo()
    ids = t.encode("Once upon a time there was a kind girl named Mia. She was 🙂 happy.")
    for n in (1, 5, len(ids) - 1):
        d = Detokenizer(t, ids[:n])
        assert t.decode(ids[:n]) + "".join(d.push(i) for i in ids[n:]) + d.finish() == t.decode(ids)


# ---- document start --------------------------------------------------------------------------------------------------


def with_config(changes: dict[str, object] | None = None, **config: object) -> Tokenizer:
    """The demo's tokenizer.json with `changes`, a tokenizer_config.json of `config`."""
    values = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8")) | (changes or {})
    return Tokenizer(Files(json.dumps(values).encode(), json.dumps(config).encode()), 1024)


PLAIN: dict[str, object] = {"post_processor": None}


def test_document_start_follows_the_post_processor():
    once = with_config(PLAIN).encode("Once")
    assert 0 not in once
    for config in ({}, {"bos_token": "<s>"}, {"bos_token": {"content": "<s>"}, "add_bos_token": False}):
        assert with_config(**config).encode("Once") == [0, *once]
        assert with_config(PLAIN, **config).encode("Once") == once
    assert with_config(PLAIN, bos_token="<s>", add_bos_token=True).encode("Once") == once
    assert with_config(bos_token="<s>").encode("<s>Once") == [0, *once]
    assert with_config(PLAIN, bos_token="<s>").encode("<s>Once") == [0, *once]
    assert with_config(bos_token="<s>").encode("") == [0]
    t = with_config(bos_token="<s>", eos_token="</s>")
    assert (t.bos_id, t.eos_id) == (0, 1)


def test_the_demo_begins_with_its_document_start():
    assert demo().encode("One day, a small") == [0, 899, 321, 13, 260, 473]


@pytest.mark.parametrize("direction", ["Left", "Right"])
def test_truncation_padding_and_dropout_of_a_trainer_are_off(direction: str):
    cut = {"direction": direction, "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    fill = {
        "strategy": {"Fixed": 64}, "direction": direction, "pad_id": 1, "pad_type_id": 0, "pad_token": "</s>", "pad_to_multiple_of": None,
    }  # fmt: skip
    model = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))["model"] | {"dropout": 0.9}
    text = "One day, a small fox came to the river"
    want = demo().encode(text)
    template = {"chat_template": "{{ messages[0].content }}"}
    for changes in ({"truncation": cut}, {"padding": fill}, {"truncation": cut, "padding": fill, "model": model}):
        t = with_config(changes, **template)
        assert t.encode(text) == want
        assert t.encode_chat([{"role": "user", "content": text}]) == want[1:]
        assert t.decode(want) == text


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_ends_of_turns_are_known_by_name():
    assert with_config(PLAIN).end_ids == {1}  # </s>, which is special
    assert with_config(PLAIN, eos_token="a").end_ids == {1, with_config(PLAIN).encode("a")[0]}
    for special in (True, False):
        tokens = [{"id": i, "content": c, "special": special} | dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
                  for i, c in enumerate(("<s>", "</s>", "<|eot_id|>", "<end_of_turn>", "<other>"))]  # fmt: skip
        values = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
        vocab = {
            {2: "<|eot_id|>", 3: "<end_of_turn>", 4: "<other>"}.get(i, t): i
            for t, i in values["model"]["vocab"].items()
        }
        merges = [m for m in values["model"]["merges"] if not set(m if isinstance(m, list) else m.split()) - set(vocab)]
        t = with_config({"added_tokens": tokens, "model": values["model"] | {"vocab": vocab, "merges": merges}})
        assert t.end_ids == ({1, 2, 3} if special else {2, 3})
        assert (t.name(2), t.hidden_text(2)) == ("<|eot_id|>", "<|eot_id|>" if special else "")


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_prompts_and_files_that_cannot_be_used_are_refused():
    with pytest.raises(UserError, match="the prompt is empty, and this model has no document-start token"):
        with_config(PLAIN, bos_token="<s>").encode("")
    with pytest.raises(
        UserError, match=r"^the prompt: is not UTF-8 text \(invalid start byte at byte 2\); convert it first$"
    ):
        demo().encode("ab\udcffc")
    with pytest.raises(
        UserError, match=r"^the prompt: is not text \(character 1 is U\+D800, half of a surrogate pair\)"
    ):
        demo().encode("a\ud800")
    # what an ASCII locale makes of UTF-8 on the command line is read as what it was
    assert demo().encode("caf\udcc3\udca9") == demo().encode("café")
    assert demo().decode(demo().encode("a\0b")) == "a\0b"
    last = max(demo().encode("Once"))
    with pytest.raises(UserError, match=f"the prompt has token {last}, but the model's vocabulary is {last}"):
        Tokenizer(Files.read(DEMO), last).encode("Once")
    with pytest.raises(UserError, match="tokenizer.json cannot be used"):
        Tokenizer(Files(b"{}"), 10)
    with pytest.raises(UserError, match="tokenizer_config.json is not JSON"):
        Tokenizer(Files((DEMO / "tokenizer.json").read_bytes(), b"{"), 10)
    with pytest.raises(UserError, match="tokenizer_config.json is not a JSON object"):
        Tokenizer(Files((DEMO / "tokenizer.json").read_bytes(), b"[]"), 10)


def test_a_folder_whose_tokenizer_cannot_be_used_is_named(tmp_path: Path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((DEMO / name).read_bytes())
    Files.read(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 5}')
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path))}: .*tokenizer.json cannot be used"):
        Files.read(tmp_path)


def test_added_tokens_are_looked_for_in_normalised_text_unless_they_are_special_or_say_so(tmp_path: Path):
    first = len(json.loads((DEMO / "tokenizer.json").read_bytes())["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": first}))
    said = {"<y>": {"special": True}, "<z>": {"normalized": False}, "<w>": {"special": True, "normalized": True}}
    decoder = {str(first + i): {"content": name, **flags} for i, (name, flags) in enumerate(said.items(), 1)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    added = {t["content"]: t for t in json.loads(Tokenizer(Files.read(tmp_path), 5000).to_json())["added_tokens"]}
    flags = [(added[name]["special"], added[name]["normalized"]) for name in ("<x>", "<y>", "<z>", "<w>")]
    assert flags == [(False, True), (True, False), (False, False), (True, True)]


def test_ids_beyond_the_tokenizer_have_no_text():
    assert demo().decode([432, 5000, 433]) == demo().decode([432, 433])
