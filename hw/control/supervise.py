"""Starts and stops passes: errors, time-outs, soft reset."""

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.registers import ErrorCode


class Supervisor(wiring.Component):
    """Runs a pass to its end, or stops it with a code.

    On an error or a soft reset it pulses `clear`, then holds all that computes in `reset` until the AXI masters owe nothing
    more (`quiet`); only then is `busy` low and a new pass possible. A pass begins with a pulse of `check`, and starts once
    `checking` is low and `bad_lanes` and `bad_program` are, too. `finished` and `error` stand from the end of a pass
    (an error: from its discovery) to the next start or soft reset. A start while busy is ignored.

    Interface attributes
    --------------------
    start_request, reset_request : pulses, of the registers. `timeout` : cycles without `progress` that end a pass, 0: none.
    check : pulse; `checking` until `bad_lanes` and `bad_program` are valid.
    start : pulse; `done` is a pulse when the program has reached its end.
    quiet : the AXI masters owe nothing.
    bad_weight, bad_descriptor, read_error, write_error : errors (of the two last, an `ErrorCode`).
    descriptor_index : one more than that of the descriptor in execution.
    read_error_address, write_error_address : beat addresses.
    progress : a beat was taken or written.
    busy, finished, error, error_address : for the registers.
    reset, clear : of what computes, and of the AXI masters.
    """

    start_request: In(1)
    reset_request: In(1)
    bad_lanes: In(1)
    bad_program: In(1)
    checking: In(1)
    done: In(1)
    quiet: In(1)
    bad_weight: In(1)
    bad_descriptor: In(1)
    descriptor_index: In(16)
    read_error: In(8)
    read_error_address: In(32)
    write_error: In(8)
    write_error_address: In(32)
    progress: In(1)
    timeout: In(32)
    check: Out(1)
    start: Out(1)
    busy: Out(1)
    finished: Out(1)
    error: Out(8)
    error_address: Out(32)
    reset: Out(1)
    clear: Out(1)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        idle_cycles = Signal(32)
        expired = Signal()
        m.d.sync += expired.eq((self.timeout != 0) & (idle_cycles >= self.timeout))
        settle = Signal(2)

        def fail(code: object, address: object) -> None:
            m.d.sync += [self.error.eq(code), self.error_address.eq(address), self.finished.eq(1), settle.eq(0)]
            # Registers, as they go everywhere: high from the first cycle of Stop.
            m.d.sync += [self.clear.eq(1), self.reset.eq(1)]
            m.next = "Stop"

        def stop() -> None:
            """Soft reset: like an error, but nothing is reported."""
            fail(ErrorCode.NONE, 0)
            m.d.sync += self.finished.eq(0)

        # Of the descriptor in execution. It is the address of every time-out, whoever ran out of patience.
        index = Signal(32)
        bad_descriptor = Signal()  # a cycle late, as the index is
        m.d.sync += [
            index.eq(Mux(self.descriptor_index == 0, 0, self.descriptor_index - 1)),
            bad_descriptor.eq(self.bad_descriptor),
        ]
        progress = Signal()
        m.d.sync += progress.eq(self.progress)
        with m.FSM() as fsm:
            with m.State("Idle"):
                m.d.sync += idle_cycles.eq(0)
                with m.If(self.reset_request):
                    stop()
                with m.Elif(self.start_request):
                    m.d.sync += [self.finished.eq(0), self.error.eq(ErrorCode.NONE), self.error_address.eq(0)]
                    m.next = "Check"
            with m.State("Check"):
                m.d.comb += self.check.eq(1)
                m.next = "Checking"
                with m.If(self.reset_request):
                    stop()
            with m.State("Checking"):
                with m.If(self.reset_request):
                    stop()
                with m.Elif(~self.checking):
                    with m.If(self.bad_lanes):
                        fail(ErrorCode.BAD_LANES, 0)
                    with m.Elif(self.bad_program):
                        fail(ErrorCode.BAD_DESCRIPTOR, 0)
                    with m.Else():
                        m.d.comb += self.start.eq(1)
                        m.next = "Run"
            with m.State("Run"):
                m.d.sync += idle_cycles.eq(idle_cycles + 1)
                with m.If(progress):
                    m.d.sync += idle_cycles.eq(0)
                with m.If(self.reset_request):
                    stop()
                with m.Elif(self.read_error != ErrorCode.NONE):
                    fail(self.read_error, Mux(self.read_error == ErrorCode.TIMEOUT, index, self.read_error_address))
                with m.Elif(self.write_error != ErrorCode.NONE):
                    fail(self.write_error, Mux(self.write_error == ErrorCode.TIMEOUT, index, self.write_error_address))
                with m.Elif(self.bad_weight):
                    fail(ErrorCode.BAD_WEIGHT, index)
                with m.Elif(bad_descriptor):
                    fail(ErrorCode.BAD_DESCRIPTOR, index)
                with m.Elif(expired):
                    fail(ErrorCode.TIMEOUT, index)
                with m.Elif(self.done):
                    m.d.sync += self.finished.eq(1)
                    m.next = "Idle"
            with m.State("Stop"):
                m.d.sync += [self.clear.eq(0), settle.eq(settle << 1 | 1)]
                with m.If(self.reset_request):
                    m.d.sync += [self.finished.eq(0), self.error.eq(ErrorCode.NONE), self.error_address.eq(0)]
                with m.If(self.quiet & settle[1]):
                    m.d.sync += self.reset.eq(0)
                    m.next = "Idle"
        m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))
        return m
