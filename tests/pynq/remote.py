"""The board's end of PYNQ.remote: gRPC services before a simulated board.

As the published service does it: a buffer is written from its start in chunks, read as a whole in chunks, flushed and
invalidated as a whole; a file is written as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from itertools import count
from typing import Any

import grpc
from pynq.remote import (
    buffer_pb2,
    buffer_pb2_grpc,
    mmio_pb2,
    mmio_pb2_grpc,
    remote_device_pb2,
    remote_device_pb2_grpc,
)

from tests.pynq.board import Bo, Board

CHUNK = 1 << 16
FPGA_MANAGER = "/sys/class/fpga_manager/fpga0/"


class _Device(remote_device_pb2_grpc.RemoteDeviceServicer):
    def __init__(self, board: Board):
        self.board = board
        self.files = board.files
        self.files |= {
            "/proc/version": b"Linux version 6.6.40-xilinx aarch64",
            FPGA_MANAGER + "state": b"operating",
            FPGA_MANAGER + "flags": b"0",
        }

    def _file(self, path: str) -> bytes | None:
        return self.board.meminfo().encode() if path == "/proc/meminfo" else self.files.get(path)

    def existsfile(self, request: Any, context: Any) -> Any:
        return remote_device_pb2.ExistsFileResponse(exists=self._file(request.file_path) is not None)

    def readfile(self, request: Any, context: Any) -> Iterator[Any]:
        yield remote_device_pb2.ReadFileResponse(data=self._file(request.file_path) or b"")

    def writefile(self, requests: Iterator[Any], context: Any) -> Any:
        path, data = "", b""
        for request in requests:
            path, data = request.file_path, data + request.data
        if path == FPGA_MANAGER + "firmware":
            self.board.configure(self.files["/lib/firmware/" + data.decode()])
        else:
            self.files[path] = data
        return remote_device_pb2.WriteFileResponse()

    def set_bitstream_attrs(self, request: Any, context: Any) -> Any:
        return remote_device_pb2.SetBitstreamAttrsResponse()


class _Mmio(mmio_pb2_grpc.MmioServicer):
    def __init__(self, board: Board):
        self.board = board
        self.maps: dict[str, int] = {}

    def get_mmio(self, request: Any, context: Any) -> Any:
        name = str(len(self.maps))
        self.maps[name] = request.base_addr
        return mmio_pb2.GetMmioResponse(mmio_id=name)

    def read(self, request: Any, context: Any) -> Any:
        return mmio_pb2.ReadResponse(data=self.board.read32(self.maps[request.mmio_id] + request.offset))

    def write(self, request: Any, context: Any) -> Any:
        value = int.from_bytes(request.data, "little")
        self.board.write32(self.maps[request.mmio_id] + request.offset, value)
        return mmio_pb2.WriteResponse()


class _Buffers(buffer_pb2_grpc.RemoteBufferServicer):
    def __init__(self, board: Board):
        self.board = board
        self.buffers: dict[str, Bo] = {}
        self.names = count()

    def allocate(self, request: Any, context: Any) -> Any:
        if self.board.allocation_fails or request.size > self.board.free:
            return buffer_pb2.AllocateResponse(msg="bad_alloc")
        name = f"b{next(self.names)}"
        self.buffers[name] = Bo(self.board, request.size)
        self.board.allocated += 1
        return buffer_pb2.AllocateResponse(buffer_id=name)

    def write(self, requests: Iterator[Any], context: Any) -> Any:
        at = 0
        for request in requests:
            self.buffers[request.buffer_id].map()[at : at + len(request.data)] = request.data
            at += len(request.data)
        return buffer_pb2.BufferWriteResponse()

    def read(self, request: Any, context: Any) -> Iterator[Any]:
        data = self.buffers[request.buffer_id].map()
        for i in range(0, len(data), CHUNK):
            yield buffer_pb2.BufferReadResponse(data=bytes(data[i : i + CHUNK]))

    def freebuffer(self, request: Any, context: Any) -> Any:
        self.buffers.pop(request.buffer_id).release()
        return buffer_pb2.FreeBufferResponse()

    def flush(self, request: Any, context: Any) -> Any:
        self.buffers[request.buffer_id].sync("to")
        return buffer_pb2.FlushResponse()

    def invalidate(self, request: Any, context: Any) -> Any:
        self.buffers[request.buffer_id].sync("from")
        return buffer_pb2.InvalidateResponse()

    def physical_address(self, request: Any, context: Any) -> Any:
        return buffer_pb2.AddressResponse(address=self.buffers[request.buffer_id].address())


@contextmanager
def serving(board: Board, port: int = 0) -> Iterator[int]:
    """Serves a board on localhost; gives the port, a free one if 0."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    remote_device_pb2_grpc.add_RemoteDeviceServicer_to_server(_Device(board), server)
    mmio_pb2_grpc.add_MmioServicer_to_server(_Mmio(board), server)
    buffer_pb2_grpc.add_RemoteBufferServicer_to_server(_Buffers(board), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    assert bound, f"port {port} is taken"
    server.start()
    try:
        yield bound
    finally:
        server.stop(1).wait()
