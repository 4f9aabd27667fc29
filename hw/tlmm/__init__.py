"""Ternary matrix multiplication by table lookup: one beat of weights a cycle, all lanes at once."""
