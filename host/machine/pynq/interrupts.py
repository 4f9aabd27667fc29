"""The end of a pass by interrupt, through the kernel's UIO driver."""

from __future__ import annotations

import select
import struct
from typing import Any, BinaryIO

from tellme.host.machine.pynq.network import architecture

IRQ = {"aarch64": 121, "armv7l": 61}
"""Interrupt line of the first PL interrupt as /proc/interrupts counts it: pl_ps_irq0[0], IRQ_F2P[0]."""


def open_interrupt(device: Any, overlay: Any) -> BinaryIO | None:
    """The UIO device of the first PL interrupt, which is the accelerator's; None where it must be polled.

    PYNQ's own Interrupt needs an interrupt controller in the design, and an event loop that does not run already, as a
    notebook's does.
    """
    if device.has_capability("REMOTE") or getattr(overlay, "interrupt_controllers", None):
        return None
    try:
        from pynq import interrupt

        path = interrupt.get_uio_irq(IRQ.get(architecture(device), 0))
        return None if path is None else open(path, "r+b", buffering=0)
    except OSError:
        return None


def wait_interrupt(uio: BinaryIO, timeout_s: float) -> bool:
    """Enables the interrupt and waits for it; False when it did not come. The kernel masks it when it comes."""
    uio.write(struct.pack("<I", 1))
    if not select.select([uio], [], [], timeout_s)[0]:
        return False
    uio.read(4)
    return True
