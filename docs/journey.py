"""The numbers of docs/token.md: one token of the demo model followed through the golden model, as the accelerator computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tellme.golden import fp, layout
from tellme.golden.attention import SCORE_FRAC, attend
from tellme.golden.config import KV260
from tellme.golden.formats import TERNARY
from tellme.golden.model import GoldenModel
from tellme.golden.spec import STEPS
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.image.model import demo_folder
from tellme.host.text.tokenizer import Tokenizer

PROMPT = "One day, a small"
ROW = 0
"""Row of layer 0's QKV matrix that is followed: dimension 0 of query head 0."""


def _few(values: Any, n: int = 4) -> str:
    """The first values of an array."""
    return ", ".join(f"{v:.5g}" if isinstance(v, np.floating) else str(v) for v in np.asarray(values).reshape(-1)[:n])


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def journey() -> str:
    """A table: step, what the hardware holds, the numbers."""
    checkpoint = read_checkpoint(demo_folder())
    weights = checkpoint.weights
    s = weights.spec
    tokenizer = Tokenizer(checkpoint.tokenizer, s.vocab)
    ids = tokenizer.encode(PROMPT)
    n, lane = len(ids), len(ids) - 1
    model = GoldenModel(weights, KV260)
    result = model.run_pass(ids, range(n), [0] * n, (lane, 1), taps=True)
    taps: dict[str, Any] = result.taps
    rows: list[tuple[str, str, str]] = []

    def step(where: str, what: str, numbers: str) -> None:
        rows.append((where, what, numbers))

    step("`host/`", f'tokens of "{PROMPT}"', ", ".join(map(str, ids)))
    step("`host/`", f"lanes: 0 to {lane}, positions the same, slot 0; we follow lane {lane}", f"token {ids[lane]}")
    x = model.embed([ids[lane]])[0]
    step("`host/`", "its embedding row, as the checkpoint has it", f"{_few(x)}, ...")

    q, act = taps["0.qkv.q"][lane], taps["0.qkv.scale"][lane]
    u = fp.mul(x, weights.layers[0].input_norm)
    step("statistics", "largest magnitude of the features times the norm's gain", f"{np.abs(u).max():.5g}")
    step("quantiser", "int8 activations, and their scale", f"{_few(q, 6)}, ...; {act:.5g}")

    step_qkv = STEPS["qkv"]
    matrix = layout.join_rows(step_qkv, [weights.layers[0].matrix(m)[0] for m in step_qkv.matrices], s.head_dim)
    first = TERNARY.pack(matrix[ROW, :5])
    step(
        "memory", f"first byte of row {ROW} of the QKV matrix, and its five weights",
        f"{int(first[0])} = {', '.join(f'{w:+d}' if w else '0' for w in matrix[ROW, :5])}",
    )  # fmt: skip
    g = KV260.group_size
    group, w = q[:g].astype(int), matrix[ROW, :g].astype(int)
    index = int(((w + 1) * 3 ** np.arange(g)).sum())
    step(
        "table", f"entry {index} of the first group's {3**g} sums (the table is filled from {g} activations)",
        f"{' '.join(f'{a:+d} x {b:+d}' for a, b in zip(w, group, strict=True))} = {int((w * group).sum())}",
    )  # fmt: skip
    acc = int(taps["0.qkv.acc"][lane, ROW])
    step("tree, accumulator", f"sum of all {-(-s.hidden // g)} groups", str(acc))
    y = taps["0.qkv.y"][lane, 0]
    ws = np.float32(weights.layers[0].q_scale)
    step(
        "epilogue",
        f"times weight scale {ws:.5g} and activation scale",
        f"{fp.mul(fp.from_int(acc), fp.mul(ws, act)):.5g}",
    )
    step("epilogue", f"RoPE at position {lane}: the pair of dimensions 0 and {s.head_dim // 2}", f"{_few(y, 2)}")
    step(
        "quantiser", "query head 0: int8 and scale (log2 e / sqrt D in it)",
        f"{_few(taps['0.query'][lane, 0], 6)}, ...; {taps['0.query_scale'][lane, 0]:.5g}",
    )  # fmt: skip

    k, k_scales, v, v_scales = model.cache(0, 0)  # what this pass wrote: its own n positions
    attention = attend(taps["0.query"], taps["0.query_scale"], k, k_scales, v, v_scales, 0)
    query = lane * (s.heads // s.kv_heads)
    scores, weight = attention.scores[0, query, :n], attention.weights[0, query, :n]
    step(
        "score pass",
        "log2 of the weights, Q14.10, of keys 0 to its own",
        ", ".join(f"{v / 2**SCORE_FRAC:.3f}" for v in scores),
    )
    step("weight pass", "2^(score - largest) x V scale, 16 bits", _few(weight, n))
    step("weighted sum", "features 0 to 3 of head 0", _few(attention.out[0, query]))
    step("epilogue", "after the output projection: residual stream", _few(fp.add(x, _o(taps, weights, lane))))
    gated = taps["0.gate.u"][lane]
    step(
        "epilogue",
        f"gate x up, times the next gain: {np.count_nonzero(gated)} of {s.ffn} are not 0",
        _few(gated[gated != 0]),
    )
    step("epilogue", "after the down projection: input of layer 1", _few(taps["0.x"][lane]))
    step("", f"... layers 1 to {s.layers - 1} alike ...", _few(taps[f"{s.layers - 1}.x"][lane]))
    step(
        "quantiser",
        "the head's activations, and their scale",
        f"{_few(taps['head.q'][0], 6)}, ...; {taps['head.scale'][0]:.5g}",
    )
    logits = result.logits[0]
    best = np.argsort(-logits, kind="stable")[:3]
    step(
        "dot engine", "the three largest of the logits",
        ", ".join(f"{tokenizer.decode([int(i)])!r} ({i}) {logits[i]:.3f}" for i in best),
    )  # fmt: skip
    index = int(result.best[0])
    step("registers", "`best_index`, `best_value` of the head lane", f"{index}, 0x{logits[index].view(np.uint32):08X}")
    step("`host/`", "the text goes on with", f"{tokenizer.decode([index])!r}")
    return _table(("where", "what", "numbers"), rows)


def _o(taps: dict[str, Any], weights: Any, lane: int) -> Any:
    """Output projection of layer 0, scaled, as the epilogue adds it."""
    scale = fp.mul(np.float32(weights.layers[0].o_scale), taps["0.o.scale"][lane])
    return fp.mul(fp.from_int(taps["0.o.acc"][lane]), scale)
