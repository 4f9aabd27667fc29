"""Conversations side by side, with guesses or without, say what each says alone: token for token, logit for logit."""

from __future__ import annotations

import contextlib
import random
import weakref
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tellme.golden import screen
from tellme.golden.config import KV260, TINY
from tellme.golden.kv import CACHE_FORMATS, CacheFormat
from tellme.golden.shapes import BITNET_07B, BITNET_2B
from tellme.golden.spec import ModelSpec
from tellme.host.errors import CheckError, UserError
from tellme.host.image.model import Model, demo_folder
from tellme.host.machine.backends import GoldenBackend
from tellme.host.machine.costs import Costs
from tellme.host.machine.passes import Backend, PassResult
from tellme.host.machine.placement import in_use
from tellme.host.machine.screening import HeadChoice
from tellme.host.machine.simulation import memory_timing
from tellme.host.talk import drafts
from tellme.host.talk.drafts import LONGEST, MEMORY, SHORTEST, STEP, Draft, Drafts, History
from tellme.host.talk.engine import Choice, Chosen, Engine, Ticket, draws, log_softmax
from tellme.host.talk.generate import Generation
from tellme.host.talk.scheduler import Planned, singly
from tellme.host.text.sampling import Sampler, Sampling, draw
from tellme.hw.plan import predict, steps
from tellme.sim.stream import SustainedMemory
from tests.host.support import WORD, start, write_checkpoint
from tests.models import random_weights, small_spec

SPEC = small_spec(layers=1)
WEIGHTS = random_weights(SPEC, 3)


def golden(slots: int = 3, config: Any = TINY) -> GoldenBackend:
    return GoldenBackend(WEIGHTS, config, slots=slots)


def drain(engine: Engine) -> list[Chosen]:
    """Runs all that there is to the end; what was chosen, as it came."""
    return [chosen for _ in iter(lambda: engine.busy, False) for _, new in engine.step() for chosen in new]


def recorded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[PassResult]:
    """The results that tokens are chosen from, from now on."""
    results: list[PassResult] = []
    finish = engine._finish

    def finishing(planned: Planned, of: list[PassResult]) -> Any:
        results.extend(of)
        return finish(planned, of)

    monkeypatch.setattr(engine, "_finish", finishing)
    return results


def tokens(ticket: Ticket) -> list[int]:
    return [c.token for c in ticket.new]


class Alone:
    """What a request says when nobody else is there: one token a pass, by the back end's own prefill and decode."""

    def __init__(self, backend: Backend):
        self.backend = backend

    def __call__(self, prompt: list[int], most: int, sampling: Sampling, ends: tuple[int, ...]) -> list[int]:
        choice = Choice(sampling, prompt)
        result = self.backend.prefill(prompt, logits=choice.needs_logits)[-1]
        out: list[int] = []
        while True:
            out.append(choice(result, -1).token)
            position = len(prompt) + len(out) - 1
            if out[-1] in ends or len(out) == most or position == self.backend.context:
                return out
            result = self.backend.decode(out[-1], position, logits=choice.needs_logits)


def requests(seed: int, count: int, context: int, vocab: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(seed)
    bases = [[rng.randrange(vocab) for _ in range(context)] for _ in range(3)]
    said: list[list[int]] = []
    for _ in range(count):
        prompt = [
            *rng.choice(bases)[: rng.randrange(context * 2 // 3)],
            *rng.choices(range(vocab), k=rng.randint(1, 5)),
        ]
        if said and rng.random() < 0.5:
            prompt = rng.choice(said)  # again: what was said to it before is the guess
        said.append(prompt)
        yield {
            "prompt": prompt,
            "most": rng.randint(1, 16),
            "sampling": rng.choice(
                [
                    Sampling(),
                    Sampling(temperature=0.8, top_k=rng.choice([0, 5]), top_p=0.9, seed=rng.randrange(1000)),
                    Sampling(temperature=0.2, min_p=0.1, seed=rng.randrange(1000)),
                    Sampling(repetition_penalty=1.3),
                ]
            ),
            "ends": (rng.randrange(vocab), rng.randrange(vocab)),
            "speculate": rng.random() < 0.6,
            "cancel": rng.randint(0, 12) if rng.random() < 0.2 else None,
        }


class Sloppy(Drafts):
    """Takes back half of its good guesses."""

    def __init__(self, rng: random.Random):
        super().__init__()
        self.rng = rng

    def guess(self, key: int, most: int) -> Draft:
        draft = super().guess(key, most)
        if not draft.tokens or self.rng.random() < 0.5:
            return draft
        place = self.rng.randrange(len(draft.tokens))
        return draft._replace(tokens=(*draft.tokens[:place], 0, *draft.tokens[place + 1 :]))


def compare(backend: Backend, reference: Backend, seed: int, count: int) -> Engine:
    """Random requests that come and go; each text is the single run's, up to where it was cancelled."""
    rng = random.Random(seed)
    engine, alone = Engine(backend, queue=8), Alone(reference)
    engine.scheduler.cost = singly(lambda firsts, lanes, heads: 1.0)  # guess whatever may be
    engine.drafts = Sloppy(rng)
    pending = list(requests(seed, count, backend.context, backend.vocab))
    live: list[tuple[dict[str, Any], Ticket]] = []
    done = 0
    while pending or live:
        while pending and len(engine.scheduler.waiting) < 8 and rng.random() < 0.2:
            request = pending.pop(0)
            ticket = engine.submit(
                request["prompt"],
                max_new_tokens=request["most"],
                sampling=request["sampling"],
                end_ids=request["ends"],
                speculate=request["speculate"],
            )
            live.append((request, ticket))
        engine.step()
        for request, ticket in list(live):
            if request["cancel"] is not None and len(ticket.new) >= request["cancel"]:
                engine.cancel(ticket)
            if not ticket.ended:
                continue
            live.remove((request, ticket))
            done += 1
            want = alone(request["prompt"], request["most"], request["sampling"], request["ends"])
            got = tokens(ticket)
            assert got == (want[: len(got)] if ticket.stop == "cancelled" else want), (seed, request)
            if not request["speculate"]:
                assert ticket.drafted == 0
    assert done == count and not engine.busy and all(s.holder is None for s in engine.scheduler.slots)
    return engine


@pytest.mark.parametrize(("seed", "config"), [(1, TINY), (2, WORD)])
def test_random_requests_say_what_each_says_alone(seed: int, config: Any) -> None:
    engine = compare(golden(4, config), golden(1, config), seed, 24)
    assert engine.drafts.drafted > engine.drafts.accepted > 3
    assert engine.scheduler.passes == engine.counts.passes


def test_the_same_on_a_machine(tmp_path: Any) -> None:
    accelerator, _, model = start(write_checkpoint(tmp_path / "m", small_spec(layers=1, vocab=64)), slots=3)
    compare(accelerator, GoldenBackend(model.weights(), TINY), 5, 6)


class Counting(GoldenBackend):
    """Appends the candidates of each pass to `calls`."""

    def __init__(self, calls: list[int], *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._calls = calls

    def _pass(self, given: Any) -> Any:
        self._calls.append(given.candidates)
        return super()._pass(given)


@pytest.mark.parametrize("mode", ["screened", "auto"])
def test_with_a_screened_head_nobody_draws_from_what_others_need(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One lane in doubt or with log probabilities has every row; its neighbours keep their candidates."""
    spec = small_spec(layers=1, vocab=300)
    weights = random_weights(spec, 3)
    weights = replace(weights, screen=screen.quantise(*weights.head_rows, 1))
    calls: list[int] = []

    def backend(slots: int, margin: float) -> GoldenBackend:
        made = Counting(calls, weights, TINY, slots=slots)
        made.head = HeadChoice(mode=mode, candidates=32, margin=margin)
        return made

    options = [
        {"sampling": Sampling(temperature=1.5, seed=3)},
        {"sampling": Sampling(temperature=1.0, top_k=20, seed=4)},
        {"sampling": Sampling(temperature=1.2, seed=5), "logprobs": True},
        {"sampling": Sampling()},
    ]
    prompts = [[1, 2, 3], [9, 8], [5, 6, 7, 5, 6, 7], [4]]
    margins = [0.0] if mode == "screened" else [1.0, 2.0]
    mixed = 0
    for margin in margins:
        want = []
        for prompt, option in zip(prompts, options, strict=True):
            engine = Engine(backend(1, margin))
            ticket = engine.submit(prompt, max_new_tokens=12, **option)
            drain(engine)
            want.append(tokens(ticket))
        for who in ([0, 1], [0, 1, 3], [0, 1, 2, 3], [2, 3], [3, 2, 1]):
            engine = Engine(backend(4, margin))
            tickets = [engine.submit(prompts[i], max_new_tokens=12, speculate=True, **options[i]) for i in who]
            chosen_from = recorded(engine, monkeypatch)
            drain(engine)
            assert [tokens(t) for t in tickets] == [want[i] for i in who], (margin, who)
            mixed += sum(r.before is not None and len(set(r.certain)) == 2 for r in chosen_from)
    assert 32 in calls and 0 in calls and mixed > 5


@pytest.mark.parametrize(
    ("slots", "speculate", "screened"), [(1, False, True), (1, True, False), (4, False, False), (4, True, False)]
)
def test_candidates_are_drawn_from_only_where_every_lane_of_a_pass_could_have_them(
    slots: int, speculate: bool, screened: bool
) -> None:
    """512 entries hold 256 candidates of one lane, not of four: who draws alone must draw from what it would draw from beside others."""
    weights = random_weights(small_spec(layers=1, vocab=600), 3)
    weights = replace(weights, screen=screen.quantise(*weights.head_rows, 1))
    calls: list[int] = []
    backend = Counting(calls, weights, TINY, slots=slots)
    backend.head = HeadChoice(mode="screened", candidates=256)
    engine = Engine(backend)
    engine.submit([1, 2, 3], max_new_tokens=4, sampling=Sampling(temperature=1.0, seed=1), speculate=speculate)
    drain(engine)
    assert set(calls) == ({256} if screened else {0})


def test_a_pass_of_which_all_is_in_doubt_is_run_twice_and_not_again() -> None:
    """Also where somebody needs every row; and one that is in no head lane yet needs none."""
    weights = random_weights(small_spec(layers=1, vocab=300), 3)
    weights = replace(weights, screen=screen.quantise(*weights.head_rows, 1))
    for margin, first, then in ((1e9, [32, 0], [32, 0]), (-1e9, [32], [32, 0])):
        calls: list[int] = []
        backend = Counting(calls, weights, TINY, slots=2)
        backend.head = HeadChoice(mode="auto", candidates=32, margin=margin)
        engine = Engine(backend)
        engine.submit([1], max_new_tokens=20, sampling=Sampling(temperature=1.0, seed=1))
        engine.step()
        engine.submit([2] * 9, max_new_tokens=2, sampling=Sampling(temperature=1.0, seed=2), logprobs=True)
        seen = []
        while len(engine._tickets) > 1 or not seen:
            calls.clear()
            engine.step()
            assert engine.last is not None
            if engine.last.given.head[1]:
                both = engine.last.given.head[1] == 2
                assert calls == (then if both else first), (margin, both)
                seen.append(both)
        assert set(seen) == {False, True}
        calls.clear()
        engine = Engine(backend)
        engine.submit([2], max_new_tokens=1, sampling=Sampling(temperature=1.0, seed=2), logprobs=True)
        drain(engine)
        assert calls == [0], "nobody has any use for candidates"


def test_guesses_are_drawn_with_all_others_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From every head lane of a pass in one call, and what each says is what it says alone."""
    drawn_from: list[Any] = []

    def drawing(logits: Any, *more: Any) -> list[int]:
        drawn_from.append(logits)
        return draw(logits, *more)

    prompts = [[1, 2, 3] * 4, [4, 5] * 5, [7, 8, 9] * 4]
    options = [{"max_new_tokens": 30, "sampling": Sampling(temperature=0.05, seed=i)} for i in range(3)]
    want = []
    for prompt, option in zip(prompts, options, strict=True):
        engine = Engine(golden(slots=1))
        ticket = engine.submit(prompt, **option)
        drain(engine)
        want.append(tokens(ticket))
    monkeypatch.setattr("tellme.host.talk.engine.draw", drawing)
    monkeypatch.setattr(Sampler, "__call__", None)
    engine = Engine(golden(slots=3, config=replace(TINY, lanes=16, screen_entries=512)))
    engine.scheduler.cost = singly(lambda firsts, lanes, heads: 1.0)
    tickets = [engine.submit(p, speculate=True, **o) for p, o in zip(prompts, options, strict=True)]
    results = recorded(engine, monkeypatch)
    lanes = 0
    while engine.busy:
        engine.step()
        assert engine.last is not None
        lanes += engine.last.given.lanes
    assert [tokens(t) for t in tickets] == want
    assert engine.counts.lanes == lanes and engine.counts.tokens == 90
    logits = [r.logits for r in results if r.head_count]
    assert all(np.array_equal(a, b) for a, b in zip(drawn_from, logits, strict=True)) and max(map(len, logits)) > 6
    assert all(t.accepted > 5 for t in tickets)


@pytest.mark.parametrize("logprobs", [False, True])
def test_no_logits_are_kept(monkeypatch: pytest.MonkeyPatch, logprobs: bool) -> None:
    """Those of a pass are as much as a megabyte a lane: a board has no room for an answer's."""
    engine = Engine(golden(slots=2))
    results = recorded(engine, monkeypatch)
    for seed in (1, 2):
        sampling = Sampling(temperature=1.0, seed=seed)
        engine.submit([1, 2, 3] * 4, max_new_tokens=20, sampling=sampling, logprobs=logprobs, speculate=True)
    arrays = []
    while engine.busy:
        made = [c.logprobs for _, new in engine.step() for c in new if c.logprobs is not None]
        arrays += [weakref.ref(a) for a in (*made, *(r.logits for r in results if r.logits is not None))]
        results.clear()
        del made
        assert not any(a() is not None for a in arrays)
    assert len(arrays) > (50 if logprobs else 10)


def test_every_logit_of_a_confirmed_guess_is_that_of_the_run_without() -> None:
    logits = []
    for speculate in (False, True):
        engine = Engine(golden())
        ticket = engine.submit([1, 2, 3] * 4, max_new_tokens=40, speculate=speculate, logprobs=True)
        chosen = drain(engine)
        assert (ticket.accepted > 5) == speculate
        assert len(ticket.decode) < 39 if speculate else len(ticket.decode) == 39
        logits.append(np.stack([c.logprobs for c in chosen if c.logprobs is not None]))
        assert [c.logprob for c in ticket.new] == [row[c.token] for row, c in zip(logits[-1], chosen, strict=True)]
    assert logits[0].shape == (40, SPEC.vocab) and (logits[0] == logits[1]).all()


class Broken(GoldenBackend):
    """Has a largest logit that is no number where token `at` of the text is said."""

    at = 0

    def _pass(self, given: Any) -> Any:
        result = super()._pass(given)
        places = [p + 2 for p in given.positions][given.head[0] :]
        worst = [np.float32(np.nan if p == self.at else v) for p, v in zip(places, result.best_value, strict=False)]
        return replace(result, best_value=tuple(worst))


@pytest.mark.parametrize("speculate", [False, True])
@pytest.mark.parametrize("at", [13, 14, 20])
def test_a_logit_that_is_no_number_ends_it_and_says_where(at: int, speculate: bool) -> None:
    backend = Broken(WEIGHTS, TINY, slots=1)
    backend.at = at
    engine = Engine(backend)
    engine.scheduler.cost = singly(lambda firsts, lanes, heads: 1.0)
    ticket = engine.submit([1, 2, 3] * 4, max_new_tokens=30, speculate=speculate)
    with pytest.raises(CheckError, match=f"a logit behind token {at - 1} is not finite"):
        drain(engine)
    assert len(ticket.new) <= at - 13


def test_every_logit_of_the_first_token_must_be_finite_and_later_ones_may_never_come() -> None:
    class Never(GoldenBackend):
        position = -1

        def _pass(self, given: Any) -> Any:
            result = super()._pass(given)
            if result.logits is not None and self.position in given.positions:
                logits = result.logits.copy()
                logits[:, np.argmin(logits, axis=1)] = -np.inf
                result = replace(result, logits=logits)
            return result

    for position, refused in ((2, True), (3, False)):
        backend = Never(WEIGHTS, TINY, slots=1)
        backend.position = position
        engine = Engine(backend)
        engine.submit([1, 2, 3], max_new_tokens=4, sampling=Sampling(temperature=0.5))
        with pytest.raises(CheckError, match="behind token 3") if refused else contextlib.nullcontext():
            drain(engine)


class Chunked(GoldenBackend):
    """Whose prompts go through in passes, as a machine's."""

    prefill = Backend.prefill  # type: ignore[assignment]


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("length", [1, TINY.lanes, TINY.lanes + 2, 2 * TINY.lanes + 3])
def test_whole_prompts_say_what_passes_of_them_say(every: bool, length: int) -> None:
    """One alone; and not where others are there, too."""
    prompts = [[*range(1, length)], [9, 8, 7]]
    prompts[0].append(5)
    want = [Alone(golden(1))(p, 6, Sampling(), ()) for p in prompts]
    for kind in (GoldenBackend, Chunked):
        engine = Engine(kind(WEIGHTS, TINY, slots=2), whole_prompts=True, all_logits=every)
        alone = engine.submit(prompts[0], max_new_tokens=6)
        drain(engine)
        assert tokens(alone) == want[0]
        engine = Engine(kind(WEIGHTS, TINY, slots=2), whole_prompts=True, all_logits=every)
        both = [engine.submit(p, max_new_tokens=6) for p in prompts]
        engine.step()
        # A prompt of one token leaves lanes for the other's.
        assert [len(t.new) for t in both] == ([1, 1] if length == 1 else [0, 0] if length > TINY.lanes else [1, 0])
        drain(engine)
        assert [tokens(t) for t in both] == want


@pytest.mark.parametrize("mode", ["full", "auto", "screened"])
def test_whole_prompts_with_a_screened_head_choose_from_what_passes_choose_from(mode: str) -> None:
    """From every row where logarithms of probabilities are wanted."""
    weights = random_weights(small_spec(layers=1, vocab=300), 3)
    weights = replace(weights, screen=screen.quantise(*weights.head_rows, 1))
    said = []
    for whole in (False, True):
        for logprobs in (False, True):
            backend = GoldenBackend(weights, TINY, slots=1)
            backend.head = HeadChoice(mode=mode, candidates=32)
            engine = Engine(backend, whole_prompts=whole)
            sampling = Sampling(temperature=1.5, seed=3)
            engine.submit([1, 2, 3, 4, 5, 6], max_new_tokens=8, sampling=sampling, logprobs=logprobs)
            chosen = drain(engine)
            assert all(c.logprobs.shape == (300,) for c in chosen if c.logprobs is not None)
            said.append([c.token for c in chosen])
    assert said[:2] == said[2:]


def test_a_prompt_that_went_through_is_found_in_the_next_pass() -> None:
    for whole in (False, True):
        engine = Engine(golden(1), whole_prompts=whole)
        ticket = engine.submit([1, 2, 3, 1, 2, 3], max_new_tokens=20, speculate=True)
        while not ticket.new:
            engine.step()
        engine.drafts.extend(ticket.conversation.key, [1, 2])
        assert engine.drafts.guess(ticket.conversation.key, 1).tokens == (3,)


def test_what_passes_cost_is_learnt_a_pass_later() -> None:
    class Slow(GoldenBackend):
        def _pass(self, given: Any) -> Any:
            return replace(super()._pass(given), cycles=1_000_000 * given.lanes)

    engine = Engine(Slow(WEIGHTS, TINY, slots=1))
    engine.submit([1], max_new_tokens=9)
    assert engine.costs is not None
    before = engine.costs.cycles([5], [1], 1)
    engine.step()
    assert engine.costs.cycles([5], [1], 1) == before
    engine.step()
    assert engine.costs.cycles([5], [1], 1)[0] == pytest.approx(1e6, rel=0.1) and before[0] < 1e5


def test_guesses_that_never_come_true_end() -> None:
    class Liar(Drafts):
        def guess(self, key: int, most: int) -> Draft:
            return Draft((0,) * most, self.chance(3), 3) if most else Draft()

    class Never(GoldenBackend):
        def _pass(self, given: Any) -> Any:
            result = super()._pass(given)
            return replace(result, best_index=tuple(1 + i % 40 for i in result.best_index))

    engine = Engine(Never(WEIGHTS, TINY))
    engine.drafts = Liar()
    ticket = engine.submit([1], max_new_tokens=60, speculate=True)
    for _ in range(10):
        engine.step()
    early = ticket.drafted
    drain(engine)
    assert 0 < early < 20 and ticket.accepted == 0 and ticket.drafted - early <= 2


def test_a_prefix_is_computed_once_and_copied_between_slots() -> None:
    backend = golden(3)
    engine = Engine(backend)
    prompt = list(range(30))
    first = engine.submit(prompt, max_new_tokens=2)
    drain(engine)
    keep = engine.submit([*prompt, *tokens(first), 5], max_new_tokens=8)
    engine.step()
    other = engine.submit([*prompt[:20], 44], max_new_tokens=8)
    engine.step()
    assert keep.conversation.cached == 31 and other.conversation.cached == 20
    assert keep.conversation.slot != other.conversation.slot
    drain(engine)
    for ticket, said in ((keep, [*prompt, *tokens(first), 5]), (other, [*prompt[:20], 44])):
        assert tokens(ticket) == Alone(golden(1))(said, 8, Sampling(), ())


@pytest.mark.parametrize("config", [TINY, WORD], ids=lambda c: c.name)
def test_a_cache_goes_from_slot_to_slot_and_from_back_end_to_back_end(tmp_path: Any, config: Any) -> None:
    accelerator, _, model = start(write_checkpoint(tmp_path / "m", small_spec(layers=2, vocab=64)), config, slots=3)
    reference = GoldenBackend(model.weights(), config, slots=2)
    prompt = [i * 7 % 64 for i in range(37)]
    want = reference.prefill(prompt, logits=True)[-1]
    accelerator.prefill(prompt, slot=2)
    accelerator.copy_cache(2, 0, 36)
    again = accelerator.prefill(prompt[36:], start=36, slot=0, logits=True)[-1]
    assert again.logits is not None and want.logits is not None and (again.logits == want.logits).all()
    mine, theirs = accelerator.read_cache(0, 37), reference.read_cache(0, 37)
    for a, b in (
        (mine.k, theirs.k),
        (mine.v, theirs.v),
        (mine.k_scales, theirs.k_scales),
        (mine.v_scales, theirs.v_scales),
    ):
        assert a.shape == b.shape and (a == b).all()
    accelerator.write_cache(1, reference.read_cache(0, 36))
    again = accelerator.prefill(prompt[36:], start=36, slot=1, logits=True)[-1]
    assert again.logits is not None and (again.logits == want.logits).all()
    reference.write_cache(1, mine)
    assert (reference.read_cache(1, 37).k == mine.k).all()
    with pytest.raises(UserError, match="a cache of shape .* is not this model's"):
        golden().write_cache(0, mine)
    for bad in (-1, 3):
        with pytest.raises(UserError, match=f"cache slot {bad} does not exist; there are 3"):
            accelerator.read_cache(bad, 1)


def test_a_failed_pass_leaves_what_is_certain() -> None:
    backend = golden(1)
    engine = Engine(backend)
    first = engine.submit(list(range(20)), max_new_tokens=3)
    drain(engine)
    good, backend._pass = backend._pass, None  # type: ignore[method-assign, assignment]
    broken = engine.submit([*range(20), 49, 48, 47, 46, 45], max_new_tokens=3)
    with pytest.raises(TypeError):
        engine.step()
    backend._pass = good  # type: ignore[method-assign]
    engine.cancel(broken)
    assert broken.stop == "cancelled" and not engine.busy
    again = engine.submit([*range(20), 3], max_new_tokens=3)
    drain(engine)
    assert again.conversation.cached == 20 and first.stop == "length"
    assert tokens(again) == Alone(golden(1))([*range(20), 3], 3, Sampling(), ())


def test_a_constraint_is_kept_with_guesses_and_without() -> None:
    class Even:
        def __init__(self) -> None:
            self.said: list[int] = []

        def allowed(self) -> Any:
            return np.arange(SPEC.vocab) % 2 == len(self.said) % 2

        def take(self, token: int) -> None:
            self.said.append(token)

    texts = []
    for speculate in (False, True):
        engine = Engine(golden())
        ticket = engine.submit([1, 2] * 8, max_new_tokens=30, constraint=Even(), speculate=speculate)
        drain(engine)
        texts.append(tokens(ticket))
        assert [t % 2 for t in tokens(ticket)] == [i % 2 for i in range(30)]
    assert texts[0] == texts[1]


def test_the_repetition_penalty_is_the_fields() -> None:
    """As transformers' RepetitionPenaltyLogitsProcessor: positive logits divided, others multiplied."""
    backend = golden(1)
    result = backend.prefill([5, 9], logits=True)[-1]
    assert result.logits is not None
    logits = result.logits[0].astype(np.float64)
    want = logits.copy()
    for t in (5, 9):
        want[t] = want[t] / 1.7 if want[t] > 0 else want[t] * 1.7
    choice = Choice(Sampling(repetition_penalty=1.7), [5, 9], logprobs=True)
    chosen = choice(result, 0)
    assert chosen.token == int(np.argmax(want))
    assert chosen.logprobs is not None
    assert np.allclose(np.exp(chosen.logprobs), np.exp(logits) / np.exp(logits).sum())
    assert np.array_equal(chosen.logprobs, log_softmax(result.logits[0]))
    with pytest.raises(UserError, match="repetition-penalty must be a positive number, not 0"):
        Sampling(repetition_penalty=0)


# ---- guesses ---------------------------------------------------------------------------------------------------------


def said(drafts: Drafts, key: int, tokens: list[int]) -> None:
    """A conversation said something, and a pass went by."""
    drafts.extend(key, tokens)
    for _ in range(len(tokens) // STEP + 1):
        drafts.remember()


def ended(drafts: Drafts, key: int) -> None:
    """Ends, and that is remembered."""
    drafts.end(key)
    for _ in range(4 * MEMORY // STEP):
        drafts.remember()


@pytest.mark.parametrize("given", ["every row", "candidates", "some of each"])
@pytest.mark.parametrize(
    ("firsts", "counts"), [([0, 4], [2, 3]), ([1], [4]), ([0, 1, 4], [1, 3, 4]), ([2, 3, 7], [1, 2, 1])]
)
def test_lanes_are_drawn_from_wherever_they_are(given: str, firsts: list[int], counts: list[int]) -> None:
    """As each would be alone, behind those before it. The largest logits are far apart."""
    rng = np.random.default_rng(len(firsts))
    logits = (rng.normal(0, 2, (8, 300)) + 40 * rng.permutation(8)[:, None]).astype(np.float32)
    best, value = tuple(logits.argmax(axis=1).tolist()), tuple(logits.max(axis=1))
    every = PassResult(head_first=0, head_count=8, best_index=best, best_value=value, logits=logits)
    ids = np.sort(np.argsort(-logits, axis=1)[:, :64], axis=1)
    some = replace(every, logits=np.take_along_axis(logits, ids, axis=1), candidates=ids)
    result = {"every row": every, "candidates": some, "some of each": every.keeping(some, (True, False) * 4)}[given]
    for seed in range(30):
        ways = [Sampling(temperature=t, top_p=p, seed=seed) for t, p in ((0.8, 1.0), (2.0, 0.9), (1.0, 1.0))]
        want = []
        for way, first, count in zip(ways, firsts, counts, strict=False):
            sampler = Sampler(way)
            want += [sampler(*result.of_lane(first + ahead)) for ahead in range(count)]
        assert draws(result, [Sampler(way) for way in ways[: len(firsts)]], firsts, counts) == want


def test_what_an_answer_says_is_penalised_too() -> None:
    backend = golden(1)
    engine = Engine(backend)
    ticket = engine.submit([5, 9], max_new_tokens=20, sampling=Sampling(repetition_penalty=1e6))
    drain(engine)
    assert len({5, 9, *tokens(ticket)}) == 22


def test_guesses_follow_the_latest_longest_run() -> None:
    d = Drafts()
    said(d, 1, [1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 2, 3])
    assert d.guess(1, 3).tokens == (5, 9, 2)
    said(d, 1, [9, 1, 2, 3])
    assert d.guess(1, 2) == Draft((5, 9), 0.5, 4)
    # Of another conversation, ended or not known: only ended ones.
    said(d, 2, [7, 1, 2])
    assert d.guess(2, 4).tokens == ()
    ended(d, 1)
    assert d.guess(2, 4).tokens == (3,)
    # A text that repeats itself goes on so.
    said(d, 3, [8, 6, 8, 6, 8])
    assert d.guess(3, 5).tokens == (6, 8, 6, 8, 6)
    assert d.guess(3, 0) == Draft() and d.guess(4, 3) == Draft()


def test_a_history_keeps_runs_of_the_lengths_that_are_looked_for() -> None:
    text = [5, 6, 7, 5, 6, 7, 8, 9, 5, 6] * 3
    want = {
        array("i", text[at - n : at]).tobytes(): at
        for at in range(len(text))
        for n in range(SHORTEST, min(at, LONGEST) + 1)
    }
    for step in (1, 2, 3, 7, 30):
        h = History()
        for at in range(0, len(text), step):
            h.tokens.extend(text[at : at + step])
            h.remember(100)
        assert h.runs == want


def test_guesses_are_counted_and_forgotten_in_time() -> None:
    d = Drafts()
    draft = Draft((1, 2, 3), 0.5, 2)
    for _ in range(200):
        d.learn(draft, 3, 1, 0)
    d.remember()
    assert d.chance(2) < 0.02 and (d.drafted, d.accepted) == (600, 0)
    for _ in range(200):
        d.learn(draft, 3, 3, 3)
    d.remember()
    assert d.chance(2) > 0.98 and d.chance(LONGEST) == 0.5
    for key in range(5):
        said(d, key, [key] * (MEMORY // 2))
        ended(d, key)
    assert list(d._ended) == [3, 4]


def test_runs_are_looked_for_in_their_lengths_and_the_latest_conversation_wins() -> None:
    d = Drafts()
    said(d, 1, [1, 2, 3, 4, 5, 6])
    said(d, 2, [9])
    ended(d, 1)
    said(d, 3, [0, 2, 3, 4, 5])
    assert d.guess(3, 1) == Draft((6,), 0.5, 4)
    said(d, 4, [1, 2, 3, 4, 5])
    assert d.guess(4, 1) == Draft((6,), 0.5, LONGEST)
    said(d, 5, [7, 5])
    assert d.guess(5, 1) == Draft(), "one token alone is no run"
    said(d, 6, [4, 5, 8, 8])
    ended(d, 6)
    said(d, 7, [0, 4, 5])
    assert d.guess(7, 9).tokens == (8, 8)
    # The text's own run comes before another's, and only its own repeats itself.
    said(d, 7, [1, 4, 5])
    assert d.guess(7, 4).tokens == (1, 4, 5, 1)


def test_a_run_that_a_later_conversation_said_too_outlives_the_first() -> None:
    d = Drafts()
    for key, last in ((1, 3), (2, 4)):
        said(d, key, [1, 2, last])
        ended(d, key)
    said(d, 3, [0] * (MEMORY - 4))  # 1 must go, and nothing of 2
    ended(d, 3)
    assert list(d._ended) == [2, 3] and d._size == MEMORY - 1
    said(d, 4, [1, 2])
    assert d.guess(4, 1).tokens == (4,)
    said(d, 5, [9])  # to the last token that is remembered
    ended(d, 5)
    assert list(d._ended) == [2, 3, 5] and d._size == MEMORY
    ended(d, 77)  # nobody


@pytest.mark.parametrize("waits", [False, True])
def test_what_no_pass_waits_for_is_done_once_in_each(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the back end leaves the host idle, or not; and only for those that guess."""

    class Waits(GoldenBackend):
        def _pass(self, given: Any) -> PassResult:
            if waits:
                self.meanwhile()
            return super()._pass(given)

    engine, done = Engine(Waits(WEIGHTS, TINY, slots=3)), []
    remember = engine.drafts.remember
    monkeypatch.setattr(engine.drafts, "remember", lambda: done.append(engine.counts.passes) or remember())
    engine.submit([5, 9, 3], max_new_tokens=6)
    for _ in range(3):
        engine.step()
        assert engine.last is not None and not engine.last.given.write_logits
    assert not engine.drafts._open
    engine.submit([5, 9, 3], max_new_tokens=6, speculate=True)
    engine.step()
    assert len(engine.drafts._open) == 1
    drain(engine)
    assert done == list(range(engine.counts.passes)) and engine.counts.cycles == 0


def test_cycles_and_stalls_of_all_passes_add_up() -> None:
    class Counts(GoldenBackend):
        def _pass(self, given: Any) -> PassResult:
            return replace(super()._pass(given), cycles=10, stalls={"memory": 2, "compute": 3})

    engine = Engine(Counts(WEIGHTS, TINY, slots=3))
    ticket = engine.submit([5, 9, 3], max_new_tokens=6)
    drain(engine)
    passes = engine.counts.passes
    assert passes == len(ticket.prefill) + len(ticket.decode) == 6
    assert (engine.counts.cycles, engine.counts.stalls) == (60, {"memory": 12, "compute": 18})


def test_of_guesses_the_lane_whose_logits_are_broken_is_named() -> None:
    class Breaks(GoldenBackend):
        def _pass(self, given: Any) -> PassResult:
            result = super()._pass(given)
            if given.head[1] < 3:
                return result
            return replace(result, best_value=(result.best_value[0], np.float32(np.nan), *result.best_value[2:]))

    engine = Engine(Breaks(WEIGHTS, TINY, slots=1))
    prompt = [5, 9, 3, 7] * 4
    engine.submit(prompt, max_new_tokens=40, speculate=True)
    with pytest.raises(CheckError, match="a logit behind token") as e:
        drain(engine)
    [conversation] = engine.scheduler.active
    assert f"behind token {len(conversation.tokens) + 1} is" in str(e.value)


def test_what_was_said_is_found_once_it_is_remembered() -> None:
    """Whenever that is, and in how many pieces: the same runs, and those of a conversation that ends at once."""
    once, pieces = Drafts(), Drafts()
    text = [1, 2, 3, 1, 2, 4, 1, 2]
    once.extend(1, text)
    assert once.guess(1, 1) == Draft()
    once.remember()
    for token in text:
        said(pieces, 1, [token])
    assert once.guess(1, 2) == pieces.guess(1, 2) == Draft((4, 1), 0.5, SHORTEST)
    once.extend(1, [3])
    assert once.guess(1, 1) == Draft((1,), 0.5, 3), "of what was remembered before"
    ended(once, 1)
    once.extend(2, [9, 1, 2])
    assert once.guess(2, 2) == Draft((3,), 0.5, SHORTEST)
    once.remember()


def test_no_pass_has_more_to_remember_than_fits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt in pieces, and what ended and what goes in pieces, one after the other."""
    monkeypatch.setattr(drafts, "MEMORY", 4 * STEP)
    d = Drafts()
    words = list(range(10, 10 + 3 * STEP))
    d.extend(1, [*words, 1, 2])
    d.extend(2, words[-2:])
    history = d._open[1]
    seen = []
    for _ in range(4):
        assert d.guess(2, 1) == Draft()
        d.remember()
        seen.append(len(history.runs))
        d.end(1)
    assert np.diff(seen[:3]).max() <= 4 * STEP and d.guess(2, 1) == Draft()
    for sizes in (4 * STEP, 8 * STEP, 12 * STEP, len(history.runs)):
        assert len(d._latest) <= sizes
        d.remember()
    assert d.guess(2, 1).tokens == (1,) and d._finding is None
    for key in (3, 4):
        d.extend(key, [7, 8, key])
        d.end(key)
    d.extend(5, [7, 8])
    for found in (3, 4):
        d.remember()
        assert d.guess(5, 1).tokens == (found,)
        d.remember()
    # A text that goes is not found while it does, nor what only it said afterwards.
    other = list(range(9000, 9000 + 3 * STEP))
    d.extend(6, other)
    d.end(6)
    while 1 in d._ended:
        d.remember()
    assert d.guess(2, 1) == Draft() and len(d._latest) > 4 * STEP
    for _ in range(8):
        d.remember()
    assert list(d._ended) == [3, 4, 6] and set(d._latest.values()) == {4, 6}, "4 said what 3 had said"
    d.extend(7, other[:2])
    assert d.guess(7, 1).tokens == (other[2],)


def test_what_is_behind_a_wrong_guess_says_nothing() -> None:
    d = Drafts()
    d.learn(Draft((1, 2, 3), 0.5, 2), 3, 2, 1)  # one right, one wrong, one not looked at
    d.remember()
    d.remember()  # nothing is learnt twice
    assert (d.drafted, d.accepted) == (3, 1)
    assert d.chance(2) == pytest.approx((1.0 * 0.98**2 + 0.98) / (2.0 * 0.98**2 + 0.98 + 1))
    d.learn(Draft((1,), 0.5, 3), 1, 1, 1)
    d.remember()
    assert d.chance(3) == pytest.approx((0.98 + 1) / (2 * 0.98 + 1))


def test_an_end_token_that_was_guessed_is_the_last() -> None:
    """What a draft has behind it is not looked at, and is no mistake of the draft's."""

    class Sure(Drafts):
        def guess(self, key: int, most: int) -> Draft:
            return Draft((5, 6, 7)[:most], 0.99, 3)

    class Says(GoldenBackend):
        def _pass(self, given: Any) -> Any:
            result = super()._pass(given)
            first = given.head[0]
            follow = {1: 5, 5: 6, 6: 7, 7: 5}
            return replace(
                result, best_index=tuple(follow[given.tokens[first + i]] for i in range(len(result.best_index)))
            )

    engine = Engine(Says(WEIGHTS, TINY))
    engine.drafts = Sure()
    engine.scheduler.cost = singly(lambda firsts, lanes, heads: 1.0)
    ticket = engine.submit([1], max_new_tokens=9, speculate=True, end_ids=[6])
    drain(engine)
    assert (tokens(ticket), ticket.stop) == ([5, 6], "end")
    assert (ticket.drafted, ticket.accepted) == (3, 0)  # 5 is known by then; 6 is not what was guessed first
    engine = Engine(Says(WEIGHTS, TINY))
    engine.drafts = Sure()
    engine.scheduler.cost = singly(lambda firsts, lanes, heads: 1.0)
    ticket = engine.submit([1, 7], max_new_tokens=3, speculate=True)
    drain(engine)
    assert (tokens(ticket), ticket.stop) == ([5, 6, 7], "length")


def test_tokens_and_top_k_have_their_ends() -> None:
    engine = Engine(golden())
    for token in (-1, SPEC.vocab):
        with pytest.raises(UserError, match=f"token {token} is outside the vocabulary of {SPEC.vocab}"):
            engine.submit([1, token], max_new_tokens=1)
    last = engine.submit([SPEC.vocab - 1], max_new_tokens=1)
    drain(engine)
    assert last.stop == "length" and engine.counts.tokens == engine.counts.passes == engine.counts.lanes == 1
    weights = random_weights(small_spec(layers=1, vocab=300), 3)
    backend = GoldenBackend(replace(weights, screen=screen.quantise(*weights.head_rows)), TINY)
    backend.head = HeadChoice(mode="screened", candidates=32)
    engine = Engine(backend)
    engine.submit([1], max_new_tokens=1, sampling=Sampling(temperature=1.0, top_k=32))
    with pytest.raises(UserError, match="top-k is 33, the screened head gives 32 candidates; ask for more"):
        engine.submit([1], max_new_tokens=1, sampling=Sampling(temperature=1.0, top_k=33))


# ---- what a pass costs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "keys"), [(BITNET_07B, 128), (BITNET_2B, 250)])
def test_what_a_lane_costs_is_what_the_plan_says(spec: ModelSpec, keys: int) -> None:
    costs = Costs(spec, KV260)
    memory = SustainedMemory(memory_timing("kv260", None), in_use(KV260, "sim").phases or None)

    def plan(n: int) -> int:
        return predict(steps(spec, KV260, range(keys, keys + n), [0] * n, n), KV260, memory).cycles

    def estimate(n: int) -> float:
        return costs.cycles([keys], [n], n)[0]

    for n in (4, 8, 9):
        assert estimate(n) / estimate(1) == pytest.approx(plan(n) / plan(1), rel=0.06), n


@pytest.mark.parametrize("kv", CACHE_FORMATS.values(), ids=lambda c: c.name)
def test_what_a_long_context_costs_is_what_the_plan_says(kv: CacheFormat) -> None:
    """Of narrow keys and values fewer beats, and of narrow values half the queries at a time."""
    config = replace(KV260, narrow_cache=True)
    costs = Costs(BITNET_2B, config, kv)
    memory = SustainedMemory(memory_timing("kv260", None), in_use(KV260, "sim").phases or None)

    def plan(first: int, n: int) -> int:
        return predict(
            steps(BITNET_2B, config, range(first, first + n), [0] * n, n, kv=kv), config, memory
        ).cycles  # fmt: skip

    for n in (1, 4):
        estimate = costs.cycles([3900], [n], n)[0] / costs.cycles([10], [1], 1)[0]
        assert estimate == pytest.approx(plan(3900, n) / plan(10, 1), rel=0.02), n


def test_what_is_measured_corrects_the_estimate() -> None:
    costs = Costs(SPEC, TINY)
    (one,) = costs.cycles([5], [1], 1)
    assert costs.cycles([5], [2], 2)[0] > one
    costs.measured([5], [1], 1, round(3 * one))
    assert costs.cycles([5], [1], 1)[0] == pytest.approx(3 * one, rel=1e-3)
    for _ in range(50):
        costs.measured([5], [2], 2, round(5 * one))
    assert costs.cycles([5], [2], 2)[0] == pytest.approx(5 * one, rel=1e-2)


def test_the_demo_model_says_the_same_story_with_guesses_and_faster_the_second_time() -> None:
    with Model.open(demo_folder(), TINY) as model:
        prompt = model.tokenizer.encode("Once upon a time")
        backend = GoldenBackend(model.weights(), TINY)
        engine = Engine(backend, whole_prompts=True)
        options: dict[str, Any] = {"max_new_tokens": 40, "sampling": Sampling(temperature=0.7, seed=4)}
        plain = Generation(GoldenBackend(model.weights(), TINY), model.tokenizer, prompt, **options)
        text = "".join(plain)
        assert len(plain.report.decode) == plain.report.decoded == 39
        for least in (1.0, 3.0):
            g = Generation(engine, model.tokenizer, prompt, speculate=True, **options)
            assert "".join(g) == text and g.report.new_ids == plain.report.new_ids
            assert g.report.tokens_per_pass == 39 / len(g.report.decode) >= least
        assert g.report.accepted <= g.report.drafted < 39 and g.report.cached == len(prompt) - 1
