"""Arithmetic of sizes. In hardware `amaranth.utils` has the same logarithms."""

from __future__ import annotations


def ceil_div(n: int, d: int) -> int:
    """n / d rounded up: how many times d it takes to hold n."""
    return -(-n // d)


def ceil_log2(n: int) -> int:
    """Bits that count to n - 1: 0 for n = 1."""
    return (n - 1).bit_length()


def exact_log2(n: int) -> int:
    """The power of two that n is.

    Raises
    ------
    ValueError : n is none.
    """
    if n < 1 or n & (n - 1):
        raise ValueError(f"{n} is no power of two")
    return n.bit_length() - 1
