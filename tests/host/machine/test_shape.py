"""Shapes of models for `plan`, `bench` and `explore`: of a name, of a file, and of a config.json without weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tellme.golden.config import TINY
from tellme.golden.shapes import SHAPES
from tellme.host.checkpoints.checkpoint import open_checkpoint
from tellme.host.errors import UserError
from tellme.host.image.model import convert, demo_folder
from tellme.host.machine.measurement import shape


def test_published_shapes_have_names() -> None:
    assert all(shape(name) == spec for name, spec in SHAPES.items())


def test_a_file_has_the_shape_of_its_model(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(demo_folder())
    spec = checkpoint.weights.spec
    assert shape("demo") == spec
    assert shape(str(demo_folder())) == spec
    shutil.copy(demo_folder() / "config.json", tmp_path)
    for name in (tmp_path, tmp_path / "config.json"):
        assert shape(str(name)) == spec, "without weights"
    convert(checkpoint, tmp_path / "demo.tlm", TINY)
    assert shape(str(tmp_path / "demo.tlm")) == spec


def test_what_has_no_shape_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match="'bitnet-3b' is not a known shape; there are bitnet-0.7b, bitnet-2b, bonsai-1.7b, bonsai-4b, bonsai-8b, falcon-e-1b, falcon-e-3b, falcon3-1b, falcon3-3b, llama3-8b, demo, demo-qwen3, or",
    ):
        shape("bitnet-3b")
    config = json.loads((demo_folder() / "config.json").read_text())
    for changes, message in (
        ({"hidden_size": "many"}, "hidden_size"),
        ({"model_type": "gpt2", "architectures": []}, "gpt2"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=message):
            shape(str(tmp_path))
    (tmp_path / "x.tlm").write_bytes(b"nothing")
    with pytest.raises(UserError, match="x.tlm"):
        shape(str(tmp_path / "x.tlm"))
