"""The whole model: near float64, independent of passes and configuration, with slots, refusals and every variant."""

import dataclasses
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tellme.golden.config import KV260, TINY
from tellme.golden.kv import CACHE_FORMATS, CacheFormat
from tellme.golden.model import GoldenModel, LayerWeights, ModelError, ModelSpec, ModelWeights, PassError, rope_tables
from tellme.golden.spec import RopeScaling, yarn_attention
from tests.models import load_demo, random_weights, small_spec
from tests.reference import Kept, Options, forward, rounded

SEED = 41


def tokens(n: int, vocab: int = 50, seed: int = SEED) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, n)


def all_logits(model: GoldenModel, ids: np.ndarray, lanes: int, slot: int = 0) -> np.ndarray:
    """Logits of every position, fed in passes of `lanes`."""
    parts = []
    for i in range(0, len(ids), lanes):
        n = len(ids[i : i + lanes])
        parts.append(model.run_pass(ids[i : i + lanes], range(i, i + n), [slot] * n).logits)
    return np.concatenate(parts)


VARIANTS = {
    "plain": {},
    "silu": dict(activation="silu"),
    "no sub-norms": dict(attn_sub_norm=False, ffn_sub_norm=False),
    "silu, one sub-norm": dict(activation="silu", attn_sub_norm=False),
    "MHA": dict(kv_heads=4),
    "one KV head": dict(kv_heads=1),
    "heads of 64": dict(head_dim=64),
    "heads of 96": dict(head_dim=96, heads=2),
    "heads of 128": dict(head_dim=128, heads=2, kv_heads=1),
    "untied": dict(tied=False),
    "theta 500000": dict(rope_theta=500000.0),
    "YaRN": dict(rope_scaling=RopeScaling(kind="yarn", factor=4.0, original_context=256, attention_factor=1.14)),
    "large epsilon": dict(norm_eps=0.3),
    "QK-norm": dict(qk_norm=True),
    "QK-norm, as Qwen3": dict(
        qk_norm=True, activation="silu", attn_sub_norm=False, ffn_sub_norm=False, hidden=64, heads=4, head_dim=64
    ),
    "QK-norm, large epsilon": dict(qk_norm=True, norm_eps=0.3, tied=False),
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_is_near_float64_and_independent_of_passes(changes: dict[str, object]) -> None:
    weights = random_weights(small_spec(**changes), SEED)
    ids = tokens(21)
    got = all_logits(GoldenModel(weights, TINY), ids, 4)
    assert got.tobytes() == all_logits(GoldenModel(weights, TINY), ids, 1).tobytes()
    # An int8 code near a rounding tie may fall to the other side, and every later position sees it: a small part of a
    # logit (weights of attention have 16 bits, 1.8e-5 of the largest: enough for that at every other position of some
    # models). Where there is none, the rounding of float32 is all that is left; a fault of the formulas would be at all.
    errors = []
    for seed in range(12):
        ids = tokens(4, seed=seed)
        got = all_logits(GoldenModel(weights, TINY), ids, 4)
        want = forward(weights, ids, Options(True, True, True, True, scores=True))
        errors.append(np.abs(got - want).max(-1) / np.abs(want).max(-1))
    assert np.quantile(errors, 0.25) < 1e-4 and np.max(errors) < 0.05


GROUPED = replace(TINY, weight_format="grouped")
BONSAI = dict(
    group_scales=True, qk_norm=True, activation="silu", attn_sub_norm=False, ffn_sub_norm=False, hidden=128, heads=4,
    head_dim=64, ffn=320, norm_eps=1e-6,
)  # fmt: skip
"""As Ternary Bonsai."""


@pytest.mark.parametrize("changes", [BONSAI, dict(group_scales=True), dict()], ids=["Bonsai", "BitNet", "one scale"])
def test_models_with_a_scale_for_every_group_are_near_float64(changes: dict[str, Any]) -> None:
    weights = random_weights(small_spec(**changes), SEED)
    ids = tokens(21)
    got = all_logits(GoldenModel(weights, GROUPED), ids, 4)
    assert got.tobytes() == all_logits(GoldenModel(weights, GROUPED), ids, 1).tobytes()
    assert got.tobytes() == all_logits(GoldenModel(weights, replace(KV260, weight_format="grouped")), ids, 8).tobytes()
    errors = []
    for seed in range(12):
        ids = tokens(4, seed=seed)
        got = all_logits(GoldenModel(weights, GROUPED), ids, 4)
        want = forward(weights, ids, Options(True, True, True, True, scores=True, groups=True))
        errors.append(np.abs(got - want).max(-1) / np.abs(want).max(-1))
    assert np.quantile(errors, 0.25) < 1e-4 and np.max(errors) < 0.05


def test_a_model_with_group_scales_needs_a_machine_for_them() -> None:
    weights = random_weights(small_spec(group_scales=True), SEED)
    with pytest.raises(
        ModelError, match="accelerator 'tiny' has one scale a matrix; build one with weight_format = 'grouped'"
    ):
        GoldenModel(weights, TINY)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 15, 16, 17, 64])
def test_prompts_do_not_depend_on_how_they_are_split(n: int) -> None:
    weights = random_weights(small_spec(), SEED)
    ids = tokens(n)
    one = all_logits(GoldenModel(weights, TINY), ids, 1)
    for config in (TINY, KV260):
        model = GoldenModel(weights, config)
        last = model.prefill(ids)
        assert last.logits.tobytes() == one[-1:].tobytes() and last.best == one[-1].argmax()
        assert model.filled() == n
        assert all_logits(GoldenModel(weights, config), ids, config.lanes).tobytes() == one.tobytes()


NARROW = pytest.mark.parametrize("cache", [CACHE_FORMATS["8-4"], CACHE_FORMATS["4"]], ids=lambda c: c.name)


@NARROW
def test_a_narrow_cache_does_not_depend_on_passes(cache: CacheFormat) -> None:
    """A pass's own keys and values are as narrow as those that it finds."""
    weights, ids = random_weights(small_spec(), SEED), tokens(41)
    little, large = replace(TINY, narrow_cache=True), replace(KV260, narrow_cache=True)
    one = all_logits(GoldenModel(weights, little, cache=cache), ids, 1)
    for config in (little, large):
        model = GoldenModel(weights, config, cache=cache)
        assert all_logits(model, ids, config.lanes).tobytes() == one.tobytes()
        k, _, v, _ = model.cache(0, 1)
        assert (np.abs(v).max(-1) == 7).all() and (np.abs(k).max(-1) == (7 if cache.k_narrow else 127)).all()
    assert all_logits(GoldenModel(weights, little), ids, 4).tobytes() != one.tobytes()


@NARROW
def test_a_narrow_cache_is_near_float64(cache: CacheFormat) -> None:
    """The same rounding, written in float64. A code of 4 bits on the other side of a tie is a seventh of the largest."""
    weights, config = random_weights(small_spec(), SEED), replace(TINY, narrow_cache=True)
    kept = Kept(key=lambda x: rounded(x, 7 if cache.k_narrow else 127), value=lambda x: rounded(x, 7))
    errors = []
    for seed in range(12):
        ids = tokens(4, seed=seed)
        got = all_logits(GoldenModel(weights, config, cache=cache), ids, 4)
        want = forward(weights, ids, Options(query=True, embedding=True, head=True, scores=True), kept=kept)
        errors.append(np.abs(got - want).max(-1) / np.abs(want).max(-1))
    assert np.quantile(errors, 0.4) < 1e-5 and np.sum(np.array(errors) > 0.05) <= 1 and np.max(errors) < 0.08


def test_an_accelerator_without_a_narrow_cache_refuses_it() -> None:
    weights, config = random_weights(small_spec(), SEED), replace(TINY, narrow_cache=False)
    with pytest.raises(ModelError, match="'tiny' is built without a cache below 8 bits"):
        GoldenModel(weights, config, cache=CACHE_FORMATS["4"])
    small_spec(max_context=512).check_fits(replace(config, narrow_cache=True), v_narrow=True)
    with pytest.raises(ModelError, match="max_context is 512, but accelerator 'tiny' holds at most 256"):
        small_spec(max_context=512).check_fits(config)


def test_wide_prefill_has_the_logits_of_single_positions() -> None:
    weights, ids = random_weights(small_spec(max_context=128, tied=False), SEED), tokens(100)
    one = all_logits(GoldenModel(weights, TINY), ids, 1)
    for lanes in (1, 7, 64, 100, 500):
        model = GoldenModel(weights, TINY, slots=2)
        result = model.prefill(ids, slot=1, all_logits=True, lanes=lanes)
        assert result.logits.tobytes() == one.tobytes() and (result.best == one.argmax(-1)).all()
        again = model.prefill(ids[30:90], slot=1, start=30, all_logits=True, lanes=lanes)
        assert again.logits.tobytes() == one[30:90].tobytes() and model.filled(1) == 100
        assert model.prefill(ids[40:41], slot=1, start=40).logits.tobytes() == one[40:41].tobytes()
    with pytest.raises(PassError, match="lane 0 has position 5, but slot 0 holds 0"):
        model.prefill(ids[:3], start=5)


def test_weights_are_read_once() -> None:
    """Layers may be made when they are asked for, from files; a pass asks for none."""
    weights = random_weights(small_spec(), SEED)
    asked: list[int] = []

    class Layers(list[LayerWeights]):
        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return super().__getitem__(index)

    model = GoldenModel(dataclasses.replace(weights, layers=Layers(weights.layers)), TINY)
    asked.clear()
    assert model.prefill(tokens(9)).logits.tobytes() == GoldenModel(weights, TINY).prefill(tokens(9)).logits.tobytes()
    assert not asked


def test_uneven_passes_agree() -> None:
    weights, ids = random_weights(small_spec(), SEED), tokens(20)
    model = GoldenModel(weights, KV260)
    parts, i = [], 0
    for n in (3, 1, 7, 1, 8):
        parts.append(model.run_pass(ids[i : i + n], range(i, i + n), [0] * n).logits)
        i += n
    assert np.concatenate(parts).tobytes() == all_logits(GoldenModel(weights, TINY), ids, 1).tobytes()


def test_results_do_not_depend_on_the_configuration() -> None:
    weights, ids = random_weights(small_spec(max_context=128), SEED), tokens(70)
    odd = dataclasses.replace(
        TINY, name="odd", lanes=8, key_tile=64, attention_lanes=1, group_size=4, block_rows=64, narrow_cache=False
    )
    want = all_logits(GoldenModel(weights, KV260), ids, 16)
    assert all_logits(GoldenModel(weights, odd), ids, 8).tobytes() == want.tobytes()


def test_the_context_fills_to_its_maximum_and_no_further() -> None:
    weights = random_weights(small_spec(max_context=64), SEED)
    model = GoldenModel(weights, TINY)
    model.prefill(tokens(63))
    model.decode(7)
    assert model.filled() == 64
    with pytest.raises(PassError, match="position 64 is outside the context of 64 positions"):
        model.decode(7)
    with pytest.raises(PassError, match="position 64 is outside the context of 64"):
        GoldenModel(weights, TINY).prefill(tokens(65))


def test_slots_share_a_pass_without_touching_each_other() -> None:
    weights = random_weights(small_spec(), SEED)
    a, b = tokens(6), tokens(9, seed=42)
    want = [all_logits(GoldenModel(weights, TINY), ids, 1) for ids in (a, b)]
    model = GoldenModel(weights, KV260, slots=3)
    model.prefill(a[:2], slot=2)
    model.prefill(b[:5], slot=0)
    ids = np.concatenate([a[2:6], b[5:9]])
    result = model.run_pass(ids, [2, 3, 4, 5, 5, 6, 7, 8], [2] * 4 + [0] * 4)
    assert result.logits.tobytes() == np.concatenate([want[0][2:6], want[1][5:9]]).tobytes()
    assert [model.filled(i) for i in range(3)] == [9, 0, 6]


def test_a_slot_may_be_rewound() -> None:
    """Rejected guesses are overwritten."""
    weights, ids = random_weights(small_spec(), SEED), tokens(8)
    model = GoldenModel(weights, TINY)
    model.prefill(tokens(8, seed=43))
    assert all_logits(model, ids, 4).tobytes() == all_logits(GoldenModel(weights, TINY), ids, 4).tobytes()
    model.reset()
    assert model.filled() == 0


def test_head_lanes_select_logits() -> None:
    weights, ids = random_weights(small_spec(), SEED), tokens(4)
    full = GoldenModel(weights, TINY).run_pass(ids, range(4), [0] * 4)
    some = GoldenModel(weights, TINY).run_pass(ids, range(4), [0] * 4, (1, 2))
    none = GoldenModel(weights, TINY).run_pass(ids, range(4), [0] * 4, (0, 0))
    assert some.logits.tobytes() == full.logits[1:3].tobytes() and (some.best == full.best[1:3]).all()
    assert none.logits.shape == (0, 50) and none.best.shape == (0,)


def test_taps_show_every_layer_and_change_nothing() -> None:
    spec = small_spec()
    weights, ids = random_weights(spec, SEED), tokens(4)
    plain = GoldenModel(weights, TINY).run_pass(ids, range(4), [0] * 4)
    model = GoldenModel(weights, TINY)
    tapped = model.run_pass(ids, range(4), [0] * 4, taps=True)
    assert plain.logits.tobytes() == tapped.logits.tobytes() and not plain.taps
    t = tapped.taps
    for i in range(spec.layers):
        shapes = {"qkv": spec.qkv_rows, "o": spec.hidden, "gate": 2 * spec.ffn, "down": spec.hidden}
        for part, rows in shapes.items():
            assert t[f"{i}.{part}.acc"].shape == (4, rows) and t[f"{i}.{part}.q"].dtype == np.int8
        k, ks, v, vs = model.cache(0, i)
        assert (k.swapaxes(0, 1) == t[f"{i}.key"]).all() and (v.swapaxes(0, 1) == t[f"{i}.value"]).all()
        assert (ks.T == t[f"{i}.key_scale"]).all() and (vs.T == t[f"{i}.value_scale"]).all()
    assert t["0.x"].shape == t["1.x"].shape == (4, spec.hidden)


REFUSED_PASSES = [
    (5, range(5), [0] * 5, None, "a pass has 1 to 4 lanes, not 5"),
    (0, [], [], None, "a pass has 1 to 4 lanes, not 0"),
    (2, [0], [0, 0], None, "2 tokens, 1 positions and 2 slots are not as many"),
    (2, [0, 2], [0, 0], None, "lane 1 must have position 1, one after its neighbour, not 2"),
    (2, [1, 0], [0, 0], None, "lane 0 has position 1, but slot 0 holds 0"),
    (1, [-1], [0], None, "lane 0 has position -1, but slot 0 holds 0"),
    (3, [0, 0, 1], [0, 1, 0], None, "lanes of slot 0 must be neighbours; lane 2 is apart"),
    (1, [0], [2], None, "slot 2 of lane 0 is not one of the 2 slots"),
    (1, [64], [0], None, "position 64 is outside the context of 64 positions"),
    (2, [0, 1], [0, 0], (1, 2), "head lanes 1..2 are not among the 2 lanes of the pass"),
]


@pytest.mark.parametrize(("n", "positions", "slots", "heads", "message"), REFUSED_PASSES)
def test_passes_that_cannot_run_are_refused(
    n: int, positions: list[int], slots: list[int], heads: tuple[int, int] | None, message: str
) -> None:
    model = GoldenModel(random_weights(small_spec(), SEED), TINY, slots=2)
    with pytest.raises(PassError, match=message.replace(".", r"\.")):
        model.run_pass(tokens(n), positions, slots, heads)
    assert model.filled(0) == model.filled(1) == 0


def test_unknown_tokens_and_empty_prompts_are_refused() -> None:
    model = GoldenModel(random_weights(small_spec(), SEED), TINY)
    with pytest.raises(PassError, match="token 50 is not in the vocabulary of 50"):
        model.decode(50)
    with pytest.raises(PassError, match="token -1 is not"):
        model.prefill([3, -1])
    with pytest.raises(PassError, match="at least one token"):
        model.prefill([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hidden=0), "hidden must be a positive integer, not 0"),
        (dict(hidden=48), "hidden must be a multiple of 32, not 48"),
        (dict(head_dim=80), "head_dim must be a multiple of 32, not 80"),
        (dict(ffn=100), "ffn must be a multiple of 32, not 100"),
        (dict(kv_heads=3), r"heads \(4\) must be a multiple of kv_heads \(3\)"),
        (dict(activation="gelu"), "activation must be 'relu2' or 'silu', not 'gelu'"),
        (dict(norm_eps=-1.0), "norm_eps must not be negative, not -1.0"),
    ],
)
def test_specifications_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        small_spec(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hidden=288), "hidden is 288, but accelerator 'tiny' holds at most 256"),
        (dict(ffn=1056), "ffn is 1056, but accelerator 'tiny' holds at most 1024"),
        (dict(heads=8, kv_heads=8, head_dim=64), "qkv rows is 1536, but .* at most 1024"),
        (dict(heads=17, kv_heads=1), "heads.* at most"),
        (dict(head_dim=160, heads=2, kv_heads=1), "head_dim is 160, but .* at most 128"),
        (dict(max_context=257), "max_context is 257, but .* at most 256"),
    ],
)
def test_models_too_large_for_the_accelerator_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        small_spec(**changes).check_fits(TINY)


def test_weights_that_do_not_fit_the_specification_are_refused() -> None:
    weights = random_weights(small_spec(), SEED)
    values = {f.name: getattr(weights, f.name) for f in dataclasses.fields(weights)}

    def build(**changes: object) -> ModelWeights:
        return ModelWeights(**(values | changes))

    layer = weights.layers[0]
    with pytest.raises(ModelError, match="2 layers, not 1"):
        build(layers=[layer])
    with pytest.raises(ModelError, match=r"norm must have shape \(64,\), not \(63,\)"):
        build(norm=weights.norm[1:])
    with pytest.raises(ModelError, match=r"layer 1 down must have shape \(64, 96\), not \(96, 64\)"):
        build(layers=[layer, dataclasses.replace(layer, down=layer.down.T)])
    with pytest.raises(ModelError, match=r"layer 0 attn_norm must have shape \(128,\), not None"):
        build(layers=[dataclasses.replace(layer, attn_norm=None), layer])
    with pytest.raises(ModelError, match=r"head must have shape None, not \(50, 64\)"):
        build(head=weights.embedding)


def test_rotary_tables_round_as_the_reference_does() -> None:
    cos, sin = rope_tables(ModelSpec(**(dataclasses.asdict(small_spec()) | dict(head_dim=96, max_context=300))))
    assert cos.shape == sin.shape == (300, 48) and cos.dtype == np.float32
    assert (cos[0] == 1).all() and (sin[0] == 0).all()
    exact = np.arange(300)[:, None] * 10000.0 ** -(np.arange(0, 96, 2) / 96)
    assert np.abs(cos - np.cos(exact)).max() < 3e-5 and np.abs(sin - np.sin(exact)).max() < 3e-5


# transformers 5.24, ROPE_INIT_FUNCTIONS["yarn"]: scaling, theta, head dimension, eight of the inverse frequencies, factor of the tables.
YARN = [
    (RopeScaling(kind="yarn", factor=4.0, original_context=32768, attention_factor=yarn_attention(4.0)), 1e6, 128,
     [1.0, 0.17782793939113617, 0.03162277862429619, 0.005375321488827467, 0.0006029411451891065, 4.4456985051510856e-05,
      7.905693564680405e-06, 1.405853367941745e-06], 1.138629436111989),
    (RopeScaling(kind="yarn", factor=8.0, original_context=4096, beta_fast=16, beta_slow=2, attention_factor=yarn_attention(8.0)), 1e4, 64,
     [1.0, 0.3162277638912201, 0.10000000149011612, 0.03162277862429619, 0.0061111110262572765, 0.0007027284009382129,
      0.0001250000059371814, 3.9528473280370235e-05], 1.2079441541679836),
    (RopeScaling(kind="yarn", factor=2.0, original_context=1024, attention_factor=1.25), 5e5, 32,
     [1.0, 0.17776252329349518, 0.028204523026943207, 0.004254054743796587, 0.000707106722984463, 0.00013712409418076277,
      2.6591478672344238e-05, 5.156692623131676e-06], 1.25),
]  # fmt: skip


@pytest.mark.parametrize(("scaling", "theta", "dim", "inverse", "factor"), YARN)
def test_yarn_scales_frequencies_as_transformers_does(
    scaling: RopeScaling, theta: float, dim: int, inverse: list[float], factor: float
) -> None:
    plain = (theta ** -(np.arange(0, dim, 2) / dim)).astype(np.float32)
    step = max(1, dim // 16)
    np.testing.assert_allclose(scaling.apply(plain, theta)[::step], inverse, rtol=5e-7)
    assert scaling.attention_factor == pytest.approx(factor, rel=1e-12)
    spec = small_spec(head_dim=dim, heads=2, rope_theta=theta, rope_scaling=scaling, max_context=16)
    cos, sin = rope_tables(spec)
    assert (cos[0] == np.float32(factor)).all() and (sin[0] == 0).all()
    angle = np.arange(16)[:, None] * np.array(inverse)
    np.testing.assert_allclose(cos[:, ::step], factor * np.cos(angle), atol=2e-6)
    np.testing.assert_allclose(sin[:, ::step], factor * np.sin(angle), atol=2e-6)


def test_the_demo_model_tells_a_story() -> None:
    weights, _ = load_demo()
    model = GoldenModel(weights, KV260)
    result = model.prefill([0])
    ids = []
    for _ in range(8):
        ids.append(int(result.best[0]))
        result = model.decode(ids[-1])
    assert len(set(ids)) > 4 and np.isfinite(result.logits).all()
