"""The golden model against PyTorch, through the vectors that `make oracle` wrote."""

import numpy as np
import pytest

from tellme.golden.config import KV260
from tellme.golden.model import GoldenModel
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.image.model import demo_folder
from tellme.host.machine.backends import GoldenBackend
from tellme.host.talk.scoring import BackendScorer, score, windows
from tellme.host.text.tokenizer import Tokenizer
from tests.models import load_demo
from tests.oracle.contributions import REFERENCE, scores, table
from tests.oracle.heldout import TAPPED, VECTORS, fingerprint, stories

NLL_BOUND = 0.002
AGREEMENT_BOUND = 0.99


def test_vectors_belong_to_the_model_and_text() -> None:
    assert str(np.load(VECTORS)["fingerprint"]) == fingerprint(), "the demo model or text changed: run make oracle"


def test_vectors_cover_two_thousand_tokens_and_are_small() -> None:
    assert len(np.load(VECTORS)["nll"]) == sum(len(s) - 1 for s in stories()) >= 2000
    assert VECTORS.stat().st_size < 300_000


def test_golden_is_within_bounds_of_pytorch() -> None:
    s = scores()
    assert abs(s["golden"].nll / s["PyTorch"].nll - 1) < NLL_BOUND
    assert (s["golden"].best == s["PyTorch"].best).mean() >= AGREEMENT_BOUND


def test_evaluation_gives_the_likelihoods_of_pytorch() -> None:
    """What `tellme eval` computes, story by story as the vectors were made."""
    checkpoint = read_checkpoint(demo_folder())
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.weights.spec.vocab)
    scorer = BackendScorer("demo", tokenizer, GoldenBackend(checkpoint.weights, KV260))
    vectors = np.load(VECTORS)
    parts = [score(ids.tolist(), scorer, None, windows(len(ids), KV260.max_context, 1))[0] for ids in stories()]
    nll, best = (np.concatenate([getattr(p, name) for p in parts]) for name in ("nll", "best"))
    assert abs(nll.mean() / vectors["nll"].mean(dtype=np.float64) - 1) < NLL_BOUND
    assert (best == vectors["best"]).mean() >= AGREEMENT_BOUND
    assert np.median(np.abs(nll - vectors["nll"])) < 0.01
    assert nll.mean() == pytest.approx(scores()["golden"].nll, rel=1e-12)


def test_tokens_differ_only_where_pytorch_hardly_prefers_one() -> None:
    s, lead = scores(), np.load(VECTORS)["lead"]
    differ = s["golden"].best != s["PyTorch"].best
    assert lead[differ].max(initial=0) < 1.0 and np.median(lead) > 2.0


def test_float64_reference_is_pytorch() -> None:
    s = scores()
    assert abs(s["float64"].nll / s["PyTorch"].nll - 1) < 0.0005
    assert (s["float64"].best == s["PyTorch"].best).mean() >= 0.998


def test_contributions_are_small_each_and_stated() -> None:
    rows = table()
    for r in rows:
        print(f"{r.name} against {r.against}: NLL {r.change:+.3%}, same next token {r.agreement:.2%}")
        assert abs(r.change) < 0.003 and r.agreement > 0.985
    assert {r.name for r in rows} == {"float64 reference", "arithmetic", "golden", *REFERENCE} - {"float64"}


def test_layers_are_near_pytorch() -> None:
    """A code may differ by one at a tie and int8 K, V and queries add their noise; a wrong layer is far off."""
    vectors, ids = np.load(VECTORS), stories()[0][:TAPPED]
    weights, _ = load_demo()
    result = GoldenModel(weights, KV260).run_pass(ids, range(TAPPED), [0] * TAPPED, taps=True)
    for i, layer in enumerate(weights.layers):
        gated = vectors[f"{i}.gated"] * layer.ffn_norm
        for name, want in (("x", vectors[f"{i}.x"]), ("attention.out", vectors[f"{i}.attention"]), ("gate.u", gated)):
            error = np.linalg.norm(result.taps[f"{i}.{name}"] - want) / np.linalg.norm(want)
            assert error < 0.03, f"layer {i} {name}"
    assert np.linalg.norm(result.logits - vectors["logits"]) / np.linalg.norm(vectors["logits"]) < 0.02
