"""What a pass reads, in order: attention phases and stream segments of a program.

The hardware's fetcher and attention sequencer are held against these functions; the analysis of the weight buffer
counts with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tellme.golden import layout
from tellme.golden.arith import ceil_div
from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import KvGeometry
from tellme.golden.program import DESCRIPTOR_BYTES, Opcode, decode


@dataclass(frozen=True)
class Phase:
    """One phase of the attention unit: the K or V cells of one key block for one (KV head, lane group) unit.

    `base`: first score word of the block within the unit; `unit_words`: score words of the unit for one set of queries.
    """

    v: bool
    own: bool
    first: bool
    last: bool
    final: bool
    kv_head: int
    lane_lo: int
    lane_hi: int
    keys: int
    base: int
    unit_words: int
    parity: int
    block: int


@dataclass(frozen=True)
class Segment:
    """`beats` consecutive beats from `address` (both in beats)."""

    address: int
    beats: int


def groups(slots: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) lane of every run of neighbouring lanes with one slot."""
    out: list[tuple[int, int]] = []
    for lane, slot in enumerate(slots):
        if out and slots[out[-1][0]] == slot:
            out[-1] = (out[-1][0], lane)
        else:
            out.append((lane, lane))
    return out


def phases(
    config: AcceleratorConfig,
    kv_heads: int,
    positions: Sequence[int],
    slots: Sequence[int],
    v_narrow: bool = False,
) -> list[Phase]:
    """Phases of one ATTENTION in execution order: K(0), K(1), V(0), K(2), V(1), ..., V(last).

    The numbers count units: (KV head, lane group), the lane groups of a KV head in turn.

    v_narrow : values are of 4 bits; a score word then holds twice the keys, of half the queries.
    """
    kpb, block_keys = config.keys_per_beat, config.key_block
    word_keys = kpb << v_narrow

    def part(unit: int, kv_head: int, lo: int, hi: int, v: bool, final: bool) -> Iterator[Phase]:
        cached = positions[lo]
        own_words = ceil_div(hi // kpb - lo // kpb + 1, 1 + v_narrow)
        words = own_words + ceil_div(cached, word_keys)
        blocks = ceil_div(cached, block_keys)

        def phase(own: bool, keys: int, base: int, block: int) -> Phase:
            last = block == 0 if not own else cached == 0
            return Phase(v, own, own, last, final and last, kv_head, lo, hi, keys, base, words, unit % 2, block)

        yield phase(True, hi - lo + 1, 0, 0)
        base = own_words
        for block in range(blocks - 1, -1, -1):
            keys = min(block_keys, cached - block * block_keys)
            yield phase(False, keys, base, block)
            base += ceil_div(keys, word_keys)

    units = [(h, lo, hi) for h in range(kv_heads) for lo, hi in groups(slots)]
    out: list[Phase] = []
    for i, unit in enumerate(units):
        out += part(i, *unit, False, False)
        if i:
            out += part(i - 1, *units[i - 1], True, False)
    out += part(len(units) - 1, *units[-1], True, True)
    return out


def segments(
    config: AcceleratorConfig,
    program: bytes,
    program_address: int,
    positions: Sequence[int],
    slots: Sequence[int],
    head_count: int,
    candidates: Sequence[int] = (),
) -> list[Segment]:
    """Every read of a pass in order, the program itself first.

    candidates : rows that a screened head chooses, of all head lanes, in the order in which it gives them; none: the full head.
    """
    lanes, kv = len(positions), KvGeometry(config)
    out = [Segment(program_address, ceil_div(len(program), config.beat_bytes))]

    def add(address: int, beats: int) -> None:
        if beats:
            out.append(Segment(address, beats))

    for i in range(0, len(program), DESCRIPTOR_BYTES):
        opcode, f = decode(program[i : i + DESCRIPTOR_BYTES])
        v = {k: int(x) for k, x in f.items() if isinstance(x, int)}
        if opcode is Opcode.END:
            break
        if opcode is Opcode.LOAD:
            add(v["address"], v["gain_beats"])
            add(v["x_address"], lanes * v["x_beats"])
            for p in positions:
                add(v["rope_address"] + p * v["rope_beats"], v["rope_beats"])
        elif opcode is Opcode.LINEAR:
            add(v["address"], v["gain_beats"])
            add(v["address"] + v["gain_beats"], v["tiles"] * v["rows"])
        elif opcode is Opcode.ATTENTION:
            add(v["address"], v["gain_beats"])
            cells = kv.cells(v["head_dim"])
            k_narrow, v_narrow = v["k_narrow"], v["v_narrow"]
            for ph in phases(config, v["kv_heads"], positions, slots, bool(v_narrow)):
                if ph.own:
                    continue
                base = v["kv_address"] + slots[ph.lane_lo] * v["slot_stride"] + ph.kv_head * v["head_stride"]
                base += ph.block * kv.block_stride(cells, k_narrow, v_narrow)
                if not ph.v:
                    add(base + kv.k_scales, kv.scale_reads(ph.keys))
                    add(base + kv.v_scales, kv.scale_reads(ph.keys))
                data = base + (kv.v_data(cells, k_narrow) if ph.v else kv.k_data)
                narrow = v_narrow if ph.v else k_narrow
                for c in range(cells):
                    add(data + c * kv.cell_beats(narrow), kv.cell_reads(ph.keys, narrow))
        elif opcode is Opcode.SCREEN and (candidates or v["exact"]) and head_count:
            add(v["address"], layout.screen_beats(v["rows"], v["planes"], v["inputs"], config))
            if v["exact"]:
                continue
            beats = layout.row_beats(v["inputs"], config)
            for row in candidates:
                add(v["row_address"] + row * beats, beats)
        elif opcode is Opcode.HEAD and not candidates:
            beats = v["blocks"] * layout.head_block_beats(v["inputs"], config)
            for _ in range(ceil_div(head_count, config.attention_lanes)):
                add(v["address"], beats)
    return out
