"""Conversations: what is computed again and what is not, full contexts, interruption; the terminal's loop and commands."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tellme.golden.config import TINY
from tellme.host.cli import app
from tellme.host.errors import UserError
from tellme.host.image.model import Model, demo_folder
from tellme.host.machine.backends import GoldenBackend
from tellme.host.machine.passes import Backend, Pass, PassResult
from tellme.host.talk.generate import Generation
from tellme.host.talk.power import HWMON, Meter, rails
from tellme.host.talk.session import Session, Totals
from tellme.host.talk.terminal import Chat
from tellme.host.text.defaults import sampling_of
from tellme.host.text.sampling import Sampler, Sampling

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


class Counting(GoldenBackend):
    """Remembers the positions of every pass."""

    def __init__(self, model: Model, context: int | None = None):
        super().__init__(model.weights(), TINY, context=context)
        self.positions: list[int] = []

    def _pass(self, given: Pass) -> PassResult:
        self.positions += given.positions
        return super()._pass(given)

    def prefill(self, tokens, *, start=0, **options) -> list[PassResult]:  # type: ignore[no-untyped-def]
        self.positions += range(start, start + len(tokens))
        return super().prefill(tokens, start=start, **options)


def templated(folder: Path) -> Path:
    """The demo model with a chat template."""
    shutil.copytree(demo_folder(), folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def story() -> Iterator[Model]:
    with Model.open(demo_folder(), TINY) as model:
        yield model


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model.open(templated(tmp_path_factory.mktemp("chat") / "model"), TINY) as model:
        yield model


def say(session: Session, text: str) -> str:
    return "".join(session.ask(text))


def test_the_second_answer_computes_only_what_is_new_and_is_what_a_fresh_run_says(story: Model) -> None:
    backend = Counting(story)
    session = Session(backend, story.tokenizer, max_new_tokens=5)
    first = session.ask("One day, a small fox")
    list(first)
    used = len(backend.positions)
    assert used == len(first.report.prompt_ids) + 4 and first.cached == 0
    second = session.ask(" and a bird")
    text = "".join(second)
    # All of the first turn but its last token is in the cache; every later position is computed once, in order.
    assert second.cached == used
    assert backend.positions == list(range(len(second.report.prompt_ids) + len(second.report.decode)))
    fresh = Generation(Counting(story), story.tokenizer, second.report.prompt_ids, max_new_tokens=5)
    assert "".join(fresh) == text


def test_a_template_frames_the_messages_and_unchanged_prefixes_are_kept(chatty: Model) -> None:
    backend = Counting(chatty)
    session = Session(backend, chatty.tokenizer, max_new_tokens=4, system="Be kind.")
    first = session.ask("hello")
    answer = "".join(first)
    want = chatty.tokenizer.encode_chat(
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]
    )
    assert first.report.prompt_ids == want and answer == first.report.text
    backend.positions.clear()
    second = session.ask("more")
    list(second)
    assert second.cached >= len(want) - 1
    assert backend.positions[0] == second.cached
    history = chatty.tokenizer.encode_chat(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "more"},
        ]
    )
    assert second.report.prompt_ids == history
    session.reset()
    third = session.ask("hello")
    assert third.report.prompt_ids == want and third.cached == len(want) - 1  # at least one token is computed
    assert "".join(third) == answer


def test_a_full_context_drops_the_oldest_messages_and_says_how_many(chatty: Model) -> None:
    session = Session(Counting(chatty, context=60), chatty.tokenizer, max_new_tokens=4)
    dropped = []
    for i in range(6):
        turn = session.ask(f"say {i}")
        list(turn)
        dropped.append(turn.dropped)
        assert len(turn.report.prompt_ids) <= 56
    assert dropped[0] == 0 and 2 in dropped
    with pytest.raises(UserError, match=r"the message has \d+ tokens, at most 56 of the context of 60"):
        session.ask("very " * 80)
    assert say(session, "still here?") is not None


def test_a_message_may_take_three_quarters_of_a_context_that_answers_could_fill(story: Model) -> None:
    session = Session(Counting(story, context=60), story.tokenizer, max_new_tokens=256)
    word = story.tokenizer.encode_more(" a")
    assert len(word) == 1
    with pytest.raises(UserError, match="the message has 46 tokens, at most 45 of the context of 60"):
        session.ask(" a" * (46 - len(story.tokenizer.encode(""))))
    turn = session.ask(" a" * (45 - len(story.tokenizer.encode(""))))
    assert turn.dropped == 0


def test_nothing_is_dropped_of_a_conversation_that_just_fits(story: Model, chatty: Model) -> None:
    backend = Counting(story, context=40)
    session = Session(backend, story.tokenizer, max_new_tokens=2)
    list(session.ask("One day"))
    held = len(session._ids)
    turn = session.ask(" a" * (38 - held))
    assert len(turn._generation.report.prompt_ids) == 38 and turn.dropped == 0
    session._ids = session._ids[:held]
    assert session.ask(" a" * (39 - held)).dropped > 0
    first, second = ([{"role": "user", "content": "One"}, {"role": "assistant", "content": "x"}], "day")
    size = len(chatty.tokenizer.encode_chat([*first, {"role": "user", "content": second}]))
    for room, dropped in ((size, 0), (size - 1, 2)):
        talk = Session(Counting(chatty, context=room + 2), chatty.tokenizer, max_new_tokens=2)
        talk._messages = list(first)
        assert talk.ask(second).dropped == dropped


@pytest.mark.parametrize("length", [9, 10, 15, 19])
def test_a_message_that_pushes_the_text_before_it_out_is_whole(story: Model, length: int) -> None:
    session = Session(Counting(story, context=24), story.tokenizer, max_new_tokens=4)
    list(session.ask("One day, a small fox and a bird"))
    new = story.tokenizer.encode_more(" a" * length)
    assert len(new) == length
    turn = session.ask(" a" * length)
    ids = turn.report.prompt_ids
    assert ids[0] == story.tokenizer.bos_id and ids[-length:] == new and len(ids) == max(length + 1, 10)
    with pytest.raises(UserError, match="the message has 21 tokens, at most 20 of the context of 24"):
        session.ask(" a" * 20)  # and the start of the document


def test_only_what_was_said_last_in_this_conversation_is_answered_again(chatty: Model, tmp_path: Path) -> None:
    session = Session(Counting(chatty), chatty.tokenizer, max_new_tokens=2)
    say(session, "One")
    first = list(session._messages)
    turn = session.ask("day")
    list(turn)
    assert set(asdict(Totals()).values()) <= {0, None}
    report, before = turn.report, session.totals.seconds_decode
    session.totals.add(turn)
    assert session.totals.seconds_decode - before == pytest.approx(report.seconds - report.seconds_prefill)
    assert report.seconds_prefill > 0
    "".join(session.retry())
    assert session._messages[:-1] == [*first, {"role": "user", "content": "day"}]
    session.save(tmp_path / "talk.json")
    session.load(tmp_path / "talk.json")
    with pytest.raises(UserError, match="there is nothing to answer again"):
        session.retry()
    say(session, "and")
    session.reset()
    with pytest.raises(UserError, match="there is nothing to answer again"):
        session.retry()


def test_a_full_context_without_template_keeps_the_newest_tokens(story: Model) -> None:
    session = Session(Counting(story, context=24), story.tokenizer, max_new_tokens=4)
    list(session.ask("One day, a small fox"))
    turns = []
    for _ in range(4):
        turn = session.ask(" and a bird")
        list(turn)
        turns.append(turn)
    assert any(t.dropped for t in turns)
    assert all(t.report.prompt_ids[0] == story.tokenizer.bos_id for t in turns)
    assert all(len(t.report.prompt_ids) <= 20 for t in turns)


def test_a_context_that_fills_during_an_answer_ends_it(story: Model) -> None:
    session = Session(Counting(story, context=12), story.tokenizer, max_new_tokens=50)
    turn = session.ask("One")
    list(turn)
    assert turn.report.stop == "context"


def test_a_stopped_answer_keeps_the_session_and_its_cache(story: Model) -> None:
    backend = Counting(story)
    session = Session(backend, story.tokenizer, max_new_tokens=12)
    turn = session.ask("One day")
    for i, _ in enumerate(turn):
        if i == 2:
            turn.stop()
    assert turn.report.stop == "interrupted" and 3 <= len(turn.report.new_ids) < 8
    backend.positions.clear()
    after = session.ask(" then")
    say_again = "".join(after)
    assert after.cached == len(turn.report.prompt_ids) + len(turn.report.decode)
    fresh = Generation(Counting(story), story.tokenizer, after.report.prompt_ids, max_new_tokens=12)
    assert "".join(fresh) == say_again


def test_a_failing_pass_forgets_only_what_is_not_certain(story: Model) -> None:
    backend = Counting(story)
    session = Session(backend, story.tokenizer, max_new_tokens=3)
    list(session.ask("One day"))
    good, backend._pass = backend._pass, None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        say(session, " a fox")
    backend._pass = good  # type: ignore[method-assign]
    turn = session.ask(" a bird")
    text = "".join(turn)
    fresh = Generation(Counting(story), story.tokenizer, turn.report.prompt_ids, max_new_tokens=3)
    assert "".join(fresh) == text


def test_a_prefill_torn_apart_is_not_taken_for_what_was_there_before(story: Model) -> None:
    backend = Counting(story)
    session = Session(backend, story.tokenizer, max_new_tokens=3)
    text = say(session, "One day, a small fox")
    session.reset()
    whole = backend.prefill

    def torn(tokens, **options):  # type: ignore[no-untyped-def]
        whole(tokens, **options)
        raise KeyboardInterrupt

    backend.prefill = torn  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        say(session, "Two birds flew over the sea")
    backend.prefill = whole  # type: ignore[method-assign]
    session.reset()
    assert say(session, "One day, a small fox") == text


class Scripted(Backend):
    """Says given tokens; with logits, one above all others, or all equal if the token is None."""

    def __init__(self, says: list[int | None], context: int = 256):
        self.config, self.vocab, self.context, self.slots, self.group = TINY, 1024, context, 1, 1
        self.says = says
        self.heard: list[tuple[int, int]] = []

    def _pass(self, given: Pass) -> PassResult:
        self.heard += zip(given.tokens, given.positions, strict=True)
        first, count = given.head
        said = [self.says.pop(0) for _ in range(count)]
        logits = np.zeros((count, self.vocab), np.float32)
        for row, token in zip(logits, said, strict=True):
            if token is not None:
                row[token] = 1000
        best = tuple(int(i) for i in logits.argmax(-1))
        return PassResult(
            head_first=first, head_count=count, best_index=best, best_value=tuple(logits.max(-1)), logits=logits
        )


def test_neither_the_end_token_nor_a_second_document_start_goes_on_in_a_text(story: Model) -> None:
    t = story.tokenizer
    fox, bird = t.encode_more(" a fox"), t.encode_more(" and a bird")
    assert t.bos_id is not None and t.eos_id is not None
    backend = Scripted([*fox, t.eos_id, *bird, t.eos_id, *fox, t.eos_id])
    session = Session(backend, t, max_new_tokens=20, eos_ids=story.eos_ids)
    first = session.ask("One day")
    assert "".join(first) == " a fox" and first.report.new_ids == [*fox, t.eos_id]
    begin = t.encode("One day")
    then, more = t.encode_more(" then"), t.encode_more(" more")
    second = session.ask(" then")
    assert "".join(second) == " and a bird"
    assert second.report.prompt_ids == [*begin, *fox, *then] and second.cached == len(begin) + len(fox)
    third = session.ask(" more")
    assert third.report.prompt_ids == [*begin, *fox, *then, *bird, *more]
    assert third.report.prompt_ids.count(t.bos_id) == 1 and t.eos_id not in third.report.prompt_ids
    list(third)
    # Every token at its place, once: what a cache counts as held has been through the model.
    held = [*begin, *fox, *then, *bird, *more, *fox]
    assert backend.heard == [(held[p], p) for p in range(len(backend.heard))]


def test_an_answer_cut_off_at_its_length_goes_on_with_its_last_token(story: Model) -> None:
    """The last token was chosen but has not been through the model: it is said, but not cached."""
    t = story.tokenizer
    fox = t.encode_more(" a fox")
    backend = Scripted([*fox, 5])
    session = Session(backend, t, max_new_tokens=len(fox))
    first = session.ask("One day")
    list(first)
    second = session.ask(" then")
    assert second.report.prompt_ids == [*t.encode("One day"), *fox, *t.encode_more(" then")]
    assert second.cached == len(t.encode("One day")) + len(fox) - 1


@pytest.mark.parametrize("kind", ["story", "chatty"])
def test_every_answer_draws_with_a_seed_of_its_own(kind: str, request: pytest.FixtureRequest) -> None:
    """The same question thrice, of equal logits: answer n is what a generator of seed + n draws."""
    t = request.getfixturevalue(kind).tokenizer
    session = Session(Scripted([None] * 24), t, max_new_tokens=8, sampling=Sampling(temperature=1, seed=40))
    for n in range(3):
        turn = session.ask("One day")
        list(turn)
        session.reset()
        draw = Sampler(Sampling(temperature=1, seed=40 + n))
        assert turn.report.new_ids == [draw(np.zeros(1024, np.float32)) for _ in range(len(turn.report.new_ids))]
        assert len(turn.report.new_ids) > 1 or turn.report.stop == "end"
    assert session.totals.answers == 3


def test_bad_settings_are_refused(story: Model) -> None:
    with pytest.raises(UserError, match="max-new-tokens must be at least 1, not 0"):
        Session(Counting(story), story.tokenizer, max_new_tokens=0)
    with pytest.raises(UserError, match="a system message needs a chat template"):
        Session(Counting(story), story.tokenizer, system="x")


# ---- the loop --------------------------------------------------------------------------------------------------------


def script(lines: list[str | type[BaseException]]):  # type: ignore[no-untyped-def]
    """Gives lines as a terminal does; an exception class is raised."""
    rest = iter(lines)

    def read() -> str:
        line = next(rest, EOFError)
        if isinstance(line, str):
            return line
        raise line

    return read


def test_commands_of_the_chat(story: Model, capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(Counting(story), story.tokenizer, max_new_tokens=3)
    lines: list[str | type[BaseException]] = [
        "One day",
        "/stats",
        "/reset",
        "/nothing",
        "//slash",
        "/help",
        "/exit",
        "not read",
    ]
    Chat(session, "golden", read=script(lines)).run()
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "answers        1" in err and "new tokens     3" in err and "energy         not measured: not a board" in err
    assert (
        "new conversation" in err
        and "there is no command /nothing; there are /reset, /retry, /save, /load, /set, /stats, /exit, /help" in err
    )
    assert "Ctrl-C  stop an answer" in err
    assert session.totals.answers == 2


def test_a_conversation_is_saved_loaded_tried_again_and_its_sampling_changed(
    chatty: Model, story: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a talk.json"
    session = Session(Counting(chatty), chatty.tokenizer, max_new_tokens=3, system="Be kind.")
    lines: list[str | type[BaseException]] = [
        "/retry", "hello", "/set", "/set top-k 5", "/set temperature hot", "/set colour 1", "/set min_p 3",
        "/set temperature 1.5", "/retry", f"/save {file}", "/save", "/load nowhere.json",
    ]  # fmt: skip
    assert Chat(session, "golden", read=script(lines)).run() == 6
    _, err = capsys.readouterr()
    assert "there is nothing to answer again; say something first" in err and "top_k 5" in err
    assert "temperature takes a number, not 'hot'" in err and "there is no setting colour" in err
    assert "min-p must be from 0" in err and f"saved to {file}" in err and "/save needs the name of a file" in err
    assert "nowhere.json: cannot be read" in err
    assert session.sampling.temperature == 1.5 and session.sampling.top_k == 5 and session.totals.answers == 2
    assert [m["role"] for m in session._messages] == ["user", "assistant"]
    other = Session(Counting(chatty), chatty.tokenizer, max_new_tokens=3)
    assert other.load(file) == 3 and (other._system, other._messages) == (session._system, session._messages)
    turns = [s.ask("more") for s in (session, other)]
    assert turns[0].report.prompt_ids == turns[1].report.prompt_ids
    plain = Session(Counting(story), story.tokenizer, max_new_tokens=3)
    with pytest.raises(UserError, match="is of a model with a chat template"):
        plain.load(file)
    text = say(plain, "One day")
    plain.save(file)
    fresh = Session(Counting(story), story.tokenizer, max_new_tokens=3)
    assert fresh.load(file) == len(plain._ids)
    assert "".join(fresh.ask(" then")) == "".join(plain.ask(" then")) and text
    for content, message in (
        ("{", "is no conversation"),
        ("{}", "is no conversation that this tellme reads"),
        (
            json.dumps({"kind": "tellme conversation", "version": 1, "ids": [-1]}),
            "has a token outside the vocabulary of 1024",
        ),
        (json.dumps({"kind": "tellme conversation", "version": 1, "messages": []}), "with a chat template"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            fresh.load(file)


def test_the_models_own_sampling_is_the_default(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    assert sampling_of(folder, Sampling()) == Sampling()
    for data, want in (
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, Sampling(temperature=0.6, top_p=0.9)),
        ({"do_sample": True, "top_k": 20}, Sampling(temperature=1.0, top_k=20)),
        ({"do_sample": False, "temperature": 0.6}, Sampling()),
        ({"eos_token_id": 2}, Sampling(top_k=3)),
    ):
        (folder / "generation_config.json").write_text(json.dumps(data))
        assert sampling_of(folder, Sampling(top_k=3)) == want
    many = "9" * 400  # more than a float holds
    for text in (
        "{",
        "[" * 100_000,
        "[]",
        '{"temperature": "hot"}',
        '{"top_p": 7}',
        f'{{"top_k": {many}}}',
        '{"top_k": Infinity}',
        '{"top_k": NaN}',
    ):
        (folder / "generation_config.json").write_text(text)
        with pytest.raises(UserError, match="generation_config.json: "):
            sampling_of(folder)


def test_ctrl_c_stops_the_answer_and_the_next_message_is_answered(
    story: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = Counting(story)
    session = Session(backend, story.tokenizer, max_new_tokens=60)
    original, seen = backend._pass, []

    def press(*args):  # type: ignore[no-untyped-def]
        seen.append(1)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        if len(seen) > 12:
            session.max_new_tokens = 2
        return original(*args)

    backend._pass = press  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGINT)
    Chat(session, "golden", read=script(["One day", "/stats"]), as_json=True).run()
    assert signal.getsignal(signal.SIGINT) is before
    session.max_new_tokens = 2
    Chat(session, "golden", read=script(["and"]), as_json=True).run()
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert [a["stop"] for a in answers] == ["interrupted", "length"] and len(answers[0]["new_ids"]) < 10
    assert answers[1]["cached_tokens"] > 0 and answers[1]["joules"] is None
    assert "(stopped)" in err


def test_a_second_ctrl_c_leaves(story: Model) -> None:
    backend = Counting(story)
    session = Session(backend, story.tokenizer, max_new_tokens=60)
    original = backend._pass

    def press(*args):  # type: ignore[no-untyped-def]
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return original(*args)

    backend._pass = press  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        Chat(session, "golden", read=script(["One day"])).run()


def test_chat_reads_a_pipe_and_a_template(tmp_path: Path) -> None:
    call = ["chat", "--backend", "golden", "--model", str(templated(tmp_path / "m")), "--max-new-tokens", "3", "--json"]
    result = CliRunner().invoke(app, [*call, "--system", "Be kind."], input="hello\n\n/reset\nhello\n")
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert answers[0]["text"] == answers[1]["text"] and len(answers[0]["new_ids"]) == 3
    assert answers[0]["cached_tokens"] == 0 and answers[1]["cached_tokens"] == answers[1]["prompt_tokens"] - 1
    text = CliRunner().invoke(app, [*call[:-1], "--context", "0"], input="hello\n")
    assert text.exit_code == 2 and "context must be from 1 to" in text.stderr
    for options, message in (
        (["--backend", "abacus"], "backend 'abacus' is unknown; there are sim, golden, board"),
        (["--backend", "golden", "--bitstream", "x.bit"], "--bitstream needs --backend board"),
        (["--backend", "golden", "--system", "x"], "a system message needs a chat template"),
    ):
        refused = CliRunner().invoke(app, ["chat", *options], input="")
        assert refused.exit_code == 2 and message in refused.stderr and "Traceback" not in refused.stderr


# ---- power -----------------------------------------------------------------------------------------------------------


def sensor(root: Path, number: int, name: str, **files: object) -> Path:
    chip = root / f"hwmon{number}"
    chip.mkdir(parents=True)
    (chip / "name").write_text(f"{name}\n")
    for file, value in files.items():
        (chip / file).write_text(f"{value}\n")
    return chip


def test_power_is_the_input_sensor_or_the_sum_of_rails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HWMON == Path("/sys/class/hwmon")
    monkeypatch.setattr("tellme.host.talk.power.HWMON", tmp_path)
    assert rails() == [] and Meter().stop() is None
    sensor(tmp_path, 0, "ina226_u76", in0_input=3, in1_input=850, curr1_input=2000)
    sensor(tmp_path, 1, "ina226_u77", power1_input=1_500_000, power1_label="VCCAUX")
    sensor(tmp_path, 2, "cpu_thermal", temp1_input=40000)
    sensor(tmp_path, 3, "ina226_u78", power1_input="broken")
    assert [(r.name, round(r.watts(), 6)) for r in rails()] == [("ina226_u76", 1.7), ("ina226_u77 VCCAUX", 1.5)]
    sensor(tmp_path, 4, "ina260_u14", power1_input=4_800_000)
    assert [r.name for r in rails()] == ["ina260_u14"]


def test_energy_is_power_over_time_and_none_when_a_sensor_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tellme.host.talk.power.HWMON", tmp_path)
    chip = sensor(tmp_path, 0, "ina260_u14", power1_input=5_000_000)
    clock = iter(np.arange(0, 100, 0.5))
    monkeypatch.setattr("tellme.host.talk.power.time.monotonic", lambda: float(next(clock)))
    meter = Meter()
    meter.start()
    joules = meter.stop()
    # The clock says half a second a look; 5 W.
    assert joules is not None and joules > 0 and joules % 2.5 == 0
    meter.start()
    (chip / "power1_input").unlink()
    meter._done.wait(0.1)
    assert meter.stop() is None


def test_a_terminal_has_a_prompt_stops_at_ctrl_c_and_leaves_at_exit() -> None:
    """The command in a pseudo-terminal, with a person's keys."""
    command = [
        "-c",
        "from tellme.host.cli import main; main()",
        "chat",
        "--backend",
        "golden",
        "--max-new-tokens",
        "200",
    ]
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs ignore it
        os.environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        os.execv(sys.executable, [sys.executable, *command])
    seen = ""

    def until(words: str, again: bytes = b"") -> None:
        """Reads up to these words; presses a key `again` while nothing comes."""
        nonlocal seen
        end = time.monotonic() + 120
        while words not in seen:
            assert time.monotonic() < end, seen
            if select.select([terminal], [], [], 2)[0]:
                seen += os.read(terminal, 4096).decode(errors="replace")
            elif again:
                os.write(terminal, again)
        seen = seen[seen.index(words) + len(words) :]

    try:
        until("continuing text (it has no chat template); context 256 positions; /help for commands")
        until("> ")
        os.write(terminal, b"One day, a small fox\n")
        until(" named")
        os.write(terminal, b"\x03")
        until("(stopped)")
        until("tokens/s")
        until("> ")
        os.write(terminal, b"\x03")
        # Python's input() misses a signal between its prompt and its wait; a person presses again.
        until("(/exit or Ctrl-D to leave)", again=b"\x03")
        os.write(terminal, b"/stats\n")
        until("answers        1")
        until("> ")  # a key that comes before the prompt is lost when the terminal changes its mode
        os.write(terminal, b"\x04")
        end, ended = time.monotonic() + 120, 0
        while not ended:
            assert time.monotonic() < end, seen
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.05)
        child = 0
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(terminal)


def test_an_answer_has_one_token_at_least_and_ends_at_every_end_token(story: Model) -> None:
    with pytest.raises(UserError, match="max-new-tokens must be at least 1, not 0"):
        Session(Counting(story), story.tokenizer, max_new_tokens=0)
    session = Session(Counting(story), story.tokenizer, max_new_tokens=1, eos_ids=[77])
    assert session.eos_ids == {77} | story.tokenizer.end_ids != {77}
