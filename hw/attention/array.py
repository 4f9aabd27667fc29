"""The multiplier array: int8 dot products of queries and keys, and weighted sums of values, on the same multipliers."""

from __future__ import annotations

from amaranth import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.hw.attention.block import Sizes, tag_layout
from tellme.hw.attention.signatures import OperandPort, SumPort
from tellme.hw.fp.dsp import multiply_chosen
from tellme.hw.pipeline import delay_line, wire


class MultiplierArray(wiring.Component):
    """attention_lanes x beat_bytes multipliers in chains of `Sizes.depth` (cell / 4).

    A chain adds the products of its rows one after the other, each row a cycle behind the one before (a cascade of
    DSP48E2, `hw.fp.dsp`), so row i sees everything i cycles late.

    Dot: row i takes bytes 4i..4i+3 of each key's cell, times the query's. Every cycle gives attention_lanes x
    keys_per_beat dot products of a cell.

    Weighted sum: a bundle of `depth` beats (consecutive cycles) is turned round: row i keeps the weight of beat i and
    takes bytes 4j..4j+3 of that beat in step j, so that step j ends as the sums of dims 4j..4j+3 over `depth` beats.
    These are accumulated over the bundles of a run; the last bundle's sums go to one half of a memory, from which they
    are read. The delay that skews the rows of a dot product turns the beats, too: the word that row i needs in step j
    leaves delay line j.

    Interface attributes
    --------------------
    tag, beat, weights : what the player issued, all in one cycle; weights: [attention lane][key], 0 where the beat is none.
    Each byte of a narrow beat holds an element of the lower half of the attention lanes (low nibble) and one of the upper.
    load : query operands; they replace those in use from the beat tagged `swap` on.
    dots : [query][key], `dot_delay` cycles behind the beat.
    sums : read port of the weighted sums.
    summed : pulse, a run's sums can be read from the next cycle on.
    """

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        config = sizes.config
        self.dot_delay = sizes.depth + 5
        """Row 0's operands: 2 (operand, product), the chain: depth + 1, the tree of four chains: 2."""
        self._step_delay = sizes.depth + 4
        """From the tag of a step to its sums over the keys of a beat: the chain, and one register."""
        self.sum_delay = self._step_delay + 2
        """From the tag of a run's last step to `summed`: accumulated, written."""
        super().__init__(
            {
                "tag": In(tag_layout(sizes)),
                "beat": In(8 * config.beat_bytes),
                "weights": In(data.ArrayLayout(16, config.attention_lanes * config.keys_per_beat)),
                "load": In(OperandPort(sizes)),
                "dots": Out(
                    data.ArrayLayout(
                        signed(16 + exact_log2(config.cell)), config.attention_lanes * config.keys_per_beat
                    )
                ),
                "sums": In(SumPort(sizes)),
                "summed": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sizes = self.sizes
        config = sizes.config
        depth, lanes, keys = sizes.depth, config.attention_lanes, config.keys_per_beat
        rows_per_word = config.word // 4
        # Word w of a beat (bytes 4w..4w+3 of each key's cell), w + 1 cycles late: at row i + j + 1 cycles behind the first
        # beat of a bundle, this is word j of the bundle's beat i for every j, and word i of the dot beat of that row.
        words = [
            delay_line(
                m,
                Cat(self.beat.word_select(k * depth + w, 32) for k in range(keys)),
                w + 1,
                f"word_{w}",
            )
            for w in range(depth)
        ]
        weights = self.weights.as_value()
        totals: list[Value] = [Const(0)] * (lanes * keys * 4)
        cascades: list[Value | None] = [None] * (lanes * keys * 4)
        for i in range(depth):
            # Row i's operands are chosen i + 1 cycles behind the tag.
            swap_i = delay_line(m, self.tag.swap, i, f"swap_{i}")
            sum_i = delay_line(m, self.tag.sum, i, f"sum_{i}")
            step = wire(m, Mux(self.tag.sum, self.tag.step, i), f"choice_{i}")
            chosen = wire(m, Array(words)[delay_line(m, step, i + 1, f"step_{i}")], f"chosen_{i}")
            halves = self._halves(m, i, chosen)
            keep = wire(m, self.tag.sum & (self.tag.step == i), f"keep_{i}")
            word, element = divmod(i, rows_per_word)
            for a in range(lanes):
                for x in range(4):
                    following = Signal(signed(8), name=f"next_{i}_{a}_{x}", reset_less=True)
                    with m.If(self.load.en & self._loaded(a) & (self.load.word == word)):
                        m.d.sync += following.eq(self.load.data.word_select(4 * element + x, 8))
                    for k in range(keys):
                        n = (a * keys + k) * 4 + x
                        totals[n], cascades[n] = multiply_chosen(
                            m,
                            platform,
                            f"row_{i}_{a}_{k}_{x}",
                            a=following,
                            a_en=swap_i,
                            d=Cat(weights.word_select(a * keys + k, 16), 0).as_signed(),
                            d_en=keep,
                            use_d=sum_i,
                            b=halves[2 * a >= max(2, lanes)].word_select(4 * k + x, 8).as_signed(),
                            cascade=cascades[n],
                            width=sizes.chain_bits,
                        )
        chain = [[totals[(a * keys + k) * 4 :][:4] for k in range(keys)] for a in range(lanes)]

        self._add_chains(m, chain)
        self._accumulate(m, chain)
        return m

    def _halves(self, m: Module, i: int, chosen: Value) -> list[Value]:
        """The bytes of row i for the lower and for the upper half of the attention lanes: as they are, or their nibble."""
        if not self.sizes.config.narrow_cache:
            return [chosen, chosen]
        narrow = delay_line(m, self.tag.narrow, i + 1, f"narrow_{i}")
        halves = []
        for h in range(2):
            nibbles = [chosen.word_select(n, 8).word_select(h, 4) for n in range(len(chosen) // 8)]
            half = Signal.like(chosen, name=f"half_{i}_{h}")
            m.d.comb += half.eq(Mux(narrow, Cat(Cat(x, x[3].replicate(4)) for x in nibbles), chosen))
            halves.append(half)
        return halves

    def _loaded(self, lane: int) -> Value:
        """Whether an attention lane takes the operands: when attention is split, a query is loaded into two."""
        top = exact_log2(self.sizes.config.attention_lanes) - 1
        if not self.sizes.config.narrow_cache:
            return self.load.lane == lane
        return (self.load.lane[:top] == lane & (1 << top) - 1) & (self.load.both | (self.load.lane[top] == lane >> top))

    def _add_chains(self, m: Module, chain: list[list[list[Value]]]) -> None:
        """Dot products: the four chains of each query and key."""
        config = self.sizes.config
        small = 16 + exact_log2(config.cell)
        for a in range(config.attention_lanes):
            for k in range(config.keys_per_beat):
                pairs = []
                for x in (0, 2):
                    pair = Signal(signed(small), name=f"pair_{a}_{k}_{x}", reset_less=True)
                    m.d.sync += pair.eq(chain[a][k][x] + chain[a][k][x + 1])
                    pairs.append(pair)
                m.d.sync += self.dots[a * config.keys_per_beat + k].eq(pairs[0] + pairs[1])

    def _accumulate(self, m: Module, chain: list[list[list[Value]]]) -> None:
        """Weighted sums of a run, from the steps of its bundles, to one half of the memory."""
        sizes = self.sizes
        depth, lanes, keys = sizes.depth, sizes.config.attention_lanes, sizes.config.keys_per_beat
        # A step's sums over the keys of a beat: one register behind the chains; then the accumulators, a ring of
        # `depth`.
        to_step = self._step_delay
        step_valid = delay_line(m, self.tag.sum, to_step, "step_valid", reset_less=False)
        step_first = delay_line(m, self.tag.first, to_step, "step_first")
        step_last = delay_line(m, self.tag.last, to_step, "step_last")
        step_half = delay_line(m, self.tag.half, to_step, "step_half")
        step = delay_line(m, self.tag.step, to_step, "step")
        write_en = Signal()
        write_at = Signal(1 + exact_log2(depth), reset_less=True)
        write_data = []
        for a in range(lanes):
            for x in range(4):
                bundle = Signal(signed(sizes.chain_bits + exact_log2(keys)), name=f"bundle_{a}_{x}", reset_less=True)
                m.d.sync += bundle.eq(sum(chain[a][k][x] for k in range(keys)))
                ring = [Signal(signed(sizes.run_bits), name=f"acc_{a}_{x}_{j}", reset_less=True) for j in range(depth)]
                with m.If(step_valid):
                    m.d.sync += ring[0].eq(bundle + Mux(step_first, 0, ring[-1]))
                    m.d.sync += [ring[j].eq(ring[j - 1]) for j in range(1, depth)]
                write_data.append(ring[0])
        m.d.sync += [
            write_en.eq(step_valid & step_last),
            write_at[: exact_log2(depth)].eq(step),
            write_at[-1].eq(step_half),
            self.summed.eq(write_en & write_at[: exact_log2(depth)].all()),
        ]
        pair_layout = data.ArrayLayout(signed(sizes.run_bits), 4 * sizes.pair)
        shape = data.ArrayLayout(pair_layout, lanes // sizes.pair)
        m.submodules.sums = memory = Memory(shape=shape, depth=2 * depth, init=[])
        write = memory.write_port()
        read = memory.read_port(domain="comb")
        m.d.comb += [write.en.eq(write_en), write.addr.eq(write_at)]
        for n, value in enumerate(write_data):
            m.d.comb += write.data[n // (4 * sizes.pair)][n % (4 * sizes.pair)].eq(value)
        m.d.comb += [read.addr[: exact_log2(depth)].eq(self.sums.step), read.addr[-1].eq(self.sums.half)]
        m.d.sync += self.sums.data.eq(read.data[self.sums.pair])
        return m
