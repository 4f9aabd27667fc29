"""What `tellme eval` says of a screened head, against a plain reading of what the words mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tellme.golden import head, screen
from tellme.host.cli import app
from tellme.host.image.model import Model
from tellme.host.machine.driver import Driver
from tellme.host.machine.passes import Pass, PassResult
from tellme.host.machine.program import Program
from tellme.host.machine.screening import HeadChoice
from tellme.host.talk import scoring
from tellme.host.talk.screening import ScreenFigures
from tests.host.machine.reference_machine import ReferenceMachine
from tests.host.support import on_reference_machines


@pytest.mark.parametrize(("mode", "margin"), [("screened", 0.0), ("auto", 2.0), ("auto", 4.0)])
def test_figures_are_what_they_are_said_to_be(mode: str, margin: float) -> None:
    rng = np.random.default_rng(1)
    rows, scales = head.quantise_rows(rng.standard_t(3, size=(400, 64)))
    ternary = screen.quantise(rows, scales)
    figures = ScreenFigures(HeadChoice(mode=mode, candidates=32, margin=margin), ternary.count, ternary)
    missed, doubt, wrong, worst, nucleus, outside, margins = 0, 0, 0, 0, 0, [], []
    for n in (1, 30, 64):
        q = rng.integers(-3, 4, (n, 64)).astype(np.int8)
        q[:, :3] = rng.integers(-127, 128, (n, 3))  # what counts, and the ternary rows do not know of it
        act = rng.uniform(1e-3, 1e-2, n).astype(np.float32)
        logits = head.logits(q, act, rows, scales)
        figures.add(q, act, logits)
        scored = screen.scores(q, ternary)
        for i in range(n):
            order = sorted(range(400), key=lambda r: (-scored[i, r], r))  # noqa: B023 - used at once
            rank = order.index(int(logits[i].argmax()))
            bound = float(screen.bounds(scored[i : i + 1], np.array([order[:32]]), act[i : i + 1], ternary)[0])
            margins.append(max(float(logits[i, r]) for r in order[:32]) - bound)
            p = np.exp(logits[i].astype(np.float64))
            outside.append(p[order[32:]].sum() / p.sum())
            likely = sorted(range(400), key=lambda r: -p[r])  # noqa: B023
            sums = np.cumsum(p[likely]) / p.sum()
            nucleus += not set(likely[: int(np.searchsorted(sums, 0.95)) + 1]) <= set(order[:32])
            doubtful = mode == "auto" and margins[-1] < margin
            worst, missed, doubt = max(worst, rank), missed + (rank >= 32), doubt + doubtful
            wrong += rank >= 32 and not doubtful
    got = figures.report()
    assert (got["positions"], got["worst_rank"], got["missed"]) == (95, worst + 1, missed)
    assert (got["fallbacks"], got["wrong"]) == (doubt, wrong) and missed > 0
    assert got["least_margin"] == pytest.approx(min(margins))
    assert (got["outside_mean"], got["outside_max"]) == pytest.approx((np.mean(outside), max(outside)))
    assert got["outside_much"] == sum(x > 0.01 for x in outside) and 0 < got["nucleus_cut"] == nucleus < 95


def _eval(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["eval", *map(str, words)])
    return result.exit_code, result.output


def test_eval_reports_them_and_scores_what_it_scored(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a small girl named Emma. She lived in a house on a hill.")
    results = []
    for options in ((), ("--head", "auto"), ("--head", "screened", "--candidates", 16)):
        code, out = _eval("demo", "--text", text, "--json", *options)
        assert code == 0, out
        results.append(json.loads(out))
    assert len({r["nll"] for r in results}) == 1 and results[0]["screened"] is None
    auto, few = results[1]["screened"], results[2]["screened"]
    assert auto["candidates"] == 256 and auto["margin"] > 0 and auto["wrong"] == 0
    assert few["candidates"] == 16 and few["outside_max"] > auto["outside_max"]
    assert auto["positions"] == few["positions"] == results[0]["scored_tokens"]
    code, out = _eval("demo", "--text", text, "--head", "auto")
    assert code == 0 and "screened head" in out and "fallbacks to the full head" in out


@pytest.mark.parametrize("candidates", [16, 512])
@pytest.mark.parametrize("mode", ["screened", "auto"])
def test_the_machine_s_figures_are_golden_s_but_for_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, candidates: int
) -> None:
    """512 candidates: fewer lanes with a head than a pass has."""
    made: list[ReferenceMachine] = []
    monkeypatch.setattr(scoring, "SimulatedAccelerator", on_reference_machines(made))
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a small girl named Emma. She lived in a house on a hill.")
    found = []
    for backend in ("golden", "sim"):
        code, out = _eval(
            "demo", "--text", text, "--json", "--head", mode, "--candidates", candidates, "--backend", backend, "--board", "tiny"
        )  # fmt: skip
        assert code == 0, out
        found.append(json.loads(out))
    golden, machine = (r["screened"] for r in found)
    assert found[0]["nll"] == found[1]["nll"] and len(made) == 1
    assert golden.pop("worst_rank") and machine.pop("worst_rank") is None
    assert machine == golden
    code, out = _eval("demo", "--text", text, "--head", mode, "--backend", "sim", "--board", "tiny", "--max-tokens", 9)
    assert code == 0 and "true arg-max no candidate" in out and "lowest rank" not in out


def test_a_machine_whose_screened_head_scores_differently_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Driver):
        def _pass(self, given: Pass) -> PassResult:
            result = super()._pass(given)
            if given.candidates and result.logits is not None:
                result.logits[0, 3] += np.float32(0.5)
            return result

    def wrong(model: Model, program: Program, **options: object) -> Driver:
        machine = Wrong(ReferenceMachine(program.config, program.window_beats), program.config)
        machine.load(model, program)
        return machine

    monkeypatch.setattr(scoring, "SimulatedAccelerator", wrong)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a small girl.")
    code, out = _eval("demo", "--text", text, "--head", "screened", "--backend", "sim", "--board", "tiny")
    assert code == 1 and "the screened head's logits are not those of the full head" in out.replace("\n", " ")


def test_eval_refuses_what_it_cannot_tell(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time.")
    for options, words in (
        (("--head", "half"), "--head must be"),
        (("--candidates", 64), "--candidates needs --head"),
    ):
        code, out = _eval("demo", "--text", text, *options)
        assert code == 2 and words in out, out
