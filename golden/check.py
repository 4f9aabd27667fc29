"""Which passes the hardware runs: rules for the lanes and for every descriptor, looked at before anything is executed.

What a rule refuses would otherwise hang a unit, write where it must not, or silently compute with what another
descriptor left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tellme.golden import layout, screen
from tellme.golden.arith import ceil_div
from tellme.golden.config import CHUNK, MAX_GROUP, AcceleratorConfig
from tellme.golden.kv import KvGeometry
from tellme.golden.layout import ROW_MULTIPLE
from tellme.golden.program import DESCRIPTOR_BYTES, Kind, Opcode, decode
from tellme.golden.registers import MAX_SLOTS
from tellme.golden.schedule import groups

ADDRESSES = 1 << 32
"""Beats that addresses can name."""
HEAD_DIM_MULTIPLE = 32
"""Dimensions of a head are a multiple of it."""


@dataclass
class _State:
    """What descriptors leave for later ones: features to quantise (0: none), the residual stream, the rotary table's
    dimensions, and (head_dim, heads, kv_heads, k_narrow, v_narrow) of queries, keys and values."""

    features: int = 0
    hidden: int = 0
    rope: int = 0
    heads: tuple[int, ...] | None = None


def max_kv_heads(config: AcceleratorConfig) -> int:
    """Most KV heads, of the smallest head dimension."""
    return min(config.max_heads, config.max_kv_dim // HEAD_DIM_MULTIPLE)


def _heads(f: dict[str, int], config: AcceleratorConfig) -> Iterator[str]:
    d, heads, kv_heads = f["head_dim"], f["heads"], f["kv_heads"]
    if d == 0 or d % HEAD_DIM_MULTIPLE or d > config.max_head_dim:
        yield f"head_dim is {d}, no multiple of {HEAD_DIM_MULTIPLE} from {HEAD_DIM_MULTIPLE} to {config.max_head_dim}"
    if not 1 <= heads <= config.max_heads:
        yield f"heads is {heads}, not from 1 to {config.max_heads}"
    most = max_kv_heads(config)
    if not 1 <= kv_heads <= most:
        yield f"kv_heads is {kv_heads}, not from 1 to {most}"
    if heads * d > config.query_offset:
        yield f"heads * head_dim is {heads * d}, more than {config.query_offset}"
    if kv_heads * d > config.max_kv_dim:
        yield f"kv_heads * head_dim is {kv_heads * d}, more than {config.max_kv_dim}"
    if (f["k_narrow"] or f["v_narrow"]) and not config.narrow_cache:
        yield "k_narrow or v_narrow is 1, the accelerator keeps K and V in 8 bits only (narrow_cache)"
    if f["k_narrow"] and not f["v_narrow"]:
        yield "k_narrow is 1, and v_narrow is not: keys are narrow only where values are"


def _heads_of(f: dict[str, int]) -> tuple[int, ...]:
    return tuple(f[name] for name in ("head_dim", "heads", "kv_heads", "k_narrow", "v_narrow"))


def _gain(f: dict[str, int], outputs: int, config: AcceleratorConfig) -> Iterator[str]:
    """The gain of `outputs` features, 0: there can be none."""
    need = layout.float_beats(outputs, config) if f["gain_out"] else 0
    if f["gain_beats"] != need or (f["gain_out"] and not outputs):
        yield f"gain_beats is {f['gain_beats']}, not {need}"


def _inputs(f: dict[str, int], limit: int, state: _State, config: AcceleratorConfig) -> Iterator[str]:
    if f["inputs"] == 0 or f["inputs"] != state.features:
        yield f"inputs is {f['inputs']}, the descriptors before leave {state.features} features"
    width = config.beat_weights
    if f["tiles"] != layout.tiles(f["inputs"], config):
        yield f"tiles is {f['tiles']}, {f['inputs']} inputs are {layout.tiles(f['inputs'], config)}"
    if f["tiles"] > ceil_div(limit, width):  # the last may reach beyond the buffer: its weights there are 0
        yield f"tiles is {f['tiles']}, more than {ceil_div(limit, width)}"


def _load(f: dict[str, int], config: AcceleratorConfig) -> Iterator[str]:
    n, d = f["inputs"], f["head_dim"]
    if n == 0 or n % CHUNK or n > config.max_hidden:
        yield f"inputs is {n}, no multiple of {CHUNK} from {CHUNK} to {config.max_hidden}"
    if f["x_beats"] != layout.float_beats(n, config):
        yield f"x_beats is {f['x_beats']}, not {layout.float_beats(n, config)}"
    if d == 0 or d % HEAD_DIM_MULTIPLE or d > config.max_head_dim:
        yield f"head_dim is {d}, no multiple of {HEAD_DIM_MULTIPLE} from {HEAD_DIM_MULTIPLE} to {config.max_head_dim}"
    if f["rope_beats"] != layout.rope_beats(d, config):
        yield f"rope_beats is {f['rope_beats']}, not {layout.rope_beats(d, config)}"
    yield from _gain(f, n, config)


def _linear(f: dict[str, int], config: AcceleratorConfig, state: _State) -> Iterator[str]:
    kind, rows = Kind(f["kind"]), f["rows"]
    yield from _inputs(f, config.query_offset if kind is Kind.QKV else config.max_features, state, config)
    if rows == 0 or rows % ROW_MULTIPLE:
        yield f"rows is {rows}, no positive multiple of {ROW_MULTIPLE}"
    block = f["block_rows"]
    if block == 0 or block % ROW_MULTIPLE or block > config.block_rows:
        yield f"block_rows is {block}, no multiple of {ROW_MULTIPLE} from {ROW_MULTIPLE} to {config.block_rows}"
    if kind is Kind.QKV:
        yield from _heads(f, config)
        if f["hadamard"] and not config.hadamard:
            yield "hadamard is 1, the accelerator turns no queries and keys (hadamard)"
        if rows != (f["heads"] + 2 * f["kv_heads"]) * f["head_dim"]:
            yield f"rows is {rows}, not those of {f['heads']} query and {f['kv_heads']} key-value heads of {f['head_dim']}"
        if rows > config.max_features:
            yield f"rows is {rows}, more than {config.max_features}"
        if f["head_dim"] != state.rope:
            yield f"head_dim is {f['head_dim']}, the rotary table has {state.rope}"
        yield from _gain(f, 2 * f["head_dim"], config)
    elif kind is Kind.RESIDUAL:
        if rows != state.hidden:
            yield f"rows is {rows}, the residual stream has {state.hidden}"
        yield from _gain(f, rows, config)
    else:
        if rows // 2 > config.max_features:
            yield f"rows is {rows}, more than {2 * config.max_features}"
        yield from _gain(f, rows // 2, config)


def _attention(f: dict[str, int], config: AcceleratorConfig, state: _State, context: int, slots: int) -> Iterator[str]:
    yield from _heads(f, config)
    d, heads, kv_heads = f["head_dim"], f["heads"], f["kv_heads"]
    if not 1 <= f["group"] <= MAX_GROUP or f["group"] * kv_heads != heads:
        yield f"group is {f['group']}, with {heads} query heads and {kv_heads} key-value heads (at most {MAX_GROUP} a head)"
    if _heads_of(f) != state.heads:
        yield (
            f"head_dim, heads, kv_heads, k_narrow and v_narrow are {', '.join(map(str, _heads_of(f)))}, "
            "not those of the QKV layer before"
        )
    limit = config.context_limit(bool(f["v_narrow"]))
    if context > limit:
        yield f"v_narrow is {f['v_narrow']}, and a slot has {context} positions, more than {limit}"
    kv = KvGeometry(config)
    need = kv.blocks(context) * kv.block_stride(kv.cells(d), f["k_narrow"], f["v_narrow"])
    if f["head_stride"] < need:
        yield f"head_stride is {f['head_stride']}, a head of {context} positions takes {need}"
    if f["slot_stride"] < kv_heads * f["head_stride"]:
        yield f"slot_stride is {f['slot_stride']}, less than kv_heads * head_stride ({kv_heads * f['head_stride']})"
    if f["kv_address"] + slots * f["slot_stride"] > ADDRESSES:
        yield f"kv_address is {f['kv_address']}: {slots} slots of {f['slot_stride']} beats go beyond the addresses"
    yield from _gain(f, heads * d, config)


def _head(f: dict[str, int], config: AcceleratorConfig, state: _State) -> Iterator[str]:
    yield from _inputs(f, config.max_features, state, config)
    n, blocks = f["inputs"], f["blocks"]
    if n % config.cell or n > config.max_hidden:
        yield f"inputs is {n}, no multiple of {config.cell} up to {config.max_hidden}"
    if blocks == 0 or not 1 <= f["rows"] <= blocks * config.key_block:
        yield f"rows is {f['rows']}, {blocks} blocks hold from 1 to {blocks * config.key_block}"
    need = blocks * config.key_block // config.word
    if f["logits_stride"] < need:
        yield f"logits_stride is {f['logits_stride']}, the logits of a lane take {need}"
    if f["logits_address"] + config.lanes * f["logits_stride"] > ADDRESSES:
        yield f"logits_address is {f['logits_address']}: the logits of {config.lanes} lanes go beyond the addresses"
    yield from _gain(f, 0, config)


def _screen(
    f: dict[str, int], config: AcceleratorConfig, state: _State, candidates: int, head_lanes: int
) -> Iterator[str]:
    yield from _inputs(f, config.max_features, state, config)
    n, rows = f["inputs"], f["rows"]
    if n % config.cell or n > config.max_hidden:
        yield f"inputs is {n}, no multiple of {config.cell} up to {config.max_hidden}"
    if not 1 <= f["planes"] <= screen.MAX_PLANES:
        yield f"planes is {f['planes']}, not 1 or {screen.MAX_PLANES}"
    if not 1 <= rows <= screen.MAX_ROWS:
        yield f"rows is {rows}, not from 1 to {screen.MAX_ROWS}"
    if f["logits_stride"] * config.word < rows:
        yield f"logits_stride is {f['logits_stride']}, half a vocabulary of candidates takes {ceil_div(rows, config.word)}"
    if f["logits_address"] + config.lanes * f["logits_stride"] > ADDRESSES:
        yield f"logits_address is {f['logits_address']}: the logits of {config.lanes} lanes go beyond the addresses"
    if f["exact"] and not config.ternary_head:
        yield "exact is 1, the accelerator has no logits of a ternary head (ternary_head)"
    if f["exact"] and f["planes"] != 1:
        yield f"planes is {f['planes']}, a ternary head has 1"
    wanted = candidates or screen.MULTIPLE * f["exact"]
    if wanted and (why := screen.problem(wanted, head_lanes, rows, config.screen_entries)):
        yield why
    yield from _gain(f, 0, config)


def bad_lanes(
    config: AcceleratorConfig,
    *,
    lanes: int,
    head: tuple[int, int],
    context: int,
    slots: int,
    positions: Sequence[int],
    slot: Sequence[int],
) -> bool:
    """Whether the registers of a pass do not make one: the rules of `hw.control.lanes`.

    Parameters
    ----------
    lanes, context, slots : the registers of these names.
    head : first head lane, and how many.
    positions, slot : of each lane; those of idle lanes do not matter.
    """
    counts = 1 <= lanes <= config.lanes and sum(head) <= lanes
    if not (counts and 1 <= context <= config.most_context and 1 <= slots <= MAX_SLOTS):
        return True
    p, s = positions[:lanes], slot[:lanes]
    if max(p) >= context or max(s) >= slots:
        return True
    runs = groups(s)
    if len({s[lo] for lo, _ in runs}) != len(runs):
        return True
    return any(p[i] != p[lo] + i - lo for lo, hi in runs for i in range(lo, hi + 1))


def problem(
    program: bytes, config: AcceleratorConfig, *, context: int, slots: int, candidates: int = 0, head_lanes: int = 1
) -> tuple[int, str] | None:
    """The first descriptor that cannot be executed, and why; None if the program runs: the rules of `hw.control.check`.

    Parameters
    ----------
    program : descriptors of 64 bytes; what follows END does not matter.
    context, slots, candidates : positions of a cache slot, cache slots, candidates of a head lane (the registers of these names).
    head_lanes : lanes whose logits are computed.

    Returns
    -------
    (index, reason), with the number of descriptors as index if none of them is END.
    """
    state = _State()
    screens = False
    count = len(program) // DESCRIPTOR_BYTES
    for i in range(count):
        code = program[i * DESCRIPTOR_BYTES : (i + 1) * DESCRIPTOR_BYTES]
        try:
            opcode, values = decode(code)
        except ValueError:
            return i, f"opcode is {code[0]}, which there is not"
        if opcode is Opcode.END:
            if candidates and head_lanes and not screens:
                return i, f"END: {candidates} candidates are wanted, and no descriptor before it is SCREEN"
            return None
        f = {k: v for k, v in values.items() if isinstance(v, int)}
        if opcode is Opcode.LOAD:
            rules = _load(f, config)
            after = _State(f["inputs"], f["inputs"], f["head_dim"])
        elif opcode is Opcode.LINEAR:
            rules = _linear(f, config, state)
            outputs = {Kind.QKV: 0, Kind.RESIDUAL: f["rows"]}.get(Kind(f["kind"]), f["rows"] // 2)
            heads = _heads_of(f) if f["kind"] == Kind.QKV else None
            after = _State(outputs, state.hidden, state.rope, heads)
        elif opcode is Opcode.ATTENTION:
            rules = _attention(f, config, state, context, slots)
            after = _State(f["heads"] * f["head_dim"], state.hidden, state.rope)
        elif opcode is Opcode.HEAD:
            rules = _head(f, config, state)
            after = _State(0, state.hidden, state.rope)
        else:
            rules = _screen(f, config, state, candidates, head_lanes)
            after, screens = _State(state.features, state.hidden, state.rope), True
        for reason in rules:
            return i, f"{opcode.name}: {reason}"
        state = after
    return count, f"none of the {count} descriptors is END"
