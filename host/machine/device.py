"""The device interface: registers and a buffer shared with the accelerator. Simulation and board implement it."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Regions: TypeAlias = NDArray[np.uint8] | tuple[NDArray[np.uint8], ...]
"""A buffer by ports."""


@runtime_checkable
class Device(Protocol):
    """What the driver needs of a machine that holds an accelerator.

    Attributes
    ----------
    memory : the shared buffer; `memory[i]`, uint8[beats, port_bytes], is what port i reads and writes. One array of three
        axes, or an array a port where their regions lie at different distances.
    port_bases : byte address of each port's region, as the accelerator sees it.
    """

    @property
    def memory(self) -> Regions: ...

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
