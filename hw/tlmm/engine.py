"""The table-lookup ternary matrix engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.screen import MAX_PLANES, MAX_ROWS
from tellme.hw.interfaces import EXPONENT_BITS, Int8ReadPort, count_bits
from tellme.hw.pipeline import delay_line, register, wire
from tellme.hw.queues import ReservedQueue
from tellme.hw.tlmm.accumulate import Accumulator, accumulator_lead, row_layout
from tellme.hw.tlmm.loader import TileLoader
from tellme.hw.tlmm.scale import GroupScaler, scaler_delay
from tellme.hw.tlmm.tables import TableBuilder, TableMemory, sum_width
from tellme.hw.tlmm.tree import AdderTree, tree_delay
from tellme.hw.tlmm.unpack import Unpacker, entries, unit_bytes

ROWS_BITS = clog2(MAX_ROWS * MAX_PLANES + 1)
"""Of the rows of a job: those of a screened head are the most."""


def _told(config: AcceleratorConfig) -> int:
    """Cycles from a beat to the accumulator's flags, which come before the sums."""
    units = len(unit_bytes(config))
    scaling = scaler_delay(units) if config.packing.group else 0
    return (
        Unpacker.delay
        + tree_delay(config.groups // units, sum_width(config.group_size))
        + scaling
        - accumulator_lead(config)
    )


def _delay(config: AcceleratorConfig) -> int:
    """Cycles from a beat of a last tile to its row's push."""
    return _told(config) + accumulator_lead(config) + 1


@dataclass(frozen=True)
class _Beat:
    """A beat as it is taken: in which bank its tables are, and where it stands in the job."""

    take: Signal
    bank: Signal
    first_tile: Signal
    last_tile: Signal
    row: Signal
    final: Value  # the job's last


class TlmmEngine(wiring.Component):
    """Matrix times the int8 activations of up to `lanes` tokens: a beat of 5 * beat_bytes ternary weights a cycle.

    For each row block and K tile, the tables of every active lane are built from the int8 buffer (a tile ahead of the
    beats, in the other bank), then each beat looks all groups up, in all lanes with the same index; the sums run
    through a pipelined tree into the row accumulators, and finished rows into a FIFO of block_rows. Nothing in the
    pipeline stalls: a beat is taken only when its tables are ready and, in a block's last tile, its row has room in
    the FIFO.

    Parameters
    ----------
    config : beat bytes, lanes, group size, block rows, accumulator width.

    Interface attributes
    --------------------
    start : begins a job (only while `busy` is low; the row FIFO may still hold rows).
    tiles, rows, block_rows, lanes : K tiles (>= 1; 20 * tiles words must fit a lane's part of the int8 buffer), rows (a
        positive multiple of 8), rows of a block (a multiple of 8, at most config.block_rows), active lanes (>= 1).
        Stable until `done`.
    busy, done : high from the cycle after `start` until `done`; `done` is one cycle, when the last row is in the FIFO.
    beats : weights in the order row block, K tile, row.
    quantised : words of the int8 buffer written for this job, counted in the order tile, lane, word.
    int8 : read port of the int8 buffer.
    rows_out : accumulators of all lanes, 0 for idle ones, in row order.
    bad_weight : a byte above 242 was seen (it counts as zeros); cleared by `start`.
    stall_tables : a beat waits because its tables are not built yet.
    stall_rows : a beat waits because the row FIFO has no room.

    Attributes
    ----------
    delay : cycles from a beat of a last tile to its push into the row FIFO; rows_out.valid follows ReservedQueue.delay later.

    Source: TeLLMe v2, arXiv 2510.15926 (tables, online construction), with symmetric double-buffered tables.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self.delay = _delay(config)
        super().__init__(
            {
                "start": In(1),
                "tiles": In(16),
                "rows": In(ROWS_BITS),
                "block_rows": In(16),
                "lanes": In(count_bits(config)),
                "busy": Out(1),
                "done": Out(1),
                "beats": In(stream.Signature(8 * config.beat_bytes)),
                "quantised": In(32),
                "int8": Out(Int8ReadPort(config)),
                "rows_out": Out(stream.Signature(row_layout(config))),
                "bad_weight": Out(1),
                "stall_tables": Out(1),
                "stall_rows": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.loader = loader = TileLoader(config)
        m.submodules.builder = builder = TableBuilder(config)
        m.submodules.unpacker = unpacker = Unpacker(config)
        units = len(unit_bytes(config))
        trees = []
        for u in range(units):
            tree = AdderTree(groups=config.groups // units, lanes=config.lanes, width=sum_width(config.group_size))
            m.submodules["tree" if units == 1 else f"tree_{u}"] = tree
            trees.append(tree)
        scaler, width = None, trees[0].width
        if config.packing.group:
            m.submodules.scaler = scaler = GroupScaler(units=units, lanes=config.lanes, width=width)
            width = min(scaler.width, config.row_width)
        m.submodules.accumulator = accumulator = Accumulator(config, sum_width=width)
        m.submodules.fifo = fifo = ReservedQueue(row_layout(config), config.block_rows)
        m.submodules.tables = tables = TableMemory(config)

        complete = Signal(2)  # which banks hold the tables of all lanes
        self._build(m, loader, builder, tables, complete)
        self._load(m, loader)
        beat = self._take(m, fifo, complete)
        looked_up = self._look_up(m, beat, unpacker, tables, trees)
        sums = trees[0].sums if scaler is None else self._scale(m, beat, loader, tables, unpacker, trees, scaler)
        ending = self._add_up(m, beat, looked_up, sums, accumulator, fifo)
        self._status(m, ending, looked_up & unpacker.bad)
        return m

    def _build(
        self, m: Module, loader: TileLoader, builder: TableBuilder, tables: TableMemory, complete: Signal
    ) -> None:
        """Tables of lane after lane into one bank, then into the other."""
        lanes, groups = self._config.lanes, self._config.groups
        write_bank = Signal()
        building_end = Signal()  # the tile whose last lane is being written
        write_lane = Signal(lanes)
        next_bank = Signal()
        table_done = Signal()
        m.d.comb += [
            table_done.eq(builder.last & building_end),
            next_bank.eq(write_bank ^ table_done),
            loader.builder_ready.eq(~builder.building | builder.last),
            loader.bank_free.eq(~complete.bit_select(next_bank, 1)),
            builder.shift.eq(loader.shift),
            builder.word.eq(self.int8.data),
            builder.take.eq(loader.take),
            tables.write_bank.eq(write_bank),
            tables.write_entry.eq(builder.entry),
            tables.write_lane.eq(write_lane & builder.building.replicate(lanes)),
        ]
        m.d.comb += [tables.write_value[g].eq(builder.value[g]) for g in range(groups)]
        with m.If(loader.take):
            m.d.sync += [write_lane.eq(1 << loader.take_lane), building_end.eq(loader.tile_end)]
        with m.If(table_done):
            m.d.sync += [complete.bit_select(write_bank, 1).eq(1), write_bank.eq(~write_bank)]

    def _load(self, m: Module, loader: TileLoader) -> None:
        """The job for the loader, and its reads of the int8 buffer."""
        rows_ahead, another = (
            Signal(ROWS_BITS),
            Signal(),
        )  # rows from the block that is loaded to the end; more than it has
        m.d.sync += another.eq(rows_ahead > self.block_rows)
        m.d.comb += [
            loader.start.eq(self.start),
            loader.tiles.eq(self.tiles),
            loader.lanes.eq(self.lanes),
            loader.another.eq(another),
            loader.quantised.eq(self.quantised),
        ]
        wiring.connect(m, loader.int8, wiring.flipped(self.int8))
        with m.If(self.start):
            m.d.sync += rows_ahead.eq(self.rows)
        with m.Elif(loader.block_end):
            m.d.sync += rows_ahead.eq(rows_ahead - self.block_rows)

    def _take(self, m: Module, fifo: ReservedQueue, complete: Signal) -> _Beat:
        """Takes beats, in the order row block, K tile, row."""
        block_rows = self._config.block_rows
        streaming = Signal()
        read_bank = Signal()
        rows_left = Signal(ROWS_BITS)  # from this block's first row to the end
        row = Signal(range(block_rows))
        tile = Signal(16)
        # Where the counters stand, known before the cycle that asks. A tile has 8 rows or more: what changes with a tile or
        # a block has time for a register or two.
        last_block, last_row, last_tile, first_tile = Signal(), Signal(), Signal(), Signal(init=1)
        before_last_row, before_last_tile = Signal(range(block_rows)), Signal(16)
        single, following_last = Signal(), Signal()  # one tile; the next tile is a block's last
        m.d.sync += [
            last_block.eq(rows_left <= self.block_rows),
            before_last_row.eq(Mux(last_block, rows_left, self.block_rows) - 2),
            before_last_tile.eq(self.tiles - 2),
            single.eq(self.tiles == 1),
            following_last.eq(Mux(last_tile, single, tile == before_last_tile)),
        ]
        tables_ready, take = Signal(), Signal()
        m.d.comb += [
            tables_ready.eq(complete.bit_select(read_bank, 1)),
            self.beats.ready.eq(streaming & tables_ready & (~last_tile | fifo.room)),
            take.eq(self.beats.valid & self.beats.ready),
            fifo.reserve.eq(take & last_tile),
            self.stall_tables.eq(streaming & self.beats.valid & ~tables_ready),
            self.stall_rows.eq(streaming & self.beats.valid & tables_ready & last_tile & ~fifo.room),
        ]
        with m.If(take):
            m.d.sync += [row.eq(row + 1), last_row.eq(row == before_last_row)]
            with m.If(last_row):
                # The bank is written again two cycles from now at the earliest (take, then write), in the cycle when
                # this beat reads it: the read still sees the old entries.
                m.d.sync += [
                    row.eq(0),
                    tile.eq(tile + 1),
                    first_tile.eq(last_tile),
                    last_tile.eq(following_last),
                    read_bank.eq(~read_bank),
                    complete.bit_select(read_bank, 1).eq(0),
                ]
                with m.If(last_tile):
                    m.d.sync += [tile.eq(0), rows_left.eq(rows_left - self.block_rows), streaming.eq(~last_block)]
        with m.If(self.start):
            m.d.sync += [rows_left.eq(self.rows), streaming.eq(1), last_tile.eq(self.tiles == 1)]
        final = wire(m, last_row & last_tile & last_block, "final")
        return _Beat(take, read_bank, first_tile, last_tile, row, final)

    def _look_up(
        self, m: Module, beat: _Beat, unpacker: Unpacker, tables: TableMemory, trees: list[AdderTree]
    ) -> Value:
        """The beat's indices into the tables of all lanes, and their entries into the trees; the flag that they are there."""
        m.d.comb += [
            unpacker.beat.eq(self.beats.payload),
            tables.read_bank.eq(delay_line(m, beat.bank, Unpacker.delay, "bank")),
        ]
        each = self._config.groups // len(trees)
        for g in range(self._config.groups):
            tree, n = trees[g // each], g % each
            m.d.comb += [tables.index[g].eq(unpacker.index[g]), tree.negate[n].eq(unpacker.negate[g])]
            m.d.comb += [t.eq(v) for t, v in zip(tree.value[n], tables.value[g], strict=True)]
        active = register(m, Cat(self.lanes > i for i in range(self._config.lanes)), "active")
        m.d.comb += [tree.active.eq(active) for tree in trees]
        return delay_line(m, beat.take, Unpacker.delay, "looked_up", reset_less=False)

    def _scale(
        self,
        m: Module,
        beat: _Beat,
        loader: TileLoader,
        tables: TableMemory,
        unpacker: Unpacker,
        trees: list[AdderTree],
        scaler: GroupScaler,
    ) -> Any:
        """Sums of the units times their scales and exponents; the sums of all lanes."""
        config, units = self._config, len(trees)
        # The exponent of a tile's every word, and of each unit the one of its first.
        arriving = Signal(EXPONENT_BITS * config.tile_words, reset_less=True)
        taken, first = Signal(), Signal(EXPONENT_BITS * units, reset_less=True)
        with m.If(loader.shift):
            m.d.sync += arriving.eq(Cat(arriving[EXPONENT_BITS:], self.int8.exponent))
        words = config.tile_words // units
        m.d.sync += [
            taken.eq(loader.take),
            first.eq(Cat(arriving.word_select(u * words, EXPONENT_BITS) for u in range(units))),
        ]
        for lane in range(config.lanes):
            banks = [Signal(EXPONENT_BITS * units, name=f"exponents_{lane}_{b}", reset_less=True) for b in range(2)]
            # Now the tables' first entry of this lane is written.
            with m.If(taken & tables.write_lane[lane]):
                for b, bank in enumerate(banks):
                    with m.If(tables.write_bank == b):
                        m.d.sync += bank.eq(first)
            # As the tables are read: the bank may be written again while the sums are on their way.
            chosen = Mux(tables.read_bank, banks[1], banks[0])
            late = delay_line(m, chosen, trees[0].delay, f"exponents_{lane}", ring=True)
            for u in range(units):
                m.d.comb += [
                    scaler.exponent[u][lane].eq(late.word_select(u, EXPONENT_BITS)),
                    scaler.sums[u][lane].eq(trees[u].sums[lane]),
                ]
        for u in range(units):
            m.d.comb += scaler.scale[u].eq(
                delay_line(m, unpacker.scale[u], trees[0].delay, f"weight_scale_{u}", ring=True)
            )
        return scaler.out

    def _add_up(
        self, m: Module, beat: _Beat, looked_up: Value, sums: Any, accumulator: Accumulator, fifo: ReservedQueue
    ) -> Value:
        """Sums into the accumulators, rows out; the flag of the job's last row, as its row enters the FIFO."""
        # The accumulator wants to know of a beat before its sums.
        told = _told(self._config)
        valid = delay_line(m, looked_up, told - Unpacker.delay, "valid", reset_less=False)
        place = delay_line(m, Cat(beat.first_tile, beat.last_tile, beat.row, beat.final), told, "place")
        final = Signal()
        m.d.comb += [
            Cat(accumulator.first, accumulator.last, accumulator.row, final).eq(place),
            accumulator.valid.eq(valid),
            fifo.write.eq(accumulator.push),
            fifo.payload.eq(accumulator.result),
        ]
        m.d.comb += [a.eq(s) for a, s in zip(accumulator.sums, sums, strict=True)]
        wiring.connect(m, fifo.out, wiring.flipped(self.rows_out))
        return delay_line(m, valid & final, accumulator.delay, "ending", reset_less=False)

    def _status(self, m: Module, ending: Value, bad: Value) -> None:
        with m.If(self.start):
            m.d.sync += [self.busy.eq(1), self.bad_weight.eq(0)]
        with m.Elif(ending):
            m.d.sync += self.busy.eq(0)
        m.d.sync += self.done.eq(ending)
        with m.If(bad):
            m.d.sync += self.bad_weight.eq(1)


def expected_cycles(config: AcceleratorConfig, *, tiles: int, rows: int, block_rows: int, lanes: int) -> int:
    """Cycles from `start` to `done` when beats and activations are always there and every row is taken at once."""
    words, steps = config.tile_words, entries(config.group_size)
    free = [0, 0]  # first cycle in which a bank may be taken
    full = words + 3  # the words of a lane are in place
    ready = 0  # the builder writes the previous lane's last entry
    beat = 0  # first cycle after the last beat
    number = 0
    for first in range(0, rows, block_rows):
        for _ in range(tiles):
            for _ in range(lanes):
                can = max(ready, free[number % 2])
                take = max(full, can)
                ready = take + steps
                # Had to wait: the next lane's first word is read now, and not already in the cycle before.
                full = take + words + (can >= full)
            beat = max(beat, ready + 1) + min(block_rows, rows - first)
            free[number % 2] = beat
            number += 1
    return beat + _delay(config)
