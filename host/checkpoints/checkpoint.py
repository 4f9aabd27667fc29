"""Checkpoints of any kind, as those above this wing see them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
    try:
        from tellme.host.checkpoints.gguf import read_gguf
    except ImportError as e:
        raise UserError(f"{path}: GGUF files cannot be read ({e}); give a Hugging Face checkpoint folder") from e
    return read_gguf(path, latent=latent)
