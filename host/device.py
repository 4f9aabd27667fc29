"""The device interface: registers and a buffer shared with the accelerator. Simulation and board implement it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class Device(Protocol):
    """What the driver needs of a machine that holds an accelerator.

    Attributes
    ----------
    memory : uint8[ports, beats, port_bytes], the shared buffer; `memory[i]` is what port i reads and writes.
    port_bases : byte address of each port's region, as the accelerator sees it.
    """

    @property
    def memory(self) -> NDArray[np.uint8]: ...

    @property
    def port_bases(self) -> tuple[int, ...]: ...

    def read(self, offset: int) -> int:
        """Value of the 32-bit register at byte `offset`."""
        ...

    def write(self, offset: int, value: int) -> None:
        """Writes the 32-bit register at byte `offset`."""
        ...

    def flush(self, start: int, beats: int) -> None:
        """Makes what the host wrote to beats [start, start + beats) visible to the accelerator."""
        ...

    def invalidate(self, start: int, beats: int) -> None:
        """Makes what the accelerator wrote to beats [start, start + beats) visible to the host."""
        ...

    def wait_done(self, timeout_s: float) -> bool:
        """Waits until STATUS.done is set; False when `timeout_s` seconds of wall clock went by without it."""
        ...

    def close(self) -> None:
        """Gives the device back. No call may follow but `close`."""
        ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *exc: object) -> None: ...
