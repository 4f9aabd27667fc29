"""The element-wise pipeline: epilogues, statistics, quantisers and their buffers. Golden: `golden.elementwise`."""

from tellme.hw.elementwise.elementwise import Elementwise

__all__ = ["Elementwise"]
