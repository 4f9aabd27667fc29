"""Facts about the boards: chip, processing system, memory, and what a build for one is called. No tool is needed here.

Each fact has its source beside it. Where a data sheet and what a board really does differ, what the board does counts: the DDR4
of the K26 is a part for 2400 MT/s that its boot image runs at 2133. Sources by name: DS891 (Zynq UltraScale+ MPSoC: resources),
DS889 (RFSoC), DS987 (K26), DS190 (Zynq-7000), UG1085 and UG585 (PL clocks, memory ports, address maps); *board file* is the
board's preset in XilinxBoardStore (`preset.xml`), *base overlay* the hardware hand-off of PYNQ's base overlay for the board.
`cma_default` is what the board's usual image reserves: Ubuntu's boot script on a Kria, the kernel configuration of PYNQ's images
(`sdbuild/boot/meta-pynq/recipes-kernel/linux/linux-xlnx/pynq.cfg`: CONFIG_CMA_SIZE_MBYTES=128) elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tellme.golden.arith import ceil_div
from tellme.golden.config import CLOCK_HZ, PRESETS, AcceleratorConfig, ConfigError
from tellme.golden.registers import ADDRESS_BITS, build_hash

GIB = 1 << 30
MIB = 1 << 20

CELL = "tellme_0"
"""Name of the accelerator in the block design: `overlay.tellme_0`."""

MODULE = "tellme_axi"
"""Name of the Verilog module that the block design refers to."""

VLNV = f"xilinx.com:module_ref:{MODULE}:1.0"
"""Type of the accelerator in the hardware hand-off, what a PYNQ driver binds to."""

PHASE_PERIOD = 1 << 16
"""Bytes after which a region begins in the same bank again, on every board here (64 KiB on a K26, less or equal elsewhere)."""

PL_DIVIDER = 63
"""Largest number that the PL clock is divided by here: one of the two dividers of 6 bits (UG1087 PL0_REF_CTRL, UG585)."""

PAGE = 4096
"""Buffers and regions are whole pages, and phases are multiples of them."""

ZYNQMP = "zynq_ultra_ps_e"
ZYNQ7000 = "processing_system7"


def clock_floor(preset: AcceleratorConfig) -> int:
    """The slowest clock that a build of a preset may run at, Hz: four fifths of the preset's (200 MHz on a K26)."""
    return preset.clock_hz * 4 // 5


@dataclass(frozen=True, kw_only=True)
class Dram:
    """A board's DRAM, its controller and the ports to it, as sim/dram.hpp keeps them.

    Times are clocks of the controller, by JEDEC's names. The boot image writes the same numbers into the controller's
    registers (DRAMTMG, RFSHTMG, ADDRMAP, SCHED of UG1087), which is where most values here are from.

    Parameters
    ----------
    clock_khz : of the controller, half of the DRAM's where it gives two commands a clock.
    block : bytes of a DRAM burst, the unit of everything here.
    group_low, group_bits, bank_low, bank_bits, row_low : address bits of bank group, bank and row.
    rcd, rp, ras, rc, rrd_s, rrd_l, faw, ccd_s, ccd_l, rtp, refi, rfc : of the DRAM; _s in another bank group, _l in one.
    wtp, wtr_s, wtr_l : from a write command to a precharge or a read. rtw : from a read command to a write.
    cl : from a read command to the end of its data.
    window : reads, and writes, that the controller reorders among.
    hold : from a read's column command until its place in the window is free. Fitted.
    starve, run : a write that waited `starve` clocks goes before the reads, with `run` - 1 others.
    bursts : of each direction that a port of the fabric holds.
    split : blocks of the AXI3 transactions that a fabric port makes of its bursts.
    fifo : blocks that are on their way to a fabric port or wait there.
    beat : clocks of a block on a port of the controller.
    path : from a fabric port to the controller and back, besides all of the above. Fitted.
    ports : the controller's port of each fabric port, in the order of the board's `memory_ports`.
    """

    clock_khz: int
    block: int = 64
    group_low: int = 6
    group_bits: int = 1
    bank_low: int = 14
    bank_bits: int = 2
    row_low: int = 16
    rcd: int
    rp: int
    ras: int
    rc: int
    rrd_s: int
    rrd_l: int
    faw: int
    ccd_s: int
    ccd_l: int
    rtp: int
    wtp: int
    rtw: int
    wtr_s: int
    wtr_l: int
    cl: int
    refi: int
    rfc: int
    window: int = 32
    hold: int
    starve: int = 64
    run: int = 8
    bursts: int = 8
    split: int = 4
    fifo: int = 32
    beat: int = 4
    path: int
    ports: tuple[int, ...]

    @property
    def peak(self) -> float:
        """Bytes a second of the DRAM's data lines."""
        return self.block / self.ccd_s * self.clock_khz * 1e3


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
    ddr : kind, transfers a second (MT/s) and width of the memory.
    ddr_bytes : its size.
    dram : banks and timing of that memory, its controller and the ports to it.
    phases : where the ports' regions begin, bytes modulo PHASE_PERIOD, so that their streams are in different banks; ()
        where nothing is gained or known: regions then lie one behind the other.
    memory_rate : what the ports get together there in long reads of the preset, bytes/s: of the memory's model, not measured.
    cma_default : contiguous memory that the board's image reserves, bytes.
    luts, ffs, bram36, urams, dsps : of the chip.
    register_base : byte address of the accelerator's registers on the PS's bus.
    pl_reference_hz : frequency that the PL clock is divided from (I/O PLL), Hz: clocks are this by a whole number.
    vivado : what of Vivado has the chip (UG973, architecture support).
    manual : the board's manual.
    constraints : text of its constraints (XDC); that of constraints/<name>.xdc if empty.
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
    dram: Dram
    phases: tuple[int, ...] = ()
    memory_rate: int
    cma_default: int
    luts: int
    ffs: int
    bram36: int
    urams: int
    dsps: int
    register_base: int
    pl_reference_hz: int
    vivado: str
    manual: str
    constraints: str = ""

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
    def ddr_peak(self) -> int:
        """Peak rate of the memory, bytes/s: transfers by bytes of its width."""
        kind, width = self.ddr.split(", ")
        return int(kind.split("-")[1]) * 1_000_000 * int(width.split()[0]) // 8

    @property
    def port_bits(self) -> int:
        """Full width of a memory port."""
        return 128 if self.ps == ZYNQMP else 64

    @property
    def dsp(self) -> str:
        return "DSP48E2" if self.ps == ZYNQMP else "DSP48E1"

    @property
    def clock_floor(self) -> int:
        """The slowest clock that a build may run at, Hz; see `clock_floor`."""
        return clock_floor(self.config)

    def clocks(self, most: int, least: int) -> tuple[int, ...]:
        """Clocks that the PS makes for the fabric, from `most` down to `least`, Hz: `pl_reference_hz` by a whole number."""
        dividers = range(1, PL_DIVIDER + 1)
        made = (round(self.pl_reference_hz / n) for n in dividers)
        return tuple(hz for hz in made if least - 1 <= hz <= most + 1)

    def clock(self, mhz: float) -> int:
        """The clock of that many MHz, Hz.

        Raises
        ------
        ValueError : the PS makes none within 0.1 MHz; says the nearest.
        """
        made = self.clocks(CLOCK_HZ[1], 0)
        best = min(made, key=lambda hz: abs(hz - mhz * 1e6))
        if abs(best - mhz * 1e6) > 1e5:
            near = sorted(sorted(made, key=lambda hz: abs(hz - mhz * 1e6))[:4], reverse=True)
            said = ", ".join(f"{hz / 1e6:.6g}" for hz in near)
            raise ValueError(
                f"{self.name} makes no clock of {mhz:g} MHz (its PLL of {self.pl_reference_hz / 1e6:g} MHz by a whole "
                f"number); near it are {said}"
            )
        return best

    @property
    def register_bytes(self) -> int:
        """Size of the accelerator's register window."""
        return 1 << ADDRESS_BITS


def _zynqmp_ports(*names: str) -> tuple[str, ...]:
    return tuple(f"S_AXI_{n}_FPD" for n in names)


def _kib(*phases: int) -> tuple[int, ...]:
    return tuple(1024 * x for x in phases)


FREE = "free edition"
"""Vivado Standard (to 2025.x), Basic (from 2026.1, which wants its free licence file before it starts)."""
PAID = "Enterprise, by licence"

K26_DRAM = Dram(
    clock_khz=533_333,
    rcd=8, rp=9, ras=18, rc=26, rrd_s=3, rrd_l=4, faw=16, ccd_s=2, ccd_l=3, rtp=4, wtp=17, rtw=6, wtr_s=11, wtr_l=13,
    cl=10, refi=4128, rfc=187,
    hold=48, path=64,
    ports=(0, 1, 1, 2),
)  # fmt: skip
"""Kria K26: 64-bit DDR4 at 2133 MT/s, x16 devices of 8 Gb, one rank; HP0, HP1 and HP2 together, HP3.

All but hold and path are what the boot image writes into the controller's registers (U-Boot,
board/xilinx/zynqmp/zynqmp-sm-k26-revA/psu_init_gpl.c), with the FIFOs of UG1085, chapter 35. Those two are fitted to rates
measured on a KV260: docs/measurements/memory.md. Bits 0 to 5 of an address are inside a block, 6 is the bank group, 7 to 13
the column, 14 and 15 the bank, then the row.
"""

ZCU104_DRAM = replace(K26_DRAM, group_low=13, rfc=139)
"""ZCU104: as the K26 but for devices of 4 Gb and the bank group in bit 13: bits 6 to 12 are the column (U-Boot,
board/xilinx/zynqmp/zynqmp-zcu104-revA/psu_init_gpl.c). Fitted values are the K26's: nobody measured here."""

RFSOC4X2_DRAM = replace(
    K26_DRAM,
    clock_khz=600_000,
    ras=20, rc=28, rrd_s=4, faw=18, rtp=5, rtw=7, wtr_s=10, refi=4640, rfc=210,
)  # fmt: skip
"""RFSoC 4x2: 64-bit DDR4 at 2400 MT/s, x16 devices of 8 Gb, CL 16, CWL 12 (preset.xml of RealDigitalOrg/RFSoC4x2-BSP,
turned into register values as on the K26; the rest from JESD79-4). Fitted values are the K26's."""

ULTRA96V2_DRAM = replace(
    K26_DRAM,
    clock_khz=266_667, group_bits=0, bank_low=12, bank_bits=3, row_low=15,
    rcd=5, rp=6, ras=12, rc=18, rrd_s=3, rrd_l=3, faw=11, ccd_s=4, ccd_l=4, rtp=4, wtp=14, rtw=15, wtr_s=13, wtr_l=13,
    cl=11, refi=1024, rfc=48,
    ports=(0, 1),
)  # fmt: skip
"""Ultra96-V2: 32-bit LPDDR4 at 1066 MT/s, 4.27 GB/s, not the 2133 of its chip (preset.xml of Avnet/bdf, ultra96v2;
register values of the same memory in U-Boot, board/xilinx/zynqmp/zynqmp-zcu100-revC/psu_init_gpl.c). HP0 and HP3.
Fitted values are the K26's."""

PYNQ_Z2_DRAM = Dram(
    clock_khz=525_000, block=32, group_bits=0, bank_low=11, bank_bits=3, row_low=14,
    rcd=7, rp=7, ras=19, rc=26, rrd_s=6, rrd_l=6, faw=21, ccd_s=8, ccd_l=8, rtp=8, wtp=22, rtw=11, wtr_s=18, wtr_l=18,
    cl=15, refi=4095, rfc=137,
    hold=K26_DRAM.hold, path=K26_DRAM.path,
    beat=6,
    ports=(0, 1),
)  # fmt: skip
"""PYNQ-Z2: 16-bit DDR3 at 1050 MT/s, 2.1 GB/s, a device of 4 Gb, CL 7, CWL 6 (boards/Pynq-Z2 of Xilinx/PYNQ; the rest from
JESD79-3). A block is two DRAM bursts of 16 bytes, as the controller asks in half-width mode; controller ports of 64 bit at
350 MHz, AXI FIFOs of 1 KiB (UG585, chapters 5 and 10). HP0 and HP2 are on different ports. Fitted values are the K26's."""

KV260 = Board(
    name="kv260",
    title="AMD Kria KV260",
    board_part="xilinx.com:kv260_som:part0",  # board file kv260_som 1.4
    vivado=FREE,  # UG973: Kria XCK26
    manual="DS987, UG1089",
    device="xck26",  # board file: part_name xck26-sfvc784-2LV-c
    package="sfvc784",
    speed="2LV-c",
    ps=ZYNQMP,
    memory_ports=_zynqmp_ports("HP0", "HP1", "HP2", "HP3"),  # UG1085, PS-PL AXI interfaces
    # Four x16 parts of speed bin DDR4-2400R (board file: 64 Bit, DDR4_2400R); 1,066.656 MHz is what they are run at
    # (base overlay of Kria-PYNQ: PSU__ACT_DDR_FREQ_MHZ), and what was read on boards: controller at 533 MHz.
    ddr="DDR4-2133, 64 bit",
    ddr_bytes=4 * GIB,  # DS987
    dram=K26_DRAM,
    phases=_kib(0, 40, 24, 48),  # python -m bench.memory --phases, here and below; the best published: 0, 0, 48, 24 KiB
    memory_rate=15_520_000_000,
    cma_default=1000 * MIB,  # the boot script of Ubuntu 22.04 for Kria: "cma=1000M" by board type
    luts=117_120,  # DS987, programmable logic; these five
    ffs=234_240,
    bram36=144,
    urams=64,
    dsps=1_248,
    register_base=0xA000_0000,  # UG1085, system addresses: M_AXI_HPM0_FPD
    # 33.333 MHz x 60 / 2 (base overlay of Kria-PYNQ: IOPLL FBDIV 60, DIV2 1): 333.3, 250, 200, 166.7, 142.9 MHz and so on
    pl_reference_hz=1_000_000_000,
)

# The same module, a K26, on another carrier.
KR260 = replace(
    KV260,
    name="kr260",
    title="AMD Kria KR260",
    board_part="xilinx.com:kr260_som:part0",  # board file kr260_som 1.1
    manual="DS987, UG1092",
)

ZCU104 = Board(
    name="zcu104",
    title="AMD ZCU104",
    device="xczu7ev",  # board file zcu104 1.1: part_name xczu7ev-ffvc1156-2-e
    package="ffvc1156",
    speed="2-e",
    board_part="xilinx.com:zcu104:part0",
    ps=ZYNQMP,
    memory_ports=_zynqmp_ports("HP0", "HP1", "HP2", "HP3"),
    ddr="DDR4-2133, 64 bit",  # board file: DDR4_2133P, 1067 MHz, 64 Bit; base overlay: 1,066.656 MHz
    ddr_bytes=2 * GIB,  # UG1267; board file: four parts of 4,096 Mbit
    dram=ZCU104_DRAM,
    phases=_kib(0, 48, 56, 24),
    memory_rate=15_740_000_000,
    cma_default=128 * MIB,  # pynq.cfg
    luts=230_400,  # DS891, ZU7EV; these five
    ffs=460_800,
    bram36=312,
    urams=96,
    dsps=1_728,
    register_base=0xA000_0000,
    pl_reference_hz=1_500_000_000,  # base overlay: IOPLL FBDIV 90, DIV2 1
    vivado=FREE,  # UG973: XCZU7EV
    manual="DS891, UG1267",
)

RFSOC4X2 = Board(
    name="rfsoc4x2",
    title="Real Digital RFSoC 4x2",
    device="xczu48dr",  # hand-off rfsoc_sam.hwh of pynqmetadata: xczu48dr, ffvg1517, -2
    package="ffvg1517",
    speed="2-e",
    board_part="realdigital.org:rfsoc4x2:part0",  # board file rfsoc4x2 1.0 of RealDigital; xilinx.com: in older ones
    ps=ZYNQMP,
    memory_ports=_zynqmp_ports("HP0", "HP1", "HP2", "HP3"),
    ddr="DDR4-2400, 64 bit (PS)",  # board file: DDR4_2400R, 1200 MHz, 64 Bit; rfsoc_sam.hwh: 1,199.9998 MHz
    ddr_bytes=4 * GIB,  # board file: four x16 parts of 8,192 Mbit
    dram=RFSOC4X2_DRAM,
    phases=_kib(0, 40, 24, 48),
    memory_rate=15_800_000_000,
    cma_default=128 * MIB,  # pynq.cfg
    luts=425_280,  # DS889, ZU48DR; these five
    ffs=850_560,
    bram36=1_080,
    urams=80,
    dsps=4_272,
    register_base=0xA000_0000,
    pl_reference_hz=1_500_000_000,  # rfsoc_sam.hwh: IOPLL FBDIV 90, DIV2 1
    vivado=PAID,  # UG973: no RFSoC in the free editions
    manual="DS889, RFSoC 4x2 reference manual",
)

ULTRA96V2 = Board(
    name="ultra96v2",
    title="Avnet Ultra96-V2",
    device="xczu3eg",  # board file ultra96v2 1.2: part_name xczu3eg-sbva484-1-i
    package="sbva484",
    speed="1-i",
    board_part="avnet.com:ultra96v2:part0",
    ps=ZYNQMP,
    memory_ports=_zynqmp_ports("HP0", "HP3"),
    ddr="LPDDR4-1066, 32 bit",  # board file: LPDDR4_1066, 533 MHz, 32 Bit
    ddr_bytes=2 * GIB,  # board file: 16,384 Mbit
    dram=ULTRA96V2_DRAM,
    phases=_kib(0, 8),
    memory_rate=4_020_000_000,
    cma_default=128 * MIB,  # pynq.cfg
    luts=70_560,  # DS891, ZU3EG; these five
    ffs=141_120,
    bram36=216,
    urams=0,
    dsps=360,
    register_base=0xA000_0000,
    pl_reference_hz=1_500_000_000,  # board file: IOPLL FBDIV 45, DIV2 0
    vivado=FREE,  # UG973: XCZU3EG
    manual="DS891, Ultra96-V2 hardware user's guide",
)

PYNQ_Z2 = Board(
    name="pynq_z2",
    title="TUL PYNQ-Z2",
    device="xc7z020",  # board file pynq-z2 A.0: part_name xc7z020clg400-1
    package="clg400",
    speed="1",
    board_part="tul.com.tw:pynq-z2:part0",
    ps=ZYNQ7000,
    memory_ports=(
        "S_AXI_HP0",
        "S_AXI_HP2",
    ),  # UG585: HP0 and HP1 share a port of the DDR controller, HP2 and HP3 another
    ddr="DDR3-1050, 16 bit",  # board file: 525 MHz, 16 Bit; base overlay: 525 MHz
    ddr_bytes=512 * MIB,  # board file: 4,096 Mbit
    dram=PYNQ_Z2_DRAM,
    memory_rate=1_600_000_000,  # what the ports carry, at any phases
    cma_default=128 * MIB,  # pynq.cfg
    luts=53_200,  # DS190, Z-7020; these five
    ffs=106_400,
    bram36=140,
    urams=0,
    dsps=220,
    register_base=0x43C0_0000,  # UG585, system addresses: M_AXI_GP0
    pl_reference_hz=1_000_000_000,  # board file: IO PLL 1000.000 MHz
    vivado=FREE,  # UG973: XC7Z020
    manual="DS190, PYNQ-Z2 reference manual",
)

BOARDS: dict[str, Board] = {b.name: b for b in (KV260, KR260, ZCU104, RFSOC4X2, ULTRA96V2, PYNQ_Z2)}


def add(board: Board, config: AcceleratorConfig) -> None:
    """Makes a board and its preset known in this process: everything finds them by their name.

    Raises
    ------
    ValueError : another board has that name. ConfigError : the board has not what the preset needs.
    """
    if BOARDS.get(board.name, board) != board or PRESETS.get(board.name, config) != config:
        raise ValueError(f"a board named {board.name!r} is there already; take another name")
    if config.name != board.name:
        raise ValueError(f"the preset of board {board.name!r} is called {config.name!r}; it must have the board's name")
    check(config, board)
    BOARDS[board.name] = board
    PRESETS[board.name] = config


def check(config: AcceleratorConfig, board: Board) -> None:
    """Refuses a configuration that a board cannot carry. It may use fewer and narrower ports than there are.

    Raises
    ------
    ConfigError : with the value and what the board has.
    """
    if config.ports > len(board.memory_ports) or 8 * config.port_bytes > board.port_bits:
        raise ConfigError(
            f"{config.name} has {config.ports} ports of {8 * config.port_bytes} bits, board {board.name!r} has "
            f"{len(board.memory_ports)} of {board.port_bits}"
        )
    if board.ps != ZYNQMP and config.burst_beats > 16:
        raise ConfigError(f"burst_beats must be at most 16 on {board.family} (AXI3), not {config.burst_beats}")


def phases(config: AcceleratorConfig) -> tuple[int, ...]:
    """Where the ports' regions of a preset begin, bytes modulo PHASE_PERIOD; () if its board says nothing."""
    board = BOARDS.get(config.name)
    return board.phases if board is not None and len(board.phases) == config.ports else ()


def place(base: int, size: int, ports: int, phases: Sequence[int]) -> tuple[int, ...]:
    """Byte addresses of the ports' regions, of `size` bytes each, one behind the other from `base` on, at their phases."""
    out = []
    for port in range(ports):
        if phases:
            base += (phases[port] - base) % PHASE_PERIOD
        out.append(base)
        base += size
    return tuple(out)


def region_bytes(config: AcceleratorConfig, beats: int) -> int:
    """Bytes of a port's region that holds so many beats: whole pages."""
    return ceil_div(beats * config.port_bytes, PAGE) * PAGE


def buffer_bytes(config: AcceleratorConfig, beats: int, phases: Sequence[int]) -> int:
    """Bytes of one buffer in which the ports' regions find their phases, whatever page it begins at."""
    size = region_bytes(config, beats)
    if not phases:
        return config.ports * size
    # Up to the first region it takes what is missing, less than a period; from there on all is known.
    first = phases[0] % PHASE_PERIOD
    return PHASE_PERIOD - PAGE + place(first, size, config.ports, phases)[-1] + size - first


def check_phases(phases: Sequence[int], ports: int) -> None:
    """Refuses what is no placement.

    Raises
    ------
    ValueError : not one phase a port, or one that is no multiple of a page below PHASE_PERIOD.
    """
    if len(phases) != ports:
        raise ValueError(f"there must be a phase for each of {ports} ports, not {len(phases)}")
    for x in phases:
        if x % PAGE or not 0 <= x < PHASE_PERIOD:
            raise ValueError(
                f"a phase must be a multiple of {PAGE // 1024} KiB from 0 to {(PHASE_PERIOD - PAGE) // 1024} KiB, "
                f"not {x / 1024:g} KiB"
            )


def build_name(config: AcceleratorConfig) -> str:
    """What the files of a build are called, without ending: `tellme-<preset>-<build hash>`, as in the build register.

    A bitstream is `<name>.bit`, its hardware hand-off `<name>.hwh`, and what was built `<name>.json`.
    """
    return f"tellme-{config.name}-{build_hash(config):08x}"
