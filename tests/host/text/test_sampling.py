"""Sampling draws from the distribution that a plain softmax gives, and repeats itself for a seed."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import current_thread, main_thread
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tellme.host.errors import UserError
from tellme.host.text import _sampling, sampling
from tellme.host.text.sampling import FAR, TRIES, Sampler, Sampling, distribution, draw, penalised
from tests.oracle import sampling_cases

SEED = 20


@pytest.fixture(autouse=True, params=["compiled", "numpy"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws are made by compiled code, and by what is there without."""
    if request.param == "numpy":
        monkeypatch.setattr(sampling, "_sampling", None)


def logits(n: int = 50, seed: int = SEED) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, n).astype(np.float32)


def softmax(x: np.ndarray, temperature: float) -> np.ndarray:
    e = np.exp(x.astype(np.float64) / temperature)
    return e / e.sum()


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 5.0])
def test_distribution_is_the_softmax_of_the_logits_over_the_temperature(temperature: float):
    x = logits()
    p = distribution(x, Sampling(temperature=temperature))
    np.testing.assert_allclose(p, softmax(x, temperature), rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 7, 49, 50, 51])
def test_top_k_keeps_the_k_likeliest_and_renormalises(k: int):
    x = logits()
    p = distribution(x, Sampling(temperature=0.9, top_k=k))
    full = softmax(x, 0.9)
    kept = np.argsort(-x)[:k]
    assert set(np.flatnonzero(p)) == set(kept)
    np.testing.assert_allclose(p[kept], full[kept] / full[kept].sum(), rtol=1e-12)


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.5, 0.9, 0.999999, 1.0])
def test_top_p_keeps_the_fewest_that_reach_p(top_p: float):
    x = logits()
    full = softmax(x, 1.0)
    kept = np.flatnonzero(distribution(x, Sampling(temperature=1, top_p=top_p)))
    assert full[kept].sum() >= top_p - 1e-12
    assert full[kept].sum() - full[kept].min() < top_p
    assert full[kept].min() >= np.delete(full, kept).max(initial=0)


def test_top_p_exactly_reached_takes_no_more():
    x = np.log(np.float32([0.5, 0.25, 0.125, 0.125]))
    assert list(np.flatnonzero(distribution(x, Sampling(temperature=1, top_p=0.5 - 1e-7)))) == [0]
    assert list(np.flatnonzero(distribution(x, Sampling(temperature=1, top_p=0.5 + 1e-6)))) == [0, 1]


def plainly(x: np.ndarray, s: Sampling) -> np.ndarray:
    """The distribution by sorting everything."""
    order = np.argsort(-x.astype(np.float64), kind="stable")
    order = order[: s.top_k] if s.top_k else order
    p = np.exp((x[order].astype(np.float64) - float(x[order[0]])) / s.temperature)
    p /= p.sum()
    if s.top_p < 1:
        keep = int(np.searchsorted(np.cumsum(p), s.top_p)) + 1
        order, p = order[:keep], p[:keep] / p[:keep].sum()
    keep = int(np.count_nonzero(p >= s.min_p * p[0]))
    out = np.zeros(len(x))
    out[order[:keep]] = p[:keep] / p[:keep].sum()
    return out


@pytest.mark.parametrize("n", [1, 2, 511, 512, 513, 5000])
@pytest.mark.parametrize("steps", [2, 30, 100_000])
def test_what_is_not_sorted_changes_nothing(n: int, steps: int):
    """Few different logits: many are equal, at the cut too. Flat ones: top-p takes most of them."""
    rng = np.random.default_rng([SEED, n, steps])
    for trial in range(30):
        x = (rng.integers(0, steps, n) * (8 / steps)).astype(np.float32)
        s = Sampling(
            temperature=float(rng.choice([0.3, 1.0, 4.0])),
            top_k=int(rng.choice([0, 0, 1, 40, n, n + 1])),
            top_p=float(rng.choice([1.0, 0.97, 0.5, 0.013])),
            min_p=float(rng.choice([0.0, 0.0, 0.3])),
            seed=trial,
        )
        want = plainly(x, s)
        got = distribution(x, s)
        assert (np.flatnonzero(got) == np.flatnonzero(want)).all(), s
        np.testing.assert_allclose(got, want, rtol=1e-11)
        sampler = Sampler(s)
        assert all(got[sampler(x)] > 0 for _ in range(5)), s


def test_distributions_are_those_of_transformers():
    """Repetition penalty, temperature, top-k, top-p and min-p in all combinations, in its single precision."""
    want = np.load(sampling_cases.VECTORS)["probabilities"]
    for case, s in enumerate(sampling_cases.SETTINGS):
        values = penalised(sampling_cases.logits(case), sampling_cases.said(case), s.repetition_penalty)
        got = distribution(values, s)
        assert (np.flatnonzero(got) == np.flatnonzero(want[case])).all(), s
        np.testing.assert_allclose(got, want[case], rtol=1e-5)
    assert len(want) == case + 1


NUMBERS = 2000


class Once(Sampler):
    """Draws with a given number; it is an IndexError to ask for a second."""

    first: float

    def number(self, ahead: int = 0, tried: int = 0) -> float:
        if tried:
            raise IndexError
        return self.first

    def take(self, count: int = 1) -> None:
        pass


@pytest.fixture
def by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code makes numbers itself."""
    monkeypatch.setattr(sampling, "_sampling", None)


WAYS = [
    Sampling(temperature=0.8),
    Sampling(temperature=3.0),
    Sampling(temperature=0.3, top_k=7),
    Sampling(temperature=4.0, top_k=300),
    Sampling(temperature=1.0, top_p=0.95),
    Sampling(temperature=2.0, top_p=0.5),
    Sampling(temperature=0.8, top_k=40, top_p=0.9),
    Sampling(temperature=1.5, min_p=0.02),
    Sampling(temperature=1.5, top_k=200, top_p=0.97, min_p=0.01),
]


@pytest.mark.parametrize("first", [0, 500])
def test_a_far_token_is_drawn_if_top_p_has_room_for_it_and_no_other_is(by_numpy, first: int):
    """One near token, and a thousand far ones that together are what top-p ends in: the first of them are in."""
    n = 1000
    x = np.full(n, -math.log(n) - FAR - 0.1, np.float32)
    x[first] = 0.0
    sampling = Sampling(temperature=1.0, top_p=0.99)
    want = distribution(x, sampling)
    assert 300 < np.count_nonzero(want) < 500
    sampler, drawn = Once(sampling), set()
    for i in range(20_000):
        sampler.first = (i + 0.5) / 20_000
        with contextlib.suppress(IndexError):
            drawn.add(sampler(x))
    assert drawn <= set(np.flatnonzero(want).tolist()) and len(drawn) > 50


@pytest.mark.parametrize(("beyond", "inside"), [(0.5, True), (2.0, False)])
def test_where_far_ones_decide_whether_top_p_has_room_everything_is_weighed(beyond: float, inside: bool):
    """Two near tokens, a thousand far ones even from twice as far, and a top-p that they are the rest of."""
    n = 1000
    x = np.full(n, -math.log(n) - 2 * FAR - 1.0, np.float32)
    x[[3, 5]] = 0.0, math.log(0.5)
    rest = (n - 2) * math.exp(float(x[0]))
    sampling = Sampling(temperature=1.0, top_p=1 / (1.5 + beyond * rest))
    assert (distribution(x, sampling)[5] > 0) == inside
    rows = np.stack([x] * 60)
    drawn = set(draw(rows, [Sampler(replace(sampling, seed=seed)) for seed in range(60)], [0.0] * 60))
    assert drawn == ({3, 5} if inside else {3})


@pytest.mark.parametrize("sampling", WAYS)
@pytest.mark.parametrize("shape", ["flat", "equal", "peaks"])
def test_of_all_numbers_each_token_gets_its_share(by_numpy, sampling: Sampling, shape: str):
    """Over an even grid of first numbers, a token comes as often as the exact distribution says, but for a common factor: what is refused is drawn again, in
    the same way."""
    n = 600
    rng = np.random.default_rng([SEED, len(shape)])
    x = rng.normal(0, 1, n).astype(np.float32)
    if shape == "equal":
        x = np.round(x)
    if shape == "peaks":
        x[rng.integers(0, n, 12)] += rng.uniform(3, 9, 12).astype(np.float32)
    want = plainly(x, sampling)
    counts, refused = np.zeros(n), 0
    sampler = Once(sampling)
    for i in range(NUMBERS):
        sampler.first = (i + 0.5) / NUMBERS
        try:
            counts[sampler(x)] += 1
        except IndexError:
            refused += 1
    taken = NUMBERS - refused
    assert taken >= 0.4 * NUMBERS
    assert (counts[want == 0] == 0).all()
    # Two ends of a token's interval, each off by one number at most; far tokens have theirs each for itself.
    assert np.abs(counts - taken * want).max() <= 2.5
    likely = np.argsort(-want)[:50]
    assert abs(counts[likely].sum() - taken * want[likely].sum()) <= 60


@pytest.mark.parametrize("n", [300, 5000])
@pytest.mark.parametrize("sampling", WAYS)
def test_draws_follow_the_exact_distribution(n: int, sampling: Sampling):
    """Far tokens, and numbers that are refused, too: chi-squared over groups of tokens of like probability."""
    x = (1.2 * logits(n)).astype(np.float32)
    want = plainly(x, sampling)
    draws = 2000
    counts = np.zeros(n)
    samplers = [Sampler(replace(sampling, seed=SEED + i)) for i in range(16)]
    rows = np.stack([x] * 16)
    for _ in range(draws // 16):
        np.add.at(counts, draw(rows, samplers, [float(x.max())] * 16), 1)
        for sampler in samplers:
            sampler.take()
    assert (counts[want == 0] == 0).all()
    order = np.argsort(-want, kind="stable")
    group = np.minimum((np.cumsum(want[order]) - want[order] / 2) * 25, 24).astype(int)
    expected = np.bincount(group, want[order], 25) * draws
    seen = np.bincount(group, counts[order], 25)
    kept = expected > 0
    chi2 = ((seen - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi2 < 62.0, f"chi-squared {chi2:.1f} of {kept.sum() - 1} degrees of freedom"


@pytest.mark.parametrize("n", [1, 15, 16, 17, 63, 64, 65, 130, 1000, 5000])
@pytest.mark.parametrize("shape", ["flat", "equal", "peaks", "ends"])
def test_compiled_draws_are_those_of_numpy(shape: str, n: int, monkeypatch: pytest.MonkeyPatch):
    """Of all settings, with ties, near tokens at both ends and everywhere, more of them than compiled code takes, and refused numbers."""
    rng = np.random.default_rng([SEED, n, len(shape)])
    decided = 0
    for trial in range(40):
        count = int(rng.integers(1, 9))
        x = rng.normal(0, 1, (count, n)).astype(np.float32)
        if shape == "equal":
            x = np.round(x)
        if shape == "peaks":
            x[:, rng.integers(0, n, 12)] += rng.uniform(3, 12, 12).astype(np.float32)
        if shape == "ends":
            x[:, [0, -1]] = 12, 11.5
        settings = [
            Sampling(
                temperature=float(rng.choice([0.1, 0.8, 1.0, 3.0])),
                top_k=int(rng.choice([0, 0, 1, 7, 40, n, n + 1, 1 << 70])),
                top_p=float(rng.choice([1.0, 1.0, 0.95, 0.99, 0.5])),
                min_p=float(rng.choice([0.0, 0.0, 0.02, 0.5])),
                seed=100 * trial + i,
            )
            for i in range(count)
        ]
        largest, ahead = x.max(axis=1).tolist(), int(rng.integers(0, 20))
        drawn = []
        for module in (_sampling, None):
            monkeypatch.setattr(sampling, "_sampling", module)
            drawn.append(draw(x, [Sampler(s) for s in settings], largest, ahead=ahead))
        assert drawn[0] == drawn[1]
        ways, turns = [Sampler(s).setting for s in settings], [ahead] * count
        places = _sampling.draw(x, 0, largest, ways, turns, FAR, TRIES)
        assert all(a in (b, -1) for a, b in zip(places, drawn[0], strict=True))
        decided += sum(p >= 0 for p in places) / count
        # The first numbers alone: no other token, and some that more numbers are needed for.
        assert all(
            a in (b, -1) for a, b in zip(_sampling.draw(x, 0, largest, ways, turns, FAR, 0), drawn[0], strict=True)
        )
    assert decided > 5  # it is compiled code that was tried


@pytest.mark.parametrize("within", [0.2, 1.0, 20.0])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(0, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.4), (0, 0.97, 1e-9), (30, 1.0, 0.0), (30, 0.9, 0.0)],
)
def test_compiled_draws_of_far_tokens_are_those_of_numpy(within: float, top_k: int, top_p: float, min_p: float):
    """Where a token is near only if it is nearly as likely as the likeliest, numbers mostly fall on far ones."""
    rng = np.random.default_rng(SEED)
    n, count = 97, 400
    x = rng.uniform(-4, 0, (count, n)).astype(np.float32)
    x[np.arange(count), rng.integers(0, n, count)] = 0.0
    x[:, [0, -1]] = rng.choice(np.float32([-0.01, -3.0]), (count, 2))
    samplers = [Sampler(Sampling(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p, seed=i)) for i in range(count)]
    ways, turns, largest = [s.setting for s in samplers], [0] * count, [0.0] * count
    far = within - math.log(top_k or n)
    want = sampling._Near(x, [(s, 0) for s in samplers], largest, far).draw()
    got = _sampling.draw(x, 0, largest, ways, turns, far, TRIES)
    assert all(a in (b, -1) for a, b in zip(got, want, strict=True))
    if not top_k and top_p == 1.0 and not min_p:
        assert min(got) >= 0
        assert (within > 1) == (sum(x[i, place] < -within for i, place in enumerate(got)) < count / 5)


WAY = (1.0, 0, 1.0, 0.0, 7)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({0: np.zeros((2, 8))}, TypeError),
        ({0: np.zeros(8, np.float32)}, TypeError),
        ({0: np.zeros((8, 2), np.float32).T}, ValueError),
        ({0: None}, TypeError),
        ({1: 1}, IndexError),
        ({1: -1}, IndexError),
        ({1: 1 << 80}, IndexError),
        ({1: "x"}, TypeError),
        ({2: [0.0]}, ValueError),
        ({2: [0.0] * 3, 3: [WAY] * 3, 4: [0] * 3}, IndexError),
        ({2: (0.0, 0.0)}, TypeError),
        ({2: [0.0, "x"]}, TypeError),
        ({3: [WAY]}, ValueError),
        ({3: [WAY[:4]] * 2}, TypeError),
        ({3: [(1.0, "x", 1.0, 0.0, 7)] * 2}, TypeError),
        ({3: [(1.0, 0, 1.0, 0.0, 7.5)] * 2}, TypeError),
        ({4: [5]}, ValueError),
        ({4: [5, None]}, TypeError),
        ({5: "x"}, TypeError),
        ({6: "x"}, TypeError),
    ],
)
def test_compiled_code_refuses_what_is_not_its_own(change: dict[int, Any], error: type[Exception]):
    given = [np.zeros((2, 8), np.float32), 0, [0.0, 0.0], [WAY] * 2, [5, 6], FAR, TRIES]
    sampler = Sampler(Sampling())
    sampler.key = WAY[4]
    assert _sampling.draw(*given) == [int(8 * sampler.number(n)) for n in (5, 6)]
    for place, value in change.items():
        given[place] = value
    with pytest.raises(error):
        _sampling.draw(*given)
    with pytest.raises(TypeError):
        _sampling.draw(*given[:6])


def test_compiled_code_leaves_what_is_no_number_to_its_caller():
    for bad in (np.nan, np.inf, -np.inf):
        x = np.zeros((1, 100), np.float32)
        x[0, 7] = bad
        for largest in (0.0, math.inf, math.nan):
            [place] = _sampling.draw(x, 0, [largest], [WAY], [0], FAR, TRIES)
            assert (place == -1) == (bad != -np.inf or largest != 0)


def test_numbers_are_those_of_splitmix64():
    """Its first ones from a state of 1234567, as published in the code of other languages; and each token's are its own."""
    sampler = Sampler(Sampling(temperature=1.0))
    sampler.key = 1234567
    want = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [sampler.number(0, tried) for tried in range(5)] == [(n >> 11) / 2**53 for n in want]
    numbers = {sampler.number(ahead, tried) for ahead in range(100) for tried in range(TRIES + 2)}
    assert len(numbers) == 100 * (TRIES + 2) and 0 <= min(numbers) < 1e-3 and 1 - 1e-3 < max(numbers) < 1
    before = [sampler.number(ahead) for ahead in range(3, 9)]
    sampler.take()
    sampler.take(2)
    assert [sampler.number(ahead) for ahead in range(6)] == before
    assert len({Sampler(Sampling(seed=seed)).key for seed in [*range(1000), 1 << 64, 1 << 200]}) == 1002


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Has so many threads look through few logits."""
    sampling._helpers.cache_clear()
    monkeypatch.setattr(sampling, "_sampling", _sampling)
    monkeypatch.setattr(sampling, "LONG", 64)
    yield lambda count: monkeypatch.setattr(sampling, "THREADS", count)
    sampling._helpers.cache_clear()


THREE = (Sampling(temperature=0.8), Sampling(temperature=1.3, top_p=0.9), Sampling(temperature=0.5, top_k=7))


def drawn(x: np.ndarray, seed: int = SEED) -> list[int]:
    """What rows give, in three ways in turn."""
    samplers = [Sampler(replace(THREE[i % 3], seed=seed + i)) for i in range(len(x))]
    return draw(x, samplers, x.max(axis=1).tolist())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 400), st.integers(0, 1 << 20))
def test_however_many_threads_look_the_same_is_drawn(threads, many, count, n, seed):
    x = np.random.default_rng(seed).normal(0, 3, (count, n)).astype(np.float32)
    of = []
    for several in (1, many):
        threads(several)
        of.append(drawn(x, seed))
    assert of[0] == of[1]


def test_several_may_draw_at_once(threads):
    rng = np.random.default_rng(SEED)
    x = [rng.normal(0, 1, (5, 300)).astype(np.float32) for _ in range(40)]
    threads(1)
    want = [drawn(rows) for rows in x]
    threads(3)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(drawn, x)) == want


def test_what_a_thread_raises_is_raised_and_it_goes_on(threads, monkeypatch: pytest.MonkeyPatch):
    threads(3)
    x = np.random.default_rng(SEED).normal(0, 1, (6, 100)).astype(np.float32)
    want = drawn(x)

    class Fails:
        @staticmethod
        def draw(*arguments: Any) -> Any:
            if current_thread() is not main_thread():
                raise MemoryError("no room")
            return _sampling.draw(*arguments)

    monkeypatch.setattr(sampling, "_sampling", Fails)
    for _ in range(5):
        with pytest.raises(MemoryError, match="no room"):
            drawn(x)
    monkeypatch.setattr(sampling, "_sampling", _sampling)
    assert drawn(x) == want


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_threads_of_its_own(threads):
    threads(2)
    x = np.random.default_rng(SEED).normal(0, 1, (6, 100)).astype(np.float32)
    want = drawn(x)
    child = os.fork()
    if not child:
        found = None
        try:
            found = drawn(x)
        finally:
            os._exit(0 if found == want else 1)
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child waits for threads that it has not")
    assert status == 0


def test_what_one_draws_depends_on_no_other():
    """Rows of one call: flat ones, steep ones, equal ones, greedy ones, ones that are drawn in another way, in another order."""
    rng = np.random.default_rng(SEED)
    ways = [*WAYS, Sampling(), Sampling(temperature=1e-300), Sampling(temperature=50.0, top_p=0.99)]
    for trial in range(20):
        settings = [replace(ways[rng.integers(len(ways))], seed=trial * 100 + i) for i in range(9)]
        # Some have so many near tokens that they are drawn for themselves.
        alone, together = [[Sampler(s) for s in settings] for _ in range(2)]
        for _ in range(4):
            scale = rng.choice([0.05, 1.0, 5.0], 9)
            rows = (rng.normal(0, 1, (9, 3000)) * scale[:, None]).astype(np.float32)
            rows[2] = np.round(rows[2])
            order = rng.permutation(9)
            got = dict(
                zip(
                    order.tolist(),
                    draw(rows[order], [together[i] for i in order], rows[order].max(axis=1).tolist()),
                    strict=True,
                )
            )
            assert got == {i: alone[i](rows[i]) for i in range(9)}
            for sampler in together:
                sampler.take()


@pytest.mark.parametrize("sampling", [*WAYS, Sampling(), Sampling(temperature=1e-300)])
def test_tokens_behind_the_next_are_drawn_as_when_their_turn_comes(sampling: Sampling):
    """All at once, of which so many are kept, again and again; refused numbers are among them."""
    rows = (2 * np.random.default_rng(SEED).normal(0, 1, (60, 900))).astype(np.float32)
    one = Sampler(sampling)
    want = [one(row) for row in rows]
    many, at = Sampler(sampling), 0
    for keep in (1, 5, 2, 7, 1, 3, 7, 4):
        some = rows[at : at + 7]
        got = draw(some, [many], some.max(axis=1).tolist(), [7])
        assert got == want[at : at + 7]
        for _ in range(keep):
            many.take()
        at += keep


def test_a_logit_of_minus_infinity_never_comes_and_nothing_else_may_be_infinite_later():
    for way in (Sampling(temperature=1), Sampling(temperature=1, top_p=0.9), Sampling(temperature=9, top_k=40)):
        sampler = Sampler(way)
        sampler(logits())
        x = logits()
        x[:25] = -np.inf
        assert all(sampler(x) >= 25 for _ in range(200))
        for bad in (np.nan, np.inf):
            x[3] = bad
            with pytest.raises(UserError, match="the logit of token"):
                sampler(x)
            y = logits()
            y[3] = bad
            with pytest.raises(UserError, match="the logit of token 3 is"):  # though the largest is said to be finite
                draw(y[None], [sampler], [float(logits().max())])


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1e-300), Sampling(temperature=1, top_k=3)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_largest_logit_that_is_no_number_is_refused_at_any_time(sampling: Sampling, bad: float):
    """Of a row between others."""
    samplers = [Sampler(sampling) for _ in range(3)]
    rows = np.stack([logits()] * 3)
    draw(rows, samplers, rows.max(axis=1).tolist())
    rows[1, 9] = bad
    with pytest.raises(UserError, match=f"the logit of token 9 is {bad}"):
        draw(rows, samplers, rows.max(axis=1).tolist())


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("temperature", [1e-300, 0.05, 0.8, 20.0])
def test_top_p_of_a_large_vocabulary_is_that_of_doubles_but_for_a_millionth(top_p: float, temperature: float):
    x = (3 * logits(128_256)).astype(np.float32)
    got = distribution(x, Sampling(temperature=temperature, top_p=top_p))
    with np.errstate(over="ignore"):
        full = softmax(x.astype(np.float64) - float(x.max()), temperature)
    kept = np.flatnonzero(got)
    assert top_p - 1e-6 <= full[kept].sum() and full[kept].sum() - full[kept].min() < top_p + 1e-6
    assert full[kept].min() >= np.delete(full, kept).max()
    np.testing.assert_allclose(got[kept], full[kept] / full[kept].sum(), rtol=1e-9)


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.5, 2), (0.75, 3), (0.75 + 1e-9, 4), (1.0, 4)])
def test_a_sum_that_is_p_reaches_it(top_p: float, kept: int):
    """Equal logits of a power of two of tokens: every sum of their probabilities is exact."""
    p = distribution(np.zeros(4, np.float32), Sampling(temperature=1, top_p=top_p))
    assert list(np.flatnonzero(p)) == list(range(kept)) and set(p[:kept]) == {1 / kept}


def test_top_k_comes_before_top_p():
    x = np.log(np.float32([0.4, 0.3, 0.2, 0.1]))
    p = distribution(x, Sampling(temperature=1, top_k=2, top_p=0.6))
    assert list(np.flatnonzero(p)) == [0, 1]
    assert list(np.flatnonzero(distribution(x, Sampling(temperature=1, top_k=2, top_p=0.5)))) == [0]


def test_a_sum_of_top_k_that_is_p_reaches_it():
    """Four equal ones of which two are half."""
    kept = distribution(np.float32([0, 1, 1, 1, 1, 1]), Sampling(temperature=1.0, top_k=4, top_p=0.5))
    assert kept.tolist() == [0, 0.5, 0.5, 0, 0, 0]


def test_equal_logits_rank_by_id():
    x = np.zeros(10, np.float32)
    assert list(np.flatnonzero(distribution(x, Sampling(temperature=1, top_k=3)))) == [0, 1, 2]
    assert list(np.flatnonzero(distribution(x, Sampling(temperature=1, top_p=0.35)))) == [0, 1, 2, 3]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1, top_k=1), Sampling(temperature=1e-300)])
def test_greedy_and_its_limits_take_the_arg_max(sampling: Sampling):
    x = logits()
    assert {Sampler(sampling)(x) for _ in range(20)} == {int(np.argmax(x))}


def test_greedy_takes_the_lowest_id_of_equals():
    assert Sampler(Sampling())(np.float32([1, 3, -0.0, 3])) == 1
    assert Sampler(Sampling())(np.float32([-1, -0.0, 0.0])) == 1


def test_a_seed_repeats_and_another_does_not():
    x = logits()
    runs = []
    for s in (1, 1, 2):
        sampler = Sampler(Sampling(temperature=1, seed=s))
        runs.append([sampler(x) for _ in range(40)])
    assert runs[0] == runs[1] != runs[2]


def test_draws_follow_the_distribution():
    x = logits(8)
    sampling = Sampling(temperature=1.3, top_k=6, top_p=0.95, seed=SEED)
    sampler, n = Sampler(sampling), 20000
    counts = np.bincount([sampler(x) for _ in range(n)], minlength=8)
    p = distribution(x, sampling)
    assert (counts[p == 0] == 0).all()
    kept = p > 0
    chi2 = ((counts[kept] - n * p[kept]) ** 2 / (n * p[kept])).sum()
    assert chi2 < 20.5, f"seed {SEED}: chi-squared {chi2:.1f} of {kept.sum() - 1} degrees of freedom"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_numbers_are_refused(bad: float):
    x = logits()
    x[7] = bad
    for way in (Sampling(), Sampling(temperature=1)):
        with pytest.raises(UserError, match="the logit of token 7 is .*; the model's weights or scales are broken"):
            Sampler(way)(x)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be 0 \(greedy\) or a positive number, not -0.1"),
        ({"temperature": float("nan")}, "not nan"),
        ({"temperature": float("inf")}, "not inf"),
        ({"top_k": -1}, r"top-k must be 0 \(all tokens\) or more, not -1"),
        ({"top_p": 0.0}, "top-p must be above 0 and at most 1, not 0.0"),
        ({"top_p": 1.1}, "not 1.1"),
        ({"repetition_penalty": 0.0}, "repetition-penalty must be a positive number, not 0.0"),
        ({"repetition_penalty": -1.0}, "not -1.0"),
        ({"repetition_penalty": float("inf")}, "not inf"),
        ({"repetition_penalty": float("nan")}, "not nan"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict, message: str):
    with pytest.raises(UserError, match=message):
        Sampling(**values)


@pytest.mark.parametrize("u", [0.0, np.nextafter(1.0, 0.0)])
def test_the_ends_of_the_uniform_draw_never_take_a_token_that_was_cut(by_numpy, u: float):
    sampler = Once(Sampling(temperature=1, top_k=2))
    sampler.first = u
    assert sampler(np.float32([-5, -5, 1, 1, -5])) == (2 if u == 0 else 3)


@pytest.mark.parametrize("min_p", [0.0, 0.01, 0.3, 1.0])
def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest(min_p: float):
    x = logits()
    full = softmax(x, 0.8)
    kept = np.flatnonzero(distribution(x, Sampling(temperature=0.8, min_p=min_p)))
    assert set(kept) == set(np.flatnonzero(full >= min_p * full.max()))


def test_min_p_comes_behind_top_k_and_top_p():
    x = np.log(np.float32([0.4, 0.3, 0.2, 0.1]))
    p = distribution(x, Sampling(temperature=1, top_k=3, top_p=0.9, min_p=0.6))
    np.testing.assert_allclose(p, [4 / 7, 3 / 7, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("min_p", [-0.1, 1.1, float("nan")])
def test_min_p_outside_of_0_to_1_is_refused(min_p: float):
    with pytest.raises(UserError, match="min-p must be from 0"):
        Sampling(min_p=min_p)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7, top_k=5, seed=3),
        Sampling(temperature=1.1, top_k=30, top_p=0.8, seed=4),
        Sampling(temperature=1.0, top_k=40, min_p=0.2, seed=5),
    ],
)
def test_of_the_likeliest_tokens_alone_the_same_are_drawn(sampling: Sampling):
    """Logits of candidates, in the order of their ids, and of everything: the same token where top-k says that nothing else may come."""
    every, some = Sampler(sampling), Sampler(sampling)
    for seed in range(40):
        x = logits(200, seed)
        ids = np.sort(np.argsort(-x, kind="stable")[:40])
        assert some(x[ids], ids) == every(x)
