"""Writes beats of logits where a HEAD descriptor wants them, and candidates where a SCREEN wants them."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import AcceleratorConfig
from tellme.hw.attention.head import logit_layout
from tellme.hw.head.score import candidate_layout
from tellme.hw.memory.writer import write_layout

STEPS = 3
"""Cycles from a beat's acceptance to its address: partial products, product, sum."""


class LogitWriter(wiring.Component):
    """Gives each beat of logits its address, `address + lane * stride + beat`. A beat every 5 cycles at most.

    Interface attributes
    --------------------
    address, stride : of lane 0's logits and from lane to lane, beats; stable while `busy`.
    logits : stream of `logit_layout`, whole beats.
    candidates : stream of `candidate_layout`, eight bytes each, or sixteen at a multiple of them; never together.
    writes : stream of `write_layout`.
    holding : a beat is held. busy : one is held or offered.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "address": In(32),
                "stride": In(32),
                "logits": In(stream.Signature(logit_layout(config))),
                "candidates": In(stream.Signature(candidate_layout(config))),
                "writes": Out(stream.Signature(write_layout(config))),
                "holding": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        held = Signal(logit_layout(self._config), reset_less=True)
        strobe = Signal(self._config.beat_bytes, reset_less=True)
        full = Signal()
        candidate = self.candidates.payload
        size = candidate.candidate.shape().size // 8
        places = self._config.beat_bytes // size
        place_bits = exact_log2(places)
        data, upper = candidate.candidate.as_value().replicate(places), Const(0)
        if self._config.ternary_head:
            data = Cat(candidate.candidate, candidate.second).replicate(places // 2)
            upper = Cat(Const(0, size), candidate.both.replicate(size))
        steps = Signal(STEPS - 1)
        offered = Signal()
        lane = Value.cast(held.lane)
        half = len(lane) // 2

        def partial(first: int, last: int) -> Signal:
            """Product of some bits of the lane."""
            out = Signal(32)
            total: Value = Const(0, 32)
            for n in range(first, last):
                total = total + (Cat(Const(0, n), self.stride) & lane[n].replicate(32 + n))
            m.d.sync += out.eq(total)
            return out

        low, high = partial(0, half), partial(half, len(lane))
        product, base, total = Signal(32), Signal(32), Signal(32)
        m.d.sync += [
            product.eq(low + high),
            base.eq(self.address + held.beat),
            total.eq(product + base),
            steps.eq(steps << 1 | 1),
            offered.eq(full & steps[-1] & ~(offered & self.writes.ready)),
        ]
        m.d.comb += [
            self.logits.ready.eq(~full),
            self.candidates.ready.eq(~full),
            self.writes.valid.eq(offered),
            self.writes.payload.address.eq(total),
            self.writes.payload.data.eq(held.data),
            self.writes.payload.strobe.eq(strobe),
            self.holding.eq(full),
            self.busy.eq(full | self.logits.valid | self.candidates.valid),
        ]
        with m.If(~full):
            m.d.sync += [
                held.eq(self.logits.payload),
                strobe.eq(~0),
                full.eq(self.logits.valid | self.candidates.valid),
                steps.eq(0),
            ]
            with m.If(self.candidates.valid):
                m.d.sync += [
                    held.lane.eq(candidate.lane),
                    held.beat.eq(candidate.number >> place_bits),
                    held.data.eq(data),
                    strobe.eq(
                        (Const((1 << size) - 1, self._config.beat_bytes) | upper)
                        << (candidate.number[:place_bits] * size)
                    ),
                ]
        with m.Elif(self.writes.valid & self.writes.ready):
            m.d.sync += full.eq(0)
        return m
