"""binary32 arithmetic: pipelines that take an operation a cycle, without handshake. Golden: `golden.fp`."""

from hw.fp.adder import Adder
from hw.fp.convert import FloatToFixed, FloatToInt8, IntToFloat
from hw.fp.functions import Exp2Float, Exp2Mantissa, Exponential, Reciprocal, ReciprocalSqrt
from hw.fp.multiplier import Multiplier
from hw.fp.pipeline import delay_line

__all__ = [
    "Adder",
    "Exp2Float",
    "Exp2Mantissa",
    "Exponential",
    "FloatToFixed",
    "FloatToInt8",
    "IntToFloat",
    "Multiplier",
    "Reciprocal",
    "ReciprocalSqrt",
    "delay_line",
]
