"""The tables of a model's shape, and that nobody has tables of their own."""

import ast
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from tellme.golden.model import LayerWeights
from tellme.golden.program import Kind
from tellme.golden.screen import MULTIPLE
from tellme.golden.shapes import BITNET_2B
from tellme.golden.spec import (
    ACTIVATIONS,
    LAST_STEP,
    MATRICES,
    NORMS,
    STEPS,
    ModelError,
    ModelSpec,
    rope_tables,
    yarn_attention,
)
from tests.models import PARTS, small_spec

ROOT = Path(__file__).resolve().parents[2]
TABLES = {"golden/spec.py"}
ACTIVATION_DEFAULTS = {
    "golden/shapes.py",  # what published models have
    "host/checkpoints/huggingface/config.py",  # defaults of transformers
    "host/checkpoints/gguf/spec.py",  # what a file that does not say it means
}


def strings(path: Path) -> set[str]:
    """Constants of a module that are no docstrings."""
    tree = ast.parse(path.read_text())
    docs = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    return {
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docs if isinstance(n.value, str)
    }


SOURCES = [p for folder in ("golden", "hw", "sim", "host") for p in sorted((ROOT / folder).rglob("*.py"))]


def test_only_the_tables_name_the_matrices_of_a_layer() -> None:
    for path in SOURCES:
        named = strings(path) & {*MATRICES}
        if path.relative_to(ROOT).as_posix() not in TABLES:
            assert len(named) < 4, f"{path}: has a table of matrices: {sorted(named)}"
    assert {*MATRICES} <= strings(ROOT / "golden/spec.py")


def test_only_the_table_names_activations() -> None:
    for path in SOURCES:
        if path.relative_to(ROOT).as_posix() not in TABLES | ACTIVATION_DEFAULTS:
            assert not strings(path) & {*ACTIVATIONS}, f"{path}: asks for an activation by its name"


def test_matrices_have_the_shapes_and_names_that_models_are_published_with() -> None:
    s = BITNET_2B
    assert s.matrices == {
        "q": (2560, 2560),
        "k": (640, 2560),
        "v": (640, 2560),
        "o": (2560, 2560),
        "gate": (6912, 2560),
        "up": (6912, 2560),
        "down": (2560, 6912),
    }
    assert {m.name: m.transformers for m in MATRICES.values()} == PARTS
    assert s.layer_weights == sum(a * b for a, b in s.matrices.values())
    assert s.norms == {"input_norm": 2560, "post_norm": 2560, "attn_norm": 2560, "ffn_norm": 6912}
    plain = dataclasses.replace(s, attn_sub_norm=False, ffn_sub_norm=False)
    assert list(plain.norms) == ["input_norm", "post_norm"]


def test_weights_of_a_layer_are_those_of_the_tables() -> None:
    fields = {f.name for f in dataclasses.fields(LayerWeights)}
    assert fields == {*MATRICES, *(f"{name}_scale" for name in MATRICES), *NORMS}


@pytest.mark.parametrize(("dim", "theta"), [(32, 1e4), (96, 1e4), (128, 5e5), (96, 1e6), (96, 10.0)])
def test_rotary_frequencies_round_where_the_reference_does(dim: int, theta: float) -> None:
    """Transformers computes 1 / theta ** (arange(0, dim, 2).float() / dim) in float32: its exponent, power and quotient are float32
    each. Here one by one; the table of angles is a float32 product, too."""
    spec = ModelSpec(
        hidden=2 * dim, layers=1, heads=2, kv_heads=1, head_dim=dim, ffn=64, vocab=8, rope_theta=theta, max_context=700
    )
    cos, sin = rope_tables(spec, 700)
    different = 0
    for j in range(dim // 2):
        exponent = np.float32(np.float32(2 * j) / np.float32(dim))
        inverse = np.float32(np.float32(1) / np.float32(float(theta) ** float(exponent)))
        different += inverse != np.float32(1 / float(theta) ** (2 * j / dim))
        for p in (1, 255, 699):
            angle = float(np.float32(np.float32(p) * inverse))
            assert cos[p, j] == np.float32(math.cos(angle)) and sin[p, j] == np.float32(math.sin(angle))
    assert different or dim in (32, 128), "no frequency would differ in float64: this case shows nothing"


def test_every_matrix_and_every_norm_has_its_step() -> None:
    assert [name for step in STEPS.values() for name in step.matrices] == list(MATRICES)
    linear = [step for step in STEPS.values() if step.matrices]
    assert {step.norm for step in linear} == {*NORMS} - {"q_norm", "k_norm"}  # those are of heads, not of inputs
    # The gain that a step multiplies its outputs with is of the norm behind it: the step after it has it.
    steps = list(STEPS.values())
    for step, after in zip(steps, steps[1:] + steps[:1], strict=True):
        assert step.gain == ((after.norm,) if step.name != "qkv" else ("q_norm", "k_norm"))
    assert steps[-1].name == LAST_STEP


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_an_epilogue_each(name: str) -> None:
    a = ACTIVATIONS[name]
    assert a.name == name and a.kind not in (Kind.QKV, Kind.RESIDUAL)
    assert [b.kind for b in ACTIVATIONS.values()].count(a.kind) == 1
    gate, up = np.float32([[-2, 0, 3]]), np.float32([[5, 5, 7]])
    want = {"relu2": [[0, 0, 63]], "silu": gate / (1 + np.exp(-gate.astype(np.float64))) * up}[name]
    assert np.allclose(a.gate(gate, up), want, rtol=1e-5)


@pytest.mark.parametrize("value", ["gelu", "", None, 5, ["silu"], {}])
def test_an_activation_that_there_is_not_is_refused(value: object) -> None:
    with pytest.raises(ModelError, match="activation must be 'relu2' or 'silu', not "):
        ModelSpec(
            hidden=64,
            layers=1,
            heads=2,
            kv_heads=1,
            head_dim=32,
            ffn=64,
            vocab=8,
            activation=value,  # type: ignore[arg-type]
        )


def test_yarn_attention_is_as_published() -> None:
    """YaRN (arXiv 2309.00071), section 3.4: sqrt(1/t) = 0.1 ln(s) + 1."""
    assert yarn_attention(4.0) == pytest.approx(1.1386294) and yarn_attention(4.0, 0.5) == pytest.approx(1.0693147)
    assert yarn_attention(1.0) == yarn_attention(0.5) == 1.0


def test_a_ternary_head_has_twice_as_many_rows_as_the_fewest_candidates() -> None:
    assert small_spec(vocab=2 * MULTIPLE, ternary_head=True).vocab == 2 * MULTIPLE
    with pytest.raises(ModelError, match=f"must have at least {2 * MULTIPLE} rows, not {2 * MULTIPLE - 1}"):
        small_spec(vocab=2 * MULTIPLE - 1, ternary_head=True)
