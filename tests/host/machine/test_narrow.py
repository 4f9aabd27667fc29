"""A cache below 8 bits through image, program and driver: bit-equal to golden, twice the context, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tellme.golden.check import problem
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.kv import CACHE_FORMATS, EIGHT, CacheFormat
from tellme.golden.program import DESCRIPTOR_BYTES, Kind, Opcode, decode, encode
from tellme.golden.shapes import BITNET_2B
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.cli import app
from tellme.host.errors import UserError
from tellme.host.image.model import Model
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.passes import Cache, Pass, chunks, fits_scores, lanes_that_fit
from tellme.host.machine.program import Program, compile_program, usable_context
from tests.host.support import WORD, start, write_checkpoint
from tests.models import small_spec

NARROW = pytest.mark.parametrize("kv", [CACHE_FORMATS["8-4"], CACHE_FORMATS["4"]], ids=lambda c: c.name)
LITTLE = replace(TINY, narrow_cache=True)
SHAPES: list[Any] = [
    pytest.param(small_spec(), LITTLE, id="gqa-tiny"),
    pytest.param(small_spec(head_dim=96, heads=2, kv_heads=1, ffn=352), replace(WORD, narrow_cache=True), id="word"),
    pytest.param(
        small_spec(hidden=160, head_dim=128, heads=2, kv_heads=2), replace(KV260, narrow_cache=True), id="kv260"
    ),
]


def tokens(n: int, vocab: int, seed: int = 3) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, vocab, n)]


def checked(folder: Path, config: AcceleratorConfig, **load: Any) -> CheckedBackend:
    accelerator, _, _ = start(folder, config, **load)
    return CheckedBackend(accelerator, GoldenBackend(read_checkpoint(folder).weights, config, **load))


def every_logit(folder: Path, spec: Any, config: AcceleratorConfig, kv: CacheFormat) -> Cache:
    """A prompt, decode passes and a pass of two conversations, each logit held against golden, and the cache, which is given back."""
    with checked(write_checkpoint(folder, spec), config, kv=kv, slots=2) as backend:
        assert backend.kv == kv
        ids = tokens(config.lanes + 3, spec.vocab)
        backend.prefill(ids, slot=1)
        for i, t in enumerate(tokens(3, spec.vocab, 4)):
            backend.decode(t, len(ids) + i, slot=1)
        if config.lanes >= 4:
            n = len(ids) + 3
            backend.run_pass(Pass.of([1, 2, 3, 4], [0, 1, n, n + 1], [0, 0, 1, 1], head=(0, 4), write_logits=True))
        mine = backend.tested.read_cache(1, len(ids))
        theirs = backend.reference.read_cache(1, len(ids))
        for name in ("k", "v", "k_scales", "v_scales"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        return mine


@NARROW
@pytest.mark.parametrize(("spec", "config"), SHAPES)
def test_every_logit_equals_golden(tmp_path: Path, spec: Any, config: AcceleratorConfig, kv: CacheFormat) -> None:
    cache = every_logit(tmp_path / "m", spec, config, kv)
    assert np.abs(cache.v).max() == 7 and np.abs(cache.k).max() == (7 if kv.k_narrow else 127)


@NARROW
def test_the_context_doubles(tmp_path: Path, kv: CacheFormat) -> None:
    """Beyond what 8 bits hold: every position of the second half is there, and counts."""
    spec = small_spec(max_context=4096, layers=1)
    folder = write_checkpoint(tmp_path / "m", spec)
    with checked(folder, LITTLE, kv=kv) as backend:
        assert backend.context == 2 * LITTLE.max_context == 512
        ids = tokens(backend.context - 1, spec.vocab)
        backend.prefill(ids)
        backend.decode(5, len(ids))
        with pytest.raises(UserError, match="position 512 is beyond the context of 512"):
            backend.decode(5, 512)
    with pytest.raises(
        UserError, match=r"context must be from 1 to 256 positions on board 'tiny' with --kv 8, not 257"
    ):
        checked(folder, LITTLE, context=257)


@NARROW
def test_a_prefix_is_copied_and_goes_out_and_in(tmp_path: Path, kv: CacheFormat) -> None:
    spec = small_spec()
    folder = write_checkpoint(tmp_path / "m", spec)
    accelerator, _, _ = start(folder, LITTLE, kv=kv, slots=3)
    ids = tokens(37, spec.vocab)
    want = accelerator.prefill(ids, logits=True)[-1].logits
    accelerator.copy_cache(0, 1, 36)
    accelerator.write_cache(2, accelerator.read_cache(0, 36))
    for slot in (1, 2):
        got = accelerator.decode(ids[-1], 36, slot=slot, logits=True)
        np.testing.assert_array_equal(got.logits, want)
    wide, _, _ = start(folder, LITTLE, slots=1)
    wide.prefill(ids)
    for backend in (accelerator, GoldenBackend(read_checkpoint(folder).weights, LITTLE, kv=kv)):
        with pytest.raises(UserError, match="of a cache of 4 bits are from -7 to 7; these have 8 bits"):
            backend.write_cache(0, wide.read_cache(0, 36))
    # The other way round they fit; that they are another's is the prompt cache's to know.
    cache = accelerator.read_cache(0, 36)
    wide.write_cache(0, Cache(cache.k, cache.k_scales, cache.v, cache.v_scales))


@NARROW
@pytest.mark.parametrize("value", [-128, -8, -7, 7, 8, 127])
@pytest.mark.parametrize("what", ["k", "v"])
def test_a_single_element_beyond_4_bits_is_refused(kv: CacheFormat, value: int, what: str) -> None:
    spec = small_spec()
    shape = (spec.layers, spec.kv_heads, 3, spec.head_dim)
    arrays = {name: np.zeros(shape, np.int8) for name in ("k", "v")}
    scales = np.ones(shape[:3], np.float32)
    arrays[what][-1, 0, 1, 2] = value
    cache = Cache(arrays["k"], scales, arrays["v"], scales)
    if abs(value) > 7 and getattr(kv, f"{what}_narrow"):
        with pytest.raises(UserError, match=f"the {'keys' if what == 'k' else 'values'} of a cache of 4 bits"):
            cache.check(spec, kv)
    else:
        cache.check(spec, kv)


@NARROW
def test_only_queries_keys_values_and_attention_say_it(tmp_path: Path, kv: CacheFormat) -> None:
    program = compiled(write_checkpoint(tmp_path / "m", small_spec()), LITTLE, kv)
    says = 0
    for opcode, fields in descriptors(program):
        if opcode is Opcode.ATTENTION or (opcode is Opcode.LINEAR and fields["kind"] == Kind.QKV):
            assert (fields["k_narrow"], fields["v_narrow"]) == (kv.k_narrow, kv.v_narrow)
            says += 1
        else:
            assert not fields.get("k_narrow") and not fields.get("v_narrow")
    assert says == 2 * program.spec.layers
    wide = compiled(tmp_path / "m", LITTLE, EIGHT)
    saved = wide.kv.slot_stride - program.kv.slot_stride
    blocks = program.kv.blocks * program.kv.kv_heads
    cells = program.spec.head_dim // LITTLE.cell
    assert saved == blocks * cells * LITTLE.key_tile // 2 * (kv.k_narrow + kv.v_narrow)


def compiled(folder: Path, config: AcceleratorConfig, kv: CacheFormat) -> Program:
    with Model.open(folder, config) as model:
        return compile_program(model, config, kv=kv)


def descriptors(program: Program) -> list[tuple[Opcode, dict[str, Any]]]:
    code = program.code
    return [decode(code[i : i + DESCRIPTOR_BYTES]) for i in range(0, len(code), DESCRIPTOR_BYTES)]


def test_descriptors_that_do_not_agree_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", small_spec(max_context=512))
    program = compiled(folder, LITTLE, CACHE_FORMATS["8-4"])
    good = descriptors(program)
    limits: dict[str, Any] = {"context": program.context, "slots": 1}
    assert problem(program.code, LITTLE, **limits) is None
    assert problem(program.code, replace(LITTLE, narrow_cache=False), **limits) == (
        1,
        "LINEAR: k_narrow or v_narrow is 1, the accelerator keeps K and V in 8 bits only (narrow_cache)",
    )

    def changed(index: int, **fields: int) -> str | None:
        parts = [(o, f | fields if i == index else f) for i, (o, f) in enumerate(good)]
        code = b"".join(encode(o, **{k: v for k, v in f.items() if k != "opcode"}) for o, f in parts)
        found = problem(code, LITTLE, **limits)
        assert found is not None and found[0] == (1 if index == 1 and "before" not in found[1] else 2)
        return found[1]

    assert "k_narrow is 1, and v_narrow is not" in str(changed(1, k_narrow=1, v_narrow=0))
    assert "k_narrow is 1, and v_narrow is not" in str(changed(2, k_narrow=1, v_narrow=0))
    for index in (1, 2):
        assert "not those of the QKV layer before" in str(changed(index, k_narrow=1))
        assert "not those of the QKV layer before" in str(changed(index, v_narrow=0))
    wide = compiled(folder, LITTLE, EIGHT)
    assert problem(wide.code, LITTLE, context=LITTLE.max_context, slots=1) is None
    assert problem(wide.code, LITTLE, context=LITTLE.max_context + 1, slots=1) == (
        2,
        "ATTENTION: v_narrow is 0, and a slot has 257 positions, more than 256",
    )


def test_score_words_hold_twice_the_keys_of_half_the_queries() -> None:
    """Written out: a word has the keys of two beats, in the order of lanes for the pass's own."""
    kv = CACHE_FORMATS["8-4"]
    for config in (LITTLE, replace(KV260, narrow_cache=True, score_words=1024, max_context=1920)):
        kpb = config.keys_per_beat
        for group in (1, 2, 3, 4):
            for first in range(0, min(config.lanes, 5)):
                for lanes in range(1, min(config.lanes - first, 6) + 1):
                    beats = {lane // kpb for lane in range(first, first + lanes)}
                    own = (len(beats) + 1) // 2
                    sets = -(-lanes * group // (config.attention_lanes // 2))
                    most = (config.score_words // sets - own) * 2 * kpb
                    assert fits_scores(config, group, most, lanes, first, kv)
                    assert not fits_scores(config, group, most + 1, lanes, first, kv)
        assert all(n == lanes_that_fit(config, 4, at, 99, kv) for at, n in chunks(config, 4, 64, 0, kv)[:-1])


def test_usable_context_of_the_large_model() -> None:
    config, kv = replace(KV260, narrow_cache=True), CACHE_FORMATS["4"]
    assert usable_context(BITNET_2B, config, kv) == 4096  # the model's own
    assert usable_context(replace(BITNET_2B, max_context=10_000), config, kv) == 7936
    crowded = replace(BITNET_2B, max_context=10_000, heads=20, kv_heads=4)  # 5 queries: two sets of 4
    assert usable_context(crowded, config, kv) == (2048 // 2 - 1) * 4 + 1


@NARROW
def test_accelerators_without_it_are_refused(tmp_path: Path, kv: CacheFormat) -> None:
    wide = replace(TINY, narrow_cache=False)
    folder = write_checkpoint(tmp_path / "m", small_spec())
    message = f"'tiny' is built without a cache below 8 bits .* kept as '{kv.name}'; take --kv 8, or build"
    with pytest.raises(UserError, match=message):
        compiled(folder, wide, kv)
    with pytest.raises(UserError, match=message):
        GoldenBackend(read_checkpoint(folder).weights, wide, kv=kv)


def cli(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(args))
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize("name", ["4-8", ""])
@pytest.mark.parametrize(
    "command",
    [
        "run --backend golden --prompt x",
        "chat --backend golden",
        "serve --backend golden",
        "eval demo --text README.md",
        "plan --model bitnet-0.7b",
        "bench --model bitnet-0.7b",
    ],
)
def test_commands_refuse_other_names(command: str, name: str) -> None:
    code, said = cli(*command.split(), "--kv", name)
    assert code == 2 and f"--kv must be 8, 8-4 or 4, not '{name}'" in said


def test_commands_run_with_it() -> None:
    call = ["run", "--backend", "golden", "--prompt", "One day, a", "--max-new-tokens", "3", "--kv", "8-4"]
    code, said = cli(*call, "--set", "narrow_cache=true", "--json")
    assert code == 0 and '"kv": "8-4"' in said and "tellme: values of the cache are of 4 bits" in said
    code, said = cli(*call[:-1], "8", "--set", "narrow_cache=true", "--json")
    assert code == 0 and '"kv": "8"' in said and "bits" not in said
    code, said = cli(*call, "--set", "narrow_cache=false")
    assert code == 2 and "take --kv 8, or build an accelerator with --set narrow_cache=true" in said
