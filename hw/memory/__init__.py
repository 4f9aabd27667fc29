"""Memory side of the accelerator: AXI4 masters, the beat reader, the beat writer and the writer of own K and V."""

from tellme.hw.memory.axi import Axi, AxiLite, AxiRead, AxiWrite
from tellme.hw.memory.kv_writer import KvWriter
from tellme.hw.memory.reader import StreamReader
from tellme.hw.memory.writer import BeatWriter

__all__ = ["Axi", "AxiLite", "AxiRead", "AxiWrite", "BeatWriter", "KvWriter", "StreamReader"]
