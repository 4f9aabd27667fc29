"""Random ternary models of any shape: for tests and for measuring shapes without their checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden import head, screen, ternary
from tellme.golden.arith import ceil_div
from tellme.golden.model import LayerWeights, ModelWeights
from tellme.golden.spec import ModelSpec
from tellme.host.checkpoints.common import LazyLayers

_HEAD_CHUNK = 4096
"""Rows of the embedding that are drawn at a time."""


def _gain(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    return rng.uniform(0.5, 1.5, n).astype(np.float32)


def _rows(rng: np.random.Generator, spec: ModelSpec, sigma: float) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    rows = np.empty((spec.vocab, spec.hidden), np.int8)
    scales = np.empty(spec.vocab, np.float32)
    for i in range(0, spec.vocab, _HEAD_CHUNK):
        part = slice(i, min(i + _HEAD_CHUNK, spec.vocab))
        values = rng.standard_normal((part.stop - i, spec.hidden), np.float32) * np.float32(sigma)
        rows[part], scales[part] = head.quantise_rows(values)
    return rows, scales


def _grouped(
    rng: np.random.Generator, weights: NDArray[np.int8], scale: float, inputs: int
) -> tuple[NDArray[np.int16], float]:
    """The weights with a scale about `scale` for every group, of float16 as files have them."""
    groups = ceil_div(inputs, ternary.GROUP)
    scales = (scale * rng.uniform(0.5, 1.5, (len(weights), groups))).astype(np.float16).astype(np.float32)
    integers, unit = ternary.group_integers(weights, scales, ternary.GROUP)
    return integers, float(unit)


def _ternary_head(rng: np.random.Generator, spec: ModelSpec, sigma: float) -> screen.Screen:
    """A ternary head: of `spec.group_scales` with a scale for every group, else with one for every row; of float16 as files have them."""
    weights = rng.integers(-1, 2, (spec.vocab, spec.hidden), np.int8)
    groups = ceil_div(spec.hidden, ternary.GROUP) if spec.group_scales else 1
    scales = (sigma * rng.uniform(0.5, 1.5, (spec.vocab, groups))).astype(np.float16).astype(np.float32)
    if spec.group_scales:
        return screen.exact_groups(weights, scales, ternary.GROUP)
    return screen.exact_rows(weights, scales[:, 0])


def random_weights(spec: ModelSpec, seed: int) -> ModelWeights:
    """A random model, scaled such that activations stay near 1.

    A layer depends on `seed` and its number alone, and is made when it is asked for: models of a shape with fewer
    layers begin with the same ones.
    """

    def layer(i: int) -> LayerWeights:
        rng = np.random.default_rng([seed, i])
        matrices: dict[str, Any] = {n: rng.integers(-1, 2, s, np.int8) for n, s in spec.matrices.items()}
        scales: dict[str, Any] = {
            f"{n}_scale": float(np.float32(rng.uniform(1, 2) / np.sqrt(s[1]))) for n, s in spec.matrices.items()
        }
        if spec.group_scales:
            for n, (_, inputs) in spec.matrices.items():
                matrices[n], scales[f"{n}_scale"] = _grouped(rng, matrices[n], scales[f"{n}_scale"], inputs)
        gains: dict[str, Any] = {n: _gain(rng, size) for n, size in spec.norms.items()}
        return LayerWeights(**matrices, **scales, **gains)

    rng = np.random.default_rng(seed)
    norm = _gain(rng, spec.hidden)
    embedding, scales_e = _rows(rng, spec, 1.0)
    rows, scales_h = (None, None) if spec.tied or spec.ternary_head else _rows(rng, spec, 0.2)
    return ModelWeights(
        spec=spec,
        layers=LazyLayers(spec, layer),
        norm=norm,
        embedding=embedding,
        embedding_scales=scales_e,
        head=rows,
        head_scales=scales_h,
        screen=_ternary_head(rng, spec, 0.2) if spec.ternary_head else None,
    )
