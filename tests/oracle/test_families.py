"""Checkpoints that transformers wrote, of every family, against what PyTorch makes of them (vectors of `make oracle`).

Each goes through `tellme convert`'s path, the image and back: what runs is what a board would be given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tellme.golden import elementwise, layout, ternary
from tellme.golden.config import KV260, TINY
from tellme.golden.model import GoldenModel, ModelSpec, ModelWeights, rope_tables
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.image.model import Model
from tests.oracle.families import FAMILIES, LENGTH, SEQUENCES, TAPPED, checkpoint, fingerprint, vectors
from tests.reference import nll

LINEAR_BOUND = 1e-5
"""Of a linear layer's outputs, relative to the largest output of the token."""
TIE = 2e-5
"""A code may differ where the exact quotient is this near a half, in units of the quotient (binary32 has 6e-8)."""
NLL_BOUND = 0.005
AGREEMENT_BOUND = 0.97

F32 = NDArray[np.float32]


@cache
def weights(family: str) -> ModelWeights:
    """Through the image."""
    w = Model.open(checkpoint(family), TINY).weights()
    return replace(w, layers=list(w.layers))


@cache
def recorded(family: str) -> dict[str, NDArray[np.generic]]:
    return dict(np.load(vectors(family)))


def best_and_nll(
    w: ModelWeights, family: str, sequences: int = SEQUENCES
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Likeliest token and NLL of every recorded token: [sequences, LENGTH - 1]."""
    best, losses = [], []
    for ids in recorded(family)["ids"][:sequences].astype(np.int64):
        model, logits = GoldenModel(w, KV260), []
        for i in range(0, LENGTH, KV260.lanes):
            part = ids[i : i + KV260.lanes]
            logits.append(model.run_pass(part, range(i, i + len(part)), [0] * len(part)).logits)
        values = np.concatenate(logits)[:-1]
        best.append(values.argmax(-1))
        losses.append(nll(values, ids[1:]))
    return np.stack(best), np.stack(losses)


def parts(spec: ModelSpec, family: str) -> Iterator[tuple[str, F32, F32 | None, bool, list[tuple[str, str]]]]:
    """(name, recorded inputs, gain, whether they are normalised, its matrices) of every quantiser of every layer."""
    v, w = recorded(family), weights(family)
    for i, layer in enumerate(w.layers):
        for name, gain, matrices in (
            ("x", layer.input_norm, "q k v"),
            ("attention", layer.attn_norm, "o"),
            ("middle", layer.post_norm, "gate up"),
            ("gated", layer.ffn_norm, "down"),
        ):
            yield f"{i}.{name}", v[f"{i}.{name}"], gain, gain is not None, [(m, f"{i}.{m}.y") for m in matrices.split()]


def exact_codes(x: F32, gain: F32 | None, eps: float) -> NDArray[np.float64]:
    """What is rounded to a code, in float64."""
    u = x.astype(np.float64)
    if gain is not None:
        u = u / np.sqrt((u * u).mean(-1, keepdims=True) + eps) * gain
    return u * 127 / np.maximum(np.abs(u).max(-1, keepdims=True), 1e-5)


def interleaved(heads: F32) -> F32:
    """The last axis, a head's dimensions, in rope order."""
    return np.asarray(heads[..., layout.rope_order(heads.shape[-1])])


def test_vectors_belong_to_the_checkpoints_and_are_small() -> None:
    total = 0
    for family in FAMILIES:
        assert str(recorded(family)["fingerprint"]) == fingerprint(family), f"{family} changed: run make oracle"
        assert recorded(family)["ids"].shape == (SEQUENCES, LENGTH)
        total += vectors(family).stat().st_size + sum(p.stat().st_size for p in checkpoint(family).iterdir())
    assert SEQUENCES * LENGTH >= 512 and total < 2_400_000


def test_families_are_what_they_claim() -> None:
    """Between them: both scale conventions, latent and packed, sub-norms or none, both gates, GQA and MHA, shards."""
    specs = {f: read_checkpoint(checkpoint(f)).weights.spec for f in FAMILIES}
    assert [(s.activation, s.attn_sub_norm, s.tied) for s in specs.values()] == [
        ("relu2", True, True), ("relu2", True, True), ("silu", True, True), ("silu", False, False),
        ("silu", False, True),
    ]  # fmt: skip
    assert [(s.heads, s.kv_heads, s.head_dim) for s in specs.values()] == [
        (3, 1, 32),
        (3, 1, 32),
        (2, 2, 96),
        (4, 1, 32),
        (4, 2, 64),
    ]
    assert [s.qk_norm for s in specs.values()] == [False] * 4 + [True]
    assert specs["qwen3-ternary"].q_dim > 2 * specs["qwen3-ternary"].hidden
    scaling = specs["llama-ternary"].rope_scaling
    assert scaling is not None and scaling.kind == "llama3"
    assert len(list(Path(checkpoint("llama-ternary")).glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_codes_of_the_same_inputs_differ_only_at_ties(family: str) -> None:
    spec = weights(family).spec
    differ = total = 0
    for name, x, gain, norm, _ in parts(spec, family):
        q, _ = elementwise.quantise(elementwise.statistics(x, gain), norm=norm, eps=spec.norm_eps)
        want, exact = recorded(family)[f"{name}.codes"], exact_codes(x, gain, spec.norm_eps)
        off = q != want
        distance = np.abs(np.abs(exact - np.floor(exact)) - 0.5)[off]
        assert (distance < TIE * np.abs(exact[off])).all(), f"{family} {name}: codes differ away from a tie"
        assert (np.abs(q.astype(int) - want)[off] == 1).all()
        differ, total = differ + int(off.sum()), total + off.size
    print(f"{family}: {differ} of {total:,} codes differ, all at ties")
    assert total > 4000 and differ <= total // 1000


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_outputs_of_the_same_codes_are_equal(family: str) -> None:
    spec, worst = weights(family).spec, 0.0
    for name, x, gain, norm, matrices in parts(spec, family):
        codes = recorded(family)[f"{name}.codes"]
        _, scale = elementwise.quantise(elementwise.statistics(x, gain), norm=norm, eps=spec.norm_eps)
        layer = weights(family).layers[int(name.split(".")[0])]
        for matrix, key in matrices:
            acc = ternary.linear(getattr(layer, matrix), codes)
            y, want = elementwise.scale(acc, getattr(layer, f"{matrix}_scale"), scale), recorded(family)[key]
            error = np.abs(y - want).max(-1) / np.abs(want).max(-1)
            worst = max(worst, float(error.max()))
    print(f"{family}: linear outputs within {worst:.1e}")
    assert 0 < worst < LINEAR_BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_gates_and_rotary_tables_are_equal(family: str) -> None:
    v, spec = recorded(family), weights(family).spec
    gate = elementwise.gate_relu2 if spec.activation == "relu2" else elementwise.gate_silu
    for i in range(spec.layers):
        h, want = gate(v[f"{i}.gate.y"], v[f"{i}.up.y"]), v[f"{i}.gated"]
        assert np.abs(h - want).max() < LINEAR_BOUND * np.abs(want).max()
    for table, want in zip(rope_tables(spec, TAPPED), (v["cos"], v["sin"]), strict=True):
        assert table.shape == want.shape and np.abs(table - want).max() < 1e-6


def test_normalised_heads_are_those_of_the_reference() -> None:
    """QK-norm from the recorded outputs of Q and K: codes times scale are the recorded norms, rotated, to half a code."""
    family = "qwen3-ternary"
    v, spec = recorded(family), weights(family).spec
    cos, sin = (np.asarray(v[name], np.float32)[:, None] for name in ("cos", "sin"))
    worst = 0.0
    for i, layer in enumerate(weights(family).layers):
        for part, gain in (("q", layer.q_norm), ("k", layer.k_norm)):
            assert gain is not None
            y = interleaved(v[f"{i}.{part}.y"].reshape(TAPPED, -1, spec.head_dim))
            stats = elementwise.head_statistics(y, interleaved(gain), cos, sin)
            q, scale = elementwise.quantise(stats, norm=True, eps=spec.norm_eps)
            normed = interleaved(v[f"{i}.{part}_norm"].reshape(y.shape)).astype(np.float64)
            a, b = normed[..., 0::2], normed[..., 1::2]
            want = np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(y.shape)
            error = np.abs(q * scale[..., None].astype(np.float64) - want) / scale[..., None]
            worst = max(worst, float(error.max()))
            assert np.abs(np.abs(want).max(-1) / 127 / scale - 1).max() < LINEAR_BOUND
    assert 0.4 < worst < 0.5 + 1e-3


def test_activations_in_float_give_the_same_text() -> None:
    """Qwen3 of ternary weights against the same weights in plain float32 layers, whose activations nobody quantises."""
    family = "qwen3-ternary"
    v = recorded(family)
    best, losses = best_and_nll(weights(family), family)
    agreement, change = float((best == v["float.best"]).mean()), float(losses.mean() / v["float.nll"].mean() - 1)
    print(f"{family} against float32: same next token {agreement:.2%}, NLL {change:+.3%}")
    assert abs(change) < NLL_BOUND and agreement >= AGREEMENT_BOUND


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_agree_and_damaged_ones_do_not(family: str) -> None:
    v, w = recorded(family), weights(family)
    best, losses = best_and_nll(w, family)
    agreement, change = float((best == v["best"]).mean()), float(losses.mean() / v["nll"].mean() - 1)
    print(
        f"{family}: same next token {agreement:.2%}, NLL {v['nll'].mean():.3f} {change:+.3%}, "
        f"tokens differ at leads up to {v['lead'][best != v['best']].max(initial=0):.2f} of {np.median(v['lead']):.2f}"
    )
    assert abs(change) < NLL_BOUND and agreement >= AGREEMENT_BOUND
    # Not uniform, and not one token for everything.
    assert v["nll"].mean() < 0.75 * np.log(w.spec.vocab) and len(np.unique(v["best"])) > 20
    layer = w.layers[-1]
    damages = {
        "rotary base": replace(w, spec=replace(w.spec, rope_theta=100.0, rope_scaling=None)),
        "scale of one matrix": replace(w, layers=[*w.layers[:-1], replace(layer, down_scale=layer.down_scale * 1.5)]),
        "K and V exchanged": replace(w, layers=[*w.layers[:-1], replace(layer, k=layer.v, v=layer.k)]),
    }
    if layer.q_norm is not None:
        wrong = [replace(one, q_norm=np.ones_like(one.q_norm), k_norm=one.k_norm[::-1]) for one in w.layers]
        damages = {"gains of heads": replace(w, layers=wrong), **damages}
    for name, damaged in damages.items():
        best, losses = best_and_nll(damaged, family, 1)
        bad, worse = float((best == v["best"][:1]).mean()), float(losses.mean() / v["nll"][:1].mean() - 1)
        print(f"  {name}: same next token {bad:.2%}, NLL {worse:+.2%}")
        assert abs(worse) > 2 * NLL_BOUND, name
    assert bad < AGREEMENT_BOUND  # K and V exchanged: not one of those that a sampled text can forgive


def test_rows_that_lie_on_no_grid_are_closer_exact_than_in_int8() -> None:
    """The demo's rows lie on an int8 grid, and hide what int8 rows cost; these are what random numbers are."""
    errors = {"exact": 0.0, "int8": 0.0}
    for family in FAMILIES:
        w, v = weights(family), recorded(family)
        rows = elementwise.widen(w.inputs).astype(np.float64)  # type: ignore[arg-type]
        int8 = w.embedding * w.embedding_scales[:, None].astype(np.float64)
        assert (np.abs(rows - int8).max(-1) > 0.2 * w.embedding_scales).all(), f"{family}: a row lies on the grid"
        for name, model in (("exact", w), ("int8", replace(w, inputs=None))):
            _, losses = best_and_nll(model, family, 2)
            errors[name] += float(np.square(losses - v["nll"][:2]).mean()) / len(FAMILIES)
    print(f"mean square of the error of an NLL: {errors}")
    assert errors["exact"] < 0.75 * errors["int8"]
