"""binary32 arithmetic: pipelines that take an operation a cycle, without handshake. Golden: `golden.fp`."""

from tellme.hw.fp.adder import Adder
from tellme.hw.fp.convert import FloatToFixed, FloatToInt8, IntToFloat
from tellme.hw.fp.functions import Exp2Mantissa, Exponential, Reciprocal, ReciprocalSqrt
from tellme.hw.fp.multiplier import Multiplier

__all__ = [
    "Adder",
    "Exp2Mantissa",
    "Exponential",
    "FloatToFixed",
    "FloatToInt8",
    "IntToFloat",
    "Multiplier",
    "Reciprocal",
    "ReciprocalSqrt",
]
