"""A TLMM engine that feeds itself, checks its results and says so on a serial line. For FPGAs without a processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.registers import build_hash
from tellme.golden.selftest import Job, expected, jobs
from tellme.hw.pipeline import counted, register
from tellme.hw.tlmm.engine import TlmmEngine

BAUD = 1_000_000
"""Bits a second; the serial adapter of a ULX3S (FT231X) takes up to 3 million."""

PASS, FAIL = b"PASS", b"FAIL"
DIGIT = b"\0"
"""Stands in the text for a hexadecimal digit."""
LINE = 128
"""Letters kept for a line."""
SETTLE = 8
"""Cycles from the last row to the comparison of its checksum, at least."""


class UartTransmitter(wiring.Component):
    """Sends bytes as 8N1: a start bit, eight data bits from the lowest, a stop bit.

    Parameters
    ----------
    divisor : clock cycles of a bit, at least 2.

    Interface attributes
    --------------------
    bytes : what to send; taken while the line is idle.
    tx : the line, high when idle.
    """

    def __init__(self, *, divisor: int) -> None:
        if divisor < 2:
            raise ValueError(f"divisor must be at least 2, not {divisor!r}")
        self._divisor = divisor
        super().__init__({"bytes": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        timer = Signal(range(self._divisor))
        left = Signal(range(11))
        bits = Signal(10, init=~0)
        m.d.comb += [self.bytes.ready.eq(left == 0), self.tx.eq(bits[0])]
        with m.If(left == 0):
            with m.If(self.bytes.valid):
                m.d.sync += [bits.eq(Cat(Const(0, 1), self.bytes.payload, Const(1, 1))), left.eq(10)]
                m.d.sync += timer.eq(self._divisor - 1)
        with m.Elif(timer == 0):
            m.d.sync += [bits.eq(Cat(bits[1:], Const(1, 1))), left.eq(left - 1), timer.eq(self._divisor - 1)]
        with m.Else():
            m.d.sync += timer.eq(timer - 1)
        return m


class _Run:
    """What a run counts and sums up; all of it starts anew with the next."""

    def __init__(self, jobs: int, beats: int, lanes: int) -> None:
        self.running = Signal()
        self.job = Signal(range(jobs))
        self.next_beat = Signal(range(beats + 1))
        self.read, self.valid = Signal(), Signal()  # a beat is in the memory's output, in the register behind it
        self.lane = Signal(clog2(lanes))
        self.low, self.high = Signal(32), Signal(32)  # the checksum
        self.rows = Signal(32)
        self.cycles = Signal(32)
        self.bad = Signal()

    def begin(self) -> list[Any]:
        """Assignments (domain sync) of a run's first cycle."""
        return [s.eq(int(s is self.running)) for s in vars(self).values()]


@dataclass(frozen=True)
class _Report:
    """The line being sent: digits left to show, place in the text, whether a digit stands there, its letters."""

    shown: Signal
    text: Signal
    is_digit: Value
    letters: int


class SelfTest(wiring.Component):
    """Runs jobs from its own memory through a TlmmEngine again and again, and reports each run in a line of text:

    `tellme TLMM self-test <build hash> rows <8 hex> cycles <8 hex> checksum <16 hex> PASS` (or FAIL), CR LF.

    A run passes when the checksum of the results is the golden model's, every row came, and no weight byte was bad. A run
    that hangs fails after `limit` cycles.

    Parameters
    ----------
    config : of the engine; clock_hz gives the bit time.
    work : the jobs.
    checksum : what must come out; the golden model's for `work` if None.

    Interface attributes
    --------------------
    tx : serial line, `BAUD`, 8N1.
    passed, failed : outcome of the last run.
    """

    def __init__(
        self, config: AcceleratorConfig, work: Sequence[Job] | None = None, *, checksum: int | None = None
    ) -> None:
        self.config = config
        self.work = list(jobs(config) if work is None else work)
        self.checksum = expected(config, self.work) if checksum is None else checksum
        self.rows = sum(len(j.weights) for j in self.work)
        self._beats = sum(len(j.beats(config)) for j in self.work)
        self.limit = 16 * (self._beats + 64 * config.lanes * len(self.work))
        super().__init__({"tx": Out(1, init=1), "passed": Out(1), "failed": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.engine = engine = TlmmEngine(config)
        m.submodules.uart = uart = UartTransmitter(divisor=round(config.clock_hz / BAUD))
        m.d.comb += self.tx.eq(uart.tx)
        run = _Run(len(self.work), self._beats, config.lanes)
        self._jobs(m, engine, run)
        self._feed(m, engine, run)
        self._sum_up(m, engine, run)
        arrived, ok = self._compare(m, run)
        report = self._write(m, uart)
        self._sequence(m, engine, uart, run, report, arrived, ok)
        return m

    def _jobs(self, m: Module, engine: TlmmEngine, run: _Run) -> None:
        """The jobs' parameters and activations."""
        config = self.config
        lane_words = config.max_features // config.word
        words = np.zeros((len(self.work), config.lanes, lane_words * config.word), np.int8)
        for i, j in enumerate(self.work):
            words[i, : len(j.activations), : j.activations.shape[1]] = j.activations
        values = [int.from_bytes(w.tobytes(), "little") for w in words.reshape(-1, config.word)]
        m.submodules.activations = activations = Memory(shape=8 * config.word, depth=len(values), init=values)
        port = activations.read_port()

        table = {
            "tiles": [j.tiles(config) for j in self.work],
            "rows": [len(j.weights) for j in self.work],
            "block_rows": [j.block_rows for j in self.work],
            "lanes": [len(j.activations) for j in self.work],
        }
        for name, of_jobs in table.items():
            m.d.sync += getattr(engine, name).eq(Array(of_jobs)[run.job])
        m.d.comb += [
            # All there: more than there are, and a power of two, so that the comparison is of one bit.
            engine.quantised.eq(1 << 31),
            port.addr.eq(Cat(engine.int8.word, engine.int8.lane[: exact_log2(config.lanes)], run.job)),
            port.en.eq(engine.int8.en),
            engine.int8.data.eq(port.data),
        ]

    def _feed(self, m: Module, engine: TlmmEngine, run: _Run) -> None:
        """Beats, through two enabled stages, as a block RAM's output is too late for the decoders behind it."""
        config = self.config
        beats = np.concatenate([j.beats(config) for j in self.work])
        values = [int.from_bytes(b.tobytes(), "little") for b in beats]
        m.submodules.weights = weights = Memory(shape=8 * config.beat_bytes, depth=len(values), init=values)
        port = weights.read_port()
        more, enable1, enable2 = Signal(), Signal(), Signal()
        beat = Signal(8 * config.beat_bytes, reset_less=True)
        m.d.comb += [
            more.eq(run.next_beat != len(values)),
            enable2.eq(~run.valid | engine.beats.ready),
            enable1.eq(run.running & (~run.read | enable2)),
            engine.beats.payload.eq(beat),
            engine.beats.valid.eq(run.valid),
            port.addr.eq(run.next_beat),
            port.en.eq(enable1),
        ]
        with m.If(enable2):
            m.d.sync += [beat.eq(port.data), run.valid.eq(run.read)]
        with m.If(enable1):
            m.d.sync += [run.read.eq(more), run.next_beat.eq(run.next_beat + more)]

    def _sum_up(self, m: Module, engine: TlmmEngine, run: _Run) -> None:
        """Results into the checksum, a lane a cycle."""
        rows, lanes = engine.rows_out, self.config.lanes
        accumulator = Signal(32)
        last_lane = run.lane == lanes - 1
        m.d.comb += rows.ready.eq(last_lane)
        summing = register(m, rows.valid, "summing", reset_less=False)
        summed = register(m, summing, "summed", reset_less=False)
        with m.If(rows.valid):
            m.d.sync += [
                accumulator.eq(Array(rows.payload[i] for i in range(lanes))[run.lane]),
                run.lane.eq(counted(run.lane, last_lane)),
                run.rows.eq(run.rows + last_lane),
            ]
        with m.If(summing):
            m.d.sync += run.low.eq(run.low + accumulator)
        with m.If(summed):
            m.d.sync += run.high.eq(run.high + run.low)

    def _compare(self, m: Module, run: _Run) -> tuple[Value, Value]:
        """Whether all rows came, and whether the results are right: some cycles late."""
        # Registered in two steps: 96 bits are compared.
        parts = Cat(run.low, run.high, run.rows)
        wanted = self.checksum | self.rows << 64
        matches = Signal(len(parts) // 8)
        m.d.sync += matches.eq(Cat(parts[i : i + 8] == (wanted >> i) & 0xFF for i in range(0, len(parts), 8)))
        arrived = register(m, run.rows == self.rows, "arrived", reset_less=False)
        return arrived, matches.all() & ~run.bad

    def _write(self, m: Module, uart: UartTransmitter) -> _Report:
        """The letter to be sent: of a line of text for either outcome, with places for digits, shifted out of `shown`."""
        lines = [
            (b"tellme TLMM self-test %08x rows " % build_hash(self.config))
            + (DIGIT * 8 + b" cycles " + DIGIT * 8 + b" checksum " + DIGIT * 16 + b" " + word + b"\r\n")
            for word in (FAIL, PASS)
        ]
        m.submodules.letters = letters = Memory(shape=8, depth=2 * LINE, init=b"".join(x.ljust(LINE) for x in lines))
        letter = letters.read_port()
        report = _Report(
            Signal(128, name="shown"), Signal(range(LINE), name="text"), letter.data == DIGIT[0], len(lines[0])
        )
        digit = report.shown[-4:]
        m.d.comb += [letter.addr.eq(Cat(report.text, self.passed)), uart.bytes.payload.eq(letter.data)]
        with m.If(report.is_digit):
            m.d.comb += uart.bytes.payload.eq(Mux(digit < 10, ord("0") + digit, ord("a") - 10 + digit))
        return report

    def _sequence(
        self,
        m: Module,
        engine: TlmmEngine,
        uart: UartTransmitter,
        run: _Run,
        report: _Report,
        arrived: Value,
        ok: Value,
    ) -> None:
        """Job after job, then the report, again and again."""
        settle = Signal(range(SETTLE))
        following = run.cycles + 1
        with m.FSM():
            with m.State("Begin"):
                m.d.sync += run.begin()
                m.next = "Prepare"
            with m.State("Prepare"):  # the job's parameters are in their registers one cycle after `job`
                m.d.sync += run.cycles.eq(following)
                m.next = "Start"
            with m.State("Start"):
                m.d.comb += engine.start.eq(1)
                m.d.sync += run.cycles.eq(following)
                m.next = "Run"
            with m.State("Run"):
                m.d.sync += run.cycles.eq(following)
                with m.If(run.cycles == self.limit):
                    m.next = "Settle"
                with m.Elif(engine.done):
                    m.d.sync += run.bad.eq(run.bad | engine.bad_weight)
                    with m.If(run.job == len(self.work) - 1):
                        m.next = "Drain"
                    with m.Else():
                        m.d.sync += run.job.eq(run.job + 1)
                        m.next = "Prepare"
            with m.State("Drain"):
                m.d.sync += run.cycles.eq(following)
                with m.If(arrived | (run.cycles == self.limit)):
                    m.next = "Settle"
            with m.State("Settle"):
                m.d.sync += settle.eq(settle + 1)
                with m.If(settle == SETTLE - 1):
                    m.next = "Judge"
            with m.State("Judge"):
                m.d.sync += [run.running.eq(0), self.passed.eq(ok), self.failed.eq(~ok)]
                m.d.sync += [report.shown.eq(Cat(run.low, run.high, run.cycles, run.rows)), report.text.eq(0)]
                m.next = "Look up"
            with m.State("Look up"):  # the memory's cycle
                m.next = "Say"
            with m.State("Say"):
                m.d.comb += uart.bytes.valid.eq(1)
                with m.If(uart.bytes.ready):
                    m.d.sync += report.text.eq(report.text + 1)
                    with m.If(report.is_digit):
                        m.d.sync += report.shown.eq(report.shown << 4)
                    m.next = "Look up"
                    with m.If(report.text == report.letters - 1):
                        m.next = "Begin"
