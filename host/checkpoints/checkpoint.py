"""Checkpoints of any kind, as those above this wing see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tellme.golden.spec import ModelSpec
from tellme.host.checkpoints import huggingface
from tellme.host.checkpoints.balance import unbalanced
from tellme.host.checkpoints.common import GGUF_MAGIC, Checkpoint, golden_errors, tell
from tellme.host.checkpoints.huggingface import read_checkpoint
from tellme.host.errors import UserError

__all__ = [
    "Checkpoint",
    "golden_errors",
    "is_checkpoint",
    "open_checkpoint",
    "read_checkpoint",
    "read_shape",
    "tell",
    "with_int8_inputs",
]


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint: a folder or a GGUF file. Everything else is taken for an image."""
    if path.is_dir() or path.suffix == ".gguf":
        return True
    try:
        if not path.is_file():  # a pipe would block
            return False
        with open(path, "rb") as f:
            return f.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError:
        return False


def with_int8_inputs(checkpoint: Checkpoint) -> Checkpoint:
    """The same model, its tokens beginning with int8 rows of the embedding instead of the checkpoint's own."""
    weights = checkpoint.weights
    if checkpoint.moved is not None and weights.spec.tied:
        return replace(checkpoint, weights=replace(unbalanced(weights, checkpoint.moved), inputs=None), moved=None)
    return replace(checkpoint, weights=replace(weights, inputs=None))


def open_checkpoint(path: Path, *, latent: bool = False) -> Checkpoint:
    """Reads a checkpoint of any kind: a Hugging Face folder or a GGUF file.

    Raises
    ------
    UserError : it cannot be used; see `host.checkpoints.huggingface.read_checkpoint` and `host.checkpoints.gguf.read_gguf`.
    """
    if path.is_dir():
        return read_checkpoint(path, latent=latent)
    return _gguf(path).read_gguf(path, latent=latent)


def read_shape(path: Path) -> tuple[ModelSpec, Callable[[int], bool] | None]:
    """The shape of a checkpoint (a folder, its config.json, or a GGUF file), and whether its head is ternary with a scale for every so many features, None
    if there are no weights. Nothing else is read.

    Raises
    ------
    UserError : it cannot be used; see `host.checkpoints.huggingface.read_shape` and `host.checkpoints.gguf.read_shape`.
    """
    if path.name == "config.json" or path.is_dir():
        return huggingface.read_shape(path if path.name == "config.json" else path / "config.json")
    found: tuple[ModelSpec, Callable[[int], bool]] = _gguf(path).read_shape(path)
    return found


def _gguf(path: Path) -> Any:
    try:
        from tellme.host.checkpoints import gguf
    except ImportError as e:
        raise UserError(f"{path}: GGUF files cannot be read ({e}); give a Hugging Face checkpoint folder") from e
    return gguf
