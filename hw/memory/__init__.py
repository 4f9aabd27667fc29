"""Memory side of the accelerator: AXI4 masters, the beat reader, the beat writer and the writer of own K and V."""

from hw.memory.axi import Axi, AxiLite, AxiRead, AxiWrite
from hw.memory.kv_writer import KvWriter
from hw.memory.reader import StreamReader
from hw.memory.writer import BeatWriter

__all__ = ["Axi", "AxiLite", "AxiRead", "AxiWrite", "BeatWriter", "KvWriter", "StreamReader"]
