"""Scoring of texts: the windows, what is asked of a model in which pieces, and the figures made of its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tellme.golden.config import TINY
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.errors import CheckError
from tellme.host.machine.backends import GoldenBackend
from tellme.host.talk.scoring import BackendScorer, Comparison, Scorer, Scores, log_softmax, places, score, windows
from tellme.host.text.tokenizer import Tokenizer
from tests.host.support import DEMO


@pytest.mark.parametrize("tokens", [2, 3, 8, 9, 10, 16, 17, 18, 100])
@pytest.mark.parametrize(("context", "stride"), [(1, 1), (8, 1), (8, 4), (8, 5), (8, 8), (200, 100)])
def test_every_token_but_the_first_is_scored_once_with_enough_before_it(tokens: int, context: int, stride: int) -> None:
    scored: list[int] = []
    for n, w in enumerate(windows(tokens, context, stride)):
        assert w.start == n * stride and 1 <= w.inputs <= context and 0 <= w.skip < w.inputs
        assert w.start + w.inputs < tokens
        targets = range(w.start + w.skip + 1, w.start + w.inputs + 1)
        for t in targets:
            assert t - w.start >= (1 if n == 0 else context - stride + 1)
        scored += targets
    assert scored == list(range(1, tokens))


def test_places_are_the_first_and_the_worst_each_once() -> None:
    mine = Scores(np.zeros(9), np.array([1, 2, 3, 4, 5, 6, 7, 8, 9]))
    other = Scores(np.zeros(9), np.array([1, 0, 3, 0, 0, 0, 7, 8, 9]))
    kl = np.array([0.0, 0.5, 0.9, 0.1, 0.1, 0.3, 0.0, 0.2, 0.0])
    got = places(mine, Comparison(other, kl, np.arange(len(kl))))
    assert got == [("first", 1), ("first", 3), ("first", 4), ("worst", 2), ("worst", 5), ("worst", 7)]


def test_log_softmax_of_extreme_logits_is_finite() -> None:
    x = np.float32([[3e38, -3e38, 3e38], [-1e30, -1e30, -1e30], [0, -200, 5]])
    got = log_softmax(x)
    assert got.dtype == np.float64 and got[0, 0] == -np.log(2) and got[1, 2] == pytest.approx(-np.log(3))
    assert got[2, 1] == pytest.approx(-205 - np.log1p(np.exp(-5)))


def test_a_broken_model_is_an_error_and_not_a_number() -> None:
    checkpoint = read_checkpoint(DEMO)
    weights = replace(checkpoint.weights, norm=checkpoint.weights.norm * np.float32(np.inf))
    scorer = BackendScorer("broken", Tokenizer(checkpoint.tokenizer, 1024), GoldenBackend(weights, TINY))
    ids = scorer.tokenizer.encode("Once upon a time there was a kind girl named Mia.")
    with pytest.raises(CheckError, match="broken: a logit at token 0 or behind is not finite"):
        score(ids, scorer, None, windows(len(ids), 64, 32))


def test_pieces_of_any_width_and_progress_add_up() -> None:
    """A scorer that repeats what it is given: which positions are asked for, in which pieces."""

    class Echo(Scorer):
        name, vocab, context = "echo", 50, 10

        def __init__(self, width: int):
            self.width = width
            self.calls: list[tuple[int, int, bool]] = []

        def feed(self, ids: Sequence[int], start: int, wanted: bool) -> NDArray[np.float32] | None:
            self.calls.append((start, len(ids), wanted))
            return np.eye(50, dtype=np.float32)[np.asarray(ids)] * np.float32(9) if wanted else None

    ids = list(range(24))
    done: list[int] = []
    a, b = Echo(4), Echo(64)
    mine, other = score(ids, a, b, windows(24, 10, 6), done.append)
    assert a.calls == b.calls == [
        (0, 4, True), (4, 4, True), (8, 2, True),
        (0, 4, False), (4, 4, True), (8, 2, True),
        (0, 4, False), (4, 4, True), (8, 2, True),
        (0, 4, False), (4, 1, True),
    ]  # fmt: skip
    assert sum(done) == sum(w.inputs for w in windows(24, 10, 6)) == 35
    assert mine.best.tolist() == list(range(23)) and other is not None and not other.kl.any()
