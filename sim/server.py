"""Runs inside the simulator: does what the host asks for over a socket, and lets no cycle pass in between.

Commands are 13 bytes (kind, offset, value, cycles), answers 16 (data, response, irq, cycle); see sim/device.py.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, ValueChange

COMMAND = struct.Struct("<BIII")
ANSWER = struct.Struct("<IHHQ")
READ, WRITE, RUN, QUIT, RESET = range(5)
SOCKET_FD = "TELLME_SOCKET_FD"
_PR_SET_PDEATHSIG = 1


def _receive(connection: socket.socket) -> bytes:
    data = b""
    while len(data) < COMMAND.size:
        part = connection.recv(COMMAND.size - len(data))
        if not part:
            return b""
        data += part
    return data


@cocotb.test()
async def serve(dut: Any) -> None:
    # The simulator must not outlive its host, whatever happens to that one.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    connection = socket.socket(fileno=int(os.environ[SOCKET_FD]))
    await FallingEdge(dut.reset)
    toggle = 0
    connection.sendall(ANSWER.pack(0, 0, 0, 0))
    while True:
        command = _receive(connection)
        if not command:
            return
        kind, offset, value, cycles = COMMAND.unpack(command)
        if kind == QUIT:
            return
        dut.request_kind.value = kind
        dut.request_address.value = offset
        dut.request_data.value = value
        dut.request_cycles.value = cycles
        toggle ^= 1
        dut.request.value = toggle
        await ValueChange(dut.answer)
        connection.sendall(
            ANSWER.pack(
                int(dut.answer_data.value),
                int(dut.answer_response.value),
                int(dut.answer_irq.value),
                int(dut.answer_cycle.value),
            )
        )
