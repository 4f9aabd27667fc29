"""ULX3S-85F: the TLMM self-test as a bitstream, by Yosys, nextpnr and Project Trellis."""

from __future__ import annotations

from amaranth.hdl import ClockDomain, ClockSignal, Instance, Module, Signal
from amaranth.lib import io
from amaranth.lib.cdc import ResetSynchronizer
from amaranth_boards.ulx3s import ULX3S_85F_Platform

from golden.config import AcceleratorConfig
from golden.selftest import SELFTEST
from hw.selftest import SelfTest

NAME = "ulx3s"
DIVIDER = 6
"""Of the PLL's oscillator, which must run at 400 to 800 MHz (Lattice FPGA-TN-02200): 600 MHz."""


class ULX3SPlatform(ULX3S_85F_Platform):
    """Adds the `sync` clock: the board's 25 MHz multiplied to `clock_hz`."""

    clock_hz = SELFTEST.clock_hz

    def create_missing_domain(self, name: str) -> Module:
        if name != "sync":
            return super().create_missing_domain(name)
        m = Module()
        pin = self.request(self.default_clk, dir="-")
        m.submodules.pin = buffer = io.Buffer("i", pin)
        locked, clock = Signal(), Signal()
        reference = self.default_clk_frequency
        m.submodules.pll = Instance(
            "EHXPLLL",
            a_FREQUENCY_PIN_CLKI=str(reference / 1e6),
            a_FREQUENCY_PIN_CLKOP=str(self.clock_hz / 1e6),
            p_CLKI_DIV=1,
            p_CLKFB_DIV=round(self.clock_hz / reference),
            p_CLKOP_DIV=DIVIDER,
            p_CLKOP_CPHASE=DIVIDER - 1,
            p_CLKOP_ENABLE="ENABLED",
            p_FEEDBK_PATH="CLKOP",
            i_CLKI=buffer.i,
            i_CLKFB=clock,
            i_RST=0,
            i_STDBY=0,
            o_CLKOP=clock,
            o_LOCK=locked,
        )
        m.domains += ClockDomain("sync")
        m.d.comb += ClockSignal("sync").eq(clock)
        # Released a few cycles after the PLL has locked.
        m.submodules.reset = ResetSynchronizer(~locked, domain="sync")
        return m


class ULX3SSelfTest(SelfTest):
    """The self-test on the board's pins: the report on the USB serial port, LED 0 for a pass, LED 7 for a failure."""

    def __init__(self, config: AcceleratorConfig = SELFTEST) -> None:
        super().__init__(config)

    def elaborate(self, platform: ULX3SPlatform) -> Module:
        m = super().elaborate(platform)
        m.d.comb += [
            platform.request("uart", 0).tx.o.eq(self.tx),
            platform.request("led", 0).o.eq(self.passed),
            platform.request("led", 7).o.eq(self.failed),
        ]
        return m
