"""Generation stops where it should, streams what it says, and two back ends say the same."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from tellme.golden.config import TINY
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.errors import UserError
from tellme.host.machine.backends import GoldenBackend
from tellme.host.machine.passes import Backend, Pass, PassResult
from tellme.host.talk.generate import Generation, StopStrings
from tellme.host.text.sampling import Sampling
from tellme.host.text.tokenizer import Files, Tokenizer
from tests.host.support import DEMO, start, write_checkpoint
from tests.models import small_spec

PROMPT = [0, 432, 433, 260, 406]


def tokenizer() -> Tokenizer:
    return Tokenizer(Files.read(DEMO), 1024)


def golden() -> GoldenBackend:
    return GoldenBackend(read_checkpoint(DEMO).weights, TINY)


class Script(Backend):
    """Says a given sequence of tokens."""

    def __init__(self, says: Sequence[int], context: int = 256):
        self.config, self.vocab, self.context, self.slots, self.group = TINY, 1024, context, 1, 1
        self.says = list(says)
        self.heard: list[tuple[int, int]] = []

    def _pass(self, given: Pass) -> PassResult:
        assert not given.write_logits, "greedy generation needs no logits"
        self.heard += zip(given.tokens, given.positions, strict=True)
        first, count = given.head
        best = tuple(self.says.pop(0) for _ in range(count))
        return PassResult(
            head_first=first, head_count=count, best_index=best, best_value=tuple(np.float32(0) for _ in best),
            cycles=10 * given.lanes, stalls={"memory": 2},
        )  # fmt: skip


def say(text: str, **options: Any) -> tuple[list[str], Generation, Script]:
    """Generates from a script that says `text` (and ends); returns pieces, generation, script."""
    t = tokenizer()
    script = Script([*t.encode(text)[1:], 1], **({"context": options.pop("context")} if "context" in options else {}))
    g = Generation(script, t, PROMPT, **({"max_new_tokens": 200, "eos_ids": (1,)} | options))
    return list(g), g, script


def test_text_streams_in_pieces_and_ends_with_the_end_token():
    pieces, g, script = say(" there was a 🙂 girl.")
    assert "".join(pieces) == g.report.text == " there was a 🙂 girl."
    assert len(pieces) > 5 and g.report.stop == "end"
    assert g.report.new_ids[-1] == 1
    assert script.heard == [*zip(PROMPT, range(5), strict=True)] + [
        (t, 5 + i) for i, t in enumerate(g.report.new_ids[:-1])
    ]


def test_length_ends_generation():
    pieces, g, script = say(" there was a girl", max_new_tokens=2)
    assert len(g.report.new_ids) == 2 and g.report.stop == "length" and len(g.report.decode) == 1
    assert "".join(pieces) == tokenizer().decode(g.report.new_ids)


@pytest.mark.parametrize(
    ("stops", "text", "stop"),
    [
        (["girl"], " there was a ", "stop"),
        ([" girl", "was"], " there ", "stop"),
        (["a gir"], " there was ", "stop"),
        (["girl. x"], " there was a girl. She", "end"),
        ([" there"], "", "stop"),
        (["She"], " there was a girl. ", "stop"),
    ],
)
def test_stop_strings_cut_the_text_across_tokens(stops: list[str], text: str, stop: str):
    pieces, g, _ = say(" there was a girl. She", stops=stops)
    assert ("".join(pieces), g.report.stop) == (text, stop)


def special_tokenizer() -> Tokenizer:
    """The demo's with special tokens of a chat: `<|user|>` and `<|sep|>` end nothing, `<end_of_turn>` is known by its name."""
    library = Library.from_file(str(DEMO / "tokenizer.json"))
    library.add_special_tokens(["<|user|>", "<|sep|>", "<end_of_turn>"])
    return Tokenizer(Files(library.to_str().encode()), 1027)


@pytest.mark.parametrize(
    ("said", "stops", "text", "stop"),
    [
        (" there<|user|> was", [], " there was", "end"),
        (" there<|user|> was", ["<|user|>"], " there", "stop"),
        (" there<|user|> was", ["there<|user|>"], " ", "stop"),
        (" there<|user|> was", ["<|user|> w"], " there", "stop"),
        (" there<|user|> was", ["<|user|> x"], " there was", "end"),
        (" there<|user|> was", ["user|> wa"], " there", "stop"),
        (" there<|user|><|sep|> was", ["<|user|><|sep|>"], " there", "stop"),
        (" there<|user|><|sep|> was", ["re<|user|><|sep|> wa"], " the", "stop"),
        (" there<|user|><|sep|> was", ["<|sep|><|user|>"], " there was", "end"),
        (" there was<end_of_turn> a girl", [], " there was", "end"),
        (" there was<end_of_turn> a girl", ["<end_of_turn>"], " there was", "stop"),
        (" there was<end_of_turn> a girl", ["was<end_of_turn>"], " there ", "stop"),
        (" there was", ["was</s>"], " there ", "stop"),
        (" there was", ["</s>"], " there was", "stop"),
    ],
)
def test_stop_strings_may_name_special_tokens_which_are_no_part_of_the_text(
    said: str, stops: list[str], text: str, stop: str
):
    t = special_tokenizer()
    script = Script([*t.encode(said)[1:], 1])
    script.vocab = t.vocab
    g = Generation(script, t, PROMPT, max_new_tokens=200, stops=stops)
    assert ("".join(g), g.report.stop, g.report.text) == (text, stop, text)


def test_a_character_that_is_cut_by_the_end_stands_before_it():
    t = special_tokenizer()
    half = t.encode("🙂")[1:3]
    g = Generation(Script([*half, 1]), t, PROMPT, max_new_tokens=9, stops=["\ufffd</s>"])
    assert ("".join(g), g.report.stop) == ("", "stop")
    g = Generation(Script([*half, 1]), t, PROMPT, max_new_tokens=9)
    assert ("".join(g), g.report.stop) == ("\ufffd", "end")


def test_a_stop_string_that_is_no_text_is_refused_and_bytes_of_a_c_locale_are_read():
    with pytest.raises(UserError, match=r"^a stop string: is not UTF-8 text \(invalid start byte at byte 1\)"):
        StopStrings(["a\udcff"])
    s = StopStrings(["\udcc3\udca9"])
    assert s.push("caf") + s.push("é!") == "caf" and s.found


def test_stop_strings_hold_back_no_more_than_needed():
    s = StopStrings(["abc", "x"])
    assert [s.push(t) for t in ("za", "b", "d", "ab", "ca")] == ["z", "", "abd", "", ""]
    assert s.found
    s = StopStrings(["abc"])
    assert (s.push("1ab"), s.finish(), s.found) == ("1", "ab", False)
    with pytest.raises(UserError, match="a stop string must not be empty"):
        StopStrings([""])


@pytest.mark.parametrize(
    "stops", [["girl", "there"], ["there", "girl"], ["re", "ere w"], ["ere w", "re"], ["there was a girl", "was"]]
)
def test_the_text_ends_before_the_first_of_several_stop_strings_of_one_piece(stops: list[str]):
    s = StopStrings(stops)
    text = " there was a girl. She"
    assert s.push(text) == text[: min(text.find(stop) for stop in stops)] and s.found
    assert s.finish() == ""


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.text("ab<", max_size=4), max_size=8),
    stops=st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_are_found_in_any_pieces(pieces: list[str], stops: list[str]):
    """Against a search of all the text so far, piece by piece; and what cannot become a stop string any more is not held back."""
    s = StopStrings(stops)
    given_out, so_far = "", ""
    for piece in pieces:
        given_out += s.push(piece)
        so_far += piece
        places = [so_far.find(stop) for stop in stops if stop in so_far]
        assert s.found == bool(places)
        if places:
            assert given_out == so_far[: min(places)] and s.finish() == ""
            return
        held = so_far[len(given_out) :]
        assert so_far.startswith(given_out)
        assert held == max((stop[:n] for stop in stops for n in range(len(stop)) if so_far.endswith(stop[:n])), key=len)
    assert given_out + s.finish() == so_far and not s.found


@pytest.mark.parametrize("end", ["length", "context"])
@pytest.mark.parametrize("stops", [[], ["\ufffd"], ["\ufffdx"]])
def test_a_stop_string_may_come_with_what_was_kept_back_at_the_end(end: str, stops: list[str]):
    """The last token leaves a character incomplete: its replacement comes at the very end, and may be a stop string or begin one."""
    t = special_tokenizer()
    half = t.encode("🙂")[1:3]
    script = Script(
        [*t.encode(" there")[1:], *half, 1, 1],
        context=256 if end == "length" else len(PROMPT) + len(t.encode(" there")[1:]) + 1,
    )
    count = len(t.encode(" there")[1:]) + 2
    g = Generation(script, t, PROMPT, max_new_tokens=count if end == "length" else 200, stops=stops)
    found = stops == ["\ufffd"]
    assert ("".join(g), g.report.stop) == (" there" if found else " there\ufffd", "stop" if found else end)
    assert len(g.report.new_ids) == count


@pytest.mark.parametrize("end", ["length", "context", "end"])
def test_the_beginning_of_a_stop_string_is_given_out_when_nothing_follows(end: str):
    count = len(tokenizer().encode(" there was")) - 1
    options = {"length": {"max_new_tokens": count}, "context": {"context": len(PROMPT) + count - 1}, "end": {}}[end]
    said = " there was" + ("" if end == "end" else " a girl")
    pieces, g, _ = say(said, stops=["was a dog"], **options)
    assert ("".join(pieces), g.report.stop) == (" there was", end)


def test_the_full_context_ends_generation():
    _, g, script = say(" there was a girl who was happy", context=8)
    assert g.report.stop == "context"
    assert script.heard[-1][1] == 7 and len(g.report.new_ids) == 8 - 5 + 1


def test_a_full_prompt_still_gives_one_token():
    _, g, _ = say(" there was", context=5)
    assert (g.report.stop, len(g.report.new_ids)) == ("context", 1)


def test_refusals():
    with pytest.raises(UserError, match="the prompt has 5 tokens, the context holds 4; shorten the prompt"):
        say("x", context=4)
    with pytest.raises(UserError, match="max-new-tokens must be at least 1, not 0"):
        say("x", max_new_tokens=0)


def test_report_adds_up_cycles_and_stalls():
    _, g, _ = say(" there was", max_new_tokens=3)
    r = g.report
    assert r.cycles_prefill == 50 and r.cycles_decode == [10] * len(r.decode)
    assert r.stalls == {"memory": 2 * (len(r.prefill) + len(r.decode))} and 0 < r.seconds < 600


def test_the_time_to_the_first_token_is_told_from_that_of_all(monkeypatch: pytest.MonkeyPatch):
    """By a clock that goes on with every look at it."""
    clock = itertools.count(100.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    _, g, _ = say(" there was a girl who was happy", max_new_tokens=5)
    assert (
        len(g.report.new_ids) == 5 and 0 < g.report.seconds_prefill <= 3 and g.report.seconds > g.report.seconds_prefill
    )
    _, one, _ = say(" there was", max_new_tokens=1)
    assert one.report.stop == "length" and len(one.report.new_ids) == 1


def test_golden_counts_no_cycles():
    g = Generation(golden(), tokenizer(), PROMPT, max_new_tokens=3)
    list(g)
    assert (g.report.cycles_prefill, g.report.cycles_decode, g.report.stalls) == (None, [], {})


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.9, top_k=50, top_p=0.95, seed=7), Sampling(temperature=2, seed=8)]
)
def test_the_same_tokens_from_machine_and_golden(sampling: Sampling):
    accelerator, _, model = start(DEMO)
    reports = []
    for backend in (accelerator, golden()):
        g = Generation(backend, model.tokenizer, PROMPT, max_new_tokens=30, sampling=sampling, eos_ids=model.eos_ids)
        list(g)
        reports.append(g.report)
    assert reports[0].new_ids == reports[1].new_ids and len(reports[0].new_ids) > 3
    assert reports[0].text == reports[1].text


def test_the_demo_model_tells_a_story():
    g = Generation(golden(), tokenizer(), tokenizer().encode("Once upon a time"), max_new_tokens=24)
    assert "there lived a happy" in "".join(g)


def test_a_model_in_another_slot_says_the_same(tmp_path: Path):
    folder = write_checkpoint(tmp_path / "m", small_spec(vocab=1024))
    accelerator, _, model = start(folder, slots=2)
    texts = []
    for slot in (1, 0):
        g = Generation(accelerator, model.tokenizer, PROMPT, max_new_tokens=8, slot=slot)
        texts.append("".join(g))
    assert texts[0] == texts[1]
