"""What several components share: signatures of their connections, and the layout of attention's phases.

A signature is written as the component sees it that begins: who reads, who starts, who gives. The other takes it as `In`.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import In, Out, Signature, connect

from tellme.golden.config import CHUNK, AcceleratorConfig, clog2
from tellme.golden.kv import KvGeometry
from tellme.golden.program import Kind
from tellme.golden.registers import MAX_SLOTS
from tellme.golden.ternary import EXPONENT, EXPONENT_STEP

POSITION_BITS = 16
KV_HEAD_BITS = 8
HEAD_BITS = 8


def count_bits(config: AcceleratorConfig) -> int:
    """Width of a number of lanes, 0..lanes."""
    return clog2(config.lanes) + 1


EXPONENT_BITS = (EXPONENT // EXPONENT_STEP).bit_length()
"""Of a group of activations' exponent, in steps of EXPONENT_STEP."""


class Int8ReadPort(Signature):
    """Read port of the int8 buffer, seen from who reads: config.word activations of a lane, one cycle of latency.

    lane, word : address. en : a word is read; `data` holds until the next. data : int8, the first in the low byte.
    exponent : with the data, of the word's group in steps of `EXPONENT_STEP`; only where the format of weights has groups.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        members = {
            "lane": Out(clog2(config.lanes)),
            "word": Out(clog2(config.max_features // config.word)),
            "en": Out(1),
            "data": In(8 * config.word),
        }
        if config.packing.group:
            members["exponent"] = In(EXPONENT_BITS)
        super().__init__(members)


class QueryScalePort(Signature):
    """Read port of the queries' scales (binary32), seen from who reads: one cycle of latency.

    lane, head : address. Head 0 is the activations' scale once the inputs of a matrix are quantised.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__({"lane": Out(clog2(config.lanes)), "head": Out(HEAD_BITS), "data": In(32)})


class OwnReadPort(Signature):
    """Read port of the own-K/V RAM, seen from who reads: a beat, one cycle of latency.

    address : `KvGeometry.own_address`.
    en, grant : a read happens in cycles with both; its data come in the next.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "address": Out(clog2(KvGeometry(config).own_depth)),
                "en": Out(1),
                "grant": In(1),
                "data": In(8 * config.beat_bytes),
            }
        )


class OwnScalePort(Signature):
    """Read port of the scales (binary32) of the pass's own keys and values, seen from who reads: one cycle of latency.

    v, head, lane : 0 key or 1 value, KV head, lane. en, grant : a read happens in cycles with both.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "v": Out(1),
                "head": Out(KV_HEAD_BITS),
                "lane": Out(clog2(config.lanes)),
                "en": Out(1),
                "grant": In(1),
                "data": In(32),
            }
        )


class AttentionChunks(Signature):
    """Results of attention, seen from who gives: CHUNK features of a lane in a cycle with `valid`, always taken.

    lane, chunk : chunks of a lane ascend. data : binary32.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "valid": Out(1),
                "lane": Out(clog2(config.lanes)),
                "chunk": Out(clog2(config.max_features // CHUNK)),
                "data": Out(data.ArrayLayout(unsigned(32), CHUNK)),
            }
        )


class ScreenedBest(Signature):
    """The best candidate of a lane, seen from who gives: with `valid`, always taken.

    value : its logit, binary32. row : its row.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__({"valid": Out(1), "lane": Out(clog2(config.lanes)), "row": Out(32), "value": Out(32)})


class PassParameters(Signature):
    """Lanes of a pass, seen from who gives: stable from its start to its end.

    lanes : how many. position, slot : of each. same_slot : bit l: lanes l and l+1 have one slot.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "lanes": Out(count_bits(config)),
                "position": Out(data.ArrayLayout(POSITION_BITS, config.lanes)),
                "slot": Out(data.ArrayLayout(clog2(MAX_SLOTS), config.lanes)),
                "same_slot": Out(config.lanes),
            }
        )


class AttentionJob(Signature):
    """Parameters of a job of attention, seen from who gives: stable while it runs.

    head_mode : 0 attention, 1 output head. k_narrow, v_narrow : keys, values of the cache and of the pass are of 4 bits;
    keys only if values are. cells : head_dim, or inputs, in cells. group : heads / kv_heads (1 in head
    mode). head_first, head_count : lanes whose logits are computed, at most attention_lanes.
    vocabulary : rows behind it never win. write_logits : give every logit out, too.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "head_mode": Out(1),
                "k_narrow": Out(1),
                "v_narrow": Out(1),
                "cells": Out(16),
                "group": Out(HEAD_BITS),
                "kv_heads": Out(KV_HEAD_BITS),
                "head_first": Out(clog2(config.lanes)),
                "head_count": Out(count_bits(config)),
                "vocabulary": Out(32),
                "write_logits": Out(1),
            }
        )


class ElementwiseJob(Signature):
    """Parameters of the element-wise pipeline's jobs, seen from who gives: stable while any of them runs.

    kind, rows, scale0, scale1, scale2, q_scale : of the epilogue. norm_in, inputs, inv_n, eps : of the statistics.
    tiles : K tiles that are quantised. gain_out : outputs have a gain. gain_beats, x_beats, rope_beats : what is loaded.
    head_dim, heads, kv_heads : queries, keys and values. k_narrow, v_narrow : keys, values become integers of 4 bits.
    lanes : of the pass. grouped : inputs have an exponent for every group, where the format of weights has groups. hadamard : queries and
        keys are turned, where the accelerator has it.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                **({"grouped": Out(1)} if config.packing.group else {}),
                **({"hadamard": Out(1)} if config.hadamard else {}),
                "kind": Out(range(len(Kind))),
                "norm_in": Out(1),
                "gain_out": Out(1),
                "gain_beats": Out(16),
                "inputs": Out(16),
                "tiles": Out(16),
                "rows": Out(16),
                "inv_n": Out(32),
                "eps": Out(32),
                "scale0": Out(32),
                "scale1": Out(32),
                "scale2": Out(32),
                "q_scale": Out(32),
                "head_dim": Out(16),
                "heads": Out(HEAD_BITS),
                "kv_heads": Out(KV_HEAD_BITS),
                "k_narrow": Out(1),
                "v_narrow": Out(1),
                "x_beats": Out(16),
                "rope_beats": Out(16),
                "lanes": Out(count_bits(config)),
            }
        )


class CacheJob(Signature):
    """Where the cache writer writes, seen from who gives: taken with its start.

    cells : of a KV head. k_narrow, v_narrow : keys, values are written in 4 bits. kv_address, slot_stride, head_stride : beats, of the layer's cache.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "cells": Out(16),
                "k_narrow": Out(1),
                "v_narrow": Out(1),
                "kv_heads": Out(KV_HEAD_BITS),
                "kv_address": Out(32),
                "slot_stride": Out(32),
                "head_stride": Out(32),
            }
        )


def phase_layout(config: AcceleratorConfig) -> data.StructLayout:
    """A phase of attention, in execution order; fields as in `golden.schedule.Phase`.

    v: 0 K, 1 V. own: the pass's own keys. first, last: of this unit's K or V part. final: last phase of the job.
    parity: half of the score RAM. keys: valid keys of a cache block. base: first score word of the block in the unit.
    unit_words: score words of the unit for one set of queries. block: number of the key block, or of the vocabulary's
    (head).
    """
    lane = clog2(config.lanes)
    return data.StructLayout(
        {
            "v": 1,
            "own": 1,
            "first": 1,
            "last": 1,
            "final": 1,
            "parity": 1,
            "kv_head": KV_HEAD_BITS,
            "lane_lo": lane,
            "lane_hi": lane,
            "keys": 16,
            "base": 16,
            "unit_words": 16,
            "block": 16,
        }
    )


class _Part:
    """Some members of an interface, by other names: an interface again."""

    def __init__(self, interface: Any, names: dict[str, str]) -> None:
        self.signature = Signature({name: interface.signature.members[inner] for name, inner in names.items()})
        for name, inner in names.items():
            setattr(self, name, getattr(interface, inner))


def join(m: Module, a: Any, b: Any, names: str | None = None, /, **renamed: str) -> None:
    """Connects some members of two interfaces, as `wiring.connect` connects all: shapes must be equal, one side drive.

    Parameters
    ----------
    names : members that are called the same in both, separated by blanks. By default, and unless others are named: all
        of `a`'s.
    renamed : name in `a` = name in `b`.

    Raises
    ------
    amaranth.lib.wiring.SignatureError, amaranth.lib.wiring.ConnectionError : no such member; members that do not fit.
    """
    if names is None:
        names = "" if renamed else " ".join(a.signature.members)
    pairs = {name: name for name in names.split()} | renamed
    connect(m, _Part(a, {n: n for n in pairs}), _Part(b, pairs))


def take(m: Module, view: Any, component: Any, names: str = "", /, **renamed: str) -> None:
    """Drives inputs of a component from the fields of a view; what is wider than the input is cut.

    Parameters
    ----------
    names : those that are called the same in both, separated by blanks. renamed : field of the view = name of the input.
    """
    for field, name in ({n: n for n in names.split()} | renamed).items():
        m.d.comb += getattr(component, name).eq(view[field])
