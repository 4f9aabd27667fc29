"""Checkpoints with a scale for every group of weights: every type of GGUF and Hugging Face's unpacked form, the same model in all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as T
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tellme.golden import ternary
from tellme.golden.config import TINY
from tellme.golden.model import GoldenModel, ModelWeights
from tellme.host.checkpoints.common import head_scales
from tellme.host.checkpoints.gguf import read_gguf
from tellme.host.checkpoints.gguf.elements import UNPACK
from tellme.host.checkpoints.huggingface import read_checkpoint
from tellme.host.errors import UserError
from tellme.host.image.model import Model, convert
from tests.host.checkpoints.gguf_support import (
    GROUP_OF,
    PQ2_0,
    PTQ1_0,
    Q2_0,
    Q2_0_LEGACY,
    model,
    pack_groups,
    write_gguf,
)
from tests.host.support import config_json, tensors_of, write_folder
from tests.models import PARTS
from tests.reference import Options, forward

SOME = settings(max_examples=40, deadline=None, derandomize=True)
GROUPED = replace(TINY, weight_format="grouped")
BONSAI: dict[str, Any] = dict(
    group_scales=True,
    qk_norm=True,
    attn_sub_norm=False,
    ffn_sub_norm=False,
    activation="silu",
    rope_theta=1e6,
    norm_eps=1e-6,
)
Q = "blk.0.attn_q.weight"


def made(size: int, seed: int = 1, **changes: Any) -> ModelWeights:
    """A model with a scale of float16 for every `size` inputs, over a wide range, among them groups of zeros."""
    weights = model(seed, **(BONSAI | changes))
    rng = np.random.default_rng(seed)
    layers = []
    for layer in weights.layers:
        parts: dict[str, Any] = {}
        for name in PARTS:
            signs = np.sign(getattr(layer, name)).astype(np.int8)
            signs[3, : ternary.GROUP * 2] = 0
            shape = len(signs), signs.shape[1] // size
            scales = (0.02 * 2.0 ** rng.uniform(-3, 0, shape)).astype(np.float16).astype(np.float32)
            parts[name], unit = ternary.group_integers(signs, scales, size)
            parts[f"{name}_scale"] = float(unit)
        layers.append(replace(layer, **parts))
    return replace(weights, layers=layers)


def payload(weights: ModelWeights) -> list[tuple[str, bytes, float]]:
    """Matrices and scales, in order."""
    return [
        (f"{i}.{name}", getattr(layer, name).tobytes(), getattr(layer, f"{name}_scale"))
        for i, layer in enumerate(weights.layers)
        for name in PARTS
    ]


# ---- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GROUP_OF)
def test_blocks_unpack_to_what_was_packed_as_the_format_is_described(kind: int):
    size = GROUP_OF[kind]

    @given(
        hnp.arrays(np.int8, st.tuples(st.integers(1, 4), st.just(size)), elements=st.integers(-1, 1)),
        st.floats(1e-4, 1e3),
    )
    @SOME
    def check(w: NDArray[np.int8], scale: float):
        codes, scales = UNPACK[kind](pack_groups(w * np.float32(scale), kind))
        np.testing.assert_array_equal(codes.view(np.int8) - 1, w)
        np.testing.assert_array_equal(scales, np.where(w.any(1), np.float32(np.float16(scale)), 0))

    check()


def test_ptq1_0_decodes_every_byte_as_tq1_0_of_the_package_does():
    """Its bytes are those of TQ1_0 of other lengths: each byte value in each of its places, through the package's decoder."""
    for place in range(26):
        data = np.zeros((256, 28), np.uint8)
        data[:, place] = np.arange(256)
        data[:, 26:] = np.float16(1).reshape(1).view(np.uint8)
        codes, _ = UNPACK[PTQ1_0](data)
        # In TQ1_0 byte 0 holds weights 0, 32, .., byte 48 the weights 240, 244, 248, 252.
        known = np.zeros((256, 54), np.uint8)
        known[:, 48 if place >= 24 else 0] = np.arange(256)
        known[:, 52:] = np.float16(1).reshape(1).view(np.uint8)
        want = gguf.quants.dequantize(known, T.TQ1_0)
        theirs = want[:, [240, 244, 248, 252]] if place >= 24 else want[:, [0, 32, 64, 96, 128]]
        if place < 16:
            mine = codes[:, [place + 16 * t for t in range(5)]]
        elif place < 24:
            mine = codes[:, [80 + place - 16 + 8 * t for t in range(5)]]
        else:
            mine = codes[:, [120 + place - 24 + 2 * t for t in range(4)]]
        np.testing.assert_array_equal(mine.astype(np.float32) - 1, theirs)


# ---- the same model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_ternary_payload_of_every_file_type_is_identical(tmp_path: Path, size: int, architecture: str):
    weights = made(size, qk_norm=architecture == "qwen3", tied=architecture == "qwen3")
    want = payload(weights)
    folder = write_folder(tmp_path / "hf", config_json(weights.spec), tensors_of(weights))
    read = {"Hugging Face": read_checkpoint(folder).weights}
    kinds: dict[str, int] = {"F16": T.F16, "F32": T.F32, "Q2_0": Q2_0}
    if size >= 128:
        kinds |= {"Q2_0 legacy": Q2_0_LEGACY, "PQ2_0": PQ2_0, "PTQ1_0": PTQ1_0}
    if size == 256:
        kinds |= {"TQ1_0": T.TQ1_0, "TQ2_0": T.TQ2_0}
    for name, kind in kinds.items():
        read[name] = read_gguf(write_gguf(tmp_path / f"{name}.gguf", weights, architecture, kind)).weights
    for name, got in read.items():
        assert payload(got) == want, name
        assert got.spec == weights.spec and got.spec.group_scales, name
        for a, b in zip(got.layers, weights.layers, strict=True):
            for norm in ("q_norm", "k_norm", "input_norm"):
                np.testing.assert_array_equal(getattr(a, norm), getattr(b, norm))


def test_a_head_is_ternary_where_every_group_holds_one_magnitude_and_zeros():
    signs = np.random.default_rng(3).integers(-1, 2, (5, 96))
    signs[2, 64:] = 0
    scales = np.array([[0.5, 3.0]] * 5, np.float32)
    scales[2, 1] = 0
    rows = (signs * np.repeat(scales, 64, axis=1)[:, :96]).astype(np.float32)
    found = head_scales(rows, 64)
    assert found is not None and np.array_equal(found, scales)
    for value in (0.25, 6.0, np.nan, np.inf):
        other = rows.copy()
        other[4, 70:72] = 3.0, value
        assert head_scales(other, 64) is None, value
    assert head_scales(rows, 96) is None


def test_converted_files_give_the_logits_of_the_hugging_face_form(tmp_path: Path):
    weights = made(128, 3)
    folder = write_folder(tmp_path / "hf", config_json(weights.spec), tensors_of(weights))
    want = GoldenModel(read_checkpoint(folder).weights, GROUPED).run_pass(range(4), range(4), [0] * 4)
    for kind in (PQ2_0, PTQ1_0):
        checkpoint = read_gguf(write_gguf(tmp_path / "m.gguf", weights, "qwen3", kind))
        convert(checkpoint, tmp_path / "m.tlm", GROUPED)
        with Model.open(tmp_path / "m.tlm", GROUPED) as opened:
            got = GoldenModel(opened.weights(), GROUPED).run_pass(range(4), range(4), [0] * 4)
        np.testing.assert_array_equal(got.logits, want.logits)


@pytest.mark.parametrize("kind", [Q2_0, Q2_0_LEGACY, PQ2_0, PTQ1_0])
def test_embedding_and_head_may_be_of_the_ternary_types(tmp_path: Path, kind: int):
    """int8 rows of weights of several scales: within half a step of the float ones. What tokens begin with is exact, and float16."""
    weights = made(128, 5, tied=False)
    x = np.random.default_rng(2).integers(-1, 2, (1024, 256)) * np.repeat(
        np.random.default_rng(3).uniform(0.5, 1, (1024, 2)).astype(np.float16).astype(np.float32), 128, axis=1
    )
    tensors = {name: (x.astype(np.float32), kind) for name in ("token_embd.weight", "output.weight")}
    got = read_gguf(write_gguf(tmp_path / "m.gguf", weights, "qwen3", kind, tensors=tensors)).weights
    for rows, scales in ((got.embedding, got.embedding_scales), got.head_rows):
        assert np.abs(rows * scales[:, None] - x).max() <= 0.5 * scales.max() * (1 + 1e-6)
    assert got.inputs is not None and got.inputs.dtype == np.float16
    np.testing.assert_array_equal(got.inputs, x)


def test_a_model_of_one_scale_a_matrix_in_q2_0_has_no_group_scales(tmp_path: Path):
    weights = model(2)
    got = read_gguf(write_gguf(tmp_path / "m.gguf", weights, kind=Q2_0)).weights
    assert not got.spec.group_scales
    for a, b in zip(got.layers, weights.layers, strict=True):
        for part in PARTS:
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))


@pytest.mark.parametrize("ranks", [2, 4])
def test_scales_of_blocks_of_rows_as_trilm_has_them(tmp_path: Path, ranks: int):
    """LLaMA with a scale for each block of rows of a matrix, one for every rank of its training: folder and files alike, and near float64."""
    weights = made(256, 4, qk_norm=False, kv_heads=4, tied=False)
    rng = np.random.default_rng(ranks)
    layers = []
    for layer in weights.layers:
        parts: dict[str, Any] = {}
        for name in PARTS:
            signs = np.sign(getattr(layer, name)).astype(np.int8)
            each = (0.02 * rng.uniform(0.7, 1.4, ranks)).astype(np.float16).astype(np.float32)
            parts[name], unit = ternary.group_integers(
                signs, np.repeat(each, len(signs) // ranks)[:, None], signs.shape[1]
            )
            parts[f"{name}_scale"] = float(unit)
        layers.append(replace(layer, **parts))
    weights = replace(weights, layers=layers)
    folder = write_folder(tmp_path / "hf", config_json(weights.spec), tensors_of(weights))
    for got in (
        read_checkpoint(folder).weights,
        *(read_gguf(write_gguf(tmp_path / f"{k}.gguf", weights, "llama", k)).weights for k in (T.F16, T.TQ2_0, Q2_0)),
    ):
        assert got.spec == weights.spec and payload(got) == payload(weights)
    ids = [3, 1, 4, 1]
    logits = GoldenModel(got, GROUPED).run_pass(ids, range(4), [0] * 4, (0, 4)).logits
    want = forward(got, ids, Options(True, True, True, True, scores=True, groups=True))
    assert np.abs(logits - want).max() < 0.02 * np.abs(want).max()


# ---- what is refused -------------------------------------------------------------------------------------------------


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        list((read_checkpoint if path.is_dir() else read_gguf)(path).weights.layers)
    assert "\n" not in str(e.value)


def test_blocks_of_q2_0_are_told_apart_by_the_span_or_refused(tmp_path: Path):
    weights = made(128)
    path = write_gguf(tmp_path / "m.gguf", weights, "qwen3", Q2_0)
    data = path.read_bytes()
    # A group scale's tensor one row short of what its span has room for: as many bytes as neither fills.
    at = data.find(b"blk.1.ffn_up.weight") + len(b"blk.1.ffn_up.weight") + 4 + 8
    assert data[at : at + 8] == (256).to_bytes(8, "little")
    path.write_bytes(data[:at] + (244).to_bytes(8, "little") + data[at + 8 :])
    refused(path, "blk.1.ffn_up.weight: is Q2_0, and neither blocks of 64 nor of 128 fill its 18,432 bytes")
    path.write_bytes(data[: -(1 << 16)])
    refused(path, "truncated or damaged|neither blocks")


def test_tensors_so_small_that_both_sizes_of_blocks_fit_are_refused(tmp_path: Path):
    path = tmp_path / "m.gguf"
    w = gguf.GGUFWriter(path, "qwen3")
    w.add_tensor("t", np.zeros(36, np.int8), raw_shape=(1, 128), raw_dtype=42)  # type: ignore[arg-type]
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    refused(path, "tensor t: is Q2_0, and blocks of 64 and of 128 both fill its (36|64) bytes")


@pytest.mark.parametrize("kind", [Q2_0, Q2_0_LEGACY, PQ2_0])
def test_code_3_is_refused_by_name(tmp_path: Path, kind: int):
    weights = made(128)
    path = write_gguf(tmp_path / "m.gguf", weights, "qwen3", kind)
    row = pack_groups(weights.layers[0].q[2:3] * np.float32(weights.layers[0].q_scale), kind).tobytes()
    data = bytearray(path.read_bytes())
    assert data.count(row) == 1
    data[data.find(row) + 2 + GROUP_OF[kind] // 4 - 1] |= 0b11000000
    path.write_bytes(data)
    refused(path, rf"attn_q.weight: code 3 at row 2, column {GROUP_OF[kind] - 1} is no ternary weight")


@pytest.mark.parametrize("kind", [Q2_0, PQ2_0, PTQ1_0])
@pytest.mark.parametrize(("value", "said"), [(np.nan, "nan"), (-1.0, "-1.0"), (np.inf, "inf")])
def test_scales_that_are_none_are_refused_with_their_block(tmp_path: Path, kind: int, value: float, said: str):
    weights = made(128)
    path = write_gguf(tmp_path / "m.gguf", weights, "qwen3", kind)
    row = pack_groups(weights.layers[0].q[2:3] * np.float32(weights.layers[0].q_scale), kind).tobytes()
    data = bytearray(path.read_bytes())
    at = data.find(row) + (26 if kind == PTQ1_0 else 0)
    data[at : at + 2] = np.float16(value).tobytes()
    path.write_bytes(data)
    refused(path, f"attn_q.weight: the scale of block {2 * 256 // GROUP_OF[kind]} is {said}; the file is damaged")


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("qwen3moe", "'qwen3moe', a mixture of experts, which is not supported"),
        ("qwen35", "linear attention .gated DeltaNet. in most layers, and .* Hadamard matrix, which is not supported"),
        ("qwen3next", "linear attention .gated DeltaNet."),
        ("minicpm", "muP scales of embedding, residual and head"),
        ("gemma3", "its architecture is 'gemma3'; supported are .*, llama, qwen3"),
    ],
)
def test_other_architectures_are_refused_by_what_they_have(tmp_path: Path, architecture: str, message: str):
    refused(write_gguf(tmp_path / "m.gguf", made(128), architecture, PQ2_0), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensors": {"blk.0.attn_q.bias": (np.zeros(256, np.float32), T.F32)}}, "attn_q.bias: linear layers with a bias are not"),
        ({"arch__residual_scale": 0.5}, r"qwen3.residual_scale is 0.5; a scale of its own \(muP\) is not supported"),
        ({"arch__expert_count": 8}, "qwen3.expert_count is 8; mixtures of experts are not supported"),
        ({"skip": ("blk.0.attn_q_norm.weight",)}, "tensor blk.0.attn_q_norm.weight is missing"),
    ],
)  # fmt: skip
def test_what_no_accelerator_has_is_refused_in_one_line(tmp_path: Path, options: dict[str, Any], message: str):
    refused(write_gguf(tmp_path / "m.gguf", made(128), "qwen3", PQ2_0, **options), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe', a mixture of experts, which is not supported"),
        ({"model_type": "qwen3_next"}, "linear attention .gated DeltaNet."),
        ({"num_experts": 128}, "num_experts is 128; mixtures of experts are not supported"),
        ({"scale_emb": 12}, r"scale_emb is 12; a scale of its own \(muP\) is not supported"),
        ({"attention_bias": True}, "attention_bias is set; linear layers with a bias are not supported"),
    ],
)
def test_folders_of_what_no_accelerator_has_are_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
):
    weights = made(128)
    refused(write_folder(tmp_path / "hf", config_json(weights.spec, **changes), tensors_of(weights)), message)


def test_a_folder_with_biases_or_groups_of_32_is_refused_in_one_line(tmp_path: Path):
    weights = made(128)
    name = "model.layers.0.self_attn.q_proj"
    tensors = tensors_of(weights) | {f"{name}.bias": np.zeros(256, np.float32)}
    refused(
        write_folder(tmp_path / "a", config_json(weights.spec), tensors),
        "q_proj.bias: linear layers with a bias are not supported",
    )
    tensors = tensors_of(weights)
    tensors[f"{name}.weight"][5, 32:64] *= np.float16(0.5)
    refused(
        write_folder(tmp_path / "b", config_json(weights.spec), tensors),
        r"q_proj.weight.*: is not ternary in groups of 64 inputs: magnitudes .* \(row 5, column \d+\)",
    )


def test_an_accelerator_of_one_scale_a_matrix_refuses_the_model_in_one_line(tmp_path: Path):
    checkpoint = read_gguf(write_gguf(tmp_path / "m.gguf", made(128, qk_norm=False), "llama", PQ2_0))
    with pytest.raises(UserError, match="build one with weight_format = 'grouped'") as e:
        convert(checkpoint, tmp_path / "m.tlm", TINY)
    assert "\n" not in str(e.value) and not (tmp_path / "m.tlm").exists()
