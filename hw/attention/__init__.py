"""Attention and the output head. Golden: `golden.attention`, `golden.head`."""

from tellme.hw.attention.block import MAX_GROUP
from tellme.hw.attention.unit import AttentionUnit

__all__ = ["MAX_GROUP", "AttentionUnit"]
