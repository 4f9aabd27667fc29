"""The screened head: ternary copies, exact choice, logits of the full head, bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tellme.golden import head, layout, screen
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.model import GoldenModel, ModelError, PassError
from tests.models import load_demo, random_weights, small_spec


def _head(rows: int, features: int, seed: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return head.quantise_rows(rng.normal(size=(rows, features)) * rng.uniform(0.01, 3, (rows, 1)))


@pytest.mark.parametrize("features", [32, 100, 2560])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_plane_is_the_nearest_ternary_row(features: int, weighted: bool) -> None:
    """Against every threshold, tried one by one."""
    rows, scales = _head(20, features, 1)
    rows[3], rows[4], rows[5, 1:] = 0, 127, 0
    importance = np.random.default_rng(9).uniform(0, 10, features) ** 2 if weighted else np.ones(features)
    made = screen.quantise(rows, scales, 1, importance if weighted else None)
    assert set(np.unique(made.planes)) <= {-1, 0, 1} and made.planes.shape == (20, 1, features)
    w, factors = screen._nearest(rows, importance)
    assert (w == made.planes[:, 0]).all()

    def distance(row: NDArray[np.float64], ternary: NDArray[np.float64], scale: float) -> float:
        return float((importance * (row - scale * ternary) ** 2).sum())

    for row, own, factor in zip(rows.astype(float), w.astype(float), factors, strict=True):
        tried = [distance(row, row, 1.0) if not row.any() else np.inf]
        for t in range(1, 128):
            chosen = np.abs(row) >= t
            if chosen.any():
                tried.append(distance(row, np.sign(row) * chosen, np.average(np.abs(row), weights=importance * chosen)))
        assert distance(row, own, factor) <= min(tried) * (1 + 1e-6) + 1e-6


def test_features_that_matter_more_are_kept_closer() -> None:
    """A few features fifty times as large as the others: scores order rows far better if that is known."""
    rng = np.random.default_rng(10)
    rows, scales = head.quantise_rows(rng.standard_t(3, size=(2000, 256)))
    gain = np.ones(256)
    gain[:4] = 50
    x = rng.normal(size=(200, 256)) * gain
    q = np.rint(x / np.abs(x).max(axis=1, keepdims=True) * 127).astype(np.int8)
    best = head.logits(q, np.ones(200, np.float32), rows, scales).argmax(axis=1)
    worst = [
        screen.ranks(screen.scores(q, screen.quantise(rows, scales, 1, importance)), best).max()
        for importance in (None, np.square(q, dtype=float).mean(axis=0))
    ]
    assert worst[1] < 100 < worst[0]


def test_a_second_plane_leaves_less() -> None:
    rows, scales = _head(200, 256, 2)
    exact = rows * scales[:, None].astype(float)
    left = []
    for planes in (1, 2):
        made = screen.quantise(rows, scales, planes)
        close = (made.planes * made.scales[..., None] * float(made.unit)).sum(axis=1)
        left.append(((exact - close) ** 2).sum() / (exact**2).sum())
    assert left[0] < 0.25 and left[1] < 0.3 * left[0]


def test_planes_and_rows_have_limits() -> None:
    rows, scales = _head(4, 32, 3)
    for planes in (0, 3):
        with pytest.raises(ValueError, match=f"1 or 2 ternary planes, not {planes}"):
            screen.quantise(rows, scales, planes)
    with pytest.raises(ValueError, match="at most 1,048,576 rows, not 1,048,577"):
        screen.quantise(np.zeros((screen.MAX_ROWS + 1, 1), np.int8), np.zeros(1, np.float32))


@pytest.mark.parametrize("planes", [1, 2])
def test_scores_are_exact_integers(planes: int) -> None:
    rng = np.random.default_rng(4)
    w = rng.integers(-1, 2, (50, planes, 2560)).astype(np.int8)
    w[0], w[1] = 1, -1
    m = rng.integers(0, 1 << 16, (50, planes)).astype(np.uint16)
    m[:2] = 65535
    q = rng.integers(-128, 128, (3, 2560)).astype(np.int8)
    q[0] = -128
    got = screen.scores(q, screen.Screen(w, m, np.float32(1)))
    for lane in range(3):
        for r in range(50):
            want = sum(int(m[r, p]) * int(w[r, p].astype(int) @ q[lane].astype(int)) for p in range(planes))
            assert got[lane, r] == want
    assert abs(got).max() < 1 << 38


@pytest.mark.parametrize("count", [16, 64, 144])
def test_candidates_are_the_largest_and_ties_go_to_the_lowest_rows(count: int) -> None:
    rng = np.random.default_rng(5)
    for spread in (1, 3, 100, 1 << 38):
        values = rng.integers(-spread, spread + 1, (4, 300))
        got = screen.select(values, count)
        for lane in range(4):
            ranked = sorted(range(300), key=lambda i: (-values[lane, i], i))  # noqa: B023 - used at once
            assert got[lane].tolist() == sorted(ranked[:count])
            tokens = np.full(1, ranked[count // 2])
            assert screen.ranks(values[lane : lane + 1], tokens)[0] == count // 2


def test_what_is_returned_is_what_the_full_head_gives() -> None:
    weights, _ = load_demo()
    rng = np.random.default_rng(6)
    q = rng.integers(-128, 128, (3, weights.spec.hidden)).astype(np.int8)
    scale = rng.uniform(0.01, 0.1, 3).astype(np.float32)
    rows, row_scales = weights.head_rows
    full = head.logits(q, scale, rows, row_scales)
    for planes in (1, 2):
        ternary = screen.quantise(rows, row_scales, planes)
        r = screen.screened(q, scale, ternary, rows, row_scales, 64)
        values = screen.scores(q, ternary)
        assert (r.indices == screen.select(values, 64)).all()
        assert (r.logits.view(np.uint32) == np.take_along_axis(full, r.indices, 1).view(np.uint32)).all()
        for lane in range(3):
            assert r.best[lane] == r.indices[lane][r.logits[lane].argmax()]
            # The bound: the N-th score as a logit, and not above it but for rounding.
            last = np.sort(values[lane])[-64] * float(ternary.unit) * float(scale[lane])
            step = (1 << screen.BOUND_SHIFT) * float(ternary.unit) * float(scale[lane])
            assert -step <= r.bound[lane] - last <= 1e-5 * abs(last)


def test_the_best_of_equal_logits_is_the_first_row() -> None:
    q = np.ones((1, 32), np.int8)
    rows = np.zeros((64, 32), np.int8)
    rows[[40, 9, 50], :4] = 100
    scales = np.ones(64, np.float32)
    r = screen.screened(q, np.ones(1, np.float32), screen.quantise(rows, scales), rows, scales, 16)
    assert r.best.tolist() == [9]


@pytest.mark.parametrize("config", [TINY, KV260], ids=lambda c: c.name)
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("rows", [1, 8, 127, 128, 257, 513])
def test_the_layout_round_trips(config: AcceleratorConfig, planes: int, rows: int) -> None:
    rng = np.random.default_rng(7)
    w = rng.integers(-1, 2, (rows, planes, 160)).astype(np.int8)
    m = rng.integers(0, 1 << 16, (rows, planes)).astype(np.uint16)
    beats = layout.pack_screen(w, m, config)
    assert len(beats) == layout.screen_beats(rows, planes, 160, config)
    back, scales = layout.unpack_screen(beats, rows, planes, 160, config)
    assert (back == w).all() and (scales == m).all()


@pytest.mark.parametrize("config", [TINY, KV260], ids=lambda c: c.name)
@pytest.mark.parametrize("features", [32, 160, 2560])
def test_rows_alone_have_their_scale_and_number_behind_them(config: AcceleratorConfig, features: int) -> None:
    rows, scales = _head(5, features, 8)
    n = layout.row_beats(features, config)
    beats = layout.pack_rows(rows, scales, 1000, config).reshape(5, n, -1)
    for i in range(5):
        data = beats[i].reshape(-1)
        assert (data[:features].view(np.int8) == rows[i]).all() and not data[
            features : (n - 1) * config.beat_bytes
        ].any()
        assert beats[i, -1, :4].view("<f4")[0] == scales[i] and beats[i, -1, 4:8].view("<u4")[0] == 1000 + i


@pytest.mark.parametrize("config", [TINY, KV260], ids=lambda c: c.name)
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 40])
def test_candidates_are_pairs_of_logit_and_row_in_any_order(config: AcceleratorConfig, count: int) -> None:
    rng = np.random.default_rng(count)
    rows = rng.choice(1 << 32, count, replace=False).astype("<u4")
    logits = rng.normal(size=count).astype("<f4")
    width = config.beat_bytes
    beats = rng.integers(0, 256, (-(-8 * count // width) + 1, width)).astype(
        np.uint8
    )  # what lies behind them is not read
    beats.reshape(-1)[: 8 * count].view("<u4")[::2] = logits.view("<u4")
    beats.reshape(-1)[: 8 * count].view("<u4")[1::2] = rows
    got, values = layout.unpack_candidates(beats, count)
    assert got.tolist() == sorted(rows.tolist()) and got.dtype == np.int64
    assert dict(zip(got.tolist(), values.tolist(), strict=True)) == dict(
        zip(rows.tolist(), logits.tolist(), strict=True)
    )


def test_a_model_runs_either_head() -> None:
    weights = random_weights(small_spec(vocab=300), 1)
    both = GoldenModel(replace(weights, screen=screen.quantise(*weights.head_rows)), TINY)
    full = both.prefill([5, 6, 7], all_logits=True)
    both.reset()
    some = both.prefill([5, 6, 7], all_logits=True, candidates=48, lanes=2)
    assert some.candidates is not None and some.bound is not None and some.candidates.shape == (3, 48)
    assert (some.logits == np.take_along_axis(full.logits, some.candidates, 1)).all()
    assert (some.best[full.logits.argmax(1) == some.best]).size  # most of the time it is the same
    assert full.candidates is None and full.bound is None


@pytest.mark.parametrize(
    ("count", "rows", "entries", "can"),
    [
        (screen.MULTIPLE, 4096, 8192, True), (0, 4096, 8192, False), (screen.MULTIPLE // 2, 4096, 8192, False), (screen.MULTIPLE + 1, 4096, 8192, False),
        (screen.MAX_CANDIDATES, 4096, 8192, True), (screen.MAX_CANDIDATES + screen.MULTIPLE, 8192, 8192, False),
        (512, 1024, 1024, True), (512, 1023, 1024, False), (512, 1024, 1023, False),
    ],
)  # fmt: skip
def test_candidates_have_limits(count: int, rows: int, entries: int, can: bool) -> None:
    assert (screen.problem(count, 2, rows, entries) is None) == can


def test_what_cannot_be_screened_is_refused() -> None:
    weights = random_weights(small_spec(vocab=300), 1)
    with pytest.raises(PassError, match="no ternary head"):
        GoldenModel(weights, TINY).prefill([1], candidates=16)
    ternary = screen.quantise(*weights.head_rows)
    model = GoldenModel(replace(weights, screen=ternary), TINY)
    for count, words in (
        (8, "multiple of 16 from 16 to 1024, not 8"),
        (40, "not 40"),
        (1040, "not 1040"),
        (160, "160 candidates are more than half of a vocabulary of 300"),
    ):
        with pytest.raises(PassError, match=words):
            model.prefill([1], candidates=count)
    assert screen.problem(256, 3, 1000, 512) == (
        "256 candidates for each of 3 lanes are more than the 512 that the accelerator holds"
    )
    with pytest.raises(ModelError, match="ternary head must have shape"):
        replace(weights, screen=screen.Screen(ternary.planes[:-1], ternary.scales, ternary.unit))


@pytest.mark.parametrize("spread", [0.0, 0.5], ids=["one scale", "a scale a row"])
def test_a_head_that_is_ternary_is_its_own_screen(spread: float) -> None:
    """Its plane is the head itself: with the fewest candidates the best is among them, of equal ones the first, and no logit
    is above its score by more than rounding."""
    rng = np.random.default_rng(12)
    ternary = rng.integers(-1, 2, (600, 96)).astype(np.int8)
    ternary[7] = ternary[3]  # equal logits
    scale = (0.03 * np.exp(spread * rng.normal(size=(600, 1)))).astype(np.float32)
    scale[7] = scale[3] = scale.max()
    rows, scales = head.quantise_rows(ternary * scale)
    made = screen.quantise(rows, scales)
    assert (made.planes[:, 0] == ternary).all() and (rows == 127 * ternary).all()
    if not spread:
        assert (made.scales == (1 << screen.SCALE_BITS) - 1).all()
    q = rng.integers(-127, 128, (200, 96)).astype(np.int8)
    q[0] = 127 * ternary[3]
    act = rng.uniform(0.01, 1, 200).astype(np.float32)
    logits = head.logits(q, act, rows, scales)
    found = screen.screened(q, act, made, rows, scales, screen.MULTIPLE)
    assert (found.best == head.best(logits)).all() and found.best[0] == 3
    as_logits = screen.scores(q, made) * (act.astype(np.float64) * float(made.unit))[:, None]
    step = float(made.unit) * np.abs(screen.scores(q, replace(made, scales=np.ones_like(made.scales)))).max()
    assert np.abs(logits - as_logits).max() <= (0.51 * step + 1e-5 * np.abs(logits).max()) * float(act.max())


# ---- a head that is ternary ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one scale", "bfloat16", "float32"])
def test_scores_of_a_ternary_head_are_its_logits(kind: str) -> None:
    """Against float64 of what a checkpoint says: but for rounding to float32, where scales are such that nothing is lost; of others to within 2^-17 of the largest."""
    rng = np.random.default_rng(20)
    w = rng.integers(-1, 2, (300, 96)).astype(np.int8)
    w[5] = 0
    scales = rng.uniform(0.5, 1.9, 300).astype(np.float32)
    if kind == "one scale":
        scales[:] = np.float32(0.1)
    elif kind == "bfloat16":
        scales = (scales.view(np.uint32) & 0xFFFF0000).view(np.float32)
    made = screen.exact_rows(w, scales)
    kept = made.scales[:, 0] * np.float64(made.unit)
    assert made.exact and kept[5] == 0
    alive = w.any(axis=1)
    assert np.abs(kept - scales)[alive].max() <= (0 if kind != "float32" else scales.max() * 2.0**-17)
    q, act = rng.integers(-127, 128, (4, 96)).astype(np.int8), rng.uniform(0.01, 1, 4).astype(np.float32)
    r = screen.exact(q, act, made)
    want = (q.astype(np.float64) @ w.T) * kept * act[:, None].astype(np.float64)
    assert r.every is not None and np.abs(r.every - want).max() <= 3e-7 * np.abs(want).max()
    assert (r.best == r.every.argmax(axis=1)).all() and r.indices.shape == (4, screen.MULTIPLE)


@pytest.mark.parametrize(("size", "features"), [(64, 192), (128, 256), (64, 96)])
def test_scales_of_groups_are_in_the_integers_of_a_ternary_head(size: int, features: int) -> None:
    rng = np.random.default_rng(21)
    w = rng.integers(-1, 2, (200, features)).astype(np.int8)
    w[7, :size] = 0
    groups = -(-features // size)
    scales = rng.uniform(0.25, 1, (200, groups)).astype(np.float16).astype(np.float32)
    made = screen.exact_groups(w, scales, size)
    each = np.repeat(scales, size, axis=1)[:, :features]
    assert made.planes.dtype == np.int16 and (made.planes[:, 0] * np.float64(made.unit) == w * each).all()
    q, act = rng.integers(-127, 128, (3, features)).astype(np.int8), rng.uniform(0.01, 1, 3).astype(np.float32)
    r = screen.exact(q, act, made, 48)
    want = (q.astype(np.float64) @ (w * each).T) * act[:, None].astype(np.float64)
    assert r.every is not None and np.abs(r.every - want).max() <= 3e-7 * np.abs(want).max()
    for lane in range(3):
        order = np.argsort(-want[lane], kind="stable")
        assert sorted(order[:48]) == r.indices[lane].tolist() and r.best[lane] == order[0]
        assert (r.logits[lane] == r.every[lane, r.indices[lane]]).all() and r.bound[lane] == r.logits[lane].min()
    # One scale, of whatever bits, is kept as it is.
    one = screen.exact_groups(w, np.full_like(scales, 0.1), size)
    assert one.unit == np.float32(0.1) and (one.planes[:, 0] == w).all()


def test_a_ternary_head_is_laid_out_in_the_format_of_the_matrices() -> None:
    rng = np.random.default_rng(22)
    grouped = replace(TINY, weight_format="grouped")
    w = rng.integers(-1, 2, (257, 160)).astype(np.int8)
    made = screen.exact_groups(w, rng.uniform(0.25, 1, (257, 3)).astype(np.float16).astype(np.float32), 64)
    beats = layout.pack_screen(made.planes, made.scales, grouped)
    assert len(beats) == layout.screen_beats(257, 1, 160, grouped)
    back, scales = layout.unpack_screen(beats, 257, 1, 160, grouped, exact=True)
    assert (back == made.planes).all() and back.dtype == np.int16 and (scales == 1).all()


def test_what_a_ternary_head_must_be() -> None:
    weights = random_weights(small_spec(vocab=300, ternary_head=True), 1)
    assert weights.screen is not None and weights.head is None
    full = GoldenModel(weights, TINY).prefill([5, 6, 7], all_logits=True)
    some = GoldenModel(weights, TINY).prefill([5, 6, 7], all_logits=True, candidates=48, lanes=2)
    assert some.candidates is not None and full.candidates is None
    assert (some.logits == np.take_along_axis(full.logits, some.candidates, 1)).all() and (some.best == full.best).all()
    for spec, ternary, words in (
        (weights.spec, replace(weights.screen, exact=False), "must be given as the model's screen"),
        (weights.spec, None, "must be given as the model's screen"),
        (replace(weights.spec, ternary_head=False), weights.screen, "must be given as the model's screen"),
    ):
        with pytest.raises(ModelError, match=words):
            replace(weights, spec=spec, screen=ternary)
    with pytest.raises(ModelError, match="at least 32 rows, not 31"):
        small_spec(vocab=31, ternary_head=True)
    with pytest.raises(ModelError, match="built without ternary_head; convert the checkpoint with --head full"):
        GoldenModel(weights, replace(TINY, ternary_head=False))
    with pytest.raises(ModelError, match="the ternary head is int8, the format 'grouped' has int16"):
        GoldenModel(weights, replace(TINY, weight_format="grouped"))
