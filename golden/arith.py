"""Arithmetic of sizes."""

from __future__ import annotations


def ceil_div(n: int, d: int) -> int:
    """n / d rounded up: how many times d it takes to hold n."""
    return -(-n // d)
