"""A TLMM engine that feeds itself, checks its results and says so on a serial line. For FPGAs without a processor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.registers import build_hash
from tellme.golden.selftest import Job, expected, jobs
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
        beats = sum(len(j.beats(config)) for j in self.work)
        self.limit = 16 * (beats + 64 * config.lanes * len(self.work))
        super().__init__({"tx": Out(1, init=1), "passed": Out(1), "failed": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        m.submodules.engine = engine = TlmmEngine(c)
        m.submodules.uart = uart = UartTransmitter(divisor=round(c.clock_hz / BAUD))
        m.d.comb += self.tx.eq(uart.tx)

        # ---- the jobs' data ----------------------------------------------------------------------
        beats = np.concatenate([j.beats(c) for j in self.work])
        lane_words = c.max_features // c.word
        words = np.zeros((len(self.work), c.lanes, lane_words * c.word), np.int8)
        for i, j in enumerate(self.work):
            words[i, : len(j.activations), : j.activations.shape[1]] = j.activations
        beat_values = [int.from_bytes(b.tobytes(), "little") for b in beats]
        word_values = [int.from_bytes(w.tobytes(), "little") for w in words.reshape(-1, c.word)]
        m.submodules.weights = weights = Memory(shape=8 * c.beat_bytes, depth=len(beat_values), init=beat_values)
        m.submodules.activations = activations = Memory(shape=8 * c.word, depth=len(word_values), init=word_values)
        beat_port, word_port = weights.read_port(), activations.read_port()

        job = Signal(range(len(self.work)))
        table = {
            "tiles": [j.tiles(c) for j in self.work],
            "rows": [len(j.weights) for j in self.work],
            "block_rows": [j.block_rows for j in self.work],
            "lanes": [len(j.activations) for j in self.work],
        }
        for name, values in table.items():
            m.d.sync += getattr(engine, name).eq(Array(values)[job])
        m.d.comb += [
            # All there: more than there are, and a power of two, so that the comparison is of one bit.
            engine.quantised.eq(1 << 31),
            word_port.addr.eq(Cat(engine.q_word, engine.q_lane[: ceil_log2(c.lanes)], job)),
            word_port.en.eq(engine.q_en),
            engine.q_data.eq(word_port.data),
        ]

        # ---- beats: two enabled stages, as a block RAM's output is too late for the decoders behind it -------------
        running = Signal()
        read, valid = Signal(), Signal()
        next_beat = Signal(range(len(beat_values) + 1))
        more, enable1, enable2 = Signal(), Signal(), Signal()
        beat = Signal(8 * c.beat_bytes, reset_less=True)
        m.d.comb += [
            more.eq(next_beat != len(beat_values)),
            enable2.eq(~valid | engine.beats.ready),
            enable1.eq(running & (~read | enable2)),
            engine.beats.payload.eq(beat),
            engine.beats.valid.eq(valid),
            beat_port.addr.eq(next_beat),
            beat_port.en.eq(enable1),
        ]
        with m.If(enable2):
            m.d.sync += [beat.eq(beat_port.data), valid.eq(read)]
        with m.If(enable1):
            m.d.sync += [read.eq(more), next_beat.eq(next_beat + more)]

        # ---- results: a lane a cycle into the checksum -------------------------------------------
        rows = engine.rows_out
        lane = Signal(clog2(c.lanes))
        low, high = Signal(32), Signal(32)
        accumulator = Signal(32)
        summing, summed = Signal(), Signal()
        row_count = Signal(32)
        last_lane = lane == c.lanes - 1
        m.d.comb += rows.ready.eq(last_lane)
        m.d.sync += [summing.eq(rows.valid), summed.eq(summing)]
        with m.If(rows.valid):
            m.d.sync += [
                accumulator.eq(Array(rows.payload[i] for i in range(c.lanes))[lane]),
                lane.eq(Mux(last_lane, 0, lane + 1)),
                row_count.eq(row_count + last_lane),
            ]
        with m.If(summing):
            m.d.sync += low.eq(low + accumulator)
        with m.If(summed):
            m.d.sync += high.eq(high + low)

        # ---- a run -------------------------------------------------------------------------------
        cycles = Signal(32)
        bad = Signal()
        # Registered in two steps: 96 bits are compared.
        parts = Cat(low, high, row_count)
        wanted = self.checksum | self.rows << 64
        matches = Signal(len(parts) // 8)
        m.d.sync += matches.eq(Cat(parts[i : i + 8] == (wanted >> i) & 0xFF for i in range(0, len(parts), 8)))
        arrived = Signal()
        m.d.sync += arrived.eq(row_count == self.rows)

        # ---- the report: a line of text for either outcome, with places for digits, shifted out of `shown` --------
        shown = Signal(128)
        text = Signal(range(LINE))
        lines = [
            (b"tellme TLMM self-test %08x rows " % build_hash(c))
            + (DIGIT * 8 + b" cycles " + DIGIT * 8 + b" checksum " + DIGIT * 16 + b" " + word + b"\r\n")
            for word in (FAIL, PASS)
        ]
        m.submodules.letters = letters = Memory(shape=8, depth=2 * LINE, init=b"".join(x.ljust(LINE) for x in lines))
        letter = letters.read_port()
        m.d.comb += [letter.addr.eq(Cat(text, self.passed)), uart.bytes.payload.eq(letter.data)]
        is_digit, digit = letter.data == DIGIT[0], shown[-4:]
        with m.If(is_digit):
            m.d.comb += uart.bytes.payload.eq(Mux(digit < 10, ord("0") + digit, ord("a") - 10 + digit))

        settle = Signal(range(SETTLE))
        with m.FSM():
            with m.State("Begin"):
                m.d.sync += [job.eq(0), next_beat.eq(0), read.eq(0), valid.eq(0), running.eq(1), bad.eq(0)]
                m.d.sync += [low.eq(0), high.eq(0), row_count.eq(0), cycles.eq(0), lane.eq(0)]
                m.next = "Prepare"
            with m.State("Prepare"):  # the job's parameters are in their registers one cycle after `job`
                m.d.sync += cycles.eq(cycles + 1)
                m.next = "Start"
            with m.State("Start"):
                m.d.comb += engine.start.eq(1)
                m.d.sync += cycles.eq(cycles + 1)
                m.next = "Run"
            with m.State("Run"):
                m.d.sync += cycles.eq(cycles + 1)
                with m.If(cycles == self.limit):
                    m.next = "Settle"
                with m.Elif(engine.done):
                    m.d.sync += bad.eq(bad | engine.bad_weight)
                    with m.If(job == len(self.work) - 1):
                        m.next = "Drain"
                    with m.Else():
                        m.d.sync += job.eq(job + 1)
                        m.next = "Prepare"
            with m.State("Drain"):
                m.d.sync += cycles.eq(cycles + 1)
                with m.If(arrived | (cycles == self.limit)):
                    m.next = "Settle"
            with m.State("Settle"):
                m.d.sync += settle.eq(settle + 1)
                with m.If(settle == SETTLE - 1):
                    m.next = "Judge"
            with m.State("Judge"):
                ok = matches.all() & ~bad
                m.d.sync += [running.eq(0), self.passed.eq(ok), self.failed.eq(~ok)]
                m.d.sync += [shown.eq(Cat(low, high, cycles, row_count)), text.eq(0)]
                m.next = "Look up"
            with m.State("Look up"):  # the memory's cycle
                m.next = "Say"
            with m.State("Say"):
                m.d.comb += uart.bytes.valid.eq(1)
                with m.If(uart.bytes.ready):
                    m.d.sync += text.eq(text + 1)
                    with m.If(is_digit):
                        m.d.sync += shown.eq(shown << 4)
                    m.next = "Look up"
                    with m.If(text == len(lines[0]) - 1):
                        m.next = "Begin"
        return m
