"""The ternary copy of a model's head: how many planes it needs, and its margin, from what a text makes of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellme.golden import elementwise, screen, ternary
from tellme.golden.arith import ceil_div
from tellme.golden.config import AcceleratorConfig
from tellme.golden.model import PREFILL_LANES, GoldenModel, ModelWeights
from tellme.golden.screen import Screen
from tellme.golden.spec import ModelSpec
from tellme.host.checkpoints.balance import unbalanced
from tellme.host.checkpoints.checkpoint import Checkpoint, golden_errors, read_shape
from tellme.host.checkpoints.common import head_scales, undamaged
from tellme.host.errors import UserError
from tellme.host.text.tokenizer import Tokenizer

LEAST = 64
"""Candidates that the true arg-max must be among for one plane to do, and that margins are measured for."""
USUAL = 256
"""Candidates of which it is looked at how often they are in doubt."""
DOUBTFUL = 0.01
"""Share of positions at which they may be, for one plane to do."""
QUIETEST = 1e-3
"""Least importance of a feature, in units of the mean: a text may not use it."""
SAFETY = 1.25
"""Margin, in units of the largest that a text shows to be needed."""
POSITIONS = 256
"""Of a text that are looked at."""
_ROWS = 1 << 12
"""Rows of a head that are looked at at a time."""

TEXT = """Once upon a time there was a little lighthouse on a cliff by the sea. Every evening the keeper climbed its 112 steps, lit the
lamp and wrote the weather into a thick book: "Wind from the north-west, rain until noon, two ships." She liked the quiet, but in
winter she missed her brother, who lived in the city and worked as an engineer.

The Rhine rises in the Swiss Alps and flows through Lake Constance, past Basel, Strasbourg, Cologne and Rotterdam, into the North
Sea. It is about 1,230 kilometres long. What is the capital of France? The capital of France is Paris, which had 2.1 million
inhabitants in 2020.

def mean(values):
    total = 0
    for v in values:
        total += v
    return total / len(values)

To make bread you need 500 g of flour, 350 ml of water, 10 g of salt and some yeast. First mix everything in a bowl; then let the
dough rest for an hour. Why does it rise? Because the yeast turns sugar into carbon dioxide. Heute ist ein schöner Tag, und die
Kinder spielen im Garten. If 3x + 5 = 20, then 3x = 15 and x = 5.
"""
"""What a model is calibrated with if no other text is given."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a text says of a ternary head.

    Attributes
    ----------
    positions : looked at. worst_rank : of the true arg-max among the scores, from 0.
    needed : most by which a logit of a row that is not among the LEAST best is above its own score.
    doubtful : share of positions whose best logit is above the bound of USUAL candidates by less than SAFETY * needed.
    """

    positions: int
    worst_rank: int
    needed: float
    doubtful: float


def calibrate(
    q: NDArray[np.int8], act_scale: NDArray[np.float32], logits: NDArray[np.float32], ternary: Screen
) -> Calibration:
    """Measures a ternary head by activations [positions, features], their scales and their logits [positions, rows]."""
    rows = logits.shape[1]
    count, usual = min(LEAST, rows // 2), min(USUAL, rows // 2)
    best = logits.argmax(axis=-1)
    worst, needed = 0, 0.0
    margins = np.empty(len(q))
    for i in range(0, len(q), PREFILL_LANES):
        part = slice(i, i + PREFILL_LANES)
        values = screen.scores(q[part], ternary)
        chosen = screen.select(values, count)
        bound = screen.bounds(values, screen.select(values, usual), act_scale[part], ternary)
        excess = logits[part] - values * (act_scale[part].astype(np.float64) * float(ternary.unit))[:, None]
        np.put_along_axis(excess, chosen, -np.inf, axis=-1)
        worst = max(worst, int(screen.ranks(values, best[part]).max()))
        needed = max(needed, float(excess.max()))
        margins[part] = logits[part].max(axis=-1) - bound
    return Calibration(
        positions=len(q),
        worst_rank=worst,
        needed=needed,
        doubtful=float((margins < SAFETY * needed).mean()),
    )


def _activations(
    checkpoint: Checkpoint, text: str, config: AcceleratorConfig
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """What a text makes of a model: inputs of the head, their scales, logits."""
    weights = checkpoint.weights
    ids = Tokenizer(checkpoint.tokenizer, weights.spec.vocab).encode(text)[: min(POSITIONS, weights.spec.max_context)]
    spec = replace(weights.spec, max_context=len(ids))
    result = GoldenModel(replace(weights, spec=spec), config).prefill(ids, all_logits=True)
    assert result.head_inputs is not None and result.head_scale is not None
    return result.head_inputs, result.head_scale, result.logits


def with_screen(
    checkpoint: Checkpoint, config: AcceleratorConfig, *, planes: int | None = None, text: str = TEXT
) -> tuple[Checkpoint, Calibration | None]:
    """A checkpoint with a ternary copy of its head, and what the text said of it.

    Parameters
    ----------
    config : an accelerator that holds the model. planes : 1 or 2, and no calibration; None: as many as the text asks for, made with
        what it says of the importance of each feature.

    Raises
    ------
    UserError : there is no such number of planes; or the head has too few rows, or too many.
    """
    weights = checkpoint.weights
    if planes is not None and not 1 <= planes <= screen.MAX_PLANES:
        raise UserError(f"--planes must be 1 or {screen.MAX_PLANES}, not {planes}")
    if weights.spec.vocab < 2 * screen.MULTIPLE:
        raise UserError(
            f"{checkpoint.name}: a vocabulary of {weights.spec.vocab} is too small for a screened head; convert it without"
        )
    with golden_errors(checkpoint.name):
        if planes is not None:
            return replace(checkpoint, weights=_screened(weights, planes, None)), None
        q, act_scale, logits = _activations(checkpoint, text, config)
        power = np.square(q * act_scale[:, None], dtype=np.float64).mean(axis=0)
        importance = np.maximum(power, QUIETEST * power.mean())
        for count in range(1, screen.MAX_PLANES + 1):
            made = _screened(weights, count, importance)
            assert made.screen is not None
            found = calibrate(q, act_scale, logits, made.screen)
            if found.worst_rank < LEAST and found.doubtful <= DOUBTFUL:
                break
        assert made.screen is not None
        ternary = replace(made.screen, margin=np.float32(SAFETY * found.needed))
        return replace(checkpoint, weights=replace(made, screen=ternary)), found


def takes_ternary_head(spec: ModelSpec, config: AcceleratorConfig) -> bool:
    """Whether an accelerator keeps a head of such a size as it is, if it is ternary."""
    return config.ternary_head and 2 * screen.MULTIPLE <= spec.vocab <= screen.MAX_ROWS


def shape_for(path: Path, config: AcceleratorConfig | None) -> ModelSpec:
    """The shape that `tellme convert` would give an image of a checkpoint: a folder, its config.json, or a GGUF file. Of the weights nothing is read but the
    first layer of a GGUF file, and, where the accelerator keeps a ternary head as it is, the head up to its first row that is not ternary; a folder
    without weights has no ternary head.

    Raises
    ------
    UserError : see `host.checkpoints.checkpoint.read_shape`.
    """
    spec, is_ternary = read_shape(path)
    if config is None or is_ternary is None or not takes_ternary_head(spec, config):
        return spec
    return replace(spec, ternary_head=is_ternary(config.packing.group or spec.hidden))


def with_ternary_head(checkpoint: Checkpoint, config: AcceleratorConfig) -> Checkpoint | None:
    """A checkpoint whose head is ternary, with that head as it is; None if it is not, or not so that the accelerator can have it: in the format
    `grouped` with a scale for every 64 inputs or more, else with a scale a row."""
    rows, weights = checkpoint.head, checkpoint.weights
    if rows is None or not takes_ternary_head(weights.spec, config):
        return None
    n, k, size = weights.spec.vocab, weights.spec.hidden, config.packing.group or weights.spec.hidden
    signs, scales = np.empty((n, k), np.int8), np.empty((n, ceil_div(k, size)), np.float32)
    for i in range(0, n, _ROWS):
        part = slice(i, i + _ROWS)
        values = elementwise.widen(rows[part])
        own = head_scales(values, size)
        if own is None:
            return None
        scales[part] = own
        signs[part] = np.sign(values)
    undamaged(f"{checkpoint.name}: head", ternary.damage(signs))
    made = screen.exact_groups(signs, scales, size) if config.packing.group else screen.exact_rows(signs, scales[:, 0])
    if checkpoint.moved is not None:  # nothing is gained by it where no row is rounded
        tied = weights.spec.tied
        weights = (
            unbalanced(weights, checkpoint.moved) if tied else replace(weights, norm=weights.norm / checkpoint.moved)
        )
    spec = replace(weights.spec, ternary_head=True)
    weights = replace(weights, spec=spec, head=None, head_scales=None, screen=made)
    return replace(checkpoint, weights=weights, moved=None)


def with_head(checkpoint: Checkpoint, config: AcceleratorConfig, mode: str | None) -> Checkpoint:
    """A checkpoint with what `--head` asks of its image: its head as it is, if it is ternary; else a ternary copy, unless every row is scored (None, 'full').

    Raises
    ------
    UserError : see `with_screen`.
    """
    made = with_ternary_head(checkpoint, config)
    if made is not None:
        return made
    return checkpoint if mode in (None, "full") else with_screen(checkpoint, config)[0]


def _screened(weights: ModelWeights, planes: int, importance: NDArray[np.float64] | None) -> ModelWeights:
    try:
        return replace(weights, screen=screen.quantise(*weights.head_rows, planes, importance))
    except ValueError as e:
        raise UserError(str(e)) from e
