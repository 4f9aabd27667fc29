"""ULX3S-85F: the TLMM self-test as a bitstream, by Yosys, nextpnr and Project Trellis."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from amaranth.build.run import BuildPlan
from amaranth.hdl import ClockDomain, ClockSignal, Instance, Module, Signal
from amaranth.lib import io
from amaranth.lib.cdc import ResetSynchronizer
from amaranth_boards.ulx3s import ULX3S_85F_Platform

from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import build_hash
from tellme.golden.selftest import SELFTEST
from tellme.hw.selftest import SelfTest

NAME = "ulx3s"
DIVIDER = 8
"""Of the PLL's oscillator, which must run at 400 to 800 MHz (Lattice FPGA-TN-02200): 640 MHz."""


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
        ratio = Fraction(self.clock_hz, int(reference))
        m.submodules.pll = Instance(
            "EHXPLLL",
            a_FREQUENCY_PIN_CLKI=str(reference / 1e6),
            a_FREQUENCY_PIN_CLKOP=str(self.clock_hz / 1e6),
            p_CLKI_DIV=ratio.denominator,
            p_CLKFB_DIV=ratio.numerator,
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

    def elaborate(self, platform: Any) -> Module:
        m = super().elaborate(platform)
        pins = {
            "pin_tx": (platform.request("uart", 0, dir={"rx": "-", "tx": "-", "rts": "-", "dtr": "-"}).tx, self.tx),
            "pin_passed": (platform.request("led", 0, dir="-"), self.passed),
            "pin_failed": (platform.request("led", 7, dir="-"), self.failed),
        }
        for name, (pin, value) in pins.items():
            m.submodules[name] = buffer = io.Buffer("o", pin)
            m.d.comb += buffer.o.eq(value)
        return m


# ---- building --------------------------------------------------------------------------------------------------------


def build_name(config: AcceleratorConfig = SELFTEST) -> str:
    """What the files of the self-test's bitstream are called, without ending."""
    return f"tellme-{NAME}-{build_hash(config):08x}"


STEPS = (("yosys", ".json"), ("nextpnr-ecp5", ".config"), ("ecppack", ".bit"))
"""The tools in order, and the ending of what each writes last."""


def plan(name: str) -> BuildPlan:
    """Every file that the tools need, and `build_<name>.sh`, which runs them (as $YOSYS, $NEXTPNR_ECP5, $ECPPACK)."""
    # LUT4 alone: the decoders map to fewer cells and levels than with the slices' multiplexers (142 LUT4 in 5 levels
    # against 122 LUT4, 55 PFUMX and 33 L6MUX21 in 7; Yosys 0.70).
    return ULX3SPlatform().prepare(
        ULX3SSelfTest(),
        name=name,
        synth_opts="-nowidelut",
        nextpnr_opts=f"--report {name}.report.json --seed 1 --timing-allow-fail",
        ecppack_opts="--compress",
    )


def figures(report: dict[str, Any]) -> dict[str, float]:
    """Of nextpnr's JSON report: routed and wanted clock in MHz, and what is used of the chip."""
    ((_, clock),) = report["fmax"].items()
    used = {k: v["used"] for k, v in report["utilization"].items()}
    return {
        "fmax_mhz": float(clock["achieved"]),
        "clock_mhz": ULX3SPlatform.clock_hz / 1e6,
        "comb": used["TRELLIS_COMB"],
        "ff": used["TRELLIS_FF"],
        "ram": used["DP16KD"],
    }
