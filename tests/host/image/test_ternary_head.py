"""A head that is ternary in a checkpoint: convert finds it and keeps it as it is; what images of it hold, and who refuses them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.model import GoldenModel
from tellme.host.checkpoints.checkpoint import open_checkpoint, with_int8_inputs
from tellme.host.checkpoints.gguf import read_gguf
from tellme.host.cli import app
from tellme.host.errors import UserError
from tellme.host.image.model import Model, convert
from tellme.host.image.screening import with_head, with_ternary_head
from tellme.host.machine.measurement import shape
from tellme.host.machine.program import compile_program
from tellme.host.machine.screening import HeadChoice, choose
from tests.host.checkpoints.gguf_support import PQ2_0, T, write_gguf
from tests.host.checkpoints.test_grouped import made
from tests.host.support import config_json, tensors_of, write_folder
from tests.models import random_weights, small_spec

GROUPED = replace(TINY, weight_format="grouped")
LLAMA: dict[str, Any] = dict(activation="silu", attn_sub_norm=False, ffn_sub_norm=False)


def head_of(rows: int, features: int, size: int, seed: int = 3) -> NDArray[np.float32]:
    """Rows of a ternary head as a checkpoint has them, with a scale of float16 for every `size` features."""
    rng = np.random.default_rng(seed)
    scales = rng.uniform(0.25, 0.5, (rows, features // size)).astype(np.float16).astype(np.float32)
    return (rng.integers(-1, 2, (rows, features)) * np.repeat(scales, size, axis=1)).astype(np.float32)


def folder(path: Path, size: int, *, tied: bool = False, outlier: bool = False) -> tuple[Path, NDArray[np.float32]]:
    """A checkpoint whose head, or whose embedding that is the head, is ternary, with a scale for every `size` features."""
    weights = random_weights(small_spec(vocab=300, hidden=128, tied=tied, **LLAMA), 2)
    tensors = tensors_of(weights)
    rows = head_of(300, 128, size)
    tensors["model.embed_tokens.weight" if tied else "lm_head.weight"] = rows
    if outlier:  # which the int8 rows of a head would have moved into the gain
        tensors["model.norm.weight"] = tensors["model.norm.weight"].copy()
        tensors["model.norm.weight"][5] = 3e4
    return write_folder(path, config_json(weights.spec), tensors), rows


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("config", "size"), [(TINY, 128), (GROUPED, 64), (GROUPED, 128)], ids=["plain", "64", "128"])
def test_a_ternary_head_is_found_and_comes_back_from_the_image(
    tmp_path: Path, config: AcceleratorConfig, size: int, tied: bool
) -> None:
    path, rows = folder(tmp_path / "m", size, tied=tied, outlier=True)
    checkpoint = open_checkpoint(path)
    kept = with_ternary_head(checkpoint, config)
    assert kept is not None and kept.weights.spec.ternary_head and kept.weights.screen is not None
    assert kept.weights.norm[5] == 3e4, "nothing is moved where no row is rounded"
    ternary = kept.weights.screen
    exact = ternary.planes[:, 0].astype(np.float64) * ternary.scales * float(ternary.unit)
    assert (exact == rows).all()
    for mode in (None, "full", "screened", "auto"):
        assert with_head(checkpoint, config, mode).weights.spec.ternary_head
    for some in (kept, with_int8_inputs(kept)):
        convert(some, tmp_path / "m.tlm", config)
        with Model.open(tmp_path / "m.tlm", config) as model:
            assert {"head", "rows"}.isdisjoint(model.image.sections) and "screen" in model.image.sections
            back = model.weights()
            assert back.spec == some.weights.spec and back.screen is not None and back.screen.exact
            assert (back.screen.planes == ternary.planes).all() and (back.screen.scales == ternary.scales).all()
            assert back.screen.unit == ternary.unit and model.screen_facts is not None and model.screen_facts.exact
            want = GoldenModel(some.weights, config).prefill([1, 2, 3])
            assert (GoldenModel(back, config).prefill([1, 2, 3]).logits == want.logits).all()
            assert (model.embed([7, 8]) == GoldenModel(some.weights, config).embed([7, 8])).all()
            assert compile_program(model, config).screened


def test_a_ternary_head_of_a_gguf_file_is_kept_with_the_scales_of_its_blocks(tmp_path: Path) -> None:
    weights, rows = made(128, 5, tied=False), head_of(1024, 256, 128)
    file = write_gguf(tmp_path / "m.gguf", weights, "qwen3", PQ2_0, tensors={"output.weight": (rows, PQ2_0)})
    kept = with_ternary_head(read_gguf(file), GROUPED)
    assert kept is not None and kept.weights.screen is not None
    assert (kept.weights.screen.planes[:, 0] * np.float64(kept.weights.screen.unit) == rows).all()


@pytest.mark.parametrize(
    ("config", "size"),
    [(KV260, 128), (TINY, 64), (GROUPED, 32)],
    ids=["no such accelerator", "groups in a format without", "smaller groups"],
)
def test_a_head_that_cannot_be_kept_so_is_one_of_int8_rows(
    tmp_path: Path, config: AcceleratorConfig, size: int
) -> None:
    path, _ = folder(tmp_path / "m", size)
    assert with_ternary_head(open_checkpoint(path), config) is None
    assert not with_head(open_checkpoint(path), config, None).weights.spec.ternary_head


def heads(path: Path, kind: str, size: int) -> Path:
    """A checkpoint of which `kind` says where it is and what its last row holds."""
    weights, rows = made(128, 5, tied=False), head_of(1024, 256, size)
    if "odd" in kind:
        rows[-1, 7] = 2
    if "folder" not in kind:
        types = {"output.weight": (rows, PQ2_0 if kind == "blocks" else T.F32)}
        return write_gguf(path / "m.gguf", weights, "qwen3", PQ2_0, tensors=types)
    floats = {**tensors_of(random_weights(small_spec(vocab=300, hidden=128, tied="tied" in kind, **LLAMA), 2))}
    name = "model.embed_tokens.weight" if "tied" in kind else "lm_head.weight"
    floats[name] = rows[-300:, :128].copy()
    spec = small_spec(vocab=300, hidden=128, tied="tied" in kind, **LLAMA)
    return write_folder(path / "m", config_json(spec), floats)


@pytest.mark.parametrize("config", [TINY, GROUPED, KV260], ids=["a scale a row", "groups", "no such accelerator"])
@pytest.mark.parametrize(
    ("kind", "size"),
    [("blocks", 128), *product(("floats", "odd floats", "folder", "odd folder", "tied folder"), (128, 32))],
)
def test_shapes_of_checkpoints_are_those_of_their_images(
    tmp_path: Path, kind: str, size: int, config: AcceleratorConfig
) -> None:
    """Without reading anything but the head."""
    path = heads(tmp_path, kind, size)
    checkpoint = open_checkpoint(path)
    want = (with_ternary_head(checkpoint, config) or checkpoint).weights.spec.ternary_head
    found = [size == 128 and config is GROUPED, size == 128 and "folder" in kind and config is TINY]
    assert want is (any(found) and "odd" not in kind)
    assert shape(str(path), config).ternary_head is want
    if path.is_dir():
        assert shape(str(path / "config.json"), config).ternary_head is want
        (path / "model.safetensors").unlink()
        assert shape(str(path), config).ternary_head is False, "without weights"


def test_what_is_said_of_a_checkpoint_is_said_of_its_image(tmp_path: Path) -> None:
    """By the commands, also where no accelerator is named."""

    def said(*arguments: str) -> dict[str, Any]:
        result = CliRunner().invoke(app, [*arguments, "--json"])
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    path, image = str(folder(tmp_path / "m", 128)[0]), str(tmp_path / "m.tlm")
    said("convert", path, image, "--board", "tiny")
    one, other = (
        said("plan", "--model", m, "--board", "tiny", "--context", "20", "--prompt", "9") for m in (path, image)
    )
    assert one["bytes_per_pass"] == other["bytes_per_pass"] and one["tokens_per_s"] == other["tokens_per_s"]
    full = said(
        "plan", "--model", path, "--board", "tiny", "--context", "20", "--prompt", "9", "--set", "ternary_head=false"
    )
    assert full["bytes_per_pass"] > one["bytes_per_pass"]
    all_of, of_tiny, of_image = said("info", path), said("info", path, "--board", "tiny"), said("info", image)
    tiny = next(p for p in all_of["presets"] if p["board"] == "tiny")
    assert [tiny] == of_tiny["presets"] and tiny == next(p for p in of_image["presets"] if p["board"] == "tiny")
    kinds = {p["part"]: p["as"] for p in all_of["parts"]}
    assert kinds["head"] == "int8", f"laid out for {all_of['laid_out_for']}, which takes none"


def test_convert_says_what_it_made_of_the_head(tmp_path: Path) -> None:
    path, _ = folder(tmp_path / "m", 128)

    def facts(*options: str) -> dict[str, Any] | None:
        out = tmp_path / f"{len(options)}{''.join(options)}.tlm".replace("--", "")
        result = CliRunner().invoke(app, ["convert", str(path), str(out), "--board", "tiny", "--json", *options])
        assert result.exit_code == 0, result.output
        head = json.loads(result.stdout)["head"]
        info = CliRunner().invoke(app, ["info", str(out), "--json"])
        assert info.exit_code == 0, info.output
        said = json.loads(info.stdout)
        assert said["spec"]["ternary_head"] is bool(head and head["exact"])
        kinds = {p["part"]: p["as"] for p in said["parts"]}
        assert kinds["head"] == ("ternary" if said["spec"]["ternary_head"] else "int8")
        return head  # type: ignore[no-any-return]

    assert facts() == {"planes": 1, "exact": True, "margin": 0.0, "calibration": None}
    assert facts("--head", "full") is None
    copy = facts("--head", "screened", "--planes", "1")
    assert copy is not None and not copy["exact"]


def test_an_accelerator_without_it_refuses_the_image_in_one_line(tmp_path: Path) -> None:
    path, _ = folder(tmp_path / "m", 128)
    kept = with_ternary_head(open_checkpoint(path), TINY)
    assert kept is not None
    convert(kept, tmp_path / "m.tlm", TINY)
    other = replace(TINY, ternary_head=False)
    with Model.open(tmp_path / "m.tlm", other) as model, pytest.raises(UserError) as caught:
        compile_program(model, other)
    assert "convert the checkpoint with --head full, or build one with --set ternary_head=true" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_choice_of_head_is_exact(tmp_path: Path) -> None:
    path, _ = folder(tmp_path / "m", 128)
    kept = with_ternary_head(open_checkpoint(path), TINY)
    assert kept is not None and kept.weights.screen is not None
    ternary = kept.weights.screen
    assert choose("m", ternary, None, None, 1000) == HeadChoice(mode="auto", candidates=256)
    assert choose("m", ternary, "screened", 64, 1000) == HeadChoice(mode="screened", candidates=64)
    assert choose("m", ternary, "full", None, 1000).mode == "full"
    best, bound = np.float32([1.0, 1.0]), np.float32([1.0, 0.5])
    assert choose("m", ternary, None, None, 1000).doubts(best, bound) == (False, False)
