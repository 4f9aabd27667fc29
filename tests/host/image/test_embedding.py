"""Rows that tokens begin with: as exact as the checkpoint's, from the checkpoint through the image to the driver."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import tellme.host.cli
from tellme.golden.config import TINY
from tellme.golden.model import GoldenModel
from tellme.host.checkpoints.checkpoint import open_checkpoint, with_int8_inputs
from tellme.host.errors import UserError
from tellme.host.image.file import Image
from tellme.host.image.model import Model, convert
from tests.host.checkpoints.gguf_support import model as gguf_model
from tests.host.checkpoints.gguf_support import write_gguf
from tests.host.support import config_json, tensors_of, write_folder
from tests.models import random_weights, small_spec

EMBEDDING = "model.embed_tokens.weight"
OUTLIERS = np.array([1e4, -3e4, 1e-6, -2e-7, 0.0, 1.0])
"""What int8 rows lose, and float16 nearly does."""
TOKENS = [0, 1, 7, 49]


def name_bfloat16(path: Path) -> None:
    """Says of the uint16 tensors of a safetensors file that they are bfloat16, which NumPy does not have."""
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = data[8:end].replace(b'"U16"', b'"BF16"')
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[end:])


def checkpoint_of(folder: Path, dtype: str, tied: bool = True) -> tuple[Path, NDArray[np.float32]]:
    """A checkpoint whose embedding has outliers and is stored as `dtype`, and what its rows are exactly."""
    spec = small_spec(vocab=50, tied=tied)
    tensors: dict[str, Any] = tensors_of(random_weights(spec, 1))
    x = tensors[EMBEDDING].astype(np.float32)
    x[:, : len(OUTLIERS)] = OUTLIERS
    if dtype == "bfloat16":
        tensors[EMBEDDING] = (x.view(np.uint32) >> 16).astype(np.uint16)
        write_folder(folder, config_json(spec), tensors)
        name_bfloat16(folder / "model.safetensors")
        return folder, (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    tensors[EMBEDDING] = x.astype(dtype)
    return write_folder(folder, config_json(spec), tensors), tensors[EMBEDDING].astype(np.float32)


def flushed(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("float32", "float32"), ("float64", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16")],
)
def test_rows_are_the_checkpoint_s_own(tmp_path: Path, dtype: str, kind: str, tied: bool):
    folder, rows = checkpoint_of(tmp_path / "m", dtype, tied)
    checkpoint = open_checkpoint(folder)
    convert(checkpoint, tmp_path / "m.tlm", TINY)
    with Model.open(tmp_path / "m.tlm", TINY) as model:
        assert model.embedding_type == kind
        np.testing.assert_array_equal(model.embed(TOKENS), flushed(rows[TOKENS]))
        again = model.weights()
        np.testing.assert_array_equal(again.embedding, checkpoint.weights.embedding)
        np.testing.assert_array_equal(again.embedding_scales, checkpoint.weights.embedding_scales)
        for weights in (checkpoint.weights, again):
            np.testing.assert_array_equal(GoldenModel(weights, TINY).embed(TOKENS), model.embed(TOKENS))


@pytest.mark.parametrize("tied", [True, False])
def test_int8_rows_take_less_space_and_lose_what_is_small(tmp_path: Path, tied: bool):
    folder, rows = checkpoint_of(tmp_path / "m", "float32", tied)
    small = with_int8_inputs(open_checkpoint(folder))
    convert(small, tmp_path / "m.tlm", TINY)
    with Model.open(tmp_path / "m.tlm", TINY) as model:
        assert model.embedding_type == "int8"
        got = model.embed(TOKENS)
        np.testing.assert_array_equal(got, GoldenModel(model.weights(), TINY).embed(TOKENS))
    assert not got[:, 5].any() and rows[TOKENS, 5].all(), "1.0 beside 3e4 is lost"
    scale = np.abs(rows[TOKENS]).max(-1, keepdims=True) / 127
    assert (np.abs(got - rows[TOKENS]) <= 0.51 * scale).all()


@pytest.mark.parametrize(
    "kind", [gguf.GGMLQuantizationType[n] for n in ("F32", "F16", "BF16", "Q8_0", "Q4_0")], ids=lambda k: k.name
)
def test_rows_of_a_gguf_file_are_what_the_gguf_package_decodes(tmp_path: Path, kind: gguf.GGMLQuantizationType):
    weights = gguf_model()
    x = tensors_of(weights)[EMBEDDING].astype(np.float32)
    want = gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", weights, embedding=kind))
    convert(checkpoint, tmp_path / "m.tlm", TINY)
    with Model.open(tmp_path / "m.tlm", TINY) as model:
        np.testing.assert_array_equal(model.embed([0, 3]), flushed(want[[0, 3]]))


@pytest.mark.parametrize("kind", ["float8", 3, None])
def test_a_type_that_is_none_is_refused(tmp_path: Path, kind: Any):
    folder, _ = checkpoint_of(tmp_path / "m", "float32")
    convert(open_checkpoint(folder), tmp_path / "m.tlm", TINY)
    image = Image(tmp_path / "m.tlm")
    image.model["embedding"] = kind  # type: ignore[index]
    with pytest.raises(
        UserError, match=r"m.tlm: its header is broken, embedding of model must be int8, float32, .*convert"
    ):
        Model(image, TINY)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x * np.float32(np.nan), "embedding holds NaN or infinity"),
        (lambda x: x * 0, "embedding, by rows, holds only zeros"),
    ],
)
def test_damage_that_an_image_was_made_with_is_named(tmp_path: Path, spoil: Any, message: str):
    folder, rows = checkpoint_of(tmp_path / "m", "float32")
    checkpoint = open_checkpoint(folder)
    checkpoint = replace(checkpoint, weights=replace(checkpoint.weights, inputs=spoil(rows)))
    convert(checkpoint, tmp_path / "m.tlm", TINY)
    with pytest.raises(UserError, match=message):
        Model.open(tmp_path / "m.tlm", TINY)


def test_run_and_chat_say_when_logits_are_not_finite(tmp_path: Path):
    spec = small_spec(vocab=1024)
    weights = replace(random_weights(spec, 1), norm=np.full(spec.hidden, 3e38, np.float32))
    folder = str(write_folder(tmp_path / "m", config_json(spec), tensors_of(weights)))
    command = ["--backend", "golden", "--board", "tiny", "--model", folder, "--max-new-tokens", "2"]
    for words, given in ((["run", "--prompt", "a"], None), (["chat"], "a\n")):
        r = CliRunner().invoke(tellme.host.cli.app, [*words, *command], input=given)
        assert r.exit_code == 1, (r.stdout, r.stderr)
        assert "a logit behind token " in r.stderr and "the model or its conversion is broken" in r.stderr


def test_convert_and_info_say_which_rows_there_are(tmp_path: Path):
    run = CliRunner().invoke
    sizes = {}
    for choice, part in (("exact", "float32"), ("int8", None)):
        path = tmp_path / f"{choice}.tlm"
        r = run(tellme.host.cli.app, ["convert", "demo", str(path), "--board", "tiny", "--embedding", choice])
        assert r.exit_code == 0, r.stderr
        sizes[choice] = path.stat().st_size
        r = run(tellme.host.cli.app, ["info", str(path)])
        assert ("embedding (host)" in r.stdout) == (part is not None)
        assert part is None or part in r.stdout
    assert sizes["exact"] - sizes["int8"] == 1024 * 128 * 4
    r = run(tellme.host.cli.app, ["convert", "demo", str(tmp_path / "x.tlm"), "--board", "tiny", "--embedding", "int4"])
    assert r.exit_code == 2 and "--embedding must be exact or int8, not 'int4'" in r.stderr
    assert not (tmp_path / "x.tlm").exists()


def test_run_and_eval_take_the_rows_that_are_asked_for(tmp_path: Path):
    """The checkpoint's rows lie on no grid, so that int8 ones give other likelihoods."""
    invoke = CliRunner().invoke
    spec = small_spec(vocab=1024)
    tensors = tensors_of(random_weights(spec, 1))
    tensors[EMBEDDING] = tensors[EMBEDDING] * (1 + 0.3 * np.random.default_rng(1).random(tensors[EMBEDDING].shape))
    tensors[EMBEDDING] = tensors[EMBEDDING].astype(np.float32)
    folder = write_folder(tmp_path / "n", config_json(spec), tensors)
    text = tmp_path / "t.txt"
    text.write_text("Once upon a time there was a kind girl.")
    images = {}
    for rows in ("exact", "int8"):
        images[rows] = tmp_path / f"{rows}.tlm"
        r = invoke(
            tellme.host.cli.app, ["convert", str(folder), str(images[rows]), "--board", "tiny", "--embedding", rows]
        )
        assert r.exit_code == 0, r.stderr
    found: dict[str, set[float]] = {"exact": set(), "int8": set()}
    for rows, kind in (("exact", "float32"), ("int8", "int8")):
        for model, options in (
            (folder, ["--embedding", rows]),
            (images[rows], []),
            (images[rows], ["--embedding", rows]),
        ):
            r = invoke(
                tellme.host.cli.app, ["eval", str(model), "--text", str(text), "--board", "tiny", "--json", *options]
            )
            assert r.exit_code == 0, r.stderr
            assert json.loads(r.stdout)["embedding"] == kind
            found[rows].add(json.loads(r.stdout)["nll"])
        command = [
            "run",
            "--backend",
            "golden",
            "--board",
            "tiny",
            "--model",
            str(folder),
            "--prompt-ids",
            "1,2,3",
            "--max-new-tokens",
            "2",
        ]
        r = invoke(tellme.host.cli.app, [*command, "--embedding", rows])
        assert r.exit_code == 0, r.stderr
    assert all(len(values) == 1 for values in found.values()) and found["exact"] != found["int8"]
    for rows, other in (("exact", "int8"), ("int8", "exact")):
        for command in (
            ["eval", str(images[rows]), "--text", str(text)],
            ["run", "--prompt", "a", "--backend", "golden", "--model", str(images[rows])],
        ):
            r = invoke(tellme.host.cli.app, [*command, "--board", "tiny", "--embedding", other])
            assert r.exit_code == 2 and f"--embedding asks for {other}; convert the checkpoint with" in r.stderr, (
                r.output
            )
    r = invoke(tellme.host.cli.app, ["run", "--prompt", "a", "--embedding", "half"])
    assert r.exit_code == 2 and "--embedding must be exact or int8, not 'half'" in r.stderr
