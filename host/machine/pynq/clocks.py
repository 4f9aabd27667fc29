"""The clock of the programmable logic."""

from __future__ import annotations

import warnings

from tellme.host.errors import DeviceError
from tellme.host.machine.pynq.handoff import CLOCK_TOLERANCE
from tellme.host.machine.pynq.ip import line, pynq


def clock_mhz() -> float:
    """Frequency of the PL clock that drives the accelerator, MHz."""
    return float(pynq.Clocks.fclk0_mhz)


def set_clock(wanted: float) -> str:
    """Sets the PL clock to what the accelerator was timed for, MHz, if it is not; says what it is.

    Raises
    ------
    DeviceError : it cannot be set: the answers would be right and too slow, or the chip would run beyond its timing.
    """
    try:
        before = clock_mhz()
        if abs(before - wanted) <= CLOCK_TOLERANCE * wanted:
            return f"{before:g} MHz"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pynq.Clocks.fclk0_mhz = wanted
        after = clock_mhz()
    except Exception as e:  # PYNQ computes with what the registers say: ValueError, ZeroDivisionError, AttributeError
        raise DeviceError(
            f"the PL clock's registers make no sense ({type(e).__name__}: {line(e)}), so {wanted:g} MHz cannot be set; "
            "power the board off and on, load only this overlay"
        ) from e
    if abs(after - wanted) > CLOCK_TOLERANCE * wanted:
        raise DeviceError(
            f"the PL clock is {after:g} MHz and cannot be set to the {wanted:g} MHz that the accelerator was built "
            "for; another program may hold the clocks: power the board off and on, load only this overlay"
        )
    return f"{after:g} MHz (was {before:g})"
