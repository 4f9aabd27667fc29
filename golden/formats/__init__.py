"""The formats of weights, by name. Another one is a file beside `packed_ternary` and a row here."""

from tellme.golden.formats.packed_ternary import PackedTernary
from tellme.golden.formats.weight_format import WeightFormat

TERNARY = PackedTernary()
"""The format of every accelerator that is built so far."""

FORMATS: dict[str, WeightFormat] = {f.name: f for f in (TERNARY,)}

__all__ = ["FORMATS", "TERNARY", "WeightFormat"]
