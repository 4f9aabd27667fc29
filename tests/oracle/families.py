"""Tiny models of every Hugging Face family: where their checkpoints and vectors are, and how their tokens are laid out."""

from __future__ import annotations

import hashlib
from pathlib import Path

FAMILIES = ("bitnet-latent", "bitnet-packed", "first-bitnet", "llama-ternary", "qwen3-ternary")
"""bitnet-latent: bfloat16, `autobitlinear` online. bitnet-packed: uint8, `autobitlinear` offline. first-bitnet: 1bitLLM's,
float16, heads of 96. llama-ternary: uint8, `bitlinear`, no sub-norms, GQA, rope_type llama3, untied head, in shards.
qwen3-ternary: uint8, `bitlinear`, QK-norm, GQA, heads that together are wider than the residual stream."""

FOLDER = Path(__file__).parent / "vectors"
SEQUENCES, LENGTH = 4, 128
"""512 random tokens, drawn from the model itself: each from the distribution that it gives after those before."""
TAPPED = 6
"""Tokens of the first sequence whose layers are recorded."""


def checkpoint(family: str) -> Path:
    """The checkpoint folder of a family."""
    return FOLDER / family


def vectors(family: str) -> Path:
    """What PyTorch made of it."""
    return FOLDER / f"{family}.npz"


def fingerprint(family: str) -> str:
    """Hash of every file of the checkpoint."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint(family).iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
