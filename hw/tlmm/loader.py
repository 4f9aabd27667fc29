"""Fetches the activations of each K tile and lane, and tells the table builder when to start."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.hw.interfaces import Int8ReadPort
from tellme.hw.pipeline import counted


class TileLoader(wiring.Component):
    """Reads tile after tile, lane after lane, 20 words each, one word a cycle, as far ahead as the tables allow.

    In the first row block a word is read only when the quantiser has written it; all row blocks read the same tiles.

    Interface attributes
    --------------------
    start : a job begins; tiles, lanes and blocks are stable until its end.
    tiles, lanes : K tiles, active lanes.
    another : at the end of a row block: one more follows.
    block_end : the last word of a row block is read now.
    quantised : words the quantiser has written for this job, in reading order.
    int8 : read port of the int8 buffer; its data go to the table builder.
    shift : the word read in the previous cycle arrives.
    take : all words of a lane are in place and the builder takes them.
    take_lane : which lane.
    tile_end : `take_lane` is the tile's last lane.
    builder_ready : the builder can take a tile in this cycle.
    bank_free : the tables of the bank written next are not in use, nor will be before a `take`.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "tiles": In(16),
                "lanes": In(range(config.lanes + 1)),
                "another": In(1),
                "block_end": Out(1),
                "quantised": In(32),
                "int8": Out(Int8ReadPort(config)),
                "shift": Out(1),
                "take": Out(1),
                "take_lane": Out(clog2(config.lanes)),
                "tile_end": Out(1),
                "builder_ready": In(1),
                "bank_free": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        words = self._config.tile_words
        running, first_block = Signal(), Signal()
        tile = Signal(16)
        lane = Signal(clog2(self._config.lanes))
        word = Signal(range(words))
        base = Signal.like(self.int8.word)  # first word of the tile
        following = Signal.like(self.int8.word)
        sequence = Signal(32)  # which word is next in the first row block, from 1
        available = Signal()  # the next of them is written
        # A lane has 20 words: what changes with a lane or a tile has time for a register.
        last_word, last_lane, last_tile = Signal(), Signal(), Signal()
        limit, last = Signal.like(lane), Signal(16)
        arriving, arriving_last = Signal(), Signal()  # read in the previous cycle
        full = Signal()  # a complete tile waits for the builder
        ready, allowed = Signal(), Signal()
        m.d.comb += [
            last_word.eq(word == words - 1),
            following.eq(self.int8.word + 1),
            ready.eq(self.builder_ready & self.bank_free),
            self.take.eq(full & ready),
            # A word arrives in the next cycle; the previous lane's must have been taken by then, or be taken just then.
            allowed.eq(Mux(full | arriving_last, ready, 1) & (~first_block | available)),
            self.int8.en.eq(running & allowed),
            self.int8.lane.eq(lane),
            self.shift.eq(arriving),
            self.block_end.eq(self.int8.en & last_word & last_lane & last_tile),
        ]
        m.d.sync += [
            limit.eq(self.lanes - 1),
            last.eq(self.tiles - 1),
            last_lane.eq(lane == limit),
            last_tile.eq(tile == last),
            available.eq(Mux(self.int8.en, self.quantised > sequence, self.quantised >= sequence)),
            arriving.eq(self.int8.en),
            arriving_last.eq(self.int8.en & last_word),
        ]
        with m.If(arriving_last):
            m.d.sync += full.eq(1)
        with m.Elif(self.take):
            m.d.sync += full.eq(0)
        with m.If(self.take):
            m.d.sync += self.take_lane.eq(counted(self.take_lane, self.tile_end))
        m.d.sync += self.tile_end.eq(self.take_lane == limit)

        with m.If(self.int8.en):
            m.d.sync += [word.eq(word + 1), self.int8.word.eq(following), sequence.eq(sequence + 1)]
            with m.If(last_word):
                m.d.sync += [word.eq(0), self.int8.word.eq(base), lane.eq(lane + 1)]
                with m.If(last_lane):
                    m.d.sync += [lane.eq(0), tile.eq(tile + 1), base.eq(following), self.int8.word.eq(following)]
                    with m.If(last_tile):
                        m.d.sync += [tile.eq(0), base.eq(0), self.int8.word.eq(0)]
                        m.d.sync += [first_block.eq(0), running.eq(self.another)]
        with m.If(self.start):
            m.d.sync += [running.eq(1), first_block.eq(1), sequence.eq(1), available.eq(0)]
        return m
