"""A tiny model with an attention sink: where its checkpoint and vectors are."""

from __future__ import annotations

from tests.oracle import families

CHECKPOINT = families.checkpoint("bitnet-sink")
VECTORS = families.vectors("bitnet-sink")
LENGTH = 3968
"""Tokens: the context of the kv260."""
ENDS = 128
"""Positions from each end whose logits are recorded."""


def fingerprint() -> str:
    """Hash of every file of the checkpoint."""
    return families.fingerprint("bitnet-sink")
