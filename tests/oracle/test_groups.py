"""Models with a scale for every group of weights, through the image, against transformers' Qwen3 in float32 (vectors of `make oracle`)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from numpy.typing import NDArray

from tellme.golden import elementwise, ternary
from tellme.golden.config import KV260, TINY
from tellme.golden.model import GoldenModel, ModelWeights
from tellme.host.image.model import Model
from tellme.host.image.screening import with_head
from tests.oracle.groups import LENGTH, MODELS, SEQUENCES, TERNARY_HEAD, fingerprint, recorded, vectors, write
from tests.reference import nll

NLL_BOUND = 0.005
AGREEMENT_BOUND = 0.97
WIDE = replace(KV260, weight_format="grouped", ternary_head=True)
GROUPED = replace(TINY, weight_format="grouped")
PROJECTIONS = {"q": "q", "k": "k", "v": "v", "o": "o", "gate": "gate", "up": "up", "down": "down"}


@cache
def weights(name: str) -> ModelWeights:
    """Through the folder and the image; a ternary head as it is."""
    with TemporaryDirectory() as folder:
        path = write(name, Path(folder) / name)
        w = Model.open(path, GROUPED, prepare=lambda c: with_head(c, GROUPED, None)).weights()
        assert w.spec.ternary_head == (name == TERNARY_HEAD)
        return replace(w, layers=list(w.layers))


def best_and_nll(w: ModelWeights, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Likeliest token and NLL of every recorded token: [SEQUENCES, LENGTH - 1]."""
    best, losses = [], []
    for ids in recorded(name)["ids"].astype(np.int64):
        values = GoldenModel(w, WIDE).prefill(ids, all_logits=True).logits[:-1]
        best.append(values.argmax(-1))
        losses.append(nll(values, ids[1:]))
    return np.stack(best), np.stack(losses)


def distance(w: ModelWeights, name: str) -> tuple[float, float]:
    """Agreement of the likeliest token, and how far the mean NLL is from the reference's, relative."""
    v = recorded(name)
    best, losses = best_and_nll(w, name)
    return float((best == v["best"]).mean()), float(losses.mean() / v["nll"].mean() - 1)


def test_vectors_belong_to_the_models_and_are_small() -> None:
    for name in MODELS:
        v = recorded(name)
        assert str(v["fingerprint"]) == fingerprint(name), f"{name} changed: run make oracle"
        assert v["ids"].shape == (SEQUENCES, LENGTH) and len(np.unique(v["best"])) > 20
        assert v["nll"].mean() < 0.75 * np.log(256)
    assert sum(vectors(name).stat().st_size for name in MODELS) < 2_400_000


@pytest.mark.parametrize("name", MODELS)
def test_matrices_are_those_of_the_reference(name: str) -> None:
    """Float weights times float inputs give the recorded outputs: signs, scales and order of rows."""
    v, w = recorded(name), weights(name)
    assert w.spec.group_scales and w.spec.qk_norm
    for i, layer in enumerate(w.layers):
        for part in PROJECTIONS:
            x, want = v[f"{i}.{part}_proj.x"].astype(np.float64), v[f"{i}.{part}_proj.y"]
            unit, m = getattr(layer, f"{part}_scale"), getattr(layer, part)
            # A scale is rounded to a whole number of units; float32 sums in another order.
            bound = 0.5 * unit * (np.abs(x) @ (m != 0).T) + 2e-6 * (np.abs(x) @ np.abs(m).T) * unit
            assert (np.abs(x @ m.T * unit - want) <= bound).all(), f"{i}.{part}"


@pytest.mark.parametrize("name", MODELS)
def test_linear_layers_of_quantised_activations_are_near_the_reference(name: str) -> None:
    """Of the recorded inputs; beside it int8 with one scale a token."""
    v, w, errors = recorded(name), weights(name), {"groups": [], "token": []}
    for i, layer in enumerate(w.layers):
        for part in PROJECTIONS:
            x, want = v[f"{i}.{part}_proj.x"], v[f"{i}.{part}_proj.y"]
            stats = elementwise.statistics(x)
            for how, list_ in errors.items():
                q, e, scale = elementwise.quantise_groups(stats, norm=False)
                if how == "token":
                    q, scale = elementwise.quantise(stats, norm=False)
                    e = np.zeros_like(e)
                acc = ternary.grouped_linear(getattr(layer, part), q, e)
                y = elementwise.scale(acc, getattr(layer, f"{part}_scale") / (1 << ternary.EXPONENT), scale)
                list_.append(np.sqrt(((y - want) ** 2).mean(-1) / (want**2).mean(-1)))
    groups, token = (float(np.mean(errors[how])) for how in ("groups", "token"))
    print(f"{name}: error of linear outputs {groups:.3%}, with one scale a token {token:.3%}")
    outliers = name == "bonsai-outliers"  # whose groups with an outlier have its exponent
    assert groups < (0.025 if outliers else 0.012) and groups < (0.75 if outliers else 1) * token


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_agree_with_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agreement, change = distance(weights(name), name)
    plain = elementwise.exponents
    monkeypatch.setattr(elementwise, "exponents", lambda stats: np.zeros_like(plain(stats)))
    token_agreement, token_change = distance(weights(name), name)
    print(
        f"{name}: same next token {agreement:.2%}, NLL {recorded(name)['nll'].mean():.3f} {change:+.3%}; with int8 activations of one "
        f"scale a token {token_agreement:.2%}, {token_change:+.3%}"
    )
    assert abs(change) < NLL_BOUND and agreement >= AGREEMENT_BOUND


def test_damaged_scales_do_not_pass() -> None:
    """Groups whose scales are exchanged, or all as the largest: further from the reference than the bounds."""
    w = weights("bonsai-64")
    layer = w.layers[-1]
    rows = layer.down.reshape(len(layer.down), -1, 64)
    flat = np.sign(layer.down) * np.int16(np.median(np.abs(layer.down[layer.down != 0])))
    for damaged in (rows[:, ::-1].reshape(layer.down.shape), flat):
        agreement, change = distance(replace(w, layers=[*w.layers[:-1], replace(layer, down=damaged)]), "bonsai-64")
        assert abs(change) > NLL_BOUND or agreement < AGREEMENT_BOUND


def test_a_damaged_ternary_head_does_not_pass() -> None:
    """Every row's scales of groups exchanged, or all as the middle one."""
    w = weights(TERNARY_HEAD)
    assert w.screen is not None
    rows = w.screen.planes[:, 0]
    sizes = np.abs(rows).reshape(len(rows), -1, 64).max(axis=-1)
    exchanged = np.sign(rows) * np.repeat(sizes[:, ::-1], 64, axis=1)
    flat = np.sign(rows) * np.int16(np.median(sizes))
    for damaged in (exchanged, flat):
        planes = damaged.astype(np.int16)[:, None]
        agreement, change = distance(replace(w, screen=replace(w.screen, planes=planes)), TERNARY_HEAD)
        assert abs(change) > NLL_BOUND or agreement < AGREEMENT_BOUND
