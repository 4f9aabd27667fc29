"""The formats of weights, by name. Another one is a file beside `packed_ternary` and a row here."""

from tellme.golden.formats.grouped_ternary import GroupedTernary
from tellme.golden.formats.packed_ternary import PackedTernary
from tellme.golden.formats.weight_format import WeightFormat

TERNARY = PackedTernary()
"""One scale a matrix: BitNet and its kin."""

GROUPED = GroupedTernary()
"""A scale for every 64 weights: Ternary Bonsai, TriLM."""

FORMATS: dict[str, WeightFormat] = {f.name: f for f in (TERNARY, GROUPED)}

__all__ = ["FORMATS", "GROUPED", "TERNARY", "WeightFormat"]
