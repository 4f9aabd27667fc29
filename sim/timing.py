"""Timing of a board's memory, as the simulated memory keeps it (sim/memory.cpp). Changing it needs no new build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace


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

    def settings(self, clock_hz: float) -> str:
        """As sim/dram.hpp reads it, for ports of that clock."""
        words = [f"{f.name}:{getattr(self, f.name)}" for f in fields(self) if f.name != "ports"]
        words += [f"xpi{i}:{x}" for i, x in enumerate(self.ports)]
        return ",".join([f"fabric_khz:{round(clock_hz / 1e3)}", *words])


@dataclass(frozen=True, kw_only=True)
class MemoryTiming:
    """How the simulated memory answers.

    Parameters
    ----------
    name : of the preset.
    latency : cycles from an accepted address to the first beat or to the write response, at least.
    jitter : further cycles of latency, drawn for every burst from 0 to this.
    outstanding : bursts of each direction that a port of the memory holds.
    bandwidth : bytes a cycle over all ports and both directions, 0: no limit but the ports'.
    pause, period : no data in `pause` cycles of every `period` (refresh).
    shared : (ports, bytes a cycle): ports that share a controller port, and its rate.
    stall : probability that a channel (AR, R, AW, W, B) begins a stall in a cycle.
    stall_max : longest such stall, cycles.
    reorder : bursts of different IDs overtake each other and interleave.
    error_rate : probability of an SLVERR or DECERR for a burst.
    errors : (first byte, byte behind the last, response 2 or 3): bytes of the buffer that answer with an error.
    hangs : (first byte, byte behind the last): bytes whose bursts are never answered.
    dram : banks, controller and ports; `latency` then comes on top where no DRAM is asked (errors), and 1 is enough.
    hazard : stop when a read and a write of the same bytes are in flight together.
    seed : of everything random.
    """

    name: str
    latency: int = 1
    jitter: int = 0
    outstanding: int = 64
    bandwidth: float = 0.0
    pause: int = 0
    period: int = 0
    shared: tuple[tuple[tuple[int, ...], float], ...] = ()
    stall: float = 0.0
    stall_max: int = 1
    reorder: bool = False
    error_rate: float = 0.0
    errors: tuple[tuple[int, int, int], ...] = ()
    hangs: tuple[tuple[int, int], ...] = ()
    hazard: bool = False
    seed: int = 1
    dram: Dram | None = None

    def __post_init__(self) -> None:
        if self.latency < 1 or self.outstanding < 1 or self.stall_max < 1:
            raise ValueError("latency, outstanding and stall_max must be at least 1")
        if not 0 <= self.pause <= self.period or (self.pause and self.pause == self.period):
            raise ValueError(f"pause must be from 0 to less than period, not {self.pause} of {self.period}")
        if not (0 <= self.stall < 1 and 0 <= self.error_rate <= 1):
            raise ValueError("stall and error_rate are probabilities; stall must be below 1")

    def read_latency(self, clock_hz: float) -> float:
        """Cycles of that clock from a read's address to its first beat, on average, in an idle memory."""
        d = self.dram
        if d is None:
            return self.latency + self.jitter / 2
        return self.latency + self.jitter / 2 + (d.path + d.rcd + d.cl) * clock_hz / (d.clock_khz * 1e3)

    def settings(self, *, file: str, region: int, bases: Sequence[int], clock_hz: float) -> str:
        """Value of TELLME_MEMORY: this timing over `file`, which holds `region` bytes of each port one behind the other;
        a port finds its own at its byte address of `bases`. For an accelerator of that clock."""
        words = [f"file={file}", f"region={region}", *(f"base={base}" for base in bases)]
        names = ("latency", "jitter", "outstanding", "bandwidth", "pause", "period", "stall", "stall_max", "error_rate")
        words += [f"{n}={getattr(self, n)}" for n in names]
        words += [f"reorder={int(self.reorder)}", f"hazard={int(self.hazard)}", f"seed={self.seed}"]
        words += [f"shared={sum(1 << p for p in ports)}:{rate}" for ports, rate in self.shared]
        words += [f"error={low}:{high}:{response}" for low, high, response in self.errors]
        words += [f"hang={low}:{high}" for low, high in self.hangs]
        if self.dram is not None:
            words.append(f"dram={self.dram.settings(clock_hz)}")
        return " ".join(words)


IDEAL = MemoryTiming(name="ideal")
"""No limit but the ports' width."""

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

KV260_TIMING = MemoryTiming(name="kv260", outstanding=K26_DRAM.bursts, dram=K26_DRAM)
"""Kria KV260, and KR260: the DRAM of the K26 module with its banks."""

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

KV260_IDEAL = MemoryTiming(
    name="kv260-ideal", latency=70, outstanding=16, bandwidth=0.85 * 19.2e9 / 250e6, pause=20, period=1950
)
"""What this project assumed of the KV260 before rates of boards were known: 85 % of 19.2 GB/s, 65.28 bytes a cycle."""

KV260_PESSIMISTIC = MemoryTiming(
    name="kv260-pessimistic",
    latency=120,
    outstanding=8,
    bandwidth=0.85 * 19.2e9 / 250e6,
    pause=88,
    period=1950,
    shared=(((1, 2), 0.8 * 2 * 16),),
)
"""The same at its worst: ports 1 and 2 get 80 % of their width together."""

STRESS = MemoryTiming(name="stress", latency=3, jitter=60, outstanding=6, stall=0.08, stall_max=20, reorder=True)
"""Random stalls on every channel, random latency, reordering between IDs. Results must not change."""

TIMINGS: dict[str, MemoryTiming] = {
    t.name: t
    for t in (
        IDEAL,
        KV260_TIMING,
        replace(KV260_TIMING, name="kr260"),
        *(
            MemoryTiming(name=name, outstanding=dram.bursts, dram=dram)
            for name, dram in (
                ("zcu104", ZCU104_DRAM),
                ("rfsoc4x2", RFSOC4X2_DRAM),
                ("ultra96v2", ULTRA96V2_DRAM),
                ("pynq_z2", PYNQ_Z2_DRAM),
            )
        ),
        KV260_IDEAL,
        KV260_PESSIMISTIC,
        STRESS,
    )
}


def timing(name: str, **changes: object) -> MemoryTiming:
    """A preset by name, with some values changed.

    Raises
    ------
    ValueError : no such preset.
    """
    if name not in TIMINGS:
        raise ValueError(f"no memory timing named {name!r}; there are {', '.join(TIMINGS)}")
    return replace(TIMINGS[name], **changes)  # type: ignore[arg-type]
