"""The second demo model (group scales, QK-norm, ternary embedding) against transformers' Qwen3 in float32, through the vectors that
`make oracle` wrote."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from tellme.golden import elementwise
from tellme.golden.config import KV260
from tellme.golden.model import GoldenModel, ModelWeights
from tellme.host.checkpoints.checkpoint import open_checkpoint
from tellme.host.image.model import demo_qwen3
from tellme.host.text.tokenizer import Tokenizer
from tests.oracle.heldout import stories
from tests.oracle.qwen3 import TAPPED, VECTORS, fingerprint, tensors
from tests.reference import nll

NLL_BOUND = 0.005
AGREEMENT_BOUND = 0.97
WIDE = replace(KV260, weight_format="grouped")
NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}  # fmt: skip
NORMS = {"input_norm": "attn_norm", "post_norm": "ffn_norm", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}

pytestmark = pytest.mark.xdist_group("oracle")


@cache
def weights() -> ModelWeights:
    return open_checkpoint(demo_qwen3()).weights


def score(w: ModelWeights, count: int | None = None) -> tuple[float, float]:
    """Agreement of the likeliest token of the first `count` stories, and how far their mean NLL is from PyTorch's, relative."""
    v, best, losses = np.load(VECTORS), [], []
    for ids in stories()[:count]:
        values = GoldenModel(w, WIDE).prefill(ids, all_logits=True).logits[:-1]
        best.append(values.argmax(-1))
        losses.append(nll(values, ids[1:]))
    mine = np.concatenate(losses)
    n = len(mine)
    agreement = float((np.concatenate(best) == v["best"][:n]).mean())
    return agreement, float(mine.mean() / v["nll"][:n].mean(dtype=np.float64) - 1)


def test_vectors_belong_to_the_model_and_are_small() -> None:
    v = np.load(VECTORS)
    assert str(v["fingerprint"]) == fingerprint(), "the demo model or text changed: run make oracle"
    assert len(v["nll"]) == sum(len(s) - 1 for s in stories()) >= 2000
    assert VECTORS.stat().st_size < 100_000


def test_weights_are_those_of_the_file() -> None:
    """Read without the importer: every value of every matrix, whose scales the importer rounds to a multiple of the matrix's."""
    _, want = tensors()
    w = weights()
    np.testing.assert_array_equal(w.inputs, want.pop("token_embd.weight"))
    np.testing.assert_array_equal(w.norm, want.pop("output_norm.weight"))
    for i, layer in enumerate(w.layers):
        for part, name in NAMES.items():
            unit, theirs = getattr(layer, f"{part}_scale"), want.pop(f"blk.{i}.{name}.weight")
            ours = getattr(layer, part)
            assert np.abs(ours * np.float64(unit) - theirs).max() <= 0.5 * unit, f"{i}.{part}"
            np.testing.assert_array_equal(np.sign(ours), np.sign(theirs))
        for part, name in NORMS.items():
            np.testing.assert_array_equal(getattr(layer, part), want.pop(f"blk.{i}.{name}.weight"))
    assert not want


def test_it_has_the_form_of_the_family() -> None:
    """QK-norm that was trained; scales that differ within a row; an embedding that is ternary and lies on no int8 grid."""
    w = weights()
    s = w.spec
    assert s.group_scales and s.qk_norm and s.tied and not s.attn_sub_norm and not s.ffn_sub_norm
    assert (s.activation, s.hidden % 64, s.ffn % 64) == ("silu", 0, 0)
    assert all(np.ptp(layer.q_norm) > 0.1 and np.ptp(layer.k_norm) > 0.1 for layer in w.layers)
    _, values = tensors()
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.3.ffn_down.weight"):
        groups = values[name].reshape(len(values[name]), -1, 64)
        scales = np.abs(groups).max(-1)
        assert ((groups == 0) | (np.abs(groups) == scales[..., None])).all()
        assert (scales.max(1) > 1.001 * scales.min(1)).mean() > 0.9, name
    rows = elementwise.widen(w.inputs).astype(np.float64)  # type: ignore[arg-type]
    off = np.abs(rows - w.embedding * w.embedding_scales[:, None].astype(np.float64)).max(-1) / w.embedding_scales
    assert (off > 0.02).mean() > 0.9 and off.mean() > 0.2


def test_the_files_vocabulary_gives_the_tokens_of_the_vectors() -> None:
    checkpoint = open_checkpoint(demo_qwen3())
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.weights.spec.vocab)
    for ids in stories():
        text = tokenizer.decode(ids[1:-1].tolist())
        assert tokenizer.encode(text) == ids[:-1].tolist() and checkpoint.eos_ids == (ids[-1],)


def test_golden_is_within_bounds_of_pytorch() -> None:
    agreement, change = score(weights())
    print(f"same next token {agreement:.2%}, NLL {np.load(VECTORS)['nll'].mean():.4f} {change:+.3%}")
    assert abs(change) < NLL_BOUND and agreement >= AGREEMENT_BOUND


def test_layers_are_near_pytorch() -> None:
    """The residual stream behind each layer: a wrong one is far off."""
    vectors, ids = np.load(VECTORS), stories()[0][:TAPPED]
    w = weights()
    result = GoldenModel(w, WIDE).run_pass(ids, range(TAPPED), [0] * TAPPED, taps=True)
    for i in range(w.spec.layers):
        want = vectors[f"{i}.x"]
        error = np.linalg.norm(result.taps[f"{i}.x"] - want) / np.linalg.norm(want)
        print(f"layer {i}: {error:.2%}")
        assert error < 0.03, f"layer {i}"


@pytest.mark.parametrize("what", ["scales", "gains of heads", "rotary base"])
def test_damaged_models_are_told(what: str) -> None:
    """Every matrix with the median of its scales for all groups; heads normalised without their gains; turned by another base."""
    w = weights()
    layers, spec = list(w.layers), w.spec
    if what == "scales":

        def flat(m: NDArray[np.integer]) -> NDArray[np.integer]:
            return (np.sign(m) * int(np.median(np.abs(m[m != 0])))).astype(m.dtype)

        layers = [replace(one, **{part: flat(getattr(one, part)) for part in NAMES}) for one in layers]
    elif what == "gains of heads":
        layers = [replace(one, q_norm=np.ones_like(one.q_norm)) for one in layers]
    else:
        spec = replace(spec, rope_theta=1000.0)
    _, change = score(replace(w, layers=layers, spec=spec), 2)
    print(f"{what}: NLL {change:+.2%}")
    assert abs(change) > 2 * NLL_BOUND
