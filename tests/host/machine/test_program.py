"""Programs of real shapes decode to what the model is, in memory that does not overlap; limits are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tellme.golden import attention, layout
from tellme.golden.boards import buffer_bytes, phases
from tellme.golden.check import problem
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.model import ModelSpec, rope_tables
from tellme.golden.program import DESCRIPTOR_BYTES, Kind, Opcode, decode
from tellme.golden.schedule import segments
from tellme.golden.shapes import BITNET_07B, BITNET_2B, BONSAI_8B, FALCON_E_1B
from tellme.host.configuration import resolve
from tellme.host.errors import UserError
from tellme.host.image.model import Model
from tellme.host.machine.passes import fits_scores, lanes_that_fit
from tellme.host.machine.program import (
    Program,
    checked_context,
    compile_program,
    compile_sections,
    planned_sections,
    usable_context,
)
from tests.host.support import DEMO, WORD
from tests.models import small_spec


def hollow(spec: ModelSpec, config: AcceleratorConfig) -> Any:
    """A model of any size without its bytes: the sections that its image would have."""
    scales = {"qkv": [0.5, 1.5, 2.5], "o": [3.5], "gate": [4.5, 5.5], "down": [6.5]}
    sections = {
        name: replace(s, info={**s.info, "scales": scales.get(name.split(".")[-1], [])})
        for name, s in planned_sections(spec, config).items()
    }
    address = sum(s.beats for s in sections.values())
    image = SimpleNamespace(sections=sections, beats=address, path="hollow.tlm")
    return SimpleNamespace(name="hollow", spec=spec, image=image)


def descriptors(program: Program) -> list[tuple[Opcode, dict[str, Any]]]:
    assert len(program.code) == 64 * program.length
    return [decode(program.code[i : i + 64]) for i in range(0, len(program.code), 64)]


CASES = [
    pytest.param(small_spec(), TINY, id="small-tiny"),
    pytest.param(small_spec(attn_sub_norm=False, ffn_sub_norm=False, tied=False), WORD, id="bare-word"),
    pytest.param(BITNET_07B, KV260, id="0.73B-kv260"),
    pytest.param(BITNET_2B, KV260, id="2B-kv260"),
]


@pytest.mark.parametrize(("spec", "config"), CASES)
@pytest.mark.parametrize("slots", [1, 3])
def test_descriptors_say_what_the_model_is(spec: ModelSpec, config: AcceleratorConfig, slots: int):
    model = hollow(spec, config)
    p = compile_program(model, config, slots=slots)
    got = descriptors(p)
    per_layer = [Opcode.LINEAR, Opcode.ATTENTION, Opcode.LINEAR, Opcode.LINEAR, Opcode.LINEAR]
    assert [op for op, _ in got] == [Opcode.LOAD, *per_layer * spec.layers, Opcode.HEAD, Opcode.END]
    s, base = model.image.sections, p.image_address

    load = got[0][1]
    assert load["address"] == base + s["input_norm"].address
    assert (load["gain_out"], load["gain_beats"]) == (1, s["input_norm"].beats)
    assert (load["x_address"], load["x_beats"]) == (p.x_address, layout.float_beats(spec.hidden, config))
    assert (load["inputs"], load["head_dim"], load["rope_address"]) == (spec.hidden, spec.head_dim, p.rope_address)
    assert load["rope_beats"] * config.beat_bytes == spec.head_dim * 4

    gate = Kind.GATE_SILU if spec.activation == "silu" else Kind.GATE_RELU2
    expected = {  # part: kind, rows, inputs, norm_in, features of the gain, scales
        "qkv": (Kind.QKV, spec.qkv_rows, spec.hidden, 1, 0, (0.5, 1.5, 2.5)),
        "o": (Kind.RESIDUAL, spec.hidden, spec.q_dim, spec.attn_sub_norm, spec.hidden, (3.5, 0, 0)),
        "gate": (gate, 2 * spec.ffn, spec.hidden, 1, spec.ffn * spec.ffn_sub_norm, (4.5, 5.5, 0)),
        "down": (Kind.RESIDUAL, spec.hidden, spec.ffn, spec.ffn_sub_norm, spec.hidden, (6.5, 0, 0)),
    }
    for i in range(spec.layers):
        five = [f for _, f in got[1 + 5 * i : 6 + 5 * i]]
        attend = five.pop(1)
        for f, (part, (kind, rows, inputs, norm, gain, scales)) in zip(five, expected.items(), strict=True):
            section = s[f"{i}.{part}"]
            assert f["address"] == base + section.address
            assert (f["kind"], f["rows"], f["inputs"], f["norm_in"]) == (kind, rows, inputs, norm), part
            assert f["tiles"] == -(-inputs // config.beat_weights)
            assert f["gain_beats"] == layout.float_beats(gain, config) and f["gain_out"] == (gain > 0)
            assert f["gain_beats"] + f["tiles"] * rows == section.beats
            assert f["block_rows"] <= config.block_rows and f["block_rows"] % 8 == 0
            assert (f["scale0"], f["scale1"], f["scale2"]) == scales
            assert np.float32(f["inv_n"]) == np.float32(1 / inputs)
            assert np.float32(f["eps"]) == np.float32(spec.norm_eps)
        shape = (spec.head_dim, spec.heads, spec.kv_heads)
        assert tuple(five[0][n] for n in ("head_dim", "heads", "kv_heads")) == shape
        assert np.float32(five[0]["q_scale"]) == attention.query_factor(spec.head_dim)
        assert tuple(attend[n] for n in ("head_dim", "heads", "kv_heads")) == shape
        assert attend["group"] == spec.heads // spec.kv_heads
        assert (attend["slot_stride"], attend["head_stride"]) == (p.kv.slot_stride, p.kv.head_stride)
        assert attend["kv_address"] == p.kv_address + i * slots * p.kv.slot_stride
        assert attend["gain_out"] == spec.attn_sub_norm
        if spec.attn_sub_norm:
            assert attend["address"] == base + s[f"{i}.attention"].address
            assert attend["gain_beats"] == layout.float_beats(spec.q_dim, config)
    head = got[-2][1]
    assert head["address"] == base + s["head"].address
    assert head["blocks"] == -(-spec.vocab // config.key_block) and head["rows"] == spec.vocab
    assert head["inputs"] == spec.hidden and head["tiles"] == -(-spec.hidden // config.beat_weights)
    assert head["norm_in"] == 1 and head["gain_beats"] == 0
    assert head["logits_stride"] * config.word == head["blocks"] * config.key_block


@pytest.mark.parametrize(("spec", "config"), CASES)
def test_regions_follow_each_other_and_fill_the_window(spec: ModelSpec, config: AcceleratorConfig):
    slots = 2
    p = compile_program(hollow(spec, config), config, slots=slots)
    assert p.program_address == 0
    assert p.x_address * config.beat_bytes >= len(p.code)
    assert p.rope_address == p.x_address + config.lanes * p.x_beats
    assert p.image_address == p.rope_address + len(p.rope_table)
    assert len(p.rope_table) == p.context * layout.rope_beats(spec.head_dim, config)
    end = p.logits_address + config.lanes * p.logits_stride  # the cache begins at a whole burst
    assert p.kv_address == -(-end // config.burst_beats) * config.burst_beats
    assert p.window_beats == p.kv_address + spec.layers * slots * p.kv.slot_stride
    cos, sin = layout.unpack_rope(p.rope_table, spec.head_dim, config)
    want = rope_tables(spec, p.context)
    np.testing.assert_array_equal(cos, want[0])
    np.testing.assert_array_equal(sin, want[1])


@pytest.mark.parametrize(("spec", "config"), CASES)
def test_no_pass_reads_outside_the_window_or_where_it_writes(spec: ModelSpec, config: AcceleratorConfig):
    p = compile_program(hollow(spec, config), config, slots=2)
    last = p.context - 1
    for positions, slots in (([0], [0]), ([last], [1]), ([last - 1, last, 0], [0, 0, 1])):
        for s in segments(config, p.code, p.program_address, positions, slots, len(positions)):
            assert 0 <= s.address and s.address + s.beats <= p.window_beats
            assert s.address + s.beats <= p.logits_address or s.address >= p.kv_address


def test_a_decode_pass_of_the_large_models_reads_the_bytes_that_the_design_expects():
    # Design, section 2: 194 MB and 755 MB; whole tiles of 320 add 4 % to 1,536 columns and 1.6 % to 4,096.
    for spec, position, low, high in ((BITNET_07B, 128, 194e6, 203e6), (BITNET_2B, 250, 750e6, 765e6)):
        p = compile_program(hollow(spec, KV260), KV260)
        parts = segments(KV260, p.code, 0, [position], [0], 1)
        assert low < 64 * sum(s.beats for s in parts) < high


def test_the_real_demo_compiles_to_the_same_program_as_its_sections_say():
    with Model.open(DEMO, TINY) as model:
        p = compile_program(model, TINY)
        assert (p.length, p.context) == (28, 256)
        assert p.logits_address == p.image_address + model.image.beats


# ---- context and lanes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "config"), CASES)
def test_usable_context_is_the_most_that_the_score_memory_holds(spec: ModelSpec, config: AcceleratorConfig):
    n = usable_context(spec, config)
    group = spec.heads // spec.kv_heads
    assert fits_scores(config, group, n - 1, 1)
    if n < min(spec.max_context, config.max_context):
        assert not fits_scores(config, group, n, 1)


def test_a_context_may_be_one_position_and_all_that_are_usable():
    most = usable_context(BITNET_07B, KV260)
    assert [checked_context(BITNET_07B, KV260, "m", n) for n in (1, most, None)] == [1, most, most]
    for n in (0, -1, most + 1):
        with pytest.raises(UserError, match=f"m: context must be from 1 to {most} positions"):
            checked_context(BITNET_07B, KV260, "m", n)


def test_usable_context_of_the_large_models():
    assert usable_context(BITNET_07B, KV260) == 2048
    assert usable_context(BITNET_2B, KV260) == KV260.max_context == 3968
    crowded = replace(BITNET_2B, heads=20, kv_heads=1)
    assert usable_context(crowded, KV260) == (2048 // 3 - 1) * 2 + 1


@pytest.mark.parametrize("group", [1, 2, 4])
def test_lanes_of_a_pass_are_the_most_that_fit(group: int):
    for cached in (0, 1, 31, 64, 100, 127):
        n = lanes_that_fit(WORD, group, cached, 4)
        assert 1 <= n <= 4
        assert n == 1 or fits_scores(WORD, group, cached, n)
        assert n == 4 or not fits_scores(WORD, group, cached, n + 1)
    assert lanes_that_fit(WORD, 1, 0, 99) == WORD.lanes
    assert lanes_that_fit(WORD, group, 1 << 20, 4) == 1  # which is refused when it comes


def test_score_words_count_whole_words_of_own_keys():
    # Two keys a word: lanes 1..2 touch two words, lanes 0..1 one; 2 queries are one set.
    config = replace(KV260, score_words=1024, max_context=1920, attention_lanes=2)
    assert fits_scores(config, 1, 2 * 1023, 2, first_lane=0)
    assert not fits_scores(config, 1, 2 * 1023, 2, first_lane=1)
    assert not fits_scores(config, 1, 2 * 1023 + 1, 2, first_lane=0)
    assert not fits_scores(config, 2, 2 * 1023, 2, first_lane=0)


# ---- refusals --------------------------------------------------------------------------------------------------------


def big(**changes: Any) -> Callable[[], Any]:
    return lambda: compile_program(hollow(replace(BITNET_2B, **changes), KV260), KV260)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (big(hidden=2592), "hidden is 2592, but accelerator 'kv260' holds at most 2560"),
        (big(ffn=8224), "ffn is 8224, but accelerator 'kv260' holds at most 8192"),
        (big(ffn=8224), r"ffn is 8224, but accelerator 'kv260' holds at most 8192"),
        (big(heads=33, kv_heads=33, head_dim=32), "heads is 33, but .* holds at most 32"),
        (big(kv_heads=20), r"kv_heads \* head_dim is 2560, but .* holds at most 1536"),
        (big(heads=5, head_dim=160), "head_dim is 160, but accelerator 'kv260' holds at most 128"),
        (big(layers=102), r"needs 513 descriptors \(102 layers\), accelerator 'kv260' holds at most 512"),
        (
            lambda: compile_program(hollow(BITNET_2B, KV260), KV260, context=3969),
            "context must be from 1 to 3968 positions on board 'kv260' with --kv 8, not 3969",
        ),
        (lambda: compile_program(hollow(BITNET_2B, KV260), KV260, context=0), "not 0"),
        (lambda: compile_program(hollow(BITNET_2B, KV260), KV260, slots=0), "slots must be from 1 to 256, .*, not 0"),
        (
            lambda: compile_program(hollow(BITNET_2B, KV260), KV260, slots=2000),
            "needs .* beats of memory, addresses hold",
        ),
        (
            lambda: compile_program(hollow(BITNET_2B, KV260), replace(KV260, block_rows=256)),
            "hollow: section '0.qkv' has row blocks of 480, board 'kv260' takes at most 256; convert",
        ),
        (
            lambda: compile_program(hollow(small_spec(heads=24, kv_heads=1), WORD), replace(WORD, max_heads=32)),
            r"heads \* head_dim is 768, but .* at most 512",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_value_and_limit(call: Callable[[], Any], message: str):
    with pytest.raises(UserError, match=message) as e:
        call()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("config", [TINY, KV260], ids=lambda c: c.name)
def test_gains_of_heads_stand_before_the_qkv_matrix(config: AcceleratorConfig):
    """Two heads' gains, of a query and of a key, however many heads there are; none without QK-norm."""
    for spec in (small_spec(qk_norm=True), small_spec()):
        program = compile_program(hollow(spec, config), config)
        code = program.code[DESCRIPTOR_BYTES : 2 * DESCRIPTOR_BYTES]
        opcode, fields = decode(code)
        assert opcode is Opcode.LINEAR and fields["kind"] == Kind.QKV
        assert fields["gain_out"] == spec.qk_norm
        assert fields["gain_beats"] * config.beat_bytes == (2 * spec.head_dim * 4 if spec.qk_norm else 0)


WIDE = Path(__file__).resolve().parents[3] / "docs" / "examples" / "configurations" / "kv260_large.toml"
PLAIN = dict(activation="silu", attn_sub_norm=False, ffn_sub_norm=False, max_context=8192)
QWEN3 = dict(
    PLAIN, qk_norm=True, rope_theta=1e6, norm_eps=1e-6, vocab=151936, heads=32, kv_heads=8, head_dim=128, layers=36
)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("bonsai-4b", ModelSpec(hidden=2560, ffn=9728, **QWEN3)),
        ("bonsai-8b", ModelSpec(hidden=4096, ffn=12288, tied=False, **QWEN3)),
        ("falcon-e-1b", FALCON_E_1B),
        (
            "llama3-8b-1.58",
            ModelSpec(
                hidden=4096, layers=32, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=128256, tied=False, **PLAIN
            ),
        ),
        (
            "heads of 256, everything at its largest",
            ModelSpec(hidden=4096, layers=2, heads=16, kv_heads=8, head_dim=256, ffn=16384, vocab=50, **PLAIN),
        ),
    ],
)
def test_wide_models_have_programs_for_the_large_kv260(name: str, spec: ModelSpec):
    """Configuration of the documents; each is refused by the preset, in one line."""
    config = resolve(None, WIDE, ()).config
    assert config.lanes == 8 and config.beat_bytes == KV260.beat_bytes
    program = compile_program(hollow(spec, config), config)
    assert problem(program.code, config, context=program.context, slots=1) is None
    with pytest.raises(UserError, match="accelerator 'kv260' holds at most") as e:
        compile_program(hollow(spec, KV260), KV260)
    assert "\n" not in str(e.value)


def test_a_ternary_head_has_one_matrix_and_bonsai_8b_fits_a_piece_of_memory():
    """With 2,048 positions in 8 bits, where int8 rows beside it took 3,157 MiB; the program has a SCREEN and no HEAD."""
    config = resolve(None, WIDE.with_name("kv260_bonsai_large.toml"), ()).config
    sections = planned_sections(BONSAI_8B, config)
    program = compile_sections("bonsai-8b", BONSAI_8B, sections, config, context=2048)
    assert buffer_bytes(config, program.window_beats, phases(config)) < 2 << 30
    assert problem(program.code, config, context=2048, slots=1) is None
    codes = [decode(program.code[i : i + DESCRIPTOR_BYTES]) for i in range(0, len(program.code), DESCRIPTOR_BYTES)]
    assert Opcode.HEAD not in [opcode for opcode, _ in codes]
    opcode, fields = codes[-2]
    assert opcode is Opcode.SCREEN and fields["exact"] == 1 and "rows" not in sections
    other = replace(config, ternary_head=False)
    with pytest.raises(
        UserError, match="its head is ternary, without int8 rows, but accelerator 'kv260' is built without"
    ):
        compile_sections("bonsai-8b", BONSAI_8B, sections, other, context=2048)


def test_more_slots_than_the_hardware_tells_apart_are_refused():
    spec = small_spec(layers=1)
    assert compile_program(hollow(spec, TINY), TINY, slots=256).slots == 256
    for slots in (257, 300, 65536):
        with pytest.raises(UserError, match=rf"slots must be from 1 to 256, .*, not {slots}") as e:
            compile_program(hollow(spec, TINY), TINY, slots=slots)
        assert "\n" not in str(e.value)


def test_a_scale_that_no_descriptor_can_hold_is_refused():
    model = hollow(small_spec(layers=1), TINY)
    section = model.image.sections["0.o"]
    model.image.sections["0.o"] = replace(section, info={**section.info, "scales": [1e39]})
    with pytest.raises(UserError, match=r"^hollow: LINEAR\.scale0 must be a binary32, at most 3\.4e38, not 1e\+39$"):
        compile_program(model, TINY)


@pytest.mark.parametrize("changes", [{}, {"activation": "silu"}, {"attn_sub_norm": False}, {"ffn_sub_norm": False}])
@pytest.mark.parametrize("config", [TINY, WORD, KV260], ids=lambda c: c.name)
def test_what_is_compiled_passes_the_rules_of_the_hardware(changes: dict[str, Any], config: AcceleratorConfig):
    spec = small_spec(**changes)
    p = compile_program(hollow(spec, config), config, slots=5)
    assert problem(p.code, config, context=p.context, slots=5) is None
    more = p.context // config.key_block * config.key_block + config.key_block + 1
    found = problem(p.code, config, context=more, slots=5)
    assert found is not None and found[0] == 2 and f"a head of {more} positions takes" in found[1]
    found = problem(p.code[:-64], config, context=p.context, slots=5)
    assert found == (p.length - 1, f"none of the {p.length - 1} descriptors is END")


def test_a_program_that_the_hardware_would_refuse_is_not_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tellme.golden.layout.row_block", lambda rows, config: 12)
    spec = small_spec()
    with pytest.raises(
        UserError, match="hollow: accelerator 'tiny' cannot execute descriptor 1: LINEAR: block_rows is 12"
    ):
        compile_program(hollow(spec, TINY), TINY)


def test_more_queries_than_the_unit_counts_on_a_kv_head_are_refused():
    config = replace(TINY, max_features=4096)
    with pytest.raises(UserError, match="query heads of a KV head is 9, but accelerator 'tiny' holds at most 8"):
        compile_program(hollow(small_spec(heads=9, kv_heads=1), config), config)
    assert compile_program(hollow(small_spec(heads=8, kv_heads=1), config), config).context == 64
