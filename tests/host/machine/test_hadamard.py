"""Turned queries and keys through program and driver: bit-equal to golden with every cache, told to the commands, refused where not built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellme.golden import hadamard
from tellme.golden.attention import query_factor
from tellme.golden.check import problem
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.kv import CACHE_FORMATS, CacheFormat
from tellme.golden.program import Kind, Opcode
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.errors import UserError
from tellme.host.machine.backends import GoldenBackend
from tests.host.machine.test_narrow import cli, compiled, descriptors, every_logit
from tests.host.support import WORD, write_checkpoint
from tests.models import small_spec

EVERY = pytest.mark.parametrize("kv", [replace(c, hadamard=True) for c in CACHE_FORMATS.values()], ids=lambda c: c.name)
LITTLE = replace(TINY, hadamard=True)
SHAPES: list[Any] = [
    pytest.param(small_spec(), LITTLE, id="gqa-tiny"),
    pytest.param(
        small_spec(head_dim=96, heads=2, kv_heads=1, ffn=352),
        replace(WORD, narrow_cache=True, hadamard=True),
        id="word",
    ),
    pytest.param(
        small_spec(hidden=160, head_dim=128, heads=2, kv_heads=2),
        replace(KV260, hadamard=True),
        id="kv260",
    ),
]


@EVERY
@pytest.mark.parametrize(("spec", "config"), SHAPES)
def test_every_logit_equals_golden(tmp_path: Path, spec: Any, config: AcceleratorConfig, kv: CacheFormat) -> None:
    every_logit(tmp_path / "m", spec, config, kv)


@EVERY
def test_only_the_qkv_layers_say_it(tmp_path: Path, kv: CacheFormat) -> None:
    folder, spec = write_checkpoint(tmp_path / "m", small_spec()), small_spec()
    for cache in (kv, replace(kv, hadamard=False)):
        program = compiled(folder, LITTLE, cache)
        says = 0
        for opcode, fields in descriptors(program):
            if opcode is Opcode.LINEAR and fields["kind"] == Kind.QKV:
                assert fields["hadamard"] == cache.hadamard
                part = hadamard.BLOCK if cache.hadamard else 1
                assert np.float32(fields["q_scale"]) == query_factor(spec.head_dim) / np.float32(part)
                says += 1
            else:
                assert not fields.get("hadamard")
        assert says == spec.layers
        assert program.kv.slot_stride == compiled(folder, LITTLE, kv).kv.slot_stride


def test_accelerators_without_it_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", small_spec())
    turned = replace(CACHE_FORMATS["4"], hadamard=True)
    for config, message in (
        (
            TINY,
            "'tiny' is built without the Hadamard transform of queries and keys; leave --hadamard out, or build an accelerator "
            "with --set hadamard=true",
        ),
        (
            replace(LITTLE, narrow_cache=False),
            "without a cache below 8 bits .*; take --kv 8, or build an accelerator with --set narrow_cache=true",
        ),
    ):
        with pytest.raises(UserError, match=message):
            compiled(folder, config, turned)
        with pytest.raises(UserError, match=message):
            GoldenBackend(read_checkpoint(folder).weights, config, kv=turned)
    program = compiled(folder, LITTLE, turned)
    assert problem(program.code, LITTLE, context=program.context, slots=1) is None
    assert problem(program.code, TINY, context=program.context, slots=1) == (
        1,
        "LINEAR: hadamard is 1, the accelerator turns no queries and keys (hadamard)",
    )


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
def test_commands_refuse_it_where_it_is_not_built(command: str) -> None:
    code, said = cli(*command.split(), "--hadamard", "--kv", "8")
    assert code == 2 and "built without the Hadamard transform" in said and "--set hadamard=true" in said
    assert "Traceback" not in said


def test_commands_run_with_it() -> None:
    call = ["run", "--backend", "golden", "--prompt", "One day, a", "--max-new-tokens", "3", "--json", "--kv", "4"]
    code, said = cli(*call, "--set", "hadamard=true", "--hadamard")
    assert code == 0 and '"kv": "4"' in said and '"hadamard": true' in said
    code, said = cli(*call, "--set", "hadamard=true", "--no-hadamard")
    assert code == 0 and '"hadamard": false' in said
