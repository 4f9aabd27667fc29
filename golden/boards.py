"""Facts about the boards: chip, processing system, memory, and what a build for one is called. No tool is needed here.

Sources: data sheets DS891 (Zynq UltraScale+), DS889 (RFSoC), DS987 (K26), DS190 (Zynq-7000) for resources; UG1085 and
UG585 for the memory ports and address maps; UG1089 (KV260), UG1092 (KR260), UG1267 (ZCU104), the RFSoC 4x2, Ultra96-V2
and PYNQ-Z2 reference manuals for memory. `cma_default` is what the board's PYNQ or Ubuntu image reserves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from golden.config import PRESETS, AcceleratorConfig
from golden.registers import build_hash

GIB = 1 << 30
MIB = 1 << 20

CELL = "tellme_0"
"""Name of the accelerator in the block design: `overlay.tellme_0`."""

MODULE = "tellme_axi"
"""Name of the Verilog module that the block design refers to."""

VLNV = f"xilinx.com:module_ref:{MODULE}:1.0"
"""Type of the accelerator in the hardware hand-off, what a PYNQ driver binds to."""

ZYNQMP = "zynq_ultra_ps_e"
ZYNQ7000 = "processing_system7"


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board with a processing system that the accelerator shares memory with.

    Parameters
    ----------
    name : also the name of its preset in `golden.config.PRESETS`.
    title : maker and product.
    device, package, speed : of the chip, in the vendor's spelling.
    board_part : board file of Vivado without its version; optional for a build, it only fills in the PS's own set-up.
    ps : IP of the processing system, ZYNQMP or ZYNQ7000.
    memory_ports : high-performance ports of the PS, one for each AXI master of the accelerator, in order.
    ddr : kind and width of the memory.
    ddr_bytes, ddr_peak : size, bytes; peak rate, bytes/s.
    cma_default : contiguous memory that the board's image reserves, bytes.
    luts, ffs, bram36, urams, dsps : of the chip.
    register_base : byte address of the accelerator's registers on the PS's bus.
    pl_reference_hz : frequency that the PL clock is divided from (I/O PLL), Hz.
    manual : where the board's facts are from.
    """

    name: str
    title: str
    device: str
    package: str
    speed: str
    board_part: str
    ps: str
    memory_ports: tuple[str, ...]
    ddr: str
    ddr_bytes: int
    ddr_peak: int
    cma_default: int
    luts: int
    ffs: int
    bram36: int
    urams: int
    dsps: int
    register_base: int
    pl_reference_hz: int
    manual: str

    @property
    def config(self) -> AcceleratorConfig:
        """The preset accelerator."""
        return PRESETS[self.name]

    @property
    def part(self) -> str:
        """Part number as Vivado spells it."""
        dash = "-" if self.ps == ZYNQMP else ""
        return f"{self.device}{dash}{self.package}-{self.speed}"

    @property
    def family(self) -> str:
        return "Zynq UltraScale+" if self.ps == ZYNQMP else "Zynq-7000"

    @property
    def arch(self) -> str:
        """Processor architecture as `platform.machine()` gives it."""
        return "aarch64" if self.ps == ZYNQMP else "armv7l"

    @property
    def port_bits(self) -> int:
        """Full width of a memory port."""
        return 128 if self.ps == ZYNQMP else 64

    @property
    def dsp(self) -> str:
        return "DSP48E2" if self.ps == ZYNQMP else "DSP48E1"

    @property
    def register_bytes(self) -> int:
        """Size of the accelerator's register window."""
        return 4096


def _zynqmp_ports(*names: str) -> tuple[str, ...]:
    return tuple(f"S_AXI_{n}_FPD" for n in names)


KV260 = Board(
    name="kv260",
    title="AMD Kria KV260",
    board_part="xilinx.com:kv260_som:part0",
    manual="DS987, UG1089",
    device="xck26",
    package="sfvc784",
    speed="2LV-c",
    ps=ZYNQMP,
    memory_ports=_zynqmp_ports("HP0", "HP1", "HP2", "HP3"),
    ddr="DDR4-2400, 64 bit",
    ddr_bytes=4 * GIB,
    ddr_peak=19_200_000_000,
    cma_default=1000 * MIB,
    luts=117_120,
    ffs=234_240,
    bram36=144,
    urams=64,
    dsps=1_248,
    register_base=0xA000_0000,
    pl_reference_hz=1_500_000_000,
)

# The same module, a K26, on another carrier.
KR260 = replace(
    KV260,
    name="kr260",
    title="AMD Kria KR260",
    board_part="xilinx.com:kr260_som:part0",
    manual="DS987, UG1092",
)

ZCU104 = Board(
    name="zcu104",
    title="AMD ZCU104",
    device="xczu7ev",
    package="ffvc1156",
    speed="2-e",
    board_part="xilinx.com:zcu104:part0",
    ps=ZYNQMP,
    memory_ports=_zynqmp_ports("HP0", "HP1", "HP2", "HP3"),
    ddr="DDR4-2400, 64 bit",
    ddr_bytes=2 * GIB,
    ddr_peak=19_200_000_000,
    cma_default=512 * MIB,
    luts=230_400,
    ffs=460_800,
    bram36=312,
    urams=96,
    dsps=1_728,
    register_base=0xA000_0000,
    pl_reference_hz=1_500_000_000,
    manual="DS891, UG1267",
)

RFSOC4X2 = Board(
    name="rfsoc4x2",
    title="Real Digital RFSoC 4x2",
    device="xczu48dr",
    package="ffvg1517",
    speed="2-e",
    board_part="realdigital.org:rfsoc4x2:part0",
    ps=ZYNQMP,
    memory_ports=_zynqmp_ports("HP0", "HP1", "HP2", "HP3"),
    ddr="DDR4-2400, 64 bit (PS)",
    ddr_bytes=4 * GIB,
    ddr_peak=19_200_000_000,
    cma_default=512 * MIB,
    luts=425_280,
    ffs=850_560,
    bram36=1_080,
    urams=80,
    dsps=4_272,
    register_base=0xA000_0000,
    pl_reference_hz=1_500_000_000,
    manual="DS889, RFSoC 4x2 reference manual",
)

ULTRA96V2 = Board(
    name="ultra96v2",
    title="Avnet Ultra96-V2",
    device="xczu3eg",
    package="sbva484",
    speed="1-i",
    board_part="avnet.com:ultra96v2:part0",
    ps=ZYNQMP,
    memory_ports=_zynqmp_ports("HP0", "HP3"),
    ddr="LPDDR4-2133, 32 bit",
    ddr_bytes=2 * GIB,
    ddr_peak=8_533_000_000,
    cma_default=512 * MIB,
    luts=70_560,
    ffs=141_120,
    bram36=216,
    urams=0,
    dsps=360,
    register_base=0xA000_0000,
    pl_reference_hz=1_500_000_000,
    manual="DS891, Ultra96-V2 hardware user's guide",
)

PYNQ_Z2 = Board(
    name="pynq_z2",
    title="TUL PYNQ-Z2",
    device="xc7z020",
    package="clg400",
    speed="1",
    board_part="tul.com.tw:pynq-z2:part0",
    ps=ZYNQ7000,
    memory_ports=("S_AXI_HP0", "S_AXI_HP2"),
    ddr="DDR3-1050, 16 bit",
    ddr_bytes=512 * MIB,
    ddr_peak=2_100_000_000,
    cma_default=128 * MIB,
    luts=53_200,
    ffs=106_400,
    bram36=140,
    urams=0,
    dsps=220,
    register_base=0x43C0_0000,
    pl_reference_hz=1_000_000_000,
    manual="DS190, PYNQ-Z2 reference manual",
)

BOARDS: dict[str, Board] = {b.name: b for b in (KV260, KR260, ZCU104, RFSOC4X2, ULTRA96V2, PYNQ_Z2)}


def build_name(config: AcceleratorConfig) -> str:
    """What the files of a build are called, without ending: `tellme-<preset>-<build hash>`, as in the build register.

    A bitstream is `<name>.bit`, its hardware hand-off `<name>.hwh`, and what was built `<name>.json`.
    """
    return f"tellme-{config.name}-{build_hash(config):08x}"
