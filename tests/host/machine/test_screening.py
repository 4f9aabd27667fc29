"""Which head a pass runs, on the driver of a reference machine, on golden, and on both compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tellme.golden import screen
from tellme.golden.config import TINY
from tellme.host.checkpoints.checkpoint import Checkpoint, open_checkpoint
from tellme.host.errors import CheckError, UserError
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.driver import Driver
from tellme.host.machine.passes import Pass
from tellme.host.machine.program import compile_program
from tellme.host.machine.screening import FULL, HeadChoice, choose
from tellme.host.text.tokenizer import Files
from tests.host.machine.reference_machine import ReferenceMachine
from tests.host.support import start, write_checkpoint
from tests.models import random_weights, small_spec

SPEC = small_spec(vocab=300)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", SPEC))
    return _converted(checkpoint, tmp_path / "model.tlm", planes=2)


def _converted(checkpoint: Checkpoint, path: Path, planes: int) -> Model:
    ternary = replace(screen.quantise(*checkpoint.weights.head_rows, planes), margin=np.float32(0.5))
    convert(replace(checkpoint, weights=replace(checkpoint.weights, screen=ternary)), path, TINY)
    return Model.open(path, TINY)


def _driver(model: Model) -> Driver:
    program = compile_program(model, TINY)
    driver = Driver(ReferenceMachine(TINY, program.window_beats), TINY)
    driver.load(model, program)
    return driver


def test_candidates_their_logits_and_bounds_come_from_memory_and_registers(model: Model) -> None:
    both = CheckedBackend(_driver(model), GoldenBackend(model.weights(), TINY))
    got = both.run_pass(Pass.of([1, 2, 3], range(3), head=(1, 2), write_logits=True, candidates=48))
    assert got.candidates is not None and got.logits is not None and got.bound is not None
    assert got.candidates.shape == got.logits.shape == (2, 48) and len(got.bound) == 2
    assert (np.diff(got.candidates) > 0).all()
    for lane in range(2):
        assert got.candidates[lane][got.logits[lane].argmax()] == got.best_index[lane]
    less = both.run_pass(Pass.of([1, 2, 3], range(3), head=(1, 2), candidates=48))
    assert less.logits is None and less.candidates is None and less.bound == got.bound
    assert (both.passes, both.can_screen) == (2, True)


def test_the_head_that_was_chosen_runs(model: Model) -> None:
    driver = _driver(model)
    full = driver.prefill([5, 6, 7, 8, 9], logits=True)[-1]
    driver.head = HeadChoice(mode="screened", candidates=64)
    screened = driver.prefill([5, 6, 7, 8, 9], logits=True)[-1]
    assert full.logits is not None and full.candidates is None and full.bound is None
    assert screened.candidates is not None and screened.logits is not None
    assert (screened.logits[0] == full.logits[0][screened.candidates[0]]).all()
    # Every logit is every logit.
    every = driver.prefill([5, 6, 7, 8, 9], all_logits=True)[-1]
    assert every.candidates is None
    assert (driver.screened, driver.fallbacks) == (1, 0)


@pytest.mark.parametrize("on", ["driver", "golden", "both"])
def test_a_best_that_is_not_above_the_bound_is_looked_for_in_every_row(model: Model, on: str) -> None:
    golden = GoldenBackend(model.weights(), TINY)
    backend = {"driver": _driver(model), "golden": golden, "both": CheckedBackend(_driver(model), golden)}[on]
    margin = float(backend.prefill([7, 8])[-1].best_value[0])
    bound = backend.run_pass(Pass.of([8], [1], head=(0, 1), candidates=64)).bound
    assert bound is not None
    margin -= float(bound[0])
    for least, fallbacks in ((margin, 0), (np.nextafter(margin, np.inf), 1)):
        backend.screened = backend.fallbacks = 0
        backend.head = HeadChoice(mode="auto", candidates=64, margin=float(least))
        result = backend.prefill([7, 8], logits=True)[-1]
        assert (backend.screened, backend.fallbacks) == (1, fallbacks)
        assert (result.candidates is None) == bool(fallbacks)
        backend.decode(9, 2)
        assert backend.screened == 2
    if on == "driver":  # a pass that is run again costs both
        once = backend.run_pass(Pass.of([9], [2], head=(0, 1))).beats
        backend.head = HeadChoice(mode="auto", candidates=64, margin=1e9)
        assert (backend.decode(9, 2).beats or 0) > 1.5 * (once or 0)


def test_where_there_cannot_be_candidates_the_full_head_runs(model: Model) -> None:
    """Too many lanes for the entries; more than half of the vocabulary."""
    assert HeadChoice(mode="screened", candidates=256).wanted(2, 10_000, TINY.screen_entries) == 256
    assert HeadChoice(mode="screened", candidates=256).wanted(3, 10_000, TINY.screen_entries) == 0
    assert HeadChoice(mode="screened", candidates=256).wanted(1, 511, TINY.screen_entries) == 0
    assert FULL.wanted(1, 10_000, TINY.screen_entries) == HeadChoice(mode="auto").wanted(0, 10_000, 512) == 0


def test_passes_with_candidates_that_cannot_be_are_refused(model: Model, tmp_path: Path) -> None:
    driver = _driver(model)
    for count, words in ((24, "multiple of 16"), (160, "half of a vocabulary of 300"), (1040, "from 16 to 1024")):
        with pytest.raises(UserError, match=words):
            driver.run_pass(Pass.of([1], [0], head=(0, 1), candidates=count))
    with pytest.raises(UserError, match="144 candidates for each of 4 lanes are more than the 512"):
        driver.run_pass(Pass.of(range(4), range(4), head=(0, 4), candidates=144))
    other, _, opened = start(write_checkpoint(tmp_path / "full", SPEC))
    assert opened.planes == 0 and opened.screen_facts is None
    with pytest.raises(UserError, match="no ternary head.*convert it with --head screened"):
        other.run_pass(Pass.of([1], [0], head=(0, 1), candidates=64))


def test_a_wrong_candidate_logit_or_bound_is_found(model: Model) -> None:
    class Wrong(GoldenBackend):
        what = ""

        def _pass(self, given):  # type: ignore[no-untyped-def]
            r = super()._pass(given)
            assert r.candidates is not None and r.logits is not None and r.bound is not None
            if self.what == "row":
                missing = np.setdiff1d(np.arange(300), r.candidates[0])[0]
                return replace(r, candidates=np.sort(np.append(r.candidates[0][1:], missing))[None])
            if self.what == "logit":
                logits = r.logits.copy()
                logits[0, 3] += 1
                return replace(r, logits=logits)
            return replace(r, bound=(np.nextafter(r.bound[0], np.float32(9)),))

    wrong = Wrong(model.weights(), TINY)
    both = CheckedBackend(wrong, GoldenBackend(model.weights(), TINY))
    for wrong.what, words in (
        ("row", "is a candidate of"),
        ("logit", "vocabulary index"),
        ("bound", "bound .* differs"),
    ):
        with pytest.raises(CheckError, match=words):
            both.run_pass(Pass.of([1], [0], head=(0, 1), candidates=64))


def test_what_is_asked_for_is_chosen_or_refused(model: Model) -> None:
    facts = model.screen_facts
    assert facts is not None and facts.margin == np.float32(0.5)
    loose = replace(facts, margin=np.float32(0))
    assert choose("m", None, None, None, 1000) == choose("m", facts, "full", None, 1000) == FULL
    assert choose("m", facts, None, None, 1000) == HeadChoice(mode="auto", candidates=256, margin=0.5)
    assert choose("m", facts, "screened", 128, 1000) == HeadChoice(mode="screened", candidates=128, margin=0.5)
    assert choose("m", facts, None, None, 300).candidates == 144  # half of the vocabulary
    assert choose("m", loose, None, None, 1000) == FULL
    for ternary, mode, count, vocab, words in (
        (facts, "some", None, 1000, "--head must be full, screened or auto, not 'some'"),
        (None, "auto", None, 1000, "m: has no ternary head; convert the checkpoint with --head screened"),
        (loose, "auto", None, 1000, "not calibrated"),
        (facts, "full", 64, 1000, "--candidates needs --head screened or auto"),
        (None, None, 64, 1000, "--candidates needs --head screened or auto"),
        (facts, "screened", 100, 1000, "multiple of 16 from 16 to 1024, not 100"),
        (facts, "screened", 0, 1000, "not 0"),
        (facts, "screened", 512, 1000, "more than half of its vocabulary of 1000.* at most 496"),
    ):
        with pytest.raises(UserError, match=words):
            choose("m", ternary, mode, count, vocab)


def test_candidates_are_wanted_and_doubted_up_to_their_ends(model: Model) -> None:
    choice = HeadChoice(mode="auto", candidates=64, margin=0.5)
    assert choice.wanted(2, 128, 128) == 64, "half of the vocabulary, and all entries"
    assert choice.wanted(2, 127, 128) == choice.wanted(2, 128, 127) == choice.wanted(0, 1000, 1000) == 0
    best, bound = np.float32([1.5, 1.25, np.nan, 2.0]), np.float32([1.0, 1.0, 0.0, -1.0])
    assert choice.doubts(best, bound) == (False, True, True, False)
    assert HeadChoice(mode="screened", candidates=64).doubts(best, bound) == (False,) * 4
    assert choice.doubts(best, None) == (False,) * 4
    assert HeadChoice(mode="screened", candidates=1024).candidates == 1024
    with pytest.raises(UserError, match="not 1040"):
        HeadChoice(mode="screened", candidates=1040)
    facts = model.screen_facts
    assert facts is not None
    assert choose("m", facts, "screened", 496, 992).candidates == 496
    assert choose("m", facts, "screened", None, 32).candidates == 16
    with pytest.raises(UserError, match="256 candidates are more than half of its vocabulary of 31"):
        choose("m", facts, "screened", None, 31)


def test_candidates_are_read_through_caches_that_are_not_coherent(model: Model) -> None:
    program = compile_program(model, TINY)
    driver = Driver(ReferenceMachine(TINY, program.window_beats, cached=True), TINY)
    driver.load(model, program)
    both = CheckedBackend(driver, GoldenBackend(model.weights(), TINY))
    for first, count in ((0, 3), (1, 2), (2, 1)):
        for token in (1, 2):
            got = both.run_pass(Pass.of([token] * 3, range(3), head=(first, count), write_logits=True, candidates=48))
            assert got.candidates is not None and got.candidates.shape == (count, 48)


def test_a_ternary_head_gives_candidates_and_every_logit(tmp_path: Path) -> None:
    """Without doubt, and without a fallback; both are the same logits."""
    weights = random_weights(replace(SPEC, ternary_head=True, vocab=333), 4)
    path = tmp_path / "ternary.tlm"
    convert(Checkpoint("ternary", weights, Files.read(demo_folder()), (1,)), path, TINY)
    model = Model.open(path, TINY)
    both = CheckedBackend(_driver(model), GoldenBackend(model.weights(), TINY))
    both.head = choose("m", model.screen_facts, None, None, 333)
    assert both.head == HeadChoice(mode="auto", candidates=160)
    some = both.prefill([1, 2, 3], logits=True)[-1]
    assert some.candidates is not None and some.candidates.shape == (1, 160)
    both.head = FULL
    every = both.prefill([1, 2, 3], logits=True)[-1]
    assert every.logits is not None and every.candidates is None and every.best_index == some.best_index
    assert (every.logits[0, some.candidates[0]] == some.logits).all()
    assert both.fallbacks == 0 and (every.logits.argmax(axis=1) == every.best_index).all()
    three = both.run_pass(Pass.of([4, 5, 6], range(3, 6), head=(0, 3), write_logits=True))
    assert three.logits is not None and three.logits.shape == (3, 333)
