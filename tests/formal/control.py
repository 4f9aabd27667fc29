"""What starts and stops passes, and the register bus, by claims of their own."""

from __future__ import annotations

from amaranth import Const, Module, Mux, Signal

from tellme.golden.config import TINY
from tellme.golden.registers import ADDRESS_BITS, ErrorCode, offset
from tellme.hw.control.registers import ControlRegisters
from tellme.hw.control.supervise import Supervisor
from tests.formal.prover import Bench, Monitor


class SupervisorBench(Bench):
    """Every cause of an end in every cycle, with a time-out of `timeout` cycles (0: none)."""

    def __init__(self, timeout: int, *, arbitrary: bool = False):
        super().__init__(arbitrary=arbitrary)
        self.timeout = timeout
        self.name = f"Supervisor, time-out {timeout}"

    def build(self, m: Module, monitor: Monitor) -> None:
        m.submodules.supervisor = s = Supervisor()
        flags = (
            "start_request",
            "reset_request",
            "bad_lanes",
            "bad_program",
            "checking",
            "done",
            "quiet",
            "bad_weight",
            "bad_descriptor",
            "progress",
        )
        for name in flags:
            m.d.comb += getattr(s, name).eq(self.free(1, name))
        m.d.comb += [s.timeout.eq(self.timeout), s.descriptor_index.eq(self.free(2, "descriptor_index"))]
        for unit in ("read", "write"):
            code, late = self.free(1, f"{unit}_fails"), self.free(1, f"{unit}_late")
            m.d.comb += getattr(s, f"{unit}_error").eq(
                Mux(
                    code,
                    Mux(late, ErrorCode.TIMEOUT, ErrorCode.READ_SLVERR if unit == "read" else ErrorCode.WRITE_SLVERR),
                    0,
                )
            )
            m.d.comb += getattr(s, f"{unit}_error_address").eq(0x100 if unit == "read" else 0x200)

        # A pass, as the claims see it: asked for, run; the causes of its end, in the order of docs/formats.md.
        asked, running = Signal(), Signal()
        patience, bad_descriptor, progress = Signal(4), Signal(), Signal()
        m.d.sync += [bad_descriptor.eq(s.bad_descriptor), progress.eq(s.progress)]
        failing, code = Signal(), Signal(8)
        m.d.comb += failing.eq((s.read_error != 0) | (s.write_error != 0) | s.bad_weight | bad_descriptor)
        with m.If(s.read_error != 0):
            m.d.comb += code.eq(s.read_error)
        with m.Elif(s.write_error != 0):
            m.d.comb += code.eq(s.write_error)
        with m.Elif(s.bad_weight):
            m.d.comb += code.eq(ErrorCode.BAD_WEIGHT)
        with m.Else():
            m.d.comb += code.eq(ErrorCode.BAD_DESCRIPTOR)
        ends = running & (s.reset_request | failing | s.done)
        with m.If(s.start_request & ~s.busy & ~s.reset_request):
            m.d.sync += asked.eq(1)
        with m.If(s.start):
            m.d.sync += [asked.eq(0), running.eq(1), patience.eq(0)]
        with m.If(running & ~progress & (patience != 15)):
            m.d.sync += patience.eq(patience + 1)
        with m.If(progress):
            m.d.sync += patience.eq(0)
        with m.If(ends | s.clear):
            m.d.sync += running.eq(0)
        with m.If(s.clear | s.reset_request):
            m.d.sync += asked.eq(0)

        # Of the cycle before.
        def past(value: object, width: int = 1) -> Signal:
            signal = Signal(width)
            m.d.sync += signal.eq(value)
            return signal

        was_running, was_reset, was_done, was_failing, was_code = (
            past(running & ~s.clear), past(s.reset_request), past(s.done), past(failing), past(code, 8),
        )  # fmt: skip
        stopping, was_quiet, was_clear, was_busy = past(s.reset), past(s.quiet), past(s.clear), past(s.busy)
        error, finished, was_start = past(s.error, 8), past(s.finished), past(s.start_request)
        settled = Signal(2)
        with m.If(s.reset & s.quiet):
            m.d.sync += settled.eq(Mux(settled == 3, 3, settled + 1))
        with m.Else():
            m.d.sync += settled.eq(0)
        begun = past(Const(1))

        monitor.claim(
            "a pass starts only when it was asked for, looked at and found good",
            ~s.start | (asked & ~s.checking & ~s.bad_lanes & ~s.bad_program & ~s.reset_request),
        )
        monitor.claim("it is looked at only when it was asked for", ~s.check | asked)
        looking = Signal()
        with m.If(s.check & ~s.reset_request):
            m.d.sync += looking.eq(1)
        with m.Elif(~s.checking | s.reset_request):
            m.d.sync += looking.eq(0)
        monitor.claim(
            "and what is found good is started at once",
            ~(looking & ~s.checking & ~s.reset_request & ~s.bad_lanes & ~s.bad_program) | s.start,
        )
        monitor.claim("what was asked for or runs is busy", ~(asked | running) | s.busy)
        monitor.claim(
            "done without an error ends it well",
            ~(was_running & was_done & ~was_reset & ~was_failing & (error == 0) & ~stopping)
            | (s.finished & (s.error == 0) & ~s.busy)
            | (s.error == ErrorCode.TIMEOUT),
        )
        monitor.claim(
            "an error wins over done, and is told with its code",
            ~(was_running & was_failing & ~was_reset)
            | (s.finished & (s.error == was_code) & s.clear & s.reset & s.busy),
        )
        monitor.claim(
            "a soft reset wins over both, and tells nothing",
            ~(was_running & was_reset) | (~s.finished & (s.error == 0) & s.clear & s.reset),
        )
        monitor.claim(
            "a soft reset forgets every outcome, also while a pass stops",
            ~was_reset | (~s.finished & (s.error == 0) & (s.error_address == 0)),
        )
        monitor.claim("a soft reset clears the masters", ~(begun & was_reset & ~stopping) | (s.clear & s.reset))
        monitor.claim(
            "the address of a time-out or a bad program is a descriptor's",
            ((s.error != ErrorCode.TIMEOUT) & (s.error != ErrorCode.BAD_DESCRIPTOR)) | (s.error_address <= 2),
        )
        monitor.claim(
            "the address of a memory's error is its own",
            (s.error != ErrorCode.READ_SLVERR) | (s.error_address == 0x100),
        )
        monitor.claim("clear is one cycle, with the reset", ~s.clear | (s.reset & ~was_clear))
        monitor.claim("the reset holds until the masters owe nothing", ~(begun & stopping & ~was_quiet) | s.reset)
        monitor.claim("the reset is given a cycle to take effect", ~was_clear | s.reset)
        monitor.claim("busy as long as the reset", ~s.reset | s.busy)
        monitor.claim("a reset ends when the masters are quiet", ~s.reset | (settled < 3))
        monitor.claim(
            "an outcome stays until the next start or soft reset",
            ~(begun & (error != 0) & ~was_start & ~was_reset) | ((s.error == error) & (s.finished == finished)),
        )
        monitor.claim("a pass that runs has no outcome yet", ~running | s.clear | (~s.finished & (s.error == 0)))
        monitor.claim(
            "an outcome of the pass before does not end the next", ~(s.busy & ~s.reset & was_busy) | ~s.finished
        )
        spontaneous = was_running & ~was_failing & ~was_reset & (s.error == ErrorCode.TIMEOUT)
        if self.timeout:
            monitor.claim(
                "time runs out when it has",
                ~(spontaneous & (error == 0)) | (past(past(patience, 4), 4) >= self.timeout),
            )
            monitor.claim("and is not forgotten", ~running | (patience <= self.timeout + 2))
        else:
            monitor.claim("without a time-out time does not run out", ~spontaneous)


class RegisterBench(Bench):
    """The register bus of the tiny preset, with any master that keeps to AXI4-Lite, and a lock that comes and goes.

    Parameters
    ----------
    register : whose contents are followed: one that a pass locks, or one that is live.
    """

    def __init__(self, register: str, live: bool, *, arbitrary: bool = False):
        super().__init__(arbitrary=arbitrary)
        self.register, self.live = register, live
        self.name = f"ControlRegisters, {register}"

    def build(self, m: Module, monitor: Monitor) -> None:
        m.submodules.registers = r = ControlRegisters(TINY)
        bus = r.bus
        m.d.comb += r.locked.eq(self.free(1, "locked"))
        for name in ("awvalid", "wvalid", "arvalid", "bready", "rready"):
            m.d.comb += getattr(bus, name).eq(self.free(1, name))
        for name in ("awaddr", "araddr"):
            m.d.comb += getattr(bus, name).eq(self.free(ADDRESS_BITS, name))
        m.d.comb += [bus.wdata.eq(self.free(2, "wdata")), bus.wstrb.eq(self.free(4, "wstrb"))]
        value = getattr(r, self.register)
        where = offset(self.register)

        def past(signal: object, width: int = 1) -> Signal:
            out = Signal(width)
            m.d.sync += out.eq(signal)
            return out

        begun = past(Const(1))
        # What a master must keep to.
        for channel, payload in (("aw", bus.awaddr), ("ar", bus.araddr), ("w", bus.wdata)):
            valid, ready = getattr(bus, f"{channel}valid"), getattr(bus, f"{channel}ready")
            waits, kept = past(valid & ~ready), past(payload, len(payload))
            monitor.assume(~waits | (valid & (payload == kept)))
        strobe = past(bus.wstrb, 4)
        monitor.assume(~past(bus.wvalid & ~bus.wready) | (bus.wstrb == strobe))

        # Halves and answers.
        addresses, words, reads = Signal(3), Signal(3), Signal(3)
        aw, w, b = bus.awvalid & bus.awready, bus.wvalid & bus.wready, bus.bvalid & bus.bready
        ar, rd = bus.arvalid & bus.arready, bus.rvalid & bus.rready
        m.d.sync += [addresses.eq(addresses + aw - b), words.eq(words + w - b), reads.eq(reads + ar - rd)]
        monitor.claim(
            "a write is answered only when both halves have come", ~bus.bvalid | ((addresses != 0) & (words != 0))
        )
        monitor.claim("a read is answered only when it was asked", ~bus.rvalid | (reads != 0))
        monitor.claim("an answer to a write stays until it is taken", ~past(bus.bvalid & ~bus.bready) | bus.bvalid)
        data = past(bus.rdata, 32)
        monitor.claim(
            "an answer to a read stays as it is until it is taken",
            ~past(bus.rvalid & ~bus.rready) | (bus.rvalid & (bus.rdata == data)),
        )
        monitor.claim("every answer is OKAY", (bus.bresp == 0) & (bus.rresp == 0))
        monitor.claim("no more than two writes and one read are held", (addresses <= 2) & (words <= 2) & (reads <= 1))
        waiting = Signal(3)
        with m.If((addresses != 0) & (words != 0) & ~bus.bvalid):
            m.d.sync += waiting.eq(waiting + 1)
        with m.Else():
            m.d.sync += waiting.eq(0)
        monitor.claim("a write is answered in two cycles", waiting < 2)
        slow = Signal(3)
        with m.If((reads != 0) & ~bus.rvalid):
            m.d.sync += slow.eq(slow + 1)
        with m.Else():
            m.d.sync += slow.eq(0)
        monitor.claim("a read is answered in two cycles", slow < 2)
        monitor.claim("whoever owes no answer takes an address", (addresses != 0) | bus.awready)
        monitor.claim("and a word", (words != 0) | bus.wready)
        monitor.claim("and a read", (reads != 0) | bus.arready)

        # The latest halves, at most two of each.
        slots = [(Signal(ADDRESS_BITS), Signal(2), Signal()) for _ in range(2)]
        with m.If(b):
            m.d.sync += [x.eq(y) for x, y in zip(slots[0], slots[1], strict=True)]
        for i in range(2):
            with m.If(aw & (addresses - b == i)):
                m.d.sync += slots[i][0].eq(bus.awaddr)
            with m.If(w & (words - b == i)):
                m.d.sync += [slots[i][1].eq(bus.wdata), slots[i][2].eq(bus.wstrb.all())]
        address, word, whole = slots[0]
        first = bus.bvalid & ~past(bus.bvalid & ~bus.bready)  # the register has just been written
        mine = first & (address[2:] == where >> 2) & whole
        was = past(value, 32)
        unlocked = Const(1) if self.live else past(~r.locked & ~r.start)
        monitor.claim("what is written is in the register", ~(mine & unlocked) | (value == word))
        monitor.claim("nothing else changes it", ~begun | (mine & unlocked) | (value == was))
        control = first & (address[2:] == offset("control") >> 2) & whole
        monitor.claim("a pass starts by a write to control alone", r.start == (control & word[0]))
        monitor.claim("and so does a soft reset", r.soft_reset == (control & word[1]))
        asked = Signal(ADDRESS_BITS)
        with m.If(ar):
            m.d.sync += asked.eq(bus.araddr)
        fresh = bus.rvalid & ~past(bus.rvalid & ~bus.rready)
        monitor.claim("a read gives the register", ~(fresh & (asked[2:] == where >> 2)) | (bus.rdata == was))
        monitor.claim(
            "an address without a register reads 0",
            ~(fresh & (asked[2:] == (1 << ADDRESS_BITS - 2) - 1)) | (bus.rdata == 0),
        )
