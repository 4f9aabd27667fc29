"""Platforms of the boards with a processing system; facts come from `golden.boards`, pins from amaranth-boards.

The accelerator uses no pin: its clock, reset and memory come from the processing system. Pins are here for designs that
are put beside it.
"""

from __future__ import annotations

from typing import Any

from amaranth.build import Attrs, Clock, Connector, Pins, Resource
from amaranth.vendor import XilinxPlatform
from amaranth_boards.resources import ButtonResources, LEDResources, SwitchResources
from amaranth_boards.rfsoc4x2 import RFSoC4x2Platform as AmaranthRFSoC4x2Platform

from tellme.golden import boards
from tellme.golden.boards import Board
from tellme.golden.config import AcceleratorConfig
from tellme.hw.primitives import UltraScalePlus


class ZynqPlatform(XilinxPlatform):
    """A board whose programmable logic is fed by a processing system.

    Attributes
    ----------
    board : its facts.
    ultra_ram : the chip has UltraRAM.
    """

    board: Board
    resources: list[Resource] = []
    connectors: list[Connector] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "board" in cls.__dict__:
            cls.device, cls.package, cls.speed = cls.board.device, cls.board.package, cls.board.speed

    @property
    def ultra_ram(self) -> bool:
        return self.board.urams > 0


class MpsocPlatform(ZynqPlatform, UltraScalePlus):
    """A board with a Zynq UltraScale+."""


class KV260Platform(MpsocPlatform):
    board = boards.KV260


class KR260Platform(MpsocPlatform):
    board = boards.KR260


class ZCU104Platform(MpsocPlatform):
    """Pins: UG1267, tables of the user LEDs, buttons and switches."""

    board = boards.ZCU104
    resources = [
        *LEDResources(pins="D5 D6 A5 B5", attrs=Attrs(IOSTANDARD="LVCMOS33")),
        *ButtonResources(pins="B4 C4 B3 C3", attrs=Attrs(IOSTANDARD="LVCMOS33")),
        *SwitchResources(pins="E4 D4 F5 F4", attrs=Attrs(IOSTANDARD="LVCMOS33")),
    ]


class RFSoC4x2Platform(MpsocPlatform, AmaranthRFSoC4x2Platform):
    board = boards.RFSOC4X2
    resources = AmaranthRFSoC4x2Platform.resources
    connectors = AmaranthRFSoC4x2Platform.connectors


class Ultra96V2Platform(MpsocPlatform):
    board = boards.ULTRA96V2


class PynqZ2Platform(ZynqPlatform):
    """Pins: PYNQ-Z2 reference manual, chapter 'basic I/O'."""

    board = boards.PYNQ_Z2
    default_clk = "clk125"
    resources = [
        Resource("clk125", 0, Pins("H16", dir="i"), Clock(125e6), Attrs(IOSTANDARD="LVCMOS33")),
        *LEDResources(pins="R14 P14 N16 M14", attrs=Attrs(IOSTANDARD="LVCMOS33")),
        *ButtonResources(pins="D19 D20 L20 L19", attrs=Attrs(IOSTANDARD="LVCMOS33")),
        *SwitchResources(pins="M20 M19", attrs=Attrs(IOSTANDARD="LVCMOS33")),
    ]


PLATFORMS: dict[str, type[ZynqPlatform]] = {
    p.board.name: p
    for p in (KV260Platform, KR260Platform, ZCU104Platform, RFSoC4x2Platform, Ultra96V2Platform, PynqZ2Platform)
}


def platform_of(config: AcceleratorConfig) -> ZynqPlatform | None:
    """The platform of a configuration's board; None for one of no board. A board without a class here gets one, without pins."""
    if config.name in PLATFORMS:
        return PLATFORMS[config.name]()
    board = boards.BOARDS.get(config.name)
    if board is None:
        return None
    family = MpsocPlatform if board.ps == boards.ZYNQMP else ZynqPlatform
    return type(f"{board.name}Platform", (family,), {"board": board})()
